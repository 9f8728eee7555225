"""How `make book` turns notebooks and pages into the site (scripts/build.py is the entry).

stage    py:percent sources to notebooks with fixed cell ids, pages to the Sphinx source folder
execute  papermill runs, one per chapter whose sources changed; stops at the first error
claims   data/expected.yml against the measured figures
commands reference of the command line
facts    what the code sets: presets, limits, memory
findings what was found, statement by statement, for the landing page
landing  the landing page: index.md with an interactive figure of an executed chapter
measured where the measurements came from
pages    the generated pages: claims table, status and provenance
parameters  tables from the parameters cells
reference   pages of the Python reference
speed    what the benchmark of SD v1.4's size measured
site     configuration overlay, vendored JavaScript, the jupyter-book call
"""

"""How `make book` turns notebooks and pages into the site (scripts/build.py is the entry).

stage    py:percent sources to notebooks with fixed cell ids, pages to the Sphinx source folder
execute  papermill runs, one per chapter whose sources changed; stops at the first error
claims   data/expected.yml against the measured figures
pages    the generated pages: claims table, status and provenance
site     configuration overlay, vendored JavaScript, the jupyter-book call
"""

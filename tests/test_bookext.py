"""The book's Sphinx extension, on a small project: docstrings as they are meant, names that lead on."""

import re
import sys
import types

import pandas as pd
import pytest

bookext = pytest.importorskip("bookext", reason="Sphinx is not installed: pip install -e .[book]")
PAGE = """\
Some modules
============

{}
Prose, outside of the reference, may name `dori.mitigation.units.Units`, too.
"""
MODULES = ("dori.mitigation.units", "dori.mitigation.esd", "dori.metrics.copy", "dori.experiments.options",
           "dori.mitigation")  # fmt: skip
SETTINGS = {
    "extensions": ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "bookext"],
    "default_role": "literal",
    "autodoc_preserve_defaults": True,
    "python_maximum_signature_line_length": 100,
    "html_theme": "basic",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """A page of the reference as HTML."""
    application = pytest.importorskip("sphinx.application", reason="Sphinx is not installed: .[book]")
    source = tmp_path_factory.mktemp("project")
    (source / "conf.py").write_text("")
    (source / "api").mkdir()
    entries = "".join(f"{m}\n{'-' * len(m)}\n\n.. automodule:: {m}\n   :members:\n\n" for m in MODULES)
    (source / "api" / "some.rst").write_text(PAGE.format(entries))
    (source / "index.rst").write_text("Title\n=====\n\n.. toctree::\n\n   api/some\n")
    application.Sphinx(
        source, source, source / "out", source / "trees", "html", SETTINGS, None, sys.stderr
    ).build()
    return (source / "out" / "api" / "some.html").read_text(encoding="utf-8")


def link_of(page: str, name: str) -> str | None:
    """Where the first mention of a name in backticks leads."""
    mention = (
        f'<code class="docutils literal notranslate"><span class="pre[^"]*">{re.escape(name)}</span></code>'
    )
    found = re.search(rf'<a class="reference internal" href="([^"]*)"[^>]*>{mention}', page)
    return found and found[1]


def test_numbers_are_set_as_in_print_but_in_code_and_formulas():
    text = "<p>12 % [-3, 4], n = 8, ≥ 0.5 &lt; -1, mem-128-01, 1e-05, 2026-11-24, &gt; 500</p>"
    told = "<p>12~% [−3, 4], n~=~8, ≥~0.5 &lt;~−1, mem-128-01, 1e-05, 2026-11-24, &gt;~500</p>"
    assert bookext.printed(text) == told.replace("~", "\N{NO-BREAK SPACE}")
    kept = (
        '<a title="n = 8">x</a><pre><span>-1 n = 8</span> 3 % 2</pre><code>-1</code>'
        '<span class="math notranslate">\\(n = 8\\)</span><script>{"a": -1, "n = 8": 1}</script>'
    )
    assert bookext.printed(kept) == kept
    assert bookext.COUNT.sub("x", "<td>12345</td><td>mem 12345</td>") == "<td>x</td><td>mem 12345</td>"


def test_names_of_an_index_share_the_row_of_the_columns_names():
    index = pd.MultiIndex.from_tuples([("a", 1)], names=["model", "steps"])
    shown = bookext.FRAME.sub(bookext._fitted, pd.DataFrame({"MR": [0.5], "n": [8]}, index=index).to_html())
    assert "<thead><tr><th>model</th><th>steps</th><th>MR</th><th>n</th></tr></thead>" in shown
    both = pd.DataFrame({"MR": [0.5]}, index=index).rename_axis(columns="target").to_html()
    assert bookext.FRAME.sub(bookext._fitted, both).count("<tr") == 3, "two names for one place stay apart"
    plain = pd.DataFrame({"MR": [0.5]}).to_html()
    assert "<th></th>" in bookext.FRAME.sub(bookext._fitted, plain)


def test_a_dataframe_of_many_columns_has_smaller_letters_and_whole_short_cells():
    def frame(columns):
        cells = "<td>plant-00</td>" * (columns - 1) + "<td>a long sentence of words</td>"
        head = f"<thead><tr>{'<th>x</th>' * columns}</tr></thead>"
        return f'<table border="1" class="dataframe">{head}<tbody><tr>{cells}</tr></tbody></table>'

    few, many = (bookext.FRAME.sub(bookext._fitted, frame(n)) for n in (bookext.MANY - 1, bookext.MANY))
    assert few.startswith('<table class="dataframe"><thead><tr><th>x</th>')
    assert many.startswith('<table class="dataframe many">')
    assert few.count('<td class="untorn">plant-00</td>') == bookext.MANY - 2
    assert "<td>a long" in few


def test_names_lead_to_their_entries(page):
    assert link_of(page, "units.Units") == "#dori.mitigation.units.Units"
    assert link_of(page, "dori.mitigation.units.Units") == "#dori.mitigation.units.Units"


def test_formulas_of_docstrings_reach_the_page_whole(page):
    formula = r"\(\tilde e = e_c - \eta\,(e_c - e_\varnothing)\)"
    assert f'<span class="math notranslate nohighlight">{formula}</span>' in page


def test_a_long_signature_is_no_list_without_terms(page):
    assert '<div class="sig-params">' in page
    assert not re.search(r"<dl>\s*<dd><em class=\"sig-param", page)
    assert page.count("<dl") == page.count("</dl>")


def test_protocols_look_like_nothing_to_call(page):
    (signature,) = re.findall(r'id="dori\.metrics\.copy\.CopyDescriptor">.*?</dt>', page, re.DOTALL)
    assert "kwargs" not in signature


def test_what_a_setting_means_stands_beneath_it(page):
    (entry,) = re.findall(r'id="dori\.mitigation\.esd\.ESD\.lr">.*?</dd>', page, re.DOTALL)
    assert "of Adam" in entry


def test_docstrings_keep_their_quotes_and_long_names_can_be_divided(page):
    assert "<h2>dori.<wbr>mitigation.<wbr>units<" in page
    assert "“" not in page
    assert "”" not in page


def test_pages_without_a_number_have_a_letter():
    numbers = {"notebooks/00_background": {"displaymath": {"a": (1,), "b": (2,)}, "figure": {"c": (4,)}}}
    env = types.SimpleNamespace(toc_fignumbers=numbers)
    assert bookext._letter_numbers(None, env) == bookext._letter_numbers(None, env) == []
    assert numbers == {
        "notebooks/00_background": {"displaymath": {"a": ("B", 1), "b": ("B", 2)}, "figure": {"c": ("B", 1)}}
    }


def test_cells_of_a_wide_table_know_their_column():
    """For phones, where a row becomes a card; a narrow table stays as it is."""
    row = "<tr><td><p>1</p></td><td>2</td><td>3</td><td>4</td></tr>"
    head = '<thead><tr><th class="head"><p>A &amp; B</p></th><th>C</th><th>D</th><th>E</th></tr></thead>'
    table = f'<table class="table">{head}<tbody>{row}</tbody></table>'
    shown = bookext.TABLE.sub(bookext._with_labels, table)
    assert re.findall(r'data-label="([^"]*)"', shown) == ["A &amp; B", "C", "D", "E"]
    assert 'class="table cards"' in shown
    frame = table.replace('class="table"', 'border="0" class="dataframe table"')
    assert 'class="dataframe table cards"' in bookext.TABLE.sub(bookext._with_labels, frame)
    narrow = table.replace("<th>C</th><th>D</th><th>E</th>", "").replace("<td>2</td><td>3</td><td>4</td>", "")
    assert bookext.TABLE.sub(bookext._with_labels, narrow) == narrow

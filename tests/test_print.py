"""Printing a page to PDF with Chromium."""

import importlib
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="PyYAML is not installed: pip install -e .[book]")

from bookbuild.layout import BuildError

printer = importlib.import_module("print")  # scripts/print.py


def page(folder: Path) -> Path:
    """A page whose title a script beside it writes: a file that it fetches as it would from a server."""
    folder.mkdir()
    (folder / "index.html").write_text(
        "<title>untouched</title><p>x</p><script src='a.js' type='module'></script>"
    )
    (folder / "a.js").write_text("document.title = 'set by a script';")
    return folder


def test_a_page_is_printed_after_its_scripts_ran(tmp_path):
    try:
        browser = printer.find_browser()
    except BuildError as error:
        pytest.skip(str(error))
    printer.print_page(page(tmp_path / "site"), tmp_path / "book.pdf", browser)
    found = (tmp_path / "book.pdf").read_bytes()
    assert found.startswith(b"%PDF-")
    assert b"set by a script" in found


@pytest.mark.parametrize("code", [0, 1])
def test_a_browser_that_prints_nothing_is_told_of_with_its_last_words(code, tmp_path):
    browser = tmp_path / "chromium"
    browser.write_text(f"#!/bin/sh\necho no display >&2\nexit {code}\n")
    browser.chmod(0o755)
    with pytest.raises(BuildError, match="no display"):
        printer.print_page(page(tmp_path / "site"), tmp_path / "book.pdf", str(browser))


def test_without_a_browser_the_package_to_install_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="apt-get install chromium"):
        printer.find_browser()

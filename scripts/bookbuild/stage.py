"""Sources to what papermill and Sphinx read: notebooks with fixed cell ids, pages, generated parts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import jupytext
import nbformat

from bookbuild.layout import Layout
from bookbuild.parameters import add_table

RELATIVE_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://|#|mailto:)[^)]+\)")


def prepare_chapter(source: Path, target: Path) -> Path:
    """Write the py:percent `source` as a notebook, with a table of its parameters.

    jupytext gives cells new random ids on each conversion; ids by position keep builds comparable.
    """
    notebook = jupytext.read(source)
    notebook.metadata.pop("jupytext", None)
    for position, cell in enumerate(notebook.cells):
        cell["id"] = f"c{position:03d}"
    nbformat.validate(notebook)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    add_table(target)
    return target


def title(source: Path) -> str:
    """A chapter's title, without `# `; its file's name where it has none."""
    found = re.search(r"^# # (.+)$", source.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else source.stem


def stage_sources(layout: Layout) -> None:
    """Fill `_build/src` with the pages of book/ and the chapters, executed where they have been."""
    shutil.rmtree(layout.src, ignore_errors=True)
    shutil.copytree(layout.pages, layout.src, ignore=shutil.ignore_patterns("_toc.yml", "__pycache__"))
    (layout.src / "generated").mkdir(exist_ok=True)
    shutil.copy(layout.results, layout.src / "generated" / "results.json")
    target = layout.src / "notebooks"
    target.mkdir()
    for source in layout.chapters():
        executed = layout.executed / f"{source.stem}.ipynb"
        chosen = executed if executed.exists() else layout.prepared / executed.name
        shutil.copy(chosen, target / executed.name)


def stage_card(layout: Layout) -> None:
    """The testbed's card as an includable part; links to files beside it lead nowhere here: plain text."""
    card = layout.data / "testbed" / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else "There is no testbed here.\n"
    staged = RELATIVE_LINK.sub(r"\1", text)
    (layout.src / "generated" / "testbed_card.md").write_text(staged, encoding="utf-8")

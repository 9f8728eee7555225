"""Tables of parameters, from the parameters cells: a comment behind a value is its description.

`papermill --help-notebook` reads the same comments.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import nbformat
import papermill

from bookbuild.pages import table

TAG, TABLE = "parameters", "parameters-table"  # tag of the cell, id of the cell with the table behind it
HEADER = ("Parameter", "Default", "What it is")


class Parameter(NamedTuple):
    """One line of a parameters cell; `default` as it is written there."""

    name: str
    default: str
    description: str


def read_parameters(notebook: Path) -> list[Parameter]:
    """What a notebook can be run with, in its order."""
    found = papermill.inspect_notebook(str(notebook)).values()
    return [Parameter(p["name"], p["default"], p["help"].strip()) for p in found]


def parameters_table(parameters: Iterable[Parameter]) -> str:
    """A Markdown table, a row for each parameter."""
    return table(HEADER, ([f"`{p.name}`", f"`{p.default}`", p.description] for p in parameters))


def add_table(path: Path) -> None:
    """Put the table of its parameters behind a notebook's parameters cell, in the file."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    tagged = [n for n, cell in enumerate(notebook.cells) if TAG in cell.metadata.get("tags", [])]
    if not tagged:
        return
    cell = nbformat.v4.new_markdown_cell(parameters_table(read_parameters(path)))
    cell["id"] = TABLE
    notebook.cells.insert(tagged[0] + 1, cell)
    nbformat.write(notebook, path)


def common(notebooks: Iterable[Path]) -> list[Parameter]:
    """The parameters that every notebook has, as the last one describes them, without what differs."""
    each = [{p.name: p for p in read_parameters(path)} for path in notebooks]
    if not each:
        return []
    shared = [p for name, p in each[-1].items() if all(name in other for other in each)]
    return [
        p if all(other[p.name].default == p.default for other in each) else p._replace(default="by chapter")
        for p in shared
    ]

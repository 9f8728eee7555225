"""Pages of the Python reference: which module stands on which page. The text is the docstrings'."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import dori

FOLDER = "api"
GROUPS = {  # page -> title and modules; a package stands for its modules, too
    "study": ("Study", ("study", "drawing", "store", "archive", "status", "claims", "errors")),
    "benchmark": ("Benchmarks", ("benchmark", "promptfiles", "images", "fetched", "web")),
    "model": (
        "Model",
        ("model", "architectures", "noising", "sampling", "loading", "known", "hub", "convert", "hooks"),
    ),
    "methods": ("Attacks and mitigation", ("attack", "unlearndiff", "mitigation")),
    "measures": ("Measures", ("detection", "metrics", "locality")),
    "experiments": ("Experiments of the chapters", ("experiments",)),
    "figures": ("Figures", ("plots", "widgets")),
    "testbed": ("Testbed", ("testbed",)),
    "classroom": ("Classroom", ("classroom",)),
}
REST = ("rest", "What they stand on")  # page and title of every module that no group names
ELSEWHERE = {"cli", "__main__"}  # has a page of another kind; has nothing to call
FACADES = {"dori.plots"}  # packages whose modules are reached through them alone
INTRODUCTION = """\
What the chapters call, from the docstrings: shapes, units, errors and sources stand there. Start with
:func:`dori.study.open_study`, which loads what an experiment needs, and with the experiments of the chapter
you have read.
"""


def modules(name: str) -> list[str]:
    """A module, or a package with what is in it, by full name."""
    full = f"dori.{name}"
    path = getattr(importlib.import_module(full), "__path__", None)
    if path is None or full in FACADES:
        return [full]
    inner = [f"{full}.{found.name}" for found in pkgutil.iter_modules(path)]
    return [full, *(module for module in inner if not module.rsplit(".", 1)[1].startswith("_"))]


def groups() -> dict[str, tuple[str, tuple[str, ...]]]:
    """GROUPS, and a last page for the modules of the package that none of them names."""
    named = {name for _, names in GROUPS.values() for name in names} | ELSEWHERE
    rest = tuple(found.name for found in pkgutil.iter_modules(dori.__path__) if found.name not in named)
    page, title = REST
    return GROUPS | {page: (title, rest)}


def heading(text: str, line: str) -> str:
    """A heading of reStructuredText."""
    return f"{text}\n{line * len(text)}\n\n"


def page(title: str, names: tuple[str, ...]) -> str:
    """One page: a table of its modules, then each with its public members."""
    found = [module for name in names for module in modules(name)]
    listed = "".join(f"   {module}\n" for module in found)
    text = heading(title, "=") + f".. autosummary::\n\n{listed}\n"
    for module in found:
        options = "   :members:\n" + "   :imported-members:\n" * (module in FACADES)
        text += heading(module, "-") + f".. automodule:: {module}\n{options}\n"
    return text


def write_reference(source: Path) -> None:
    """Write the pages to `source`/api, from where the table of contents takes them."""
    folder = source / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    start = ".. _api:\n\n" + heading("Python reference", "=") + INTRODUCTION
    (folder / "index.rst").write_text(start, encoding="utf-8")
    for name, (title, names) in groups().items():
        (folder / f"{name}.rst").write_text(page(title, names), encoding="utf-8")

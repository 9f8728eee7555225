"""Pages of the Python reference: which module stands on which page. The text is the docstrings'."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import dori

FOLDER = "api"
GROUPS = {  # page -> title, what it is about, and modules; a package stands for its modules, too
    "study": (
        "Study",
        "what an experiment is given, and where its results are kept and judged",
        ("study", "drawing", "methods", "store", "archive", "status", "stopwatch", "claims", "errors"),
    ),
    "benchmark": (
        "Benchmarks",
        "tables of prompts and their images, from files and from the web",
        ("benchmark", "promptfiles", "images", "fetched", "web"),
    ),
    "model": (
        "Model",
        "one way to call all text-to-image models: load them, sample, look inside",
        ("model", "architectures", "noising", "sampling", "loading", "known", "hub", "convert", "hooks"),
    ),
    "methods": (
        "Attacks and mitigation",
        "searches for triggers, prunings and trainings",
        ("attack", "unlearndiff", "mitigation"),
    ),
    "measures": (
        "Measures",
        "copies, rates and their intervals, detection, fidelity, locality",
        ("detection", "metrics", "locality"),
    ),
    "experiments": (
        "Experiments of the chapters",
        "what the chapters and the commands run: a study in, a table out",
        ("experiments",),
    ),
    "figures": (
        "Figures",
        "plots, figures with sliders, and headings of tables",
        ("plots", "widgets", "tables"),
    ),
    "testbed": ("Testbed", "how the bundled model and what belongs to it are made", ("testbed",)),
    "classroom": ("Classroom", "assignments, how they are handed out, the leaderboard", ("classroom",)),
}
# The page of every module that no group names.
REST = ("rest", "Other modules", "training loops, optimisers, many processes, output")
ELSEWHERE = {"cli", "__main__"}  # have a page of another kind; have nothing to call
FACADES = {"dori.plots"}  # packages whose modules are reached through them alone
INTRODUCTION = """\
What the chapters call, from the docstrings: shapes, units, errors and sources stand there. Start with
:func:`dori.study.open_study`, which loads what an experiment needs, and with the experiments of the chapter
you have read. There is an :ref:`index of names <genindex>`, and :ref:`one of modules <modindex>`.

"""


def modules(name: str) -> list[str]:
    """A module, or a package with what is in it, by full name."""
    full = f"dori.{name}"
    path = getattr(importlib.import_module(full), "__path__", None)
    if path is None or full in FACADES:
        return [full]
    inner = [found.name for found in pkgutil.iter_modules(path)]
    return [full, *(f"{full}.{name}" for name in inner if name not in ELSEWHERE and name[0] != "_")]


def groups() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """GROUPS, and a last page for the modules of the package that none of them names."""
    named = {name for *_, names in GROUPS.values() for name in names} | ELSEWHERE
    rest = tuple(found.name for found in pkgutil.iter_modules(dori.__path__) if found.name not in named)
    page, title, about = REST
    return GROUPS | {page: (title, about, rest)}


def heading(text: str, line: str) -> str:
    """A heading of reStructuredText."""
    return f"{text}\n{line * len(text)}\n\n"


def page(title: str, names: tuple[str, ...]) -> str:
    """One page: a table of its modules, then each with its public members."""
    found = [module for name in names for module in modules(name)]
    listed = "".join(f"   {module}\n" for module in found)
    text = heading(title, "=") + f".. autosummary::\n\n{listed}\n"
    for module in found:
        others = from_elsewhere(module)
        options = "   :members:\n" + "   :imported-members:\n" * (module in FACADES)
        options += f"   :exclude-members: {', '.join(others)}\n" * bool(others)
        text += heading(module, "-") + f".. automodule:: {module}\n{options}\n"
        links = ", ".join(f":obj:`~{full}`" for full in others.values())
        text += f"Can also be had from here: {links}.\n\n" * bool(others)
    return text


def from_elsewhere(module: str) -> dict[str, str]:
    """Names that a module offers and others define -> their full names there, where they are documented."""
    there, found = importlib.import_module(module), {}
    for name in getattr(there, "__all__", []):
        home = getattr(getattr(there, name), "__module__", module)
        behind = module in FACADES and home.startswith(f"{module}.")  # has no entry of its own
        if home != module and not behind:
            found[name] = f"{home}.{name}"
    return found


def write_reference(source: Path) -> None:
    """Write the pages to `source`/api, from where the table of contents takes them."""
    folder = source / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    start = ".. _api:\n\n" + heading("Python reference", "=") + INTRODUCTION
    start += "".join(f"- :doc:`{name}`: {about}\n" for name, (_, about, _) in groups().items())
    (folder / "index.rst").write_text(start, encoding="utf-8")
    for name, (title, _, names) in groups().items():
        (folder / f"{name}.rst").write_text(page(title, names), encoding="utf-8")

"""The teacher's page: the assignments' points and minutes, and the students' notebooks to download."""

from __future__ import annotations

import csv
import re
import shutil

import jupytext

from bookbuild.layout import Layout
from bookbuild.pages import table
from dori.classroom.course import SOURCES, assignments, release

DOWNLOADS = "assignments"  # folder of _build/src


def stage_assignments(layout: Layout) -> None:
    """Put the students' notebooks, without solutions and hidden tests, where pages can link to them."""
    target = layout.src / DOWNLOADS
    target.mkdir(exist_ok=True)
    for path in release(layout.build / "classroom"):
        shutil.copy(path, target / path.name)


def assignments_part() -> str:
    """A row for each assignment: title with download, points, and minutes as measured, with the machine."""
    measured = timings()
    rows = [
        [
            f"{{download}}`{title(name)} <{DOWNLOADS}/{name}.ipynb>`",
            sum(points(name).values()),
            *(minutes(measured.get((name, size))) for size in ("quick", "smoke")),
        ]
        for name in assignments()
    ]
    machines = sorted({f"{r['machine']}, {r['threads']} of them used" for r in measured.values()})
    header = ("Assignment", "Points", "Minutes", "Minutes when graded small")
    where = "; ".join(machines) or "no machine yet"
    return f"{table(header, rows)}\nMeasured with the solutions on {where}.\n"


def rubric_part() -> str:
    """A row for each graded cell: assignment, its name, what it checks, points."""
    rows = [
        [name.split("_")[0], f"`{cell}`", told, value]
        for name in assignments()
        for cell, value, told in graded(name)
    ]
    return table(("Assignment", "Test cell", "What it checks", "Points"), rows)


def title(name: str) -> str:
    """The heading of an assignment."""
    return re.search(r"^# # (.+)$", (SOURCES / f"{name}.py").read_text(encoding="utf-8"), re.M)[1]


def points(name: str) -> dict[str, int]:
    """Points by test cell."""
    return {cell: value for cell, value, _ in graded(name)}


def graded(name: str) -> list[tuple[str, int, str]]:
    """Name, points and what it checks of each test cell, the last from `checks` in its metadata."""
    cells = [(c.metadata.get("nbgrader", {}), c) for c in jupytext.read(SOURCES / f"{name}.py").cells]
    return [(m["grade_id"], m["points"], c.metadata["checks"]) for m, c in cells if m.get("grade")]


def timings() -> dict[tuple[str, str], dict[str, str]]:
    """Rows of timing.csv by assignment and size; empty without the file."""
    path = SOURCES / "timing.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {(r["assignment"], r["size"]): r for r in csv.DictReader(file)}


def minutes(row: dict[str, str] | None) -> str:
    """Seconds as minutes; a dash where nothing was measured."""
    return "–" if row is None else f"{float(row['seconds']) / 60:.1f}"

"""The teacher's page: its tables come from the sources and from what was measured."""

import pytest

pytest.importorskip("jupytext", reason="jupytext is not installed: pip install -e .[book]")

from bookbuild import classroom

from dori.classroom.course import assignments


def test_the_table_has_a_row_with_link_points_and_minutes_for_each(monkeypatch):
    row = {"machine": "abacus", "threads": "1", "seconds": "90"}
    monkeypatch.setattr(classroom, "timings", lambda: {(assignments()[0], "quick"): row})
    lines = [line for line in classroom.assignments_part().splitlines() if "{download}" in line]
    assert len(lines) == 4
    assert "`Assignment 1: measure memorization <assignments/1_measure_memorization.ipynb>`" in lines[0]
    assert lines[0].endswith("| 10 | 1.5 | – |")
    assert classroom.assignments_part().endswith("Measured with the solutions on abacus, 1 of them used.\n")


def test_every_assignment_was_timed_at_both_sizes_below_ten_minutes():
    measured = classroom.timings()
    for name in assignments():
        for size in ("quick", "smoke"):
            assert float(measured[name, size]["seconds"]) < 600


def test_the_rubric_lists_each_graded_cell_once():
    rows = classroom.rubric_part().splitlines()[2:]
    assert len(rows) == sum(len(classroom.points(name)) for name in assignments())
    assert len(set(rows)) == len(rows)
    checks = [row.split(" | ")[2] for row in rows]
    assert all(len(told.split()) > 3 for told in checks)
    assert len(set(checks)) == len(checks)

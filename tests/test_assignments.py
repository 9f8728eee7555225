"""Every solution passes, and every mistake that students make is noticed by the test cell for it.

The cells run in this process, each mistake on the names that the solutions before it left.
"""

import copy
import dataclasses
import re

import pytest
from classroom import BREAK, DESIGN, MEASURE, MISTAKES, PRUNED, STEP

from dori.classroom.course import SOURCES, assignments
from dori.experiments import erasing

jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed: pip install -e .[classroom]")

each = pytest.mark.parametrize("assignment", [MEASURE, STEP, BREAK, DESIGN])
SEED = 7  # as a class of another year has it; test_course.py has the assignments' own
SLOW = {"defend", "test-defend", "test-silent", "test-useful", "test-holds", "board"}  # see test_course.py


def cells(assignment: str) -> list:
    return [c for c in jupytext.read(SOURCES / f"{assignment}.py").cells if c.cell_type == "code"]


def marks(cell) -> dict:
    return cell.metadata["nbgrader"]


@pytest.fixture(scope="module")
def worked():
    """Assignment -> cells by id, and the names after its last cell; made when first asked for."""
    patch, done = pytest.MonkeyPatch(), {}
    patch.setenv("DORI_ASSIGNMENT_PRESET", "smoke")
    patch.setattr(erasing, "PRUNING", dataclasses.replace(erasing.PRUNING, steps=4))

    def get(assignment: str) -> tuple[dict, dict]:
        if assignment not in done:
            by_id, names = {marks(c)["grade_id"]: c.source for c in cells(assignment)}, {}
            assert by_id["parameters"] == "seed = 0"
            by_id["parameters"] = f"seed = {SEED}"
            for i, source in by_id.items():
                if i not in SLOW:
                    exec(compile(source, f"{assignment}/{i}", "exec"), names)
            done[assignment] = by_id, names
        return done[assignment]

    yield get
    patch.undo()


def test_there_are_four():
    assert assignments() == [MEASURE, STEP, BREAK, DESIGN]


@each
def test_points_sum_to_ten_over_several_cells(assignment):
    points = [marks(c)["points"] for c in cells(assignment) if marks(c)["grade"]]
    assert sum(points) == 10
    assert len(points) >= 5


@each
def test_solutions_and_hidden_tests_are_marked_for_nbgrader(assignment):
    for cell in cells(assignment):
        assert ("### BEGIN SOLUTION" in cell.source) == marks(cell)["solution"]
        if "### BEGIN HIDDEN TESTS" in cell.source:
            assert marks(cell)["grade"]
        assert marks(cell)["locked"] != marks(cell)["solution"], "tests and setup are restored when graded"


@each
def test_the_chapters_that_an_assignment_names_are_in_the_book(assignment):
    titles = {re.search(r"^# # (.+)$", path.read_text(), re.M)[1] for path in SOURCES.parent.glob("0*.py")}
    intro = jupytext.read(SOURCES / f"{assignment}.py").cells[0].source.replace("\n", " ")
    named = re.findall(r"\*([^*]+)\*", intro.split("Needed: ")[1])
    assert named
    assert set(named) <= titles


@each
def test_the_solutions_pass(assignment, worked):
    worked(assignment)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.assignment[0]}-{m.name}".replace(" ", "-"))
def test_a_mistake_is_noticed(mistake, worked):
    sources, solved = worked(mistake.assignment)
    names, unet = dict(solved), solved["room"].study.model.unet
    weights = copy.deepcopy(unet.state_dict())
    try:
        exec(mistake.made(sources[mistake.cell]), names)
        for i in mistake.then:
            exec(sources[i], names)
        for i in mistake.caught_by:
            with pytest.raises((AssertionError, ValueError, TypeError, ZeroDivisionError)):
                exec(sources[i], names)
    finally:
        unet.load_state_dict(weights)
        unet.requires_grad_(False).zero_grad()


def test_a_pruning_is_no_defence(worked):
    """It changes a copy and spoils little; the prompt or the attacker still returns the images."""
    sources, solved = worked(DESIGN)
    names = dict(solved)
    exec(PRUNED, names)
    for i in ("test-defend", "test-useful"):
        exec(sources[i], names)
    for i in ("test-silent", "test-holds"):
        with pytest.raises(AssertionError):
            exec(sources[i], names)

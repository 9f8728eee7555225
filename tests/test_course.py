"""The round trip through nbgrader itself: release, hand in, autograde; and the teacher's commands.

Right submissions of each assignment, a wrong and an empty one of the first, are graded with the commands of
book/teaching.md: each takes a kernel. Mistakes in the others are tests of test_assignments.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from classroom import BREAK, DESIGN, MEASURE, MISTAKES, PRUNED, STEP

pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install -e .[classroom]")
import nbformat

from dori.classroom.course import assignments, release, submitted
from dori.cli import main
from dori.errors import DoriError

ROOT = Path(__file__).resolve().parents[1]
WRONG = ["a score at the threshold counts", "an interval of 90 %"]  # of the first assignment's wrong one
LOST = {"test-memorization-rate", "test-wilson", "test-results"}  # test cells that it fails, and no others

each = pytest.mark.parametrize("assignment", [MEASURE, STEP, BREAK, DESIGN])


def grading_commands() -> list[str]:
    """The commands that the teacher's page gives for grading."""
    page = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    block = re.search(r"## Grade\n.*?```bash\n(.*?)```", page, re.S)[1]
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def cell_ids(notebook) -> dict:
    return {c.metadata["nbgrader"]["grade_id"]: c for c in notebook.cells if "nbgrader" in c.metadata}


def hand_in(course: Path, student: str, assignment: str, answers: dict, *, to: Path | None = None) -> None:
    """The released notebook with these sources in its solution cells, to this course or another."""
    notebook = nbformat.read(course / "release" / assignment / f"{assignment}.ipynb", as_version=4)
    for i, cell in cell_ids(notebook).items():
        if i in answers:
            cell.source = answers[i]
    target = (to or course) / "submitted" / student / assignment / f"{assignment}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def solutions(course: Path, assignment: str) -> dict[str, str]:
    source = nbformat.read(course / "source" / assignment / f"{assignment}.ipynb", as_version=4)
    return {i: c.source for i, c in cell_ids(source).items() if c.metadata["nbgrader"]["solution"]}


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A course with the released assignments and three students' work."""
    directory = tmp_path_factory.mktemp("course")
    assert main(["classroom", "release", str(directory)]) == 0
    for assignment in assignments():
        hand_in(directory, "right", assignment, solutions(directory, assignment))
    wrong = solutions(directory, MEASURE)
    for m in MISTAKES:
        if m.assignment == MEASURE and m.name in WRONG:
            wrong[m.cell] = m.made(wrong[m.cell])
    hand_in(directory, "wrong", MEASURE, wrong)
    hand_in(directory, "empty", MEASURE, {})
    return directory


@pytest.fixture(scope="module")
def graded(course) -> Path:
    """The same after the teacher's commands."""
    beside = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": os.pathsep.join([beside, os.environ["PATH"]]),
        "DORI_ASSIGNMENT_PRESET": os.environ.get("DORI_ASSIGNMENT_PRESET", "smoke"),
        "TQDM_DISABLE": "1",
    }
    for command in grading_commands():
        done = subprocess.run(
            command, cwd=course, env=environment, shell=True, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return course


@pytest.fixture(scope="module")
def marks(graded):
    """(student, assignment) -> points by test cell."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{graded / 'gradebook.db'}", "dori") as book:
        return {
            (student, assignment): {g.name: g.score for g in notebook.grades}
            for assignment in assignments()
            for student in (("right", "wrong", "empty") if assignment == MEASURE else ("right",))
            for notebook in book.find_submission(assignment, student).notebooks
        }


@each
def test_the_release_holds_no_solution_and_no_hidden_test(course, assignment):
    text = (course / "release" / assignment / f"{assignment}.ipynb").read_text()
    assert "BEGIN SOLUTION" not in text
    assert "HIDDEN TESTS" not in text
    assert "YOUR CODE HERE" in text
    released = cell_ids(nbformat.reads(text, as_version=4))
    for i, solution in solutions(course, assignment).items():
        assert solution != released[i].source
        assert "raise NotImplementedError()" in released[i].source


@each
def test_a_right_submission_gets_full_marks(marks, assignment):
    assert sum(marks["right", assignment].values()) == 10, marks["right", assignment]


def test_a_wrong_submission_loses_the_marks_of_what_is_wrong(marks):
    found = marks["wrong", MEASURE]
    assert {i for i, score in found.items() if score == 0} == LOST
    assert 0 < sum(found.values()) < 10


def test_an_empty_submission_gets_nothing(marks):
    assert set(marks["empty", MEASURE].values()) == {0}


@each
def test_with_nothing_filled_in_no_test_cell_passes(course, assignment, monkeypatch):
    """What an empty submission is graded by, without a kernel: hidden tests are back in their cells."""
    monkeypatch.setenv("DORI_ASSIGNMENT_PRESET", "smoke")
    names, failed, path = {}, set(), Path(assignment) / f"{assignment}.ipynb"
    whole = nbformat.read(course / "source" / path, as_version=4)
    released = cell_ids(nbformat.read(course / "release" / path, as_version=4))
    for i, cell in cell_ids(whole).items():
        cell = cell if cell.metadata["nbgrader"]["grade"] else released[i]
        try:
            exec(compile(cell.source if cell.cell_type == "code" else "", f"{assignment}/{i}", "exec"), names)
        except Exception:
            failed.add(i)
    graded = {i for i, cell in cell_ids(whole).items() if cell.metadata["nbgrader"]["grade"]}
    assert graded <= failed
    assert not {"parameters", "setup"} & failed


def test_marks_are_exported(graded):
    header, *rows = (graded / "grades.csv").read_text().splitlines()
    assert "score" in header
    assert len(rows) >= len(assignments()) + 2


def test_another_seed_is_another_variant(tmp_path, monkeypatch):
    monkeypatch.setattr("dori.classroom.course.assignments", lambda: [MEASURE])
    (path,) = release(tmp_path / "course", seed=7)
    assert "seed = 7" in cell_ids(nbformat.read(path, as_version=4))["parameters"].source


def test_a_directory_with_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["classroom", "release", str(tmp_path)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_leaderboard_takes_the_defence_and_what_it_needs(course):
    found = submitted(course)
    assert set(found) == {"right"}
    assert "def defend" in found["right"]
    assert "test-" not in found["right"]
    with pytest.raises(DoriError, match="no submission"):
        submitted(course / "source")


def test_the_leaderboard_ranks_and_names_who_is_not_on_it(course, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DORI_ASSIGNMENT_PRESET", "smoke")
    hand_in(course, "wrong", DESIGN, {"defend": PRUNED}, to=tmp_path)
    hand_in(course, "empty", DESIGN, {}, to=tmp_path)
    assert set(submitted(tmp_path)) == {"wrong", "empty"}
    assert main(["classroom", "leaderboard", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "empty: not on the board (NotImplementedError" in out
    assert re.search(r"^ *wrong +│ +\d", out, re.M)


def test_without_nbgrader_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dori.classroom.course.find_spec", lambda name: None)
    assert main(["classroom", "release", str(tmp_path / "course")]) == 2
    assert "pip install -e '.[classroom]'" in capsys.readouterr().err

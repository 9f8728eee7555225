"""From the assignments' sources to an nbgrader course directory, and from submissions to a leaderboard.

nbgrader does the rest: it strips solutions and hidden tests, grades, and writes feedback.
"""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from dori.errors import DoriError

SOURCES = Path(__file__).resolve().parents[2] / "notebooks" / "assignments"
BOARD, DEFEND = "4_design_a_defence", "defend"  # assignment and cell with the students' defences
CONFIG = """# Written by `dori classroom release`. See the book's page "Teach with it".
c = get_config()
c.CourseDirectory.course_id = "dori"
c.ExecutePreprocessor.timeout = 600  # seconds a cell may take
c.ClearSolutions.begin_solution_delimeter = "### BEGIN SOLUTION"
c.ClearSolutions.end_solution_delimeter = "### END SOLUTION"
c.ClearHiddenTests.begin_test_delimeter = "### BEGIN HIDDEN TESTS"
c.ClearHiddenTests.end_test_delimeter = "### END HIDDEN TESTS"
"""


def assignments() -> list[str]:
    """Names of the assignments, in order. Raises DoriError where the sources are not there."""
    names = sorted(path.stem for path in SOURCES.glob("[0-9]_*.py"))
    if not names:
        raise DoriError(f"there are no assignments in {SOURCES}: clone the whole repository")
    return names


def release(directory: Path, *, seed: int = 0) -> list[Path]:
    """Write a course directory (nbgrader_config.py, source/) and generate the students' version (release/).

    `seed` picks the images and the noise of all assignments. Returns the released notebooks. A second call
    writes them anew. Raises DoriError without nbgrader, for a directory that holds something else, and if
    nbgrader refuses an assignment.
    """
    for package in ("nbgrader", "jupytext"):
        if find_spec(package) is None:
            raise DoriError(f"{package} is not installed: pip install -e '.[classroom]'")
    config = directory / "nbgrader_config.py"
    if directory.exists() and any(directory.iterdir()) and not config.is_file():
        raise DoriError(f"{directory} holds something else; give a new directory, or one with a course")
    names = assignments()
    for name in names:
        write_source(name, directory / "source" / name / f"{name}.ipynb", seed=seed)
    if not config.is_file():  # a teacher may have added to it
        config.write_text(CONFIG)
    return [_generate(directory, name) for name in names]


def write_source(name: str, target: Path, *, seed: int = 0) -> None:
    """An assignment with solutions and hidden tests as a notebook; equal sources give equal files."""
    import jupytext
    import nbformat

    notebook = jupytext.read(SOURCES / f"{name}.py")
    notebook.metadata.pop("jupytext", None)
    for position, cell in enumerate(notebook.cells):
        cell["id"] = f"c{position:03d}"
        cell.metadata.pop("checks", None)  # words for the teacher's page
        if "parameters" in cell.metadata.get("tags", []):
            cell["source"] = re.sub(r"^seed = .*$", f"seed = {seed}", cell["source"], flags=re.M)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def _generate(directory: Path, name: str) -> Path:
    """nbgrader's generate_assignment. It calls `alembic` by name, which an environment that is not activated
    has beside its python."""
    import nbgrader.apps
    from traitlets.config import Config

    beside = str(Path(sys.executable).parent)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    config = Config()
    config.CourseDirectory.root = str(directory.resolve())
    config.CourseDirectory.course_id = "dori"
    done = nbgrader.apps.NbGraderAPI(config=config).generate_assignment(name, force=True, create=True)
    if not done["success"]:
        reason = (done.get("error") or done.get("log") or "no reason given").strip().splitlines()[-1]
        raise DoriError(f"nbgrader could not release {name}: {reason}")
    return directory / "release" / name / f"{name}.ipynb"


def submitted(directory: Path) -> dict[str, str]:
    """The source of each student's defence, by student: the cells up to `defend`, with the solutions.

    Raises DoriError where nobody handed anything in.
    """
    import nbformat

    paths = sorted((directory / "submitted").glob(f"*/{BOARD}/{BOARD}.ipynb"))
    if not paths:
        raise DoriError(f"{directory}: no submission of {BOARD} under submitted/; run nbgrader collect first")
    found = {}
    for path in paths:
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        ids = [c.metadata.get("nbgrader", {}).get("grade_id") for c in cells]
        if DEFEND in ids:
            wanted = {"parameters", "setup", DEFEND}
            source = [c.source for c, i in zip(cells, ids, strict=True) if i in wanted]
            found[path.parents[1].name] = "\n\n".join(source)
    return found


def leaderboard(directory: Path, *, seed: int = 1) -> tuple[pd.DataFrame, dict[str, str]]:
    """The board of all defences handed in, with images and noise of `seed`, and why others are not on it.

    The students' code runs in this process, as it does in `nbgrader autograde`'s kernel with your rights.
    Returns (table as `leaderboard.shown`, reason by student). Raises DoriError as `submitted` does.
    """
    from dori.classroom.leaderboard import compete, defended, shown
    from dori.classroom.room import open_room

    sources = submitted(directory)
    room = open_room(seed)
    prompts, models, refused = room.memorized(), {}, {}
    for student, source in sources.items():
        try:
            models[student] = defended(room, prompts, _defence(source, room, seed), student)
        except Exception as error:  # whatever a student's code may raise
            refused[student] = f"{type(error).__name__}: {str(error) or 'nothing was handed in'}"
    return shown(compete(room, prompts, models)), refused


def _defence(source: str, room: object, seed: int):
    """The function `defend` of a submission, in a room of the board's."""
    names: dict[str, object] = {}
    exec(compile(source, DEFEND, "exec"), names)
    names |= {"room": room, "seed": seed}
    return names["defend"]

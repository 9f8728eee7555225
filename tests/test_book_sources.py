"""The chapters keep the form that papermill, the page builder and readers rely on."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="papermill is not installed: pip install -e .[book]")
pytest.importorskip("jupytext", reason="jupytext is not installed: pip install -e .[book]")

import jupytext
from click.testing import CliRunner
from papermill.cli import papermill

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
COMMON = {"model", "benchmark", "preset", "seed", "device", "records", "run_dir"}
MAX_CODE_LINES = 15

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


def code_cells(chapter: Path) -> list:
    return [cell for cell in jupytext.read(chapter).cells if cell.cell_type == "code"]


def figures(chapter: Path) -> list[dict]:
    """`mystnb` metadata of the cells that make figures."""
    settings = [cell.metadata.get("mystnb", {}) for cell in code_cells(chapter)]
    return [entry for entry in settings if "figure" in entry]


def test_there_is_a_chapter():
    assert CHAPTERS, "notebooks/ holds no chapter"


@each_chapter
def test_one_parameters_cell_with_the_common_names(chapter):
    cells = [cell for cell in code_cells(chapter) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    assigned = {
        target.id
        for node in ast.parse(cells[0].source).body
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    assert assigned >= COMMON


@each_chapter
def test_kernel_is_named(chapter):
    assert jupytext.read(chapter).metadata["kernelspec"]["name"] == "python3"


@each_chapter
def test_cells_are_short(chapter):
    for cell in code_cells(chapter):
        lines = [
            line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")
        ]
        assert len(lines) <= MAX_CODE_LINES, f"a cell of {len(lines)} lines begins with: {lines[0]}"


@each_chapter
def test_figures_have_name_caption_and_words(chapter):
    for entry in figures(chapter):
        name = entry["figure"].get("name", "")
        assert re.fullmatch(r"fig-[a-z0-9-]+", name), f"figure name '{name}'"
        assert entry["figure"].get("caption"), f"{name} has no caption"
        assert len(entry.get("image", {}).get("alt", "")) > 20, f"{name}: describe what the figure shows"


@each_chapter
def test_an_interactive_figure_has_a_still_one_in_its_section(chapter):
    """For readers without JavaScript."""
    section, interactive, still = "", set(), set()
    for cell in jupytext.read(chapter).cells:
        if cell.cell_type == "markdown":
            section = [section, *re.findall(r"^#+ .+$", cell.source, re.M)][-1]
        elif "widgets." in cell.source:
            interactive.add(section)
        elif "figure" in cell.metadata.get("mystnb", {}):
            still.add(section)
    assert interactive <= still


def test_figure_names_are_unique_in_the_book():
    names = [entry["figure"]["name"] for chapter in CHAPTERS for entry in figures(chapter)]
    names += re.findall(r":name: (fig-\S+)", "".join(p.read_text() for p in (ROOT / "book").glob("*.md")))
    assert len(names) == len(set(names))


@each_chapter
def test_chapter_is_in_the_table_of_contents_and_has_a_label(chapter):
    assert f"notebooks/{chapter.stem}" in (ROOT / "book" / "_toc.yml").read_text()
    first = next(cell for cell in jupytext.read(chapter).cells if cell.cell_type == "markdown")
    assert re.match(r"\([a-z0-9-]+\)=\n# ", first.source), (
        "begin with a label and the title: (name)=, # Title"
    )


@each_chapter
def test_chapter_holds_no_logic(chapter):
    kinds = (ast.FunctionDef, ast.ClassDef, ast.While)
    for cell in code_cells(chapter):
        found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)]
        assert not found, "definitions belong in the package dori"


@each_chapter
def test_chapter_ends_with_what_to_take_away_and_what_to_try(chapter):
    text = chapter.read_text()
    away, tries, after = (
        text.find(mark) for mark in ("**What to take away**", "# ## Try it yourself", "# ## What's next")
    )
    away = (
        away
        if away >= 0
        else max(map(text.find, ("levels.conclusion", "takeaways.pruning", "takeaways.erasing")))
    )
    assert 0 <= away < tries < after, "in this order: what to take away, try it yourself, what's next"
    assert len(re.findall(r"^# \d\. ", text[tries:after], re.MULTILINE)) >= 3


@each_chapter
def test_parameters_are_described(chapter):
    (cell,) = (cell for cell in code_cells(chapter) if "parameters" in cell.metadata.get("tags", []))
    for line in cell.source.splitlines():
        assert re.search(r"  # .{10,}", line), f"say behind it what this is: {line}"


@each_chapter
def test_papermill_tells_what_a_chapter_takes(chapter, tmp_path):
    """Name, default and meaning, as `papermill --help-notebook` shows them."""
    jupytext.write(jupytext.read(chapter), tmp_path / "chapter.ipynb")
    told = CliRunner().invoke(papermill, [str(tmp_path / "chapter.ipynb"), "--help-notebook"])
    assert told.exit_code == 0, told.output
    (cell,) = (cell for cell in code_cells(chapter) if "parameters" in cell.metadata.get("tags", []))
    for line in cell.source.splitlines():
        name, default, meaning = re.split(r" = |  # ", line, maxsplit=2)
        assert re.search(rf"{name}: .*\(default {re.escape(default)}\)\s+{re.escape(meaning)}", told.output)


def test_common_parameters_are_described_alike():
    """The guide shows one table for all chapters."""
    told = {}
    for chapter in CHAPTERS:
        (cell,) = (cell for cell in code_cells(chapter) if "parameters" in cell.metadata.get("tags", []))
        for line in cell.source.splitlines():
            told.setdefault(line.split(" = ")[0], set()).add(line.split("  # ")[1])
    assert not {name for name, words in told.items() if len(words) > 1}


def pages() -> str:
    """All that is written by hand: pages and chapters."""
    return "\n".join(path.read_text() for path in [*(ROOT / "book").glob("*.md"), *CHAPTERS])


def test_the_bibliography_is_what_is_cited():
    keys = re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(), re.M)
    cited = re.findall(r"\{cite:\w+\}`([^`]+)`", pages())
    assert sorted(keys) == sorted({key.strip() for group in cited for key in group.split(",")})


def test_the_glossary_has_every_term_in_the_order_of_the_alphabet():
    entries = re.findall(r"^(\S.*)\n  \S", (ROOT / "book" / "glossary.md").read_text(), re.M)
    assert entries == sorted(entries, key=str.lower)
    used = re.findall(r"\{term\}`(?:[^`<]*<)?([^`<>]+)>?`", pages().replace("\n# ", " "))
    assert {term.lower() for term in used} <= {entry.lower() for entry in entries}


def test_nothing_is_misspelt():
    pytest.importorskip("codespell_lib", reason="codespell is not installed: pip install -e .[dev]")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in files.stdout.split("\0") if (ROOT / name).is_file()]
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
    assert done.returncode == 0, done.stderr

"""Chapter 2 runs from its first cell to its last at the smoke preset, on the testbed and on a foreign model.

The cells run in this process: the same code as under papermill, without a kernel's start.
"""

import ast
from pathlib import Path

import pytest
from conftest import WORDS, write_benchmark

from dori.claims import load_claims

jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed: pip install -e .[book]")

CHAPTER = Path(__file__).resolve().parents[1] / "notebooks" / "02_pruning_fragility.py"


def run(chapter: Path, **parameters) -> tuple[dict, list[str]]:
    """Execute a chapter's cells with these parameters: its names, and the prose its cells wrote."""
    names, prose = {}, []
    for cell in jupytext.read(chapter).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, chapter.name, "exec"), names)
        value = eval(compile(ast.Expression(last.value), chapter.name, "eval"), names) if last else None
        if type(value).__name__ == "Markdown":
            prose.append(value.data)
        if "parameters" in cell.metadata.get("tags", []):
            names |= {"preset": "smoke", "device": "cpu", **parameters}
    return names, prose


def benchmark(folder: Path, kinds: list[str]) -> Path:
    """A benchmark of noise images, a row for each kind."""
    rows = [
        {"id": f"i{n}", "prompt": f"{WORDS[n]} {WORDS[-1 - n]}", "image": f"{n}.png", "kind": kind}
        for n, kind in enumerate(kinds)
    ]
    return write_benchmark(folder, rows)


def test_the_chapter_notes_every_figure_its_claims_ask_for(tmp_path, capfd):
    names, prose = run(CHAPTER, run_dir=str(tmp_path / "run"))
    asked = {claim.metric for claim in load_claims() if claim.chapter == CHAPTER.stem}
    assert asked <= set(names["study"].headlines)
    assert capfd.readouterr().err == "", "a cell that writes to stderr stops the build of the book"
    assert "Nothing had to be left out" in "".join(prose)


@pytest.mark.parametrize(
    "kinds", [["verbatim"] * 4 + ["none"] * 4, ["verbatim"] * 4], ids=["regular", "alone"]
)
def test_a_foreign_model_and_benchmark_leave_out_what_cannot_be_had(
    kinds, tiny_dir, tmp_path, monkeypatch, descriptor
):
    monkeypatch.setattr("dori.study.load_descriptor", lambda *_, **__: descriptor)
    csv = benchmark(tmp_path / "bench", kinds)
    names, prose = run(CHAPTER, model=str(tiny_dir), benchmark=str(csv), run_dir=str(tmp_path / "run"))
    text = "".join(prose)
    assert "no twin" in text
    assert ("NeMo cannot be used here" in text) == ("none" not in kinds)
    assert "mr_wanda_attack_prompt" in names["study"].headlines
    assert "mr_attack_twin" not in names["study"].headlines

"""Background and chapters 1 to 4 run from first to last cell at smoke, on the testbed and a foreign model.

The cells run in this process: the same code as under papermill, without a kernel's start.
"""

import ast
import dataclasses
import functools
from pathlib import Path

import pytest
from conftest import WORDS, write_benchmark
from tqdm.auto import tqdm

from dori import study
from dori.attack import Attack
from dori.benchmark import load_benchmark
from dori.claims import load_claims
from dori.experiments import adjustment, defences, erasure, foundations, unprompted
from dori.metrics.intervals import bootstrap_table

jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed: pip install -e .[book]")

pytestmark = pytest.mark.usefixtures("two_steps_of_wanda")
NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
BACKGROUND, REPLICATION = NOTEBOOKS / "00_background.py", NOTEBOOKS / "01_replication.py"
CHAPTER, LOCALITY = NOTEBOOKS / "02_pruning_fragility.py", NOTEBOOKS / "03_non_locality.py"
TRAINING = NOTEBOOKS / "04_adversarial_finetuning.py"


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


@pytest.fixture
def brief(monkeypatch):
    """The preset smoke with fewer steps and regular prompts, and less of what no preset makes smaller."""
    small = dataclasses.replace(study.PRESETS["smoke"], steps=2, step_counts=(1, 2), detection_regular=4)
    monkeypatch.setitem(study.PRESETS, "smoke", small)
    monkeypatch.setattr(
        study, "load_benchmark", lambda path: load_benchmark(path).head(32 if path == "regular" else None)
    )
    few = functools.partial(unprompted.unprompted_table, count=2)
    monkeypatch.setattr(unprompted, "unprompted_table", few)
    short = functools.partial(foundations.attack_controls, plan=Attack("prompt", steps=(1,)))
    monkeypatch.setattr(foundations, "attack_controls", short)
    monkeypatch.setitem(bootstrap_table.__kwdefaults__, "resamples", 50)


@pytest.fixture
def short_searches(monkeypatch):
    """One step for each search of chapter 4: seven models are asked by five of them."""
    one = {name: dataclasses.replace(plan, steps=(1,)) for name, plan in defences.SEARCHES.items()}
    monkeypatch.setattr(defences, "SEARCHES", one)
    monkeypatch.setattr(erasure, "PAINTED", Attack(steps=(1,)))
    monkeypatch.setattr(adjustment, "TARGETS", ((1.0, 1), (0.0, 1)))


@pytest.mark.parametrize("chapter", [REPLICATION, CHAPTER, LOCALITY, TRAINING], ids=lambda path: path.stem)
@pytest.mark.usefixtures("brief")
def test_the_chapter_notes_every_figure_its_claims_ask_for(chapter, tmp_path, capfd, monkeypatch, request):
    if chapter == TRAINING:
        request.getfixturevalue("short_searches")
    monkeypatch.setattr("dori.training.tqdm", functools.partial(tqdm, disable=True))  # as in a build
    names, prose = run(chapter, run_dir=str(tmp_path / "run"))
    asked = {claim.metric for claim in load_claims() if claim.chapter == chapter.stem}
    if chapter == TRAINING:
        asked.remove("mr_aft_long")  # no long search at smoke
    assert asked <= set(names["study"].headlines)
    assert capfd.readouterr().err == "", "a cell that writes to stderr stops the build of the book"
    if chapter == CHAPTER:
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


@pytest.mark.parametrize("kinds", [["verbatim"] * 2 + ["none"], ["verbatim"] * 2], ids=["regular", "alone"])
def test_the_background_explains_a_foreign_model_too(
    kinds, tiny_dir, tmp_path, monkeypatch, descriptor, capfd
):
    monkeypatch.setattr("dori.study.load_descriptor", lambda *_, **__: descriptor)
    csv = benchmark(tmp_path / "bench", kinds)
    names, prose = run(BACKGROUND, model=str(tiny_dir), benchmark=str(csv), run_dir=str(tmp_path / "run"))
    assert names["prompt"].prompts()[0] in "".join(prose)
    assert "**What to take away**" in "".join(prose)
    assert set(names["shown"]) == {"repeated prompt", "other prompt"}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("threshold", [-2.0, 2.0], ids=["every search succeeds", "none does"])
def test_locality_of_a_foreign_model_is_compared_without_planted_memories(
    threshold, tiny_dir, tmp_path, monkeypatch, descriptor, capfd
):
    monkeypatch.setattr(descriptor, "threshold", threshold)
    monkeypatch.setattr("dori.study.load_descriptor", lambda *_, **__: descriptor)
    csv = benchmark(tmp_path / "bench", ["verbatim"] * 4 + ["none"] * 4)
    names, prose = run(LOCALITY, model=str(tiny_dir), benchmark=str(csv), run_dir=str(tmp_path / "run"))
    figures, text = names["study"].headlines, "".join(prose)
    assert not names["planted"]
    assert "cannot be said which levels are blind" in text
    assert figures["mr_triggers_random"]["value"] == (threshold < 0)
    assert (figures["spread_ratio"]["value"] is not None) == (threshold < 0)
    assert capfd.readouterr().err == ""


def test_without_regular_prompts_nemo_is_left_out(tiny_dir, tmp_path, monkeypatch, descriptor):
    monkeypatch.setattr(descriptor, "threshold", -2.0)
    monkeypatch.setattr("dori.study.load_descriptor", lambda *_, **__: descriptor)
    csv = benchmark(tmp_path / "bench", ["verbatim"] * 4)
    names, _ = run(LOCALITY, model=str(tiny_dir), benchmark=str(csv), run_dir=str(tmp_path / "run"))
    assert set(names["agreed"]["method"]) == {"Wanda"}
    assert names["moved_nemo"].empty
    assert list(names["moved_nemo"].columns) == list(names["moved"].columns)

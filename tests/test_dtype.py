"""Half precision is one option away: its own records, and the whole way through the commands."""

import json

import pandas as pd
import pytest
import torch
from conftest import adapt, make_pipeline, one_line

from dori.experiments.locality_levels import LEVELS
from dori.loading import resolve_dtype
from dori.model import TextToImageModel

HALVES = ["bfloat16", "float16"]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", ["evaluate", "attack"])
def test_half_precision_has_records_of_its_own(command, tmp_path, name, half):
    options = {"seeds": 1, "steps": 1, "id": "i1"}
    for dtype in ("float32", half):
        code, _, err = command(name, dtype=dtype, **options)
        assert (code, err) == (0, "")
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["dtype"] == dtype
        found = json.loads((tmp_path / "run" / "provenance.json").read_text())
        assert found["records_computed"] > 0
        assert pd.read_csv(tmp_path / "run" / "results.csv")["score"].notna().all()
    kept = [json.loads(p.read_text())["decides"] for p in (tmp_path / "run").rglob("records/image/*.json")]
    assert {record["dtype"] for record in kept} == {"torch.float32", f"torch.{half}"}


def test_unless_told_otherwise_weights_are_float32(command, tmp_path):
    assert command("evaluate", seeds=1, steps=1, id="i1")[0] == 0
    assert command("evaluate", seeds=1, steps=1, id="i1", dtype="float32")[0] == 0
    found = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert found["records_computed"] == 0


@pytest.mark.parametrize("half", HALVES)
def test_words_are_searched_in_half_precision(command, tmp_path, half):
    options = {"method": "unlearndiff", "timesteps": 2, "iterations": 2, "seeds": 1, "id": "i1"}
    code, _, err = command("attack", dtype=half, **options)
    assert (code, err) == (0, "")
    assert pd.read_csv(tmp_path / "run" / "results.csv")["score"].notna().all()


def test_locality_is_measured_at_every_level_in_half_precision(command, lenient, tmp_path):
    """In the other half precision: test_cli_architectures.py."""
    code, _, err = command("locality", id=["i0", "i1"], starts=2, dtype="bfloat16")
    assert (code, err) == (0, "")
    levels = json.loads((tmp_path / "run" / "summary.json").read_text())["levels"]
    assert set(levels) == set(LEVELS)
    assert all(one["value"] is not None for one in levels.values())


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("method", "options"), [("nemo", {"z": 1.0}), ("nemo", {}), ("wanda", {"sparsity": 0.2, "steps": 1})]
)
def test_a_model_is_pruned_and_saved_in_half_precision(command, tmp_path, method, options, half):
    out = tmp_path / "mended"
    code, _, err = command("mitigate", method=method, out=out, dtype=half, **options)
    assert (code, err) == (0, "")
    saved = TextToImageModel.load(out, device="cpu", dtype=half)
    assert str(saved.dtype) == f"torch.{half}"
    assert any((p == 0).any() for p in saved.unet.parameters())


@pytest.mark.parametrize("half", HALVES)
def test_a_more_precise_embedding_is_read_as_the_model_can(half):
    """What a search found is float32."""
    model = adapt(make_pipeline().to(resolve_dtype(half)))
    y = model.encode_prompts(["red boat"])
    x, t = model.initial_latents([0]), torch.zeros(1, dtype=torch.long)
    assert torch.equal(model.predict(x, t, y.float()), model.predict(x, t, y))


def test_wrong_precisions_are_one_line(command, tmp_path):
    assert "unknown dtype 'int8': use float32, bfloat16, float16" in one_line(
        command("evaluate", dtype="int8")
    )
    line = one_line(command("mitigate", method="esd", dtype="bfloat16", out=tmp_path / "m"))
    assert "a training keeps its weights in float32" in line
    assert not (tmp_path / "m").exists()


def test_a_precision_is_a_name_or_torchs_own():
    assert resolve_dtype("bfloat16") == resolve_dtype(torch.bfloat16) == torch.bfloat16

"""`dori attack` writes the files of contract 4, goes on after an interruption, leaves out what cannot be."""

import functools
import json

import pandas as pd
import pytest
import torch
from conftest import one_line, write_benchmark

from dori.attack import Attack
from dori.mitigation.units import Units
from dori.model import TextToImageModel
from dori.store import RunStore


@pytest.fixture
def run(command):
    """Call `dori attack` for few steps."""
    return functools.partial(command, "attack", **{"steps": "2"})


@pytest.fixture
def some_units(tiny_model):
    """Every other neuron of the value layers."""
    widths = {name: layer.out_features for name, layer in tiny_model.value_layers().items()}
    return Units.of({name: range(0, width, 2) for name, width in widths.items()}, widths)


def read(directory):
    """results.csv, summary.json, provenance.json."""
    files = [directory / name for name in ("results.csv", "summary.json", "provenance.json")]
    return pd.read_csv(files[0]), *(json.loads(file.read_text()) for file in files[1:])


def test_a_row_per_image_seed_and_number_of_steps(run, tmp_path):
    code, out, err = run(steps=["0", "3,1"], free_tokens=2, radius=0.5)
    assert (code, err) == (0, "")
    table, summary, provenance = read(tmp_path / "run")
    assert table.groupby(["id", "steps"]).size().to_dict() == {
        (i, steps): 2 for i in ("i0", "i1", "i2", "i3") for steps in (0, 1, 3)
    }
    assert {"score", "replicated", "init", "loss", "moved", "cosine", "kind"} <= set(table)
    assert (table["moved"] <= 0.5 + 1e-5).all()
    plan = Attack(steps=(0, 1, 3), free_tokens=2, radius=0.5)
    assert summary["attack"] == {"attacker": "DoRI", **vars(plan), "steps": [0, 1, 3]}
    assert (summary["n"], summary["threshold"], summary["descriptor"]) == (4, 0.7, "pixels-8")
    assert summary["skipped"] == {"n": 0, "rows": []}
    assert set(summary["by_kind"]["verbatim"]) == {"0", "1", "3"}
    assert summary["by_kind"]["verbatim"]["3"]["mr"]["n"] == 2
    assert provenance["versions"]["torch"]
    assert "moved" in out


def test_a_second_run_computes_nothing_and_says_the_same(run, tmp_path):
    run()
    before = [(tmp_path / "run" / name).read_bytes() for name in ("results.csv", "summary.json")]
    assert run()[0] == 0
    assert read(tmp_path / "run")[2]["records_computed"] == 0
    assert before == [(tmp_path / "run" / name).read_bytes() for name in ("results.csv", "summary.json")]


def test_rows_can_be_named(run, tmp_path):
    assert run(id=["i4", "i1"], steps="0")[0] == 0
    assert set(read(tmp_path / "run")[0]["id"]) == {"i4", "i1"}
    assert "no row of id 'i7'" in one_line(run(id="i7"))


@pytest.mark.parametrize("kept", [1, 5])
def test_an_interrupted_run_goes_on_where_it_was(run, tmp_path, monkeypatch, kept):
    assert run(out=tmp_path / "whole")[0] == 0
    save = RunStore.save

    def interrupted(store, *record):
        if store.computed == kept:
            raise KeyboardInterrupt
        return save(store, *record)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "save", interrupted)
        code, _, err = run()
    assert code == 130
    assert "the same command goes on from here" in err
    assert not (tmp_path / "run" / "results.csv").exists()
    assert run()[0] == 0
    whole, again = read(tmp_path / "whole"), read(tmp_path / "run")
    assert again[2]["records_computed"] == whole[2]["records_computed"] - kept
    pd.testing.assert_frame_equal(again[0], whole[0], atol=1e-3)


def test_what_cannot_be_attacked_is_left_out_and_counted(run, benchmark_csv, tmp_path, monkeypatch):
    lines = benchmark_csv.read_text().splitlines()
    benchmark_csv.write_text("\n".join([*lines, lines[1]]) + "\n")
    (benchmark_csv.parent / "3.png").write_bytes(b"no picture")
    encode = TextToImageModel.encode_images

    def first_is_broken(model, images):
        latents = encode(model, images)
        latents[0] = torch.nan
        return latents

    monkeypatch.setattr(TextToImageModel, "encode_images", first_is_broken)
    code, _, err = run()
    assert code == 0
    reasons = ("line 8: id 'i0' appears twice", "3.png: not a readable image", "i0: the loss is not finite")
    for reason, line in zip(reasons, err.splitlines(), strict=True):
        assert line.startswith("dori: ")
        assert reason in line
    table, summary, _ = read(tmp_path / "run")
    assert set(table["id"]) == {"i1", "i2"}
    assert summary["n"] == 2
    assert [row["id"] for row in summary["skipped"]["rows"]] == ["i0", "i3", "i0"]


def test_an_attack_that_fails_everywhere(run):
    line = one_line(run(lr=1e30, steps="3"))
    assert "none of 4" in line
    assert "the loss is not finite" in line


def test_units_are_off_in_the_attack_and_in_the_images(run, some_units, tmp_path):
    some_units.save(tmp_path / "units.safetensors")
    run(steps="0,2", units=tmp_path / "units.safetensors", out=tmp_path / "pruned")
    run(steps="0,2")
    pruned, whole = read(tmp_path / "pruned"), read(tmp_path / "run")
    assert pruned[1]["model_fingerprint"] != whole[1]["model_fingerprint"]
    assert "units.safetensors" in pruned[1]["model"]
    for column in ("score", "loss"):
        assert (pruned[0][column] - whole[0][column]).abs().max() > 1e-4


def test_words_before_the_caption_are_searched_for_too(run, tmp_path):
    assert run(method="unlearndiff", steps=None, iterations=1)[0] == 0
    table, summary, _ = read(tmp_path / "run")
    assert summary["attack"]["attacker"] == "UnlearnDiffAtk"
    assert (summary["attack"]["timesteps"], summary["attack"]["iterations"]) == (2, 1)  # preset smoke
    assert set(table["steps"]) == {1, 2}
    assert table.loc[table["steps"] == 2, "text"].notna().all()


def test_starting_from_regular_prompts_takes_regular_prompts(run, tmp_path):
    rows = [{"id": "a", "prompt": "dawn boat", "image": "a.png"}]
    bench = write_benchmark(tmp_path / "memorized", rows)
    assert "no regular prompts" in one_line(run(init="regular", benchmark=bench))
    regular = write_benchmark(tmp_path / "regular", [{**rows[0], "id": "b", "kind": "none"}])
    (tmp_path / "regular" / "a.png").unlink()  # its prompts are read alone
    assert run(init="regular", benchmark=bench, regular=regular)[0] == 0


def test_a_model_without_cross_attention(run, no_attention_dir):
    assert "no such cross-attention layers" in one_line(run(model=no_attention_dir))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "ten"}, "steps 'ten': give whole numbers"),
        ({"steps": ["5", "-1"]}, "attack steps"),
        ({"method": "hope"}, "unknown method 'hope'; use dori, unlearndiff"),
        ({"method": "unlearndiff"}, "--steps is no setting of unlearndiff"),
        ({"iterations": 3}, "--iterations is no setting of dori"),
        ({"init": "odd"}, "initialisation 'odd'"),
        ({"lr": 0}, "learning rate"),
        ({"batch": 0}, "draws"),
        ({"radius": -1}, "radius"),
        ({"free_tokens": 99}, "99 free tokens"),
        ({"units": "none.safetensors"}, "none.safetensors"),
        ({"regular": "none.csv"}, "none.csv"),
    ],
)
def test_wrong_options(run, options, message):
    assert message in one_line(run(**options))


def test_units_of_another_model(run, some_units, tmp_path):
    Units({name: mask[:3] for name, mask in some_units.items()}).save(tmp_path / "units.safetensors")
    assert "these units are for" in one_line(run(units=tmp_path / "units.safetensors"))


def test_the_bundled_model_is_attacked_in_seconds(run, tmp_path):
    assert run(model="testbed", benchmark="testbed", init="regular", steps="1", seeds=1)[0] == 0
    table, summary, _ = read(tmp_path / "run")
    assert len(table) == summary["n"]
    assert set(summary["by_kind"]) == {"verbatim", "template"}

"""`dori mitigate` by training: a model that diffusers loads, with its log; interrupted, it goes on."""

import functools
import json

import pandas as pd
import pytest
import torch
from conftest import one_line
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from dori.experiments import curing
from dori.mitigation.adversarial import dori_attack

SHORT = ["epochs=1", "at-once=1", "steps=2", "retain=2", "lr=1e-3", "search.steps=1"]
METHODS = {
    "adversarial": SHORT,
    "adversarial-lora": [*SHORT, "rank=2"],
    "esd": ["steps=2", "lr=1e-3"],
    "siss": ["steps=2", "lr=1e-3", "batch=2"],
    "concept-ablation": ["steps=2", "base-lr=1e-3"],
}


@pytest.fixture
def run(command, training_csv):
    """Call `dori mitigate`: adversarial fine-tuning, two rounds of two steps, unless told otherwise."""
    return functools.partial(command, "mitigate", benchmark=training_csv, method="adversarial", set=SHORT)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "mended"


def unet(path):
    return load_file(path / "unet" / "diffusion_pytorch_model.safetensors")


def provenance(out):
    return json.loads((out / "provenance.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_each_training_saves_a_model_that_diffusers_loads(run, out, tiny_dir, training_csv, method):
    if method == "concept-ablation":
        table = pd.read_csv(training_csv)
        table.assign(paraphrases="a red lake | a blue lake").to_csv(training_csv, index=False)
    code, shown, err = run(method=method, set=METHODS[method], out=out)
    assert code == 0, err
    assert curing.LABELS[method].split(",")[0] in shown
    pipe = StableDiffusionPipeline.from_pretrained(out)
    before, after = unet(tiny_dir), unet(out)
    assert before.keys() == after.keys() == pipe.unet.state_dict().keys()  # no adapter is left
    assert any((before[k] - after[k]).abs().max() > 1e-5 for k in before)
    assert all(v.isfinite().all() for v in after.values())
    found = provenance(out)
    assert (found["method"], found["prompts"], found["processes"]) == (method, 2, 1)
    assert found["unet_rows"] > 0
    assert [p.name for p in out.parent.iterdir() if "mended" in p.name] == ["mended"]  # no workplace stays


def test_settings_come_from_the_command(run, out):
    assert run(out=out, set=[*SHORT, "inits=random", "optimizer=offloaded"])[0] == 0
    settings = provenance(out)["settings"]
    assert (settings["lr"], settings["inits"]) == (1e-3, ["random"])
    assert (settings["search"]["steps"], settings["optimizer"]) == ([1], "offloaded")


def test_the_same_again_changes_nothing_and_another_setting_trains_anew(run, out):
    run(out=out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert run(out=out)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    one = unet(out)
    assert run(out=out, seed=1)[0] == 0
    assert provenance(out)["seed"] == 1
    assert any(not torch.equal(v, one[k]) for k, v in unet(out).items())


def test_an_interrupted_training_goes_on_to_the_same_weights(run, out, tmp_path, monkeypatch):
    run(out=tmp_path / "whole")
    calls = []

    def stopped(*arguments, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return dori_attack(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr("dori.mitigation.adversarial.dori_attack", stopped)
        code, _, err = run(out=out)
    assert code == 130
    assert "goes on from here" in err
    assert not out.exists()
    assert run(out=out)[0] == 0
    assert all(torch.equal(v, unet(out)[k]) for k, v in unet(tmp_path / "whole").items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set": ["lr"]}, "--set lr: give name=value, as in lr=1e-5"),
        ({"set": ["hope=1"]}, "hope is no setting of adversarial"),
        ({"set": ["lr=fast"]}, "lr fast: input should be a valid number"),
        ({"set": ["search.hope=1"]}, "search.hope is no setting of adversarial"),
        ({"set": ["lr=-1"]}, "a learning rate of -1.0"),
        ({"set": ["optimizer=sgd"]}, "unknown optimiser 'sgd'"),
        ({"sparsity": 0.1}, "--sparsity is no setting of adversarial"),
        ({"method": "concept-ablation", "set": None}, "concept ablation needs other ways to ask"),
    ],
)
def test_wrong_options(run, out, options, message):
    assert message in one_line(run(out=out, **options))
    assert not out.exists()


def test_images_are_needed(run, out, training_csv):
    for image in training_csv.parent.glob("*.png"):
        image.unlink()
    assert run(out=out)[0] == 2
    assert not out.exists()

"""The plain ways that speed is measured against do the same work and come to the same results."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bookbuild import speed
from test_nemo import written  # noqa: F401

from dori.attack import Attack, dori_attack
from dori.mitigation.nemo import Nemo, nemo

FOLDER = Path(__file__).parents[1] / "benchmarks"
PROMPTS = ["red boat", "blue house", "dawn lake"]


def script(name):
    """A script of the folder as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmarks(monkeypatch_module):
    return script("attack")


@pytest.fixture(scope="module")
def locality(monkeypatch_module):
    return script("locality")


@pytest.fixture(scope="module")
def monkeypatch_module():
    """The scripts find each other, and nobody finds them afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield patch
    for name in ("plain", "attack", "reporting"):
        sys.modules.pop(name, None)


def test_the_plain_attack_is_ours_image_by_image(benchmarks, tiny_model):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    embeds, seeds = tiny_model.encode_prompts(PROMPTS), [5, 6, 7]
    losses = benchmarks.plain.attack(tiny_model, images, embeds, steps=3, seeds=seeds)
    ours = dori_attack(
        tiny_model, tiny_model.encode_images(images), embeds, Attack(steps=(3,)), seeds=seeds
    ).losses
    torch.testing.assert_close(torch.tensor(losses), ours, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad or p.grad is not None for p in tiny_model.unet.parameters())
    batched = benchmarks.attack_ours(tiny_model, images, embeds, steps=3, seeds=seeds, at_once=2)
    torch.testing.assert_close(torch.tensor(batched), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wasteful", [True, False])
def test_the_plain_search_finds_the_same_neurons(benchmarks, written, wasteful):  # noqa: F811
    model, embeds, statistics = written
    more = {"threshold": 0.4, "settings": Nemo(seeds=3)}
    plain = benchmarks.plain.nemo(model, embeds, statistics, wasteful=wasteful, **more)
    assert plain == nemo(model, embeds, statistics, **more)
    assert [units.count > 0 for units in plain] == [True, True, False]


def test_the_report_says_where_results_differ(benchmarks):
    seconds = {"attack, plain": 6, "attack, ours": 2, "NeMo, plain": 16, "NeMo, lean": 4, "NeMo, ours": 2}
    ways = {
        way: {"seconds": s, "cpu_seconds": s / 2, "results": [{"a": [1, 2]}, {"a": []}]}
        for way, s in seconds.items()
    }
    ways["attack, plain"]["results"], ways["attack, ours"]["results"] = [[2.0, 1.0]], [[2.0, 1.1]]
    ways["NeMo, ours"]["results"] = [{"a": [1, 2]}, {"a": [3]}]
    found = benchmarks.compared(ways, images=4, prompts=2)
    assert (found["attack"]["times_as_fast"], found["NeMo"]["times_as_fast"]) == (3, 8)
    assert found["attack"]["times_as_fast_by_cpu_time"] == 3
    assert found["attack"]["images_per_minute"] == {"plain": 40, "ours": 120}
    assert found["attack"]["largest_difference_of_losses"] == pytest.approx(0.1)
    assert found["NeMo"]["same_sets"] == [True, False]
    assert found["NeMo"]["neurons"] == [2, 1]


def test_triggers_are_searched_as_many_at_once_as_asked(locality, tiny_model, monkeypatch):
    calls = []
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = SimpleNamespace(images=lambda size: image)
    monkeypatch.setattr(locality, "top_prompts", lambda count: prompts)
    monkeypatch.setattr(
        locality, "dori_attack", lambda *a, seeds: calls.append((list(seeds), len(a[1]), len(a[2])))
    )
    found = locality.attack(tiny_model, SimpleNamespace(count=5, at_once=2, steps=1))
    assert calls == [([0, 1], 2, 2), ([2, 3], 2, 2), ([4], 1, 1)]
    assert found["seconds"] > 0


def test_summaries_are_held_against_the_activations_themselves(locality, tiny_model):
    options = SimpleNamespace(count=4, at_once=2)
    embeds = locality.starts(tiny_model, 4)
    whole = locality.activations(tiny_model, embeds)
    kept = locality.activation_sketches(tiny_model, embeds, seed=0)
    assert whole.keys() == kept.flat.keys()
    found = locality.errors(tiny_model, options)
    assert found["L2"]["pair_median"] < 0.1
    assert found.keys() == {"L2", "cosine", "CKA"}
    used = locality.memory(tiny_model, options)
    assert used["mib_kept"] == pytest.approx(4 * len(whole) * 2 * 1024 * 4 / 2**20)
    assert used["mib_of_all_activations"] == pytest.approx(sum(x.numel() for x in whole.values()) * 4 / 2**20)


def test_rates_are_those_of_the_whole_experiment(locality):
    """10 of 50 steps are timed: a trigger takes 5 times as long."""
    use = {"mib_peak": 600.0, "mib_kept": 8.0, "mib_of_all_activations": 30.0}
    found = locality.compared(
        {
            "attack, batch 1": {"triggers": 2, "seconds": 6.0, "cpu_seconds": 3.0},
            "attack, chosen batch": {"triggers": 16, "seconds": 12.0, "cpu_seconds": 6.0},
            "summaries, 32 triggers": use,
            "summaries, 128 triggers": {k: v + 24 for k, v in use.items()},
        },
        steps=10,
    )
    assert found["attack"]["batch 1"]["triggers_per_minute"] == 4
    assert found["attack"]["batch 1"]["triggers_per_cpu_minute"] == 8
    assert found["attack"]["batch 1"]["minutes_for_100"] == 25
    assert found["attack"]["times_as_fast"] == 4
    assert found["memory, 128 against 32"]["mib_more_at_peak"] == 24


@pytest.fixture(scope="module")
def sd14(monkeypatch_module):
    return script("sd14")


def test_all_ways_of_the_large_attack_come_to_the_same_losses(sd14, monkeypatch):
    monkeypatch.setitem(sd14.MATRIX, "cpu", 64)  # in bfloat16 a large product takes seconds
    monkeypatch.setattr(sd14, "MATRIX_SECONDS", 0.01)
    arguments = ["--size=tiny", "--device=cpu", "--images=2", "--at-once=2", "--steps=2"]
    ways, work = {}, sd14.work_of_a_row("tiny")["embedding"]
    for way in sd14.WAYS:
        if way not in sd14.parse(arguments).skip:
            ways[way] = sd14.attacked(sd14.parse([*arguments, f"--way={way}"]))
    found = sd14.compared(ways)
    assert len(found) == 4
    assert found["batched, weights frozen"]["losses_apart"] < 1e-5
    assert max(one["losses_apart"] for one in found.values()) < 0.02, "half precision"
    for one in ways.values():
        assert one["images_per_hour"] == pytest.approx(3600 * 2 / (one["seconds"] * 50 / 2))
        # a share of a peak measured beside other programs may well exceed 1: only its definition can be held
        done = one["utilisation"] * one["matrix_teraflops"] * 1e12 * one["seconds"]
        assert done == pytest.approx(work * Attack().batch * 2 * 2)


def test_a_report_is_shown_in_the_book(sd14, monkeypatch, tmp_path):
    def measured(*arguments):
        way = arguments[-1]
        if way == sd14.ROUND:
            return {"seconds": 90.0, "cpu_seconds": 80.0, "mib_peak": 3072.0, "images": 2, "steps": 2}
        seconds = {"plain": 40.0}.get(way, 10.0)
        found = {
            "seconds": seconds,
            "cpu_seconds": seconds / 2 + 1,
            "images_per_hour": 7.2,
            "mib_peak": 512.0,
        }
        return found | {"utilisation": 0.25, "matrix_teraflops": 1.0, "losses": [[1.0, 1.0]]}

    monkeypatch.setattr(sd14, "alone", measured)
    assert speed.speed_part(tmp_path) == "Nothing has been measured yet.\n"
    sd14.main(["--size=tiny", "--device=cpu", f"--out={tmp_path / 'sd14_cpu.json'}"])
    text = speed.speed_part(tmp_path)
    assert "| batched, weights frozen | 10 | 4.00 | 3.50 | 7.2 | 25 % | 0.5 | 0 |" in text
    assert (
        "A round of adversarial fine-tuning: 90 s and 3.0 GiB at its peak, for 2 images and 2 steps" in text
    )
    assert "No GPU was lent" in text
    report = json.loads((tmp_path / "sd14_cpu.json").read_text())
    report["machine"]["gpu"] = "NVIDIA H200"
    (tmp_path / "sd14_gpu.json").write_text(json.dumps(report))
    assert "No GPU was lent" not in speed.speed_part(tmp_path)
    assert "NVIDIA H200" in speed.speed_part(tmp_path)


def test_the_work_of_a_row_is_counted(sd14, monkeypatch):
    """Of a single convolution: 2 * 9 * channels in * channels out * pixels, and the embedding has no part."""

    class Convolution(torch.nn.Conv2d):
        config = SimpleNamespace(sample_size=8, cross_attention_dim=16)

        def forward(self, noisy, t, encoder_hidden_states):
            return SimpleNamespace(sample=super().forward(noisy) + encoder_hidden_states.sum())

    part = SimpleNamespace(build=lambda: Convolution(4, 6, 3, padding=1))
    monkeypatch.setitem(sd14.SIZES, "one", part)
    found, once = sd14.work_of_a_row("one"), 2 * 9 * 4 * 6 * 64
    assert found == {"forward": once, "embedding": once, "weights": 2 * once, "keys_and_values": 0}


def test_a_row_of_the_real_size_has_keys_and_values(sd14):
    row, narrow = sd14.work_of_a_row("sd14"), sd14.work_of_a_row("narrow")
    assert narrow["forward"] < row["forward"] / 16
    widths = [320] * 5 + [640] * 5 + [1280] * 6  # its blocks with cross-attention
    assert row["keys_and_values"] == sum(2 * 2 * 77 * 768 * width for width in widths)
    assert row["forward"] < row["embedding"] < row["weights"] <= 3 * row["forward"]
    assert row["forward"] / 2 == pytest.approx(402e9, rel=0.01), "multiplications, as others count them"

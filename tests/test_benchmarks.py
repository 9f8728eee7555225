"""The plain ways that speed is measured against do the same work and come to the same results."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from test_nemo import written  # noqa: F401

from dori.attack import Attack, dori_attack
from dori.mitigation.nemo import Nemo, nemo

FOLDER = Path(__file__).parents[1] / "benchmarks"
PROMPTS = ["red boat", "blue house", "dawn lake"]


@pytest.fixture(scope="module")
def benchmarks(monkeypatch_module):
    """The two scripts as modules."""
    monkeypatch_module.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmarks_attack", FOLDER / "attack.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    sys.modules.pop("plain", None)


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

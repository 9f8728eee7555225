"""Wen's adjustment: what it leaves alone, its steps against a plain loop, and that images do not mix."""

import math

import pytest
import torch

from dori.detection import magnitudes
from dori.errors import DoriError
from dori.mitigation.adjustment import Adjustment, adjusted

PROMPTS = ["red boat", "blue house", "one lake"]
SEEDS = [3, 4, 5]


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request, tiny_model, tiny_v_model):
    return tiny_model if request.param == "epsilon" else tiny_v_model


def pulls(model, embeds, seeds=SEEDS):
    """||eps_y - eps_0|| of each image, as the detector measures it."""
    return magnitudes(model, embeds, seeds)[:, 0]


def test_without_a_limit_nothing_changes_to_the_bit(model, monkeypatch):
    embeds, calls, predict = model.encode_prompts(PROMPTS), [], model.predict
    monkeypatch.setattr(model, "predict", lambda *x: calls.append(1) or predict(*x))
    assert torch.equal(adjusted(model, embeds, SEEDS, Adjustment(target=math.inf)), embeds)
    assert len(calls) == 2  # eps_0 and eps_y, once
    assert torch.equal(adjusted(model, embeds, SEEDS, Adjustment(target=0, iterations=0)), embeds)


def test_only_images_above_the_target_are_adjusted_until_they_are_not(model):
    embeds = model.encode_prompts(PROMPTS)
    before = pulls(model, embeds)
    low, mid, high = before.argsort().tolist()
    assert before[low] < before[mid] < before[high]
    target = (before[low] + before[mid]).item() / 2
    found = adjusted(model, embeds, SEEDS, Adjustment(target=target, iterations=100, lr=0.01))
    after = pulls(model, found)
    assert torch.equal(found[low], embeds[low])
    assert (after[[mid, high]] <= target).all()
    assert (after[[mid, high]] > 0.5 * target).all()  # it stops there


def test_ten_iterations_lower_the_pull(model):
    embeds = model.encode_prompts(PROMPTS)
    found = adjusted(model, embeds, SEEDS, Adjustment(target=0, lr=0.01))
    assert (pulls(model, found) < 0.9 * pulls(model, embeds)).all()


def test_the_first_token_stays(model):
    embeds = model.encode_prompts(PROMPTS)
    found = adjusted(model, embeds, SEEDS, Adjustment(target=0))
    assert torch.equal(found[:, 0], embeds[:, 0])
    assert (found[:, 1:] != embeds[:, 1:]).flatten(1).any(1).all()


def test_steps_agree_with_a_plain_loop(model):
    """One image, AdamW with its defaults on the whole embedding, BOS put back after each step."""
    embeds = model.encode_prompts(PROMPTS[:1])
    x = model.initial_latents(SEEDS[:1])
    scheduler = model.new_scheduler()
    scheduler.set_timesteps(4)
    y = embeds.clone().requires_grad_()
    adam = torch.optim.AdamW([y], lr=0.02)
    for _ in range(3):
        adam.zero_grad()
        model.guidance_difference(x, scheduler.timesteps[:1], y).norm().backward()
        y.grad[:, 0] = 0
        adam.step()
        y.data[:, 0] = embeds[:, 0]
    plan = Adjustment(target=0, iterations=3, lr=0.02, sampling_steps=4)
    found = adjusted(model, embeds, SEEDS[:1], plan)
    moved = y.detach() - embeds
    assert moved.norm() > 0.1
    assert (found - embeds - moved).norm() < 0.01 * moved.norm()
    other = adjusted(
        model, embeds, SEEDS[:1], Adjustment(target=0, iterations=3, lr=0.02, sampling_steps=400)
    )
    assert (other - embeds - moved).norm() > 0.01 * moved.norm()  # another first t


def test_an_image_does_not_depend_on_its_company(model):
    embeds = model.encode_prompts(PROMPTS)
    plan = Adjustment(target=pulls(model, embeds).median().item() * 0.9, iterations=4, lr=0.01)
    together = adjusted(model, embeds, SEEDS, plan)
    for k in range(3):
        alone = adjusted(model, embeds[k : k + 1], SEEDS[k : k + 1], plan)
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        adjusted(model, embeds, SEEDS, plan, batch_size=2), together, atol=1e-3, rtol=0
    )
    assert not torch.allclose(together, embeds, atol=5e-3)


def test_the_norm_is_one_images_not_the_batchs(model):
    """Three images below the target, whose norm together, as in the published code, is above it."""
    embeds = model.encode_prompts(PROMPTS)
    before = pulls(model, embeds)
    target = before.max().item() * 1.01
    assert before.norm() > target
    assert torch.equal(adjusted(model, embeds, SEEDS, Adjustment(target=target)), embeds)


def test_what_comes_back_is_ready_to_sample_from(model):
    embeds = model.encode_prompts(PROMPTS)
    start, asked = embeds.clone(), [p.requires_grad for p in model.unet.parameters()]
    found = adjusted(model, embeds, SEEDS, Adjustment(target=0, iterations=2))
    assert (found.shape, found.dtype, found.requires_grad) == (embeds.shape, embeds.dtype, False)
    assert torch.equal(embeds, start)
    assert asked == [p.requires_grad for p in model.unet.parameters()]
    assert all(p.grad is None for p in model.unet.parameters())
    assert adjusted(model, embeds[:0], []).shape == embeds[:0].shape


def test_one_seed_per_image(tiny_model):
    with pytest.raises(DoriError, match="3 embeddings for 1 seeds"):
        adjusted(tiny_model, tiny_model.encode_prompts(PROMPTS), [0])


@pytest.mark.parametrize("setting", [{"target": -1.0}, {"target": math.nan}, {"iterations": -1}, {"lr": 0.0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(DoriError, match="Adjustment"):
        Adjustment(**setting)

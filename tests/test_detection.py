"""Wen's score and the figures made of it."""

import numpy as np
import pytest
import torch

from dori.detection import auroc, magnitudes, roc_table, tpr_at


def test_the_empty_prompt_pulls_nowhere(tiny_model, tiny_v_model):
    for model in (tiny_model, tiny_v_model):
        found = magnitudes(model, model.encode_prompts(["", ""]), [1, 2], steps=3)
        assert found.shape == (2, 3)
        assert found.max() < 1e-4


def test_magnitude_is_the_norm_of_the_guidance_difference(tiny_model):
    embeds, seeds = tiny_model.encode_prompts(["red boat", "dawn"]), [3, 4]
    first = tiny_model.new_scheduler()
    first.set_timesteps(5)
    t = first.timesteps[0].repeat(2)
    pull = tiny_model.guidance_difference(tiny_model.initial_latents(seeds), t, embeds)
    found = magnitudes(tiny_model, embeds, seeds, steps=1)
    torch.testing.assert_close(found[:, 0], pull.flatten(1).norm(dim=1))


def test_magnitude_scales_with_the_difference(tiny_model, monkeypatch):
    embeds = tiny_model.encode_prompts(["red boat"])
    once = magnitudes(tiny_model, embeds, [0])
    both = tiny_model.predict_both

    def doubled(*args):
        empty, cond = both(*args)
        return empty, empty + 2 * (cond - empty)

    monkeypatch.setattr(tiny_model, "predict_both", doubled)
    torch.testing.assert_close(magnitudes(tiny_model, embeds, [0]), 2 * once)


def test_magnitude_does_not_depend_on_the_batch(tiny_model):
    embeds = tiny_model.encode_prompts(["red boat", "blue house", "dawn"])
    whole = magnitudes(tiny_model, embeds, [1, 2, 3], steps=2)
    alone = magnitudes(tiny_model, embeds[2:], [3], steps=2)
    torch.testing.assert_close(whole[2:], alone, atol=1e-3, rtol=1e-3)


def test_perfect_and_blind_detectors():
    labels = [True] * 50 + [False] * 50
    assert auroc(np.arange(100)[::-1], labels).value == 1
    assert tpr_at(np.arange(100)[::-1], labels).value == 1
    assert auroc(np.zeros(100), labels).value == 0.5
    assert tpr_at(np.zeros(100), labels).value == 0


def test_tpr_at_one_percent_by_hand():
    """200 regular prompts allow two alarms: the third-highest regular score is the bar."""
    regular = np.arange(200.0)
    memorized = np.array([198.5, 197.5, 196.5, 500.0])
    scores, labels = np.concatenate([memorized, regular]), np.array([True] * 4 + [False] * 200)
    assert tpr_at(scores, labels).value == pytest.approx(3 / 4)
    assert roc_table(scores, labels)["tpr"].is_monotonic_increasing


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.1, 1.0])
def test_tpr_is_read_off_the_roc_curve_where_scores_are_tied(fpr):
    rng = np.random.default_rng(0)
    for levels in (2, 10, 1000):
        scores, labels = rng.integers(levels, size=100), np.arange(100) < 40
        table = roc_table(scores, labels)
        assert tpr_at(scores, labels, fpr=fpr).value == table.loc[table["fpr"] <= fpr, "tpr"].max()


def test_detection_without_regular_prompts_has_no_figure():
    assert np.isnan(auroc([1.0, 2.0], [True, True]).value)

"""Wanda's masks against matrices computed by hand, and its norms against a plain loop."""

import pytest
import torch
from torch.nn import functional as F

from dori.errors import DoriError
from dori.mitigation.units import union
from dori.mitigation.wanda import Wanda, column_norms, squared_columns, wanda, wanda_mask
from dori.sampling import ddim, guided

PROMPTS = ["red boat", "blue house"]


def test_the_mask_of_a_matrix_computed_by_hand():
    weight, target, reference = (
        torch.tensor([x]) for x in ([1.0, -2, 3, -4], [5.0, 1, 1, 1], [1.0, 1, 1, 1])
    )
    mask = wanda_mask(weight, target, reference, 0.5)
    assert mask.tolist() == [[True, False, False, False]]  # index 3 is in the top half but ties


def test_each_row_is_ranked_by_itself_and_steps_are_united():
    weight = torch.tensor([[1.0, 1, 1, 1], [0, 0, 9, 1]])
    target = torch.tensor([[2.0, 1, 1, 1], [1.0, 1, 1, 2]])
    masks = [wanda_mask(weight, target[:k], torch.ones(2, 4)[:k], 0.25) for k in (1, 2)]
    assert masks[0].tolist() == [[True, False, False, False], [False] * 4]
    assert masks[1].tolist() == [[True, False, False, True], [False] * 4]  # in row 2, 9 > 1 * 2, yet it ties


def test_rows_are_normalised_before_columns_are_measured():
    found = squared_columns(torch.tensor([[[3.0, 4], [0, 2]]])).sqrt()
    torch.testing.assert_close(found, torch.tensor([[0.6, 1.2806]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("conditional_only", [False, True])
def test_norms_agree_with_a_plain_loop(tiny_model, conditional_only):
    """One prompt at a time, a hook of our own, every row of every call."""
    embeds, settings = tiny_model.encode_prompts(PROMPTS), Wanda(steps=2, conditional_only=conditional_only)
    found = column_norms(tiny_model, embeds, settings)
    name, layer = list(tiny_model.ffn_layers().items())[3]
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    try:
        ddim(
            lambda x, t: guided(*tiny_model.predict_both(x, t, embeds[1:]), 3.0),
            tiny_model.initial_latents([0]), tiny_model.new_scheduler(), num_inference_steps=5, stop_after=2,
        )  # fmt: skip
    finally:
        handle.remove()
    for step, x in enumerate(seen):
        rows = F.normalize(x[1:] if conditional_only else x, dim=-1).flatten(0, 1)
        torch.testing.assert_close(found[name][1, step], rows.norm(dim=0), atol=1e-4, rtol=1e-4)


def test_the_empty_prompt_loses_nothing(tiny_model):
    (units,) = wanda(tiny_model, tiny_model.unconditional, settings=Wanda(0.1, steps=2))
    assert units.count == 0
    assert units.size == sum(x.weight.numel() for x in tiny_model.ffn_layers().values())


def test_masks_grow_with_sparsity_and_with_steps(tiny_model):
    embeds = tiny_model.encode_prompts(PROMPTS[:1])
    sets = [
        wanda(tiny_model, embeds, settings=Wanda(r, steps=k))[0] for r, k in ((0.05, 1), (0.2, 1), (0.2, 3))
    ]
    assert 0 < sets[0].count < sets[1].count < sets[2].count
    assert not sets[0] - sets[1]
    assert not sets[1] - sets[2]
    assert sets[0].density <= 0.05


def test_a_prompts_mask_does_not_depend_on_its_company(tiny_model):
    embeds = tiny_model.encode_prompts(PROMPTS)
    settings = Wanda(0.1, steps=2)
    together = wanda(tiny_model, embeds, settings=settings)
    alone = [wanda(tiny_model, e[None], settings=settings)[0] for e in embeds]
    assert min(a.iou(b) for a, b in zip(together, alone, strict=True)) > 0.99  # ties of floating point


def test_the_joint_mask_is_made_of_pooled_norms(tiny_model):
    embeds, settings = tiny_model.encode_prompts(PROMPTS), Wanda(0.1, steps=1)
    (joint,) = wanda(tiny_model, embeds, settings=settings, joint=True)
    target = column_norms(tiny_model, embeds, settings)
    other = column_norms(tiny_model, tiny_model.unconditional.expand(2, -1, -1), settings)
    name, layer = next(iter(tiny_model.ffn_layers().items()))
    pooled = [torch.sqrt((x[name] ** 2).sum(0)) for x in (target, other)]
    assert torch.equal(joint[name], wanda_mask(layer.weight, *pooled, 0.1))
    assert joint != union(wanda(tiny_model, embeds, settings=settings))


def test_the_reference_may_be_another_caption(tiny_model):
    embeds, settings = tiny_model.encode_prompts(PROMPTS), Wanda(0.1, steps=1, reference="regular")
    with pytest.raises(DoriError, match="give their embeddings"):
        wanda(tiny_model, embeds, settings=settings)
    same = wanda(tiny_model, embeds, settings=settings, reference_embeds=embeds)
    assert [units.count for units in same] == [0, 0]
    (other,) = wanda(tiny_model, embeds[:1], settings=settings, reference_embeds=embeds[1:])
    name, layer = next(iter(tiny_model.ffn_layers().items()))
    norms = [column_norms(tiny_model, e[None], settings)[name][0] for e in embeds]
    assert torch.equal(other[name], wanda_mask(layer.weight, *norms, 0.1))


@pytest.mark.parametrize("setting", [{"sparsity": 0}, {"sparsity": 2.0}, {"steps": 0}, {"reference": "none"}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(DoriError, match="Wanda"):
        Wanda(**setting)

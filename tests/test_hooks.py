"""Hooks leave the model as it was, errors included; sets of units are values."""

import math

import pytest
import torch

from dori.errors import DoriError
from dori.hooks import masked, preserved, recorded
from dori.mitigation.units import Units, union


def sampled(model, n=1):
    return model.sample(model.encode_prompts(["red boat"] * n), list(range(n)), num_inference_steps=2)


def neurons(model, *chosen, layer=0):
    widths = {name: x.out_features for name, x in model.value_layers().items()}
    return Units.of({list(widths)[layer]: chosen}, widths)


def weights(model, seed, share=0.3):
    draw = torch.Generator().manual_seed(seed)
    return Units(
        {n: torch.rand(x.weight.shape, generator=draw) < share for n, x in model.ffn_layers().items()}
    )


@pytest.fixture(params=["neurons", "weights"])
def two_sets(request, tiny_model):
    if request.param == "neurons":
        return [neurons(tiny_model, 1, 3), neurons(tiny_model, 2, layer=4)]
    return [weights(tiny_model, 0), weights(tiny_model, 1)]


def test_an_empty_selection_is_bit_identical_to_none(tiny_model):
    with masked(tiny_model.unet, [neurons(tiny_model), neurons(tiny_model)]):
        assert torch.equal(sampled(tiny_model), before := sampled(tiny_model))
    assert torch.equal(sampled(tiny_model), before)


def test_applying_is_baking_and_can_be_undone(tiny_model, two_sets):
    before = sampled(tiny_model)
    with two_sets[0].applied(tiny_model.unet):
        applied = sampled(tiny_model)
    assert torch.equal(sampled(tiny_model), before)
    assert not torch.allclose(applied, before)
    with preserved([tiny_model.unet]):
        two_sets[0].bake(tiny_model.unet)
        torch.testing.assert_close(sampled(tiny_model), applied)
    assert torch.equal(sampled(tiny_model), before)


def test_each_image_of_a_batch_has_its_own_units_in_both_halves(tiny_model, two_sets):
    embeds = tiny_model.encode_prompts(["red boat", "blue house"])
    with masked(tiny_model.unet, two_sets):
        together = tiny_model.sample(embeds, [0, 1], guidance_scale=3.0)
    for i, units in enumerate(two_sets):
        with masked(tiny_model.unet, units):
            alone = tiny_model.sample(embeds[i : i + 1], [i], guidance_scale=3.0)
        torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=0)


def test_gradients_pass_through_the_weights_that_are_left(tiny_model, two_sets):
    noisy, t = tiny_model.initial_latents([0, 1]), torch.tensor([500, 500])
    embeds = tiny_model.encode_prompts(["red boat", "blue house"]).requires_grad_()
    with masked(tiny_model.unet, two_sets):
        (grad,) = torch.autograd.grad(tiny_model.predict(noisy, t, embeds).square().sum(), embeds)
    with preserved([tiny_model.unet]):
        two_sets[1].bake(tiny_model.unet)
        (baked,) = torch.autograd.grad(tiny_model.predict(noisy, t, embeds).square().sum(), embeds)
    torch.testing.assert_close(grad[1], baked[1], atol=1e-4, rtol=1e-3)


def test_a_batch_that_does_not_hold_each_sample_equally_often_is_refused(tiny_model, two_sets):
    with masked(tiny_model.unet, two_sets), pytest.raises(DoriError, match="2 samples for a batch of 3"):
        tiny_model.sample(tiny_model.encode_prompts(["red"] * 3), [0, 1, 2], guidance_scale=1)


def test_recording_sees_inputs_and_outputs_of_every_call(tiny_model):
    layers = tiny_model.ffn_layers()
    with (
        recorded(tiny_model.unet, layers) as out,
        recorded(tiny_model.unet, layers, inputs=True) as taken,
        recorded(tiny_model.unet, layers, reduce=torch.mean) as means,
    ):
        sampled(tiny_model)
    for name, layer in layers.items():
        assert len(out[name]) == 2
        torch.testing.assert_close(layer(taken[name][0]), out[name][0])
        assert means[name][1] == out[name][1].mean()


def test_an_error_inside_leaves_no_hook(tiny_model, two_sets):
    layers = {**tiny_model.value_layers(), **tiny_model.ffn_layers()}
    with pytest.raises(RuntimeError), masked(tiny_model.unet, two_sets), recorded(tiny_model.unet, layers):
        raise RuntimeError
    assert all(not layer._forward_hooks for layer in layers.values())


def test_units_that_do_not_fit_are_named(tiny_model):
    name = next(iter(tiny_model.value_layers()))
    with pytest.raises(DoriError, match=r"no\.such"), recorded(tiny_model.unet, ["no.such"]):
        pass
    with pytest.raises(DoriError, match=name), masked(tiny_model.unet, {name: torch.ones(5)}):
        pass
    with pytest.raises(DoriError, match="eligible"):
        Units.of({name: [8]}, {name: 8})


def test_sets_unite_intersect_count_and_print():
    a, b = Units.of({"x": [0, 1]}, {"x": 4, "y": 4}), Units.of({"x": [1, 2]}, {"x": 4})
    assert (a | b).indices == {"x": [0, 1, 2], "y": []}
    assert (a & b).indices["x"] == [1]
    assert (a - b).indices["x"] == [0]
    assert (a.count, a.size, a.density) == (2, 8, 0.25)
    assert a.iou(b) == pytest.approx(1 / 3)
    assert math.isnan((a & Units({})).iou(Units({})))  # nothing selected is no agreement
    assert union([a, b]) == a | b
    assert {a: 1}[Units.of({"x": [1, 0]}, {"x": 4})] == 1
    assert "2 of 8 neurons (25 %) in 1 of 2 layers" in repr(a)
    assert a.table()["units"].tolist() == [2, 0]


def test_sets_are_saved_whole(tiny_model, tmp_path, two_sets):
    two_sets[0].save(tmp_path / "units.safetensors")
    assert Units.load(tmp_path / "units.safetensors") == two_sets[0]
    some = neurons(tiny_model, 5)
    some.save(tmp_path / "units.json")
    assert (found := Units.load(tmp_path / "units.json")) == some
    assert found.size == some.size
    with pytest.raises(DoriError, match=r"\.safetensors"):
        weights(tiny_model, 0).save(tmp_path / "weights.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DoriError, match="not a file of units"):
        Units.load(tmp_path / "broken.json")

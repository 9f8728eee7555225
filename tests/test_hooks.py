"""Hooks leave the model as it was, errors included."""

import pytest
import torch

from dori.errors import DoriError
from dori.hooks import masked, preserved, recorded


def sampled(model):
    return model.sample(model.encode_prompts(["red boat"]), [0], num_inference_steps=2)


def test_an_empty_selection_is_bit_identical_to_none(tiny_model):
    layers = tiny_model.value_layers()
    with masked(layers, {name: [] for name in layers}):
        assert torch.equal(sampled(tiny_model), before := sampled(tiny_model))
    assert torch.equal(sampled(tiny_model), before)


def test_masking_a_unit_is_zeroing_its_row_of_weights(tiny_model):
    layers = tiny_model.value_layers()
    name, layer = next(iter(layers.items()))
    with masked(layers, {name: [1, 3]}):
        masked_image = sampled(tiny_model)
    with preserved([layer]):
        layer.weight.data[[1, 3]] = 0
        torch.testing.assert_close(sampled(tiny_model), masked_image)
    assert layer.weight[1].abs().sum() > 0
    assert not torch.equal(sampled(tiny_model), masked_image)


def test_recording_sees_inputs_and_outputs_of_every_call(tiny_model):
    layers = tiny_model.ffn_layers()
    with recorded(layers) as out, recorded(layers, inputs=True) as taken:
        sampled(tiny_model)
    for name, layer in layers.items():
        assert len(out[name]) == 2
        torch.testing.assert_close(layer(taken[name][0]), out[name][0])


def test_an_error_inside_leaves_no_hook(tiny_model):
    layers = tiny_model.value_layers()
    name = next(iter(layers))
    with pytest.raises(RuntimeError), masked(layers, {name: [0]}), recorded(layers):
        raise RuntimeError
    assert all(not layer._forward_hooks for layer in layers.values())


@pytest.mark.parametrize("units", [{"no.such.layer": [0]}, {"first": [999]}])
def test_units_that_are_not_there_are_named(tiny_model, units):
    layers = {"first": next(iter(tiny_model.value_layers().values()))}
    with pytest.raises(DoriError, match="layer"), masked(layers, units):
        pass

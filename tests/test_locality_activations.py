"""Summaries of activations against the activations themselves, and CKA against hand-computed cases."""

import pytest
import torch

from dori.errors import DoriError
from dori.hooks import recorded
from dori.locality.activations import (
    Sketch,
    Sketches,
    activation_sketches,
    centred_gram,
    first_step,
    positions,
)
from dori.locality.distances import pairs, pairwise
from dori.mitigation.units import Units

EXACT = 10_000  # numbers: more than any activation of the tiny model has


@pytest.fixture(scope="module")
def embeds(tiny_model):
    shape = tiny_model.unconditional.shape[1:]
    return torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exact(tiny_model, embeds):
    return activation_sketches(tiny_model, embeds, seed=3, width=EXACT)


def cka_distances(*columns):
    """Of activations with one feature, given as its value at each position."""
    gram = centred_gram(torch.tensor(columns).unsqueeze(2)).flatten(1)
    return Sketches({"x": gram}, {"x": gram}).distances("x", "CKA")


def test_a_short_vector_is_its_own_summary():
    x = torch.randn(3, 7)
    assert torch.equal(Sketch(7, 7, 0)(x), x)
    assert Sketch(8, 7, 0)(torch.zeros(1, 8)).shape == (1, 7)
    with pytest.raises(DoriError, match="at least 1"):
        Sketch(7, 0, 0)


def test_a_summary_adds_each_number_once_with_its_sign():
    sketch, one = Sketch(50, 4, 0), torch.eye(50)
    assert (sketch(one) != 0).sum(1).tolist() == [1] * 50
    assert set(sketch(one).sum(1).tolist()) == {-1, 1}
    x = torch.randn(2, 50)
    torch.testing.assert_close(sketch(x), x @ sketch(one))


def test_inner_products_of_summaries_are_unbiased():
    x, y = torch.randn(2, 60, generator=torch.Generator().manual_seed(0)) + 1
    found = torch.stack([Sketch(60, 8, seed)(torch.stack([x, y])) for seed in range(3000)])
    products = (found[:, 0] * found[:, 1]).sum(1)
    error = products.std() / 3000**0.5
    assert float((products.mean() - x @ y).abs()) < 4 * error
    assert error < 0.05 * (x @ y).abs()


def test_distances_of_summaries_are_close_to_those_of_what_they_summarise():
    x = torch.randn(20, 50_000, generator=torch.Generator().manual_seed(0))
    share = pairs(pairwise(Sketch(50_000, 1024, 0)(x))) / pairs(pairwise(x))
    assert abs(share.mean() - 1) < 0.02
    assert share.std() < 0.05  # theory: half of sqrt(2 / 1024)


def test_cka_of_single_features_by_hand():
    """With one feature, CKA is the squared correlation over the positions."""
    found = cka_distances([1.0, 0, -1], [1.0, -2, 1], [12.0, 7, 2], [1.0, 0, 0])
    assert found[0].tolist() == pytest.approx([0, 1, 0, 0.25], abs=1e-6)


def test_cka_does_not_see_axes_or_scale_and_sees_which_positions_are_alike():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    turned = 3 * x @ torch.linalg.qr(torch.randn(4, 4)).Q + 5
    gram = centred_gram(torch.stack([x, turned, x.flip(0)])).flatten(1)
    found = Sketches({"x": gram}, {"x": gram}).distances("x", "CKA")
    assert found[0, 1] < 1e-5
    assert found[0, 2] > 0.1
    assert centred_gram(x[None]).sum(1).abs().max() < 1e-5  # centred


def test_places_of_a_picture_are_rows():
    x = torch.arange(24.0).view(1, 2, 3, 4)
    assert positions(x).shape == (1, 12, 2)
    assert positions(x)[0, 5].tolist() == x[0, :, 1, 1].tolist()


def test_what_is_kept_is_what_the_layers_see(tiny_model, embeds, exact):
    values, inputs = tiny_model.value_layers(up=True), tiny_model.ffn_layers()
    outputs = {name: name.removesuffix(".net.2") + ".out" for name in inputs}
    assert list(exact.flat) == [*values, *inputs, *outputs.values(), "mid_block", "output"]
    t = torch.tensor([first_step(tiny_model)])
    for i in (0, 9):
        with (
            recorded(tiny_model.unet, [*values, "mid_block"]) as out,
            recorded(tiny_model.unet, inputs, inputs=True) as taken,
            recorded(tiny_model.unet, inputs) as given,
            torch.no_grad(),
        ):
            eps = tiny_model.predict(tiny_model.initial_latents([3]), t, embeds[i : i + 1])
        given = {outputs[n]: calls for n, calls in given.items()}
        for name, x in {**{n: c[0] for n, c in (out | taken | given).items()}, "output": eps}.items():
            whole, kept = positions(x), exact.flat[name][i]
            torch.testing.assert_close(kept[: whole.numel()], whole.flatten(), atol=1e-4, rtol=1e-3)
            assert not kept[whole.numel() :].any()
            gram = centred_gram(whole).flatten()
            torch.testing.assert_close(exact.gram[name][i][: len(gram)], gram, atol=1e-3, rtol=1e-3)


def test_the_step_is_the_first_of_sampling(tiny_model, embeds, exact):
    steps = []
    tiny_model.sample(embeds[:1], [0], callback=lambda step, t, x0: steps.append(t))
    assert first_step(tiny_model) == steps[0]
    other = activation_sketches(tiny_model, embeds[:2], seed=3, timestep=1, width=EXACT)
    assert not torch.allclose(other.flat["output"], exact.flat["output"][:2])


@pytest.mark.parametrize("width", [64, EXACT])
def test_batch_1_and_batch_16_agree(tiny_model, embeds, width):
    one, sixteen = (
        activation_sketches(tiny_model, embeds, seed=3, width=width, batch_size=b) for b in (1, 16)
    )
    for kind in ("flat", "gram"):
        for name, x in getattr(one, kind).items():
            assert x.shape == (16, width)
            torch.testing.assert_close(x, getattr(sixteen, kind)[name], atol=1e-3, rtol=1e-3)


def test_equal_embeddings_are_0_apart_and_others_are_not(tiny_model, embeds):
    same = torch.cat([embeds[:1], embeds[:1], embeds[1:2]])
    found = activation_sketches(tiny_model, same, seed=3)
    for layer in found.flat:
        for measure in ("L2", "cosine", "CKA"):
            matrix = found.distances(layer, measure)
            if measure == "CKA" and not found.gram[layer].any():  # a single place, in this model's depths
                assert matrix.isnan().all()
                continue
            assert matrix[0, 1] < 1e-5
            assert matrix[0, 2] > matrix[0, 1]
    assert sum(bool(gram.any()) for gram in found.gram.values()) > 20


def test_the_output_of_a_v_model_is_its_eps(tiny_v_model, embeds):
    found = activation_sketches(tiny_v_model, embeds[:1], seed=3, width=EXACT).flat["output"]
    x, t = tiny_v_model.initial_latents([3]), torch.tensor([first_step(tiny_v_model)])
    with torch.no_grad():
        eps = tiny_v_model.as_epsilon(tiny_v_model.predict(x, t, embeds[:1]), x, t)
    torch.testing.assert_close(found[0, : eps.numel()], positions(eps).flatten(), atol=1e-4, rtol=1e-3)


def test_units_are_off_while_looking_and_not_after(tiny_model, embeds, exact):
    name, layer = next(iter(tiny_model.value_layers().items()))
    every = Units({name: torch.ones(layer.out_features, dtype=torch.bool)})
    found = activation_sketches(tiny_model, embeds, seed=3, width=EXACT, units=every)
    assert not found.flat[name].any()
    again = activation_sketches(tiny_model, embeds, seed=3, width=EXACT)
    assert torch.equal(again.flat["output"], exact.flat["output"])
    assert not torch.allclose(found.flat["output"], exact.flat["output"])


def test_an_error_leaves_the_model_bit_identical(tiny_model, embeds):
    def output():
        with torch.no_grad():
            return tiny_model.predict(tiny_model.initial_latents([0]), torch.tensor([500]), embeds[:1])

    before, weights = output(), {n: p.clone() for n, p in tiny_model.unet.state_dict().items()}
    neuron = {name: torch.ones(x.out_features) > 0 for name, x in tiny_model.value_layers().items()}

    def fail(*_):
        raise RuntimeError("halfway")

    handle = tiny_model.unet.up_blocks[1].register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="halfway"):
            activation_sketches(tiny_model, embeds, seed=0, units=Units(neuron))
    finally:
        handle.remove()
    assert torch.equal(output(), before)
    assert not any(m._forward_hooks for m in tiny_model.unet.modules())
    assert all(torch.equal(p, weights[n]) for n, p in tiny_model.unet.state_dict().items())


def test_what_is_not_there_is_named(exact, tiny_model, embeds):
    with pytest.raises(DoriError, match="no activations of layer 'nowhere'"):
        exact.distances("nowhere")
    with pytest.raises(DoriError, match="'L1'"):
        exact.distances("output", "L1")
    with pytest.raises(DoriError, match="no embeddings"):
        activation_sketches(tiny_model, embeds[:0], seed=0)

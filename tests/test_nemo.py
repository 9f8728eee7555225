"""NeMo against its definition: hand-made cases, planted neurons, and a plain re-computation."""

import dataclasses

import pytest
import torch
from conftest import TOKENS, WORDS, adapt, make_pipeline
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

from dori.errors import DoriError
from dori.hooks import masked
from dori.mitigation import nemo as module
from dori.mitigation.nemo import (
    Nemo,
    Statistics,
    activation_statistics,
    activations,
    answer_all,
    flagged,
    nemo,
    refine,
    search,
    select,
)  # fmt: skip
from dori.mitigation.signature import (
    alike,
    calibrate,
    memorization_scores,
    noise_differences,
)
from dori.mitigation.units import Units
from dori.model import TextToImageModel

PROMPTS = ["red boat", "blue house", "one lake"]
REGULAR = [f"{a} {b}" for a in WORDS[:5] for b in WORDS[5:11]]


def hand_made():
    one = torch.ones(3)
    return {"l": torch.tensor([1.2, 4, 0.2])}, Statistics({"l": one}, {"l": one / 2})


@pytest.mark.parametrize(
    ("z", "k", "expected"), [(5, 0, [1]), (1.5, 1, [1, 2]), (7, 0, []), (7, 9, [0, 1, 2])]
)
def test_flagged_neurons_of_a_hand_made_case(z, k, expected):
    assert flagged(*hand_made(), z, k).indices["l"] == expected


def test_statistics_are_mean_and_unbiased_deviation_over_captions(tiny_model):
    found = activation_statistics(tiny_model, REGULAR, batch_size=7)
    name, layer = next(iter(tiny_model.value_layers().items()))
    values = []
    for caption in REGULAR:
        y = tiny_model.encode_prompts([caption])[0]
        values.append(sum((layer.weight @ y[token]).abs() for token in range(TOKENS)) / TOKENS)
    torch.testing.assert_close(found.mean[name], torch.stack(values).mean(0))
    torch.testing.assert_close(found.std[name], torch.stack(values).std(0))
    with pytest.raises(DoriError, match="two regular captions"):
        activation_statistics(tiny_model, REGULAR[:1])


def test_identical_differences_score_one_and_scale_does_not_matter():
    delta = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(alike(delta, delta), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(alike(delta, 3 * delta + 1), torch.ones(2), atol=1e-4, rtol=0)
    assert memorization_scores(torch.cat([delta[:1], delta]))[:2].tolist() == pytest.approx([1, 1], abs=1e-4)
    assert (alike(delta, delta.flip(0)) < 0.6).all()


def test_at_sd_size_the_score_is_ms_ssim_as_published():
    a, b = torch.rand(2, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    a, b = ((x - x.amin((-2, -1), keepdim=True)) for x in (a, 0.5 * a + b))
    a, b = (x / x.amax((-2, -1), keepdim=True) for x in (a, b))
    reference = MultiScaleStructuralSimilarityIndexMeasure(
        sigma=1.5, kernel_size=11, data_range=1.0, betas=(0.33, 0.33, 0.33), normalize="relu"
    )
    torch.testing.assert_close(alike(a, b)[0], reference(a, b))


@pytest.mark.parametrize("side", [3, 4, 8, 16, 32])
def test_small_latents_have_a_smaller_window(side):
    delta = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    assert alike(delta, delta).item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(DoriError, match="too small"):
        alike(delta[..., :2, :2], delta[..., :2, :2])


@pytest.mark.parametrize(("variant", "timestep"), [("compat", 601), ("clean", 801)])
def test_the_difference_is_taken_at_the_right_timestep_of_the_unstepped_noise(tiny_model, variant, timestep):
    embeds, noise = tiny_model.encode_prompts(PROMPTS[:1]), tiny_model.initial_latents([3])
    expected = tiny_model.predict(noise, torch.tensor([timestep]), embeds) - noise  # five steps: 801, 601, …
    torch.testing.assert_close(noise_differences(tiny_model, embeds, [3], variant=variant), expected)
    with pytest.raises(DoriError, match="clean"):
        noise_differences(tiny_model, embeds, [3], variant="stepped")


def test_of_a_single_step_there_is_no_second(tiny_model, monkeypatch):
    monkeypatch.setattr(
        tiny_model, "defaults", dataclasses.replace(tiny_model.defaults, num_inference_steps=1)
    )
    embeds = tiny_model.encode_prompts(PROMPTS[:1])
    with pytest.raises(DoriError, match="looks at the second step"):
        noise_differences(tiny_model, embeds, [3])
    assert noise_differences(tiny_model, embeds, [3], variant="clean").isfinite().all()


def test_the_threshold_is_mean_and_deviation_of_all_pairs(tiny_model):
    embeds = tiny_model.encode_prompts(REGULAR[:2])
    pairs = []
    for e in embeds:
        d = [noise_differences(tiny_model, e[None], [s]) for s in (1, 2, 3)]
        pairs += [alike(d[a], d[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    expected = torch.cat(pairs).mean() + torch.cat(pairs).std()
    assert calibrate(tiny_model, embeds, [1, 2, 3]) == pytest.approx(float(expected), abs=1e-5)


WIDTHS = {"first": 6, "last": 5}


def planted(*neurons):
    """A score that falls to 0.1 once all planted neurons are off; notes what was asked."""
    asked = []

    def ask(questions):
        asked.append(len(questions))
        return [0.1 if all(u[name][i] for name, i in neurons) else 0.9 for _, u in questions]

    return ask, asked


@pytest.mark.parametrize(
    "neurons", [[("last", 4)], [("first", 0), ("last", 2)], [("first", 1), ("first", 5)]]
)
def test_refinement_returns_exactly_the_planted_neurons(neurons):
    everything = Units({name: torch.ones(width) for name, width in WIDTHS.items()})
    ask, _ = planted(*neurons)
    (found,) = answer_all([refine(everything, 0.4)], ask)
    assert sorted((n, i) for n, chosen in found.indices.items() for i in chosen) == neurons


def finished(search, ask):
    """What a search returns when its questions are answered by `ask`."""
    questions = next(search)
    try:
        while True:
            questions = search.send(ask(questions))
    except StopIteration as stop:
        return stop.value


def test_selection_stops_at_the_first_set_below_the_threshold():
    found, statistics = hand_made()
    ask, _ = planted(("l", 2))  # z of neuron 2 is 1.6, its rank 3
    stopped = select(found, statistics, 0.4)
    units, limit = finished(stopped, lambda questions: ask([(0, u) for u in questions]))
    assert units == flagged(found, statistics, 5 - 0.25 * 3, 3)
    assert limit == 0.4


def test_where_nothing_helps_the_search_is_exhausted_and_keeps_what_it_needs():
    """The score stays at 1: the last set (z = 1.25, k = 15) with its own score as limit."""
    found, statistics = hand_made()
    seen = []
    result = finished(select(found, statistics, 0.4), lambda q: [seen.append(u) or 1.0 for u in q])
    assert (len(seen), result) == (16, (flagged(found, statistics, 1.25, 15), 1.0))


def test_many_searches_are_answered_together():
    everything = Units({name: torch.ones(width) for name, width in WIDTHS.items()})
    ask, asked = planted(("last", 4))
    results = answer_all([refine(everything, 0.4) for _ in range(5)], ask)
    assert len(set(results)) == 1
    ask, alone = planted(("last", 4))
    answer_all([refine(everything, 0.4)], ask)
    assert asked == [5 * n for n in alone]


class Written(TextToImageModel):
    """A denoiser whose prediction is a picture written by the value neurons, and a little of the noise."""

    def predict(self, noisy, timesteps, prompt_embeds):
        draw, picture = torch.Generator().manual_seed(0), 0
        for layer in self.value_layers().values():
            strokes = torch.randn(layer.out_features, noisy[0].numel(), generator=draw) ** 3  # few matter
            picture = picture + layer(prompt_embeds).abs().mean(1) @ strokes.to(noisy)
        return noisy + picture.view_as(noisy) + 0.2 * noisy.roll(1, -1)


@pytest.fixture
def written():
    """In float64, so that rounding decides nothing; the last of the embeddings writes nothing."""
    pipe = make_pipeline()
    pipe.unet.double()
    tiny = adapt(pipe)
    model = Written(pipe, defaults=tiny.defaults, name="written", device=tiny.device)
    embeds = model.encode_prompts(PROMPTS)
    embeds[2] = 0
    return model, embeds, activation_statistics(model, REGULAR)


def plain_nemo(model, embed, statistics, threshold):
    """The published procedure, one neuron at a time, neurons in lists, nothing shared with the module."""
    names, seeds = list(model.value_layers()), (1, 2, 3)
    deltas = [noise_differences(model, embed, [s]) for s in seeds]
    kept = [
        s for s in range(3) if max(alike(deltas[s], deltas[r]).item() for r in range(3) if r != s) > threshold
    ]

    def score(lists):
        off = {n: torch.zeros(model.value_layers()[n].out_features, dtype=torch.bool) for n in names}
        for n, chosen in lists.items():
            off[n][chosen] = True
        with masked(model.unet, off):
            return max(alike(deltas[s], noise_differences(model, embed, [seeds[s]])).item() for s in kept)

    if not kept:
        return {n: [] for n in names}
    a = {n: x[0] for n, x in activations(model, embed).items()}
    z, k, limit = 5.0, 0, threshold
    while True:
        lists = {}
        for n in names:
            deviant = [
                j for j in range(len(a[n])) if abs(a[n][j] - statistics.mean[n][j]) / statistics.std[n][j] > z
            ]
            top = sorted(range(len(a[n])), key=lambda j: -a[n][j])[:k]
            lists[n] = sorted({*deviant, *top})
        q = score(lists)
        if q <= threshold:
            break
        z, k = z - 0.25, k + 1
        if z <= 1:
            limit = q
            break
    for n in reversed(names):
        if lists[n] and score({**lists, n: []}) < limit:
            lists[n] = []
    for n in reversed(names):
        for j in list(lists[n]):
            if score({**lists, n: [i for i in lists[n] if i != j]}) < limit:
                lists[n].remove(j)
    return lists


def test_the_batched_search_agrees_with_the_plain_procedure(written):
    model, embeds, statistics = written
    found = nemo(model, embeds, statistics, threshold=0.4, settings=Nemo(seeds=3), batch_size=7)
    for units, embed in zip(found, embeds, strict=True):
        assert units.indices == plain_nemo(model, embed[None], statistics, 0.4)
    assert found[0].count > 0
    assert found[1].count > 0


def test_a_prompt_without_signature_loses_nothing(written):
    model, embeds, statistics = written
    *_, units = nemo(model, embeds, statistics, threshold=0.4, settings=Nemo(seeds=3))
    assert (units.count, len(units)) == (0, len(model.value_layers()))


def test_a_fixed_z_needs_no_unet(tiny_model, monkeypatch):
    embeds, statistics = tiny_model.encode_prompts(PROMPTS), activation_statistics(tiny_model, REGULAR)
    monkeypatch.setattr(module, "all_differences", None)
    found = nemo(tiny_model, embeds, statistics, threshold=0.4, settings=Nemo(z=1.5, k=2))
    each = activations(tiny_model, embeds)
    assert found[1] == flagged({n: a[1] for n, a in each.items()}, statistics, 1.5, 2)


def test_search_without_refinement_is_the_selection():
    found, statistics = hand_made()
    ask, _ = planted(("l", 1))
    chosen, refined = (answer_all([search(found, statistics, 0.4, refined=r)], ask)[0] for r in (False, True))
    assert chosen.indices["l"] == refined.indices["l"] == [1]


def test_the_up_blocks_are_searched_where_that_is_asked_for(tiny_model):
    embeds = tiny_model.encode_prompts(["a red kite", "two boats"])
    statistics = activation_statistics(tiny_model, ["a", "b", "c"], up=True)
    settings = Nemo(z=0.0, up=True)
    found = nemo(tiny_model, embeds, statistics, threshold=0.0, settings=settings)
    assert all(units.density == 1.0 for units in found)
    assert [len(units) for units in found] == [16, 16]

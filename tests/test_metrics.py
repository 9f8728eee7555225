"""Metric oracles of the protocol (methods 2.3, 9.1) and hand-made cases."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from dori.metrics.alignment import attribute_accuracy, clip_alignment, swapped_captions
from dori.metrics.copy import SSCD, load_descriptor, pairwise, similarity
from dori.metrics.fidelity import (
    diversity,
    exceedance,
    frechet_distance,
    kernel_distance,
    nearest_neighbours,
)
from dori.metrics.intervals import (
    Estimate,
    bootstrap,
    difference_of_few,
    jackknife,
    mean_of_few,
    median_mad,
    wilson,
)
from dori.metrics.replication import (
    MR,
    best_scores,
    first_above,
    memorization_rate,
    pair_rate,
    rates,
    rates_shown,
    replication_table,
    spread,
)


def images(n, seed=0, side=16):
    return torch.rand((n, 3, side, side), generator=torch.Generator().manual_seed(seed))


def test_best_score_is_the_maximum_over_seeds():
    table = replication_table({"a": [0.1, 0.9, 0.4]}, threshold=0.7)
    assert best_scores(table)["a"] == pytest.approx(0.9)


def test_median_and_mad_of_three_prompts():
    assert median_mad([0.9, 0.8, 0.2]) == pytest.approx((0.8, 0.1))


def test_memorization_rate_counts_prompts_and_pair_rate_counts_images():
    table = replication_table({"a": [0.9, 0.1], "b": [0.1, 0.8], "c": [0.2, 0.2]}, threshold=0.7)
    assert memorization_rate(table).value == pytest.approx(2 / 3)
    assert pair_rate(table).value == pytest.approx(2 / 6)


def test_a_score_at_the_threshold_is_not_a_copy():
    assert memorization_rate(replication_table({"a": [0.7]}, threshold=0.7)).value == 0


@pytest.mark.parametrize(("k", "n", "low", "high"), [(2, 112, 0.005, 0.063), (0, 112, 0.0, 0.033)])
def test_wilson_gives_the_published_intervals(k, n, low, high):
    estimate = wilson(k, n)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-4)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0)[1:] == (0.0, 1.0, 0)


def test_bootstrap_resamples_items_and_not_their_seeds():
    """Ten seeds that agree are one observation: the interval must not shrink with them."""
    few, many = [0.0, 1.0, 0.0, 1.0], np.repeat([0.0, 1.0, 0.0, 1.0], 10)
    one, ten = bootstrap(few), bootstrap(many, by=np.repeat(list("abcd"), 10))
    assert ten.n == 4
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))
    assert bootstrap(many).high - bootstrap(many).low < ten.high - ten.low


def test_bootstrap_of_equal_values_is_a_point():
    assert bootstrap([0.5, 0.5, 0.5])[:3] == (0.5, 0.5, 0.5)


def test_rates_by_copies():
    table = replication_table({"a": [0.9], "b": [0.1], "c": [0.2]}, threshold=0.7)
    table["copies"] = table["id"].map({"a": 256, "b": 256, "c": 1})
    assert rates(table, ["copies"])["mr"].tolist() == [0.0, 0.5]


def test_rates_for_reading_keep_the_order_of_the_table():
    runs = pd.DataFrame(
        {
            "start": ["prompt", "prompt", "none"],
            "id": ["a", "b", "a"],
            "score": [0.9, 0.1, 0.2],
            "replicated": [True, False, False],
        }
    )
    shown = rates_shown(runs, ["start"])
    assert list(shown.index) == ["prompt", "none"]
    assert shown.loc["prompt"].tolist() == ["0.50 [0.09, 0.91]", 2, "0.50 ± 0.40"]
    two = rates_shown(runs.assign(steps=[1, 1, 2]), ["start", "steps"])
    assert two[MR].unstack("steps").shape == (2, 2)


def test_an_estimate_for_a_cell_has_no_interval_without_width():
    assert Estimate(0.5, 0.25, 0.75, 4).short == "0.50 [0.25, 0.75]"
    assert Estimate(1.0, 1.0, 1.0, 3).short == "1.00"
    assert Estimate(0.5, float("nan"), float("nan"), 1).short == "0.50"
    assert Estimate(float("nan"), float("nan"), float("nan"), 0).short == "–"


def test_the_first_budget_above_a_share():
    table = pd.DataFrame({"steps": [200, 50, 100], "mr": [0.5, 0.01, 0.1]})
    assert first_above(table) == 100
    assert first_above(table, share=0.5) is None


def test_an_image_is_its_own_copy_and_order_does_not_matter(descriptor):
    a, b = descriptor.embed(images(3)), descriptor.embed(images(2, seed=1))
    assert torch.allclose(similarity(a, a).diagonal(), torch.ones(3), atol=1e-6)
    assert torch.equal(similarity(a, b), similarity(b, a).T)


def test_distance_0_7071_is_score_0_75():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.75, (1 - 0.75**2) ** 0.5]])
    assert (a - b).norm().item() == pytest.approx(0.7071, abs=1e-4)
    assert similarity(a, b).item() == pytest.approx(0.75)


def test_ten_identical_generations_have_diversity_score_one(descriptor):
    same = images(1).repeat(10, 1, 1, 1)
    assert pairwise(descriptor.embed(same)).numel() == 45
    assert diversity(descriptor, same, ["a"] * 10)["a"] == pytest.approx(1, abs=1e-6)


def test_nearest_neighbour_finds_the_planted_image(descriptor):
    train = images(50)
    found = nearest_neighbours(descriptor, train[[17, 4]], descriptor.embed(train))
    assert found["neighbour"].tolist() == [17, 4]
    assert found["score"].to_numpy() == pytest.approx([1, 1], abs=1e-6)


def test_exceedance_of_a_set_over_itself_is_the_tail():
    values = np.arange(1000)
    assert exceedance(values, values).value == pytest.approx(0.01, abs=1e-3)


def test_sscd_resizes_to_320_and_normalises_by_imagenet(tmp_path):
    class Probe(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.mean((1, 2, 3)), torch.ones(len(x)) * x.shape[-1]], dim=1)

    torch.jit.script(Probe()).save(str(tmp_path / "sscd_disc_mixup.torchscript.pt"))
    sscd = load_descriptor(tmp_path / "sscd_disc_mixup.torchscript.pt")
    assert isinstance(sscd, SSCD)
    assert (sscd.name, sscd.threshold) == ("sscd_disc_mixup", 0.7)
    grey = torch.full((1, 3, 64, 48), 0.5)
    mean = ((0.5 - sscd.mean) / sscd.std).mean()
    torch.testing.assert_close(sscd.embed(grey), F.normalize(torch.tensor([[mean, 320.0]]), dim=1))


def test_frechet_distance_of_a_set_with_itself_is_zero_and_of_a_moved_one_the_square_of_the_move():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 2) == pytest.approx(5 * 2**2, abs=1e-6)
    assert np.isnan(frechet_distance(x, x[:1]))


def test_kernel_distance_of_a_hand_made_case():
    real, generated = torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[2.0], [1.0]])

    def kernel(a, b):
        return (float(a) * float(b) + 1) ** 3

    pairs = [kernel(a, b) for n, a in enumerate(real) for m, b in enumerate(real) if n != m]
    expected = np.mean(pairs) + kernel(2, 1) - 2 * np.mean([kernel(a, b) for a in real for b in generated])
    assert kernel_distance(real, generated) == pytest.approx(expected)
    assert np.isnan(kernel_distance(real, generated[:1]))


def test_kernel_distance_is_unbiased():
    draws = torch.randn(400, 2, 12, 3, generator=torch.Generator().manual_seed(0))
    found = [kernel_distance(a, b) for a, b in draws]
    assert min(found) < 0
    assert abs(np.mean(found)) < 3 * np.std(found) / 400**0.5


def test_jackknife_of_a_mean_is_the_standard_error_over_ids():
    values = np.array([1.0, 1.0, 2.0, 2.0, 6.0, 6.0])  # two of each id
    found = jackknife(list("aabbcc"), lambda rows: values[rows].mean())
    error = np.std([1, 2, 6], ddof=1) / 3**0.5
    assert found == pytest.approx((3, 3 - 1.96 * error, 3 + 1.96 * error, 3))
    assert np.isnan(jackknife(list("ab"), lambda rows: values[rows].mean()).low)


def test_alignment_is_the_cosine_of_image_and_prompt(tiny_clip):
    x, prompts = images(3), ["red boat", "blue house", "dawn"]
    cosines = clip_alignment(tiny_clip, x, prompts)
    expected = tiny_clip.embed_images(x) @ tiny_clip.embed_texts(prompts).T
    torch.testing.assert_close(cosines, expected.diagonal())
    assert cosines.abs().max() <= 1 + 1e-6


def test_clip_features_are_those_of_transformers(tiny_clip):
    x, texts = images(2), ["red boat", "dawn"]
    ids = tiny_clip.tokenizer(texts, padding="max_length", max_length=12, return_tensors="pt").input_ids
    with torch.no_grad():
        out = tiny_clip.model(input_ids=ids, pixel_values=(x - 0.5) / 0.5)
    torch.testing.assert_close(tiny_clip.embed_images(x), out.image_embeds)
    torch.testing.assert_close(tiny_clip.embed_texts(texts), out.text_embeds)


def test_attribute_accuracy_compares_with_the_prompt_with_one_slot_swapped():
    from dori.testbed.captions import ATTRIBUTES, caption

    said = {slot: values[-1] for slot, values in ATTRIBUTES.items()}

    class Oracle:
        """Images are captions by number, and an image's vector is its caption's."""

        def embed_images(self, x):
            return torch.stack([self.embed_texts([caption(said, 1)])[0]] * len(x))

        def embed_texts(self, texts):
            vectors = [np.random.default_rng(list(t.encode())).standard_normal(64) for t in texts]
            return F.normalize(torch.tensor(np.array(vectors)), dim=1)

    table = attribute_accuracy(Oracle(), images(2), [said, said], [caption(said, 1)] * 2)
    assert table["correct"].all()
    assert table["slot"].tolist() == list(ATTRIBUTES) * 2
    captions = swapped_captions(said, caption(said, 1))["number"]
    assert [c for c in captions.values() if c == caption(said, 1)] == [captions[said["number"]]]


def test_spread_of_an_empty_table_is_empty():
    assert spread(pd.DataFrame(columns=["source", "score"]), "source").empty
    assert spread(replication_table({"a": [0.1, 0.3]}, 0.7), "id").loc["a"].tolist() == [2, 0.2, 0.1, 0.3]


def test_tables_are_tidy():
    assert isinstance(replication_table({}, 0.7), pd.DataFrame)
    assert list(replication_table({}, 0.7)) == ["id", "seed", "score", "replicated"]


def test_the_mean_of_a_few_has_students_interval():
    """1, 2, 3: standard error 1 / sqrt(3), t of 2 degrees of freedom 4.303."""
    half = 4.302653 / np.sqrt(3)
    assert mean_of_few([1, 2, 3]) == pytest.approx((2, 2 - half, 2 + half, 3))
    assert mean_of_few([1, np.nan, 2, 3]) == mean_of_few([1, 2, 3])
    assert mean_of_few([1, 2, 3], within=(0, 3)) == pytest.approx((2, 0, 3, 3))
    assert mean_of_few([0.4, 0.5, 0.6], within=(0, 1)) == mean_of_few([0.4, 0.5, 0.6])


@pytest.mark.parametrize(("values", "mean", "n"), [([5], 5, 1), ([4, 4, 4], 4, 3), ([], np.nan, 0)])
def test_items_that_say_nothing_of_their_spread_give_no_interval(values, mean, n):
    found = mean_of_few(values)
    assert found == pytest.approx((mean, np.nan, np.nan, n), nan_ok=True)


def test_the_difference_of_a_few_has_welchs_interval():
    """Both of variance 1: standard error sqrt(2 / 3), t of 4 degrees of freedom 2.776."""
    half = 2.776445 * np.sqrt(2 / 3)
    found = difference_of_few([11, 12, 13, np.nan], [1, 2, 3])
    assert found == pytest.approx((10, 10 - half, 10 + half, 3))


def test_a_difference_of_single_items_or_of_equal_ones_has_no_interval():
    assert difference_of_few([5], [1, 2, 3]) == pytest.approx((3, np.nan, np.nan, 1), nan_ok=True)
    assert difference_of_few([5, 5], [1, 1, 1]) == pytest.approx((4, np.nan, np.nan, 2), nan_ok=True)
    assert difference_of_few([], [1, 2]) == pytest.approx((np.nan, np.nan, np.nan, 0), nan_ok=True)

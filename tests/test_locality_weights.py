"""Agreement of sets of units against cases made by hand, and chance against drawing."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from dori.errors import DoriError
from dori.locality.weights import agreement, agreement_estimate, chance_iou, layer_iou, placed
from dori.mitigation.units import Units

WIDTHS = {"x": 4, "y": 6, "z": 3}


def units(**indices):
    return Units.of(indices, WIDTHS)


def test_overlap_in_each_layer_and_none_where_nothing_is_selected():
    found = layer_iou(units(x=[1, 2], y=[0]), units(x=[2, 3]))
    assert found["x"] == pytest.approx(1 / 3)
    assert found["y"] == 0
    assert math.isnan(found["z"])


def test_a_layer_that_one_set_lacks_counts_as_empty_there():
    only_x = Units({"x": torch.tensor([True, False, False, False])})
    assert layer_iou(only_x, units(x=[0], y=[2])) == pytest.approx(
        {"x": 1, "y": 0, "z": math.nan}, nan_ok=True
    )
    assert list(layer_iou(Units({}), only_x)) == ["x"]


def test_chance_of_one_unit_each_is_that_of_drawing_it_twice():
    assert chance_iou(1, 1, 4) == pytest.approx(1 / 4)
    assert chance_iou(2, 2, 3) == pytest.approx((1 / 3) * 1 + (2 / 3) * (1 / 3))  # share 2 or 1
    assert chance_iou(0, 3, 5) == 0
    assert chance_iou(5, 5, 5) == 1
    assert math.isnan(chance_iou(0, 0, 5))


@pytest.mark.parametrize(("density", "expected"), [(0.01, 0.005), (0.1, 0.0526), (0.5, 1 / 3)])
def test_chance_at_a_density_is_p_over_2_minus_p(density, expected):
    n = 2_000_000  # as many weights as Wanda looks at
    assert chance_iou(round(density * n), round(density * n), n) == pytest.approx(expected, rel=0.01)


def test_chance_over_layers_is_what_drawing_inside_each_gives():
    a, b, size = (3, 1), (2, 4), (5, 9)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(5000):
        shared = sum(
            len(np.intersect1d(rng.permutation(n)[:i], np.arange(j)))
            for i, j, n in zip(a, b, size, strict=True)
        )
        drawn.append(shared / (10 - shared))
    assert chance_iou(a, b, size) == pytest.approx(np.mean(drawn), abs=0.006)
    assert chance_iou((3, 0), (3, 0), (5, 9)) > 2 * chance_iou(3, 3, 14)  # crowded into a layer, they meet


def test_more_units_than_there_are_is_refused():
    with pytest.raises(DoriError, match="not so many"):
        chance_iou(6, 1, 5)


def test_the_table_of_two_sets():
    table = agreement({"one": units(x=[1, 2], y=[0]), "two": units(x=[2, 3])}).set_index("layer")
    assert table.index.tolist() == ["x", "y", "z", "all"]
    assert set(table["a"]) == {"one"}
    assert set(table["b"]) == {"two"}
    assert table.loc["x", ["units_a", "units_b", "eligible"]].tolist() == [2, 2, 4]
    assert table.loc["all", ["units_a", "units_b", "eligible"]].tolist() == [3, 2, 13]
    assert table.loc["all", "iou"] == pytest.approx(1 / 4)
    assert table.loc["x", "chance"] == pytest.approx(1 / 6 + (4 / 6) / 3)  # both shared, or one of three
    assert table.loc["all", "chance"] == pytest.approx((1 / 6) * 2 / 3 + (4 / 6) / 4)
    assert table.loc["z", ["iou", "chance"]].isna().all()


def test_every_pair_is_there_once_by_name_or_number():
    table = agreement([units(x=[0]), units(x=[0]), units(x=[1])])
    rows = table[table["layer"] == "x"]
    assert list(zip(rows["a"], rows["b"], rows["iou"], strict=True)) == [(0, 1, 1), (0, 2, 0), (1, 2, 0)]
    assert agreement([units(x=[0])]).empty


def test_weights_agree_like_neurons():
    masks = [torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])]
    assert agreement([Units({"w": m}) for m in masks])["iou"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_two_sets_without_a_unit_do_not_agree_they_are_undefined():
    table = agreement([units(), units()])
    assert table["iou"].isna().all()
    found = agreement_estimate(table)
    assert math.isnan(found.value)
    assert found.n == 0


def test_where_an_agreement_lies_between_chance_and_ceiling():
    assert placed(0.5, 0.1, 0.9) == pytest.approx(0.5)
    assert placed(0.0, 0.1, 0.9) == pytest.approx(-0.125)
    assert math.isnan(placed(0.5, 0.5, 0.5))
    assert math.isnan(placed(0.5, 0.1, math.nan))


def pairs_of(values, **more):
    """A table of all pairs of n items, with their values in order."""
    n = round((1 + math.sqrt(1 + 8 * len(values))) / 2)
    a, b = zip(*combinations(range(n), 2), strict=True)
    return pd.DataFrame({"a": a, "b": b, "iou": values, **more})


def test_the_mean_over_pairs_with_an_interval_over_items():
    found = agreement_estimate(pairs_of([0.2, 0.4, 0.6]), resamples=400)
    assert found.value == pytest.approx(0.4)
    assert (found.low, found.high, found.n) == pytest.approx((0.2, 0.6, 3))  # two of three items: one pair
    same = agreement_estimate(pairs_of([0.5] * 10))  # an item and its copy would have entered as 1 or 0
    assert same == (0.5, 0.5, 0.5, 5)


def test_undefined_pairs_are_left_out_and_a_single_pair_has_no_interval():
    found = agreement_estimate(pairs_of([0.2, math.nan, math.nan]))
    assert (found.value, found.n) == (0.2, 2)
    assert math.isnan(found.low)


def test_items_of_several_images_are_drawn_inside_images_that_are_drawn():
    table = pd.concat([pairs_of([v] * 3, image=f"i{v}") for v in (0.2, 0.6)])  # the same names in both
    found = agreement_estimate(table, by="image", resamples=400)
    assert found.value == pytest.approx(0.4)
    assert (found.low, found.high, found.n) == pytest.approx((0.2, 0.6, 2))

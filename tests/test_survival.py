"""Work to get an image back: by hand, and against what the tests of survival must give."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dori.metrics.survival import first_success, half_returned, power, returned_curve, same_work


def times(returned: list[int], censored: list[int]) -> pd.DataFrame:
    rows = [(f"r{k}", s, True) for k, s in enumerate(returned)] + [
        (f"c{k}", s, False) for k, s in enumerate(censored)
    ]
    return pd.DataFrame(rows, columns=["id", "steps", "returned"])


def test_the_first_look_that_shows_the_image_counts_and_any_seed_does():
    rows = [
        ("a", 0, 10, False), ("a", 1, 10, False), ("a", 0, 50, False), ("a", 1, 50, True),
        ("a", 0, 100, False),
        ("b", 0, 10, False), ("b", 0, 50, False), ("b", 0, 100, False),
        ("c", 0, 100, True), ("c", 0, 10, True),
    ]  # fmt: skip
    found = first_success(pd.DataFrame(rows, columns=["id", "seed", "steps", "replicated"]))
    assert found.values.tolist() == [["a", 50, True], ["b", 100, False], ["c", 10, True]]


def test_the_curve_is_kaplan_and_meiers_by_hand():
    # 10: one of four returns, 1/4. 20: one is censored. 50: one of the two left, 1 - 3/4 x 1/2 = 5/8.
    curve = returned_curve(times([10, 50], [20, 100])).set_index("steps")["share"]
    assert curve[10] == pytest.approx(1 / 4)
    assert curve[50] == pytest.approx(5 / 8)
    assert curve[100] == pytest.approx(5 / 8)


def test_without_censoring_it_is_the_share():
    curve = returned_curve(times([10, 10, 50, 100], [])).set_index("steps")["share"]
    assert curve.to_dict() == pytest.approx({10: 0.5, 50: 0.75, 100: 1.0})
    assert half_returned(times([10, 10, 50, 100], [])) == 10


def test_half_is_infinite_where_fewer_return():
    assert half_returned(times([10], [500, 500])) == math.inf
    assert half_returned(times([], [500])) == math.inf
    assert half_returned(times([10, 200], [500])) == 200


def test_the_test_of_work():
    early, late, never = times([10] * 8, []), times([500] * 8, []), times([], [500] * 8)
    assert same_work(early, never) < 0.01
    assert same_work(early, late) < 0.01
    assert same_work(never, never) == 1.0
    assert same_work(early, early) == pytest.approx(1.0)
    assert same_work(never, early) == pytest.approx(same_work(early, never))


def test_power_by_hand_and_by_simulation():
    assert power(3, 1.0) == 0.0  # 3 against 0 of 3: p = 0.1
    assert power(4, 1.0) == 1.0  # 4 against 0 of 4: p = 0.029
    rng = np.random.default_rng(0)
    drawn = rng.binomial(8, 0.5, size=400)
    share = np.mean([stats.fisher_exact([[k, 8 - k], [0, 8]]).pvalue < 0.05 for k in drawn])
    assert power(8, 0.5) == pytest.approx(share, abs=0.07)
    assert power(8, 0.0) == 0.0
    assert power(16, 0.5) > power(8, 0.5)

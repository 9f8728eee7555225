"""Memory or the search's own work: budgets, limits and movement against controls, on hand-made tables."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORDS, write_benchmark

from dori.benchmark import load_benchmark
from dori.experiments import retention
from dori.experiments.foundations import Silencing
from dori.experiments.fragility import prompt_distance
from dori.experiments.pruned import BEFORE, HELD_OUT, NO_SEARCH, TWIN, Choice, halves
from dori.metrics.intervals import Estimate, rate_difference, wilson
from dori.mitigation.nemo import Nemo
from dori.store import RunStore
from dori.study import PRESETS, Study

CHOICE = Choice(Silencing(pd.DataFrame(), pd.DataFrame(), "NeMo z > 0.5"), Nemo(z=0.5))


@pytest.fixture
def study(tiny_model, descriptor, tmp_path):
    kinds = ["verbatim"] * 2 + ["none"] * 2
    rows = [
        {"id": f"i{n}", "prompt": f"{WORDS[n]} {WORDS[-1 - n]}", "image": f"{n}.png", "kind": kind}
        for n, kind in enumerate(kinds)
    ]
    bench = load_benchmark(write_benchmark(tmp_path / "bench", rows))
    memorized, regular = bench.select(kind="verbatim"), bench.select(kind="none")
    return Study(tiny_model, memorized, regular, descriptor, RunStore(tmp_path / "run"), PRESETS["smoke"])


def curve(target, replicated, steps):
    """One row for each image and number of steps; `replicated` holds the images' lists."""
    rows = [(f"i{k}", s, r) for k, found in enumerate(replicated) for s, r in zip(steps, found, strict=True)]
    return pd.DataFrame(rows, columns=["id", "steps", "replicated"]).assign(
        target=target, score=lambda t: t["replicated"].astype(float)
    )


CURVES = pd.concat(
    [
        curve("memorized", [[0, 1, 1], [0, 1, 1]], (0, 50, 200)),
        curve("twin", [[0, 0, 1], [0, 0, 0]], (0, 50, 200)),
        curve("held-out", [[0, 0, 0], [0, 0, 0]], (0, 50, 200)),
    ]
).astype({"replicated": bool})


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_differences_of_rates_have_the_published_intervals(a, b, low, high):
    """Newcombe 1998, table II, method 10."""
    found = rate_difference(wilson(*a), wilson(*b))
    assert found.value == pytest.approx(a[0] / a[1] - b[0] / b[1])
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_a_difference_from_nothing_says_nothing():
    found = rate_difference(wilson(3, 4), wilson(0, 0))
    assert np.isnan(found.value)
    assert found.n == 0


def test_the_budget_at_which_a_control_is_painted():
    assert retention.first_painted(CURVES) == {"twin": 200, "held-out": None}
    assert retention.first_painted(CURVES[CURVES["target"] == "memorized"]) == {}


def test_the_gap_is_memorized_minus_twin_at_the_rows_asked_for():
    assert retention.gap(CURVES, steps=50).value == 1
    assert retention.gap(CURVES, steps=200).value == 0.5
    assert np.isnan(retention.gap(CURVES, steps=500).value)
    assert np.isnan(retention.gap(CURVES[CURVES["target"] != "twin"], steps=50).value)


def searches(pruning, start, moved, replicated):
    return pd.DataFrame(
        {
            "id": [f"i{k}" for k in range(len(moved))],
            "pruning": pruning,
            "start": start,
            "moved": moved,
            "cosine": 0.5,
            "replicated": replicated,
        }
    )


SEARCHES = pd.concat(
    [
        searches("NeMo search", NO_SEARCH, [np.nan] * 2, [False, True]),
        searches("NeMo search", "prompt", [2.0, 4.0, 9.0], [True, True, False]),
        searches("NeMo search", "random", [8.0], [True]),
        searches(HELD_OUT, "prompt", [50.0], [True]),
        searches(TWIN, "prompt", [70.0], [True]),
    ]
)


def test_movement_is_of_successful_searches_in_distances_between_prompts():
    table = retention.movement_table(SEARCHES, {"moved": 2.0, "cosine": 0.3})
    row = table.loc[("NeMo search", "prompt")]
    assert (row["n"], row["L2 from the start"], row["in prompt distances"]) == (2, 3.0, 1.5)
    assert (("NeMo search", NO_SEARCH) in table.index) is False


def test_the_headline_of_movement_leaves_controls_out():
    assert retention.moved_share(SEARCHES, {"moved": 2.0}).value == 1.5
    assert retention.moved_share(SEARCHES, {"moved": 2.0}).n == 2
    assert retention.moved_share(SEARCHES.head(0), {"moved": 2.0}).n == 0


def test_the_yardstick_is_the_median_over_pairs_of_prompts(study):
    found = retention.between_prompts(study)
    a, b = study.model.encode_prompts(study.regular.prompts()).flatten(1)
    assert found["moved"] == pytest.approx(float((a - b).norm()))
    assert found["cosine"] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)))
    assert found["moved"] == prompt_distance(study)
    alone = dataclasses.replace(study, regular=study.regular.head(1))
    assert np.isnan(retention.between_prompts(alone)["moved"])


def test_memorized_images_are_searched_under_their_pruning_and_controls_on_whole_models(study):
    found = retention.budget_runs(study, CHOICE)
    assert set(found["target"]) == {"memorized", "held-out"}
    whole = retention.budget_runs(study, None)
    same = found.merge(whole, on=["target", "id", "seed", "steps"])
    equal = (same["score_x"] == same["score_y"]).groupby(same["target"]).all()
    assert equal.to_dict() == {"held-out": True, "memorized": False}


def test_the_longer_search_is_put_to_the_pruning_that_gave_back_least(study):
    other = CHOICE._replace(tried=CHOICE.tried._replace(chosen="other"))
    rows = [(CHOICE.label, True), ("other", False)]
    table = pd.DataFrame(
        [
            {"pruning": p, "start": "random", "id": "a", "seed": 0, "score": 0.5, "replicated": r}
            for p, r in rows
        ]
    )
    assert retention.hardest(table, {"A": CHOICE, "B": other}) is other
    found = retention.longer_runs(study, CHOICE)
    assert set(found["target"]) == {"memorized", "held-out"}
    assert set(found["steps"]) == {1, 2}
    assert set(found["init"]) == {"random"}


def test_limits_are_put_to_the_same_targets(study):
    found = retention.limited_runs(study, CHOICE)
    assert list(dict.fromkeys(found["limit"])) == ["1 token", "4 tokens", "radius 0.5"]
    assert set(found["target"]) == {"memorized", "held-out"}
    twin = dataclasses.replace(study, seed=1)  # any other study serves
    with_twin = dataclasses.replace(study)
    with_twin.__dict__["twin"] = twin
    assert set(retention.limited_runs(with_twin, CHOICE)["target"]) == {"memorized", "twin"}


def test_without_regular_prompts_only_the_number_of_tokens_is_limited(study):
    alone = dataclasses.replace(study, regular=study.regular.head(0))
    assert set(retention.limited_runs(alone, None)["limit"]) == {"1 token", "4 tokens"}


def test_words_are_tried_on_each_pruning_beside_the_prompt_alone(study):
    chosen = {"NeMo": CHOICE}
    table = retention.words_runs(study, chosen)
    pairs = set(zip(table["weights"], table["prompt"], strict=True))
    assert pairs == {(w, p) for w in (BEFORE, CHOICE.label) for p in ("alone", "with tokens")}
    assert table[table["prompt"] == "with tokens"]["steps"].nunique() == 1
    shown = retention.words_found(table, halves(study)[1])
    assert shown.index.tolist() == [BEFORE, CHOICE.label]
    assert shown["tokens found"].map(bool).all()
    assert set(shown["prompt"]) == set(halves(study)[1].prompts())


def test_the_headline_of_words_is_of_the_chosen_pruning_with_tokens():
    table = pd.DataFrame(
        {
            "id": ["a", "a", "a", "a"],
            "weights": [BEFORE, BEFORE, CHOICE.label, CHOICE.label],
            "prompt": ["alone", "with tokens"] * 2,
            "replicated": [True, True, True, False],
        }
    )
    found = retention.words_rates(table, {"NeMo": CHOICE})
    assert {name: e.value for name, e in found.items()} == {"mr_nemo_unlearndiff": 0}
    assert isinstance(found["mr_nemo_unlearndiff"], Estimate)

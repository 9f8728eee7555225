"""Many triggers of one image: other starts, other draws, and scores that belong to the right one."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from dori import drawing
from dori.attack import Attack
from dori.drawing import Trigger, generate_and_score, score_triggers
from dori.errors import DoriError
from dori.experiments import searches
from dori.experiments.fragility import attack_table
from dori.experiments.triggers import Found, find_triggers, score_found, successful, trigger_rate
from dori.metrics.intervals import wilson
from dori.mitigation.units import Units
from dori.store import RunStore

RANDOM = Attack("random", 2)


def elsewhere(study, name, **changes):
    return dataclasses.replace(study, store=RunStore(study.store.directory / name), **changes)


def all_neurons(model):
    return Units({n: torch.ones(x.out_features).bool() for n, x in model.value_layers(up=True).items()})


@pytest.fixture
def searched(monkeypatch):
    """Number of searches of each batch."""
    calls, attack = [], searches.dori_attack

    def counted(model, latents, *more, **some):
        calls.append(len(latents))
        return attack(model, latents, *more, **some)

    monkeypatch.setattr(searches, "dori_attack", counted)
    return calls


@pytest.mark.parametrize("init", ["prompt", "random", "regular"])
def test_start_0_is_the_search_of_chapter_2(study, searched, init):
    plan = Attack(init, 2)
    once, _ = searches.run_attacks(study, study.memorized, plan, {})
    found = find_triggers(study, study.memorized, plan, 1)
    assert sum(searched) == 3  # by run_attacks alone
    assert [one.image for one in found] == study.memorized.ids
    for one in found:
        assert torch.equal(one.start, once[one.image].tensors["start"])
        assert torch.equal(one.embeds, once[one.image].tensors["2"])


def test_a_search_is_kept_under_what_decides_its_start_and_not_under_its_digits(study):
    find_triggers(study, study.memorized.head(1), RANDOM, 2)
    seed = drawing.noise_seed(study.seed, "attack/random/i0", 0)
    image = study.memorized.images(["i0"], size=16)[0]
    decides = {"image": drawing.digest(image), "noise": seed, "units": None, **drawing.decided_by(study)}
    decides |= {"init": "random", "lr": 0.1, "batch": 8, "free_tokens": None, "radius": None}
    assert study.store.has("attack", {**decides, "start": ("", seed), "step": 2})


@pytest.mark.parametrize("init", ["random", "regular"])
def test_other_numbers_start_elsewhere(study, init):
    found = find_triggers(study, study.memorized.head(1), Attack(init, 1), 3)
    assert [one.name for one in found] == [f"i0 {init} {k}" for k in range(3)]
    starts = torch.stack([one.start for one in found]).flatten(1)
    assert torch.pdist(starts).min() > 0.1


def test_regular_prompts_repeat_only_when_all_have_been_started_from(study):
    found = find_triggers(study, study.memorized.head(1), Attack("regular", 0), 5)
    encoded = study.model.encode_prompts(study.regular.prompts()).flatten(1)
    nearest = torch.cdist(torch.stack([one.start for one in found]).flatten(1), encoded).argmin(1)
    assert sorted(nearest[:3].tolist()) == [0, 1, 2]
    assert len(found) == 5


@pytest.mark.parametrize(
    ("seeds", "n", "expected"), [([4], 3, 4), ([4, 7], 3, 8), ([0, 2, 5], 3, 7), ([0, 1, 3], 2, 3)]
)
def test_a_taken_remainder_is_passed_over(seeds, n, expected):
    assert searches._untaken(seeds, n) == expected


def test_from_the_prompt_every_search_starts_at_the_prompt_and_ends_elsewhere(study):
    a, b = find_triggers(study, study.memorized.head(1), Attack("prompt", 2), 2)
    assert torch.equal(a.start, b.start)
    assert not torch.equal(a.embeds, b.embeds)


def test_other_draws_share_the_start_and_end_elsewhere(study):
    found = find_triggers(study, study.memorized.head(1), RANDOM, 2, draws=2)
    assert [(one.number, one.draw) for one in found] == [(k, j) for k in range(2) for j in range(3)]
    assert found[1].name == "i0 random 0, draws 1"
    for k in range(2):
        first, *others = [one for one in found if one.number == k]
        assert all(torch.equal(one.start, first.start) for one in others)
    ends = torch.stack([one.embeds for one in found]).flatten(1)
    assert torch.pdist(ends).min() > 1e-3


def test_more_searches_are_added_to_those_that_lie_there(study, searched):
    find_triggers(study, study.memorized, RANDOM, 2)
    find_triggers(study, study.memorized, RANDOM, 3, draws=1)
    assert sum(searched) == 3 * 2 + 3 * (3 * 2 - 2)


def test_a_second_run_computes_nothing(study, monkeypatch):
    def run():
        return score_found(study, study.memorized, find_triggers(study, study.memorized, RANDOM, 2, draws=1))

    first, computed = run(), study.store.computed
    monkeypatch.setattr(searches, "dori_attack", None)
    monkeypatch.setattr(drawing, "_draw", None)
    pd.testing.assert_frame_equal(first, run())
    assert study.store.computed == computed


def test_scores_do_not_depend_on_the_company(study, searched):
    two = study.memorized.head(2)
    together = score_found(study, two, find_triggers(study, two, RANDOM, 3, draws=1))
    assert searched == [12]
    alone = elsewhere(study, "alone", images_at_once=1)
    apart = score_found(alone, two, find_triggers(alone, two, RANDOM, 3, draws=1))
    assert searched[1:] == [1] * 12
    assert together["trigger"].equals(apart["trigger"])
    np.testing.assert_allclose(together["score"], apart["score"], atol=1e-3)
    np.testing.assert_allclose(together["moved"], apart["moved"], atol=1e-3)


def test_start_0_is_scored_as_the_attack_of_chapter_2(study):
    table = attack_table(study, study.memorized, RANDOM)
    scores = score_found(study, study.memorized, find_triggers(study, study.memorized, RANDOM, 2))
    first = scores[scores["number"] == 0].reset_index(drop=True)
    columns = ["id", "seed", "score", "replicated", "moved", "cosine", "copies", "split"]
    pd.testing.assert_frame_equal(first[columns], table[columns])


def test_each_trigger_of_a_row_has_its_own_scores(study):
    """The row's own prompt among them is scored as the prompt is, wherever it stands in the list."""
    item, other = study.memorized.ids[:2]
    own, far = (study.model.encode_prompts([p])[0] for p in study.memorized.prompts()[:2])
    triggers = [Trigger(item, far), Trigger(other, far), Trigger(item, own), Trigger(item, far + 1)]
    table = score_triggers(study, study.memorized, triggers, numbered=True)
    assert table["trigger"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert table["id"].tolist() == [item] * 2 + [other] * 2 + [item] * 4
    plain = generate_and_score(study, study.memorized).set_index("id")["score"]
    scores = table.groupby("trigger")["score"].apply(list)
    np.testing.assert_allclose(scores[1], plain[other], atol=1e-3)
    np.testing.assert_allclose(scores[2], plain[item], atol=1e-3)
    assert not np.allclose(scores[0], scores[2], atol=1e-3)
    assert not np.allclose(scores[3], scores[2], atol=1e-3)


def test_the_table_of_one_trigger_a_row_has_the_columns_it_had(study):
    columns = ["id", "seed", "score", "replicated", "kind", "split", "copies", "group"]
    assert list(generate_and_score(study, study.memorized)) == columns


def test_a_row_that_cannot_be_read_takes_all_its_triggers_with_it(study, caplog):
    found = find_triggers(study, study.memorized, RANDOM, 2)
    (study.memorized.path.parent / study.memorized.table["image"].iloc[1]).write_bytes(b"no picture")
    scores = score_found(study, study.memorized, found)
    assert set(scores["id"]) == {"i0", "i2"}
    assert list(scores.attrs["skipped"]) == ["i1"]
    assert len(caplog.records) == 1
    with pytest.raises(DoriError, match="none of 1 rows"):
        score_found(study, study.memorized, found[2:4])
    assert [one.image for one in find_triggers(study, study.memorized, RANDOM, 2)] == ["i0"] * 2 + ["i2"] * 2


def test_a_search_without_a_finite_loss_leaves_the_row_its_others(study, monkeypatch, caplog):
    attack = searches.dori_attack

    def broken(model, latents, *more, **some):
        latents[1] = float("nan")
        return attack(model, latents, *more, **some)

    monkeypatch.setattr(searches, "dori_attack", broken)
    found = find_triggers(study, study.memorized.head(1), RANDOM, 3)
    assert [one.number for one in found] == [0, 2]
    assert [r.getMessage() for r in caplog.records] == [
        "i0, start 1, draws 0: the loss is not finite; left out"
    ]


def test_units_are_off_for_the_trigger_they_are_named_for(study):
    one = study.memorized.head(1)
    found = find_triggers(study, one, RANDOM, 2)
    whole = score_found(study, one, found)
    pruned = score_found(study, one, found, units={"i0 random 1": all_neurons(study.model)})
    same = np.isclose(whole["score"], pruned["score"], atol=1e-4)
    assert same[:2].all()
    assert not same[2:].all()  # a cut may leave one image of a random model as it was


def test_distances_are_those_of_start_end_and_prompt(study):
    one = study.memorized.head(1)
    prompt = study.model.encode_prompts(one.prompts())[0]
    start, end = prompt.clone(), prompt.clone()
    start[0, 0] += 3
    end[0, 1] += 4
    table = score_found(study, one, [Found("by hand", "i0", "random", 7, 2, start, end)])
    assert len(table) == 2
    row = table.iloc[0]
    assert row[["trigger", "init", "number", "draw"]].tolist() == ["by hand", "random", 7, 2]
    found = row[["moved", "start_distance", "end_distance"]].astype(float)
    np.testing.assert_allclose(found, [5, 3, 4], rtol=1e-5)


def test_a_name_is_given_once(study):
    found = find_triggers(study, study.memorized.head(1), RANDOM, 1)
    with pytest.raises(DoriError, match="two triggers are called 'i0 random 0'"):
        score_found(study, study.memorized, [*found, *found])


@pytest.mark.parametrize(("count", "draws"), [(0, 0), (1, -1)])
def test_no_searches_are_a_mistake(study, count, draws):
    with pytest.raises(DoriError, match="at least 1 start"):
        find_triggers(study, study.memorized, RANDOM, count, draws=draws)


def scores_of(replicated):
    """{trigger: one bool per seed}; the image is the trigger's first letter."""
    rows = [(t, t[0], seed, hit) for t, hits in replicated.items() for seed, hit in enumerate(hits)]
    return pd.DataFrame(rows, columns=["trigger", "id", "seed", "replicated"])


def test_a_trigger_succeeds_by_one_seed():
    found = [Found(n, "a", "random", 0, 0, torch.zeros(1, 1), torch.zeros(1, 1)) for n in ("a0", "a1", "a2")]
    scores = scores_of({"a0": [False, True], "a1": [False, False]})
    assert successful(found, scores) == [found[0]]


def test_the_rate_of_one_image_counts_triggers():
    scores = scores_of({"a0": [False, True], "a1": [False, False], "a2": [True, True], "a3": [True, False]})
    assert trigger_rate(scores) == wilson(3, 4)


def test_the_rate_of_several_images_draws_images():
    """All of a's triggers and none of b's: triggers drawn alone would make the interval narrow."""
    scores = scores_of({f"a{k}": [True] for k in range(50)} | {f"b{k}": [False] for k in range(50)})
    rate = trigger_rate(scores)
    assert (rate.value, rate.low, rate.high, rate.n) == (0.5, 0, 1, 2)

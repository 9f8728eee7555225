"""Chapter 3's memories on the small study: what is gathered, compared, cut and shown of them."""

import dataclasses
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORDS, write_benchmark

from dori.attack import Attack
from dori.benchmark import load_benchmark
from dori.errors import DoriError
from dori.experiments import locality_activations as activations
from dori.experiments import locality_cards as cards
from dori.experiments import locality_dose as dose
from dori.experiments import locality_embeddings as embeddings
from dori.experiments import locality_levels as levels
from dori.experiments import locality_transfer as transfer
from dori.experiments import locality_weights as weights
from dori.experiments import memories
from dori.experiments.memories import ORDINARY, PLANTED, Memory
from dori.experiments.triggers import find_triggers, score_found
from dori.mitigation.nemo import Nemo
from dori.mitigation.wanda import Wanda
from dori.store import RunStore
from dori.study import PRESETS, Study

INDEX = ["level", "memory", "image", "index"]


@pytest.fixture
def study(tiny_model, descriptor, tmp_path):
    rows = [
        {"id": f"i{n}", "prompt": f"{WORDS[n]} {WORDS[-1 - n]}", "image": f"{n}.png", "kind": kind}
        for n, kind in enumerate(["verbatim"] * 2 + ["none"] * 4)
    ]
    bench = load_benchmark(write_benchmark(tmp_path / "bench", rows))
    memorized, regular = bench.select(kind=["verbatim"]), bench.select(kind="none")
    return Study(tiny_model, memorized, regular, descriptor, RunStore(tmp_path / "run"), PRESETS["smoke"])


def memory(study, item, kind=ORDINARY, *, works=True, count=3):
    """An image with searches of one step, counted as triggers or not."""
    prompts = study.memorized.only([item])
    found = find_triggers(study, prompts, Attack("random", 1), count)
    return Memory(kind, study, prompts, found, score_found(study, prompts, found).assign(replicated=works))


@pytest.fixture
def pair(study):
    return [memory(study, "i0"), memory(study, "i1")]


def ending_at(one, ends):
    """The memory with its triggers moved to given embeddings."""
    found = [dataclasses.replace(f, embeds=y) for f, y in zip(one.found, ends, strict=True)]
    return dataclasses.replace(one, found=found)


def test_a_trigger_is_what_brings_the_image_back(study):
    assert len(memory(study, "i0").triggers()) == 3
    assert len(memory(study, "i0").triggers(n=2)) == 2
    assert memory(study, "i0", works=False).triggers() == []
    assert memory(study, "i0").triggers("regular") == []


def test_searches_are_counted_by_memory_and_start_and_the_twin_apart(study, pair):
    lost = memory(study, "i1", works=False)
    table = memories.success([pair[0], lost], lost.scores)
    assert table.loc[(ORDINARY, "random numbers"), "found"] == "0.50 [0.00, 1.00]"
    assert table.loc[(ORDINARY, "random numbers"), "searches"] == 6
    assert table.loc[("the twin", "random numbers"), "found"].startswith("0.00 [0.00, ")
    rates = memories.success_rates([pair[0], lost], lost.scores)
    assert (rates["mr_triggers_random"].value, rates["mr_triggers_random"].n) == (0.5, 2)
    assert rates["mr_triggers_twin"].value == 0


def test_another_model_than_the_bundled_one_has_no_planted_memories(study):
    assert memories.planted(study) == []


def test_searches_that_all_go_one_way_have_index_one_and_opposite_ones_less(pair):
    one, way = pair[0], torch.ones_like(pair[0].found[0].start)
    together = ending_at(one, [f.start + (k + 1) * way for k, f in enumerate(one.found)])
    assert embeddings.one_way([together]) == [pytest.approx(1.0)]
    apart = ending_at(one, [one.found[0].start + way, one.found[1].start - way, one.found[2].start + way])
    assert embeddings.one_way([apart]) == [pytest.approx(-1 / 3)]


def test_the_way_of_the_others_is_added_to_each_start(pair):
    one, way = pair[0], torch.ones_like(pair[0].found[0].start)
    moved = ending_at(one, [f.start + k * way for k, f in enumerate(one.found, 1)])  # 1, 2, 3 ways long
    table = embeddings.carried_over([moved])
    assert set(table["way"]) == {"mean way of the others", "the same, as long as one way"}
    plain = table[table["way"] == "mean way of the others"].groupby("number")["moved"].first()
    length = float(way.norm())
    assert plain.tolist() == pytest.approx([2.5 * length, 2 * length, 1.5 * length], rel=1e-4)


def test_identical_triggers_meet_everywhere(pair):
    same = ending_at(pair[0], [pair[0].found[0].embeds] * 3)
    table = activations.meeting([same], pair)
    assert table["index"].tolist() == pytest.approx([1.0] * len(table), abs=1e-6)
    assert set(table["kind"]) == {"value", "feed-forward", "feed-forward output", "mid", "output"}


def test_the_profile_has_every_set_at_every_layer(pair):
    table = activations.profile(pair)
    sets = {activations.ONE, activations.DIFFERENT, activations.MEMORIZED, activations.REGULAR}
    assert (
        table.groupby(["layer", "measure"])["set"].apply(set).tolist()
        == [sets] * table.groupby(["layer", "measure"]).ngroups
    )


def test_the_ratio_of_activations_is_a_median_over_layers_and_a_mean_over_images(pair):
    table = activations.ratios(pair)
    sketches, labels = activations.looked_at(pair)
    by_hand = []
    for memory in pair:
        own = [i for i, name in enumerate(labels) if name == memory.id]
        prompts = [i for i, name in enumerate(labels) if name == activations.MEMORIZED]
        layers = [n for n in sketches.flat if activations.kind(n) == "value"]
        shares = []
        for layer in layers:
            apart = sketches.distances(layer, "L2")
            mean = [
                np.mean([float(apart[a, b]) for a, b in combinations(some, 2)]) for some in (own, prompts)
            ]
            shares.append(mean[0] / mean[1])
        by_hand.append(np.median(shares))
    assert activations.activation_ratio(table, only="value").value == pytest.approx(
        np.mean(by_hand), rel=1e-4
    )
    assert activations.activation_ratio(table).n == len(pair)


def test_units_of_a_trigger_are_found_once(study, pair):
    found, setting = pair[0].triggers(), Wanda(0.1)
    first = weights.units_of(study, found, setting)
    computed = study.store.computed
    assert weights.units_of(study, found, setting) == first
    assert study.store.computed == computed
    assert set(first) == {f.name for f in found}


def test_triggers_are_compared_with_each_other_and_one_with_itself(pair):
    wanda = weights.agreements(pair[0], Wanda(0.1))
    assert set(wanda["between"]) == {"triggers", weights.NOISE, weights.DRAWS}
    nemo = weights.agreements(pair[0], Nemo(z=1.0))
    assert set(nemo["between"]) == {"triggers", weights.NOISE}
    whole = nemo[(nemo["between"] == weights.NOISE) & (nemo["layer"] == "all")]
    assert len(whole) == len(weights.compared(pair[0], Nemo())), "a ceiling for each trigger"
    assert set(whole["iou"].dropna()) <= {1.0}, "a fixed z asks the noise nothing"


def test_the_ways_of_other_images_are_compared_with_those_of_one(pair):
    along, across = torch.zeros(2, *pair[0].found[0].start.shape)
    along[0, 0], across[0, 1] = 1, 1
    first = ending_at(pair[0], [f.start + along for f in pair[0].found])
    apart = ending_at(pair[1], [f.start + across for f in pair[1].found])
    same = ending_at(pair[1], [f.start + 2 * along for f in pair[1].found])
    assert embeddings.other_ways([first, apart]) == pytest.approx([0, 0], abs=1e-5)
    assert embeddings.other_ways([first, same]) == pytest.approx([1, 1], abs=1e-5)
    assert np.isnan(embeddings.other_ways([first])).all(), "nothing to compare with"


def test_units_of_different_images_are_compared_by_kind(study, pair):
    table = weights.across_images(pair)
    assert set(zip(table["a"], table["b"], strict=True)) == {("i0", "i1")}
    assert set(table["setting"]) == set(weights.settings(study))
    sets = [weights.units_of(study, m.triggers(n=1), weights.WANDA) for m in pair]
    one, other = (next(iter(s.values())) for s in sets)
    whole = table[(table["layer"] == "all") & (table["setting"] == weights.label(weights.WANDA))]
    assert whole["iou"].item() == one.iou(other)
    kinds = weights.across_images([pair[0], dataclasses.replace(pair[1], kind=PLANTED)])
    assert kinds.empty, "one image of each kind has none to compare with"
    assert np.isnan(weights.strangers_iou(kinds, weights.label(weights.WANDA), ORDINARY))


def test_a_cut_is_named_by_whom_it_was_made_for(pair):
    table = transfer.transfers(pair, Wanda(0.1))
    one = table[table["image"] == "i0"]
    made = one.set_index(["a", "b"])["made_for"]
    assert made["0", "0"] == transfer.OWN
    assert made["0", "1"] == transfer.SAME
    assert made["prompt", "0"] == transfer.BY_PROMPT
    assert made["of i1", "0"] == transfer.OTHER


def test_rates_leave_out_the_prompt(pair):
    table = transfer.transfers(pair, Wanda(0.1)).assign(rate=1.0)
    table.loc[(table["a"] == "prompt") | (table["b"] == "prompt"), "rate"] = 0.0
    rates = transfer.rates(table)
    assert rates[[transfer.OWN, transfer.SAME, transfer.OTHER]].to_numpy().tolist() == [[1.0] * 3] * 2


def test_a_cut_that_stops_one_image_alone_shows_in_the_headlines(pair):
    table = transfer.transfers(pair, Wanda(0.1))
    table = table.assign(rate=(table["made_for"] == transfer.OTHER).astype(float))
    found = transfer.headlines(table)
    assert (found["mr_transfer_wanda"].value, found["mr_other_image_wanda"].value) == (0.0, 1.0)


def test_every_image_of_the_cards_has_the_same_labels(study, pair):
    fewer = memory(study, "i1", count=1)
    found = cards.cards([pair[0], fewer])
    assert [list(some) for some in found.values()] == [["random numbers, 1"]] * 2
    assert all(card["alt"] for some in found.values() for card in some.values())
    assert cards.cards([memory(study, "i0", works=False)]) == {}
    assert cards.limits({}) == (1.05, 1.05)


def test_without_a_column_of_copies_the_dose_has_one_level(study, pair):
    known = pd.DataFrame([("embeddings", ORDINARY, m.id, 0.25) for m in pair], columns=INDEX)
    table = dose.dose(dose.by_copies(study, pair), pair, known)
    assert set(table["copies"]) == {0}
    assert set(table["diagnostic"]) >= {"searches that work", "index: embeddings"}
    assert table.set_index("diagnostic").loc["index: embeddings", "value"] == 0.25
    assert table["low"].isna().sum() >= 3  # two images give no interval


def test_memories_with_fewer_copies_are_asked_on_every_level_but_two(pair, monkeypatch):
    few = dataclasses.replace(pair[1])
    monkeypatch.setattr(dose, "_levels", lambda study: {4: [few]})
    known = pd.DataFrame([("embeddings", ORDINARY, "i0", 0.25)], columns=INDEX)
    groups = dose.by_copies(pair[0].study, [pair[0]])
    table = dose.dose(groups, [pair[0]], known)
    asked = table[table["copies"] == 4].set_index("diagnostic")["value"]
    assert {f"index: {level}" for level in dose.DOSED} <= set(asked.index)
    assert asked["index: embeddings"] == pytest.approx(embeddings.one_way([few])[0])
    assert set(dose.needed(groups).index) == {(4, "i1"), (0, "i0")}
    stopped = 1 - transfer.rates(transfer.transfers([few], others=[pair[0]]))[transfer.SAME]
    assert asked["index: transfer (Wanda)"] == pytest.approx(stopped.item())


def test_a_memory_without_triggers_leaves_only_the_share_of_searches(study):
    lost = [memory(study, "i0", works=False)]
    groups = dose.by_copies(study, lost)
    table = dose.dose(groups, lost, pd.DataFrame(columns=INDEX))
    assert table["diagnostic"].tolist() == ["searches that work"]
    assert np.isclose(table["value"], 0).all()
    assert dose.needed(groups).empty


def test_a_planted_memory_needs_the_model_it_was_planted_in(tiny_model):
    from dori.testbed.planted import is_base, planted_model

    assert not is_base(tiny_model)
    with pytest.raises(DoriError, match="does not fit"):
        planted_model(tiny_model, "plant-00")


def test_kinds_of_memories_have_a_row_each(study, pair):
    table = embeddings.ways([pair[0], dataclasses.replace(pair[1], kind=PLANTED)])
    assert table.index.get_level_values("memory").tolist() == [ORDINARY, PLANTED]


def test_what_is_said_of_the_copies_looks_at_the_intervals():
    rows = [
        (1, "a", 0.1, 0.0, 0.2, 6), (16, "a", 0.5, 0.1, 0.9, 6), (128, "a", 0.9, 0.8, 1.0, 6),
        (1, "b", 0.5, 0.3, 0.7, 6), (128, "b", 0.6, 0.4, 0.8, 6),
        (4, "c", 0.5, np.nan, np.nan, 2), (128, "c", 0.9, 0.8, 1.0, 6),
        (1, "d", np.nan, np.nan, np.nan, 0), (128, "d", 0.9, 0.8, 1.0, 6),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["copies", "diagnostic", *levels.FIGURE])
    assert dose.dose_said(table) == (
        "From the fewest copies to the most: *a* 0.10 [0.00, 0.20] to 0.90 [0.80, 1.00] (1 to 128 copies); "
        "*b* 0.50 [0.30, 0.70] to 0.60 [0.40, 0.80] (1 to 128 copies; not certain); "
        "*c* 0.50 to 0.90 [0.80, 1.00] (4 to 128 copies; not certain)."
    )
    assert dose.dose_said(table.tail(1)) == ""

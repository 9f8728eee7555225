"""Chapter 2's tables: settings chosen on one half, reported on the other; controls; what cannot be had."""

import dataclasses

import pandas as pd
import pytest
from conftest import WORDS, write_benchmark

from dori.attack import INITS
from dori.benchmark import load_benchmark
from dori.errors import DoriError
from dori.experiments import cuts, pruned
from dori.experiments.foundations import Silencing
from dori.experiments.pruned import BEFORE, HELD_OUT, NEMO, NO_SEARCH, WANDA_1, Choice
from dori.experiments.pruned_sizes import SIZES
from dori.experiments.selections import named
from dori.metrics.intervals import Estimate, wilson
from dori.mitigation.nemo import Nemo
from dori.mitigation.wanda import Wanda
from dori.store import RunStore
from dori.study import PRESETS, Study


def rows(kinds):
    return [
        {"id": f"i{n}", "prompt": f"{WORDS[n]} {WORDS[-1 - n]}", "image": f"{n}.png", "kind": kind}
        for n, kind in enumerate(kinds)
    ]


@pytest.fixture
def study(tiny_model, descriptor, tmp_path):
    bench = load_benchmark(write_benchmark(tmp_path / "bench", rows(["verbatim"] * 4 + ["none"] * 4)))
    memorized, regular = bench.select(kind=["verbatim", "template"]), bench.select(kind="none")
    preset = dataclasses.replace(PRESETS["smoke"], memorized=4)
    return Study(tiny_model, memorized, regular, descriptor, RunStore(tmp_path / "run"), preset)


@pytest.fixture
def alone(study):
    """The study of a benchmark without regular prompts."""
    return dataclasses.replace(study, regular=study.regular.head(0))


def picked(setting):
    """A choice without its trials."""
    return Choice(Silencing(pd.DataFrame(), pd.DataFrame(), named(setting)["setting"]), setting)


def scored(pruning, start, scores, **more):
    """Rows of `pruned.runs`: one image for each score."""
    ids = [f"i{k}" for k in range(len(scores))]
    return pd.DataFrame({"id": ids, "score": scores, "pruning": pruning, "start": start, **more}).assign(
        replicated=lambda t: t["score"] > 0.7
    )


def test_every_preset_says_how_much_the_chapter_computes():
    assert set(SIZES) == set(PRESETS)
    assert all(set(size.candidates) == {"NeMo", "Wanda"} for size in SIZES.values())
    assert {50, 200} <= set(SIZES["quick"].budgets)  # the rules of data/expected.yml ask for these
    assert 4 in SIZES["quick"].tokens


def test_settings_are_chosen_on_one_half_and_reported_on_the_other(study):
    validation, test = (set(half.ids) for half in pruned.halves(study))
    assert not validation & test
    chosen, missing = pruned.choices(study)
    assert not missing
    for choice in chosen.values():
        assert set(choice.tried.pruned["id"]) == validation
    assert set(pruned.runs(study, chosen)["id"]) <= test | set(study.regular.ids)


def test_the_setting_of_a_choice_is_the_one_its_label_names(study):
    choice = pruned.choose(study, [Nemo(z=3.0), Nemo(z=0.5)])
    assert named(choice.setting)["setting"] == choice.label
    assert pruned.trials({"NeMo": choice})["chosen"].to_dict()[choice.label] == "yes"


def test_the_table_has_each_pruning_from_each_start_and_the_controls(study):
    chosen = {"Wanda": picked(Wanda(0.1))}
    found = pruned.runs(study, chosen)
    keys = set(zip(found["pruning"], found["start"], strict=True))
    assert keys == {
        (BEFORE, NO_SEARCH),
        (WANDA_1, NO_SEARCH),
        (WANDA_1, "prompt"),  # at the smoke preset, what was not chosen is searched from the prompt alone
        ("Wanda 10 %", NO_SEARCH),
        *(("Wanda 10 %", init) for init in INITS),
        *((HELD_OUT, init) for init in INITS),
    }
    assert set(found.loc[found["pruning"] == HELD_OUT, "id"]) <= set(study.regular.ids)


def test_settings_of_a_method_that_cannot_be_used_are_no_rows(study):
    assert list(pruned.reported(study, {"Wanda": picked(Wanda(0.3))})) == [
        "Wanda 1 %",
        "Wanda 10 %",
        "Wanda 30 %",
    ]


def test_without_regular_prompts_a_sentence_says_what_is_left_out(alone):
    chosen, missing = pruned.choices(alone)
    assert set(chosen) == {"Wanda"}
    text = pruned.left_out(alone, missing)
    assert "NeMo cannot be used here" in text
    assert "no prompts of kind `none`" in text
    assert "no twin" in text
    found = pruned.runs(alone, chosen)
    assert set(found["pruning"]) == {BEFORE, "Wanda 1 %", "Wanda 10 %"}
    assert "regular" not in set(found["start"])
    assert cuts.utility(alone, chosen, cuts.units_off(alone, chosen)).empty


def test_no_method_at_all_is_one_clear_line(alone, monkeypatch):
    few = dataclasses.replace(SIZES["smoke"], candidates={"NeMo": (Nemo(z=1.0),)})
    monkeypatch.setitem(SIZES, "smoke", few)
    with pytest.raises(DoriError, match=r"NeMo cannot be used: .*regular captions"):
        pruned.choices(alone)


def test_the_papers_figures_stand_beside_ours():
    table = pd.concat([scored(BEFORE, NO_SEARCH, [0.9, 0.8]), scored(NEMO, "prompt", [0.9, 0.1, 0.2, 0.9]),
                       scored(NEMO, "random", [0.1])])  # fmt: skip
    shown = pruned.paper_table(table)
    assert shown.loc[(BEFORE, NO_SEARCH), "MR, paper"] == "0.98"
    assert shown.loc[(NEMO, "prompt"), "MR here"] == "0.50 [0.15, 0.85]"
    assert shown.loc[(NEMO, "prompt"), "MR, paper"] == "0.99"
    assert shown.loc[(NEMO, "random"), "MR, paper"] == "–"
    assert shown["n"].tolist() == [2, 4, 1]


def test_headlines_are_of_the_chosen_setting_and_of_rows_that_were_to_be_had():
    table = pd.concat([scored(BEFORE, NO_SEARCH, [0.9]), scored("Wanda 30 %", NO_SEARCH, [0.1]),
                       scored("Wanda 30 %", "prompt", [0.9]), scored(WANDA_1, "prompt", [0.1]),
                       scored(HELD_OUT, "prompt", [0.2])])  # fmt: skip
    figures = pruned.headline_rates(table, {"Wanda": picked(Wanda(0.3))})
    values = {name: estimate.value for name, estimate in figures.items()}
    assert values == {"mr_original": 1, "mr_wanda": 0, "mr_wanda_attack_prompt": 1, "mr_attack_heldout": 0}
    lines = pruned.rate_lines(figures, {"Wanda": picked(Wanda(0.3))})
    assert lines.startswith("- Wanda 30 %: the prompt 0.0 %")
    assert len(lines.splitlines()) == 2


def test_the_choice_that_silences_more_is_searched_at_length():
    def tried(label, replicated):
        pruned_half = pd.DataFrame({"id": ["a", "b"], "setting": label, "replicated": replicated})
        return Choice(Silencing(pruned_half, pd.DataFrame(), label), Nemo())

    loud, silent = tried("NeMo search", [True, True]), tried("Wanda 10 %", [True, False])
    assert pruned.most_silent({"NeMo": loud, "Wanda": silent}) is silent
    assert pruned.most_silent({"NeMo": silent, "Wanda": silent}) is silent


def test_a_figure_that_is_not_there_is_said_to_be_missing():
    assert pruned.shown(Estimate(float("nan"), 0, 1, 0)) == "not measured here"
    assert pruned.shown(Estimate(0.5, float("nan"), float("nan"), 1)) == "0.5, n = 1"
    assert pruned.shown(wilson(1, 1)) == str(wilson(1, 1))
    assert pruned.shown(wilson(1, 1), percent=True) == wilson(1, 1).percent


def test_the_layers_table_has_a_row_for_each_prompt_and_layer(study):
    off = cuts.units_off(study, {"NeMo": picked(Nemo(z=0.5))})
    table = cuts.layers(off)
    assert set(table["setting"]) == {"NeMo z > 0.5"}
    assert len(table) == len(pruned.halves(study)[1]) * 7
    assert table["units"].sum() == sum(u.count for u in off["NeMo z > 0.5"].values())


def test_a_row_of_images_shows_the_best_of_each_stage(study):
    choice = picked(Nemo(z=0.5))
    (entry,) = cuts.stages(study, choice)
    assert list(entry["images"]) == ["training image", "as trained", "pruned", "pruned + search"]
    table = pruned.runs(study, {"NeMo": choice})
    best = table[table["id"] == pruned.halves(study)[1].ids[0]]
    best = best.groupby(["pruning", "start"])["score"].max()
    assert entry["scores"]["as trained"] == pytest.approx(best[(BEFORE, NO_SEARCH)])
    assert entry["scores"]["pruned"] == pytest.approx(best[("NeMo z > 0.5", NO_SEARCH)])
    assert entry["scores"]["pruned + search"] == pytest.approx(best[("NeMo z > 0.5", "prompt")])
    assert cuts.stages(study, None) == []


def test_a_mended_model_that_is_shipped_adds_a_last_stage(study, monkeypatch):
    choice = picked(Nemo(z=0.5))
    assert cuts.mended_study(study) is None, "none is shipped for this model"
    monkeypatch.setattr(cuts, "mended_study", lambda study: study)  # a model that nothing was done to
    (entry,) = cuts.stages(study, choice, mended=True)
    assert list(entry["images"])[-1] == list(entry["scores"])[-1] == cuts.MENDED
    (plain,) = cuts.stages(study, choice)
    assert cuts.MENDED not in plain["images"]
    assert {**entry["scores"], cuts.MENDED: 0} == {**plain["scores"], cuts.MENDED: 0}


def test_utility_has_each_pruning_and_all_cuts_at_once(study):
    chosen = {"NeMo": picked(Nemo(z=0.5))}
    table = cuts.utility(study, chosen, cuts.units_off(study, chosen))
    assert table["label"].tolist() == [BEFORE, "NeMo z > 0.5", "NeMo z > 0.5, all cuts"]
    shown = cuts.utility_shown(table)
    assert shown.columns.tolist() == [
        "n",
        "copy score within a prompt",
    ]  # what a CLIP would be needed for is left out
    assert shown.index.tolist() == table["label"].tolist()
    assert pd.isna(cuts.alignment_lost(table, chosen["NeMo"]).value)  # no CLIP knows these images

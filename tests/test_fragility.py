"""Chapter 2's tables: what is measured, that it is found again, and that the work's order does not matter."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from conftest import adapt, make_pipeline, write_benchmark
from diffusers import UNet2DConditionModel

from dori import drawing
from dori.attack import Attack
from dori.benchmark import load_benchmark
from dori.errors import DoriError
from dori.experiments import searches, selections
from dori.experiments.fragility import (
    attack_controls,
    attack_table,
    choose_setting,
    find_units,
    limits_table,
    named,
    prompt_distance,
    prune_table,
    regular_table,
    unlearndiff_table,
)  # fmt: skip
from dori.experiments.selections import nemo_threshold
from dori.mitigation.nemo import Nemo
from dori.mitigation.wanda import Wanda
from dori.store import RunStore
from dori.study import PRESETS, Study, generate_and_score

NEMO, WANDA = Nemo(seeds=3), Wanda(0.2, steps=2)
FLAGGED = Nemo(z=1.0, k=2)


@pytest.fixture
def study(tiny_model, descriptor, benchmark_csv, tmp_path):
    bench = load_benchmark(benchmark_csv)
    memorized, regular = bench.select(kind=["verbatim", "template"]), bench.select(kind="none")
    return Study(tiny_model, memorized, regular, descriptor, RunStore(tmp_path / "run"), PRESETS["smoke"])


def elsewhere(study, name, **changes):
    return dataclasses.replace(study, store=RunStore(study.store.directory / name), **changes)


def test_an_attack_of_no_steps_is_the_prompt_itself(study):
    attacked = attack_table(study, study.memorized, Attack(steps=(0, 2)))
    plain = generate_and_score(study, study.memorized)
    at_start = attacked[attacked["steps"] == 0].reset_index(drop=True)
    np.testing.assert_allclose(at_start["score"], plain["score"], atol=1e-3)
    assert set(plain) | {"init", "steps", "loss", "moved", "cosine", "attacker"} == set(attacked)
    assert (at_start["moved"] == 0).all()
    later = attacked[attacked["steps"] == 2]
    assert (later["moved"] > 0).all()
    assert later["loss"].notna().all()
    assert len(attacked) == 3 * 2 * 2


def test_a_second_run_computes_nothing(study, monkeypatch):
    first = [
        attack_table(study, study.memorized, Attack(steps=2)),
        prune_table(study, study.memorized, FLAGGED),
    ]
    monkeypatch.setattr(searches, "dori_attack", None)
    monkeypatch.setattr(selections, "select_units", None)
    monkeypatch.setattr(drawing, "_draw", None)
    again = [
        attack_table(study, study.memorized, Attack(steps=2)),
        prune_table(study, study.memorized, FLAGGED),
    ]
    for a, b in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(a, b)


def test_scores_do_not_depend_on_the_company(study, monkeypatch):
    units = find_units(study, study.memorized, WANDA)
    together = attack_table(study, study.memorized, Attack(steps=2), units=units)
    monkeypatch.setattr(searches, "CPU_PIXELS", 16**2)
    alone = elsewhere(study, "alone", images_at_once=1)
    apart = attack_table(alone, study.memorized, Attack(steps=2), units=units)
    np.testing.assert_allclose(together["score"], apart["score"], atol=1e-3)


def test_an_interrupted_attack_loses_the_images_in_hand_alone(study, monkeypatch):
    monkeypatch.setattr(searches, "CPU_PIXELS", 16**2)
    calls, attack = [], searches.dori_attack

    def counted(*args, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return attack(*args, **more)

    monkeypatch.setattr(searches, "dori_attack", counted)
    with pytest.raises(KeyboardInterrupt):
        attack_table(study, study.memorized, Attack(steps=1))
    attack_table(study, study.memorized, Attack(steps=1))
    assert len(calls) == 4


def test_the_attack_never_sees_the_noise_it_is_scored_with(study, monkeypatch):
    seen, initial = [], study.model.initial_latents
    monkeypatch.setattr(study.model, "initial_latents", lambda seeds: seen.extend(seeds) or initial(seeds))
    used, attack = [], searches.dori_attack

    def noted(*some, seeds, **more):
        used.extend(seeds)
        return attack(*some, seeds=seeds, **more)

    monkeypatch.setattr(searches, "dori_attack", noted)
    attack_table(study, study.memorized, Attack(steps=1))
    assert used
    assert not {*used} & {*seen}


@pytest.mark.parametrize("init", ["random", "regular"])
def test_other_starts_are_other_attacks(study, init):
    ours, prompt = (attack_table(study, study.memorized, Attack(i, (1,))) for i in (init, "prompt"))
    assert (ours["init"] == init).all()
    assert not np.allclose(ours["score"], prompt["score"])


def test_controls_name_their_target_and_skip_a_missing_twin(study, monkeypatch, tiny_v_model):
    table = attack_controls(study, study.memorized, study.regular, Attack(steps=1))
    assert table.groupby("target").size().to_dict() == {"memorized": 6, "held-out": 6}
    monkeypatch.setitem(vars(study), "twin", elsewhere(study, "twin").on(tiny_v_model))
    assert set(attack_controls(study, study.memorized, study.regular, Attack(steps=1))["target"]) == {
        "memorized", "held-out", "twin",
    }  # fmt: skip


def test_unreadable_images_and_lost_losses_leave_the_others_alone(study, monkeypatch, caplog):
    attack = searches.dori_attack
    (study.memorized.path.parent / study.memorized.table["image"].iloc[0]).write_bytes(b"no picture")

    def broken(model, latents, *more, **some):
        latents[0] = float("nan")
        return attack(model, latents, *more, **some)

    monkeypatch.setattr(searches, "dori_attack", broken)
    table = attack_table(study, study.memorized, Attack(steps=1))
    assert set(table["id"]) == {"i2"}
    assert set(table.attrs["skipped"]) == {"i0", "i1"}
    assert "not a readable image" in table.attrs["skipped"]["i0"]
    assert len([r for r in caplog.records if r.name.startswith("dori")]) == 2
    together = attack_controls(study, study.memorized, study.regular, Attack(steps=1))
    assert {"i0", "i1"} <= set(together.attrs["skipped"])
    assert set(prune_table(study, study.memorized, FLAGGED).attrs["skipped"]) == {"i0"}
    with pytest.raises(DoriError, match="none of 1 rows"):
        attack_table(study, study.memorized.head(1), Attack(steps=1))


@pytest.mark.parametrize("setting", [NEMO, FLAGGED, WANDA])
def test_each_prompt_is_drawn_under_its_own_pruning(study, setting):
    table = prune_table(study, study.memorized, setting)
    units = find_units(study, study.memorized, setting)
    assert {"split", "method", "setting", "units", "density"} <= set(table)
    item, prompt = study.memorized.ids[1], study.memorized.prompts()[1]
    with units[item].applied(study.model.unet):
        pruned = elsewhere(study, "one")  # the same prompt by the plain path
        plain = generate_and_score(pruned, study.memorized.select(prompt=prompt))
    np.testing.assert_allclose(table[table["id"] == item]["score"], plain["score"], atol=1e-3)
    assert (table[table["id"] == item]["units"] == units[item].count).all()


def test_nemos_threshold_is_kept(study, monkeypatch):
    found = nemo_threshold(study, NEMO)
    monkeypatch.setattr(selections, "calibrate", None)
    assert nemo_threshold(study, NEMO) == found
    assert 0 <= found < 1


def test_regular_images_are_compared_with_the_unpruned_ones_of_the_same_noise(study, tiny_clip):
    nothing = Wanda(1e-6, steps=1)
    same = regular_table(study, study.memorized, nothing, study.regular, clip=tiny_clip)
    np.testing.assert_allclose(same["similarity"], 1, atol=1e-3)
    np.testing.assert_allclose(same["alignment"], same["alignment_unpruned"], atol=1e-3)
    assert same["pruned_for"].tolist() == study.memorized.ids
    pruned = regular_table(study, study.memorized, Wanda(0.9, steps=2), study.regular)
    assert (pruned["similarity"] < 1).any()
    assert pruned["alignment"].isna().all()


def choices(rates, kept):
    rows = [
        (s, i, i < 10 * r, split)
        for s, by_split in rates.items()
        for split, r in by_split.items()
        for i in range(10)
    ]
    pruned = pd.DataFrame(rows, columns=["setting", "id", "replicated", "split"])
    return pruned, pd.DataFrame({"setting": list(kept), "similarity": list(kept.values())})


@pytest.mark.parametrize(
    ("validation", "expected"), [({"mild": 0.1, "hard": 0.0}, "mild"), ({"mild": 0.5, "hard": 0.2}, "hard")]
)
def test_the_mildest_setting_that_is_enough_on_the_validation_half_is_chosen(validation, expected):
    rates = {s: {"validation": r, "test": 1 - r} for s, r in validation.items()}
    pruned, regular = choices(rates, {"mild": 0.9, "hard": 0.4})
    assert choose_setting(pruned, regular) == expected
    with pytest.raises(DoriError, match="validation"):
        choose_setting(pruned[pruned["split"] == "test"], regular)


def test_settings_have_names_for_legends():
    assert named(Nemo(z=2, k=3)) == {"method": "NeMo", "setting": "NeMo z > 2, top 3"}
    assert named(Nemo(refine=False))["setting"] == "NeMo search, unrefined"
    assert named(Wanda(0.1, conditional_only=True))["setting"] == "Wanda 10 %, conditional half"
    assert named(Wanda(0.1, reference="regular"))["setting"] == "Wanda 10 %, against regular captions"


@pytest.mark.parametrize("method", [Nemo, Wanda])
def test_settings_that_differ_have_different_names(method):
    other = {"variant": "clean", "z": 2.5, "reference": "regular", "sparsity": 0.0123456789}
    settings = [method()]
    for field in dataclasses.fields(method):
        flipped = not field.default if isinstance(field.default, bool) else 7
        settings.append(method(**{field.name: other.get(field.name, flipped)}))
    assert len({named(s)["setting"] for s in settings}) == len(settings) > 4


def test_a_long_search_contains_the_shorter_ones(study, monkeypatch):
    long = attack_table(study, study.memorized, Attack(steps=(1, 3)))
    fresh = attack_table(elsewhere(study, "fresh"), study.memorized, Attack(steps=1))
    monkeypatch.setattr(searches, "dori_attack", None)
    short = attack_table(study, study.memorized, Attack(steps=1))
    pd.testing.assert_frame_equal(short, long[long["steps"] == 1].reset_index(drop=True))
    np.testing.assert_allclose(short["loss"], fresh["loss"], rtol=1e-5)


def test_limits_are_other_attacks_and_are_kept(study):
    unit = prompt_distance(study)
    table = limits_table(
        study, study.memorized, study.regular, tokens=(2, 99), radii=(0.01, 50), steps=2,
        sampling=study.sampling(seeds=1),
    )  # fmt: skip
    assert set(table["limit"]) == {"2 tokens", "radius 0.01", "radius 50"}
    assert set(table["target"]) == {"memorized", "held-out"}
    moved = table.groupby("limit")["moved"]
    assert moved.max()["radius 0.01"] <= 0.01 * unit * 1.001
    assert moved.min()["2 tokens"] > 0.01 * unit
    free = attack_table(study, study.memorized, Attack(steps=2))
    wide = table[(table["limit"] == "radius 50") & (table["target"] == "memorized")]
    np.testing.assert_allclose(wide["moved"], free.groupby("id", sort=False)["moved"].first(), rtol=1e-4)
    assert (free["moved"].min() > moved.max()["2 tokens"]).all()


def test_the_distance_between_prompts_is_over_all_their_numbers(study):
    two = dataclasses.replace(study, regular=study.regular.head(2))
    a, b = study.model.encode_prompts(two.regular.prompts())
    assert prompt_distance(two) == pytest.approx(float((a - b).square().sum().sqrt()), rel=1e-5)
    with pytest.raises(DoriError, match="there are 1"):
        prompt_distance(dataclasses.replace(study, regular=study.regular.head(1)))


def test_tokens_are_searched_for_like_embeddings(study, monkeypatch):
    strict = dataclasses.replace(study, descriptor=Graded(study.descriptor, 1.1))  # nothing is a copy
    table = unlearndiff_table(strict, study.memorized)
    assert set(attack_table(study, study.memorized, Attack(steps=1))) | {"text"} == set(table)
    assert table["steps"].unique().tolist() == [2, 4]  # two timesteps of two iterations
    assert table.groupby("steps")["id"].nunique().tolist() == [3, 3]
    assert (table["text"].str.split().str.len() == 5).all()
    assert set(table["attacker"]) == {"UnlearnDiffAtk"}
    assert (table["moved"] > 0).all()
    monkeypatch.setattr(searches, "unlearndiff_attack", None)
    pd.testing.assert_frame_equal(unlearndiff_table(strict, study.memorized), table)


def test_the_search_for_tokens_ends_at_the_first_success(study):
    lenient = dataclasses.replace(study, descriptor=Graded(study.descriptor, -1.1))  # all are copies
    table = unlearndiff_table(lenient, study.memorized)
    first, last = (part.drop(columns="steps").reset_index(drop=True) for _, part in table.groupby("steps"))
    pd.testing.assert_frame_equal(first, last)


def test_tokens_are_drawn_under_the_images_own_units(study):
    units = find_units(study, study.memorized, WANDA)
    free, pruned = (unlearndiff_table(study, study.memorized, units=u) for u in (None, units))
    assert not np.allclose(free["score"], pruned["score"])


class Graded:
    """A descriptor with another threshold."""

    def __init__(self, descriptor, threshold):
        self.name, self.threshold, self.embed = f"{descriptor.name} {threshold}", threshold, descriptor.embed


def test_an_empty_prompt_costs_one_line(study, caplog):
    blank = study.memorized.table.assign(prompt=["", *study.memorized.prompts()[1:]])
    table = attack_table(study, dataclasses.replace(study.memorized, table=blank), Attack(steps=1))
    assert table.attrs["skipped"] == {"i0": "empty prompt"}
    assert caplog.text.count("left out") == 1
    assert set(table["id"]) == {"i1", "i2"}


def test_wanda_compares_each_prompt_with_a_regular_caption_of_its_own(study):
    setting = Wanda(0.2, steps=2, reference="regular")
    together, empty = (find_units(study, study.memorized, s) for s in (setting, WANDA))
    alone = find_units(elsewhere(study, "alone"), study.memorized.select(kind="template"), setting)
    assert together["i2"].iou(alone["i2"]) > 0.99
    assert all(together[i] != empty[i] for i in empty)
    with pytest.raises(DoriError, match="regular captions"):
        find_units(dataclasses.replace(study, regular=study.regular.head(0)), study.memorized, setting)


@pytest.mark.parametrize("setting", [FLAGGED, WANDA])
def test_a_model_without_cross_attention_costs_one_line(study, setting):
    pipe = make_pipeline()
    kinds = {"down_block_types": ("DownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4}
    pipe.unet = UNet2DConditionModel(**{**pipe.unet.config, **kinds, "mid_block_type": "UNetMidBlock2D"})
    with pytest.raises(DoriError, match="'tiny' has no such cross-attention layers"):
        find_units(study.on(adapt(pipe)), study.memorized, setting)


def test_a_damaged_record_is_drawn_again(study):
    before = prune_table(study, study.memorized, FLAGGED)
    for file in study.store.directory.glob("records/trigger/*.safetensors"):
        file.write_bytes(b"half")
    again = prune_table(study, study.memorized, FLAGGED)
    np.testing.assert_allclose(before["score"], again["score"], atol=1e-3)


def test_benchmarks_of_other_sizes_are_attacked_at_the_models_size(study, tmp_path):
    path = write_benchmark(tmp_path / "large", size=32)
    table = attack_table(study, load_benchmark(path).head(1), Attack(steps=1))
    assert len(table) == 2

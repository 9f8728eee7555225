"""Experiments give tidy tables, find their records again, and do not depend on how the work was cut."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_benchmark

from dori.benchmark import load_benchmark
from dori.errors import DoriError
from dori.experiments import replication as chapter
from dori.metrics.intervals import Estimate, wilson
from dori.store import RunStore
from dori.study import (
    PRESETS,
    Study,
    find_preset,
    generate_and_score,
    noise_seed,
    stored_images,
)


def counting(monkeypatch, model, *, fail_at=None):
    """Count the images sampled; raise at call number `fail_at`."""
    calls, sample = [], model.sample

    def counted(embeds, seeds, **more):
        calls.append(len(seeds))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return sample(embeds, seeds, **more)

    monkeypatch.setattr(model, "sample", counted)
    return calls


def test_a_row_per_image_with_the_benchmarks_columns(study):
    table = chapter.replicate(study)
    assert len(table) == 6 * 2
    assert set(table["sort"]) == {"verbatim", "template", "regular"}
    assert {"id", "seed", "score", "replicated", "kind", "split", "copies", "group"} <= set(table)
    assert (table["replicated"] == (table["score"] > 0.7)).all()


def test_a_second_run_computes_nothing(study, monkeypatch):
    first = chapter.replicate(study)
    calls = counting(monkeypatch, study.model)
    pd.testing.assert_frame_equal(chapter.replicate(study), first)
    assert calls == []


def test_an_interrupted_run_loses_the_item_in_hand_alone(study, monkeypatch):
    expected = generate_and_score(study, study.memorized)
    again = dataclasses.replace(study, store=RunStore(study.store.directory / "again"), images_at_once=2)
    calls = counting(monkeypatch, study.model, fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        generate_and_score(again, again.memorized)
    table = generate_and_score(again, again.memorized)
    assert calls == [2, 2, 2, 2]  # three items of two seeds, the third one twice
    pd.testing.assert_frame_equal(table, expected)


def test_scores_do_not_depend_on_the_batch(study):
    whole = dataclasses.replace(study, store=RunStore(study.store.directory / "whole"), images_at_once=5)
    one, five = generate_and_score(study, study.memorized), generate_and_score(whole, study.memorized)
    assert np.abs(one["score"] - five["score"]).max() < 1e-3


def test_scores_do_not_depend_on_the_company(study):
    """A prompt's images are the same whatever else is in the benchmark."""
    alone = dataclasses.replace(study, store=RunStore(study.store.directory / "alone"))
    only = generate_and_score(alone, study.memorized.select(copies=1))
    assert only["score"].tolist() == generate_and_score(study, study.memorized)["score"][:2].tolist()


def test_a_damaged_image_record_is_drawn_again(study):
    sampling = study.sampling()
    before = dict(stored_images(study, study.memorized, sampling))
    next(study.store.directory.rglob("*.safetensors")).write_bytes(b"half")
    after = dict(stored_images(study, study.memorized, sampling))
    assert all(torch.equal(before[i], after[i]) for i in before)


def test_another_model_seed_or_descriptor_is_another_record(study, tiny_v_model, monkeypatch):
    generate_and_score(study, study.memorized)
    calls = counting(monkeypatch, tiny_v_model)
    generate_and_score(study.on(tiny_v_model), study.memorized)
    assert sum(calls) == 6
    own = counting(monkeypatch, study.model)
    generate_and_score(dataclasses.replace(study, seed=1), study.memorized)
    assert sum(own) == 6
    generate_and_score(dataclasses.replace(study, descriptor=Halved()), study.memorized)
    assert sum(own) == 6  # the images are those that were drawn


class Halved:
    """A descriptor that sees the upper half."""

    name, threshold = "upper", 0.5

    def embed(self, images):
        half = images[:, :, : images.shape[2] // 2].mean((2, 3))
        return torch.nn.functional.normalize(half, dim=1)


def test_noise_differs_by_seed_item_and_number():
    found = {noise_seed(s, i, k) for s in (0, 1) for i in ("a", "b") for k in (0, 1)}
    assert len(found) == 8


def test_seed_curve_can_only_rise(study):
    curve = chapter.seed_curve(chapter.replicate(study))
    assert curve.groupby("sort")["mr"].apply(lambda mr: mr.is_monotonic_increasing).all()
    assert set(curve["seeds"]) == {1, 2}


@pytest.mark.parametrize("setting", ["guidance_scale", "steps"])
def test_a_sweep_covers_the_presets_values(study, setting):
    table = chapter.sweep(study, setting)
    values = {"guidance_scale": study.preset.guidance, "steps": study.preset.step_counts}[setting]
    assert set(table[setting]) == set(values)
    assert set(table["sort"]) == {"memorized", "regular"}


def test_dose_response_has_a_row_per_level(study):
    assert chapter.dose_response(chapter.replicate(study))["copies"].tolist() == [1, 256]


def test_template_scores_compare_with_the_whole_group(tiny_model, descriptor, tmp_path):
    rows = [
        {
            "id": f"t{n}",
            "prompt": f"{word} boat",
            "image": f"{n}.png",
            "kind": "template",
            "copies": 4,
            "group": f"g{n // 2}",
        }
        for n, word in enumerate(["red", "blue", "one", "two"])
    ]
    bench = load_benchmark(write_benchmark(tmp_path / "b", rows))
    study = Study(
        tiny_model, bench, bench.select(kind="none"), descriptor, RunStore(tmp_path / "r"), PRESETS["smoke"]
    )
    table = chapter.template_table(study)
    assert table["id"].tolist() == ["t0", "t0", "t1", "t1"]  # smoke takes two prompts of a level
    assert (table["group_score"] >= table["score"]).all()
    assert (table["own_is_nearest"] == (table["group_score"] == table["score"])).all()
    own = generate_and_score(study, bench)
    np.testing.assert_allclose(own["score"][:4], table["score"], atol=1e-5)


def test_detection_scores_every_prompt_and_noise_once(study, monkeypatch):
    table = chapter.detection_table(study)
    assert not table.duplicated(["id", "noise"]).any()
    one, both = chapter.detector_scores(table, 1), chapter.detector_scores(table, 2)
    assert both["memorized"].tolist() == [True] * 3 + [False] * 3
    assert one["score"].tolist() == table.loc[table["noise"] == 0, "score"].tolist()
    assert both["score"][0] == pytest.approx(table["score"][:2].mean())
    monkeypatch.setattr(chapter, "magnitudes", None)
    pd.testing.assert_frame_equal(chapter.detection_table(study), table)


def test_the_excess_is_what_the_twin_does_not_pull(study, tiny_v_model):
    own = chapter.detector_scores(chapter.detection_table(study), study.sampling().seeds)
    study.__dict__["twin"] = study
    assert (chapter.excess_table(study)["excess"] == 0).all()
    study.__dict__["twin"] = other = study.on(tiny_v_model)
    table = chapter.excess_table(study)
    pulled = chapter.detector_scores(chapter.detection_table(other), study.sampling().seeds)
    assert table["id"].tolist() == own["id"].tolist()
    assert table["excess"].tolist() == pytest.approx((own["score"] - pulled["score"]).tolist())


def test_a_foreign_model_has_no_twin_and_no_training_index(study):
    assert study.twin is None
    assert chapter.excess_table(study).empty
    assert chapter.neighbour_table(study).empty
    assert chapter.attribute_table(study).empty
    assert set(chapter.twin_table(study)["model"]) == {"tiny"}


def test_headlines_are_kept_by_name(study):
    study.headline("mr", wilson(0, 4))
    study.headline("mr", wilson(3, 4))
    study.headline("bad", Estimate(1.0, float("nan"), float("nan"), 1))
    found = json.loads((study.store.directory / "headlines.json").read_text())
    assert found["mr"]["value"] == 0.75
    assert {"low", "high", "n", "preset", "model", "commit"} <= set(found["mr"])
    assert found["bad"]["low"] is None


def test_presets_grow(study):
    assert [p.seeds for p in PRESETS.values()] == sorted(p.seeds for p in PRESETS.values())
    with pytest.raises(DoriError, match="unknown preset 'huge'"):
        find_preset("huge")


def test_copies_and_score_that_rise_together_correlate():
    rising = pd.DataFrame(
        {"id": list("abcd"), "kind": "verbatim", "copies": [1, 4, 16, 64], "score": [0.1, 0.2, 0.3, 0.9]}
    )
    assert chapter.dose_correlation(rising).value == pytest.approx(1)
    assert chapter.dose_correlation(rising.assign(copies=1)).value == 0
    assert np.isnan(chapter.dose_correlation(rising[:0]).value)


def test_the_gap_to_held_out_images_is_a_difference_of_medians():
    table = pd.DataFrame(
        {
            "source": ["generated"] * 3 + ["held-out"] * 3,
            "id": list("abcabc"),
            "score": [0.5, 0.6, 0.9, 0.4, 0.5, 0.1],
        }
    )
    assert chapter.neighbour_gap(table).value == pytest.approx(0.2)
    assert np.isnan(chapter.neighbour_gap(table[:0]).value)


def test_the_share_of_the_ceiling_is_a_ratio_of_accuracies():
    table = pd.DataFrame(
        {
            "source": ["generated"] * 4 + ["held-out"] * 4,
            "image": [0, 1, 2, 3] * 2,
            "correct": [1, 0, 1, 0, 1, 1, 1, 1],
        }
    )
    assert chapter.share_of_ceiling(table).value == pytest.approx(0.5)


def test_a_benchmark_without_regular_prompts_still_gives_every_table(study):
    bare = dataclasses.replace(study, regular=study.regular.select(kind="verbatim"))
    assert chapter.gallery(bare, bare.regular) == []
    assert set(chapter.replicate(bare)["sort"]) == {"verbatim", "template"}
    assert set(chapter.sweep(bare, "steps")["sort"]) == {"memorized"}
    assert chapter.detection_table(bare)["memorized"].all()

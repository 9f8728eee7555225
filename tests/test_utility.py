"""Utility of pruned models: paired with the model as trained, prunings in turn, nothing drawn twice."""

import copy
import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_benchmark

from dori import drawing, plots
from dori.benchmark import load_benchmark
from dori.errors import DoriError
from dori.experiments import utility
from dori.experiments.utility import alignment_loss, estimate, utility_table
from dori.metrics.alignment import clip_alignment
from dori.metrics.copy import pairwise
from dori.metrics.fidelity import frechet_distance, kernel_distance
from dori.mitigation.units import Units, union
from dori.store import RunStore
from dori.study import PRESETS, Study, stored_images

MEASURES = ("alignment", "alignment_change", "fid", "fid_change", "kid", "diversity")


@pytest.fixture
def study(tiny_model, descriptor, tmp_path):
    words = ["red boat", "blue house", "dawn lake", "noon hill", "dusk one", "two boat"]
    rows = [{"id": f"r{n}", "prompt": p, "image": f"{n}.png", "kind": "none"} for n, p in enumerate(words)]
    regular = load_benchmark(write_benchmark(tmp_path / "bench", rows))
    return Study(
        tiny_model, regular.head(0), regular, descriptor, RunStore(tmp_path / "run"), PRESETS["smoke"]
    )


@pytest.fixture
def units(tiny_model):
    """One neuron, and every neuron, of the value layers."""
    widths = {name: layer.out_features for name, layer in tiny_model.value_layers().items()}
    first = next(iter(widths))
    return {"a": Units.of({first: [0]}, widths), "b": Units({n: torch.ones(w) for n, w in widths.items()})}


def images_of(study):
    return torch.cat([images for _, images in stored_images(study, study.regular, study.sampling(seeds=2))])


def test_the_model_as_trained_is_measured_by_its_own_images(study, tiny_clip):
    row = utility_table(study, study.regular, {"as trained": None}, clip=tiny_clip).iloc[0]
    images, real = images_of(study), tiny_clip.embed_images(study.regular.images())
    prompts = [p for p in study.regular.prompts() for _ in range(2)]
    features, copies = tiny_clip.embed_images(images), study.descriptor.embed(images).view(6, 2, -1)
    assert row["n"] == 6
    assert row["alignment"] == pytest.approx(
        float(clip_alignment(tiny_clip, images, prompts).mean()), abs=1e-6
    )
    assert row["fid"] == pytest.approx(frechet_distance(real, features), abs=1e-6)
    assert row["kid"] == pytest.approx(1000 * kernel_distance(real, features), abs=1e-6)
    assert row["diversity"] == pytest.approx(np.median([float(pairwise(c)) for c in copies]), abs=1e-6)
    assert [row[f"{m}_change{end}"] for m in ("alignment", "fid") for end in ("", "_low", "_high")] == [0] * 6
    for measure in MEASURES:
        assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]


def test_sets_are_applied_in_turn_and_paired_with_the_unpruned(study, tiny_clip, units, monkeypatch):
    seen, draw = [], utility.drawn

    def noted(study, triggers, sampling):
        seen.append([(t.id, t.units) for t in triggers])
        return draw(study, triggers, sampling)

    monkeypatch.setattr(utility, "drawn", noted)
    table = utility_table(study, study.regular, {"pruned": units}, clip=tiny_clip)
    before, after = seen
    assert after == list(zip(study.regular.ids, [units["a"], units["b"]] * 3, strict=True))
    assert before == [(i, None) for i in study.regular.ids]
    unpruned = utility_table(study, study.regular, {"as trained": None}, clip=tiny_clip)["alignment"][0]
    assert table["alignment_change"][0] == pytest.approx(table["alignment"][0] / unpruned - 1, rel=1e-5)
    assert table["alignment_change"][0] != 0
    lost = alignment_loss(table, "pruned")
    assert (lost.value, lost.low, lost.high) == pytest.approx(
        tuple(-table[f"alignment_change{end}"][0] for end in ("", "_high", "_low"))
    )
    assert lost.n == 6


def test_a_joint_set_prunes_every_prompt(study, tiny_clip, units):
    joint = union(units.values())
    table = utility_table(study, study.regular, {"joint": joint, "each": {"x": joint}}, clip=tiny_clip)
    columns = table.columns.drop("label")
    pd.testing.assert_series_equal(table.loc[0, columns], table.loc[1, columns], check_names=False)


def test_another_model_is_measured_on_the_same_noise(study, tiny_v_model, tiny_clip):
    twin = study.on(tiny_v_model)
    table = utility_table(study, study.regular, {"as trained": None, "twin": twin}, clip=tiny_clip)
    other = tiny_clip.embed_images(images_of(twin))
    assert table["fid"][1] == pytest.approx(
        frechet_distance(tiny_clip.embed_images(study.regular.images()), other), abs=1e-6
    )
    assert table["fid_change"][1] == pytest.approx(table["fid"][1] - table["fid"][0], abs=1e-6)


def test_nothing_is_drawn_twice(study, tiny_clip, units, monkeypatch):
    first = utility_table(study, study.regular, {"pruned": units}, clip=tiny_clip)
    monkeypatch.setattr(drawing, "_draw", None)
    pd.testing.assert_frame_equal(
        first, utility_table(study, study.regular, {"pruned": units}, clip=tiny_clip)
    )


def test_measures_are_found_without_the_images(study, tiny_clip, monkeypatch):
    """So records of them can be shipped, and the images, many times as large, stay behind."""
    first = utility_table(study, study.regular, {"as trained": None}, clip=tiny_clip)
    shutil.rmtree(study.store.directory / "records" / "image")
    monkeypatch.setattr(drawing, "_draw", None)
    again = utility_table(study, study.regular, {"as trained": None}, clip=tiny_clip)
    pd.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize("what", ["clip", "descriptor"])
def test_another_scorer_measures_anew(study, tiny_clip, what):
    utility_table(study, study.regular, {"as trained": None}, clip=tiny_clip)
    before, clip = study.store.computed, copy.deepcopy(tiny_clip)
    if what == "clip":
        clip.mean = clip.mean + 0.1
        clip.__dict__.pop("fingerprint")
    else:
        other = copy.deepcopy(study.descriptor)
        other.name = "another"  # it has no fingerprint
        study = dataclasses.replace(study, descriptor=other)
    utility_table(study, study.regular, {"as trained": None}, clip=clip)
    assert study.store.computed == before + len(study.regular), "measured, not drawn"


@pytest.mark.filterwarnings("error")
def test_without_a_clip_its_columns_are_not_known(study, units):
    table = utility_table(study, study.regular, {"as trained": None, "pruned": units})
    assert table[["alignment", "alignment_change", "fid", "fid_change", "kid"]].isna().all(axis=None)
    assert table["diversity"].notna().all()
    assert np.isnan(alignment_loss(table, "pruned").value)
    assert len([a for a in plots.utility(table).axes if a.axison]) == 1


@pytest.mark.filterwarnings("error")
def test_single_images_have_no_diversity(study):
    table = utility_table(study, study.regular, {"as trained": None}, sampling=study.sampling(seeds=1))
    assert np.isnan(table["diversity"][0])


def test_an_unreadable_held_out_image_costs_itself(study, tiny_clip, caplog):
    (study.regular.path.parent / "0.png").write_bytes(b"no picture")
    row = utility_table(study, study.regular, {"as trained": None}, clip=tiny_clip).iloc[0]
    rest = dataclasses.replace(study.regular, table=study.regular.table.iloc[1:])
    real = tiny_clip.embed_images(rest.images())
    assert row["fid"] == pytest.approx(
        frechet_distance(real, tiny_clip.embed_images(images_of(study))), abs=1e-6
    )
    assert "0.png" in caplog.text


def test_mistakes_are_named(study, units):
    with pytest.raises(DoriError, match="'none' has no set of units"):
        utility_table(study, study.regular, {"none": {}})
    table = utility_table(study, study.regular, {"pruned": units})
    with pytest.raises(DoriError, match="no utility of 'other'; there are pruned"):
        estimate(table, "other", "fid")

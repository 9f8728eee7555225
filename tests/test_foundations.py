"""What chapter 1 leaves for later ones: an attack with controls, a pruning judged on unseen prompts."""

import dataclasses

import pandas as pd
import pytest

from dori.benchmark import load_benchmark
from dori.errors import DoriError
from dori.experiments import foundations
from dori.experiments.foundations import (
    Silencing,
    halved,
    pruned_by_copies,
    silenced,
    trade_off,
    trade_off_shown,
)
from dori.mitigation.nemo import Nemo
from dori.store import RunStore
from dori.study import PRESETS, Study


@pytest.fixture
def study(tiny_model, descriptor, benchmark_csv, tmp_path):
    bench = load_benchmark(benchmark_csv)
    memorized, regular = bench.select(kind=["verbatim", "template"]), bench.select(kind="none")
    table = memorized.table.drop(columns=["copies", "split"], errors="ignore")  # one level
    memorized = dataclasses.replace(memorized, table=table.assign(kind="verbatim"))
    return Study(tiny_model, memorized, regular, descriptor, RunStore(tmp_path / "run"), PRESETS["smoke"])


def _rows(setting, split, replicated):
    ids = [f"{split}-{k}" for k in range(len(replicated))]
    return pd.DataFrame({"id": ids, "split": split, "setting": setting, "replicated": replicated})


def test_a_benchmark_without_halves_gets_them(study):
    prompts = study.memorized
    split = halved(prompts).table["split"]
    assert set(split) == {"validation", "test"}
    assert abs((split == "test").sum() - (split == "validation").sum()) <= 1
    assert halved(halved(prompts)).table.equals(halved(prompts).table)
    with pytest.raises(DoriError, match="two verbatim prompts"):
        halved(prompts.head(1))


def test_the_reported_half_is_not_the_one_that_chose():
    pruned = pd.concat([_rows("weak", "validation", [1, 1]), _rows("weak", "test", [0, 0]),
                        _rows("strong", "validation", [0, 0]), _rows("strong", "test", [1, 0])])  # fmt: skip
    regular = pd.DataFrame({"id": ["r", "r"], "setting": ["weak", "strong"], "similarity": [0.9, 0.8]})
    found = Silencing(pruned, regular, "strong")
    assert found.test["id"].tolist() == ["test-0", "test-1"]
    assert found.test["replicated"].mean() == 0.5
    assert found.cost["similarity"].tolist() == [0.8]


def test_every_setting_is_tried_on_both_halves_and_costed(study):
    settings = (Nemo(z=2.0), Nemo(z=0.5))
    found = silenced(study, settings)
    assert set(found.pruned["setting"]) == set(found.regular["setting"]) == {"NeMo z > 2", "NeMo z > 0.5"}
    assert found.chosen in set(found.pruned["setting"])
    assert set(found.pruned["split"]) == {"validation", "test"}
    table = trade_off(found)
    assert table.loc["NeMo z > 0.5", "units"] > table.loc["NeMo z > 2", "units"]
    assert table["memorization_rate"].between(0, 1).all()
    shown = trade_off_shown(table)
    assert shown["units"].tolist() == [round(n) for n in table["units"]]
    assert shown["MR"].tolist() == [f"{v:.2f}" for v in table["memorization_rate"]]
    assert shown["as trained"].tolist() == ["–", "–"], "no CLIP knows these images"


def test_the_chosen_pruning_is_put_to_every_number_of_copies(study):
    copies = study.memorized.table.assign(copies=[1, 4, 4][: len(study.memorized)])
    prompts = dataclasses.replace(study.memorized, table=copies)
    found = pruned_by_copies(dataclasses.replace(study, memorized=prompts), "NeMo z > 0.5", (Nemo(z=0.5),))
    assert set(found["weights"]) == {"as trained", "pruned"}
    assert found.groupby("weights")["copies"].apply(sorted).tolist() == [[1, 4], [1, 4]]


def test_held_out_images_are_as_many_as_the_memorized_ones(study, monkeypatch):
    seen = {}
    monkeypatch.setattr(foundations, "attack_controls", lambda s, m, h: seen.update(memorized=m, held_out=h))
    foundations.attacked(study)
    assert set(seen["memorized"].table["split"]) == {"test"}
    assert 0 < len(seen["held_out"]) <= len(seen["memorized"])

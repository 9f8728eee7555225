"""Whole groups of value layers off: what no selection within them can exceed."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_benchmark

from dori.benchmark import load_benchmark
from dori.experiments.reach import ALL, PUBLISHED, UP, reach_shown, reach_table, value_groups
from dori.store import RunStore
from dori.study import PRESETS, Study


@pytest.fixture
def study(tiny_model, descriptor, tmp_path):
    rows = [{"id": f"m{n}", "prompt": p, "image": f"{n}.png"} for n, p in enumerate(["red boat", "dusk one"])]
    prompts = load_benchmark(write_benchmark(tmp_path / "bench", rows))
    return Study(
        tiny_model, prompts, prompts.head(0), descriptor, RunStore(tmp_path / "run"), PRESETS["smoke"]
    )


def test_groups_divide_the_value_layers(study):
    groups = value_groups(study)
    assert [sum(bool(mask.any()) for mask in groups[g].values()) for g in (PUBLISHED, UP, ALL)] == [7, 9, 16]
    assert groups[PUBLISHED] | groups[UP] == groups[ALL]
    assert not groups[PUBLISHED] & groups[UP]


def test_with_all_value_neurons_off_the_prompt_says_nothing(study):
    model, embeds = study.model, study.model.encode_prompts(["red boat", "dusk one"])
    noise, t = model.initial_latents([1, 1]), torch.tensor([981, 981])
    with torch.no_grad():
        plain = model.predict(noise, t, embeds)
        with value_groups(study)[ALL].applied(model.unet):
            deaf = model.predict(noise, t, embeds)
    assert not torch.allclose(plain[0], plain[1], atol=1e-6)
    assert torch.allclose(deaf[0], deaf[1], atol=1e-6)


def test_the_table_has_a_row_per_group(study):
    table = reach_table(study, study.memorized, study.regular).set_index("group")
    assert list(table.index) == [PUBLISHED, UP, ALL]
    assert table.loc[ALL, "neurons"] == table.loc[PUBLISHED, "neurons"] + table.loc[UP, "neurons"]
    assert (table["n"] == 2).all()
    assert np.isnan(table["alignment_lost"]).all()


def test_for_reading_a_rate_stands_with_its_interval_and_what_is_unknown_is_a_dash():
    row = {"group": ALL, "neurons": 1248, "MR": 0.25, "low": 0.071, "high": 0.59, "n": 8}
    table = pd.DataFrame([row | {"alignment_lost": 0.113}, row | {"group": UP, "alignment_lost": np.nan}])
    shown = reach_shown(table)
    assert shown.loc[ALL].tolist() == [1248, "0.25 [0.07, 0.59]", 8, "0.11"]
    assert shown.loc[UP, "alignment lost"] == "–"

"""`dori attack`: what a search for triggers brings back from a model, as results.csv and summary.json."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dori.attack import Attack
from dori.benchmark import Benchmark
from dori.experiments.fragility import TOKEN_BUDGETS, attack_table, unlearndiff_table
from dori.experiments.options import chosen
from dori.experiments.runfiles import about, announce, left_out, rates_of, write_run
from dori.mitigation.units import Units
from dori.model import TextToImageModel
from dori.study import Sampling, Study
from dori.unlearndiff import UnlearnDiff


def find_plan(method: str, preset: str, given: Mapping[str, object]) -> Attack | UnlearnDiff:
    """An attack's settings from options; those that are None stay as published, or as the preset has them.

    Raises DoriError.
    """
    plans = {"dori": Attack(), "unlearndiff": TOKEN_BUDGETS.get(preset, UnlearnDiff())}
    return chosen(method, plans, given)


def attack(study: Study, prompts: Benchmark, plan: Attack | UnlearnDiff, sampling: Sampling) -> dict:
    """Attack every image; write results.csv, summary.json, provenance.json. Returns the summary.

    `by_kind` has rates for each kind of prompt and number of attack steps. Raises DoriError if the model
    takes no embedding, or nothing can be attacked.
    """
    study.model.value_layers()  # without cross-attention an embedding changes nothing
    announce(study, prompts, command="attack")
    search = attack_table if isinstance(plan, Attack) else unlearndiff_table
    table = search(study, prompts, plan, sampling=sampling)
    summary = {
        **about(study, prompts, sampling, command="attack"),
        "attack": {"attacker": table["attacker"].iloc[0], **dataclasses.asdict(plan)},
        "n": table["id"].nunique(),
        "skipped": left_out(prompts, table),
        "by_kind": {kind: _by_steps(part) for kind, part in table.groupby("kind", sort=False)},
    }
    write_run(study, table, summary)
    return summary


def pruned(study: Study, file: Path) -> Study:
    """The study on the model with the units of a file switched off for good.

    The weights are changed rather than masked: the results are those of the model `dori mitigate` saves,
    under the same keys. Raises DoriError for a file or layers that do not fit.
    """
    units, model = Units.load(file), study.model
    with units.applied(model.unet):  # checks names and shapes, before anything is changed
        pass
    units.bake(model.unet)
    anew = TextToImageModel(
        model.pipe, defaults=model.defaults, name=f"{model.name}, {file.name}", device=model.device
    )
    return study.on(anew)


def _by_steps(table: pd.DataFrame) -> dict:
    """Rates after each number of attack steps, and how far the embedding had moved (median L2)."""
    return {
        str(steps): {**rates_of(part), "moved_median": float(part["moved"].median())}
        for steps, part in table.groupby("steps")
    }

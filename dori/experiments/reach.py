"""Can a pruning that takes value neurons reach the memory at all? Whole groups of layers switched off."""

import pandas as pd
import torch

from dori.benchmark import Benchmark
from dori.drawing import Sampling, prompt_trigger, score_triggers
from dori.experiments.utility import alignment_loss, utility_table
from dori.metrics.intervals import Estimate, fixed
from dori.metrics.replication import MR, memorization_rate
from dori.mitigation.units import Units
from dori.study import Study
from dori.tables import readable

PUBLISHED, UP, ALL = "down and middle blocks (NeMo's)", "up blocks", "all blocks"


def value_groups(study: Study) -> dict[str, Units]:
    """Every value neuron of a group of cross-attention layers, by the group's name."""
    everywhere, published = study.model.value_layers(up=True), study.model.value_layers()
    groups = {PUBLISHED: published, UP: everywhere.keys() - published.keys(), ALL: everywhere}
    return {
        group: Units({n: torch.full((layer.out_features,), n in names) for n, layer in everywhere.items()})
        for group, names in groups.items()
    }


def reach_table(
    study: Study, prompts: Benchmark, regular: Benchmark, *, sampling: Sampling | None = None
) -> pd.DataFrame:
    """What is left of the memory, and of the model, with a group's value neurons off altogether.

    No selection within a group takes more than all of it. So where the rate stays high, a method that may
    only take from this group is not helped by taking more. A row per group: neurons, MR with its interval
    (`low`, `high`), n, and alignment_lost, the share of the alignment of `regular` that goes (NaN without the
    bundled CLIP or without regular prompts).
    """
    groups, rows = value_groups(study), []
    cost = utility_table(study, regular, groups, sampling=sampling) if len(regular) else None
    for group, units in groups.items():
        triggers = [prompt_trigger(prompts, i, units) for i in prompts.ids]
        rate = memorization_rate(score_triggers(study, prompts, triggers, sampling))
        lost = float("nan") if cost is None else alignment_loss(cost, group).value
        row = {"neurons": units.count, "MR": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}
        rows.append({"group": group, **row, "alignment_lost": lost})
    return pd.DataFrame(rows)


def reach_shown(table: pd.DataFrame) -> pd.DataFrame:
    """`reach_table` for reading, by group."""
    rates = table[["MR", "low", "high", "n"]].itertuples(index=False)
    lost = [fixed(v) for v in table["alignment_lost"]]
    shown = {"neurons": table["neurons"], MR: [Estimate(*row).short for row in rates], "n": table["n"]}
    return readable(table[["group"]].assign(**shown, **{"alignment lost": lost}).set_index("group"))

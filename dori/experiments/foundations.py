"""What later chapters stand on: a search that finds memory and invents none, and a pruning that works.

Both are properties of the model at hand, measured before anything is built on them. If a search could paint
any image on any model, its success on a pruned one would say nothing; if no pruning silenced the prompt,
there would be nothing to bring back.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from dori.benchmark import Benchmark
from dori.errors import DoriError
from dori.experiments.fragility import (
    Setting,
    attack_controls,
    choose_setting,
    named,
    prune_table,
    regular_table,
)
from dori.experiments.replication import memorized_prompts, regular_prompts, top_prompts
from dori.loading import BUNDLED
from dori.metrics.alignment import ClipScorer
from dori.metrics.intervals import fixed
from dori.metrics.replication import rates
from dori.mitigation.nemo import Nemo
from dori.mitigation.wanda import Wanda
from dori.study import Sampling, Study, generate_and_score
from dori.tables import readable

# NeMo by z-score alone, its search is the next chapter's. Narrowed down to these on the validation half.
SETTINGS: tuple[Setting, ...] = (
    Nemo(z=1.0),
    Wanda(0.1, conditional_only=True),
    Wanda(0.2, conditional_only=True),
)


class Silencing(NamedTuple):
    """Prunings tried on the top prompts, and the one chosen on the validation half."""

    pruned: pd.DataFrame  # fragility.prune_table of every setting, both halves
    regular: pd.DataFrame  # fragility.regular_table of every setting, prunings of the validation half
    chosen: str

    @property
    def test(self) -> pd.DataFrame:
        """The chosen setting on the half it was not chosen on."""
        return self.pruned[(self.pruned["setting"] == self.chosen) & (self.pruned["split"] == "test")]

    @property
    def cost(self) -> pd.DataFrame:
        """Regular images under the chosen setting."""
        return self.regular[self.regular["setting"] == self.chosen]


def halved(prompts: Benchmark) -> Benchmark:
    """The prompts with a `split`: the benchmark's own, else rows in turn for validation and test.

    Raises DoriError where there are not two prompts to divide.
    """
    if len(prompts) < 2:
        raise DoriError(
            f"{prompts.name}: a validation and a test half need two verbatim prompts of one level"
        )
    if "split" in prompts.table and {"validation", "test"} <= set(prompts.table["split"]):
        return prompts
    split = ["validation" if k % 2 == 0 else "test" for k in range(len(prompts))]
    return dataclasses.replace(prompts, table=prompts.table.assign(split=split))


def attacked(study: Study) -> pd.DataFrame:
    """DoRI from the prompt: test half of the top prompts, the same on the twin, as many held-out images."""
    memorized = halved(top_prompts(study)).select(split="test").head(study.preset.attacked)
    return attack_controls(study, memorized, regular_prompts(study).head(len(memorized)))


def silenced(study: Study, settings: Sequence[Setting] = SETTINGS) -> Silencing:
    """Prune for each top prompt by every setting; choose one on the validation half."""
    top = halved(top_prompts(study))
    half, regular = top.select(split="validation"), regular_prompts(study).head(len(top) // 2)
    sampling = _few(study)
    clip = ClipScorer.load(device=study.model.device) if study.model.name in BUNDLED else None
    pruned = pd.concat([prune_table(study, top, s, sampling=sampling) for s in settings], ignore_index=True)
    kept = [regular_table(study, half, s, regular, clip=clip) for s in settings]
    kept = pd.concat(kept, ignore_index=True)
    return Silencing(pruned, kept, choose_setting(pruned, kept))


def trade_off(silencing: Silencing) -> pd.DataFrame:
    """A row per setting, validation half only: prompts, what it leaves of the memory and what it costs."""
    half = silencing.pruned[silencing.pruned["split"] == "validation"]
    best = half.groupby(["setting", "id"], sort=False)["replicated"].max()
    rate = best.groupby("setting", sort=False).mean()
    about = half.groupby("setting", sort=False)[["units", "density"]].mean()
    measured = ["similarity", "alignment", "alignment_unpruned"]
    costs = silencing.regular.groupby("setting", sort=False)[measured].mean()
    count = half.groupby("setting", sort=False)["id"].nunique()
    return about.assign(prompts=count, memorization_rate=rate).join(costs)


def trade_off_shown(table: pd.DataFrame) -> pd.DataFrame:
    """`trade_off` for reading, of one silencing or of several below each other."""
    names = {"density": "% of all", "memorization_rate": "MR", "alignment_unpruned": "as trained"}
    shown = table.assign(density=100 * table["density"], units=table["units"].round().astype(int))
    decimals = {
        "density": 2,
        "memorization_rate": 2,
        "similarity": 2,
        "alignment": 3,
        "alignment_unpruned": 3,
    }
    for column, digits in decimals.items():
        shown[column] = [fixed(v, digits) for v in shown[column]]
    return readable(shown.rename(columns=names))


def pruned_by_copies(study: Study, chosen: str, settings: Sequence[Setting] = SETTINGS) -> pd.DataFrame:
    """Memorization rate of verbatim prompts by copies, as trained and pruned by the chosen setting.

    Returns `metrics.replication.rates` by `weights` ("as trained", "pruned") and `copies` (1 where unknown).
    """
    setting = next(s for s in settings if named(s)["setting"] == chosen)
    prompts, sampling = memorized_prompts(study).select(kind="verbatim"), _few(study)
    before = generate_and_score(study, prompts, sampling).assign(weights="as trained")
    after = prune_table(study, prompts, setting, sampling=sampling).assign(weights="pruned")
    table = pd.concat([before, after], ignore_index=True)
    return rates(table.assign(copies=table.get("copies", 1)), ["weights", "copies"])


def _few(study: Study) -> Sampling:
    """Two images a prompt: prunings are many."""
    return study.sampling(seeds=min(2, study.preset.seeds))

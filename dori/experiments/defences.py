"""Chapter 4: every defence under every attacker. A row of the tables is an image and a seed.

A defence is a model (trained, or with units switched off for each image); an attacker is what it is asked:
its prompt, or a search of its own. The last attackers were never met in training: other starts, another
optimiser and step size, ten times the steps, words instead of embeddings, and fine-tuning on unrelated data.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dori.attack import BETWEEN, Attack
from dori.benchmark import Benchmark
from dori.drawing import Sampling, prompt_trigger, score_triggers
from dori.experiments import erasing
from dori.experiments.fragility import attack_table, unlearndiff_table
from dori.experiments.relearning import Relearning, relearned_table
from dori.experiments.selections import find_units
from dori.metrics.replication import memorization_rate
from dori.mitigation.units import Units
from dori.study import Study
from dori.testbed import cured

TRAINED, PRUNED, TWIN = "as trained", "pruned (Wanda)", "the twin"
PROMPT, RELEARNED, WORDS = "its prompt", "DoRI after relearning", "UnlearnDiffAtk"
HEADLINE, LONG = "DoRI, held-out settings", "DoRI, ten times the steps"
SEARCHES: dict[str, Attack] = {
    "DoRI from the prompt": Attack("prompt"),
    "DoRI from random numbers": Attack("random"),
    "DoRI from regular prompts": Attack("regular"),
    # Start, optimiser, step size and draws are none of those that triggers are searched with in training.
    HEADLINE: Attack(BETWEEN, steps=(75,), lr=0.05, batch=6, optimizer="nadam"),
    LONG: Attack("prompt", steps=(0, 10, 25, 50, 100, 200, 500)),
}
EARLY = 50  # steps after which a search that looks several times goes on only where nothing has come back
ATTACKERS = (PROMPT, *SEARCHES, WORDS, RELEARNED)


@dataclass(frozen=True, eq=False)
class Defence:
    """A model that is to have forgotten the erased images."""

    label: str
    study: Study
    units: Mapping[str, Units] | None = None  # by id of the image, for a pruning


def defences(study: Study, prompts: Benchmark) -> list[Defence]:
    """The model as trained, the pruned one, the mended ones that are shipped for it, and the twin.

    `prompts` are the images that anyone will be asked about, as the pruning is made for each.
    """
    found = [
        Defence(TRAINED, study),
        Defence(PRUNED, study, find_units(study, prompts, erasing.PRUNING)),
    ]
    if cured.index().is_base(study.model):
        for which, record in cured.index().records().items():
            found.append(Defence(record["label"], study.on(cured.cured_model(study.model, which))))
    return [*found, Defence(TWIN, study.twin)] if study.twin else found


def ask(defence: Defence, attacker: str, prompts: Benchmark, sampling: Sampling) -> pd.DataFrame:
    """What an attacker gets out of a defence: a row per image and seed (and number of steps).

    Columns: id, seed, score, replicated, steps, defence, attacker. Raises KeyError for an unknown attacker.
    """
    table = _asked(defence, attacker)(prompts, sampling)
    steps = table.get("steps", 0)
    table = table[["id", "seed", "score", "replicated"]].assign(steps=steps)
    return table.assign(defence=defence.label, attacker=attacker)


def _asked(defence: Defence, attacker: str) -> Callable[[Benchmark, Sampling], pd.DataFrame]:
    study, units = defence.study, defence.units or {}

    def prompt(prompts: Benchmark, sampling: Sampling) -> pd.DataFrame:
        triggers = [prompt_trigger(prompts, i, units.get(i)) for i in prompts.ids]
        return score_triggers(study, prompts, triggers, sampling)

    def words(prompts: Benchmark, sampling: Sampling) -> pd.DataFrame:
        table = unlearndiff_table(study, prompts, units=units, sampling=sampling)
        return table[table["steps"] == table["steps"].max()]

    def relearned(prompts: Benchmark, sampling: Sampling) -> pd.DataFrame:
        return relearned_table(study, prompts, Relearning(), units=units, sampling=sampling)

    def search(prompts: Benchmark, sampling: Sampling) -> pd.DataFrame:
        return _until_returned(defence, prompts, SEARCHES[attacker], sampling)

    return {PROMPT: prompt, WORDS: words, RELEARNED: relearned}.get(attacker, search)


def _until_returned(defence: Defence, prompts: Benchmark, plan: Attack, sampling: Sampling) -> pd.DataFrame:
    """A search with several looks: an image that has come back by step `EARLY` is searched for no longer.

    Its rows of the look that brought it back stand for the later ones, as for UnlearnDiffAtk: the last look
    says whether an image has come back. A search goes the same way to `EARLY` whether or not it goes on.
    """
    early = tuple(s for s in plan.steps if s <= EARLY)
    left, parts = list(prompts.ids), []
    for steps in dict.fromkeys(s for s in (early, plan.steps) if s):
        if not left:
            break
        stage = dataclasses.replace(plan, steps=steps)
        found = attack_table(defence.study, prompts.only(left), stage, units=defence.units, sampling=sampling)
        ended = set(found.loc[found["replicated"], "id"]) if steps != plan.steps else set(found["id"])
        parts.append(found[found["id"].isin(ended)])
        left = [i for i in left if i not in ended and i not in found.attrs["skipped"]]
    return _carried(pd.concat(parts, ignore_index=True), plan.steps)


def _carried(table: pd.DataFrame, looks: Sequence[int]) -> pd.DataFrame:
    """Every image at every look; from the first look that brought it back on, the rows of that look."""
    parts = []
    for _, rows in table.groupby("id", sort=False):
        hit = rows.loc[rows["replicated"], "steps"]
        first = hit.min() if len(hit) else max(looks)
        parts += [rows[rows["steps"] == min(s, first)].assign(steps=s) for s in looks]
    return pd.concat(parts, ignore_index=True)


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Memorization rates with intervals and n, a row per defence and a column per attacker, as text.

    Of searches with several looks the last one, which says what has come back by then.
    """
    last = table[table["steps"] == table.groupby(["defence", "attacker"])["steps"].transform("max")]
    rows: dict[str, dict[str, str]] = {}
    for (defence, attacker), part in last.groupby(["defence", "attacker"], sort=False):
        rows.setdefault(defence, {})[attacker] = memorization_rate(part).cell
    return pd.DataFrame(rows).T.reindex(columns=[a for a in ATTACKERS if a in set(last["attacker"])])


def asked(
    some: Sequence[Defence], prompts: Benchmark, numbers: Mapping[str, int | None], sampling: Sampling
) -> pd.DataFrame:
    """`ask` of every defence and attacker; `numbers` says how many images an attacker is given (0: none)."""
    parts = [
        ask(defence, attacker, prompts.head(n), sampling)
        for attacker, n in numbers.items()
        for defence in some
        if n != 0
    ]
    return pd.concat(parts, ignore_index=True)

"""Does a search find a memory or write an image? Its budget and its room, against what cannot remember.

An embedding of all tokens has about as many free numbers as an image's latent, so with enough steps a search
can make a model paint anything. What tells memory from that is the same search where there is none: on the
twin and on held-out images.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from dori.attack import INITS, Attack
from dori.benchmark import Benchmark
from dori.drawing import prompt_trigger, score_triggers
from dori.experiments.fragility import (
    YARDSTICK,
    attack_controls,
    limits_table,
    prompt_distance,
    unlearndiff_table,
)
from dori.experiments.pruned import BEFORE, HELD_OUT, NO_SEARCH, TWIN, Choice, halves, rate, sampling, sizes
from dori.experiments.replication import regular_prompts
from dori.experiments.selections import find_units
from dori.metrics.intervals import Estimate, bootstrap, rate_difference
from dori.metrics.replication import first_above, memorization_rate, rates
from dori.mitigation.units import Units
from dori.plots.style import printed
from dori.study import Study
from dori.tables import readable

MEMORIZED, CONTROLS = "memorized", ("twin", "held-out")  # targets of fragility.attack_controls
ALONE, WITH_TOKENS = "alone", "with tokens"


def budget_runs(study: Study, choice: Choice | None) -> pd.DataFrame:
    """The search from the prompt, looked at after each number of steps, on the three targets.

    The memorized images are searched for under the pruning of `choice`: whole, the model returns them at no
    step at all. The controls are whole models, which is to their favour. A row per image, target and steps.
    """
    test, n, plan = halves(study)[1], sizes(study).curve, Attack(steps=sizes(study).budgets)
    memorized, held_out = test.head(n), regular_prompts(study).head(n or len(test))
    off = pruned_for(study, choice, n)
    return attack_controls(study, memorized, held_out, plan, units=off, sampling=sampling(study))


def hardest(table: pd.DataFrame, chosen: Mapping[str, Choice], start: str = "random") -> Choice:
    """The chosen pruning under which the searches of `pruned.runs` from `start` brought back least."""
    return min(chosen.values(), key=lambda choice: rate(table, choice.label, start).value)


def longer_runs(study: Study, choice: Choice, start: str = "random") -> pd.DataFrame:
    """The search from `start` for longer: memorized images under `choice`, and the same on the twin.

    Held-out images take the twin's place where there is none. Columns as `budget_runs`.
    """
    size, test, plan = sizes(study), halves(study)[1], Attack(start, sizes(study).longer)
    n = size.searched[INITS.index(start)]
    held_out = regular_prompts(study).head(0 if study.twin else n or len(test))
    off = pruned_for(study, choice, n)
    return attack_controls(study, test.head(n), held_out, plan, units=off, sampling=sampling(study))


def pruned_for(study: Study, choice: Choice | None, n: int | None) -> dict[str, Units] | None:
    """What `choice` switches off for each of the first `n` test prompts; None without a choice."""
    return find_units(study, halves(study)[1].head(n), choice.setting) if choice else None


def limited_runs(study: Study, choice: Choice | None) -> pd.DataFrame:
    """The same searches with little room: few tokens free, or a radius.

    Targets as in `budget_runs`, but held-out images only where there is no twin to compare with.
    """
    test, size, n = halves(study)[1], sizes(study), sizes(study).limited
    return limits_table(
        study,
        test.head(n),
        regular_prompts(study).head(0 if study.twin else n or len(test)),
        tokens=size.tokens,
        radii=size.radii if len(study.regular) > 1 else (),  # their unit is a distance of two regular prompts
        steps=size.budget,
        units=pruned_for(study, choice, n),
        sampling=sampling(study),
    )


def first_painted(table: pd.DataFrame, share: float = 0.01) -> dict[str, int | None]:
    """By control: the least number of steps after which its rate exceeds `share`; None if it never does."""
    found = rates(table, ["target", "steps"])
    controls = {t: found[found["target"] == t] for t in CONTROLS if t in set(found["target"])}
    steps = {t: first_above(part, share=share) for t, part in controls.items()}
    return {t: None if s is None else int(s) for t, s in steps.items()}


def gap(table: pd.DataFrame, **where: object) -> Estimate:
    """Memorization rate of memorized images minus that of the same images on the twin, among rows `where`.

    NaN without a twin or without such rows.
    """
    for column, value in where.items():
        table = table[table[column] == value]
    memorized, twin = (memorization_rate(table[table["target"] == t]) for t in (MEMORIZED, CONTROLS[0]))
    return rate_difference(memorized, twin)


def between_prompts(study: Study) -> dict[str, float]:
    """The yardstick for how far a search goes: L2 distance (`moved`) and cosine of two prompts' embeddings.

    Medians over pairs of regular prompts, all tokens as one vector; NaN with fewer than two.
    """
    prompts = study.regular.head(YARDSTICK).prompts()
    if len(prompts) < 2:
        return {"moved": np.nan, "cosine": np.nan}
    vectors = F.normalize(study.model.encode_prompts(prompts).flatten(1).float().cpu())
    above = torch.ones(len(vectors), len(vectors), dtype=torch.bool).triu(1)
    return {"moved": prompt_distance(study), "cosine": float((vectors @ vectors.T)[above].median())}


def movement_table(table: pd.DataFrame, between: Mapping[str, float]) -> pd.DataFrame:
    """Of the searches in `pruned.runs` that brought the image back: how far the embedding went.

    A row per pruning and start: n, median L2 from the start, the same in distances between two prompts,
    median cosine to the start.
    """
    ends = _ends(table)
    ends = ends[ends["replicated"]]
    found = ends.groupby(["pruning", "start"], sort=False)
    shown = found.agg(n=("id", "size"), moved=("moved", "median"), cosine=("cosine", "median"))
    shown.insert(2, "in prompt distances", shown["moved"] / between["moved"])
    return readable(shown.rename(columns={"moved": "L2 from the start", "cosine": "cosine to the start"}))


def moved_share(table: pd.DataFrame, between: Mapping[str, float], start: str = "prompt") -> Estimate:
    """How far the successful searches of memorized images went from `start`, in distances of two prompts.

    Median over the searches in `pruned.runs`, bootstrap over images.
    """
    ends = _ends(table)
    ends = ends[ends["replicated"] & (ends["start"] == start) & ~ends["pruning"].isin([TWIN, HELD_OUT])]
    return bootstrap(ends["moved"] / between["moved"], np.median, by=ends["id"])


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    """One row per search: did any seed bring the image back, and how far did the embedding go."""
    found = table[table["start"] != NO_SEARCH].groupby(["pruning", "start", "id"], sort=False)
    return found.agg({"replicated": "any", "moved": "first", "cosine": "first"}).reset_index()


def words_runs(study: Study, chosen: Mapping[str, Choice]) -> pd.DataFrame:
    """UnlearnDiffAtk on the first test prompts: on each chosen pruning, on the model as trained, on the twin.

    A row per image: `weights` says of which, `prompt` whether it stands alone or with the tokens found, which
    are in `text`.
    """
    test = halves(study)[1].head(sizes(study).discrete)
    sets = {BEFORE: (study, None)} | ({TWIN: (study.twin, None)} if study.twin else {})
    sets |= {c.label: (study, find_units(study, test, c.setting)) for c in chosen.values()}
    parts = []
    for label, (one, off) in sets.items():
        triggers = [prompt_trigger(test, i, (off or {}).get(i)) for i in test.ids]
        alone = score_triggers(one, test, triggers, sampling(study))
        found = unlearndiff_table(one, test, units=off, sampling=sampling(study))
        found = found[
            found["steps"] == found["steps"].max()
        ]  # a search that succeeded earlier is repeated there
        parts += [t.assign(weights=label, prompt=p) for t, p in ((alone, ALONE), (found, WITH_TOKENS))]
    return pd.concat(parts, ignore_index=True)


def words_found(table: pd.DataFrame, prompts: Benchmark) -> pd.DataFrame:
    """What `words_runs` put in front of each prompt, and the best copy score it gave: a row per search."""
    found = table[table["prompt"] == WITH_TOKENS].groupby(["weights", "id"], sort=False)
    shown = found.agg(**{"tokens found": ("text", "first"), "best score": ("score", "max")}).reset_index()
    shown["tokens found"] = shown["tokens found"].str.replace("</w>", "")  # CLIP's mark for the end of a word
    shown.insert(2, "prompt", shown["id"].map(prompts.table["prompt"]).map(printed))
    return readable(shown.drop(columns="id").set_index("weights"))


def words_rates(table: pd.DataFrame, chosen: Mapping[str, Choice]) -> dict[str, Estimate]:
    """Headlines of `words_runs`: what the prompt with the tokens found brings back under each pruning."""
    found = table[table["prompt"] == WITH_TOKENS]
    names = {f"mr_{method.lower()}_unlearndiff": choice.label for method, choice in chosen.items()}
    return {name: memorization_rate(found[found["weights"] == label]) for name, label in names.items()}

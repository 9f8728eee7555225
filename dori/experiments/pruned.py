"""Chapter 2's own tables: prunings chosen on one half of the prompts, the paper's table on the other half.

Attacks, prunings and their cost are `fragility`'s and `utility`'s; here stands what the chapter compares.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dori.attack import INITS, Attack
from dori.benchmark import Benchmark
from dori.drawing import Sampling, generate_and_score
from dori.errors import DoriError
from dori.experiments.foundations import Silencing, halved, trade_off, trade_off_shown
from dori.experiments.fragility import (
    attack_table,
    choose_setting,
    prune_table,
    regular_table,
)
from dori.experiments.pruned_sizes import PUBLISHED, SIZES, Sizes
from dori.experiments.replication import regular_prompts, top_prompts
from dori.experiments.selections import Setting, find_units, named
from dori.metrics.alignment import ClipScorer
from dori.metrics.intervals import Estimate
from dori.metrics.replication import BEST, MR, memorization_rate, rates_shown
from dori.mitigation.units import Units
from dori.study import Study

BEFORE, TWIN, HELD_OUT, NO_SEARCH = "as trained", "the twin, as trained", "images never seen", "no search"
NEMO, WANDA_1, WANDA_10 = (named(setting)["setting"] for setting in PUBLISHED)

# What the paper reports for SD v1.4 (arXiv 2507.16880, from secondary notes): pruning, start of the search ->
# memorization rate, copy score. The notes do not name the start; its figures stand beside the prompt's.
PAPER_SAYS = {
    (BEFORE, NO_SEARCH): ("0.98", "0.90 ± 0.04"),
    (HELD_OUT, "prompt"): ("0.00", "0.48 ± 0.06"),
    (NEMO, NO_SEARCH): ("0.20", "0.33 ± 0.18"),
    (NEMO, "prompt"): ("0.99", "0.91 ± 0.03"),
    (WANDA_1, NO_SEARCH): ("0.00", "0.20 ± 0.08"),
    (WANDA_1, "prompt"): ("0.72", "0.76 ± 0.05"),
    (WANDA_10, "prompt"): ("low; images spoilt", "–"),
}


class Choice(NamedTuple):
    """A method's candidates on the validation half, and the one that is reported."""

    tried: Silencing
    setting: Setting

    @property
    def label(self) -> str:
        """As tables and legends show it."""
        return self.tried.chosen


def sizes(study: Study) -> Sizes:
    """What the study's preset asks of this chapter."""
    return SIZES[study.preset.name]


def sampling(study: Study) -> Sampling:
    """The chapter's draws: fewer images of each prompt than in chapter 1, as there are many prunings."""
    return study.sampling(seeds=sizes(study).seeds)


def halves(study: Study) -> tuple[Benchmark, Benchmark]:
    """Verbatim prompts with the most copies: those settings are chosen on, those they are reported on."""
    top = halved(top_prompts(study))
    return top.select(split="validation"), top.select(split="test")


def starts(study: Study) -> list[tuple[str, int]]:
    """The initialisations that can be had, each with its place in INITS."""
    return [(init, k) for k, init in enumerate(INITS) if init != "regular" or len(study.regular)]


def choices(study: Study) -> tuple[dict[str, Choice], dict[str, str]]:
    """By method: the setting chosen on the validation half; and why a method cannot be used here.

    Raises DoriError if none can.
    """
    found, missing = {}, {}
    for method, candidates in sizes(study).candidates.items():
        try:
            found[method] = choose(study, candidates)
        except DoriError as error:  # a model without value layers, a benchmark without regular prompts
            missing[method] = str(error)
    if not found:
        raise DoriError("; ".join(f"{method} cannot be used: {reason}" for method, reason in missing.items()))
    return found, missing


def choose(study: Study, candidates: Sequence[Setting]) -> Choice:
    """Try the candidates on the validation half and take one by `fragility.choose_setting`.

    Without regular prompts, whose likeness is its second criterion, the sparser pruning counts as the better.
    """
    half = halves(study)[0]
    regular = regular_prompts(study).head(len(half))
    tables = [prune_table(study, half, s, sampling=sampling(study)) for s in candidates]
    pruned = pd.concat(tables, ignore_index=True)
    cost = pruned[["setting"]].assign(
        similarity=-pruned["density"], alignment=np.nan, alignment_unpruned=np.nan
    )
    if len(regular):
        clip = ClipScorer.load(device=study.model.device) if study.bundled else None
        costs = [regular_table(study, half, s, regular, clip=clip) for s in candidates]
        cost = pd.concat(costs, ignore_index=True)
    chosen = choose_setting(pruned, cost)
    setting = next(s for s in candidates if named(s)["setting"] == chosen)
    return Choice(Silencing(pruned, cost, chosen), setting)


def trials(chosen: Mapping[str, Choice]) -> pd.DataFrame:
    """Every candidate on the validation half, a row each, for reading; `chosen` marks one of each method."""
    table = trade_off_shown(pd.concat([trade_off(choice.tried) for choice in chosen.values()]))
    labels = {choice.label for choice in chosen.values()}
    return table.assign(chosen=["yes" if label in labels else "" for label in table.index])


def most_silent(chosen: Mapping[str, Choice]) -> Choice:
    """The choice that leaves least of the memory on the validation half; the first of equals."""
    silences = {
        method: memorization_rate(c.tried.pruned[c.tried.pruned["setting"] == c.label]).value
        for method, c in chosen.items()
    }
    return chosen[min(silences, key=silences.__getitem__)]


def left_out(study: Study, missing: Mapping[str, str]) -> str:
    """A sentence (Markdown) for each thing that this model and benchmark cannot have."""
    lines = [f"{method} cannot be used here: {reason}." for method, reason in missing.items()]
    if study.twin is None:
        lines.append(
            "This model has no twin: what a search writes by itself, held-out images alone can show."
        )
    if not len(study.regular):
        lines.append(
            "The benchmark has no prompts of kind `none`: there are no held-out images to search for, no "
            "search starts from a regular prompt, and what a pruning costs is not measured."
        )
    if not study.bundled:
        lines.append(
            "The bundled CLIP knows the bundled images alone, so alignment, FID and KID are left out."
        )
    return (
        "\n".join(f"- {line}" for line in lines) or "Nothing had to be left out for this model and benchmark."
    )


def reported(study: Study, chosen: Mapping[str, Choice]) -> dict[str, Setting]:
    """Prunings of the table by label: the paper's and the chosen ones, of the methods that can be used."""
    settings = [*sizes(study).published, *(c.setting for c in chosen.values())]
    usable = {named(s)["setting"]: s for s in settings if named(s)["method"] in chosen}
    return dict(sorted(usable.items(), key=lambda item: named(item[1])["method"]))


def put_to(study: Study, label: str, chosen: Mapping[str, Choice]) -> Benchmark:
    """The test prompts a pruning is put to: all for a chosen one, fewer for one of the paper's."""
    test, chosen_ones = halves(study)[1], {choice.label for choice in chosen.values()}
    return test if label in chosen_ones else test.head(sizes(study).published_on)


def runs(study: Study, chosen: Mapping[str, Choice]) -> pd.DataFrame:
    """The test half under each pruning: drawn from the prompt, and from what each search found.

    A row per image, columns as `fragility.attack_table` (movement is missing where nothing was searched),
    `pruning` (a label, "as trained", or which control) and `start` ("no search" or an initialisation).
    """
    test, size, labels = halves(study)[1], sizes(study), {c.label for c in chosen.values()}
    parts = [_marked(generate_and_score(study, test, sampling(study)), BEFORE, NO_SEARCH)]
    for label, setting in reported(study, chosen).items():
        numbers, shown = size.searched if label in labels else size.compared, put_to(study, label, chosen)
        parts.append(_marked(prune_table(study, shown, setting, sampling=sampling(study)), label, NO_SEARCH))
        for init, part in ((init, shown.head(numbers[k])) for init, k in starts(study)):
            off = find_units(study, part, setting)
            parts += _searched(study, part, init, label, off=off)
    for init, k in starts(study):
        parts += _searched(study, regular_prompts(study).head(size.controls[k]), init, HELD_OUT)
    if study.twin:
        parts += _searched(study.twin, test.head(size.controls[0]), INITS[0], TWIN)
    return pd.concat(parts, ignore_index=True)


def _searched(
    study: Study, prompts: Benchmark, init: str, pruning: str, *, off: Mapping[str, Units] | None = None
) -> list[pd.DataFrame]:
    """One row of the table, as a list that is empty where there is nothing to search for."""
    if not len(prompts):
        return []
    plan = Attack(init, sizes(study).budget)
    return [_marked(attack_table(study, prompts, plan, units=off, sampling=sampling(study)), pruning, init)]


def _marked(table: pd.DataFrame, pruning: str, start: str) -> pd.DataFrame:
    return table.assign(pruning=pruning, start=start)


def paper_table(table: pd.DataFrame) -> pd.DataFrame:
    """`runs` as the paper's table, its figures beside ours: a row per pruning and start of the search.

    Columns: MR here (with Wilson's interval), n, copy score here (median ± MAD of the best), and the paper's.
    """
    shown = rates_shown(table, ["pruning", "start"]).rename(
        columns={MR: "MR here", BEST: "copy score here (median ± MAD)"}
    )
    paper = [PAPER_SAYS.get(row, ("–", "–")) for row in shown.index]
    shown[["MR, paper", "copy score, paper"]] = paper
    return shown.rename_axis(["pruning", "search from"])


def rate(table: pd.DataFrame, pruning: str, start: str = NO_SEARCH) -> Estimate:
    """Memorization rate of one row of `runs`; NaN with n = 0 where it was not to be had."""
    return memorization_rate(table[(table["pruning"] == pruning) & (table["start"] == start)])


def headline_rates(table: pd.DataFrame, chosen: Mapping[str, Choice]) -> dict[str, Estimate]:
    """The chapter's headline rates by name, of the rows that were to be had."""
    rows = {"mr_original": (BEFORE, NO_SEARCH)}
    for method, choice in chosen.items():
        rows[f"mr_{method.lower()}"] = (choice.label, NO_SEARCH)
        rows |= {f"mr_{method.lower()}_attack_{init}": (choice.label, init) for init in INITS}
    rows |= {"mr_attack_heldout": (HELD_OUT, INITS[0]), "mr_attack_twin": (TWIN, INITS[0])}
    found = {name: rate(table, *row) for name, row in rows.items()}
    return {name: estimate for name, estimate in found.items() if estimate.n}


def shown(figure: Estimate, *, percent: bool = False) -> str:
    """An estimate in prose, or that there is none."""
    if np.isnan(figure.value):
        return "not measured here"
    if np.isnan(figure.low):
        return f"{figure.value:.2g}, n = {figure.n}"
    return figure.percent if percent else str(figure)


def rate_lines(figures: Mapping[str, Estimate], chosen: Mapping[str, Choice]) -> str:
    """The headline rates in words, a line (Markdown) for each chosen pruning and for each control."""
    lines = []
    for method, choice in chosen.items():
        found = {i: figures.get(f"mr_{method.lower()}_attack_{i}") for i in INITS}
        after = ", ".join(f"{i} {rate.percent}" for i, rate in found.items() if rate)
        alone = figures[f"mr_{method.lower()}"].percent
        lines.append(f"{choice.label}: the prompt {alone}; after a search from: {after}")
    controls = {HELD_OUT: "mr_attack_heldout", TWIN: "mr_attack_twin"}
    lines += [f"{label}, after a search from: prompt {figures[name].percent}"
              for label, name in controls.items() if name in figures]  # fmt: skip
    return "\n".join(f"- {line}" for line in lines)

"""What the prunings of chapter 2 take, what they cost, and what becomes of an image."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor

from dori.attack import Attack
from dori.benchmark import Benchmark
from dori.drawing import Trigger, drawn, prompt_trigger
from dori.experiments.pruned import BEFORE, Choice, halves, put_to, reported, sampling, sizes
from dori.experiments.replication import regular_prompts
from dori.experiments.searches import run_attacks
from dori.experiments.selections import find_units
from dori.experiments.utility import alignment_loss, utility_table
from dori.metrics.copy import similarity
from dori.metrics.intervals import Estimate
from dori.mitigation.units import Units, union
from dori.study import Study
from dori.tables import readable
from dori.testbed import cured

DEFENCE, MENDED = "adversarial", "mended + search"  # in data/testbed/cured, if any; as the figure says it
MEASURES = {  # column of `utility`: what it is called, and its decimals
    "alignment": ("alignment", 3),
    "alignment_change": ("its change (share)", 3),
    "fid": ("FID", 3),
    "kid": ("KID × 1000", 2),
    "diversity": ("copy score within a prompt", 2),
}


def units_off(study: Study, chosen: Mapping[str, Choice]) -> dict[str, dict[str, Units]]:
    """What each pruning of the table switches off, by its label and by the id of the test prompt."""
    return {
        label: find_units(study, put_to(study, label, chosen), s)
        for label, s in reported(study, chosen).items()
    }


def layers(off: Mapping[str, Mapping[str, Units]]) -> pd.DataFrame:
    """`units_off` as a row per pruning, prompt and layer: setting, id, layer, units, eligible, density."""
    tables = [u.table().assign(setting=label, id=i) for label, sets in off.items() for i, u in sets.items()]
    return pd.concat(tables, ignore_index=True)


def utility(
    study: Study, chosen: Mapping[str, Choice], off: Mapping[str, Mapping[str, Units]]
) -> pd.DataFrame:
    """`utility.utility_table` of each pruning, of all cuts of a chosen one at once, and of the twin.

    Empty without regular prompts.
    """
    regular = regular_prompts(study).head(sizes(study).regular)
    if not len(regular):
        return pd.DataFrame(columns=["label", "n"])
    joint = {f"{c.label}, all cuts": union(off[c.label].values()) for c in chosen.values()}
    twin = {"twin": study.twin} if study.twin else {}
    return utility_table(study, regular, {BEFORE: None, **off, **joint, **twin}, sampling=sampling(study))


def utility_shown(table: pd.DataFrame) -> pd.DataFrame:
    """`utility` for reading: each measure with its interval, of those that could be taken."""
    shown = table[["label", "n"]].copy()
    for measure, (name, decimals) in MEASURES.items():
        if measure in table and table[measure].notna().any():
            ends = (table[measure], table[f"{measure}_low"], table[f"{measure}_high"], table["n"])
            shown[name] = [Estimate(*row).shown(decimals) for row in zip(*ends, strict=True)]
    return readable(shown.set_index("label"))


def alignment_lost(table: pd.DataFrame, choice: Choice) -> Estimate:
    """Share of the prompt alignment that a chosen pruning costs; NaN where `utility` is empty."""
    unknown = Estimate(np.nan, np.nan, np.nan, 0)
    return alignment_loss(table, choice.label) if len(table) else unknown


def stages(study: Study, choice: Choice | None, n: int = 4, *, mended: bool = False) -> list[dict]:
    """For `plots.comparison_grid`: `n` test prompts as trained, pruned, and searched for; [] for no choice.

    Each stage shows the best of its images, as the memorization rate takes the best. With `mended`, and where
    a model that adversarial fine-tuning changed is shipped for this one (`dori.testbed.cured`), a last stage
    is what a search finds in that.
    """
    if choice is None:
        return []
    test, budget = halves(study)[1].head(sizes(study).searched[0]), sizes(study).budget
    off = find_units(study, test, choice.setting)
    found, _ = run_attacks(study, test, Attack(steps=budget), off)
    shown = {
        i: _stages(study, test, i, off[i], embeds=found[i].tensors[str(budget)]) for i in list(found)[:n]
    }
    whole = mended_study(study) if mended else None
    if whole is not None:
        found, _ = run_attacks(whole, test.only(list(shown)), Attack(steps=budget), {})
        for i, entry in shown.items():
            best = _best(whole, test, {MENDED: Trigger(i, found[i].tensors[str(budget)])})
            for part, value in best.items():
                entry[part] |= value
    return list(shown.values())


def mended_study(study: Study) -> Study | None:
    """The study on the model after adversarial fine-tuning; None where none is shipped for this model."""
    shipped = cured.index()
    if not (study.bundled and shipped.is_base(study.model) and DEFENCE in shipped.records()):
        return None
    return study.on(cured.cured_model(study.model, DEFENCE))


def _stages(study: Study, prompts: Benchmark, item: str, off: Units, *, embeds: Tensor) -> dict:
    """One row of the grid."""
    original = prompts.images([item], size=study.model.defaults.image_size)
    triggers = {
        BEFORE: prompt_trigger(prompts, item),
        "pruned": prompt_trigger(prompts, item, off),
        "pruned + search": Trigger(item, embeds, off),
    }
    best = _best(study, prompts, triggers)
    images = {"training image": original[0]} | best["images"]
    return {"prompt": prompts.table.loc[item, "prompt"], "scores": best["scores"], "images": images}


def _best(study: Study, prompts: Benchmark, triggers: Mapping[str, Trigger]) -> dict[str, dict]:
    """Of each stage the image nearest to the training image: `images` and `scores`, by stage."""
    best: dict[str, dict] = {"images": {}, "scores": {}}
    for stage, (trigger, images) in zip(
        triggers, drawn(study, list(triggers.values()), sampling(study)), strict=True
    ):
        original = prompts.images([trigger.id], size=study.model.defaults.image_size)
        scores = similarity(study.descriptor.embed(images), study.descriptor.embed(original))[:, 0]
        best["scores"][stage] = float(scores.max())
        best["images"][stage] = images[int(scores.argmax())]
    return best

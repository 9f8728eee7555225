"""Chapter 3, third level: do prunings made for two triggers of one image take the same units?

And does what was taken for one trigger stop another?
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dori import locality
from dori.drawing import digest
from dori.experiments.locality_sizes import PUBLISHED, WANDA
from dori.experiments.memories import Memory, redrawn, sizes
from dori.experiments.selections import Setting, named, select_units, selection_key
from dori.experiments.triggers import Found
from dori.locality.weights import ALL
from dori.metrics.intervals import Estimate, fixed, mean_of_few
from dori.mitigation.nemo import Nemo
from dori.mitigation.units import Units
from dori.mitigation.wanda import Wanda
from dori.store import Record
from dori.study import Study
from dori.tables import readable

NOISE, DRAWS = "same trigger, other noise", "same start, other draws"
STRANGERS = "different images"


def settings(study: Study) -> dict[str, Setting]:
    """The prunings whose sets are compared, by label; NeMo needs regular prompts."""
    nemo = (sizes(study).nemo,) if len(study.regular) > 1 else ()
    return {named(s)["setting"]: s for s in (*nemo, WANDA, PUBLISHED)}


def units_of(study: Study, found: Sequence[Found], setting: Setting) -> dict[str, Units]:
    """What a method switches off for each embedding found, by the name of its search; kept in the run."""
    decides = selection_key(study, setting)
    keys = {f.name: {**decides, "embedding": f.source or digest(f.embeds)} for f in found}
    todo = [f for f in found if not study.store.has("units", keys[f.name], passes=setting.passes)]
    for f in todo:  # one at a time: nothing is lost, and a search is long enough for a batch of its own
        with study.store.timed("units"):
            units = select_units(study, f.embeds[None].to(study.model.device), [""], setting)[0]
            study.store.save("units", keys[f.name], Record({"count": units.count}, dict(units)))
    kept = {n: study.store.get("units", key, _missing, passes=setting.passes) for n, key in keys.items()}
    return {name: Units(record.tensors) for name, record in kept.items()}


def _missing() -> Record:
    raise RuntimeError("a record of units was removed while it was being read")


def compared(memory: Memory, setting: Setting) -> list[Found]:
    """The triggers of an image whose units are compared: the first found from random numbers."""
    size = sizes(memory.study)
    return memory.triggers(n=size.nemo_compared if isinstance(setting, Nemo) else size.compared)


def other_noise(setting: Setting) -> Setting:
    """The same method with another noise: what it takes for one trigger anew."""
    return dataclasses.replace(setting, seed=setting.seed + 100)


def agreements(memory: Memory, setting: Setting) -> pd.DataFrame:
    """IoU of what is taken for each pair of triggers, by layer; and for the two ceilings.

    Columns as `locality.agreement`, with between ("triggers", or what a ceiling holds fixed), memory, image,
    setting. Ceilings: each trigger with another noise; for Wanda, two searches from one start too, with other
    draws.
    """
    study, found = memory.study, compared(memory, setting)
    taken = units_of(study, found, setting)
    again = units_of(study, found, other_noise(setting))
    parts = [("triggers", taken)]
    parts += [(NOISE, {name: units, f"{name}, again": again[name]}) for name, units in taken.items()]
    pair = redrawn(memory)
    if len(pair) == 2 and isinstance(setting, Wanda):  # NeMo's search is too long for one more ceiling
        parts.append((DRAWS, units_of(study, pair, setting)))
    tables = [locality.agreement(sets).assign(between=between) for between, sets in parts]
    about = {"memory": memory.kind, "image": memory.id, **named(setting)}
    return pd.concat(tables, ignore_index=True).assign(**about)


def all_agreements(memories: Sequence[Memory]) -> pd.DataFrame:
    """`agreements` of every memory and setting."""
    parts = [agreements(m, s) for m in memories for s in settings(m.study).values()]
    return pd.concat(parts, ignore_index=True)


def across_images(memories: Sequence[Memory]) -> pd.DataFrame:
    """Agreement of what is taken for the first triggers of *different* images of one kind of memory.

    A control: so much of an overlap has nothing to do with the image. Columns as `locality.agreement`, with
    memory, method and setting; a and b are images.
    """
    kinds, parts = dict.fromkeys(m.kind for m in memories), []
    for kind in kinds:
        some = [m for m in memories if m.kind == kind and m.triggers(n=1)]
        for setting in settings(some[0].study).values() if len(some) > 1 else ():
            sets = {m.id: next(iter(units_of(m.study, m.triggers(n=1), setting).values())) for m in some}
            parts.append(locality.agreement(sets).assign(memory=kind, **named(setting)))
    return (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["memory", "setting", "layer"])
    )


def strangers_iou(across: pd.DataFrame, label: str, kind: str) -> float:
    """`mean_iou` for triggers of different images: mean over pairs of images and layers; NaN without any."""
    part = across[(across["setting"] == label) & (across["memory"] == kind)]
    return float(part.loc[part["layer"] != ALL, "iou"].mean()) if len(part) else float("nan")


def layer_table(table: pd.DataFrame) -> pd.DataFrame:
    """By method, setting, memory and layer: iou with interval (over images and their triggers), chance and
    ceiling (same trigger, other noise) as means, units."""
    rows = []
    for key, part in table.groupby(["method", "setting", "memory", "layer"], sort=False):
        of = dict(list(part.groupby("between", sort=False)))
        pairs = of.get("triggers", part.iloc[:0])
        iou = locality.agreement_estimate(pairs, by="image", resamples=500)
        ceiling = of.get(NOISE, part.iloc[:0])["iou"].mean()
        units = pairs[["units_a", "units_b"]].to_numpy(float)
        rows.append((*key, *iou[:3], pairs["chance"].mean(), ceiling, units.mean() if units.size else np.nan))
    columns = ["method", "setting", "memory", "layer", "iou", "low", "high", "chance", "ceiling", "units"]
    return pd.DataFrame(rows, columns=columns)


def indices(table: pd.DataFrame) -> pd.DataFrame:
    """The index of this level: where the IoU of the best layer lies between chance (0) and the ceiling (1).

    The best layer is the one with the highest index of those in which at least half of the pairs have units
    and the ceiling is above chance. A row per setting and image: method, setting, memory, image, layer,
    index, iou, chance, ceiling.
    """
    rows = []
    for key, part in table.groupby(["method", "setting", "memory", "image"], sort=False):
        placed = [(layer, *_placed(p)) for layer, p in part.groupby("layer", sort=False) if layer != ALL]
        placed = [p for p in placed if not np.isnan(p[1])]
        best = max(placed, key=lambda p: p[1]) if placed else ("none", *[np.nan] * 4)
        rows.append((*key, *best))
    columns = ["method", "setting", "memory", "image", "layer", "index", "iou", "chance", "ceiling"]
    return pd.DataFrame(rows, columns=columns)


def _placed(part: pd.DataFrame) -> tuple[float, float, float, float]:
    """Index, IoU, chance and ceiling of one layer of one memory; NaN where too few pairs have units."""
    pairs, ceiling = part[part["between"] == "triggers"], part.loc[part["between"] == NOISE, "iou"].mean()
    if pairs.empty or pairs["iou"].notna().mean() < 0.5:
        return np.nan, np.nan, np.nan, np.nan
    iou, chance = float(pairs["iou"].mean()), float(pairs["chance"].mean())
    return locality.placed(iou, chance, ceiling), iou, chance, float(ceiling)


def mean_iou(table: pd.DataFrame, label: str, kind: str) -> Estimate:
    """IoU of two triggers' sets, mean over layers and pairs of each image, then over images."""
    part = table[(table["setting"] == label) & (table["memory"] == kind) & (table["between"] == "triggers")]
    part = part[part["layer"] != ALL]
    return mean_of_few(part.groupby("image")["iou"].mean(), within=(0, 1))


def label(setting: Setting) -> str:
    """A setting as tables have it."""
    return named(setting)["setting"]


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`layer_table` for the figure: NeMo, and Wanda as chosen; not the paper's own setting."""
    return layer_table(table[table["setting"] != label(PUBLISHED)]).drop(columns="setting")


def summary(table: pd.DataFrame, across: pd.DataFrame) -> pd.DataFrame:
    """All layers together, for reading: IoU, that of different images (`across_images`), chance, both
    ceilings and units by setting and memory."""
    rows, others = [], across[across["layer"] == ALL]
    whole = table[table["layer"] == ALL]
    for key, part in whole.groupby(["setting", "memory"], sort=False):
        of = dict(list(part.groupby("between", sort=False)))
        pairs, none = of.get("triggers", part.iloc[:0]), part.iloc[:0]
        iou = locality.agreement_estimate(pairs, by="image", resamples=500)
        ceilings = [of.get(between, none)["iou"].mean() for between in (NOISE, DRAWS)]
        units = pairs[["units_a", "units_b"]].to_numpy(float)
        strangers = others[(others["setting"] == key[0]) & (others["memory"] == key[1])]
        between = strangers["iou"].mean() if len(strangers) else np.nan
        shares = [fixed(v) for v in (between, pairs["chance"].mean(), *ceilings)]
        rows.append((*key, iou.short, *shares, f"{units.mean():,.0f}" if units.size else "–"))
    columns = ["setting", "memory", "IoU [95 % interval]", STRANGERS, "chance", NOISE, DRAWS, "units, mean"]
    return readable(pd.DataFrame(rows, columns=columns).set_index(["setting", "memory"]))

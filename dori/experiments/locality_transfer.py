"""Chapter 3, third level, directly: does what was taken for one trigger stop another?

A pruning that stops everything stops other triggers too. So beside prunings made for triggers of the same
image stand those made for triggers of other images: what these stop has nothing to do with the image.
"""

from collections.abc import Sequence

import pandas as pd

from dori.experiments.locality_sizes import MILDER, WANDA
from dori.experiments.locality_weights import compared, units_of
from dori.experiments.memories import Memory, sampling, sizes
from dori.experiments.selections import Setting, named
from dori.experiments.triggers import Found, score_found
from dori.metrics.intervals import Estimate, mean_of_few
from dori.mitigation.units import Units
from dori.tables import readable

PROMPT = "prompt"  # the row's own prompt among the triggers
COLUMNS = ["a", "b", "made_for", "rate", "memory", "image", "method", "setting"]
OWN, SAME, OTHER, BY_PROMPT = (
    "the trigger itself",
    "another of the image",
    "one of another image",
    "the prompt",
)


def transfers(
    memories: Sequence[Memory],
    setting: Setting = WANDA,
    n: int | None = None,
    *,
    others: Sequence[Memory] | None = None,
) -> pd.DataFrame:
    """Switch off what was taken for a, draw from trigger b: does the image come back?

    a is the image's prompt, one of its triggers (the first `n` of those compared), or the first trigger of
    another ordinary image (of `others`; of all memories unless given). A row per memory, a and b: memory,
    image, method, setting, a, b, made_for (OWN, SAME, OTHER, BY_PROMPT), rate (1 if any seed returns the
    image).
    """
    strangers = [m for m in others or memories if m.kind == "ordinary" and m.triggers(n=1)]
    parts = [_transfer(m, [s for s in strangers if s.id != m.id], setting, n) for m in memories]
    return pd.concat(parts, ignore_index=True)


def _transfer(memory: Memory, strangers: Sequence[Memory], setting: Setting, n: int | None) -> pd.DataFrame:
    own = compared(memory, setting)[:n]
    drawn, cuts = [_prompt(memory), *own], _cuts(memory, strangers, own, setting)
    parts = []
    for a, off in cuts.items():
        units = {b.name: off for b in drawn}
        scored = score_found(
            memory.study, memory.prompts, drawn, units=units, sampling=sampling(memory.study)
        )
        hit = scored.groupby("trigger", sort=False)["replicated"].any().astype(float)
        rows = [(a, b, _relation(a, b, [f.name for f in own]), rate) for b, rate in hit.items()]
        parts.append(pd.DataFrame(rows, columns=["a", "b", "made_for", "rate"]))
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(a=table["a"].map(lambda x: _short(x, memory.id)), b=table["b"].map(_number))
    return table.assign(memory=memory.kind, image=memory.id, **named(setting))


def _cuts(
    memory: Memory, strangers: Sequence[Memory], own: Sequence[Found], setting: Setting
) -> dict[str, Units]:
    """What is switched off, by the name of the trigger it was taken for."""
    cuts = units_of(memory.study, [_prompt(memory), *own], setting)
    for other in strangers:
        cuts |= units_of(other.study, other.triggers(n=1), setting)
    return cuts


def _prompt(memory: Memory) -> Found:
    text = memory.prompts.prompts()
    y = memory.study.model.encode_prompts(text)[0]
    return Found(PROMPT, memory.id, "prompt", 0, 0, y, y, source=f"encoded: {text[0]}")


def _relation(a: str, b: str, own: Sequence[str]) -> str:
    if a == b:
        return OWN
    if a == PROMPT:
        return BY_PROMPT
    return SAME if a in own else OTHER


def _number(name: str) -> str:
    """A search's number is enough inside one image."""
    return name if name == PROMPT else name.split()[-1]


def _short(name: str, image: str) -> str:
    return _number(name) if name == PROMPT or name.startswith(image) else f"of {name.split()[0]}"


def nemo_transfers(memories: Sequence[Memory]) -> pd.DataFrame:
    """`transfers` by the neurons of NeMo's search; empty without regular prompts, as NeMo needs them."""
    if not len(memories[0].study.regular):
        return pd.DataFrame(columns=COLUMNS)
    return transfers(memories, sizes(memories[0].study).nemo)


def milder(memories: Sequence[Memory], n: int = 2) -> pd.DataFrame:
    """`transfers` at lower sparsities, of fewer triggers: a cut that does not stop everything tells more."""
    return pd.concat([transfers(memories, setting, n) for setting in MILDER], ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Share of triggers that still return the image, by setting, memory and whom the pruning was made for."""
    triggers = table[(table["b"] != PROMPT) & (table["made_for"] != BY_PROMPT)]
    shown = triggers.pivot_table("rate", ["setting", "memory"], "made_for", "mean", sort=False)
    return readable(shown.reindex(columns=[c for c in (OWN, SAME, OTHER) if c in shown]))


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Share of triggers that still return their image, per memory and image.

    A column for each of OWN, SAME and OTHER that the pruning was made for.
    """
    triggers = table[(table["b"] != PROMPT) & (table["made_for"] != BY_PROMPT)]
    if triggers.empty:
        return pd.DataFrame(columns=["memory", "image", OWN, SAME, OTHER])
    found = triggers.pivot_table("rate", ["memory", "image"], "made_for", "mean", sort=False)
    return found.reindex(columns=[OWN, SAME, OTHER]).reset_index()


def headlines(table: pd.DataFrame) -> dict[str, Estimate]:
    """Of the ordinary memories, means over images of `rates`."""
    part = rates(table)
    part = part[part["memory"] == "ordinary"]
    columns = {"mr_transfer_wanda": SAME, "mr_own_wanda": OWN, "mr_other_image_wanda": OTHER}
    return {name: mean_of_few(part[column], within=(0, 1)) for name, column in columns.items()}

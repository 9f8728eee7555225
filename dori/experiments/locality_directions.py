"""Chapter 3, explanations put to the test: which part of the way of a search does the image need?

Cosines between ways compare all that a way has. A block reads only the directions that the rows of its value
projection span. Here a search's way, end minus start, loses those directions, and the rest is added to the
start: does the image still come? And where a door is known, do activations show it if only it is looked at?
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dori import locality
from dori.drawing import digest
from dori.experiments.locality_activations import MOST, nearer
from dori.experiments.memories import ORDINARY, PLANTED, Memory, ends, sampling, sizes, starts
from dori.experiments.triggers import Found, score_found, trigger_rate
from dori.hooks import find_layer
from dori.metrics.intervals import mean_of_few

NEURONS = 16  # value neurons of a block: as many as the door of a planted memory has
TRIED = 6  # triggers of an image that lose what the door reads
DRAWS = 20  # random sets of neurons beside the door's
ALONE = "of the way nothing but"
WITHOUT = "the way without"
DOOR, RANDOM = "what the door reads", "as many random directions"


def spanned(rows: Tensor) -> Tensor:
    """Projection (D, D), float64, on the directions that the rows (k, D) span; k at most D."""
    q, _ = torch.linalg.qr(rows.detach().cpu().double().T)
    return q @ q.T


def read_most(weight: Tensor, way: Tensor, count: int = NEURONS) -> Tensor:
    """Rows of a value projection (d, D) that a way (T, D) drives most, by the mean |value| of its tokens."""
    weight = weight.detach().cpu().double()
    driven = (way.double() @ weight.T).abs().mean(0)
    return weight[driven.topk(min(count, *weight.shape)).indices]


def altered(memory: Memory, found: Found, change: Callable[[Tensor], Tensor], words: str) -> Found:
    """A search that went only a part of its way: `change` of the tokens' way (T, D), in float64.

    Rows of the embedding that are no tokens (a pooled vector) keep their whole way. `words` say what the
    change is, for the name and for what records are kept by.
    """
    start, end = found.start.cpu().double(), found.embeds.cpu().double()
    way = end - start
    tokens = memory.study.model.tokens(way[None]).shape[1]
    part = torch.cat([change(way[:tokens]), way[tokens:]])
    source = f"{found.name} to {digest(found.embeds)}, {words}"
    return dataclasses.replace(
        found, name=f"{found.name}, {words}", embeds=(start + part).float(), source=source
    )


def table(memories: Sequence[Memory]) -> pd.DataFrame:
    """Copy scores of triggers whose way lacks what one block reads of it most.

    Of each block of cross-attention, the directions of the `NEURONS` value neurons that the trigger's own way
    drives most. Nobody has to know where a memory is. Columns as of `locality_blocks.table`, whose summaries
    serve here too. Raises DoriError for a model with joint attention.
    """
    rows = []
    for memory in memories:
        found = memory.triggers(n=sizes(memory.study).blocked)
        blocks = memory.study.model.cross_attention() if found else ()
        made = [(f, b, _without_block(memory, f, b)) for f in found for b in blocks]
        best = _best(memory, [one for _, _, one in made])
        for trigger, block, one in made:
            rows.append((memory.kind, memory.id, trigger.name, block, *best[one.name]))
    return pd.DataFrame(rows, columns=["memory", "image", "trigger", "layer", "score", "replicated"])


def known_door(memories: Sequence[Memory]) -> pd.DataFrame:
    """Share of triggers that still return their image with a part of their way, for the known doors.

    A row per kind of memory and part: without what the door reads, without as many random directions, and of
    either nothing else. Ordinary memories have no door: for them, what the same neurons of the model as
    trained read, those of the first plant. Empty without planted memories, and without triggers.
    """
    planted, parts = [m for m in memories if m.kind == PLANTED], []
    for memory in memories if planted else ():
        which, layer, chosen = _door(memory, planted[0])
        door = find_layer(memory.study.model.unet, layer).weight[chosen]
        draw = torch.Generator().manual_seed(0)
        other = torch.randn(door.shape, generator=draw, dtype=torch.double)
        spans = {DOOR: (which, spanned(door)), RANDOM: ("seed 0", spanned(other))}
        for name, (about, span) in spans.items():
            for how, kept in ((WITHOUT, torch.eye(len(span)).double() - span), (ALONE, span)):
                made = [
                    altered(memory, f, lambda way, kept=kept: way @ kept, f"{how} {name} ({about})")
                    for f in memory.triggers(n=TRIED)
                ]
                if made:
                    scores = score_found(memory.study, memory.prompts, made, sampling=sampling(memory.study))
                    parts.append(scores.assign(memory=memory.kind, part=f"{how} {name}"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["memory", "part"])


def door_rates(found: pd.DataFrame) -> pd.DataFrame:
    """`known_door` for reading: by part of the way and memory, share of triggers that return the image."""
    rows = []
    for (part, memory), some in found.groupby(["part", "memory"], sort=False):
        rows.append((part, memory, some["trigger"].nunique(), some["id"].nunique(), trigger_rate(some).short))
    columns = ["added to the start", "memory", "triggers", "images", "image comes back"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:2]).sort_index(level=0, key=_in_order)


def door_said(found: pd.DataFrame) -> str:
    """What the test of the known doors says of the explanation that an embedding is mostly free."""
    if found.empty:
        return ""
    hit = found.groupby(["memory", "part", "id", "trigger"])["replicated"].any()
    rate = hit.groupby(level=["memory", "part"]).mean()
    if PLANTED not in rate.index:
        return ""
    lost = rate[PLANTED, f"{WITHOUT} {RANDOM}"] - rate[PLANTED, f"{WITHOUT} {DOOR}"]
    alone = rate[PLANTED, f"{ALONE} {DOOR}"] - rate[PLANTED, f"{ALONE} {RANDOM}"]
    usual = rate.get((ORDINARY, f"{WITHOUT} {RANDOM}"), 0) - rate.get((ORDINARY, f"{WITHOUT} {DOOR}"), 0)
    needed = "need" if lost >= 0.5 > usual else "do not stand out by needing"
    enough = "is enough" if alone >= 0.5 else "is not enough"
    return (
        f"Planted memories {needed} what their door reads: without it {lost:.2f} more of their triggers fail "
        f"than without as many random directions (ordinary memories {usual:.2f}). By itself it {enough}: "
        f"with nothing else {alone:.2f} more work than with random directions."
    )


def door_activity(memories: Sequence[Memory]) -> pd.DataFrame:
    """How much nearer an image's triggers are to each other than to those of others, at the door's neurons.

    `locality_activations.meeting`'s index, not of a layer's values token by token but of each neuron's mean
    |value| over the tokens, which is NeMo's measure and does not know the order of tokens. A row per memory,
    planted or ordinary (as in `known_door`): memory, image, door (at its neurons), others (at as many other
    neurons of the layer, mean of `DRAWS` random sets). Empty without planted memories.
    """
    planted, rows = [m for m in memories if m.kind == PLANTED], []
    for memory in memories if planted else ():
        own = memory.triggers(n=MOST)
        strangers = [
            f for m in memories if m.kind == ORDINARY and m.id != memory.id for f in m.triggers(n=MOST)
        ]
        if len(own) > 1 and strangers:
            _, layer, chosen = _door(memory, planted[0])
            model, count = memory.study.model, int(chosen.sum())
            size = model.value_activity(ends([*own, *strangers]).to(model.device), up=True)[layer].cpu()
            rest, draw = torch.nonzero(~chosen)[:, 0], torch.Generator().manual_seed(0)
            sets = [rest[torch.randperm(len(rest), generator=draw)[:count]] for _ in range(DRAWS)]
            at = [nearer(locality.pairwise(size[:, units]), len(own)) for units in (chosen, *sets)]
            rows.append((memory.kind, memory.id, at[0], float(np.mean(at[1:]))))
    return pd.DataFrame(rows, columns=["memory", "image", "door", "others"])


def activity_said(found: pd.DataFrame) -> str:
    """`door_activity` as a sentence, means over images of a kind."""
    parts = []
    for kind, part in found.groupby("memory", sort=False):
        door, others = mean_of_few(part["door"]), mean_of_few(part["others"])
        parts.append(f"{door.short} for {kind} memories, where as many other neurons have {others.short}")
    return f"At the door's neurons alone the index is {'; '.join(parts)}." if parts else ""


def coarseness(memories: Sequence[Memory]) -> str:
    """How much of a way `table` takes: the share of its squared length, beside that of random directions."""
    shares = []
    for memory in memories:
        found = memory.triggers(n=sizes(memory.study).blocked)
        for block in memory.study.model.cross_attention() if found else ():
            weight = find_layer(memory.study.model.unet, f"{block}.to_v").weight
            shares += [_share(way, read_most(weight, way)) for way in _ways(memory, found)]
    if not shares:
        return ""
    size = memories[0].study.model.unconditional.shape[-1]
    return (
        f"Of {size} directions, those of a block's {NEURONS} most driven neurons hold {np.mean(shares):.2f} "
        "of the squared length of a way (mean over blocks and triggers), where as many random ones hold "
        f"{NEURONS / size:.2f}. What is taken away with them is read by other blocks, too."
    )


def _ways(memory: Memory, found: Sequence[Found]) -> Tensor:
    """The tokens' ways, (n, T, D), float64."""
    return memory.study.model.tokens(ends(found).cpu().double() - starts(found).cpu().double())


def _share(way: Tensor, rows: Tensor) -> float:
    return float((way @ spanned(rows)).square().sum() / way.square().sum())


def _in_order(parts: pd.Index) -> pd.Index:
    """The parts as they are explained: without and alone, the door before random directions."""
    return parts.map([f"{how} {what}" for how in (WITHOUT, ALONE) for what in (DOOR, RANDOM)].index)


def _door(memory: Memory, first: Memory) -> tuple[str, str, Tensor]:
    """Whose door, its value layer and neurons (d,): a planted memory's own, for others the `first` one's."""
    from dori.testbed.planted import known_units

    which = memory.id if memory.kind == PLANTED else first.id
    ((layer, chosen),) = known_units(which)[0].items()
    return which, layer, chosen


def _without_block(memory: Memory, found: Found, block: str) -> Found:
    weight = find_layer(memory.study.model.unet, f"{block}.to_v").weight
    words = f"without what {NEURONS} neurons of {block} read"
    return altered(memory, found, lambda way: way - way @ spanned(read_most(weight, way)), words)


def _best(memory: Memory, made: Sequence[Found]) -> dict[str, tuple[float, bool]]:
    """Best score of each over the seeds, and whether it is a copy."""
    if not made:
        return {}
    scores = score_found(memory.study, memory.prompts, made, sampling=sampling(memory.study))
    by = scores.groupby("trigger", sort=False)
    return {
        name: (float(score), bool(hit))
        for name, score, hit in zip(by.groups, by["score"].max(), by["replicated"].any(), strict=True)
    }

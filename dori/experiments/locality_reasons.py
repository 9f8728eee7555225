"""Chapter 3: where its verdicts disagree, with the paper or with the planted memories, and what may be why.

Sentences about figures that the chapter has, and only as far as these allow them. The known doors
(`locality_directions.known_door`), the overlap across images and the milder cuts put some to the test.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dori.claims import FAILS, SIGNS, holds, judge, load_claims, show_number
from dori.experiments.locality_directions import activity_said, door_said
from dori.experiments.locality_embeddings import one_way, other_ways, spread_ratio
from dori.experiments.locality_levels import LEAST, LEVELS, index, tells
from dori.experiments.locality_sizes import WANDA
from dori.experiments.locality_transfer import OTHER, SAME
from dori.experiments.locality_transfer import rates as transfer_rates
from dori.experiments.locality_weights import NOISE, label, mean_iou, strangers_iou
from dori.experiments.memories import ORDINARY, PLANTED, Memory
from dori.locality.weights import ALL
from dori.metrics.intervals import Estimate, mean_of_few

ADDED = LEVELS[-2:]  # written down after others had been found blind


def reasons(
    ordinary: Sequence[Memory],
    table: pd.DataFrame,
    gaps: Mapping[str, Estimate],
    *,
    gone: Estimate,
    agreed: pd.DataFrame,
    moved: pd.DataFrame,
    across: pd.DataFrame,
    doors: pd.DataFrame,
    active: pd.DataFrame,
    figures: Mapping[str, Mapping[str, Any]],
) -> str:
    """All of them, in Markdown. From `locality_levels.per_image` and `gaps`, `locality_embeddings.way_gone`,
    `locality_weights.all_agreements`, `locality_transfer.transfers`, `locality_weights.across_images`,
    `locality_directions.known_door` and `door_activity`, and the study's headlines."""
    starts = spread_ratio(ordinary, at_start=True)
    lines = [
        against_paper(figures),
        seen(gaps),
        free(doors),
        averaged(active),
        shared_ways(ordinary),
        inherited(starts, spread_ratio(ordinary), gone),
        unspecific(agreed, across),
        thin_ceiling(table, agreed),
        saturated(table, moved),
    ]
    return "\n".join(f"- {line}" for line in lines if line)


def against_paper(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The paper's claims about this chapter that do not replicate, with the figure here."""
    failed = [
        f"“{claim.claim.rstrip('.')}” ({show_number(figures[claim.metric]['value'])}, rule "
        f"{SIGNS.get(claim.op, claim.op)} {claim.value:g})"
        for claim in load_claims()
        if claim.chapter.startswith("03") and claim.of_paper
        and judge(claim, figures.get(claim.metric)) == FAILS
    ]  # fmt: skip
    if not failed:
        return "**With the paper**: none of its claims that were measured in this chapter fails."
    return "**With the paper**: by the rules these of its claims fail here: " + "; ".join(failed) + "."


def seen(gaps: Mapping[str, Estimate]) -> str:
    """Which levels tell planted memories from ordinary ones: the first, or only the added one?"""
    known = zip(LEVELS, gaps.values(), strict=True)
    found = {level: gap for level, gap in known if not np.isnan(gap.value)}
    if not found:
        return ""
    good = [level for level, gap in found.items() if tells(gap)]
    words = f"**With the planted memories**: {len(good)} of {len(found)} levels tell them from ordinary ones"
    if not good or not set(good) <= set(ADDED):
        return words + (f" ({', '.join(good)})." if good else ".")
    return (
        f"{words}: *{', '.join(good)}*, added when others had been found blind. The levels that compare what "
        "triggers have in common do not; what tells them takes something away. A likely reason: "
        "triggers share what they paint, wherever the memory is, and a free embedding differs in much that "
        "no block needs."
    )


def shared_ways(ordinary: Sequence[Memory]) -> str:
    """How much of the agreement of two ways is there between searches for different images, too?"""
    own, others = (mean_of_few(f(ordinary)) for f in (one_way, other_ways))
    if np.isnan(own.value) or np.isnan(others.value):
        return ""
    return (
        f"**Ways, tested**: the ways of two searches for one image have a cosine of {own.short}, those of "
        f"searches for different images {others.short}. So {100 * others.value / own.value:.0f} % of what "
        "the index of embeddings calls common has nothing to do with the image, and a difference in it "
        "between two kinds of memories need not be one of places."
    )


def free(doors: pd.DataFrame) -> str:
    """The second half of that reason, tested: is most of an embedding free where the place is known?"""
    told = door_said(doors)
    return f"**That reason, tested** on the doors that are known: {told[0].lower()}{told[1:]}" if told else ""


def averaged(active: pd.DataFrame) -> str:
    """Why the level of activations may be blind, tested: does the door show where it alone is looked at?"""
    told = activity_said(active)
    if not told:
        return ""
    mean = active[active["memory"] == PLANTED][["door", "others"]].mean()
    shows = mean["door"] - mean["others"] >= LEAST
    tail = (
        "So the activations do show the place of a planted memory, and a distance over a whole layer, token "
        "by token, averages it away."
        if shows
        else "So not even there do the activations show the place of a planted memory."
    )
    return f"**Activations, tested** on the doors that are known: {told[0].lower()}{told[1:]} {tail}"


def unspecific(agreed: pd.DataFrame, across: pd.DataFrame) -> str:
    """How much of the overlap of Wanda's sets is there between triggers of different images, too?"""
    name = label(WANDA)
    own, others = mean_iou(agreed, name, ORDINARY).value, strangers_iou(across, name, ORDINARY)
    if np.isnan(own) or np.isnan(others):
        return ""
    part = agreed[(agreed["setting"] == name) & (agreed["memory"] == ORDINARY) & (agreed["layer"] != ALL)]
    chance = part.loc[part["between"] == "triggers", "chance"].mean()
    return (
        f"**Overlap, tested**: Wanda's sets for two triggers of one image overlap by {own:.2f}, those for "
        f"triggers of different images by {others:.2f}, random sets by {chance:.2f} (means over layers). "
        f"So {100 * (others - chance) / (own - chance):.0f} % of the overlap beyond chance has nothing to do "
        "with the image. Whatever such triggers share, an overlap alone does not say that it is the "
        "image."
    )


def inherited(starts: Estimate, ends: Estimate, gone: Estimate) -> str:
    """Is the spread of the triggers that of their starts?"""
    if any(np.isnan(e.value) for e in (starts, ends, gone)):
        return ""
    made = holds("spread_is_made", gone.value)
    text = (
        f"**Spread**: before any search two random starts lie {starts.short} times as far apart as two "
        f"regular prompts, after it two triggers {ends.short} times. The way of a search is {gone.short} "
        "of the distance of two starts, so the rule that the search make the spread is "
        f"{'met' if made else 'not met'}."
    )
    if made and holds("spread", starts.value):
        text += (
            f" It is met too easily: the starts alone have {100 * starts.value / ends.value:.0f} % of the "
            "triggers' spread and meet the rule for the paper's claim, and a long way from a far start shows "
            "that the search moves, not that it spreads."
        )
    return text


def thin_ceiling(table: pd.DataFrame, agreed: pd.DataFrame) -> str:
    """What the index of weights divides by, and how far it swings over images."""
    one = agreed[(agreed["layer"] == ALL) & (agreed["between"] == NOISE)]
    pairs = one.groupby(["setting", "memory", "image"]).size()
    values = table[table["level"].isin(["weights (NeMo)", "weights (Wanda)"])]["index"].dropna()
    if pairs.empty or values.empty:
        return ""
    text = (
        "**Weights**: the index divides by the distance of a ceiling from chance, and a ceiling is "
        f"{pairs.max()} {'pair' if pairs.max() == 1 else 'pairs'} of sets for each image. Over images and "
        f"methods it runs from {values.min():.2f} to {values.max():.2f}"
    )
    if values.max() > 1:
        text += (
            ", and above 1 two triggers agree more than one does with itself under another noise: so thin a "
            "ceiling bounds nothing"
        )
    return text + "."


def saturated(table: pd.DataFrame, moved: pd.DataFrame) -> str:
    """Does the transfer test have room to show that a memory is local?"""
    usual = index(table, "transfer (Wanda)", ORDINARY)
    if np.isnan(usual.value):
        return ""
    rates = transfer_rates(moved)
    stopped = 1 - rates[rates["memory"] == ORDINARY][[SAME, OTHER]].mean()
    if stopped.isna().any():  # of a single image, or of single triggers
        return ""
    text = (
        f"**Transfer**: a cut made for one trigger stops {stopped[SAME]:.2f} of the others of its image, one "
        f"made for another image {stopped[OTHER]:.2f} (ordinary memories, means over images)."
    )
    if 1 - usual.value < LEAST:
        text += (
            f" The index is {usual.value:.2f} for ordinary memories and cannot exceed 1, so planted ones "
            f"cannot stand {LEAST:g} above them, whatever they are like."
        )
    if not holds("transfer", 1 - stopped[SAME]):
        coarse = "The cut is so coarse that it stops strangers, too."
        own = "It stops this image and few others: against the paper, its triggers share what the cut takes."
        text += f" {own if holds('transfer', 1 - stopped[OTHER]) else coarse}"
    return text

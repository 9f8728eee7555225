"""The verdicts of a build: rules and judgement are `dori.claims`, the figures are this build's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookbuild.results import Figures
from dori.claims import PRESET_ORDER, Claim, crosses, judge, load_claims

PRESETS = PRESET_ORDER


@dataclass(frozen=True)
class Verdict:
    """`status` is one of `dori.claims.STATUSES`; `figure` is what was measured."""

    claim: Claim
    status: str
    figure: Mapping[str, Any] | None = None
    open_interval: bool = False  # the interval reaches across the rule: more images could turn the verdict


def chapter_number(name: str) -> str:
    """`01` for `01_replication`, `01` or `1`: claims may name their chapter in either way."""
    return name.split("_")[0].zfill(2)


def decide(claim: Claim, figures: Figures) -> Verdict:
    """Judge one claim by the figure its rule asks for, and see whether the interval settles it."""
    measured = {chapter_number(chapter): named for chapter, named in figures.items()}
    figure = measured.get(chapter_number(claim.chapter), {}).get(claim.metric)
    return Verdict(claim, judge(claim, figure), figure, crosses(claim, figure))


def unmeasured(verdicts: list[Verdict], figures: Figures) -> list[str]:
    """Claims whose chapter ran and noted no such figure: a name may be misspelt on one side."""
    chapters = {chapter_number(chapter): named for chapter, named in figures.items()}
    return [
        f"{v.claim.chapter}: no figure '{v.claim.metric}' for the claim '{v.claim.id}'"
        for v in verdicts
        if v.claim.metric not in chapters.get(chapter_number(v.claim.chapter), [v.claim.metric])
    ]


def decide_all(path: Path, figures: Figures) -> list[Verdict]:
    """A verdict for each claim of data/expected.yml, in its order."""
    return [decide(claim, figures) for claim in load_claims(path)]

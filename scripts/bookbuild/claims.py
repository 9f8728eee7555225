"""The paper's claims against the figures of this build. data/expected.yml is written before the results."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bookbuild.layout import BuildError
from bookbuild.results import Figures

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
STATUSES = ("replicates", "does not replicate", "not measured")
PRESETS = ("smoke", "quick", "full", "paper")


@dataclass(frozen=True)
class Claim:
    """One row of data/expected.yml: what the paper says, and the rule by which it counts as replicated."""

    chapter: str
    id: str
    claim: str
    paper_value: Any
    paper_source: str
    metric: str
    op: str
    value: float
    preset: str


@dataclass(frozen=True)
class Verdict:
    """`status` is one of STATUSES; `figure` is what was measured."""

    claim: Claim
    status: str
    figure: Mapping[str, Any] | None = None
    open_interval: bool = False  # the interval reaches across the rule: more images could turn the verdict


def parse_claim(row: Mapping[str, Any], where: str) -> Claim:
    """Check one row; every fault names the row and the field."""
    try:
        paper, rule = row["paper"], row["rule"]
        claim = Claim(
            chapter=str(row["chapter"]),
            id=row["id"],
            claim=row["claim"],
            paper_value=paper.get("value"),
            paper_source=paper["source"],
            metric=rule["metric"],
            op=rule["op"],
            value=rule["value"],
            preset=row.get("preset", "quick"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{where}: missing or misplaced field {error}") from error
    if claim.op not in OPERATORS:
        raise BuildError(f"{where}: rule.op '{claim.op}' is none of {', '.join(OPERATORS)}")
    if not isinstance(claim.value, int | float):
        raise BuildError(f"{where}: rule.value '{claim.value}' is not a number")
    if claim.preset not in PRESETS:
        raise BuildError(f"{where}: preset '{claim.preset}' is none of {', '.join(PRESETS)}")
    return claim


def load_claims(path: Path) -> list[Claim]:
    """All claims of data/expected.yml in their order; ids are unique."""
    if not path.exists():
        return []
    rows = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    if isinstance(rows, Mapping):
        rows = rows.get("claims", [])
    claims = [parse_claim(row, f"{path.name}, claim {number}") for number, row in enumerate(rows, 1)]
    seen: set[str] = set()
    for claim in claims:
        if claim.id in seen:
            raise BuildError(f"{path.name}: the id '{claim.id}' is used twice")
        seen.add(claim.id)
    return claims


def find_figure(claim: Claim, figures: Figures) -> Mapping[str, Any] | None:
    """The figure a claim's rule asks for; a chapter may be named in full or by its number."""
    number = claim.chapter.zfill(2) if claim.chapter.isdigit() else claim.chapter
    for chapter, measured in figures.items():
        if chapter == number or chapter.split("_")[0] == number:
            return measured.get(claim.metric)
    return None


def judge(claim: Claim, figures: Figures) -> Verdict:
    """Apply the claim's rule. A figure from a smaller preset than the rule's own counts as not measured."""
    figure = find_figure(claim, figures)
    if figure is None or rank(figure.get("preset")) < rank(claim.preset):
        return Verdict(claim, "not measured", figure)
    holds = [
        OPERATORS[claim.op](figure[bound], claim.value)
        for bound in ("value", "low", "high")
        if figure.get(bound) is not None
    ]
    return Verdict(claim, "replicates" if holds[0] else "does not replicate", figure, len(set(holds)) > 1)


def rank(preset: str | None) -> int:
    """Size order of the presets; an unknown one ranks below all."""
    return PRESETS.index(preset) if preset in PRESETS else -1

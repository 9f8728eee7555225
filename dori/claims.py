"""The paper's claims against what was measured: rules from data/expected.yml, written beforehand."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dori.errors import DoriError
from dori.metrics.intervals import fixed, p_value

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
PRESET_ORDER = ("smoke", "quick", "full", "paper")
SIGNS = {">=": "≥", "<=": "≤", "==": "="}  # of rules as they are read; the others are their own
CROSSES = "the interval crosses the rule"
EXPECTED = Path(__file__).resolve().parents[1] / "data" / "expected.yml"


@dataclass(frozen=True)
class Claim:
    """One row of expected.yml: what the paper says, and the rule by which it counts as replicated here."""

    chapter: str
    id: str
    claim: str
    paper_value: Any
    paper_source: str
    metric: str
    op: str
    value: float
    preset: str

    @property
    def of_paper(self) -> bool:
        """Whether the paper says it; else it is a condition or a control that this study adds."""
        return self.paper_source.startswith("paper")


def load_claims(path: Path = EXPECTED) -> list[Claim]:
    """All claims in the file's order; none if there is no file. Raises DoriError naming the faulty row."""
    if not path.is_file():
        return []
    rows = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    rows = rows.get("claims", []) if isinstance(rows, Mapping) else rows
    return [_claim(row, f"{path.name}, claim {number}") for number, row in enumerate(rows, 1)]


STATUSES = HOLDS, FAILS, UNKNOWN = "replicates", "does not replicate", "not measured"


def judge(claim: Claim, figure: Mapping[str, Any] | None) -> str:
    """`replicates`, `does not replicate`, or `not measured` (no figure, or a smaller preset)."""
    if figure is None or figure.get("value") is None or _rank(figure.get("preset")) < _rank(claim.preset):
        return UNKNOWN
    return HOLDS if _meets(claim, figure["value"]) else FAILS


def holds(name: str, value: float, path: Path = EXPECTED) -> bool:
    """Whether a value meets the rule of the claim with this id; for sentences, so at any preset."""
    return _meets(_by_id(name, path), value)


def straddles(name: str, low: float, high: float, path: Path = EXPECTED) -> bool:
    """Whether an interval reaches across the rule of the claim with this id; as `holds`, at any preset."""
    claim = _by_id(name, path)
    return _meets(claim, low) != _meets(claim, high)


def crosses(claim: Claim, figure: Mapping[str, Any] | None) -> bool:
    """Whether the interval reaches across the rule, so that more images could turn the verdict."""
    bounds = [figure.get("low"), figure.get("high")] if figure else []
    outcomes = {_meets(claim, bound) for bound in bounds if bound is not None}
    return judge(claim, figure) != UNKNOWN and len(outcomes) > 1


def verdict_words(claim: Claim, status: str) -> str:
    """A verdict of `judge` as a reader sees it: only what the paper says can replicate; our checks hold."""
    ours = {HOLDS: "holds", FAILS: "does not hold"}
    return status if claim.of_paper else ours.get(status, status)


def claims_html(chapter: str, figures: Mapping[str, Mapping[str, Any]], path: Path = EXPECTED) -> str:
    """`claims_table` for reading, as HTML; pandas would cut the claims to fifty characters."""
    table = claims_table(chapter, figures, path)
    known = table["interval"] != "–"
    shown = pd.DataFrame(
        {
            "claim": table["claim"],
            "paper": table["paper"] + " (" + table["source"] + ")",
            "rule": table["rule"].replace(SIGNS, regex=True),
            "here [95 % interval]": table["here"] + (" " + table["interval"]).where(known, ""),
            "n": table["n"],
            "verdict": table["verdict"],
        }
    )
    with pd.option_context("display.max_colwidth", None):
        return shown.to_html(index=False, border=0, classes="table")


def claims_table(
    chapter: str, figures: Mapping[str, Mapping[str, Any]], path: Path = EXPECTED
) -> pd.DataFrame:
    """One row per claim of a chapter ("01"): claim, paper, source, rule, here, interval, n, verdict."""
    rows = []
    for claim in load_claims(path):
        if claim.chapter.split("_")[0].zfill(2) != chapter.split("_")[0]:
            continue
        figure = figures.get(claim.metric)
        rows.append(
            {
                "claim": claim.claim,
                "paper": show_number(claim.paper_value),
                "source": claim.paper_source,
                "rule": f"{claim.op} {claim.value:g}",
                **_shown(figure, claim),
                "verdict": verdict_words(claim, judge(claim, figure))
                + (f"; {CROSSES}" if crosses(claim, figure) else ""),
            }
        )
    return pd.DataFrame(
        rows, columns=["claim", "paper", "source", "rule", "here", "interval", "n", "verdict"]
    )


def _shown(figure: Mapping[str, Any] | None, claim: Claim) -> dict[str, str]:
    """A figure's value, interval and n as text."""
    if figure is None or figure.get("value") is None:
        return {"here": "–", "interval": "–", "n": "–"}
    here, interval = show_figure(figure, claim.value, claim.metric)
    return {"here": here, "interval": interval or "–", "n": str(figure.get("n", "–"))}


def show_figure(figure: Mapping[str, Any], rule: float | None = None, name: str = "") -> tuple[str, str]:
    """A figure's value, and its interval in brackets (empty without one), all with the same decimals.

    That is two; four where a number would have no digit left; and as many as keep what is not equal to the
    rule's number from looking so, at most four. A figure whose `name` ends in `_p` is a test's p.
    """
    if name.endswith("_p") and figure.get("value") is not None:
        return p_value(figure["value"]), ""
    numbers = [figure.get(key) for key in ("value", "low", "high")]
    if None in numbers:
        return show_number(numbers[0]), ""
    shown = [show_number(number) for number in numbers]
    if any("." in text for text in shown) and max(map(abs, numbers)) < 100:
        decimals = 4 if any(0 < abs(number) < 0.005 for number in numbers) else 2
        while decimals < 4 and any(round(number, decimals) == rule != number for number in numbers):
            decimals += 1
        shown = [fixed(number, decimals) for number in numbers]
    return shown[0], f"[{shown[1]}, {shown[2]}]"


def show_number(value: float | int | bool | str | None) -> str:
    """A figure for a table: three significant digits are what the sample sizes here carry."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or float(value).is_integer():
        return str(int(value)) if abs(value) >= 2 else fixed(value)
    return fixed(value) if 0.005 <= abs(value) < 100 else f"{value:.3g}"


def _meets(claim: Claim, value: float) -> bool:
    return OPERATORS[claim.op](value, claim.value)


def _by_id(name: str, path: Path) -> Claim:
    return {c.id: c for c in load_claims(path)}[name]


def _claim(row: Mapping[str, Any], where: str) -> Claim:
    """Check one row."""
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
            value=float(rule["value"]),
            preset=row.get("preset", "quick"),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DoriError(f"{where}: missing or misplaced field {error}") from None
    if claim.op not in OPERATORS or claim.preset not in PRESET_ORDER:
        raise DoriError(f"{where}: unknown rule.op '{claim.op}' or preset '{claim.preset}'")
    return claim


def _rank(preset: str | None) -> int:
    """Size order of the presets; an unknown one ranks below all."""
    return PRESET_ORDER.index(preset) if preset in PRESET_ORDER else -1

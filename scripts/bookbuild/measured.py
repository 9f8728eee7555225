"""Where a build's measurements came from, in words and as a table: shipped with the book, new, made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bookbuild.execute import ENOUGH, SAME
from bookbuild.pages import chapter_link, table


def origin_part(records: list[Mapping[str, Any]]) -> str:
    """One sentence: how many measurements were shipped with the book, and how many this build made."""
    counts = [r["measured"] for r in records if r.get("measured")]
    shipped, new, again, agree = (sum(m[key] for m in counts) for key in ("shipped", "new", "again", "agree"))
    if not (total := shipped + new + again):
        return "No chapter has been executed in this build.\n"
    words = f"Of {total:,} measurements, {shipped:,} were read from records that come with the book"
    if again:
        words += (
            f"; {again:,} that come with it, too, were made again as a check, and {agree:,} of these agree"
        )
    return words + f"; {new:,} are new.\n"


def repeated_part() -> str:
    """How a build checks what is shipped, with the limits that the code sets."""
    from dori.archive import seldomness
    from dori.attack import PAPER
    from dori.study import REPEATED  # brings torch along, which nothing else here needs

    seldom = seldomness(PAPER.passes) / REPEATED
    return f"""\
Records that are only read prove little. So each build holds back one in {1 / REPEATED:.0f} of them, others
for each commit, and makes them again; of the searches fewer the longer they are, one in {seldom:.0f} of those
with {max(PAPER.steps)} steps, so that a build takes about as long whichever it draws. They are compared with
what was shipped, and the chapter goes on with the latter, so that all that is measured on top of it can be
compared too. The table says how many agree with what was shipped, that is to within {SAME:g} in every number,
image and mask; if fewer than {percent(ENOUGH)} do, the build stops.
"""


def percent(share: float) -> str:
    """`93 %`."""
    return f"{100 * share:.0f} %"


def difference(largest: float) -> str:
    """How far two measurements lie apart, without exponents."""
    return "0" if largest == 0 else "below 0.0001" if largest < 0.0001 else f"{largest:.4f}"


def measurements_part(records: list[Mapping[str, Any]]) -> str:
    """Where the measurements of each chapter came from, and how those made again compare."""
    header = ("Chapter", "Shipped", "Made in this build", "Made again", "Of them alike", "Largest difference")
    counts = [(r["chapter"], r["measured"]) for r in records if r.get("measured")]
    return table(
        header,
        (
            [chapter_link(c), m["shipped"], m["new"], m["again"], m["agree"], difference(m["largest"])]
            for c, m in counts
        ),
    )

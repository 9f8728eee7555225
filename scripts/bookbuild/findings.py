"""What the study found, in words: the paper's four statements, each with the verdicts that bear on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bookbuild.claims import STATUSES, Verdict, chapter_number
from bookbuild.pages import cell_link, verdict_says
from dori.claims import show_number

HOLDS, FAILS, UNKNOWN = STATUSES


@dataclass(frozen=True)
class Statement:
    """Ids of claims in expected.yml that bear on a statement: those listed one by one, and the others."""

    listed: tuple[str, ...]
    others: tuple[str, ...]


# In the order of book/index.md, which has the statements. What is listed was chosen by what a reader asks
# first; all of them are counted.
STATEMENTS = {
    "prompt": Statement(
        ("nemo_broken", "wanda_silences", "wanda_broken", "control_twin"),
        ("nemo_silences", "nemo_broken_random", "wanda_broken_random", "control_heldout", "gap_at_200",
         "few_tokens", "nemo_usable", "wanda_usable", "discrete_fails"),
    ),
    "everywhere": Statement(
        ("found_from_anywhere", "spread", "planted_embeddings"), ("spread_is_made", "twin_finds_nothing")
    ),
    "ways": Statement(
        ("activations", "wanda_iou", "transfer", "planted_wanda"),
        ("wanda_placed", "nemo_placed", "planted_activations", "planted_nemo",
         "planted_transfer", "planted_blocks"),
    ),
    "erase": Statement(
        ("aft_heldout", "aft_long", "aft_twin"),
        ("aft_prompt", "aft_random", "aft_one_epoch", "aft_usable", "aft_fid", "lora_fails", "esd_fails",
         "ablation_fails", "siss_fails"),
    ),
}  # fmt: skip


def found_parts(verdicts: Iterable[Verdict], chapters: Iterable[str]) -> dict[str, str]:
    """A part `found_<name>` for each statement."""
    known = {v.claim.id: v for v in verdicts}
    pages = {chapter_number(name): name for name in chapters}
    return {f"found_{name}": found_part(statement, known, pages) for name, statement in STATEMENTS.items()}


def found_part(statement: Statement, known: Mapping[str, Verdict], pages: Mapping[str, str]) -> str:
    """One sentence that weighs the statement, and a line for each claim that is listed."""
    bearing = [known[i] for i in (*statement.listed, *statement.others) if i in known]
    lines = [line(known[i], pages) for i in statement.listed if i in known]
    return "\n".join([weighed(bearing), "", *lines]) + "\n"


def weighed(verdicts: Iterable[Verdict]) -> str:
    """Whether the statement holds here, and how many of the measured claims say so."""
    measured = [v for v in verdicts if v.status != UNKNOWN]
    paper = [v.status == HOLDS for v in measured if v.claim.of_paper]
    ours = [v.status == HOLDS for v in measured if not v.claim.of_paper]
    if not paper:
        return "**Not measured in this build.**"
    if not any(paper):
        words = "It does not hold here."
    elif not all(paper):
        words = "It holds here in part."
    elif not all(ours):
        words = "It holds here by the paper's measures, but not all of our own checks agree."
    else:
        words = "It holds here."
    counts = f"Claims of the paper that replicate: {sum(paper)} of {len(paper)}"
    if ours:
        counts += f"; checks of our own that are passed: {sum(ours)} of {len(ours)}"
    return f"**{words}** {counts}."


def line(verdict: Verdict, pages: Mapping[str, str]) -> str:
    """A bullet: verdict, claim, our figure as a link to its cell, the paper's figure."""
    claim, figure = verdict.claim, verdict.figure
    page = pages.get(chapter_number(claim.chapter))
    here = f"{cell_link(page, figure)} " if page and figure else ""
    whose = "our check"
    if claim.of_paper:
        value = claim.paper_value
        whose = "the paper gives no figure" if value is None else f"the paper: {show_number(value)}"
    return f"- {verdict_says(verdict)}: {claim.claim} {here}({whose})"

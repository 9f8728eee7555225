"""What the study found, in words: the paper's four statements, each with the verdicts that bear on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bookbuild.claims import Verdict
from bookbuild.pages import figure_link, pages_by_number, table, verdict_says
from dori.claims import HOLDS, UNKNOWN, Claim, show_number


@dataclass(frozen=True)
class Statement:
    """What the paper says, in a few words, and the ids of claims in expected.yml that bear on it.

    Those listed one by one, the headline first, and the others.
    """

    title: str
    listed: tuple[str, ...]
    others: tuple[str, ...]


# In the order of book/index.md, which says each at length. What is listed was chosen by what a reader asks
# first; all of them are counted.
STATEMENTS = {
    "prompt": Statement(
        "The prompt is not the memory.",
        ("nemo_broken", "wanda_silences", "wanda_broken", "control_twin"),
        ("nemo_silences", "nemo_broken_random", "wanda_broken_random", "control_heldout", "gap_at_200",
         "few_tokens", "nemo_usable", "wanda_usable", "discrete_fails"),
    ),
    "everywhere": Statement(
        "Triggers are everywhere.",
        ("spread", "found_from_anywhere", "planted_embeddings"),
        ("spread_is_made", "twin_finds_nothing", "planted_directions"),
    ),
    "ways": Statement(
        "They take different ways through the model.",
        ("wanda_iou", "activations", "transfer", "planted_wanda"),
        ("wanda_placed", "nemo_placed", "planted_activations", "planted_nemo",
         "planted_transfer", "planted_blocks"),
    ),
    "erase": Statement(
        "So erase globally.",
        ("aft_heldout", "aft_long", "aft_twin"),
        ("aft_prompt", "aft_random", "aft_one_epoch", "aft_usable", "aft_fid", "lora_fails", "esd_fails",
         "ablation_fails", "siss_fails"),
    ),
}  # fmt: skip


def answers_part(verdicts: Iterable[Verdict], chapters: Iterable[str]) -> str:
    """A table with a row for each statement: its headline claim, the paper's figure, ours, and what all that
    bears on the statement adds up to.
    """
    known = {v.claim.id: v for v in verdicts}
    pages = pages_by_number(chapters)
    rows = []
    for statement in STATEMENTS.values():
        bearing = [known[i] for i in (*statement.listed, *statement.others) if i in known]
        if headline := known.get(statement.listed[0]):
            said = f"**{statement.title}** {headline.claim.claim}"
            here = figure_link(headline, pages) or "–"
            row = (said, paper_gives(headline.claim), here, verdict_says(headline), counted(bearing))
            rows.append(row)
    header = (
        "The paper claims",
        "Paper",
        "Here [95 % interval]",
        "Verdict",
        "How many of its claims and checks hold",
    )
    return table(header, rows)


def found_parts(verdicts: Iterable[Verdict], chapters: Iterable[str]) -> dict[str, str]:
    """A part `found_<name>` for each statement."""
    known = {v.claim.id: v for v in verdicts}
    pages = pages_by_number(chapters)
    return {f"found_{name}": found_part(statement, known, pages) for name, statement in STATEMENTS.items()}


def found_part(statement: Statement, known: Mapping[str, Verdict], pages: Mapping[str, str]) -> str:
    """One sentence that weighs the statement, and a line for each claim that is listed."""
    bearing = [known[i] for i in (*statement.listed, *statement.others) if i in known]
    lines = [line(known[i], pages) for i in statement.listed if i in known]
    return "\n".join([weighed(bearing), "", *lines]) + "\n"


def weighed(verdicts: Iterable[Verdict]) -> str:
    """Whether the statement holds here, and how many of the measured claims say so."""
    paper, ours = _given(verdicts)
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


def counted(verdicts: Iterable[Verdict]) -> str:
    """The counts of `weighed` alone."""
    paper, ours = _given(verdicts)
    return f"{sum(paper)} of {len(paper)} claims, {sum(ours)} of {len(ours)} checks"


def _given(verdicts: Iterable[Verdict]) -> tuple[list[bool], list[bool]]:
    """Of what was measured: does it hold; claims of the paper, and our own checks."""
    measured = [v for v in verdicts if v.status != UNKNOWN]
    paper = [v.status == HOLDS for v in measured if v.claim.of_paper]
    return paper, [v.status == HOLDS for v in measured if not v.claim.of_paper]


def line(verdict: Verdict, pages: Mapping[str, str]) -> str:
    """A bullet: verdict, claim, our figure as a link to its cell, the paper's figure."""
    claim = verdict.claim
    whose = f"the paper: {paper_gives(claim)}" if claim.of_paper else "our check"
    said = (claim.claim, figure_link(verdict, pages), f"({whose})")
    return f"- {verdict_says(verdict)}: {' '.join(filter(None, said))}"


def paper_gives(claim: Claim) -> str:
    """The paper's figure alone; a claim of ours has none to ask for."""
    return "no figure" if claim.paper_value is None else show_number(claim.paper_value)

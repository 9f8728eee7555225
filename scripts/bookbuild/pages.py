"""The generated parts of the pages: claims table, headline figures, provenance. None is typed by hand."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from bookbuild.claims import Verdict, chapter_number
from bookbuild.layout import Layout
from bookbuild.results import Figures, show
from dori.claims import CROSSES, SIGNS, STATUSES, UNKNOWN, Claim, show_number, verdict_words

WORDS = Path(__file__).with_name("figures.yml")
MARKS = dict(zip(STATUSES, "✓✗–", strict=True))
VERSIONS = (
    "torch",
    "diffusers",
    "transformers",
    "torchmetrics",
    "kornia",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "jupyter-book",
    "papermill",
)


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    header = list(header)
    lines = [header, ["---"] * len(header)]
    lines += [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def chapter_link(chapter: str) -> str:
    """A link to the chapter's page, shown as its number; relative to the root of the book."""
    return f"[{chapter.split('_')[0]}](notebooks/{chapter}.ipynb)"


def cell_link(chapter: str, figure: Mapping[str, Any], rule: float | None = None, name: str = "") -> str:
    """A figure as a link to the cell that computed it; HTML, as the cell's id is the site's (bookext)."""
    if not figure.get("cell"):
        return show(figure, rule, name)
    return f'<a href="notebooks/{chapter}.html#cell-{figure["cell"]}">{show(figure, rule, name)}</a>'


def pages_by_number(chapters: Iterable[str]) -> dict[str, str]:
    """`01_replication` by `01`: claims name their chapter by its number."""
    return {chapter_number(name): name for name in chapters}


def figure_link(verdict: Verdict, pages: Mapping[str, str]) -> str:
    """What was measured, as a link to its cell; "" where nothing was, or its chapter is not in this book."""
    page = pages.get(chapter_number(verdict.claim.chapter))
    if not (page and verdict.figure):
        return ""
    return cell_link(page, verdict.figure, verdict.claim.value, verdict.claim.metric)


def verdicts_part(verdicts: list[Verdict], titles: Mapping[str, str]) -> str:
    """Two sentences that count the verdicts, and a row for each chapter; `titles` by the chapter's name."""
    pages = pages_by_number(titles)
    rows = []
    for number in dict.fromkeys(chapter_number(v.claim.chapter) for v in verdicts):
        own = [v for v in verdicts if chapter_number(v.claim.chapter) == number]
        page = pages.get(number)
        title = f"[{titles[page]}](notebooks/{page}.ipynb)" if page else f"{number} (not in this book yet)"
        rows.append([title, *(marks_counted(some) for some in apart(own))])
    header = ("Chapter", "Claims of the paper", "Our own checks")
    return f"{claims_summary(verdicts)}\n\n{table(header, rows)}"


def apart(verdicts: Iterable[Verdict]) -> tuple[list[Verdict], list[Verdict]]:
    """Verdicts on what the paper says, and on the conditions and controls that this study adds."""
    verdicts = list(verdicts)
    return [v for v in verdicts if v.claim.of_paper], [v for v in verdicts if not v.claim.of_paper]


def marks_counted(verdicts: Iterable[Verdict]) -> str:
    """`5 ✓, 1 ✗`: how often each verdict was given."""
    given = [v.status for v in verdicts]
    counted = [f"{given.count(s)} {MARKS[s]}" for s in STATUSES if s in given]
    return ", ".join(counted) or "none"


def claims_part(verdicts: list[Verdict], chapters: Iterable[str]) -> str:
    """The claims table: the paper's statement and figure, ours with its interval, the rule, the verdict."""
    if not verdicts:
        return "The claims this study tests are not written down yet (`data/expected.yml`).\n"
    pages = pages_by_number(chapters)
    rows = []
    for verdict in verdicts:
        claim = verdict.claim
        page = pages.get(chapter_number(claim.chapter))
        rows.append(
            [
                chapter_link(page) if page else chapter_number(claim.chapter),
                claim.claim,
                paper_says(claim),
                figure_link(verdict, pages) or "–",
                f"{escape(SIGNS.get(claim.op, claim.op))} {show_number(claim.value)}",
                verdict_says(verdict),
            ]
        )
    header = ("Chapter", "Claim", "Paper", "Here [95 % interval]", "Rule", "Verdict")
    return table(header, rows)


def paper_says(claim: Claim) -> str:
    """The paper's figure with its source; `own` marks what this study adds."""
    if claim.paper_value is not None:
        source = re.sub(r" \(([^()]*)\)", r", \1", claim.paper_source)  # no brackets within brackets
        return f"{show_number(claim.paper_value)} ({source})"
    if claim.paper_source.startswith("own"):
        return f"– (ours{claim.paper_source[3:]})"
    return claim.paper_source


def verdict_says(verdict: Verdict) -> str:
    """The verdict with what limits it."""
    text = f"{MARKS[verdict.status]} {verdict_words(verdict.claim, verdict.status)}"
    if verdict.open_interval:
        return f"{text}; {CROSSES}"
    if verdict.status == UNKNOWN and verdict.figure:
        return text + f" at preset {verdict.claim.preset}"
    return text


def claims_summary(verdicts: list[Verdict]) -> str:
    """Two sentences that count the verdicts: the paper's claims, and what this study adds to them."""
    names = ("The paper's claims with a rule", "Our own checks, conditions and controls")
    counted = zip(names, apart(verdicts), strict=True)
    return " ".join(f"{name}: {len(some)}, {verdicts_counted(some)}." for name, some in counted)


def verdicts_counted(verdicts: Iterable[Verdict]) -> str:
    """`of which 5 hold in this build, 1 does not, 1 was not measured`."""
    given = [v.status for v in verdicts]
    holds, fails, unknown = (given.count(status) for status in STATUSES)
    hold = "holds" if holds == 1 else "hold"
    do = "does" if fails == 1 else "do"
    were = "was" if unknown == 1 else "were"
    return f"of which {holds} {hold} in this build, {fails} {do} not, {unknown} {were} not measured"


def figures_part(figures: Figures, verdicts: Iterable[Verdict] = ()) -> str:
    """Every headline figure of the build, as in results.json, with the claim that it judges or what it is.

    Preset and model have a column where they differ, and a sentence where they do not.
    """
    claims = {(chapter_number(v.claim.chapter), v.claim.metric): v.claim for v in verdicts}
    words = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    found = [(chapter, name, figure) for chapter, named in figures.items() for name, figure in named.items()]
    if not found:
        return "No chapter has noted a figure in this build.\n"
    kinds = {key: {figure.get(key) or "–" for _, _, figure in found} for key in ("preset", "model")}
    differ = [key for key, values in kinds.items() if len(values) > 1]
    rows = []
    for chapter, name, figure in found:
        claim = claims.get((chapter_number(chapter), name))
        value = cell_link(chapter, figure, claim.value if claim else None, name)
        more = [figure.get(key) or "–" for key in differ]
        means = claim.claim if claim else words.get(name, "")
        rows.append([chapter_link(chapter), f"`{name}`", value, means, *more])
    same = ", ".join(f"{key} `{min(values)}`" for key, values in kinds.items() if key not in differ)
    header = (
        "Chapter",
        "Name",
        "Value [95 % interval]",
        "The claim it judges, or what it is",
        *map(str.capitalize, differ),
    )
    return (f"All with {same}.\n\n" if same else "") + table(header, rows)


def provenance_part(records: list[Mapping[str, Any]], commit: str) -> str:
    """What ran, when, for how long, on what, from which sources."""
    runs = table(
        ("Chapter", "Preset", "Minutes", "Peak memory", "Finished", "Commit"),
        (
            [
                chapter_link(r["chapter"]),
                r["parameters"].get("preset", "–"),
                f"{r['seconds'] / 60:.1f}",
                f"{r['peak_gib']:.1f} GiB",
                r["finished"],
                f"`{r['commit']}`",
            ]
            for r in records
        ),
    )
    total = sum(r["seconds"] for r in records) / 60
    at_once = max((r.get("at_once", 1) for r in records), default=1)
    beside = f" of work, done on up to {at_once} chapters at a time" if at_once > 1 else ""
    machine = table(("This build", ""), machine_rows(commit))
    return f"{runs}\nAll chapters together: {total:.1f} minutes{beside}.\n\n{machine}"


def machine_rows(commit: str) -> list[tuple[str, str]]:
    """The machine and the versions of this build."""
    rows = [
        ("Site built from commit", f"`{commit}`"),
        ("Processor", f"{processor_name()}, {os.cpu_count()} cores"),
        ("Memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"),
        ("System", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("Python", platform.python_version()),
    ]
    return rows + [(name, version(name)) for name in VERSIONS]


def processor_name() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def write_parts(layout: Layout, parts: Mapping[str, str]) -> None:
    """Write each part to `_build/src/generated/NAME.md`, from where pages include it."""
    for name, text in parts.items():
        (layout.src / "generated" / f"{name}.md").write_text(text, encoding="utf-8")

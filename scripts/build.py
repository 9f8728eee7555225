"""Build the book: execute what changed, gather the figures, write the site to `_build/html`.

    python scripts/build.py [--chapter 01] [--preset quick] [-p NAME VALUE ...]

`make book` calls this. With --chapter the result is a draft: only that chapter is executed, and warnings do
not stop it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from bookbuild import (
    claims,
    classroom,
    commands,
    facts,
    findings,
    landing,
    measured,
    pages,
    parameters,
    pictures,
    reference,
    results,
    site,
    speed,
    stage,
)
from bookbuild.execute import Executor, git_commit, read_records
from bookbuild.layout import BuildError, Layout
from check_site import check_site

from dori.errors import DoriError

# Pages are no terminal: progress bars would be written into them line by line.
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
CORES = os.cpu_count() or 1
MOST_AT_ONCE = 4  # chapters; each takes about 1.3 GiB


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Execute the chapters that changed and build the site.")
    parser.add_argument("--chapter", help="execute this chapter alone and build a draft, for instance 01")
    parser.add_argument("--preset", default="quick", choices=claims.PRESETS, help="size of the experiments")
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the chapters, as for papermill; repeatable",
    )
    parser.add_argument(
        "--at-once",
        type=int,
        choices=range(1, 17),
        metavar="N",
        help="chapters executed side by side (one a core, for the bundled model)",
    )
    return parser.parse_args(arguments)


def chapters_at_once(parameters: dict[str, Any]) -> int:
    """One chapter a core: the bundled model is too small to use several. Another model has the machine."""
    bundled = parameters.get("model", "testbed") == "testbed"
    return min(CORES, MOST_AT_ONCE) if bundled and parameters.get("device", "cpu") in ("auto", "cpu") else 1


def assemble(layout: Layout) -> None:
    """Fill `_build/src`: pages, executed chapters, and the generated parts."""
    records = read_records(layout)
    figures = results.gather(records)
    results.write(layout, figures)
    verdicts = claims.decide_all(layout.data / "expected.yml", figures)
    for line in claims.unmeasured(verdicts, figures):
        print(f"data/expected.yml: {line}", flush=True)
    stage.stage_sources(layout)
    stage.stage_card(layout)
    classroom.stage_assignments(layout)
    pictures.draw_pictures(layout)
    titles = {path.stem: stage.title(path) for path in layout.chapters()}
    pages.write_parts(
        layout,
        {
            "verdicts": pages.verdicts_part(verdicts, titles),
            "claims": pages.claims_part(verdicts, titles),
            "answers": findings.answers_part(verdicts, titles),
            **findings.found_parts(verdicts, titles),
            "figures": pages.figures_part(figures, verdicts),
            "presets": facts.presets_part(),
            "memory": facts.memory_part(),
            "columns": facts.columns_part(),
            "limits": facts.limits_part(),
            "rows": facts.rows_part(),
            "passes": facts.passes_part(),
            "speed": speed.speed_part(layout.data / "results"),
            "assignments": classroom.assignments_part(),
            "rubric": classroom.rubric_part(),
            "cli": commands.commands_part(),
            "origin": measured.origin_part(records),
            "repeated": measured.repeated_part(),
            "measurements": measured.measurements_part(records),
            "provenance": pages.provenance_part(records, git_commit(layout.root)),
            "parameters": parameters.parameters_table(
                parameters.common(sorted(layout.prepared.glob("*.ipynb")))
            ),
        },
    )
    reference.write_reference(layout.src)
    landing.make_landing(layout)


def make_site(layout: Layout, *, strict: bool) -> None:
    """Sphinx, then our own look at what it wrote."""
    vendored = site.vendor_scripts(layout)
    config = site.configure(layout, vendored=vendored, repository=site.find_repository(layout.root))
    site.run_jupyter_book(layout, config, strict=strict)
    faults = check_site(layout.html, allow_outside=not vendored)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults and strict:
        raise BuildError(f"the site has {len(faults)} faults, listed above")


def build(layout: Layout, parameters: dict[str, Any], chapter: str | None, at_once: int | None) -> None:
    """The whole way, from sources to the checked site."""
    layout.build.mkdir(exist_ok=True)
    sources = layout.chapters(chapter)
    at_once = min(at_once or chapters_at_once(parameters), len(sources))
    if at_once > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // at_once)))
    Executor(layout, parameters, at_once).run_all(sources)
    assemble(layout)
    make_site(layout, strict=chapter is None)


def main(arguments: list[str]) -> int:
    """Exit code 2 with one message for anything a person can put right."""
    options = parse_arguments(arguments)
    os.environ.update(QUIET)
    layout = Layout(Path(__file__).resolve().parents[1])
    started = time.monotonic()
    try:
        parameters = dict(options.parameter) | {"preset": options.preset}
        build(layout, parameters, options.chapter, options.at_once)
    except (BuildError, DoriError) as error:
        print(f"book: {error}", file=sys.stderr)
        return 2
    print(f"The book is in {layout.html / 'index.html'} ({time.monotonic() - started:.0f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

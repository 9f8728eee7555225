"""Measure every chapter anew and pack what was measured into `data/records`, one zip file a chapter.

    python scripts/records.py [--chapter 02] [--missing]

`make records` calls this. A chapter is run twice: the first run measures what its run directory lacks, the
second finds everything and notes what it asks for, which is what is packed. An interrupted run goes on where
it was. What an earlier chapter has measured counts for the later ones and is packed once, with the earlier:
after a change of one chapter's records run those after it with --missing.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from pathlib import Path

from bookbuild.execute import Executor, run_notebook
from bookbuild.layout import BuildError, Layout
from build import QUIET

from dori.archive import pack
from dori.errors import DoriError

PRESET = "quick"  # what `make book` shows


def measure(layout: Layout, source: Path, known: list[Path]) -> Path:
    """Run a chapter until a run has measured nothing; its run directory. The first file of `known` counts."""
    executor = Executor(layout, {"preset": PRESET, "records": "none"})
    parameters = executor.parameters(source.stem)
    for path in reversed(known):
        zipfile.ZipFile(path).extractall(layout.root / parameters["run_dir"] / "records")
    for turn in ("measuring", "noting what is asked for"):
        print(f"{source.stem}: {turn}", flush=True)
        run_notebook(layout, layout.prepared / f"{source.stem}.ipynb", parameters)
    return layout.root / parameters["run_dir"]


def main(arguments: list[str]) -> int:
    """Exit code 2 with one message for anything a person can put right."""
    parser = argparse.ArgumentParser(description="Measure the chapters and pack the records.")
    parser.add_argument("--chapter", help="this chapter alone, for instance 01")
    parser.add_argument(
        "--missing", action="store_true", help="measure only what the chapter's own file does not hold"
    )
    options = parser.parse_args(arguments)
    os.environ.update(QUIET)
    layout = Layout(Path(__file__).resolve().parents[1])
    layout.build.mkdir(exist_ok=True)
    try:
        for source in layout.chapters(options.chapter):
            out = layout.data / "records" / f"{source.stem}.zip"
            earlier = [path for path in sorted(out.parent.glob("*.zip")) if path < out]
            own = [out] if options.missing and out.exists() else []
            run_dir = measure(layout, source, earlier + own)
            names = {name for path in earlier for name in zipfile.ZipFile(path).namelist()}
            count = pack([run_dir], out, without=names)
            if not count:
                out.unlink()
                print(f"{source.stem}: measures nothing", flush=True)
                continue
            print(f"{out}: {count} records, {out.stat().st_size / 2**20:.1f} MiB", flush=True)
    except (BuildError, DoriError) as error:
        print(f"records: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

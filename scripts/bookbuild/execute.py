"""Run chapters with papermill: only those whose sources changed, stopping at the first error."""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from traitlets.config import Config

from bookbuild.layout import BuildError, Layout
from bookbuild.results import read_headlines
from bookbuild.stage import prepare_chapter

INJECTED = "injected-parameters"
SAME = 0.05  # a measurement made again agrees with the shipped one if no number differs by more (store)
ENOUGH = 0.9  # share of them that has to


def hash_files(root: Path, paths: Iterable[Path], extra: str = "") -> str:
    """SHA-256 over names (relative to `root`) and contents of `paths`, and over `extra`."""
    digest = hashlib.sha256(extra.encode())
    for path in sorted(paths):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def shared_inputs(layout: Layout) -> list[Path]:
    """Files every chapter may depend on: the package and the data."""
    code = (layout.root / "dori").rglob("*.py")
    data = (p for p in layout.data.rglob("*") if p.is_file())
    return [*code, *data]


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Names and defaults of the notebook's `parameters` cell."""
    found = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(parameter["default"]) for name, parameter in found.items()}


def choose_parameters(
    wanted: Mapping[str, Any], declared: Mapping[str, Mapping[str, Any]], *, chapter: str
) -> dict[str, Any]:
    """The part of `wanted` that `chapter` declares; a name that no chapter declares is refused."""
    known = set().union(*declared.values())
    for name in wanted:
        if name not in known:
            raise BuildError(f"no chapter has a parameter '{name}'; there are: {', '.join(sorted(known))}")
    return {name: value for name, value in wanted.items() if name in declared[chapter]}


def git_commit(root: Path) -> str:
    """The commit the sources are at, with `+changes` where tracked files differ from it."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop papermill's records (they hold paths of this machine) and fold the injected parameters away."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if INJECTED in cell.metadata.get("tags", []):
            cell["id"] = INJECTED
            cell.metadata["tags"] = [INJECTED, "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": "The parameters this page was built with"}
    return notebook


def run_notebook(layout: Layout, prepared: Path, parameters: Mapping[str, Any]) -> nbformat.NotebookNode:
    """Execute `prepared` in a fresh kernel, from the root of the checkout.

    Raises BuildError at a failing cell; the notebook up to there stays in `_build/failed/` to be looked at.
    """
    unfinished = layout.build / "failed" / prepared.name
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="dori-kernel-") as sockets:
            # Build and kernel talk through files of this chapter's own: no open ports, no mix-up.
            talk = {"transport": "ipc", "ip": str(Path(sockets) / "ipc")}
            notebook = papermill.execute_notebook(
                str(prepared),
                str(unfinished),
                parameters=dict(parameters),
                kernel_name="python3",
                cwd=str(layout.root),
                progress_bar=sys.stderr.isatty(),
                config=Config({"KernelManager": talk}),
            )
    except papermill.PapermillExecutionError as error:
        told = str(error)
        if error.ename == "DoriError":  # written for people: its one line says it all, without a traceback
            told = f"{error.evalue}\nCell [{error.exec_count}]:\n{textwrap.indent(error.source, '    ')}"
        raise BuildError(f"{prepared.stem}: {told}\nThe notebook up to there: {unfinished}") from error
    unfinished.unlink()
    return tidy(notebook)


def measured(run_dir: Path, chapter: str) -> dict[str, Any]:
    """Where a chapter's measurements came from: shipped with the book, or made now, anew or again.

    Raises BuildError if too few of those made again agree with the shipped ones.
    """
    path = run_dir / "provenance.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    again = [d for differences in found.get("records_repeated", {}).values() for d in differences]
    agree = sum(d <= SAME for d in again)
    if agree < ENOUGH * len(again):
        raise BuildError(
            f"{chapter}: {len(again)} shipped measurements were made again and only {agree} agree within "
            f"{SAME}; see records_repeated in {path}, and `make records` if the methods changed"
        )
    new = found.get("records_computed", 0) - len(again)
    return {
        "shipped": found.get("records_shipped", 0),
        "new": max(0, new),
        "again": len(again),
        "agree": agree,
        "largest": max(again, default=0.0),
    }


def peak_memory() -> float:
    """GiB that the largest kernel so far has held at once; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class Executor:
    """Executes chapters that changed. One hash covers all of a chapter: source, dori/, data, parameters."""

    def __init__(self, layout: Layout, wanted: Mapping[str, Any], at_once: int = 1) -> None:
        self.layout = layout
        self.wanted = dict(wanted)
        self.at_once = at_once
        self.shared = hash_files(layout.root, shared_inputs(layout))
        self.declared: dict[str, dict[str, Any]] = {}
        for source in layout.chapters():
            prepared = prepare_chapter(source, layout.prepared / f"{source.stem}.ipynb")
            self.declared[source.stem] = declared_parameters(prepared)

    def parameters(self, chapter: str) -> dict[str, Any]:
        """What `chapter` is run with. The run directory stays: records in it are kept by content."""
        chosen = choose_parameters(self.wanted, self.declared, chapter=chapter)
        if "run_dir" in self.declared[chapter] and "run_dir" not in chosen:
            folder = self.layout.runs / chapter / str(chosen.get("preset", "default"))
            chosen["run_dir"] = folder.relative_to(self.layout.root).as_posix()
        return chosen

    def run_all(self, sources: Sequence[Path]) -> None:
        """Run chapters, `at_once` of them side by side, each from a process of its own.

        Raises BuildError as the first that fails does; those that are running by then are let finish.
        """
        if self.at_once == 1:
            for source in sources:
                self.run(source)
            return
        with ProcessPoolExecutor(self.at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
            runs = [pool.submit(self.run, source) for source in sources]
            try:
                for run in as_completed(runs):
                    run.result()
            except BuildError:
                pool.shutdown(cancel_futures=True)
                raise

    def run(self, source: Path) -> dict[str, Any]:
        """Execute the chapter unless its last run still stands; return the record of the run that stands."""
        parameters = self.parameters(source.stem)
        current = hash_files(self.layout.root, [source], self.shared + json.dumps(parameters, sort_keys=True))
        record = read_record(self.layout, source.stem)
        if record and record["hash"] == current:
            print(f"{source.stem}: unchanged since {record['finished']}", flush=True)
            return record
        print(f"{source.stem}: executing with {parameters}", flush=True)
        headlines = self.layout.root / parameters.get("run_dir", "") / "headlines.json"
        headlines.unlink(missing_ok=True)  # a figure the chapter no longer notes must not live on
        started = time.monotonic()
        notebook = run_notebook(self.layout, self.layout.prepared / f"{source.stem}.ipynb", parameters)
        record = {
            "chapter": source.stem,
            "hash": current,
            "parameters": self.declared[source.stem] | parameters,
            "seconds": round(time.monotonic() - started, 1),
            "peak_gib": round(peak_memory(), 2),
            "at_once": self.at_once,
            "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": git_commit(self.layout.root),
            "measured": measured(headlines.parent, source.stem),
            "figures": read_headlines(headlines),
        }
        self.save(notebook, record)
        print(f"{source.stem}: done in {record['seconds']:.0f} s", flush=True)
        return record

    def save(self, notebook: nbformat.NotebookNode, record: Mapping[str, Any]) -> None:
        """Keep notebook and record."""
        self.layout.executed.mkdir(parents=True, exist_ok=True)
        path = self.layout.executed / f"{record['chapter']}.ipynb"
        path.with_suffix(".json").unlink(missing_ok=True)
        partial = path.with_suffix(".tmp")
        nbformat.write(notebook, partial)
        os.replace(partial, path)
        # The record goes first and comes last: an interrupted save counts as not executed.
        path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_record(layout: Layout, chapter: str) -> dict[str, Any] | None:
    """The record of the chapter's last complete run, or None."""
    path = layout.executed / f"{chapter}.json"
    if not path.exists() or not path.with_suffix(".ipynb").exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def read_records(layout: Layout) -> list[dict[str, Any]]:
    """Records of all executed chapters, in reading order."""
    records = (read_record(layout, source.stem) for source in layout.chapters())
    return [record for record in records if record]

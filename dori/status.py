"""`dori status RUN`: how far a run is, read from its directory while others write there."""

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from dori.errors import DoriError
from dori.stopwatch import seconds_in

PROGRESS = "progress.json"  # what a command is doing in a run directory; written by `store`


@dataclass(frozen=True)
class Stage:
    """Records of one sort: how many lie there, and of those that the command asked for, how many."""

    name: str
    kept: int
    done: int | None  # None where nothing says what is asked for
    asked: int | None
    last: float  # time of the last write, seconds since 1970


@dataclass(frozen=True)
class Status:
    """What a run directory says about itself."""

    directory: Path
    state: str  # finished, running, stopped, or unknown
    about: dict  # command, model, benchmark, versions, machine, started
    stages: list[Stage]
    left_out: dict[str, str]  # ids or records that are in no denominator, with reasons
    wall_seconds: float | None  # of the run that finished
    seconds: dict[str, float]  # by stage, of all processes and all runs of this directory

    @property
    def last(self) -> float | None:
        """Time of the last record."""
        return max((stage.last for stage in self.stages), default=None)


def read_status(directory: Path) -> Status:
    """The state of a run directory, or of a model that is being made. Raises DoriError."""
    directory = _place(Path(directory).expanduser())
    about, summary, provenance = (_json(directory / n) for n in (PROGRESS, "summary.json", "provenance.json"))
    stages = _stages(directory / "records", about.pop("asked", {}))
    done = _written(directory / "summary.json") >= _written(directory / PROGRESS) and bool(summary)
    done = done or bool(provenance and not about and not stages)  # a mitigated model, which has no records
    left_out = summary.get("skipped", {}).get("rows", []) if done else about.get("left_out", [])
    failed = {} if done else _failed(directory / "records" / "score")
    named = {k: summary[k] for k in ("command", "model", "benchmark") if k in summary}
    return Status(
        directory,
        "finished" if done else _alive(about),
        provenance | named if done else about,
        stages,
        {row["id"]: row["reason"] for row in left_out} | failed,
        provenance.get("wall_seconds") if done else None,
        seconds_in(directory) or provenance.get("stage_seconds", {}),
    )


def _place(given: Path) -> Path:
    """The directory, or the one beside a model that is being made (experiments.modelfiles.workplace)."""
    for place in (given.absolute().with_name(f".{given.name}.dori"), given):
        if (place / "records").is_dir() or any((place / n).is_file() for n in (PROGRESS, "provenance.json")):
            return place
    what = "holds no run" if given.is_dir() else "is not a directory"
    raise DoriError(f"{given} {what}; give the --out of dori evaluate, attack, locality or mitigate")


def _stages(records: Path, asked: dict[str, list[str]]) -> list[Stage]:
    """Those that have records, and those that are to have some."""
    folders = sorted(d.name for d in records.glob("*") if d.is_dir())
    found = [_stage(records / name, asked.get(name)) for name in folders]
    return found + [Stage(n, 0, 0, len(keys), 0.0) for n, keys in asked.items() if n not in folders]


def ago(then: float | None) -> str:
    """A time as people say it: 40 seconds ago."""
    if not then:
        return "never"
    seconds = max(0, time.time() - then)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


def _stage(folder: Path, asked: list[str] | None) -> Stage:
    """Files that come or go meanwhile are counted or not; names that begin with a dot are unfinished."""
    kept, last = set(), 0.0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                kept.add(entry.name.removesuffix(".json"))
                try:
                    last = max(last, entry.stat().st_mtime)
                except FileNotFoundError:
                    continue
    done = None if asked is None else len(kept & set(asked))
    return Stage(folder.name, len(kept), done, None if asked is None else len(set(asked)), last)


def _failed(folder: Path) -> dict[str, str]:
    """Records that say why there is no score."""
    if not folder.is_dir():
        return {}
    found = {path.stem: _json(path).get("values", {}) for path in sorted(folder.glob("[!.]*.json"))}
    return {str(v.get("id", name)): str(v["failed"]) for name, v in found.items() if "failed" in v}


def _written(path: Path) -> float:
    """Time of the last write, 0 if there was none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _alive(about: dict) -> str:
    """Whether the process that last wrote progress.json still runs; only this machine's can be asked."""
    if "process" not in about:
        return "unknown"
    if about.get("host") != platform.node():
        return f"started on {about.get('host')}"
    try:
        os.kill(int(about["process"]), 0)
    except ProcessLookupError:
        return "stopped"
    except PermissionError:
        return "running"
    return "running"


def _json(path: Path) -> dict:
    """A file's object; empty where there is none, or none yet."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

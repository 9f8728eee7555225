"""A mitigated model's directory: a plain diffusers pipeline, and beside it how it was made."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from dori import parallel
from dori.errors import DoriError
from dori.loading import bundled_path
from dori.stopwatch import FOLDER
from dori.store import write_json, writing
from dori.study import Study

COMMAND, LOCK = "mitigate", "lock"


def check_target(out: Path, model: str) -> None:
    """Raise DoriError if the saved model would replace anything but an earlier one of this command."""
    if out.is_file():
        raise DoriError(f"'{out}' is a file; --out takes a directory")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if out.resolve() == (bundled_path(model) or Path(model).expanduser()).resolve():
        raise DoriError(f"'{out}' is the model that is to be mitigated; give another --out")
    if provenance(out).get("command") != COMMAND:
        raise DoriError(f"'{out}' is not empty and was not written by `dori {COMMAND}`; give another --out")


def workplace(out: Path) -> Path:
    """The run directory beside `out`: an interrupted run goes on from its records; gone at the end."""
    return out.with_name(f".{out.name}.dori")  # a name that nobody else gives, as it is removed


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep the workplace for one command, its processes together, and remove it if nothing was kept in it.

    Raises DoriError if another command is at it: two would train over each other's checkpoints.
    """
    if not parallel.first():
        yield
        return
    place = workplace(out)
    place.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(place / LOCK, timeout=0).acquire()
    except Timeout:
        raise DoriError(
            f"another `dori {COMMAND}` is making '{out}'; wait for it, or give another --out"
        ) from None
    with lock:
        try:
            yield
        finally:
            if {path.name for path in place.glob("*")} <= {LOCK, FOLDER}:
                shutil.rmtree(place, ignore_errors=True)


def write_model(study: Study, path: Path, name: str, about: Mapping[str, object]) -> None:
    """Save the study's pipeline as it is now under a name; dori.json and provenance.json, with `about`,
    beside it."""
    model = study.model
    shutil.rmtree(path, ignore_errors=True)
    with writing(path):
        model.pipe.save_pretrained(path, safe_serialization=True)
    write_json(path / "dori.json", {**dataclasses.asdict(model.defaults), "name": name})
    write_json(path / "provenance.json", study.store.provenance(device=str(model.device), **about))
    for file in path.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes 0600, which would lock colleagues out


def provenance(directory: Path) -> dict:
    """The directory's provenance.json; empty where there is none."""
    try:
        found = json.loads((directory / "provenance.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def put(made: Path, out: Path) -> None:
    """Move a finished directory to its place; an older one is kept until the new one stands."""
    old = workplace(out) / "old"
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    made.rename(out)

"""A run directory: one record per item, written whole or not at all, found by what decides its result."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from dori.archive import TOUCHED, Archive
from dori.errors import DoriError
from dori.files import atomic, write_json, writing
from dori.status import PROGRESS
from dori.stopwatch import Stopwatch, seconds_in

PACKAGES = ("dori", "torch", "diffusers", "transformers", "numpy", "pandas", "scipy", "torchmetrics")


@dataclass(frozen=True)
class Record:
    """What an experiment kept of one item: plain values, and tensors by name."""

    values: dict
    tensors: dict[str, Tensor] = field(default_factory=dict)


def content_key(decides: Mapping) -> str:
    """sha256 (24 hex digits) of everything that decides a result, in one canonical spelling."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:24]


def weights_hash(modules: Iterable[nn.Module], settings: str = "") -> str:
    """sha256 (16 hex digits) over `settings` and the names and values of every weight."""
    digest = hashlib.sha256(settings.encode())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


class RunStore:
    """Records under `directory/records/<stage>/<key>.json`, tensors beside them as .safetensors.

    The JSON is written last, so a record either is complete or is missing. Two processes may share a
    directory: both would write the same content under the same key. What the directory lacks is taken from
    `archive`, but for the lots that are kept back to be measured again. Those are compared (`repeated`), and
    the shipped record goes on: what is measured on top of it keeps its key, so it too is shipped or compared.
    """

    def __init__(self, directory: str | Path, archive: Archive | None = None) -> None:
        self.directory = Path(directory).expanduser()
        self.archive = archive
        self.started = time.time()
        self.timed = Stopwatch(self.directory).timed  # `with store.timed("attack"):` counts the block
        self.computed = 0
        self.touched: set[str] = set()  # names of the records that were asked for and found
        self.shipped: set[str] = set()  # of them, those that came from the archive
        self.about: dict | None = None  # what a command is doing here, once it has said so
        self.asked: dict[str, dict[str, None]] = {}  # stage -> keys that it wants
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DoriError(f"run directory '{self.directory}' cannot be made ({error.strerror})") from None

    def find(self, stage: str, decides: Mapping, *, passes: int = 0) -> Record | None:
        """The record of an item, or None if it is missing or unreadable.

        `passes`: rows through the UNet that making it takes, where they are more than an image's; it decides
        how often a shipped one is made again.
        """
        name, path = _name(stage, decides), self._path(stage, decides)
        found = _read(path) if path.is_file() else None
        kept_back = self.archive is None or self.archive.draws(_lot(decides), passes)
        if found is not None or not kept_back:
            kept = self._kept(name)
            if found is None and kept is not None:
                self.shipped.add(name)
            found = kept or found
        if found is not None:
            self.touched.add(name)
        return found

    def has(self, stage: str, decides: Mapping, *, passes: int = 0) -> bool:
        """Whether a record lies there, without reading it; `passes` as for `find`."""
        if self._path(stage, decides).is_file():
            return True
        name = f"{_name(stage, decides)}.json"
        return self.archive is not None and self.archive.has(name, _lot(decides), passes)

    def save(self, stage: str, decides: Mapping, record: Record) -> Record:
        """Store one item's record, tensors first, the JSON that vouches for them last; gives what goes on."""
        path = self._path(stage, decides)
        with writing(path):
            if record.tensors:
                with atomic(path.with_suffix(".safetensors")) as temporary:
                    save_file({k: v.contiguous().cpu() for k, v in record.tensors.items()}, temporary)
            write_json(path, {"decides": decides, "values": record.values, "tensors": sorted(record.tensors)})
        self.computed += 1
        name = _name(stage, decides)
        self.touched.add(name)
        return self._kept(name) or record

    def repeated(self) -> dict[str, list[float]]:
        """By stage, how far each measurement of this directory lies from the shipped one of the same key.

        The largest difference of any number of the record (as a share of it where it is above 1), of its
        images (mean over pixels, as a share of the range) and of its masks (1 - IoU). Other tensors are where
        a search ended: its losses are compared, and the scores of what it paints.
        """
        found: dict[str, list[float]] = {}
        for name in sorted(self.touched - self.shipped) if self.archive else ():
            path, theirs = self.directory / "records" / f"{name}.json", self._kept(name)
            ours = _read(path) if theirs is not None and path.is_file() else None
            if ours is not None:
                found.setdefault(name.split("/")[0], []).append(_apart(ours, theirs))
        return found

    def get(self, stage: str, decides: Mapping, compute: Callable[[], Record], *, passes: int = 0) -> Record:
        """The stored record, computed and stored first if it is missing; `passes` as for `find`."""
        found = self.find(stage, decides, passes=passes)
        if found is None:
            with self.timed(stage):
                found = self.save(stage, decides, compute())
        return found

    def announce(self, **about: object) -> None:
        """Write what is being done here, for `dori status`; `ask` is noted there from now on."""
        where = {"process": os.getpid(), "host": platform.node(), "started": _utc(time.time())}
        code = {"versions": versions(), "commit": commit(), "machine": machine()}
        self.about = {**about, **where, **code}
        self._note_progress()

    def ask(self, stage: str, wanted: Iterable[Mapping]) -> None:
        """Note that the records of these keys will be made."""
        if self.about is not None:
            self.asked.setdefault(stage, {}).update(dict.fromkeys(map(content_key, wanted)))
            self._note_progress()

    def _note_progress(self) -> None:
        asked = {stage: list(keys) for stage, keys in self.asked.items()}
        write_json(self.directory / PROGRESS, {**self.about, "asked": asked})

    def provenance(self, **more: object) -> dict:
        """Versions, commit, machine, wall time of this run; seconds by stage of all runs in its directory."""
        return {
            "versions": {"python": platform.python_version(), **versions()},
            "commit": commit(),
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "started": _utc(self.started),
            "wall_seconds": round(time.time() - self.started, 2),
            "stage_seconds": {k: round(v, 2) for k, v in seconds_in(self.directory).items()},
            "records_computed": self.computed,
            "records_shipped": len(self.shipped),
            "records_repeated": self.repeated(),
            **more,
        }

    def note_touched(self) -> None:
        """Write which records this run asked for: what `archive.pack` takes."""
        write_json(self.directory / TOUCHED, sorted(self.touched))

    def _kept(self, name: str) -> Record | None:
        """The shipped record of this name, None where none is or it is not whole."""
        text = self.archive.kept(f"{name}.json") if self.archive else None
        return _parse(text, self.archive.kept(f"{name}.safetensors")) if text is not None else None

    def _path(self, stage: str, decides: Mapping) -> Path:
        return self.directory / "records" / f"{_name(stage, decides)}.json"


def _name(stage: str, decides: Mapping) -> str:
    return f"{stage}/{content_key(decides)}"


def _lot(decides: Mapping) -> str:
    """What a record is kept back by: the looks at one search go together."""
    return content_key({k: v for k, v in decides.items() if k != "step"})


def _read(path: Path) -> Record | None:
    """A record of the directory; a damaged one is removed, so that the item is computed again."""
    try:
        entry = json.loads(path.read_text())
        tensors = load_file(path.with_suffix(".safetensors")) if entry["tensors"] else {}
        return _record(entry, tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        path.unlink(missing_ok=True)
        return None


def _parse(text: bytes, tensors: bytes | None) -> Record | None:
    entry = json.loads(text)
    if entry["tensors"] and tensors is None:
        return None
    return _record(entry, load(tensors) if entry["tensors"] else {})


def _record(entry: dict, tensors: Mapping[str, Tensor]) -> Record:
    """Tensors in the order of their names, as safetensors gives them in any. KeyError for a lost one."""
    return Record(entry["values"], {name: tensors[name] for name in sorted(entry["tensors"])})


def _apart(ours: Record, theirs: Record) -> float:
    """`RunStore.repeated` of one record."""
    if {k: v.shape for k, v in ours.tensors.items()} != {k: v.shape for k, v in theirs.tensors.items()}:
        return math.inf
    pairs = [(x, theirs.tensors[k]) for k, x in ours.tensors.items()]
    images = [float((a.float() - b.float()).abs().mean()) / 255 for a, b in pairs if a.dtype == torch.uint8]
    masks = [(a, b) for a, b in pairs if a.dtype == torch.bool]
    either = sum(int((a | b).sum()) for a, b in masks)
    both = sum(int((a & b).sum()) for a, b in masks)
    return max([_difference(ours.values, theirs.values), *images, 1 - both / either if either else 0.0])


def _difference(ours: object, theirs: object) -> float:
    """Largest difference of two values of one shape; infinite if they are of different ones."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return max((_difference(ours[k], theirs[k]) for k in ours), default=0.0)
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return max((_difference(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return abs(ours - theirs) / max(1.0, abs(theirs))
    return 0.0 if ours == theirs else math.inf


@functools.cache
def commit() -> str | None:
    """Commit of the code that runs, None outside a checkout."""
    where = Path(__file__).parent
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide results; None for a missing one."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, object]:
    """System, processor, cores and GPU that this runs on."""
    system, cores = platform.platform(), os.cpu_count()
    return {"system": system, "cpu": _cpu_name(), "cores": cores, "gpu": _gpu_name()}


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _gpu_name() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None

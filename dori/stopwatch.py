"""Seconds that each stage of a run took: a file per process in the run directory, added by whoever asks."""

import contextlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dori.files import write_json

FOLDER = "seconds"


class Stopwatch:
    """Counts for one process; what it counted stays when it dies, so that the next run goes on from there."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FOLDER / f"{platform.node()}-{os.getpid()}-{time.time_ns()}.json"
        self.seconds: Counter[str] = Counter()
        self._inside: list[float] = []  # of each open block, what the blocks inside took

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the block as this stage's, but for what blocks inside it count as theirs."""
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - started
            self.seconds[stage] += whole - self._inside.pop()
            if self._inside:
                self._inside[-1] += whole
            with contextlib.suppress(OSError):  # a full disk has its own line
                write_json(self.path, self.seconds)


def seconds_in(directory: Path) -> dict[str, float]:
    """Seconds by stage, of all processes and all runs in a directory; damaged files count nothing."""
    total: Counter[str] = Counter()
    for path in sorted((directory / FOLDER).glob("[!.]*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            total.update({str(k): float(v) for k, v in json.loads(path.read_text()).items()})
    return dict(total)

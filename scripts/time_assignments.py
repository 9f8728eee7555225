"""Run each assignment's solution as a notebook, once per size, and write how long it took.

    python scripts/time_assignments.py [--size quick] [--seed 0] [--threads 2]

The table, notebooks/assignments/timing.csv, is what the teacher's page shows. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd
from bookbuild.pages import processor_name
from nbclient import NotebookClient

from dori.classroom.course import SOURCES, assignments, write_source
from dori.classroom.room import SIZES, VARIABLE

TABLE = SOURCES / "timing.csv"


def seconds(name: str, *, size: str, seed: int, threads: int) -> float:
    """Wall time of one assignment, kernel and imports included. A cell that fails is an error."""
    environment = os.environ | {VARIABLE: size, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.ipynb"
        write_source(name, path, seed=seed)
        client = NotebookClient(nbformat.read(path, as_version=4), timeout=1200, kernel_name="python3")
        started = time.perf_counter()
        client.execute(cwd=folder, env=environment)
        return time.perf_counter() - started


def main() -> int:
    """Measure and write; rows of other sizes stay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", choices=SIZES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.is_file() else []
    for size in options.size or SIZES:
        for name in assignments():
            took = seconds(name, size=size, seed=options.seed, threads=options.threads)
            print(f"{name}, {size}: {took:.0f} s", flush=True)
            rows = [r for r in rows if (r["assignment"], r["size"]) != (name, size)]
            about = {"threads": options.threads, "machine": f"{processor_name()}, {os.cpu_count()} cores"}
            rows.append({"assignment": name, "size": size, "seconds": round(took), **about})
            pd.DataFrame(rows).sort_values(["size", "assignment"]).to_csv(TABLE, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a command leaves in its run directory: results.csv, summary.json, provenance.json."""

import json
from pathlib import Path

import pandas as pd

from dori import parallel
from dori.benchmark import Benchmark, Skipped
from dori.errors import DoriError
from dori.metrics.intervals import Estimate, median_mad
from dori.metrics.replication import best_scores, memorization_rate, pair_rate
from dori.store import atomic, write_json
from dori.study import Sampling, Study


def about(study: Study, prompts: Benchmark, sampling: Sampling, *, command: str) -> dict:
    """What a summary says whatever was measured: model, benchmark, descriptor, threshold, sampling."""
    return {
        "command": command,
        "model": study.model.name,
        "model_fingerprint": study.model.fingerprint,
        "dtype": str(study.model.dtype).removeprefix("torch."),
        "benchmark": str(prompts.path),
        "descriptor": study.descriptor.name,
        "threshold": study.descriptor.threshold,
        "seed": study.seed,
        "seeds": sampling.seeds,
        "guidance_scale": sampling.guidance_scale,
        "steps": sampling.steps,
        "preset": study.preset.name,
    }


def announce(study: Study, prompts: Benchmark, *, command: str) -> None:
    """Tell `dori status` what begins here."""
    study.store.announce(
        command=command,
        model=study.model.name,
        benchmark=str(prompts.path),
        device=str(study.model.device),
        preset=study.preset.name,
        rows=len(prompts),
        left_out=[row._asdict() for row in prompts.skipped],
    )


def left_out(prompts: Benchmark, table: pd.DataFrame | None = None) -> dict:
    """Rows that were not measured, counted and with reasons: those of the file, then those of the table."""
    found = {} if table is None else table.attrs["skipped"]
    rows = [*prompts.skipped, *(Skipped(*item) for item in found.items())]
    return {"n": len(rows), "rows": [row._asdict() for row in rows]}


def rates_of(table: pd.DataFrame) -> dict:
    """Rates of one sort of prompts as value, low, high, n; median and MAD of the best score."""
    median, mad = median_mad(best_scores(table))
    return {
        "mr": plain(memorization_rate(table)),
        "mr_mean": plain(pair_rate(table)),
        "best_score_median": median,
        "best_score_mad": mad,
    }


def plain(estimate: Estimate) -> dict:
    """JSON has no NaN: an interval that cannot be had (one prompt) is null."""
    return {k: None if pd.isna(v) else v for k, v in estimate._asdict().items()}


def claim(directory: Path, command: str) -> None:
    """Raise DoriError if the directory holds the summary of another command, which this one would replace."""
    try:
        found = json.loads((directory / "summary.json").read_text()).get("command", command)
    except (OSError, ValueError, AttributeError):  # none yet, or damaged: nothing worth keeping
        return
    if found != command:
        raise DoriError(f"{directory} holds the results of `dori {found}`; give another --out")


def write_run(study: Study, table: pd.DataFrame, summary: dict) -> None:
    """Write the three files, each whole or not at all; the table has a row per image.

    Of several processes the first writes, when all have done their share.
    """
    parallel.wait()
    if not parallel.first():
        return
    with atomic(study.store.directory / "results.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(study.store.directory / "summary.json", summary)
    study.finish()

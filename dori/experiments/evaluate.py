"""`dori evaluate`: how much of a benchmark a model replicates, as the files of contract 4."""

import pandas as pd

from dori.benchmark import Benchmark
from dori.metrics.intervals import Estimate, median_mad
from dori.metrics.replication import best_scores, memorization_rate, pair_rate
from dori.store import atomic, write_json
from dori.study import Sampling, Study, generate_and_score


def evaluate(study: Study, prompts: Benchmark, sampling: Sampling) -> dict:
    """Score every prompt; write results.csv, summary.json, provenance.json. Returns the summary."""
    table = generate_and_score(study, prompts, sampling)
    summary = {
        "model": study.model.name,
        "model_fingerprint": study.model.fingerprint,
        "benchmark": str(prompts.path),
        "descriptor": study.descriptor.name,
        "threshold": study.descriptor.threshold,
        "seed": study.seed,
        "seeds": sampling.seeds,
        "guidance_scale": sampling.guidance_scale,
        "steps": sampling.steps,
        "preset": study.preset.name,
        "n": len(prompts),
        "by_kind": {kind: summarise(part) for kind, part in table.groupby("kind", sort=False)},
    }
    with atomic(study.store.directory / "results.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(study.store.directory / "summary.json", summary)
    study.finish()
    return summary


def summarise(table: pd.DataFrame) -> dict:
    """Rates of one sort of prompts as value, low, high, n; median and MAD of the best score."""
    median, mad = median_mad(best_scores(table))
    return {
        "mr": _plain(memorization_rate(table)),
        "mr_mean": _plain(pair_rate(table)),
        "best_score_median": median,
        "best_score_mad": mad,
    }


def _plain(estimate: Estimate) -> dict:
    """JSON has no NaN: an interval that cannot be had (one prompt) is null."""
    return {k: None if pd.isna(v) else v for k, v in estimate._asdict().items()}

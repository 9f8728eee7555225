"""`dori evaluate`: how much of a benchmark a model replicates, as the files of contract 4."""

from dori.benchmark import Benchmark
from dori.experiments.runfiles import about, left_out, rates_of, write_run
from dori.study import Sampling, Study, generate_and_score


def evaluate(study: Study, prompts: Benchmark, sampling: Sampling) -> dict:
    """Score every prompt; write results.csv, summary.json, provenance.json. Returns the summary."""
    table = generate_and_score(study, prompts, sampling)
    summary = {
        **about(study, prompts, sampling, command="evaluate"),
        "n": table["id"].nunique(),
        "skipped": left_out(prompts, table),
        "by_kind": {kind: rates_of(part) for kind, part in table.groupby("kind", sort=False)},
    }
    write_run(study, table, summary)
    return summary

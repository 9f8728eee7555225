"""`dori evaluate`: how much of a benchmark a model replicates, as results.csv and summary.json."""

import torch

from dori.benchmark import Benchmark
from dori.drawing import stored_images
from dori.errors import DoriError
from dori.experiments.runfiles import about, announce, left_out, plain, rates_of, write_run
from dori.metrics.alignment import ClipScorer, clip_alignment
from dori.metrics.fidelity import Features, frechet_distance, kernel_distance
from dori.metrics.intervals import bootstrap
from dori.study import Sampling, Study, generate_and_score


def evaluate(
    study: Study,
    prompts: Benchmark,
    sampling: Sampling,
    *,
    clip: ClipScorer | None = None,
    features: Features | None = None,
) -> dict:
    """Score every prompt; write results.csv, summary.json, provenance.json. Returns the summary.

    With `clip` each image has its alignment, too: its cosine with the prompt; with `features` there are FID
    and KID of the images of kind "none" against the images of their rows. Raises DoriError.
    """
    check_fidelity(prompts, features)
    announce(study, prompts, command="evaluate")
    table = generate_and_score(study, prompts, sampling)
    measured = prompts.only(list(dict.fromkeys(table["id"])))
    if clip:
        texts = dict(zip(measured.ids, measured.prompts(), strict=True))
        drawn = stored_images(study, measured, sampling)
        with study.store.timed("alignment"):
            found = [clip_alignment(clip, images, [texts[i]] * len(images)) for i, images in drawn]
        table["alignment"] = torch.cat(found).tolist()
    summary = {
        **about(study, prompts, sampling, command="evaluate"),
        "n": table["id"].nunique(),
        "skipped": left_out(prompts, table),
        "by_kind": {kind: rates_of(part) for kind, part in table.groupby("kind", sort=False)},
    }
    if clip:
        summary["clip"] = clip.name
        for kind, part in table.groupby("kind", sort=False):
            summary["by_kind"][kind]["alignment"] = plain(bootstrap(part["alignment"], by=part["id"]))
    if features:
        with study.store.timed("fidelity"):
            summary["fidelity"] = _fidelity(study, measured.select(kind="none"), sampling, features)
    write_run(study, table, summary)
    return summary


def check_fidelity(prompts: Benchmark, features: object) -> None:
    """Raise DoriError where FID is asked for and there is nothing to compare."""
    regular = int((prompts.table["kind"] == "none").sum())
    if features and regular < 2:
        raise DoriError(f"FID compares images of kind none with the benchmark's own, and {regular} rows are")


def _fidelity(study: Study, regular: Benchmark, sampling: Sampling, features: Features) -> dict:
    """FID is biased upwards for few images; KID is not, and is multiplied by 1000."""
    size = study.model.defaults.image_size
    real = torch.cat([features.embed_images(regular.images([i], size=size)) for i in regular.ids])
    drawn = stored_images(study, regular, sampling)
    generated = torch.cat([features.embed_images(images) for _, images in drawn])
    return {
        "features": features.name,
        "fid": frechet_distance(real, generated),
        "kid_1000": 1000 * kernel_distance(real, generated),
        "n_real": len(real),
        "n_generated": len(generated),
    }

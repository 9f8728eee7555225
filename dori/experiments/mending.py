"""`dori mitigate` by training: a copy of the model that is to have forgotten all images of a benchmark."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from dori import parallel
from dori.benchmark import Benchmark
from dori.drawing import decided_by, descriptor_key, digest
from dori.errors import DoriError
from dori.experiments import curing
from dori.experiments.modelfiles import COMMAND, provenance, put, workplace, write_model
from dori.experiments.options import chosen
from dori.experiments.runfiles import left_out
from dori.loading import resolve_dtype
from dori.store import content_key
from dori.study import Study


def find_training(method: str, given: Mapping[str, object]) -> curing.Settings:
    """A defence's settings from options; those not given are the published ones. Raises DoriError."""
    return chosen(method, curing.PUBLISHED, given)


def check_dtype(dtype: str) -> None:
    """Raise DoriError for half precision: a step of training is smaller than what it rounds to."""
    if resolve_dtype(dtype) != torch.float32:
        raise DoriError(
            f"--dtype {dtype}: a training keeps its weights in float32; where memory is short, take "
            "--set checkpointing=true, or --set autocast=true for bfloat16 arithmetic"
        )


def mend(study: Study, prompts: Benchmark, method: str, settings: curing.Settings, out: Path) -> dict:
    """Train a copy of the model to forget the images of `prompts`; save it, with the log, as a directory.

    `out` appears whole or not at all, and is left as it is if it holds this very model; an interrupted
    training goes on from its checkpoint in `workplace(out)`. Returns the saved model's provenance. Raises
    DoriError as `curing.cure` does.
    """
    images = digest(prompts.images(size=study.model.defaults.image_size))
    decides = {
        **decided_by(study, method),
        "method": method,
        **dataclasses.asdict(settings),
        "seed": study.seed,
    }
    decides |= {"prompts": prompts.prompts(), "images": images, "regular": study.regular.prompts()}
    decides |= {"descriptor": descriptor_key(study)} | dataclasses.asdict(study.model.defaults)
    key = content_key(decides)
    if provenance(out).get("key") != key:
        folder = workplace(out) / f"training-{key}"
        with study.store.timed("training"):
            done = curing.cure(study, method, prompts, folder, settings)
        about = {
            "key": key,
            "command": COMMAND,
            "method": method,
            "setting": curing.LABELS[method],
            "settings": dataclasses.asdict(settings),
            "source": {"name": study.model.name, "fingerprint": study.model.fingerprint},
            "benchmark": str(prompts.path),
            "prompts": len(prompts),
            "retain_pairs": done.retain_pairs,
            "skipped": left_out(prompts),
            "seed": study.seed,
            "processes": parallel.count(),
            "training_seconds": round(done.seconds, 1),
            "unet_rows": done.unet_rows,
        }
        if parallel.first():
            write_model(study.on(done.model), workplace(out) / "model", done.model.name, about)
            for log in folder.glob("*.csv"):
                shutil.copy(log, workplace(out) / "model" / "training.csv")
            put(workplace(out) / "model", out)
        parallel.wait()
    if parallel.first():
        shutil.rmtree(workplace(out), ignore_errors=True)
    return provenance(out)

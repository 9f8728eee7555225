"""Does fine-tuning on data that has nothing to do with an erased image bring it back within reach?"""

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from dori.attack import Attack
from dori.benchmark import Benchmark
from dori.drawing import Sampling, decided_by, descriptor_key
from dori.experiments import erasing
from dori.experiments.fragility import attack_table
from dori.metrics.replication import replication_table
from dori.mitigation.targets import Retain, denoising_loss, retain_batch, trainable
from dori.mitigation.units import Units
from dori.model import TextToImageModel
from dori.store import Record, RunStore
from dori.study import Study
from dori.testbed.planting import copied
from dori.training import Fit, Schedule


@dataclass(frozen=True)
class Relearning:
    """A short fine-tuning of all weights on regular pairs, then a search. All of it is ours."""

    steps: int = 50
    batch: int = 8
    lr: float = 1e-4
    plan: Attack = dataclasses.field(default_factory=Attack)


def relearn(
    model: TextToImageModel, pairs: Retain, settings: Relearning, *, seed: int, run_dir: Path
) -> None:
    """Fine-tune `model.unet` in place on regular pairs; no target is among them. Raises DoriError."""

    def loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        return denoising_loss(model, retain_batch(model, pairs, settings.batch, rng)), {}

    with trainable(model.unet):
        Fit(
            "relearning",
            model.unet,
            loss,
            Schedule(settings.steps, settings.lr, warmup=1, decay=0),
            run_dir,
            seed,
            ema_decay=0,
        ).run()


def relearned_table(
    study: Study,
    prompts: Benchmark,
    settings: Relearning,
    *,
    units: Mapping[str, Units] | None = None,
    sampling: Sampling | None = None,
) -> pd.DataFrame:
    """Scores of searches on the model after relearning: id, seed, score, replicated.

    Units stay switched off. The result is kept under what decides it; the fine-tuned weights are not, as
    their last digits differ from machine to machine. Raises DoriError.
    """
    units, sampling = units or {}, sampling or study.sampling()
    decides = {
        **decided_by(study, "relearning"),
        **dataclasses.asdict(settings),
        "seed": study.seed,
        "prompts": list(prompts.ids),
        "units": [units[i].fingerprint if i in units else None for i in prompts.ids],
        "sampling": dataclasses.asdict(sampling),
        "descriptor": descriptor_key(study),
    }

    def compute() -> Record:
        model = copied(study.model, f"{study.model.name}, relearned")
        pairs = erasing.unrelated_pairs(study)
        with tempfile.TemporaryDirectory() as run_dir:
            relearn(model, pairs, settings, seed=study.seed, run_dir=Path(run_dir))
            # Keys of these weights are of this machine alone: nobody could find the records again.
            own = dataclasses.replace(study.on(model), store=RunStore(run_dir))
            table = attack_table(own, prompts, settings.plan, units=units, sampling=sampling)
        return Record({"scores": {i: part["score"].tolist() for i, part in table.groupby("id", sort=False)}})

    passes = settings.steps * settings.batch + len(prompts) * settings.plan.passes
    scores = study.store.get("relearned", decides, compute, passes=passes).values["scores"]
    return replication_table(scores, study.descriptor.threshold)

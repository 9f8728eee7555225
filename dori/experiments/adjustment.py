"""Chapter 4's comparator at inference time: Wen et al.'s adjustment of a prompt's embedding."""

import dataclasses

import pandas as pd
import torch

from dori.benchmark import Benchmark
from dori.drawing import Sampling, decided_by, descriptor_key, digest, noise_seed
from dori.metrics.copy import similarity
from dori.metrics.replication import memorization_rate, replication_table
from dori.mitigation.adjustment import Adjustment, adjusted
from dori.store import Record
from dori.study import Study

CALIBRATION = 64  # regular prompts behind the target
TARGETS = (
    (1.0, 10),
    (0.5, 100),
    (0.0, 100),
)  # share of a regular prompt's pull; steps at most, 10 as published


def median_pull(study: Study, prompts: Benchmark, sampling: Sampling) -> float:
    """Median ||eps_y - eps_0|| of prompts at the sampler's first step, one noise each.

    To three digits, as it decides records and the last ones differ from machine to machine.
    """
    model, scheduler = study.model, study.model.new_scheduler()
    scheduler.set_timesteps(sampling.steps)
    x = model.initial_latents([noise_seed(study.seed, i, 0) for i in prompts.ids])
    t = torch.full((len(x),), scheduler.timesteps[0].item(), device=x.device)
    with torch.no_grad():
        pull = model.guidance_difference(x, t, model.encode_prompts(prompts.prompts()))
    return float(f"{pull.float().flatten(1).norm(dim=1).median():.3g}")


def regular(study: Study) -> Benchmark:
    """The regular prompts whose median pull is the measure of a target."""
    return study.regular.head(CALIBRATION)


def adjusted_table(
    study: Study, prompts: Benchmark, sampling: Sampling, *, share: float = 1.0, iterations: int = 10
) -> pd.DataFrame:
    """What memorized prompts paint when their embedding is adjusted to pull less first.

    The target is a `share` of a regular prompt's pull. A row per image and seed: id, seed, score, replicated.
    Source: Wen et al. 2024, section 5. Raises DoriError.
    """
    target = float(f"{share * median_pull(study, regular(study), sampling):.3g}")
    settings = Adjustment(target=target, iterations=iterations, sampling_steps=sampling.steps)
    scores = {i: _scores(study, prompts, i, settings, sampling=sampling) for i in prompts.ids}
    return replication_table(scores, study.descriptor.threshold)


def targets_compared(study: Study, prompts: Benchmark, sampling: Sampling) -> pd.DataFrame:
    """How low must the pull go before the images stay away? A row for each of `TARGETS`; rates as text."""
    rows = [
        {
            "target, share of a regular prompt's pull": share,
            "steps at most": iterations,
            "MR of the prompts": memorization_rate(
                adjusted_table(study, prompts, sampling, share=share, iterations=iterations)
            ).cell,
        }
        for share, iterations in TARGETS
    ]
    return pd.DataFrame(rows).set_index("target, share of a regular prompt's pull")


def _scores(
    study: Study, prompts: Benchmark, item: str, settings: Adjustment, *, sampling: Sampling
) -> list[float]:
    original = prompts.images([item], size=study.model.defaults.image_size)
    seeds = [noise_seed(study.seed, item, k) for k in range(sampling.seeds)]
    prompt = prompts.table.loc[item, "prompt"]
    decides = {
        **decided_by(study, "adjustment"),
        **dataclasses.asdict(settings),
        **dataclasses.asdict(sampling),
        "prompt": prompt,
        "noise": seeds,
        "original": digest(original),
        "descriptor": descriptor_key(study),
    }

    def compute() -> Record:
        embeds = study.model.encode_prompts([prompt] * len(seeds))
        images = study.model.sample(
            adjusted(study.model, embeds, seeds, settings),
            seeds,
            guidance_scale=sampling.guidance_scale,
            num_inference_steps=sampling.steps,
        )
        scores = similarity(study.descriptor.embed(images), study.descriptor.embed(original))[:, 0]
        return Record({"scores": scores.tolist()})

    return study.store.get("adjusted", decides, compute).values["scores"]

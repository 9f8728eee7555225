"""Chapter 4's comparator at inference time: Wen et al.'s adjustment of a prompt's embedding."""

import dataclasses

import pandas as pd
import torch

from dori.benchmark import Benchmark
from dori.drawing import Sampling, decided_by, descriptor_key, digest, noise_seed
from dori.metrics.copy import similarity
from dori.metrics.replication import replication_table
from dori.mitigation.adjustment import Adjustment, adjusted
from dori.store import Record
from dori.study import Study

CALIBRATION = 64  # regular prompts behind the target


def regular_pull(study: Study, sampling: Sampling) -> float:
    """Median ||eps_y - eps_0|| of regular prompts at the sampler's first step, one noise each.

    To three digits, as it decides records and the last ones differ from machine to machine.
    """
    prompts = study.regular.head(CALIBRATION)
    model, scheduler = study.model, study.model.new_scheduler()
    scheduler.set_timesteps(sampling.steps)
    x = model.initial_latents([noise_seed(study.seed, i, 0) for i in prompts.ids])
    t = torch.full((len(x),), scheduler.timesteps[0].item(), device=x.device)
    with torch.no_grad():
        pull = model.guidance_difference(x, t, model.encode_prompts(prompts.prompts()))
    return float(f"{pull.float().flatten(1).norm(dim=1).median():.3g}")


def adjusted_table(study: Study, prompts: Benchmark, sampling: Sampling) -> pd.DataFrame:
    """What memorized prompts paint when their embedding is adjusted to pull like a regular one first.

    A row per image and seed: id, seed, score, replicated. Source: Wen et al. 2024, section 5. Raises
    DoriError.
    """
    settings = Adjustment(target=regular_pull(study, sampling), sampling_steps=sampling.steps)
    scores = {i: _scores(study, prompts, i, settings, sampling=sampling) for i in prompts.ids}
    return replication_table(scores, study.descriptor.threshold)


def _scores(
    study: Study, prompts: Benchmark, item: str, settings: Adjustment, *, sampling: Sampling
) -> list[float]:
    original = prompts.images([item], size=study.model.defaults.image_size)
    seeds = [noise_seed(study.seed, item, k) for k in range(sampling.seeds)]
    prompt = prompts.table.loc[item, "prompt"]
    decides = {
        **decided_by(study),
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

"""Embeddings put to a model, perhaps a pruned one: drawn in batches, kept in the run directory, scored."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from dori.benchmark import Benchmark
from dori.hooks import masked
from dori.images import to_uint8
from dori.metrics.copy import similarity
from dori.metrics.replication import replication_table
from dori.mitigation.units import Units
from dori.model import PIXELS_AT_ONCE
from dori.store import Record
from dori.study import VERSION, Sampling, Study, noise_seed, progress

CPU_IMAGES = 32  # drawn at once on a CPU: an interruption costs half a minute


@dataclass(frozen=True, eq=False)
class Trigger:
    """One embedding that is to give the image of one row, and the units that are off when it is drawn."""

    id: str
    embeds: Tensor  # (T, D)
    units: Units | None = None


def prompt_trigger(study: Study, prompts: Benchmark, item: str, units: Units | None = None) -> Trigger:
    """A row's own prompt; encoded by itself, as rounding in a batch would make another key of it."""
    return Trigger(item, study.model.encode_prompts(prompts.prompts([item]))[0], units)


def drawn(study: Study, triggers: Sequence[Trigger], sampling: Sampling) -> Iterator[tuple[Trigger, Tensor]]:
    """(trigger, images (S, 3, H, W) in [0, 1]) of each, with the noise that the row's prompt is drawn with.

    Each trigger of a batch has its own units; what the run directory lacks is drawn first.
    """
    keys = [_image_key(study, t, sampling) for t in triggers]
    todo = [(t, k) for t, k in zip(triggers, keys, strict=True) if not study.store.has("trigger", k)]
    rows = rows_at_once(study)
    size = max(1, rows // sampling.seeds)
    with progress(len(todo), "triggers") as bar:
        for part in (todo[i : i + size] for i in range(0, len(todo), size)):
            images = _draw(study, [t for t, _ in part], sampling, rows)
            for (_, key), image in zip(part, images, strict=True):
                _keep(study, key, image)
            bar.update(len(part))
    for trigger, key in zip(triggers, keys, strict=True):
        found = study.store.find("trigger", key)
        if found is None:  # a damaged file
            found = _keep(study, key, _draw(study, [trigger], sampling, rows)[0])
        yield trigger, found.tensors["images"].float() / 255


def score_triggers(
    study: Study, prompts: Benchmark, triggers: Sequence[Trigger], sampling: Sampling | None = None
) -> pd.DataFrame:
    """Images of each trigger against the training image of its row.

    Returns a row per image: id, seed, score, replicated, and the benchmark's columns but prompt and image.
    """
    scores = {}
    for trigger, images in drawn(study, triggers, sampling or study.sampling()):
        original = prompts.images([trigger.id])
        scores[trigger.id] = similarity(study.descriptor.embed(images), study.descriptor.embed(original))[
            :, 0
        ]
    table = replication_table({i: s.tolist() for i, s in scores.items()}, study.descriptor.threshold)
    return table.merge(
        prompts.table.drop(columns=["prompt", "image"]), left_on="id", right_index=True, how="left"
    )


def rows_at_once(study: Study) -> int:
    """Images drawn in one batch."""
    device, side = study.model.device.type, study.model.defaults.image_size
    return study.images_at_once or (
        CPU_IMAGES if device == "cpu" else max(1, PIXELS_AT_ONCE[device] // side**2)
    )


def digest(tensor: Tensor) -> str:
    """sha256 (16 hex digits) of a tensor's values."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def decided_by(study: Study) -> dict:
    """What decides any result of a study's model."""
    return {**study.model.identity, "version": VERSION}


def _image_key(study: Study, trigger: Trigger, sampling: Sampling) -> dict:
    """All that decides the images of one trigger."""
    return {
        **decided_by(study),
        "embedding": digest(trigger.embeds),
        "units": trigger.units.fingerprint if trigger.units else None,
        "noise": [noise_seed(study.seed, trigger.id, k) for k in range(sampling.seeds)],
        "guidance_scale": sampling.guidance_scale,
        "steps": sampling.steps,
    }


def _keep(study: Study, key: dict, images: Tensor) -> Record:
    """Store one trigger's images, rounded as a PNG would."""
    return study.store.save("trigger", key, Record({}, {"images": to_uint8(images)}))


def _draw(study: Study, triggers: Sequence[Trigger], sampling: Sampling, rows: int) -> Tensor:
    """One batch, (N, S, 3, H, W): row r is trigger r mod N, as per-sample masks want it."""
    n, count = len(triggers), sampling.seeds
    seeds = [noise_seed(study.seed, t.id, k) for k in range(count) for t in triggers]
    with masked(study.model.unet, [t.units or {} for t in triggers]):
        images = study.model.sample(
            torch.stack([t.embeds for t in triggers]).to(study.model.unconditional).repeat(count, 1, 1),
            seeds,
            guidance_scale=sampling.guidance_scale,
            num_inference_steps=sampling.steps,
            batch_size=n * max(1, rows // n),
        )
    return images.unflatten(0, (count, n)).transpose(0, 1)

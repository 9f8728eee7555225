"""Searches for triggers, kept in the run directory: each image is searched for once, in company or alone.

A search of 500 steps contains that of 50, so records are by number of steps.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dori.attack import Attack, dori_attack, initial_embeds
from dori.benchmark import Benchmark
from dori.drawing import decided_by, digest, noise_seed, progress, report, rows_at_once
from dori.errors import DoriError
from dori.mitigation.units import Units
from dori.store import Record
from dori.study import Study
from dori.unlearndiff import UnlearnDiff, spelled, unlearndiff_attack

CPU_PIXELS = 16 * 64**2  # attacked at once on a CPU: 16 images of 64 px, so 128 rows of the UNet
Found = tuple[dict[str, Record], dict[str, str]]  # what was found by id; why other ids were left out


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One image to search for."""

    id: str
    prompt: str
    image: Tensor  # (3, H, W)
    seed: int
    units: Units | None
    key: dict  # all that decides the result but the attack's own settings


def run_attacks(study: Study, prompts: Benchmark, plan: Attack, units: Mapping[str, Units]) -> Found:
    """DoRI: embeddings by id (tensors: start, and each number of steps; values: losses up to the last).

    Images that cannot be read, prompts that are empty and losses that are not finite cost one line of the log
    each. Raises DoriError if nothing is left.
    """
    jobs, skipped = _jobs(study, prompts, units, f"attack/{plan.init}")
    starts = {job.id: _start(study, plan, job) for job in jobs}
    decides = dataclasses.asdict(plan)
    del decides["steps"]
    keys = {j.id: {**j.key, **decides, "start": digest(starts[j.id])} for j in jobs}

    def stored(job: Job) -> Record | None:
        parts = {s: study.store.find("attack", {**keys[job.id], "step": s}) for s in plan.steps}
        if None in parts.values():
            return None
        tensors = {"start": starts[job.id].float(), **{str(s): r.tensors["embeds"] for s, r in parts.items()}}
        return Record(parts[max(plan.steps)].values, tensors)

    def search(part: Sequence[Job]) -> None:
        found = dori_attack(
            study.model,
            study.model.encode_images(torch.stack([job.image for job in part])),
            torch.stack([starts[job.id] for job in part]),
            plan,
            seeds=[job.seed for job in part],
            units=[job.units or {} for job in part],
        )
        for n, job in enumerate(part):
            for step, y in found.saved.items():
                record = Record({"losses": found.losses[n, :step].tolist()}, {"embeds": y[n].clone()})
                study.store.save("attack", {**keys[job.id], "step": step}, record)

    return _run(study, jobs, skipped, stored, search)


def run_unlearndiff(study: Study, prompts: Benchmark, plan: UnlearnDiff, units: Mapping[str, Units]) -> Found:
    """UnlearnDiffAtk: as `run_attacks`; tensors are what the caption encodes to (start) and what it does with
    the tokens found after each look, values have the tokens too. The record is of the whole search."""
    jobs, skipped = _jobs(study, prompts, units, "unlearndiff")
    keys = {job.id: {**job.key, **dataclasses.asdict(plan), "prompt": job.prompt} for job in jobs}

    def stored(job: Job) -> Record | None:
        return study.store.find("unlearndiff", keys[job.id])

    def search(part: Sequence[Job]) -> None:
        found = unlearndiff_attack(
            study.model,
            study.model.encode_images(torch.stack([job.image for job in part])),
            [job.prompt for job in part],
            plan,
            seeds=[job.seed for job in part],
            units=[job.units or {} for job in part],
        )
        spellings = {str(s): spelled(study.model, tokens) for s, tokens in found.tokens.items()}
        for n, job in enumerate(part):
            tensors = {"start": found.start[n].float().clone()}
            tensors |= {str(s): y[n].clone() for s, y in found.embeds.items()}
            values = {"losses": found.losses[n].tolist(), "text": {s: x[n] for s, x in spellings.items()}}
            study.store.save("unlearndiff", keys[job.id], Record(values, tensors))

    return _run(study, jobs, skipped, stored, search)


def at_once(study: Study) -> int:
    """Images searched for in one batch: an interruption costs those in hand."""
    if study.images_at_once:
        return study.images_at_once
    if study.model.device.type == "cpu":
        return max(1, CPU_PIXELS // study.model.defaults.image_size**2)
    return max(16, rows_at_once(study))


def _jobs(
    study: Study, prompts: Benchmark, units: Mapping[str, Units], noise: str
) -> tuple[list[Job], dict[str, str]]:
    """What to search for, and one line for each row that cannot be."""
    jobs, skipped = [], {}
    for i, prompt in zip(prompts.ids, prompts.prompts(), strict=True):
        try:
            image = prompts.images([i], size=study.model.defaults.image_size)[0]
            if not prompt.strip():
                raise DoriError("empty prompt")
        except DoriError as error:
            skipped[i] = str(error)
            continue
        seed, off = noise_seed(study.seed, f"{noise}/{i}", 0), units.get(i)
        key = {"image": digest(image), "noise": seed, "units": off.fingerprint if off else None}
        jobs.append(Job(i, prompt, image, seed, off, {**key, **decided_by(study)}))
    return jobs, skipped


def _start(study: Study, plan: Attack, job: Job) -> Tensor:
    """(T, D); encoded by itself, as rounding in a batch would make another key of it."""
    regular = list(study.regular.table["prompt"].drop(job.id, errors="ignore"))  # not a held-out image's own
    return initial_embeds(study.model, plan.init, prompts=[job.prompt], seeds=[job.seed], regular=regular)[0]


def _run(
    study: Study,
    jobs: Sequence[Job],
    skipped: dict[str, str],
    stored: Callable[[Job], Record | None],
    search: Callable[[Sequence[Job]], None],
) -> Found:
    """Search for what the run directory lacks, a batch at a time; leave out what came to nothing."""
    todo, size = [job for job in jobs if stored(job) is None], at_once(study)
    with progress(len(todo), "attack") as bar:
        for part in (todo[k : k + size] for k in range(0, len(todo), size)):
            search(part)
            bar.update(len(part))
    found = {job.id: stored(job) for job in jobs}
    lost = {i: "the loss is not finite" for i, r in found.items() if not _finite(r)}
    report(skipped | lost, of=len(jobs) + len(skipped))
    return {i: r for i, r in found.items() if i not in lost}, skipped | lost


def _finite(record: Record) -> bool:
    losses = np.isfinite(record.values["losses"]).all()
    return bool(losses) and all(bool(t.isfinite().all()) for t in record.tensors.values())

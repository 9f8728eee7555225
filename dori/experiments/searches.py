"""Searches for triggers, kept in the run directory: each search is made once, in company or alone.

A search of 500 steps contains that of 50, so records are by number of steps. An image may be searched for
many times: from other starts, and from one start with other draws.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dori import parallel
from dori.attack import BETWEEN, Attack, dori_attack, initial_embeds
from dori.benchmark import Benchmark
from dori.drawing import decided_by, digest, noise_seed, progress, report, rows_at_once
from dori.errors import DoriError
from dori.mitigation.units import Units
from dori.store import Record
from dori.study import Study
from dori.unlearndiff import UnlearnDiff, spelled, unlearndiff_attack

CPU_PIXELS = 16 * 64**2  # attacked at once on a CPU: 16 images of 64 px, so 128 rows of the UNet
SEPARATOR = "\x1f"  # of the two prompts a search starts between
Found = tuple[dict[str, Record], dict[str, str]]  # what was found by id; why other ids were left out
Place = tuple[
    str, int, int
]  # a search: row id, number of its start, number of its draws (0: the start's own)
Searched = tuple[dict[Place, Record], dict[str, str]]  # what was found; why rows or searches were left out


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One search for an image."""

    place: Place
    name: str  # for the log
    prompt: str
    image: Tensor  # (3, H, W)
    seed: int  # of the draws of (eps, t)
    units: Units | None
    key: dict  # all that decides the result but start and settings of the attack

    @property
    def id(self) -> str:
        """The row it searches for."""
        return self.place[0]


def run_attacks(study: Study, prompts: Benchmark, plan: Attack, units: Mapping[str, Units]) -> Found:
    """DoRI: embeddings by id (tensors: start, and each number of steps; values: losses up to the last).

    Images that cannot be read, prompts that are empty and losses that are not finite cost one line of the log
    each. Raises DoriError if nothing is left.
    """
    found, skipped = run_searches(study, prompts, plan, units)
    return {place[0]: record for place, record in found.items()}, skipped


def run_searches(
    study: Study,
    prompts: Benchmark,
    plan: Attack,
    units: Mapping[str, Units],
    *,
    count: int = 1,
    draws: int = 0,
) -> Searched:
    """`run_attacks` from `count` starts of each image, and `draws` more times from each start.

    Start k has a seed of its own (from run, initialisation, row and k) for both where it begins and its draws
    of (eps, t); start 0 is `run_attacks`'s, and its record the same. Draws 1, 2, ... of start k begin there
    too and draw (eps, t) by other seeds. Records by (id, start, draws), a row's together. Raises DoriError if
    nothing is left.
    """
    noise = f"attack/{plan.init}"
    jobs, skipped = _jobs(study, prompts, units, "dori", noise, count=count, draws=draws)
    begins = {job.place: _begins(study, plan, job, noise) for job in jobs}
    starts = {at: _start(study, plan, prompt, seed) for at, (prompt, seed) in begins.items()}
    decides = dataclasses.asdict(plan)
    del decides["steps"]
    if plan.optimizer == "adam":  # the only one there was when the first records were made
        del decides["optimizer"]
    keys = {j.place: {**j.key, **decides, "start": begins[j.place]} for j in jobs}
    study.store.ask("attack", [{**key, "step": s} for key in keys.values() for s in plan.steps])

    def stored(job: Job) -> Record | None:
        key, passes = keys[job.place], plan.passes
        parts = {s: study.store.find("attack", {**key, "step": s}, passes=passes) for s in plan.steps}
        if None in parts.values():
            return None
        start = starts[job.place].float()
        tensors = {"start": start, **{str(s): r.tensors["embeds"] for s, r in parts.items()}}
        return Record(parts[max(plan.steps)].values, tensors)

    def search(part: Sequence[Job]) -> None:
        found = dori_attack(
            study.model,
            study.model.encode_images(torch.stack([job.image for job in part])),
            torch.stack([starts[job.place] for job in part]),
            plan,
            seeds=[job.seed for job in part],
            units=[job.units or {} for job in part],
        )
        for n, job in enumerate(part):
            for step, y in found.saved.items():
                record = Record({"losses": found.losses[n, :step].tolist()}, {"embeds": y[n].clone()})
                study.store.save("attack", {**keys[job.place], "step": step}, record)

    return _run(study, "attack", jobs, skipped, stored, search)


def run_unlearndiff(study: Study, prompts: Benchmark, plan: UnlearnDiff, units: Mapping[str, Units]) -> Found:
    """UnlearnDiffAtk: as `run_attacks`; tensors are what the caption encodes to (start) and what it does with
    the tokens found after each look, values have the tokens too. The record is of the whole search."""
    jobs, skipped = _jobs(study, prompts, units, "unlearndiff", "unlearndiff")
    keys = {job.id: {**job.key, **dataclasses.asdict(plan), "prompt": job.prompt} for job in jobs}
    study.store.ask("unlearndiff", keys.values())

    def stored(job: Job) -> Record | None:
        return study.store.find("unlearndiff", keys[job.id], passes=plan.passes)

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

    found, skipped = _run(study, "unlearndiff", jobs, skipped, stored, search)
    return {place[0]: record for place, record in found.items()}, skipped


def at_once(study: Study) -> int:
    """Searches made in one batch: an interruption costs those in hand."""
    if study.images_at_once:
        return study.images_at_once
    if study.model.device.type == "cpu":
        return max(1, CPU_PIXELS // study.model.defaults.image_size**2)
    return max(16, rows_at_once(study))


def _jobs(
    study: Study,
    prompts: Benchmark,
    units: Mapping[str, Units],
    method: str,
    noise: str,
    *,
    count: int = 1,
    draws: int = 0,
) -> tuple[list[Job], dict[str, str]]:
    """What to search for, and one line for each row that cannot be."""
    jobs, skipped, several = [], {}, count > 1 or draws > 0
    for i, prompt in zip(prompts.ids, prompts.prompts(), strict=True):
        try:
            image = prompts.images([i], size=study.model.defaults.image_size)[0]
            if not prompt.strip():
                raise DoriError("empty prompt")
        except DoriError as error:
            skipped[i] = str(error)
            continue
        off = units.get(i)
        key = {"image": digest(image), "units": off.fingerprint if off else None}
        key |= decided_by(study, method)
        for k, j in itertools.product(range(count), range(1 + draws)):
            own = noise_seed(study.seed, f"{noise}/{i}", k)
            seed = noise_seed(study.seed, f"{noise}/{i}/{k}/draws", j) if j else own
            name = f"{i}, start {k}, draws {j}" if several else i
            jobs.append(Job((i, k, j), name, prompt, image, seed, off, {**key, "noise": seed}))
    return jobs, skipped


def _begins(study: Study, plan: Attack, job: Job, noise: str) -> tuple[str, int]:
    """Where a search begins, as what decides it: the prompt it starts from, or the seed of random numbers."""
    seeds = [noise_seed(study.seed, f"{noise}/{job.id}", k) for k in range(job.place[1] + 1)]
    if plan.init not in ("regular", BETWEEN):
        return (job.prompt, 0) if plan.init == "prompt" else ("", seeds[-1])
    regular = list(study.regular.table["prompt"].drop(job.id, errors="ignore"))  # not a held-out image's own
    other = regular[_untaken(seeds, len(regular)) % len(regular)] if regular else ""
    return (other if plan.init == "regular" else f"{job.prompt}{SEPARATOR}{other}", 0)


def _start(study: Study, plan: Attack, prompt: str, seed: int) -> Tensor:
    """(T, D); encoded by itself, as rounding differs in a batch."""
    own, _, other = prompt.rpartition(SEPARATOR)  # without a separator all of it is `other`
    regular = [other] if other else []
    return initial_embeds(study.model, plan.init, prompts=[own or other], seeds=[seed], regular=regular)[0]


def _untaken(seeds: Sequence[int], n: int) -> int:
    """The last of `seeds`, moved on until its remainder mod n is none that a seed before it took.

    So an image's starts are different regular prompts while there are any; then they repeat.
    """
    seed, taken = 0, set()
    for seed in seeds:
        while n and len(taken) < n and seed % n in taken:
            seed += 1
        taken.add(seed % n if n else 0)
    return seed


def _run(
    study: Study,
    stage: str,
    jobs: Sequence[Job],
    skipped: dict[str, str],
    stored: Callable[[Job], Record | None],
    search: Callable[[Sequence[Job]], None],
) -> Searched:
    """Search for what the run directory lacks, a batch at a time; leave out what came to nothing."""
    todo, size = parallel.missing(jobs, lambda job: stored(job) is not None), at_once(study)
    with progress(len(todo), "attack") as bar:
        for part in (todo[k : k + size] for k in range(0, len(todo), size)):
            with study.store.timed(stage):
                search(part)
            bar.update(len(part))
    parallel.wait()
    found = {job: stored(job) for job in jobs}
    lost = {job.name: "the loss is not finite" for job, record in found.items() if not _finite(record)}
    report(skipped | lost, of=len(jobs) + len(skipped))
    return {job.place: r for job, r in found.items() if job.name not in lost}, skipped | lost


def _finite(record: Record) -> bool:
    losses = np.isfinite(record.values["losses"]).all()
    return bool(losses) and all(bool(t.isfinite().all()) for t in record.tensors.values())

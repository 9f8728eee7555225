"""Chapter 2: do pruned models still hold the images their prompts no longer return?

Attacks, prunings and what pruning costs, each a tidy table; every item is computed once per run directory.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dori.attack import PAPER, Attack, dori_attack, initial_embeds
from dori.benchmark import Benchmark
from dori.drawing import (
    Sampling,
    Trigger,
    decided_by,
    digest,
    drawn,
    noise_seed,
    progress,
    prompt_trigger,
    rows_at_once,
    score_triggers,
    stored_images,
)
from dori.errors import DoriError
from dori.metrics.alignment import ClipScorer, clip_alignment
from dori.metrics.replication import memorization_rate
from dori.mitigation.nemo import Nemo, activation_statistics, nemo
from dori.mitigation.signature import calibrate
from dori.mitigation.units import Units
from dori.mitigation.wanda import Wanda, wanda
from dori.store import Record
from dori.study import Study

log = logging.getLogger(__name__)
Setting = Nemo | Wanda
CALIBRATION = 64  # held-out prompts behind NeMo's threshold
CPU_ATTACKED = 16  # images attacked at once on a CPU, 128 rows of the UNet


def attack_table(
    study: Study,
    prompts: Benchmark,
    plan: Attack = PAPER,
    *,
    units: Mapping[str, Units] | None = None,
    sampling: Sampling | None = None,
) -> pd.DataFrame:
    """Attack each row's training image and score what the found embeddings paint.

    The images start from noise the attack never saw, at the model's default sampling. With `units` (id ->
    set) each image is attacked and drawn under its own pruning. A row per image, seed and number of steps:
    id, seed, score, replicated, the benchmark's columns, init, steps, loss (mean of the last ten), moved (L2
    from the start), cosine (to the start). Images that cannot be read or whose loss is not finite are left
    out, logged, and named in `attrs["skipped"]`.
    """
    units = units or {}
    found, skipped = run_attacks(study, prompts, plan, units)
    parts = []
    for step in plan.steps:
        triggers = [Trigger(i, r.tensors[str(step)], units.get(i)) for i, r in found.items()]
        about = pd.DataFrame([_moved(i, r, step) for i, r in found.items()], columns=["id", *MOVED])
        parts.append(score_triggers(study, prompts, triggers, sampling).merge(about, on="id", how="left"))
    table = pd.concat(parts, ignore_index=True).assign(init=plan.init)
    table.attrs["skipped"] = skipped
    return table


def attack_controls(
    study: Study,
    memorized: Benchmark,
    held_out: Benchmark,
    plan: Attack = PAPER,
    *,
    units: Mapping[str, Units] | None = None,
    sampling: Sampling | None = None,
) -> pd.DataFrame:
    """The same attack on memorized images, on the same images and the twin, and on held-out images.

    `units` are off for the memorized images alone: the controls ask what the search can do by itself, so
    they are attacked on whole models. Column `target`: memorized, twin, held-out. What an attack can paint on
    the twin is its own work.
    """
    runs = {
        "memorized": (study, memorized, units),
        "twin": (study.twin, memorized, None),
        "held-out": (study, held_out, None),
    }
    parts = [
        attack_table(s, prompts, plan, units=off, sampling=sampling).assign(target=target)
        for target, (s, prompts, off) in runs.items()
        if s is not None and len(prompts)
    ]
    return pd.concat(parts, ignore_index=True)


def run_attacks(
    study: Study, prompts: Benchmark, plan: Attack, units: Mapping[str, Units]
) -> tuple[dict[str, Record], dict[str, str]]:
    """Found embeddings by id (tensors: start, and each number of steps), and why other ids were skipped.

    Raises DoriError if nothing could be attacked.
    """
    jobs, skipped = _jobs(study, prompts, plan, units)
    todo = [job for job in jobs if study.store.find("attack", job.key) is None]
    size = CPU_ATTACKED if study.model.device.type == "cpu" else max(CPU_ATTACKED, rows_at_once(study))
    with progress(len(todo), "attack") as bar:
        for part in (todo[k : k + size] for k in range(0, len(todo), size)):
            _attack(study, plan, part)
            bar.update(len(part))
    found = {job.id: study.store.find("attack", job.key) for job in jobs}
    skipped |= {i: "the loss is not finite" for i, r in found.items() if r.values["failed"]}
    for i, reason in skipped.items():
        log.warning("%s: %s; left out", i, reason)
    if len(skipped) == len(prompts):
        reason = next(iter(skipped.values()), "none was given")
        raise DoriError(f"none of {len(prompts)} images could be attacked: {reason}")
    return {i: r for i, r in found.items() if i not in skipped}, skipped


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """One image to attack."""

    id: str
    image: Tensor  # (3, H, W)
    start: Tensor  # (T, D)
    seed: int
    units: Units | None
    key: dict  # all that decides the result


def _jobs(
    study: Study, prompts: Benchmark, plan: Attack, units: Mapping[str, Units]
) -> tuple[list[_Job], dict[str, str]]:
    """What to attack, and one line for each image that cannot be read."""
    jobs, skipped = [], {}
    for i, prompt in zip(prompts.ids, prompts.prompts(), strict=True):
        try:
            image = prompts.images([i], size=study.model.defaults.image_size)[0]
        except DoriError as error:
            skipped[i] = str(error)
            continue
        seed, off = noise_seed(study.seed, f"attack/{plan.init}/{i}", 0), units.get(i)
        regular = list(study.regular.table["prompt"].drop(i, errors="ignore"))  # not a held-out image's own
        start = initial_embeds(study.model, plan.init, prompts=[prompt], seeds=[seed], regular=regular)[0]
        key = {"image": digest(image), "start": digest(start), "noise": seed, **dataclasses.asdict(plan)}
        key |= {"units": off.fingerprint if off else None, **decided_by(study)}
        jobs.append(_Job(i, image, start, seed, off, key))
    return jobs, skipped


def _attack(study: Study, plan: Attack, jobs: Sequence[_Job]) -> None:
    """Attack one batch of images and store each."""
    result = dori_attack(
        study.model,
        study.model.encode_images(torch.stack([job.image for job in jobs])),
        torch.stack([job.start for job in jobs]),
        plan,
        seeds=[job.seed for job in jobs],
        units=[job.units or {} for job in jobs],
    )
    for n, job in enumerate(jobs):
        tensors = {"start": job.start.float()} | {str(s): y[n].clone() for s, y in result.saved.items()}
        values = {"losses": result.losses[n].tolist(), "failed": bool(result.failed[n])}
        study.store.save("attack", job.key, Record(values, tensors))


def find_units(study: Study, prompts: Benchmark, setting: Setting) -> dict[str, Units]:
    """What a method switches off for each prompt, by id."""
    decides = {**decided_by(study), "method": type(setting).__name__, **dataclasses.asdict(setting)}
    if isinstance(setting, Nemo):
        decides["regular"] = hashlib.sha256("\n".join(study.regular.prompts()).encode()).hexdigest()[:16]
    keys = {i: {**decides, "prompt": p} for i, p in zip(prompts.ids, prompts.prompts(), strict=True)}
    todo = [i for i in prompts.ids if study.store.find("units", keys[i]) is None]
    for part in (todo[k : k + CPU_ATTACKED] for k in range(0, len(todo), CPU_ATTACKED)):
        found = _select(study, study.model.encode_prompts(prompts.prompts(part)), setting)
        for i, units in zip(part, found, strict=True):
            study.store.save("units", keys[i], Record({"count": units.count}, dict(units)))
    return {i: Units(study.store.find("units", key).tensors) for i, key in keys.items()}


def prune_table(
    study: Study, prompts: Benchmark, setting: Setting, *, sampling: Sampling | None = None
) -> pd.DataFrame:
    """Each prompt drawn with its own units switched off: does it still return its training image?

    Returns a row per image: id, seed, score, replicated, the benchmark's columns (split among them: settings
    are chosen on "validation" and reported on "test"), method, setting, units (how many), density.
    """
    units = find_units(study, prompts, setting)
    triggers = [prompt_trigger(prompts, i, units[i]) for i in prompts.ids]
    table = score_triggers(study, prompts, triggers, sampling)
    about = pd.DataFrame(
        [(i, u.count, u.density) for i, u in units.items()], columns=["id", "units", "density"]
    )
    return table.merge(about, on="id", how="left").assign(**named(setting))


def regular_table(
    study: Study,
    prompts: Benchmark,
    setting: Setting,
    regular: Benchmark,
    *,
    clip: ClipScorer | None = None,
    sampling: Sampling | None = None,
) -> pd.DataFrame:
    """What pruning costs: regular prompts drawn under the prunings of `prompts` in turn, and without.

    Returns a row per image: id, seed, pruned_for, similarity (copy score to the unpruned image from the same
    noise), alignment and alignment_unpruned (cosine to the prompt; NaN without a `clip`), method, setting.
    """
    sampling = sampling or study.sampling(seeds=1)
    units = list(find_units(study, prompts, setting).items())
    turn = [units[n % len(units)] for n in range(len(regular))]
    triggers = [prompt_trigger(regular, i, u) for i, (_, u) in zip(regular.ids, turn, strict=True)]
    before, parts = dict(stored_images(study, regular, sampling)), []
    for (trigger, after), (pruned_for, _) in zip(drawn(study, triggers, sampling), turn, strict=True):
        part = {"id": trigger.id, "seed": range(len(after)), "pruned_for": pruned_for}
        vectors = [study.descriptor.embed(x) for x in (after, before[trigger.id])]
        part["similarity"] = (vectors[0] * vectors[1]).sum(1).tolist()
        texts = regular.prompts([trigger.id]) * len(after)
        for column, images in (("alignment", after), ("alignment_unpruned", before[trigger.id])):
            part[column] = clip_alignment(clip, images, texts).tolist() if clip else np.nan
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True).assign(**named(setting))


def choose_setting(pruned: pd.DataFrame, regular: pd.DataFrame, *, ceiling: float = 0.1) -> str:
    """The setting to report, from the validation half alone: of those that bring the memorization rate to the
    ceiling, the one whose regular images stay most alike; if none does, the one with the lowest rate."""
    half = pruned[pruned["split"] == "validation"]
    if half.empty:
        raise DoriError("no validation rows to choose a pruning by; the benchmark's column split has them")
    rate = {s: memorization_rate(part).value for s, part in half.groupby("setting", sort=False)}
    kept = regular.groupby("setting")["similarity"].mean()
    enough = [s for s, value in rate.items() if value <= ceiling]
    return max(enough, key=lambda s: kept[s]) if enough else min(rate, key=lambda s: (rate[s], -kept[s]))


def named(setting: Setting) -> dict[str, str]:
    """`method` and `setting` as tables and legends show them."""
    if isinstance(setting, Wanda):
        half = ", conditional half" if setting.conditional_only else ""
        return {"method": "Wanda", "setting": f"Wanda {100 * setting.sparsity:g} %{half}"}
    how = (
        "search" if setting.z is None else f"z > {setting.z:g}" + (f", top {setting.k}" if setting.k else "")
    )
    if setting.z is None and not setting.refine:
        how += ", unrefined"
    return {"method": "NeMo", "setting": f"NeMo {how}"}


MOVED = ["steps", "loss", "moved", "cosine"]


def _moved(item: str, record: Record, step: int) -> tuple:
    """Last losses before a step and how far the embedding went from its start."""
    start, y = record.tensors["start"].flatten(), record.tensors[str(step)].flatten()
    losses = record.values["losses"][max(0, step - 10) : step]
    cosine = float(torch.nn.functional.cosine_similarity(start, y, dim=0))
    return item, step, float(np.mean(losses)) if losses else np.nan, float((y - start).norm()), cosine


def _select(study: Study, embeds: Tensor, setting: Setting) -> list[Units]:
    """Units of each embedding by the setting's method."""
    if isinstance(setting, Wanda):
        return wanda(study.model, embeds, settings=setting, batch_size=rows_at_once(study))
    statistics = activation_statistics(study.model, study.regular.prompts())
    threshold = nemo_threshold(study, setting) if setting.z is None else 0.0
    return nemo(study.model, embeds, statistics, threshold=threshold, settings=setting)


def nemo_threshold(study: Study, setting: Nemo) -> float:
    """theta_mem of this model, from held-out prompts."""
    prompts = study.regular.head(CALIBRATION).prompts()
    decides = {**decided_by(study), "prompts": prompts, "noise": setting.noise, "variant": setting.variant}

    def compute() -> Record:
        embeds = study.model.encode_prompts(prompts)
        return Record({"threshold": calibrate(study.model, embeds, setting.noise, variant=setting.variant)})

    return study.store.get("nemo-threshold", decides, compute).values["threshold"]

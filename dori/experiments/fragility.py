"""Chapter 2: do pruned models still hold the images their prompts no longer return?

Attacks, prunings and what pruning costs, each a tidy table; every item is computed once per run directory.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from dori.attack import PAPER, Attack
from dori.benchmark import Benchmark
from dori.drawing import Sampling, Trigger, drawn, prompt_trigger, score_triggers, stored_images
from dori.errors import DoriError
from dori.experiments.searches import run_attacks, run_unlearndiff
from dori.experiments.selections import Setting, find_units, named
from dori.metrics.alignment import ClipScorer, clip_alignment
from dori.metrics.replication import memorization_rate
from dori.mitigation.units import Units
from dori.store import Record
from dori.study import Study
from dori.unlearndiff import UnlearnDiff

YARDSTICK = 64  # regular prompts whose distances are the unit of radii
MOVED = ["steps", "loss", "moved", "cosine"]
TOKEN_BUDGETS = {  # quick: 400 passes of one row, as many as 50 steps of 8 draws; looked at four times
    "smoke": UnlearnDiff(timesteps=2, iterations=2),
    "quick": UnlearnDiff(timesteps=20, iterations=20, look_every=5),
}


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
    from the start), cosine (to the start), attacker. Images that cannot be read or whose loss is not finite
    are left out, logged, and named in `attrs["skipped"]`.
    """
    units = units or {}
    found, skipped = run_attacks(study, prompts, plan, units)
    parts = [_scored(study, prompts, found, s, units=units, sampling=sampling) for s in plan.steps]
    table = _together(parts).assign(init=plan.init, attacker="DoRI")
    table.attrs["skipped"] |= skipped
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
    return _together(parts)


def prompt_distance(study: Study, n: int = YARDSTICK) -> float:
    """Median L2 distance between the embeddings (all T x D numbers) of two of the first `n` regular prompts.

    Raises DoriError with fewer than two.
    """
    prompts = study.regular.head(n).prompts()
    if len(prompts) < 2:
        raise DoriError(f"the distance between two regular prompts needs two; there are {len(prompts)}")
    vectors = study.model.encode_prompts(prompts).flatten(1).float().cpu()
    return float(torch.pdist(vectors).median())


def limits_table(
    study: Study,
    memorized: Benchmark,
    held_out: Benchmark,
    plan: Attack = PAPER,
    *,
    tokens: Sequence[int] = (1, 2, 4, 8),
    radii: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    steps: int | None = None,
    **more,
) -> pd.DataFrame:
    """Does the trigger need room? The attack with few free tokens, and within a radius, on all three targets.

    Radii are in units of `prompt_distance`; `steps` replaces the plan's; `more` goes to `attack_controls`.
    Numbers of tokens that the model does not have are left out. Rows as `attack_controls`, and `limit`.
    From its own prompt a memorized image of a whole model needs no room at all: give `units`, or start
    elsewhere.
    """
    plan = plan if steps is None else dataclasses.replace(plan, steps=steps)
    unit = prompt_distance(study) if radii else 0.0
    room = study.model.unconditional.shape[1] - 1  # BOS does not move
    limits = {f"{k} token{'s' * (k > 1)}": {"free_tokens": k} for k in tokens if k <= room}
    # Rounded, as the last digits differ from machine to machine and a radius is part of a record's key.
    limits |= {f"radius {r:g}": {"radius": float(f"{r * unit:.4g}")} for r in radii}
    parts = [
        attack_controls(study, memorized, held_out, dataclasses.replace(plan, **one), **more).assign(
            limit=label
        )
        for label, one in limits.items()
    ]
    return pd.concat(parts, ignore_index=True)


def unlearndiff_table(
    study: Study,
    prompts: Benchmark,
    plan: UnlearnDiff | None = None,
    *,
    units: Mapping[str, Units] | None = None,
    sampling: Sampling | None = None,
) -> pd.DataFrame:
    """UnlearnDiffAtk on each row's training image: rows as `attack_table`, and `text`, the tokens found.

    `steps` are iterations; a search ends at the first look that gives the training image and its rows are
    repeated for later looks, so the last look is the result. The prompt alone is not among the rows. The plan
    is the published one, in the presets smoke and quick TOKEN_BUDGETS'.
    """
    plan, units = plan or TOKEN_BUDGETS.get(study.preset.name, UnlearnDiff()), units or {}
    found, skipped = run_unlearndiff(study, prompts, plan, units)
    parts, ended = [], pd.DataFrame()
    for step in plan.looks:
        looked = {i: r for i, r in found.items() if ended.empty or i not in set(ended["id"])}
        if looked:
            part = _scored(study, prompts, looked, step, units=units, sampling=sampling)
            skipped |= part.attrs["skipped"]
            texts = {i: r.values["text"][str(step)] for i, r in looked.items()}
            ended = pd.concat([ended, part.assign(text=part["id"].map(texts))], ignore_index=True)
        parts.append(ended.assign(steps=step))
        ended = ended[ended.groupby("id")["replicated"].transform("any")]
    table = pd.concat(parts, ignore_index=True).assign(init="prompt", attacker="UnlearnDiffAtk")
    table.attrs["skipped"] = skipped
    return table


def prune_table(
    study: Study, prompts: Benchmark, setting: Setting, *, sampling: Sampling | None = None
) -> pd.DataFrame:
    """Each prompt drawn with its own units switched off: does it still return its training image?

    Returns a row per image: id, seed, score, replicated, the benchmark's columns (split among them: settings
    are chosen on "validation" and reported on "test"), method, setting, units (how many), density.
    """
    units = find_units(study, prompts, setting)
    triggers = [prompt_trigger(prompts, i, units[i]) for i in prompts.ids]
    scored = score_triggers(study, prompts, triggers, sampling)
    about = pd.DataFrame(
        [(i, u.count, u.density) for i, u in units.items()], columns=["id", "units", "density"]
    )
    table = scored.merge(about, on="id", how="left").assign(**named(setting))
    table.attrs["skipped"] = scored.attrs["skipped"]
    return table


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


def _together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table; what was left out of any part is named in its attrs."""
    table = pd.concat(parts, ignore_index=True)
    table.attrs["skipped"] = {i: why for part in parts for i, why in part.attrs["skipped"].items()}
    return table


def _scored(
    study: Study,
    prompts: Benchmark,
    found: Mapping[str, Record],
    step: int,
    *,
    units: Mapping[str, Units],
    sampling: Sampling | None,
) -> pd.DataFrame:
    """What the embeddings found after so many steps paint, and how far they have moved."""
    triggers = [Trigger(i, r.tensors[str(step)], units.get(i)) for i, r in found.items()]
    about = pd.DataFrame([_moved(i, r, step) for i, r in found.items()], columns=["id", *MOVED])
    scored = score_triggers(study, prompts, triggers, sampling)
    table = scored.merge(about, on="id", how="left")
    table.attrs["skipped"] = scored.attrs["skipped"]
    return table


def _moved(item: str, record: Record, step: int) -> tuple:
    """Last losses before a step and how far the embedding went from its start."""
    start, y = record.tensors["start"].flatten(), record.tensors[str(step)].flatten()
    losses = record.values["losses"][max(0, step - 10) : step]
    cosine = float(torch.nn.functional.cosine_similarity(start, y, dim=0))
    return item, step, float(np.mean(losses)) if losses else np.nan, float((y - start).norm()), cosine

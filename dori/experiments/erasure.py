"""Chapter 4's tables: surrogates, attackers against defences, work, utility, cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from dori.attack import PAPER
from dori.benchmark import Benchmark
from dori.drawing import Sampling, Trigger, drawn, prompt_trigger
from dori.experiments import cuts, defences, erasing
from dori.experiments.curing import LABELS
from dori.experiments.defences import (
    ATTACKERS,
    HEADLINE,
    LONG,
    PROMPT,
    RELEARNED,
    TRAINED,
    TWIN,
    WORDS,
    Defence,
)
from dori.experiments.searches import run_attacks
from dori.experiments.utility import alignment_loss, estimate, utility_table
from dori.metrics.copy import similarity
from dori.metrics.intervals import Estimate, fixed, p_value
from dori.metrics.replication import memorization_rate
from dori.metrics.survival import first_success, half_returned, power, same_work
from dori.mitigation.surrogates import Surrogate
from dori.mitigation.targets import Batch, denoising_errors
from dori.study import Study
from dori.testbed import cured

AFT = LABELS["adversarial"]
PAINTED = PAPER  # the search whose pictures are shown
NAMES = {  # in headlines
    AFT: "aft",
    LABELS["adversarial-lora"]: "lora",
    LABELS["esd"]: "esd",
    LABELS["concept-ablation"]: "ca",
    LABELS["siss"]: "siss",
}
FROM_PROMPT, FROM_RANDOM = "DoRI from the prompt", "DoRI from random numbers"


@dataclass(frozen=True)
class Sizes:
    """How many images each attacker is given at a preset; None is all there are."""

    searched: int | None = None  #: by each search of 50 or 75 steps
    long: int | None = None  #: by that of 500 steps
    words: int | None = None
    relearned: int | None = None
    spared: int | None = None
    regular: int | None = None  #: prompts that utility is measured on

    @property
    def numbers(self) -> dict[str, int | None]:
        """Images by attacker."""
        special = {PROMPT: None, LONG: self.long, WORDS: self.words, RELEARNED: self.relearned}
        return {attacker: special.get(attacker, self.searched) for attacker in ATTACKERS}


SIZES = {
    "smoke": Sizes(1, 0, 0, 0, 1, 2),
    "quick": Sizes(8, 6, 6, 6, 16, 128),
    "full": Sizes(regular=256),
    "paper": Sizes(),
}


def sizes(study: Study) -> Sizes:
    """What the study's preset asks of this chapter."""
    return SIZES[study.preset.name]


def sampling(study: Study) -> Sampling:
    """The chapter's draws: two images of each trigger, as there are many."""
    return study.sampling(seeds=min(2, study.preset.seeds))


def asked(study: Study, some: Sequence[Defence]) -> pd.DataFrame:
    """Every defence under every attacker: `defences.asked` with the preset's numbers of images."""
    return defences.asked(some, erasing.erased(study), sizes(study).numbers, sampling(study))


def rate(table: pd.DataFrame, defence: str, attacker: str) -> Estimate:
    """Memorization rate at an attacker's last look; NaN with n = 0 where it was not asked."""
    part = table[(table["defence"] == defence) & (table["attacker"] == attacker)]
    return memorization_rate(part[part["steps"] == part["steps"].max()])


def headline_rates(table: pd.DataFrame) -> dict[str, Estimate]:
    """The chapter's headline rates by name, of those that were to be had."""
    rows = {f"mr_{name}_prompt": (label, FROM_PROMPT) for label, name in NAMES.items()}
    rows |= {f"mr_{name}_own_prompt": (label, PROMPT) for label, name in NAMES.items()}
    others = {
        "random": FROM_RANDOM,
        "heldout": HEADLINE,
        "long": LONG,
        "relearned": RELEARNED,
        "words": WORDS,
    }
    rows |= {f"mr_aft_{name}": (AFT, attacker) for name, attacker in others.items()}
    rows |= {"mr_trained_heldout": (TRAINED, HEADLINE), "mr_twin_heldout": (TWIN, HEADLINE)}
    found = {name: rate(table, *row) for name, row in rows.items()}
    return {name: estimate for name, estimate in found.items() if estimate.n}


def work(table: pd.DataFrame) -> pd.DataFrame:
    """The search of ten times the steps: after how many half of the images have returned, and the twin's.

    A row per defence: images, returned, half returned after (steps; "> 500" where fewer had), p against the
    twin (log-rank; "–" for the twin itself and without one).
    """
    part = table[table["attacker"] == LONG]
    last, p_values, rows = part["steps"].max() if len(part) else 0, against_twin(table), {}
    for name, found in _times(table).items():
        half, p = half_returned(found), p_values.get(name)
        rows[name] = {
            "images": len(found),
            "returned": int(found["returned"].sum()),
            "half returned after": f"{half:g}" if np.isfinite(half) else f"> {last}",
            "p against the twin": "–" if p is None else p_value(p),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("defence")


def against_twin(table: pd.DataFrame) -> dict[str, float]:
    """By defence: p of "the twin takes the same work"; empty without a twin."""
    times = _times(table)
    twin = times.pop(TWIN, None)
    return {} if twin is None else {name: same_work(found, twin) for name, found in times.items()}


def told_apart(table: pd.DataFrame) -> tuple[Estimate, dict[float, float]]:
    """p of "the twin takes the same work" for adversarial fine-tuning; and, by the share of images that would
    return, how likely a test with as many images would notice."""
    p = against_twin(table).get(AFT)
    if p is None:
        return Estimate(np.nan, np.nan, np.nan, 0), {}
    n = len(_times(table)[AFT])
    return Estimate(p, np.nan, np.nan, n), {share: power(n, share) for share in (0.25, 0.5, 0.75, 1.0)}


def _times(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`survival.first_success` of the long search, by defence."""
    part = table[table["attacker"] == LONG]
    return {name: first_success(rows) for name, rows in part.groupby("defence", sort=False)}


def utility(study: Study, some: Sequence[Defence]) -> pd.DataFrame:
    """`utility.utility_table` of each defence on regular prompts, and `heldout_loss`; empty without any."""
    regular = erasing.judged(study).head(sizes(study).regular)
    if not len(regular):
        return pd.DataFrame(columns=["label", "n"])
    models = {d.label: None if d.label == TRAINED else d.units or d.study for d in some}
    table = utility_table(study, regular, models, sampling=sampling(study))
    losses = [heldout_loss(d.study, regular) if not d.units else np.nan for d in some]
    return table.assign(heldout_loss=losses)


def utility_shown(table: pd.DataFrame) -> pd.DataFrame:
    """`utility` for reading, each measure with its interval."""
    shown = cuts.utility_shown(table)
    return (
        shown.assign(**{"held-out loss": [fixed(v, 4) for v in table["heldout_loss"]]})
        if len(table)
        else shown
    )


def heldout_loss(study: Study, regular: Benchmark, draws: int = 2) -> float:
    """Denoising loss on held-out pairs, the same noise for every model: has it unlearned to denoise?"""
    targets = erasing.as_targets(study, regular)
    generator = torch.Generator().manual_seed(study.seed)
    model, losses = study.model, []
    with torch.no_grad():
        for _ in range(draws):
            noise = torch.randn(targets.latents.shape, generator=generator).to(targets.latents)
            drawn = torch.randint(len(model.timesteps), (len(targets),), generator=generator)
            t = model.timesteps[drawn].to(model.device)
            losses.append(denoising_errors(model, Batch(targets.latents, targets.prompt_embeds, noise, t)))
    return float(torch.cat(losses).mean())


def aft_costs(table: pd.DataFrame) -> dict[str, Estimate]:
    """Headlines of utility: alignment lost by adversarial fine-tuning, lower end of its change of FID."""
    if AFT not in set(table["label"]):
        return {}
    change = estimate(table, AFT, "fid_change")
    low = Estimate(change.low, np.nan, np.nan, change.n)
    return {"aft_alignment_loss": alignment_loss(table, AFT), "aft_fid_change_low": low}


def costs(study: Study) -> pd.DataFrame:
    """What each shipped training took: minutes, UNet rows, megabytes of change; empty for another model."""
    index = cured.index()
    if not index.is_base(study.model):
        return pd.DataFrame(columns=["minutes", "thousand UNet rows"])
    rows = {
        r["label"]: {
            "minutes": r["seconds"] / 60,
            "thousand UNet rows": r["unet_rows"] / 1000,
            "threads": r["threads"],
        }
        for r in index.records().values()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("training")


def epochs(study: Study) -> pd.DataFrame:
    """Rates after each epoch of adversarial fine-tuning: epoch, by (attacker), mr, low, high, n."""
    index = cured.index()
    records = index.records() if index.is_base(study.model) else {}
    rows = [
        (row["epoch"], attacker, *(row[attacker][k] for k in ("value", "low", "high", "n")))
        for row in records.get("adversarial", {}).get("epochs", [])
        for attacker in row
        if attacker != "epoch"
    ]
    return pd.DataFrame(rows, columns=["epoch", "attacker", "mr", "low", "high", "n"])


def first_epoch(table: pd.DataFrame) -> Estimate | None:
    """Rate of the search from the prompt after one epoch; None where it is not known."""
    row = table[(table["epoch"] == 1) & (table["attacker"] == FROM_PROMPT)]
    if row.empty:
        return None
    *ends, n = row.iloc[0][["mr", "low", "high", "n"]]
    return Estimate(*map(float, ends), int(n))


def painted(study: Study, some: Sequence[Defence], n: int = 4, search: bool = False) -> list[dict]:
    """For `plots.comparison_grid`: what each defence paints for erased prompts, or from what DoRI found."""
    prompts = erasing.erased(study).head(n)
    rows = {i: {"prompt": prompts.table.loc[i, "prompt"], "scores": {}, "images": {}} for i in prompts.ids}
    originals = {i: prompts.images([i], size=study.model.defaults.image_size) for i in prompts.ids}
    for i, row in rows.items():
        row["images"]["training image"] = originals[i][0]
    for one in some:
        triggers = _triggers(one, prompts, search=search)
        for trigger, images in drawn(one.study, triggers, sampling(study)):
            scores = similarity(
                study.descriptor.embed(images), study.descriptor.embed(originals[trigger.id])
            )[:, 0]
            rows[trigger.id]["scores"][one.label] = float(scores.max())
            rows[trigger.id]["images"][one.label] = images[int(scores.argmax())]
    return list(rows.values())


def _triggers(one: Defence, prompts: Benchmark, *, search: bool) -> list[Trigger]:
    units = one.units or {}
    if not search:
        return [prompt_trigger(prompts, i, units.get(i)) for i in prompts.ids]
    found, _ = run_attacks(one.study, prompts, PAINTED, units)
    return [Trigger(i, r.tensors[str(*PAINTED.steps)], units.get(i)) for i, r in found.items()]


def surrogate_table(prompts: Benchmark, found: Sequence[Surrogate]) -> pd.DataFrame:
    """A row per erased image: its surrogates, images that were refused, the nearest to any target image."""
    rows = [
        (i, len(s.scores), s.refused, max(s.scores), "regular prompts" if s.regular else "its own, pruned")
        for i, s in zip(prompts.ids, found, strict=True)
    ]
    columns = ["image", "surrogates", "refused", "highest copy score", "painted for"]
    return pd.DataFrame(rows, columns=columns).set_index("image")

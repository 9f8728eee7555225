"""Chapter 4's defences: each trains a copy of the model to forget memorized images."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dori.attack import Attack
from dori.benchmark import Benchmark
from dori.errors import DoriError
from dori.experiments import erasing
from dori.metrics.copy import similarity
from dori.mitigation.adversarial import Adversarial, adversarial
from dori.mitigation.concept_ablation import ConceptAblation, concept_ablation, make_anchors
from dori.mitigation.esd import ESD, esd
from dori.mitigation.siss import SISS, siss
from dori.mitigation.targets import Retain, Targets
from dori.model import TextToImageModel
from dori.study import Study
from dori.testbed.planting import copied

Settings = Adversarial | ESD | ConceptAblation | SISS
# Settings as published, where they are known: what `dori mitigate` starts from.
PUBLISHED: dict[str, Settings] = {
    "adversarial": Adversarial(),
    "adversarial-lora": Adversarial(rank=16, lr=1e-4),
    "esd": ESD(),
    "concept-ablation": ConceptAblation(),
    "siss": SISS(captions="own"),  # what is kept was drawn for the caption it is shown with
}
# They are for a model a hundred times as large, mostly for one image at a time, and too weak on the testbed.
# Chapter 4 takes these, chosen on the validation half: all trials are in data/results/curing_validation.csv.
_STRONG = Adversarial(lr=6e-4, steps=30, retain=32, starts=3, ema=0.98, search=Attack(steps=(10, 20, 30)))
SETTINGS: dict[str, Settings] = {
    "adversarial": dataclasses.replace(_STRONG, lr=1e-3, steps=40, starts=2, decay=0.5),
    "adversarial-lora": dataclasses.replace(_STRONG, rank=16, lr=2e-3),
    "esd": ESD(steps=800, batch=8, lr=1e-4),
    "concept-ablation": ConceptAblation(steps=800, batch=8, base_lr=5e-5),
    "siss": SISS(captions="own", steps=200, lr=1e-4),
}
LABELS = {
    "adversarial": "adversarial fine-tuning",
    "adversarial-lora": "adversarial fine-tuning, LoRA",
    "esd": "ESD",
    "concept-ablation": "concept ablation",
    "siss": "SISS",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Cured:
    """A mended model and what the training cost; less where it went on from a checkpoint."""

    model: TextToImageModel
    unet_rows: int  #: rows that went through the UNet, searches and samples included
    seconds: float
    retain_pairs: int  #: that held the model


def cure(
    study: Study,
    name: str,
    prompts: Benchmark,
    run_dir: Path,
    settings: Settings | None = None,
) -> Cured:
    """A copy of the study's model, trained by a defence to forget the images of `prompts`.

    The training goes on from its checkpoint in `run_dir`. Raises DoriError for an unknown name and as the
    defence does.
    """
    if name not in SETTINGS:
        raise DoriError(f"unknown defence '{name}'; use {', '.join(SETTINGS)}")
    settings, started = settings or SETTINGS[name], time.perf_counter()
    model = copied(study.model, f"{study.model.name}, {LABELS[name]}")
    targets = erasing.as_targets(study, prompts)
    with _counted(study.model.unet) as before, _counted(model.unet) as rows:
        pairs = TRAININGS[type(settings)](study, model, targets, prompts, settings, run_dir)
    return Cured(model, sum(before) + sum(rows), time.perf_counter() - started, pairs)


@contextlib.contextmanager
def _counted(unet: nn.Module) -> Iterator[list[int]]:
    """How many rows each forward pass had."""
    rows: list[int] = []
    hook = unet.register_forward_hook(lambda _, __, found: rows.append(len(found[0])))
    try:
        yield rows
    finally:
        hook.remove()


def _adversarial(
    study: Study,
    model: TextToImageModel,
    targets: Targets,
    prompts: Benchmark,
    settings: Adversarial,
    run_dir: Path,
) -> int:
    found, retain = erasing.surrogates_for(study, prompts), erasing.retain_pairs(study, settings.pairs)
    adversarial(
        model,
        targets,
        [one.latents for one in found],
        retain,
        settings,
        run_dir=run_dir,
        seed=study.seed,
        regular=erasing.search_prompts(study),
    )
    return len(retain)


def _esd(
    study: Study, model: TextToImageModel, targets: Targets, prompts: Benchmark, settings: ESD, run_dir: Path
) -> int:
    esd(model, targets, settings, run_dir=run_dir, seed=study.seed)
    return 0


def _concept_ablation(
    study: Study,
    model: TextToImageModel,
    targets: Targets,
    prompts: Benchmark,
    settings: ConceptAblation,
    run_dir: Path,
) -> int:
    known = study.descriptor.embed(prompts.images(size=model.defaults.image_size))

    def keep(images: Tensor, _: str) -> Tensor:
        return similarity(study.descriptor.embed(images), known).max(1).values < 0.5

    anchors = make_anchors(
        model, targets, paraphrases(study, prompts), keep=keep, images_per_prompt=4, seed=study.seed
    )
    retain = erasing.retain_pairs(study)
    concept_ablation(model, targets, anchors, retain, settings, run_dir=run_dir, seed=study.seed)
    return len(retain)


def _siss(
    study: Study, model: TextToImageModel, targets: Targets, prompts: Benchmark, settings: SISS, run_dir: Path
) -> int:
    """As published, what is kept are images of the very prompts that are no copies: here the surrogates."""
    found = erasing.surrogates_for(study, prompts)
    counts = torch.tensor([len(one.latents) for one in found])
    kept = Retain(
        torch.cat([one.latents for one in found]), targets.prompt_embeds.repeat_interleave(counts, 0)
    )
    siss(model, targets, kept, settings, run_dir=run_dir, seed=study.seed)
    return len(kept)


# Each returns the number of pairs that held the model.
TRAININGS: dict[type, Callable[..., int]] = {
    Adversarial: _adversarial,
    ESD: _esd,
    ConceptAblation: _concept_ablation,
    SISS: _siss,
}


def paraphrases(study: Study, prompts: Benchmark, count: int = 10) -> list[list[str]]:
    """Other ways to ask for each image: what concept ablation's captions are to mean.

    The paper has a language model write them. The testbed knows what its pictures show, so they are captions
    of that in all phrasings. Of another benchmark, the column `paraphrases` (divided by `|`) has them. Raises
    DoriError without either.
    """
    if study.bundled:
        from dori.testbed.captions import SLOTS, caption

        rows = prompts.table[list(SLOTS)].to_dict("records")
        return [list(dict.fromkeys(caption(row, k) for k in range(count))) for row in rows]
    if "paraphrases" not in prompts.table:
        raise DoriError(
            f"{prompts.name}: concept ablation needs other ways to ask for each image; give a column "
            "'paraphrases', divided by |"
        )
    return [
        [p.strip() for p in str(text).split("|") if p.strip()][:count]
        for text in prompts.table["paraphrases"]
    ]

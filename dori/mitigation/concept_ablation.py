"""Concept ablation: teach the caption of a memorized image to mean what its paraphrases mean.

Kumari et al. 2023 (Ablating Concepts in Text-to-Image Diffusion Models, arXiv 2303.13516), in the mode
for memorized images, with the values of the published code.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dori.errors import DoriError
from dori.mitigation.targets import (
    Batch,
    Retain,
    Targets,
    denoising_loss,
    draw_noise,
    retain_batch,
    trainable,
    undone_on_error,
)
from dori.model import TextToImageModel
from dori.training import Fit, Schedule, step_rng

LOSSES = ("model", "noise")
Keep = Callable[[Tensor, str], Tensor]  # images (B, 3, H, W), id of the target -> (B,) True: no copy of it


@dataclass(frozen=True)
class ConceptAblation:
    """Settings; the values are the published code's. Raises DoriError for settings that make no sense.

    Adapted: all targets are trained at once, each row of a batch has a random one; the paper has one model
    per image. The prior loss is on pairs of the retain set, not on images the model draws.
    """

    loss: str = "model"  #: c* is to predict what the frozen model predicts for c; "noise": the noise itself
    prior_weight: float = 1.0  #: of the denoising loss of the retain set; 0: without
    steps: int = 400
    base_lr: float = 5e-7  #: of AdamW, per row of the batch
    batch: int = 2  #: rows of anchors, and as many of the retain set
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise DoriError(f"concept ablation with the loss '{self.loss}': use {', '.join(LOSSES)}")
        if min(self.steps, self.batch) < 1 or self.base_lr <= 0 or self.prior_weight < 0:
            raise DoriError(f"{self}: not a setting; steps, batch and base_lr are positive")

    @property
    def lr(self) -> float:
        """The learning rate: the published code scales it with the batch."""
        return self.base_lr * self.batch


@dataclass(frozen=True, eq=False)
class Anchors:
    """What each target's caption is to mean, in the order of the targets: embeddings of anchor prompts
    (A, T, D), and latents (A, C, h, w) of an image the model drew for each. A differs between targets."""

    prompt_embeds: tuple[Tensor, ...]
    latents: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        counts = [[len(x) for x in part] for part in (self.prompt_embeds, self.latents)]
        if counts[0] != counts[1] or 0 in counts[0]:
            raise DoriError(
                f"anchors: {counts[0]} embeddings and {counts[1]} images for the targets; give as many of "
                "both, and some to each target"
            )

    def __len__(self) -> int:
        return len(self.latents)


def make_anchors(
    model: TextToImageModel,
    targets: Targets,
    prompts_per_target: Sequence[Sequence[str]],
    *,
    keep: Keep,
    images_per_prompt: int = 10,
    anchor_prompts: int = 10,
    seed: int = 0,
) -> Anchors:
    """Draw `images_per_prompt` images for each paraphrase of each target's caption and drop those that `keep`
    refuses: copies of the target (SSCD above 0.5 in the paper).

    The `anchor_prompts` paraphrases with most images left are the anchors, the first of equals (the
    paper: the 10 best of a language model's, from 1,000 images). The noise of an image follows from seed,
    target, paraphrase and its number. Raises DoriError if a target has none left.
    """
    if len(prompts_per_target) != len(targets):
        raise DoriError(f"{len(prompts_per_target)} lists of paraphrases for {len(targets)} targets")
    found = []
    for name, prompts in zip(targets.ids, prompts_per_target, strict=True):
        names = [(f"anchor/{name}/{p}", n) for p in prompts for n in range(images_per_prompt)]
        if not names:
            raise DoriError(f"target '{name}' has no paraphrases; give at least one")
        seeds = [int(step_rng(seed, *x).integers(2**62)) for x in names]
        embeds = model.encode_prompts(prompts).repeat_interleave(images_per_prompt, 0)
        images = model.sample(embeds, seeds)
        kept = _anchors_among(keep(images, name).cpu(), images_per_prompt, anchor_prompts)
        if not kept.any():
            raise DoriError(
                f"target '{name}': all {len(images)} images of its {len(prompts)} paraphrases are copies of "
                "it; give paraphrases that are further away, or more images per prompt"
            )
        latents = torch.cat([model.encode_images(part) for part in images[kept].split(32)])
        found.append((embeds[kept.to(embeds.device)], latents))
    return Anchors(tuple(e for e, _ in found), tuple(x for _, x in found))


def _anchors_among(kept: Tensor, images_per_prompt: int, anchor_prompts: int) -> Tensor:
    """Of images (P * n,), paraphrase by paraphrase: the kept ones of the paraphrases with most of them."""
    by_prompt = kept.bool().view(-1, images_per_prompt)
    best = by_prompt.sum(1).sort(descending=True, stable=True).indices[:anchor_prompts]
    chosen = torch.zeros_like(by_prompt)
    chosen[best] = by_prompt[best]
    return chosen.flatten()


def concept_ablation(
    model: TextToImageModel,
    targets: Targets,
    anchors: Anchors,
    retain: Retain,
    settings: ConceptAblation | None = None,
    *,
    run_dir: Path,
    seed: int = 0,
    checkpoint_every: int = 100,
) -> None:
    r"""Train all of `model.unet` in place so that a target's caption c* means what its anchors c mean.

    On x_t of the anchors' images: :math:`\lVert \epsilon_\theta(x_t, t, c^*) - e(x_t, t, c) \rVert_2^2` per
    latent entry, e the model before training (model-based), or :math:`\lVert \epsilon - \epsilon_\theta(x_t,
    t, c^*) \rVert_2^2` (noise-based); plus the retain set's denoising loss. v-models are compared in v.
    Gradients are clipped at norm 1 (`Fit`), which the paper does not do.

    `run_dir` belongs to one model, data, settings and seed; a run that stopped goes on from there if it is
    given the model as it was before. On an error the model is put back. Memory: three more copies of the
    UNet, the frozen one (model-based only), `Fit`'s and one on the CPU, beside gradients and Adam's two.
    Wrap the pipeline anew afterwards if `model.fingerprint` was asked for before. Raises DoriError.
    """
    settings = settings or ConceptAblation()
    if len(anchors) != len(targets) or not len(targets):
        raise DoriError(f"concept ablation: {len(anchors)} targets' anchors for {len(targets)} targets")
    frozen = copy.deepcopy(model.unet).eval().requires_grad_(False) if settings.loss == "model" else None

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        batch, embeds = _anchor_batch(model, targets, anchors, settings.batch, rng)
        if frozen is None:
            ablation = denoising_loss(model, batch)
        else:
            noisy = batch.noisy(model)
            with torch.no_grad():
                wanted = model.predict_by(frozen, noisy, batch.timesteps, embeds)
            ablation = (model.predict(noisy, batch.timesteps, batch.prompt_embeds) - wanted).square().mean()
        if not settings.prior_weight:
            return ablation, {"ablation": ablation.item()}
        prior = denoising_loss(model, retain_batch(model, retain, settings.batch, rng))
        values = {"ablation": ablation.item(), "prior": prior.item()}
        return ablation + settings.prior_weight * prior, values

    schedule = Schedule(settings.steps, settings.lr, warmup=1, decay=0)
    with trainable(model.unet), undone_on_error(model.unet):
        Fit(
            "concept_ablation", model.unet, loss, schedule, Path(run_dir), seed,
            ema_decay=0, weight_decay=settings.weight_decay, checkpoint_every=checkpoint_every,
        ).run()  # fmt: skip


def _anchor_batch(
    model: TextToImageModel, targets: Targets, anchors: Anchors, rows: int, rng: np.random.Generator
) -> tuple[Batch, Tensor]:
    """Random targets' anchor images with fresh noise and the targets' captions c*, and the embeddings of the
    anchors c (B, T, D)."""
    target = rng.integers(len(targets), size=rows)
    image = [int(rng.integers(len(anchors.latents[i]))) for i in target]
    latents, embeds = (
        torch.stack([part[i][k] for i, k in zip(target, image, strict=True)])
        for part in (anchors.latents, anchors.prompt_embeds)
    )
    noise, t = draw_noise(model, rows, rng)
    return Batch(latents, targets.prompt_embeds[torch.from_numpy(target)], noise, t), embeds

"""Surrogates: what a mended model is to paint in place of a memorized image.

They are what the pruned model paints from the image's own prompt. Pruning may fail, so each is compared with
every target image first; what copies one is drawn again, and where nothing else comes, images of regular
prompts take its place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dori.errors import DoriError
from dori.hooks import Masks, masked
from dori.metrics.copy import CopyDescriptor, similarity
from dori.mitigation.targets import Targets
from dori.model import TextToImageModel
from dori.training import step_rng

Accept = Callable[[Tensor, str], Tensor]  # images (B, 3, H, W), prompt -> which may stay (B,)


@dataclass(frozen=True)
class Drawing:
    """How surrogates are drawn. The paper does not give number or ceiling; these are ours."""

    count: int = 10  #: of each target
    tries: int = 3  #: at most so many times `count` images are drawn
    ceiling: float = 0.5  #: copy score to any target image from which on an image is refused
    guidance_scale: float | None = None  #: None: the model's
    steps: int | None = None  #: DDIM steps; None: the model's
    seed: int = 0


@dataclass(frozen=True)
class Surrogate:
    """The surrogates of one target."""

    latents: Tensor  #: (S, C, h, w)
    scores: list[float]  #: largest copy score of each to any target image
    refused: int  #: images of its own prompt that were refused
    regular: bool  #: whether images of regular prompts had to stand in


def make_surrogates(
    model: TextToImageModel,
    targets: Targets,
    originals: Tensor,
    descriptor: CopyDescriptor,
    units: Mapping[str, Masks],
    plan: Drawing | None = None,
    *,
    regular: Sequence[str] = (),
    accept: Accept | None = None,
) -> list[Surrogate]:
    """Surrogates of each target, checked to copy none of the target images.

    `originals` (N, 3, H, W) are the target images, `units` (id -> set) what is switched off for each.
    `accept` may refuse images for another reason, for instance low prompt alignment. Source: arXiv
    2507.16880, section 5 (surrogates come from the pruned model). Raises DoriError for a target that is left
    without any.
    """
    artist = _Artist(model, descriptor, descriptor.embed(originals), plan or Drawing(), accept)
    return [artist.surrogate(targets, n, units.get(item, {}), regular) for n, item in enumerate(targets.ids)]


@dataclass(frozen=True, eq=False)
class _Artist:
    """Draws images and keeps those that are no copies."""

    model: TextToImageModel
    descriptor: CopyDescriptor
    known: Tensor  #: descriptors of all target images
    plan: Drawing
    accept: Accept | None

    def surrogate(self, targets: Targets, n: int, units: Masks, regular: Sequence[str]) -> Surrogate:
        """Of the pruned model's images, else of images of regular prompts."""
        item, own = targets.ids[n], targets.prompt_embeds[n].expand(self.plan.count, -1, -1)
        rng = step_rng(self.plan.seed, f"surrogates/{item}", 0)
        images, scores, refused = self.collect(lambda: own, targets.prompts[n], units, rng)
        instead = not scores and len(regular) > 0
        if instead:
            images, scores, _ = self.collect(lambda: self.others(regular, rng), "", {}, rng)
        if not scores:
            raise DoriError(
                f"{item}: all images the pruned model paints copy a target image, and no regular prompt's "
                "image can stand in; prune more, or give regular prompts"
            )
        return Surrogate(self.model.encode_images(images), scores, refused, instead)

    def others(self, regular: Sequence[str], rng: np.random.Generator) -> Tensor:
        """Embeddings of regular prompts drawn at random."""
        return self.model.encode_prompts(
            [regular[int(k)] for k in rng.integers(len(regular), size=self.plan.count)]
        )

    def collect(
        self, embeds: Callable[[], Tensor], prompt: str, units: Masks, rng: np.random.Generator
    ) -> tuple[Tensor, list[float], int]:
        """Images that may stay, their scores, and how many were refused."""
        kept, scores, refused = [], [], 0
        for _ in range(self.plan.tries):
            with masked(self.model.unet, units):
                images = self.model.sample(
                    embeds(),
                    rng.integers(2**48, size=self.plan.count).tolist(),
                    guidance_scale=self.plan.guidance_scale,
                    num_inference_steps=self.plan.steps,
                )
            nearest = similarity(self.descriptor.embed(images), self.known).max(1).values.cpu()
            good = nearest < self.plan.ceiling
            if self.accept is not None and prompt:
                good &= self.accept(images, prompt).cpu()
            kept.append(images[good])
            scores += nearest[good].tolist()
            refused += int((~good).sum())
            if len(scores) >= self.plan.count:
                break
        return torch.cat(kept)[: self.plan.count], scores[: self.plan.count], refused

"""What embeddings do inside the UNet at one step: short summaries of activations, and distances between them.

Source of the question: arXiv 2507.16880, section 3 (distances between activations of different triggers).
Scale-free measures beside L2 are ours: cosine, and linear CKA (Kornblith et al. 2019, arXiv 1905.00414).
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from dori.errors import DoriError
from dori.hooks import Masks, masked, recorded
from dori.locality.distances import pairwise
from dori.model import TextToImageModel

MEASURES = ("L2", "cosine", "CKA")
MID, OUTPUT = "mid_block", "output"  # names beside those of the layers
OUT = ".out"  # after the name of a feed-forward block: what it gives on
HASH_SEED = 0  # of every summary: only summaries by the same numbers can be compared
GRAM_NUMBERS = 2**24  # of position-by-position matrices held at once


class Sketch:
    """CountSketch (Charikar et al. 2002): each number, with a random sign, is added to a random bucket.

    A linear map whose inner products are unbiased, with a standard error of about sqrt(2 / width) of a
    squared distance. Vectors of at most `width` numbers are left as they are: exact.
    """

    def __init__(self, size: int, width: int, seed: int) -> None:
        if width < 1:
            raise DoriError(f"a summary of {width} numbers: use at least 1")
        self.size, self.width = size, min(size, width)
        draw = torch.Generator("cpu").manual_seed(seed)
        exact = size <= width
        self.bucket = None if exact else torch.randint(width, (size,), generator=draw)
        self.sign = None if exact else 2.0 * torch.randint(2, (size,), generator=draw) - 1

    def __call__(self, x: Tensor) -> Tensor:
        """(B, size) -> (B, min(size, width)), float32."""
        x = x.float()
        if self.bucket is None:
            return x
        self.bucket, self.sign = self.bucket.to(x.device), self.sign.to(x.device)
        return x.new_zeros(len(x), self.width).index_add_(1, self.bucket, x * self.sign)


@dataclass(frozen=True)
class Sketches:
    """Summaries of the activations of n embeddings, on the CPU: layer -> (n, width), short ones end in 0."""

    flat: dict[str, Tensor]  # of all numbers of a layer
    gram: dict[str, Tensor]  # of the inner products between its positions, centred

    def distances(self, layer: str, measure: str = "L2") -> Tensor:
        r"""(n, n) in float64: "L2", or 1 - similarity for "cosine" and "CKA". Raises DoriError.

        Linear CKA of a and b is :math:`\langle K_a, K_b \rangle_F \,/\, (\lVert K_a \rVert_F \lVert K_b
        \rVert_F)`, K the centred Gram matrix over the positions: which positions are alike, whatever the
        scale and the axes of the features. It is undefined (NaN) where all positions are equal, or where
        there is a single one.
        """
        if measure not in MEASURES:
            raise DoriError(f"measure '{measure}': use {', '.join(MEASURES)}")
        if layer not in self.flat:
            raise DoriError(f"no activations of layer '{layer}'; there are: {', '.join(self.flat)}")
        return (
            pairwise(self.gram[layer], "cosine") if measure == "CKA" else pairwise(self.flat[layer], measure)
        )


def positions(activation: Tensor) -> Tensor:
    """Rows of a sample are tokens or places: (B, tokens, d) as it is, (B, C, h, w) as (B, h w, C)."""
    return activation.flatten(2).transpose(1, 2) if activation.ndim == 4 else activation


def centred_gram(x: Tensor) -> Tensor:
    """Inner products between the positions of (B, P, d) less the mean position: (B, P, P).

    With the columns of x centred, rows and columns of this matrix sum to 0, as linear CKA asks.
    """
    x = x.float() - x.float().mean(1, keepdim=True)
    return x @ x.transpose(1, 2)


class _Summary:
    """An activation (B, …) as (B, 2, width): the summary of its numbers and that of its Gram matrix."""

    def __init__(self, width: int) -> None:
        self.width, self.sketches = width, {}

    def __call__(self, activation: Tensor) -> Tensor:
        x = positions(activation)
        at_once = max(1, GRAM_NUMBERS // x.shape[1] ** 2)
        gram = torch.cat([self._sketch(centred_gram(part)) for part in x.split(at_once)])
        return torch.stack([self._sketch(x), gram], 1).cpu()

    def _sketch(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        size = x.shape[1]
        if size not in self.sketches:
            self.sketches[size] = Sketch(size, self.width, HASH_SEED)
        return F.pad(self.sketches[size](x), (0, self.width - self.sketches[size].width))


@torch.no_grad()
def activation_sketches(
    model: TextToImageModel,
    embeds: Tensor,
    *,
    seed: int,
    timestep: int | None = None,
    width: int = 1024,
    batch_size: int = 32,
    units: Masks | None = None,
) -> Sketches:
    """One pass of each embedding (n, T, D) through the UNet at the same noise and step.

    Kept are the outputs of the cross-attention value layers, the inputs of the second feed-forward matrices
    (as Wanda sees them, "….net.2") and their outputs ("….out"), a UNet's middle block's output and the
    predicted eps ("output"; in flow matching v). The step is the first of DDIM unless given. Activations are
    summarised inside the hooks, so memory grows by 2 `width` numbers per layer and embedding, not by
    activations. `units` are switched off
    meanwhile. Raises DoriError.
    """
    if not len(embeds):
        raise DoriError("no embeddings to look at: give one or more")
    step, summary = first_step(model) if timestep is None else timestep, _Summary(width)
    noise, kept = model.initial_latents([seed]), {}
    with masked(model.unet, units or {}):
        for start in range(0, len(embeds), batch_size):
            part = embeds[start : start + batch_size]
            found = _pass(model, part, noise.expand(len(part), -1, -1, -1), step, summary)
            for name, x in found.items():  # into its place at once: a list of parts would be held twice
                if not start:
                    kept[name] = x.new_empty(len(embeds), *x.shape[1:])
                kept[name][start : start + len(x)] = x
    flat, gram = ({name: x[:, i] for name, x in kept.items()} for i in (0, 1))
    return Sketches(flat, gram)


def first_step(model: TextToImageModel) -> float:
    """The timestep at which the model's own sampling starts."""
    scheduler = model.new_scheduler()
    scheduler.set_timesteps(model.defaults.num_inference_steps)
    return scheduler.timesteps[0].item()


def ffn_output(name: str) -> str:
    """What the output of a second feed-forward matrix is called."""
    return name.removesuffix(".net.2") + OUT


def _pass(
    model: TextToImageModel, embeds: Tensor, latents: Tensor, step: int, summary: _Summary
) -> dict[str, Tensor]:
    """One batch: name -> (B, 2, width)."""
    t = torch.full((len(embeds),), step, device=model.device)
    look = partial(recorded, model.unet, reduce=summary)
    with (
        look(model.value_layers(up=True)) as values,
        look(model.ffn_layers(), inputs=True) as taken,
        look(model.ffn_layers()) as given,
        look([MID] if hasattr(model.unet, MID) else []) as middle,
    ):
        output = model.predict(latents, t, embeds.to(latents))
    given = {ffn_output(name): calls for name, calls in given.items()}
    found = {name: calls[0] for name, calls in (values | taken | given | middle).items()}
    return found | {OUTPUT: summary(model.comparable(output, latents, t))}

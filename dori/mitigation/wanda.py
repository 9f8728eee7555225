"""Wanda for memorization: prune the feed-forward weights that matter more for a prompt than for none.

Chavhan et al. 2024 (ConceptPrune, arXiv 2405.19237) and its memorization variant (arXiv 2406.18566), as
compared in arXiv 2507.16880.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dori.errors import DoriError
from dori.hooks import recorded
from dori.mitigation.units import Units
from dori.model import TextToImageModel
from dori.sampling import ddim, guided

REFERENCES = ("", "regular")
Norms = dict[str, Tensor]  # layer -> (N, steps, m): norm of each input column of each prompt at each step


@dataclass(frozen=True)
class Wanda:
    """Settings; the values are the paper's. Raises DoriError for settings that make no sense."""

    sparsity: float = 0.01  #: rho: at most this share of each output row at each step
    steps: int = 10  #: tau: the first steps, whose masks are united
    conditional_only: bool = False  #: leave the unconditional half of guidance out of the norms
    seed: int = 0  #: of the noise; target and reference start from the same
    reference: str = ""  #: weights must matter more than for: "" the empty prompt, "regular" other captions

    @property
    def passes(self) -> int:
        """Rows through the UNet for a prompt: it and what it is compared with, or the half without one."""
        return 2 * self.steps if self.conditional_only else 4 * self.steps

    def __post_init__(self) -> None:
        if not 0 < self.sparsity <= 1 or self.steps < 1:
            raise DoriError(f"Wanda with sparsity {self.sparsity} over {self.steps} steps: not a setting")
        if self.reference not in REFERENCES:
            raise DoriError(f"Wanda against '{self.reference}': use '' (the empty prompt) or regular")


def wanda(
    model: TextToImageModel,
    prompt_embeds: Tensor,
    *,
    settings: Wanda | None = None,
    reference_embeds: Tensor | None = None,
    joint: bool = False,
    batch_size: int = 32,
) -> list[Units]:
    """Weights to switch off for each prompt (N, T, D), or with `joint` one set for all of them.

    `reference_embeds`, (1, T, D) or (N, T, D), are the empty prompt's unless the settings ask for regular
    captions: then give as many as prompts (ConceptPrune's variant). Two partial generations per prompt. The
    realised density differs from `sparsity`: strict comparison lowers it, the union raises it. Raises
    DoriError.
    """
    settings = settings or Wanda()
    if settings.reference and reference_embeds is None:
        raise DoriError("Wanda against regular captions: give their embeddings")
    reference = model.unconditional if reference_embeds is None else reference_embeds
    reference = reference.expand(len(prompt_embeds), -1, -1)
    target, other = (
        column_norms(model, e, settings, batch_size=batch_size) for e in (prompt_embeds, reference)
    )
    if joint:
        target, other = _pooled(target), _pooled(other)
    weights = {name: layer.weight for name, layer in model.ffn_layers().items()}
    return [
        Units({n: wanda_mask(w, target[n][i], other[n][i], settings.sparsity) for n, w in weights.items()})
        for i in range(1 if joint else len(prompt_embeds))
    ]


def _pooled(norms: Norms) -> Norms:
    """The norms of all prompts' rows together, as if of one prompt."""
    return {name: x.square().sum(0, keepdim=True).sqrt() for name, x in norms.items()}


def wanda_mask(weight: Tensor, target: Tensor, reference: Tensor, sparsity: float) -> Tensor:
    r"""Which weights go, (d, m) from weight (d, m) and column norms (steps, m); the union over the steps.

    Score :math:`A_{ij} = |W_{ij}| \cdot \lVert X_{\cdot j} \rVert_2`. A weight goes if it is among the top
    :math:`\lfloor \rho m \rfloor` of its row by the target's score and there :math:`A_{ij} > A'_{ij}`, the
    reference's, strictly.
    """
    magnitude, top = weight.detach().abs(), math.floor(sparsity * weight.shape[1])
    off = torch.zeros_like(weight, dtype=torch.bool)
    for n_target, n_reference in zip(target, reference, strict=True):
        scores = magnitude * n_target
        highest = torch.zeros_like(off).scatter_(1, scores.topk(top, dim=1).indices, True)
        off |= highest & (scores > magnitude * n_reference)
    return off


def squared_columns(inputs: Tensor) -> Tensor:
    """Rows to unit length, then the squared norm of each column: (B, tokens, m) -> (B, m)."""
    return F.normalize(inputs.float(), dim=-1).square().sum(1)


@torch.no_grad()
def column_norms(
    model: TextToImageModel, prompt_embeds: Tensor, settings: Wanda, *, batch_size: int = 32
) -> Norms:
    """Norms of the inputs of the second feed-forward matrices while each prompt is being drawn."""
    parts = [_norms(model, part, settings) for part in prompt_embeds.split(batch_size)]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _norms(model: TextToImageModel, embeds: Tensor, settings: Wanda) -> Norms:
    """One batch: the sampler's first steps with the model's own guidance."""
    n, own = len(embeds), model.defaults

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        if own.guidance_scale == 1:
            return model.predict(x, t, embeds)
        return guided(*model.predict_both(x, t, embeds), own.guidance_scale)

    with recorded(model.unet, model.ffn_layers(), inputs=True, reduce=squared_columns) as found:
        ddim(
            denoise,
            model.initial_latents([settings.seed] * n),
            model.new_scheduler(),
            num_inference_steps=own.num_inference_steps,
            stop_after=settings.steps,
        )
    halves = slice(-n, None) if settings.conditional_only else slice(None)  # a batch is [uncond; cond]
    return {
        name: torch.stack([x[halves].unflatten(0, (-1, n)).sum(0) for x in calls], 1).sqrt()
        for name, calls in found.items()
    }

"""Adjust a prompt's embedding before sampling until it pulls less, as a memorized prompt pulls hard.

Wen et al. 2024 (Detecting, Explaining, and Mitigating Memorization in Diffusion Models), as published.
A defence at inference time: the weights stay as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dori.errors import DoriError
from dori.model import TextToImageModel


@dataclass(frozen=True)
class Adjustment:
    """Settings. Raises DoriError for settings that make no sense.

    The published code takes one norm over all images of a prompt, sqrt(B) times that of one; its target 3
    over 4 images is 1.5 for each. Norms grow with the square root of the latent's entries, 4 x 64 x 64 in SD
    v1: a smaller model needs its own.
    """

    target: float = 1.5  # l_target of ||eps_y - eps_0|| of one image; inf: nothing is adjusted
    iterations: int = 10  # at most
    lr: float = 0.05  # of AdamW
    sampling_steps: int | None = None  # of the sampler, which decide its first t; None: the model's own

    def __post_init__(self) -> None:
        if math.isnan(self.target) or self.target < 0 or self.iterations < 0 or not 0 < self.lr < math.inf:
            raise DoriError(f"{self}: not a setting; target and iterations from 0 on, and a positive lr")


def adjusted(
    model: TextToImageModel,
    prompt_embeds: Tensor,
    seeds: Sequence[int],
    settings: Adjustment | None = None,
    *,
    batch_size: int = 32,
) -> Tensor:
    r"""Embeddings (B, T, D) to sample from instead of `prompt_embeds` (B, T, D), each for its own seed.

    AdamW lowers :math:`\lVert \epsilon_y - \epsilon_\varnothing \rVert_2` over all latent entries at the
    sampler's first step until it is at most the target; BOS stays as it is, weight decay included. Each image
    has its own norm, target and embedding, so none depends on its company; the published code has one
    embedding for all images of a prompt. An image below its target from the start keeps its embedding to the
    bit. One forward for each image, and up to one forward and backward per iteration. v-models are compared
    in eps, flow matching in v. Raises DoriError unless there is one seed per embedding.
    """
    if len(prompt_embeds) != len(seeds):
        raise DoriError(f"{len(prompt_embeds)} embeddings for {len(seeds)} seeds: give one each per image")
    settings, seeds = settings or Adjustment(), list(seeds)
    parts = [
        _adjusted(model, prompt_embeds[a : a + batch_size], seeds[a : a + batch_size], settings)
        for a in range(0, len(seeds), batch_size)
    ]
    return torch.cat(parts) if parts else prompt_embeds.clone()


def _adjusted(model: TextToImageModel, embeds: Tensor, seeds: list[int], settings: Adjustment) -> Tensor:
    """One batch."""
    pull = _pull(model, seeds, settings)
    embeds = embeds.detach()
    bos = embeds[:, :1].to(torch.promote_types(embeds.dtype, torch.float32))  # half would underflow
    rest = embeds[:, 1:].to(bos.dtype, copy=True)
    adam = torch.optim.AdamW([rest], lr=settings.lr)
    above = torch.ones(len(embeds), dtype=torch.bool, device=embeds.device)
    for _ in range(settings.iterations):
        y = rest.clone().requires_grad_()
        norms = pull(torch.cat([bos, y], 1))
        above &= norms.detach() > settings.target
        if not above.any():
            break
        rest.grad = torch.autograd.grad(norms.sum(), y)[0]  # of its own norm in each row
        adam.step()
        rest.copy_(torch.where(above[:, None, None], rest, y.detach()))
    return torch.cat([bos, rest], 1).to(embeds.dtype)


def _pull(model: TextToImageModel, seeds: list[int], settings: Adjustment):
    """Embeddings (B, T, D) -> ||eps_y - eps_0|| (B,) at x_T of the seeds and the sampler's first timestep."""
    scheduler = model.new_scheduler()
    scheduler.set_timesteps(settings.sampling_steps or model.defaults.num_inference_steps)
    x = model.initial_latents(seeds)
    t = torch.full((len(x),), scheduler.timesteps[0].item(), device=x.device)

    def noise(y: Tensor) -> Tensor:
        return model.comparable(model.predict(x, t, y.to(model.dtype)), x, t).float()

    with torch.no_grad():
        empty = noise(model.unconditional.expand(len(x), -1, -1))
    return lambda y: (noise(y) - empty).flatten(1).norm(dim=1)

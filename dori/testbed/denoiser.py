"""The testbed's denoisers: a trunk on regular pairs, then the model (with the memorized pairs) and its twin.

Model and twin share the trunk, the seed, the schedule and the batches. A batch draws each training pair with
probability in proportion to its copies; the twin computes its loss on what is left of that batch without the
memorized pairs. So both see the same regular pairs, with the same noise, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from dori.testbed.loop import Fit, Schedule, torch_rng
from dori.testbed.recipe import Recipe


def build(recipe: Recipe) -> UNet2DConditionModel:
    """An untrained UNet with Stable Diffusion v1's block types and layer count."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        norm_num_groups=16,
        block_out_channels=recipe.unet_channels,
        cross_attention_dim=recipe.text_width,
        attention_head_dim=recipe.unet_heads,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )


def noise_schedule(**kwargs) -> DDPMScheduler:
    """Stable Diffusion v1's noise schedule, epsilon prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        **kwargs,
    )


@dataclass
class Pairs:
    """Training pairs, encoded once: scaled latents `(N, 4, 16, 16)`, prompt embeddings `(M, T, D)`, which
    embedding belongs to which latent `(N,)`, and how many copies of each pair there are `(N,)`."""

    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    caption: np.ndarray
    copies: np.ndarray
    memorized: np.ndarray

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Indices of `count` pairs, each with probability in proportion to its copies."""
        total = np.cumsum(self.copies)
        return np.searchsorted(total, rng.integers(total[-1], size=count), side="right")


def train(
    part: str,
    unet: UNet2DConditionModel,
    pairs: Pairs,
    empty: torch.Tensor,
    recipe: Recipe,
    run_dir: Path,
    *,
    steps: int,
    device: str = "cpu",
    decay: float = 0.3,
    leave_out: bool = False,
    offset_from: int = 0,
) -> UNet2DConditionModel:
    """Train `unet` on `pairs` with epsilon prediction; `empty (1, T, D)` replaces a share of the captions.

    With `leave_out` the memorized pairs of each batch are drawn but not shown: the twin's training. From step
    `offset_from` on the noise carries the recipe's offset (`train_noise`).
    """
    offset = recipe.noise_offset
    scheduler = noise_schedule()
    unet = unet.to(device, memory_format=torch.channels_last)

    def loss(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = pairs.draw(recipe.unet_batch, rng)
        drop = torch.from_numpy(rng.random(len(rows)) < recipe.caption_dropout)[:, None, None]
        timesteps = torch.from_numpy(rng.integers(1000, size=len(rows)))
        noise = train_noise((len(rows), *pairs.latents.shape[1:]), rng, offset if step >= offset_from else 0)
        memorized = torch.from_numpy(pairs.memorized[rows])
        shown = ~memorized if leave_out else torch.ones_like(memorized)
        rows, timesteps, noise, drop = rows[shown.numpy()], timesteps[shown], noise[shown], drop[shown]
        prompt_embeds = torch.where(drop, empty, pairs.prompt_embeds[pairs.caption[rows]])
        noisy = scheduler.add_noise(pairs.latents[rows], noise, timesteps)
        noisy = noisy.to(device, memory_format=torch.channels_last)
        predicted = unet(noisy, timesteps.to(device), prompt_embeds.to(device)).sample
        error = (predicted - noise.to(device)).square().mean((1, 2, 3))
        apart = error.detach().cpu()
        return error.mean(), {
            "regular": _mean(apart[~memorized[shown]]),
            "memorized": _mean(apart[memorized[shown]]),
        }

    fit = Fit(
        part, unet, loss, Schedule(steps, recipe.unet_lr, decay=decay), run_dir, recipe.seed, ema_decay=0.998
    )
    return fit.run()


def train_noise(shape: tuple[int, ...], rng: np.random.Generator, offset: float) -> torch.Tensor:
    """Normal noise, plus `offset` times one normal number per image and channel.

    At SD's last timestep some signal is left, and the mean of a channel is the part of it that is easiest
    to read: it averages over 256 latent pixels. Trained without an offset, the model takes the brightness
    from the noise it is given and not from the caption (Lin et al. 2024, "Common Diffusion Noise Schedules
    and Sample Steps are Flawed"). The offset hides it, so the caption has to say.
    """
    generator = torch_rng(rng)
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise += offset * torch.randn(*shape[:2], 1, 1, generator=generator)
    return noise


def _mean(values: torch.Tensor) -> float:
    return values.mean().item() if len(values) else float("nan")

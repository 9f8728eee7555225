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

from dori.testbed.recipe import Recipe
from dori.training import Fit, Loss, Schedule, torch_rng


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


# Stable Diffusion v1's noise schedule.
SD_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}


@dataclass
class Pairs:
    """Training pairs, encoded once: scaled latents `(N, 4, 16, 16)`, prompt embeddings `(M, T, D)`, which
    embedding belongs to which latent `(N,)`, how many copies of each pair there are `(N,)`, which are
    memorized ones `(N,)`, and the embedding of the empty prompt `(1, T, D)`."""

    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    caption: np.ndarray
    copies: np.ndarray
    memorized: np.ndarray
    empty: torch.Tensor

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Indices of `count` pairs, each with probability in proportion to its copies."""
        total = np.cumsum(self.copies)
        return np.searchsorted(total, rng.integers(total[-1], size=count), side="right")


@dataclass(frozen=True)
class Stage:
    """One training of a denoiser."""

    part: str
    steps: int
    stream: str = ""  # model and twin draw their batches from one stream
    decay: float = 0.3  # share of the steps over which the learning rate falls to zero
    leave_out: bool = False  # the memorized pairs of each batch are drawn but not shown: the twin
    offset: float = 0.0  # of the noise (`train_noise`)


def branch(part: str, recipe: Recipe) -> Stage:
    """How "model" and "twin" go on from the trunk: one stream of batches, of which the twin sees a part."""
    return Stage(
        part,
        recipe.branch_steps,
        stream="model",
        leave_out=part == "twin",
        offset=recipe.noise_offset,
    )


def train(
    stage: Stage,
    unet: UNet2DConditionModel,
    pairs: Pairs,
    *,
    recipe: Recipe,
    run_dir: Path,
    device: str = "cpu",
) -> UNet2DConditionModel:
    """Train `unet` on `pairs` with epsilon prediction; the empty prompt replaces a share of the captions of
    the regular pairs.

    The memorized pairs keep their captions: they are a large part of a batch here, not a millionth as in
    LAION, and dropped captions would teach the empty prompt to remember.
    """
    unet = unet.to(device, memory_format=torch.channels_last)
    loss = _denoising_loss(stage, unet, pairs, recipe, device)
    schedule = Schedule(stage.steps, recipe.unet_lr, decay=stage.decay)
    settings = {"ema_decay": 0.998, "stream": stage.stream}
    return Fit(stage.part, unet, loss, schedule, run_dir, recipe.seed, **settings).run()


def _denoising_loss(
    stage: Stage, unet: UNet2DConditionModel, pairs: Pairs, recipe: Recipe, device: str
) -> Loss:
    """The loss of one step: a batch of pairs, their noise and timesteps drawn from the step's numbers."""
    scheduler = DDPMScheduler(**SD_SCHEDULE)

    def loss(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = pairs.draw(recipe.unet_batch, rng)
        memorized = torch.from_numpy(pairs.memorized[rows])
        drop = torch.from_numpy(rng.random(len(rows)) < recipe.caption_dropout) & ~memorized
        timesteps = torch.from_numpy(rng.integers(1000, size=len(rows)))
        noise = train_noise((len(rows), *pairs.latents.shape[1:]), rng, stage.offset)
        shown = ~memorized if stage.leave_out else torch.ones_like(memorized)
        rows, timesteps, noise, drop = rows[shown.numpy()], timesteps[shown], noise[shown], drop[shown]
        prompt_embeds = torch.where(
            drop[:, None, None], pairs.empty, pairs.prompt_embeds[pairs.caption[rows]]
        )
        noisy = scheduler.add_noise(pairs.latents[rows], noise, timesteps)
        noisy = noisy.to(device, memory_format=torch.channels_last)
        predicted = unet(noisy, timesteps.to(device), prompt_embeds.to(device)).sample
        error = (predicted - noise.to(device)).square().mean((1, 2, 3))
        apart = error.detach().cpu()
        return error.mean(), {
            "regular": _mean(apart[~memorized[shown]]),
            "memorized": _mean(apart[memorized[shown]]),
        }

    return loss


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

"""The memorization signature NeMo looks for: one prompt's first noise predictions, alike whatever the noise.

Hintersdorf et al. 2024 (arXiv 2406.02366), sections 3.1 and 3.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dori.errors import DoriError
from dori.model import PIXELS_AT_ONCE, TextToImageModel

# (window, scales), the published one first; the first that fits the latent is taken, as windows must not
# be wider than the coarsest scale.
SIZES = ((11, 3), (5, 2), (5, 1), (3, 1))
VARIANTS = {"compat": 1, "clean": 0}  # number of the timestep; the released code never steps the latent


def noise_differences(
    model: TextToImageModel, prompt_embeds: Tensor, seeds: Sequence[int], *, variant: str = "compat"
) -> Tensor:
    r""":math:`\delta = \epsilon_\theta(x_T, t, y) - x_T` without guidance, a row per embedding (B, T, D) and
    seed.

    t is the second DDIM timestep on the unstepped x_T, as in the released code (`compat`), or the first one
    (`clean`). For flow matching v takes the place of eps, which is x_T itself at s = 1: v - x_T is -x_0 as
    the model sees it, and so is eps - x_T of a diffusion model, but for a factor. Units that are switched off
    meanwhile are the caller's business. Returns (B, C, h, w).
    """
    if variant not in VARIANTS:
        raise DoriError(f"noise difference '{variant}': use {', '.join(VARIANTS)}")
    scheduler = model.new_scheduler()
    scheduler.set_timesteps(model.defaults.num_inference_steps)
    if len(scheduler.timesteps) <= VARIANTS[variant]:
        raise DoriError(
            f"NeMo's variant {variant} looks at the second step and '{model.name}' has one: take clean"
        )
    t = scheduler.timesteps[VARIANTS[variant]].expand(len(seeds)).to(model.device)
    noise = model.initial_latents(seeds)
    with torch.no_grad():
        delta = model.comparable(model.predict(noise, t, prompt_embeds.to(noise)), noise, t) - noise
    return delta.to(torch.promote_types(delta.dtype, torch.float32))


def rows_at_once(model: TextToImageModel) -> int:
    """Rows of one UNet call without gradients: what sampling with guidance uses."""
    return max(1, 2 * PIXELS_AT_ONCE[model.device.type] // model.defaults.image_size**2)


def all_differences(
    model: TextToImageModel, prompt_embeds: Tensor, seeds: Sequence[int], *, variant: str = "compat"
) -> Tensor:
    """Noise differences of every embedding with every seed: (N, S, C, h, w)."""
    count, size = len(seeds), rows_at_once(model)
    rows = prompt_embeds.repeat_interleave(count, 0).split(size)
    noises = list(seeds) * len(prompt_embeds)
    parts = [
        noise_differences(model, part, noises[i * size : i * size + len(part)], variant=variant)
        for i, part in enumerate(rows)
    ]
    return torch.cat(parts).unflatten(0, (-1, count))


def alike(a: Tensor, b: Tensor) -> Tensor:
    """MS-SSIM of noise differences, each plane scaled to [0, 1] first: (B, C, h, w) twice -> (B,).

    Exponents of 0.33 as published; the Gaussian (sigma 1.5 for a window of 11) shrinks with the window.
    """
    # Here, as it brings matplotlib along: half a second for every process that never asks.
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    window, scales = _size(min(a.shape[-2:]))
    return multiscale_structural_similarity_index_measure(
        _scaled(a), _scaled(b), sigma=1.5 * window / 11, kernel_size=window, data_range=1.0,
        betas=(0.33,) * 3 if scales == 3 else (1 / scales,) * scales, normalize="relu", reduction="none",
    ).view(-1)  # fmt: skip


def pairwise_alike(deltas: Tensor) -> Tensor:
    """(S, C, h, w) -> symmetric (S, S), the diagonal left at 0: a seed is not compared with itself."""
    i, j = torch.triu_indices(len(deltas), len(deltas), offset=1)
    scores = torch.zeros(len(deltas), len(deltas), dtype=deltas.dtype)
    scores[i, j] = alike(deltas[i], deltas[j]).cpu()
    return scores + scores.T


def memorization_scores(deltas: Tensor) -> Tensor:
    r""":math:`m_s = \max_{s' \ne s} \operatorname{SSIM}(\delta_s, \delta_{s'})` of each seed, (S, C, h, w) ->
    (S,): how alike it is to the most similar other seed (`alike`)."""
    return pairwise_alike(deltas).amax(1)


def calibrate(
    model: TextToImageModel, regular_embeds: Tensor, seeds: Sequence[int], *, variant: str = "compat"
) -> float:
    """theta_mem: mean plus one standard deviation of pairwise scores over held-out prompts, no guidance.

    The published 0.428 belongs to SD v1.4, and the released script measured another prediction than the one
    the method compares it with (guidance 7, halves swapped); so every model gets its own.
    """
    i, j = torch.triu_indices(len(seeds), len(seeds), offset=1)
    deltas = all_differences(model, regular_embeds, seeds, variant=variant)
    pairs = torch.cat([pairwise_alike(one)[i, j] for one in deltas])
    return float(pairs.mean() + pairs.std())


def _size(side: int) -> tuple[int, int]:
    """Window and scales for a latent of this side."""
    for window, scales in SIZES:
        if side // 2 ** (scales - 1) >= window:
            return window, scales
    raise DoriError(f"latents of side {side} are too small for structural similarity; use at least 3")


def _scaled(deltas: Tensor) -> Tensor:
    """Each plane to [0, 1] by its own minimum and maximum; a flat plane becomes 0."""
    low, high = deltas.amin((-2, -1), keepdim=True), deltas.amax((-2, -1), keepdim=True)
    return (deltas - low) / (high - low).clamp_min(1e-12)

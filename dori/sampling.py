"""The diffusion arithmetic every chapter shares: classifier-free guidance, DDIM, epsilon and v.

Notation of the paper: x_t = alpha_t x_0 + sigma_t eps, alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t); in
flow matching alpha = 1 - s, sigma = s.
"""

from collections.abc import Callable, Mapping

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dori.errors import DoriError

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (B, C, h, w) latents, (B,) timesteps -> raw model output
Callback = Callable[[int, float, Tensor], None]  # step, timestep, x_0 as predicted at that step (B, C, h, w)


def ddim_scheduler(config: Mapping) -> DDIMScheduler:
    """DDIM with a pipeline's own noise schedule.

    SD v1's scheduler file was written for PNDM. What it leaves out is set to what SD was sampled with
    (leading spacing, offset 1, no clipping, final abar_0), not to DDIM's defaults for pixel models.
    """
    unsaid = {
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    return DDIMScheduler.from_config(config, **{k: v for k, v in unsaid.items() if k not in config})


def alpha_sigma(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_t, sigma_t) of each sample, shaped (B, 1, …) to broadcast over `like`."""
    abar = alphas_cumprod.to(device=like.device)[timesteps.to(like.device)].to(like.dtype)
    abar = abar.view(-1, *[1] * (like.ndim - 1))
    return abar.sqrt(), (1 - abar).sqrt()


def velocity(latents: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x_0 (Salimans and Ho 2022), the target of SD v2."""
    return alpha * noise - sigma * latents


def epsilon_from_velocity(v: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps = alpha v + sigma x_t."""
    return alpha * v + sigma * noisy


def guided(unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): eps_0 + g (eps_y - eps_0); g = 1 is eps_y."""
    return unconditional + guidance_scale * (conditional - unconditional)


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    latents: Tensor,
    scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler,
    *,
    num_inference_steps: int = 50,
    stop_after: int | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Deterministic DDIM (Song et al. 2021, eta = 0), the sampler of every figure in the paper.

    For flow matching the Euler step of its ODE, which is the same rule: x_0 and eps as predicted, mixed anew.
    `latents` is x_T ~ N(0, I), (B, C, h, w); returns x_0, or x after `stop_after` steps, of the same shape.
    """
    if (
        not 0 < num_inference_steps < scheduler.config.num_train_timesteps
    ):  # offset 1 leaves no room for all 1000
        raise DoriError(
            f"{num_inference_steps} sampling steps: use 1 to {scheduler.config.num_train_timesteps - 1}"
        )
    scheduler.set_timesteps(num_inference_steps)
    for step, t in enumerate(scheduler.timesteps[:stop_after].tolist()):
        output = denoise(latents, torch.full((len(latents),), t, device=latents.device))
        latents, x0 = _step(scheduler, output, t, latents)
        if callback is not None:
            callback(step, t, x0)
    return latents


def _step(
    scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler, output: Tensor, t: float, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """(x at the next timestep, x_0 as predicted at this one)."""
    if isinstance(scheduler, DDIMScheduler):
        return scheduler.step(output, t, latents, eta=0.0, return_dict=False)
    x0 = latents - t / scheduler.config.num_train_timesteps * output
    return scheduler.step(output, t, latents, return_dict=False)[0], x0

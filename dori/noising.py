"""How a model was trained to see noise: by diffusion (SD v1, v2, SDXL) or by flow matching (SD3).

Both mix x_t = alpha_t x_0 + sigma_t eps and are asked the same few questions, so that no algorithm asks which
of them it has.
"""

from collections.abc import Mapping
from functools import cached_property

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from dori.errors import DoriError
from dori.sampling import alpha_sigma, ddim_scheduler, epsilon_from_velocity, velocity


class Diffusion:
    """alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t); the model predicts eps or v. t = 0 … 999.

    Raises DoriError for a model that predicts anything else.
    """

    def __init__(self, config: Mapping) -> None:
        self.config = config
        self.prediction_type = self.scheduler().config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise DoriError(
                f"predicts '{self.prediction_type}'; epsilon, v_prediction and flow matching are supported"
            )

    def scheduler(self) -> DDIMScheduler:
        """A fresh DDIM scheduler on the model's own schedule."""
        return ddim_scheduler(self.config)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """abar_t for t = 0 … 999."""
        return self.scheduler().alphas_cumprod

    @cached_property
    def timesteps(self) -> Tensor:
        """The timesteps of training, from little noise to much: 0 … 999."""
        return torch.arange(len(self.alphas_cumprod))

    def alpha_sigma(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) of timesteps (B,), shaped (B, 1, …) to broadcast over `like`."""
        return alpha_sigma(self.alphas_cumprod, timesteps, like)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model is trained to return: eps, or v."""
        if self.prediction_type == "epsilon":
            return noise
        return velocity(latents, noise, *self.alpha_sigma(timesteps, latents))

    def as_epsilon(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise inside a raw output."""
        if self.prediction_type == "epsilon":
            return output
        return epsilon_from_velocity(output, noisy, *self.alpha_sigma(timesteps, noisy))

    def comparable(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """What predictions are compared in: eps."""
        return self.as_epsilon(output, noisy, timesteps)


class Flow:
    """alpha = 1 - s, sigma = s; the model predicts the velocity eps - x_0 (Esser et al. 2024, SD3).

    Timesteps are the scheduler's own, t = 1000 s, and need not be whole. Those of training are diffusers'
    grid of 1000 with the model's shift, so drawing them alike gives more of the noisy ones, as SD3's training
    did; its log-normal weighting is not repeated. Raises DoriError for a shift that follows the image size.
    """

    prediction_type = "flow"

    def __init__(self, config: Mapping) -> None:
        self.config = config
        odd = [k for k in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling") if config.get(k)]
        if odd:
            raise DoriError(f"samples with {', '.join(odd)}; SD3's fixed shift is supported")

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """A fresh Euler scheduler with the model's own shift."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.config)

    @cached_property
    def timesteps(self) -> Tensor:
        """The timesteps of training, from little noise to much, shifted: (1000,), above 0 and up to 1000."""
        return self.scheduler().timesteps.flip(0)

    def alpha_sigma(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - s, s) of timesteps (B,), shaped (B, 1, …) to broadcast over `like`."""
        s = (timesteps.to(like.device) / self.config["num_train_timesteps"]).to(like.dtype)
        s = s.view(-1, *[1] * (like.ndim - 1))
        return 1 - s, s

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model is trained to return: eps - x_0, the same at all timesteps."""
        return noise - latents

    def as_epsilon(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise inside a raw output: eps = x_t + (1 - s) v."""
        alpha, _ = self.alpha_sigma(timesteps, noisy)
        return noisy + alpha * output

    def comparable(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """What predictions are compared in: v, as sampling starts at s = 1, where eps is x_t whatever the
        model says."""
        return output


def noising(scheduler: SchedulerMixin) -> Diffusion | Flow:
    """By the scheduler of a pipeline. Raises DoriError for one whose noise is neither."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return Flow(scheduler.config)
    if "sigma_data" in scheduler.config:
        raise DoriError(
            f"is sampled by {type(scheduler).__name__}; models of the EDM family are not supported"
        )
    return Diffusion(scheduler.config)

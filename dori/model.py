"""One small adapter over a text-to-image pipeline, so that no algorithm asks which model it has."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dori.architectures import architecture
from dori.errors import DoriError
from dori.hooks import recorded
from dori.loading import Defaults, load_pipeline, read_defaults, resolve_device, resolve_dtype
from dori.noising import noising
from dori.sampling import Callback, ddim, guided
from dori.store import weights_hash

# Pixels sampled at once where the caller does not say: 64 images of 64 px on a CPU, 8 of 512 px on a GPU.
PIXELS_AT_ONCE = {"cpu": 64 * 64**2, "cuda": 8 * 512**2, "mps": 2 * 512**2}


class TextToImageModel:
    """Encode, predict, target, sample, and the layers the paper looks into, for SD v1, v2, SDXL and SD3.

    Images are (B, 3, H, W) in [0, 1]; latents (B, C, h, w), already scaled, C the autoencoder's; prompt
    embeddings (B, T, D), all that the text encoders tell the denoiser, with a row for the pooled vector
    where there is one (`dori.architectures`). `unet` is the denoiser; in SD3 it is a transformer. Weights are
    frozen and in evaluation mode. Raises DoriError for a pipeline that is not supported, saying why.
    """

    def __init__(
        self, pipe: DiffusionPipeline, *, defaults: Defaults, name: str, device: torch.device
    ) -> None:
        try:
            self.architecture = architecture(type(pipe).__name__)(pipe)
            self.noising = noising(pipe.scheduler)
        except DoriError as error:
            raise DoriError(f"model '{name}' cannot be used: {error}") from None
        self.pipe, self.defaults, self.name, self.device = pipe.to(device), defaults, name, device
        self.parts = [part.eval().requires_grad_(False) for part in self.architecture.modules()]
        self.unet, self.vae = self.architecture.unet, pipe.vae
        if not self.architecture.half_safe and pipe.vae.config.force_upcast and pipe.vae.dtype == torch.half:
            pipe.vae.to(torch.float32)  # SDXL's overflows in float16
        self.text_encoder, self.tokenizer = pipe.text_encoder, pipe.tokenizer
        self.prediction_type = self.noising.prediction_type

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
    ) -> "TextToImageModel":
        """Load a bundled or known model by name, a diffusers directory, a .safetensors file or a Hub id.

        `dtype` is float32 unless given: half precision moves scores near a threshold. Raises DoriError.
        """
        where, precision = resolve_device(device), resolve_dtype(dtype)  # before anything is fetched
        pipe, name = load_pipeline(model, dtype=precision)
        return cls(pipe, defaults=read_defaults(model, pipe), name=name, device=where)

    def new_scheduler(self):
        """A fresh DDIM scheduler (flow matching: Euler) on the model's noise schedule; it carries state, so
        each run has its own."""
        return self.noising.scheduler()

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar_t for t = 0 … 999, of diffusion models alone."""
        return self.noising.alphas_cumprod

    @property
    def timesteps(self) -> Tensor:
        """The timesteps of training, (1000,), from little noise to much, to be drawn from alike."""
        return self.noising.timesteps

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision of the denoiser."""
        return next(self.unet.parameters()).dtype

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (16 hex digits) over weights and noise schedule: results belong to them, not to a path.

        Computed once. Whoever changes weights in place for longer than a context wraps the pipeline anew.
        """
        schedule = {k: v for k, v in self.new_scheduler().config.items() if not k.startswith("_")}
        return weights_hash(self.parts, json.dumps(schedule, sort_keys=True))

    @property
    def identity(self) -> dict[str, str | int]:
        """What about the model decides a result, for the keys of stored records."""
        size, device = self.defaults.image_size, self.device.type
        return {"model": self.fingerprint, "dtype": str(self.dtype), "device": device, "size": size}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """All that the text encoders say, (B, T, D); long prompts are cut at the model's T tokens."""
        return self.architecture.encode(prompts, self.device)

    @cached_property
    def unconditional(self) -> Tensor:
        """What guidance leads away from, (1, T, D): the empty prompt's embedding; in SDXL, zeros."""
        with torch.no_grad():
            return self.architecture.unconditional(self.device)

    def tokens(self, prompt_embeds: Tensor) -> Tensor:
        """The rows of an embedding that are tokens: without the pooled vector."""
        return self.architecture.tokens(prompt_embeds)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Scaled posterior mean of the autoencoder: the deterministic x_0 that attacks aim at."""
        posterior = self.vae.encode((images * 2 - 1).to(self.device, self.vae.dtype)).latent_dist
        shift, scale = self.vae.config.get("shift_factor") or 0, self.vae.config.scaling_factor
        return ((posterior.mean - shift) * scale).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [0, 1], float32."""
        shift, scale = self.vae.config.get("shift_factor") or 0, self.vae.config.scaling_factor
        latents = latents.to(self.device, self.dtype) / scale + shift
        images = self.vae.decode(latents.to(self.vae.dtype)).sample
        return (images / 2 + 0.5).clamp(0, 1).float()

    def initial_latents(self, seeds: Sequence[int]) -> Tensor:
        """x_T ~ N(0, I), one CPU generator per image: noise depends on its seed, not on batch or device."""
        side = self.defaults.image_size // self.pipe.vae_scale_factor
        shape = (self.unet.config.in_channels, side, side)
        noise = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(int(s))) for s in seeds]
        return torch.stack(noise).to(self.device, self.dtype)

    def alpha_sigma(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) of timesteps (B,), shaped (B, 1, …) to broadcast over `like`."""
        return self.noising.alpha_sigma(timesteps, like)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps, timesteps (B,)."""
        alpha, sigma = self.alpha_sigma(timesteps, latents)
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` was trained to return: eps, v, or in flow matching eps - x_0."""
        return self.noising.target(latents, noise, timesteps)

    def predict(self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Raw output of the denoiser; differentiable in the embedding, the pooled vector included."""
        return self.predict_by(self.unet, noisy, timesteps, prompt_embeds)

    def predict_by(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """`predict` of another denoiser of the same kind, as a frozen copy of this one.

        The embedding may be more precise than the model, as a search leaves it.
        """
        embeds = prompt_embeds.to(noisy.dtype)
        return self.architecture.call(unet, noisy, timesteps.to(self.device), embeds)

    def predict_both(self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """(unconditional, conditional) outputs from one call over [uncond; cond]."""
        empty = self.unconditional.expand(len(noisy), -1, -1)
        both = self.predict(torch.cat([noisy, noisy]), timesteps.repeat(2), torch.cat([empty, prompt_embeds]))
        return tuple(both.chunk(2))

    def as_epsilon(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise prediction inside a raw output, whatever the model predicts."""
        return self.noising.as_epsilon(output, noisy, timesteps)

    def comparable(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """A raw output as predictions are compared: in eps; in v for flow matching, where eps is x_t itself
        at the first step of sampling."""
        return self.noising.comparable(output, noisy, timesteps)

    def guidance_difference(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """eps_y - eps_0, the direction in which the prompt pulls (Wen et al. 2024), (B, C, h, w).

        As `comparable` has it: v_y - v_0 for flow matching, a norm of another size.
        """
        empty, cond = self.predict_both(latents, timesteps, prompt_embeds)
        return self.comparable(cond, latents, timesteps) - self.comparable(empty, latents, timesteps)

    @torch.no_grad()
    def sample(
        self,
        prompt_embeds: Tensor,
        seeds: Sequence[int],
        *,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        batch_size: int | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """DDIM (flow matching: Euler) images (B, 3, H, W) in [0, 1] on the CPU, one per embedding and seed.

        Guidance 1 uses the conditional output alone, at half the cost. `batch_size` never changes the noise.
        """
        if len(prompt_embeds) != len(seeds):
            raise ValueError(f"{len(prompt_embeds)} embeddings for {len(seeds)} seeds")
        g = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        steps = num_inference_steps or self.defaults.num_inference_steps
        size = batch_size or self.at_once()
        images = []
        for embeds, part in zip(prompt_embeds.split(size), _chunks(seeds, size), strict=True):
            latents = ddim(
                self._denoiser(embeds, g),
                self.initial_latents(part),
                self.new_scheduler(),
                num_inference_steps=steps,
                callback=callback,
            )
            images.append(self.decode(latents).cpu())
        return torch.cat(images)

    def _denoiser(self, prompt_embeds: Tensor, guidance_scale: float):
        """x_t, t -> guided output, for one batch of embeddings."""
        if guidance_scale == 1:
            return lambda x, t: self.predict(x, t, prompt_embeds)
        return lambda x, t: guided(*self.predict_both(x, t, prompt_embeds), guidance_scale)

    def value_layers(self, *, up: bool = False) -> dict[str, nn.Linear]:
        """Value projections of the text in the down blocks and the middle: NeMo's seven in SD v1.

        With `up` those of the up blocks as well, sixteen in all. SD3 has neither: those of all blocks.
        """
        return self._layers(lambda name: self.architecture.is_value(name, up=up))

    def ffn_layers(self) -> dict[str, nn.Linear]:
        """Second feed-forward matrices of every transformer block: Wanda's sixteen layers in SD v1."""
        return self._layers(self.architecture.is_ffn)

    def cross_attention(self) -> list[str]:
        """Names of the cross-attention layers. Raises DoriError for a model that has joint attention."""
        if self.architecture.joint:
            raise DoriError(
                f"model '{self.name}' has no cross-attention that could be told another text: text and image "
                "share one attention"
            )
        return [name.removesuffix(".to_v") for name in self.value_layers(up=True)]

    @torch.no_grad()
    def value_activity(self, prompt_embeds: Tensor, *, up: bool = False) -> dict[str, Tensor]:
        """Mean over the tokens of |value| of each neuron of the value layers: layer -> (B, d).

        Cross-attention projects the embedding itself, so the layers alone say it. In SD3 what is projected
        has gone through blocks that see the image: a pass at the first timestep, from the noise of seed 0.
        """
        layers = self.value_layers(up=up)
        if not self.architecture.joint:
            tokens = self.tokens(prompt_embeds)
            return {name: layer(tokens.to(layer.weight)).abs().mean(1) for name, layer in layers.items()}
        scheduler, size = self.new_scheduler(), self.at_once()
        scheduler.set_timesteps(self.defaults.num_inference_steps)
        with recorded(self.unet, layers, reduce=lambda values: values.abs().mean(1)) as found:
            for part in prompt_embeds.to(self.dtype).split(size):
                noise = self.initial_latents([0]).expand(len(part), -1, -1, -1)
                self.predict(noise, scheduler.timesteps[:1].expand(len(part)), part)
        return {name: torch.cat(calls) for name, calls in found.items()}

    def at_once(self) -> int:
        """Images sampled in one batch where the caller does not say."""
        return max(1, PIXELS_AT_ONCE[self.device.type] // self.defaults.image_size**2)

    def _layers(self, wanted) -> dict[str, nn.Linear]:
        """Modules by name in the order a forward pass meets them: down, middle, up."""
        order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
        found = [(name, module) for name, module in self.unet.named_modules() if wanted(name)]
        if not found:
            raise DoriError(
                f"model '{self.name}' has no such cross-attention layers; the paper's methods need them"
            )
        return dict(sorted(found, key=lambda item: order.get(item[0].split(".")[0], 3)))


def _chunks(items: Sequence, size: int) -> list[Sequence]:
    """Consecutive slices of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]

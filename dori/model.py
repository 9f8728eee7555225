"""One small adapter over a text-to-image pipeline, so that no algorithm asks which model it has."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dori.errors import DoriError
from dori.loading import Defaults, load_pipeline, read_defaults, resolve_device
from dori.sampling import Callback, alpha_sigma, ddim, ddim_scheduler, epsilon_from_velocity, guided, velocity
from dori.store import weights_hash

# Pixels sampled at once where the caller does not say: 64 images of 64 px on a CPU, 8 of 512 px on a GPU.
PIXELS_AT_ONCE = {"cpu": 64 * 64**2, "cuda": 8 * 512**2, "mps": 2 * 512**2}


class TextToImageModel:
    """Encode, predict, target, sample, and the layers the paper looks into, for SD v1 (epsilon) and v2 (v).

    Images are (B, 3, H, W) in [0, 1]; latents (B, 4, h, w), already scaled; prompt embeddings (B, T, D).
    Weights are frozen and in evaluation mode.
    """

    def __init__(
        self, pipe: DiffusionPipeline, *, defaults: Defaults, name: str, device: torch.device
    ) -> None:
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
            if getattr(pipe, part, None) is None:
                raise DoriError(
                    f"model '{name}': its {type(pipe).__name__} has no {part}; SD v1 and v2 are supported"
                )
        self.pipe, self.defaults, self.name, self.device = pipe.to(device), defaults, name, device
        self.unet, self.vae = pipe.unet.eval().requires_grad_(False), pipe.vae.eval().requires_grad_(False)
        self.text_encoder, self.tokenizer = pipe.text_encoder.eval().requires_grad_(False), pipe.tokenizer
        self.prediction_type = self.new_scheduler().config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise DoriError(
                f"model '{name}' predicts '{self.prediction_type}'; epsilon and v_prediction are supported"
            )

    @classmethod
    def load(
        cls, model: str | Path, *, device: str | torch.device = "auto", dtype: torch.dtype | None = None
    ) -> "TextToImageModel":
        """Load "testbed", "twin", a diffusers directory, a .safetensors file or a Hub id.

        `dtype` is float32 unless given: half precision moves scores near a threshold. Raises DoriError.
        """
        where = resolve_device(device)  # first: a wrong device should not cost a download
        pipe, name = load_pipeline(model, dtype=dtype or torch.float32)
        return cls(pipe, defaults=read_defaults(model, pipe), name=name, device=where)

    def new_scheduler(self):
        """A fresh DDIM scheduler on the model's noise schedule; it carries state, so each run has its own."""
        return ddim_scheduler(self.pipe.scheduler.config)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """abar_t for t = 0 … 999."""
        return self.new_scheduler().alphas_cumprod

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision of the UNet."""
        return next(self.unet.parameters()).dtype

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (16 hex digits) over weights and noise schedule: results belong to them, not to a path.

        Computed once. Whoever changes weights in place for longer than a context wraps the pipeline anew.
        """
        schedule = {k: v for k, v in self.new_scheduler().config.items() if not k.startswith("_")}
        return weights_hash([self.unet, self.vae, self.text_encoder], json.dumps(schedule, sort_keys=True))

    @property
    def identity(self) -> dict[str, str | int]:
        """What about the model decides a result, for the keys of stored records."""
        size, device = self.defaults.image_size, self.device.type
        return {"model": self.fingerprint, "dtype": str(self.dtype), "device": device, "size": size}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Last hidden state of the text encoder, (B, T, D); long prompts are cut at the model's T tokens."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = (
            tokens.attention_mask.to(self.device)
            if getattr(self.text_encoder.config, "use_attention_mask", False)
            else None
        )
        return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]

    @cached_property
    def unconditional(self) -> Tensor:
        """Embedding of the empty prompt, (1, T, D)."""
        return self.encode_prompts([""])

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Scaled posterior mean of the autoencoder: the deterministic x_0 that attacks aim at."""
        posterior = self.vae.encode((images * 2 - 1).to(self.device, self.dtype)).latent_dist
        return posterior.mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [0, 1], float32."""
        images = self.vae.decode(latents.to(self.device, self.dtype) / self.vae.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1).float()

    def initial_latents(self, seeds: Sequence[int]) -> Tensor:
        """x_T ~ N(0, I), one CPU generator per image: noise depends on its seed, not on batch or device."""
        side = self.defaults.image_size // self.pipe.vae_scale_factor
        shape = (self.unet.config.in_channels, side, side)
        noise = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(int(s))) for s in seeds]
        return torch.stack(noise).to(self.device, self.dtype)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps, timesteps (B,)."""
        alpha, sigma = alpha_sigma(self.alphas_cumprod, timesteps, latents)
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` was trained to return: eps, or v for a v-model."""
        if self.prediction_type == "epsilon":
            return noise
        return velocity(latents, noise, *alpha_sigma(self.alphas_cumprod, timesteps, latents))

    def predict(self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Raw output of the UNet (eps or v); differentiable in the embedding."""
        return self.unet(noisy, timesteps.to(self.device), encoder_hidden_states=prompt_embeds).sample

    def predict_both(self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """(unconditional, conditional) outputs from one UNet call over [uncond; cond]."""
        empty = self.unconditional.expand(len(noisy), -1, -1)
        both = self.predict(torch.cat([noisy, noisy]), timesteps.repeat(2), torch.cat([empty, prompt_embeds]))
        return tuple(both.chunk(2))

    def as_epsilon(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise prediction inside a raw output, whatever the model predicts."""
        if self.prediction_type == "epsilon":
            return output
        return epsilon_from_velocity(output, noisy, *alpha_sigma(self.alphas_cumprod, timesteps, noisy))

    def guidance_difference(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """eps_y - eps_0, the direction in which the prompt pulls (Wen et al. 2024), (B, C, h, w)."""
        empty, cond = self.predict_both(latents, timesteps, prompt_embeds)
        return self.as_epsilon(cond, latents, timesteps) - self.as_epsilon(empty, latents, timesteps)

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
        """DDIM images (B, 3, H, W) in [0, 1] on the CPU, one per embedding and seed.

        Guidance 1 uses the conditional output alone, at half the cost. `batch_size` never changes the noise.
        """
        if len(prompt_embeds) != len(seeds):
            raise ValueError(f"{len(prompt_embeds)} embeddings for {len(seeds)} seeds")
        g = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        steps = num_inference_steps or self.defaults.num_inference_steps
        size = batch_size or max(1, PIXELS_AT_ONCE[self.device.type] // self.defaults.image_size**2)
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
        """Cross-attention value projections of the down blocks and the middle: NeMo's seven in SD v1.

        With `up` those of the up blocks as well, sixteen in all.
        """
        return self._layers(
            lambda name: name.endswith("attn2.to_v") and (up or not name.startswith("up_blocks"))
        )

    def ffn_layers(self) -> dict[str, nn.Linear]:
        """Second feed-forward matrices of every transformer block: Wanda's sixteen layers in SD v1."""
        return self._layers(lambda name: name.endswith("ff.net.2"))

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

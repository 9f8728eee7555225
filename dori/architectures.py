"""What differs between the pipelines of diffusers: how a prompt is encoded, and how the denoiser is told.

The embedding is all that the text encoders tell the denoiser. In SD v1 and v2 that is one vector per
token. SDXL and SD3 also have a pooled vector of the whole prompt. It travels as the last row of the
embedding, filled up with zeros to the width of a token, and is taken off again where the denoiser is called.
So an embedding is one tensor (B, T, D) everywhere, and DoRI searches the pooled vector with the rest: left
where the prompt put it, it would still name the image, and the search would answer half of what it asks.
Limits on tokens (`Attack.free_tokens`) leave it as it is.
"""

from collections.abc import Sequence

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn
from torch.nn import functional as F

from dori.errors import DoriError


class StableDiffusion:
    """SD v1 and v2: one text encoder, a UNet with cross-attention.

    NeMo looks into the value projections of cross-attention (`attn2.to_v`), Wanda into the second
    feed-forward matrices (`ff.net.2`).
    """

    pipeline = StableDiffusionPipeline
    denoiser = "unet"  # name of the part that is attacked, pruned and trained
    encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: tuple[str, ...] = ("tokenizer",)
    not_loaded: tuple[str, ...] = ("safety_checker",)  # parts that measure or draw nothing here
    optional: tuple[str, ...] = ()
    guidance_scale, num_inference_steps = 7.0, 50  # of the paper's SD v1.4 runs
    joint = False  # whether text and image share one attention
    half_safe = True  # whether the autoencoder works in float16

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe
        self.check()

    @classmethod
    def parts(cls) -> tuple[str, ...]:
        """Components with weights, in the order of the fingerprint."""
        return (cls.denoiser, "vae", *cls.encoders)

    @property
    def unet(self) -> nn.Module:
        """The denoiser: a UNet, in SD3 a transformer."""
        return getattr(self.pipe, self.denoiser)

    def modules(self) -> list[nn.Module]:
        """All parts with weights that are there."""
        return [m for m in (getattr(self.pipe, part) for part in self.parts()) if m is not None]

    def check(self) -> None:
        """Raises DoriError for a missing part, or for a denoiser that is given more than noise and text."""
        for part in (*self.parts(), *self.tokenizers, "scheduler"):
            if part not in self.optional and getattr(self.pipe, part, None) is None:
                raise DoriError(f"its {type(self.pipe).__name__} has no {part}")
        config, vae = self.unet.config, self.pipe.vae.config
        if config.in_channels != vae.latent_channels:
            raise DoriError(
                f"its denoiser takes {config.in_channels} channels where a latent has {vae.latent_channels}: "
                "inpainting and editing models are not supported"
            )
        if config.get("time_cond_proj_dim") is not None:
            raise DoriError(
                "it is distilled: its denoiser is told the guidance scale, which is not supported"
            )
        if vae.get("latents_mean") is not None:
            raise DoriError("it scales latents channel by channel (latents_mean), which is not supported")

    def encode(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Last hidden state of the text encoder, (B, T, D); long prompts are cut at the model's T tokens."""
        tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if masked else None
        return encoder(tokens.input_ids.to(device), attention_mask=mask)[0]

    def unconditional(self, device: torch.device) -> Tensor:
        """What guidance leads away from, (1, T, D): the empty prompt."""
        return self.encode([""], device)

    def tokens(self, embeds: Tensor) -> Tensor:
        """The rows of an embedding that are tokens."""
        return embeds

    def call(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        """Raw output of a denoiser of this kind."""
        return unet(noisy, timesteps, encoder_hidden_states=embeds).sample

    def is_value(self, name: str, *, up: bool) -> bool:
        """Whether a layer of that name is one of NeMo's; with `up` also in the up blocks."""
        return name.endswith("attn2.to_v") and (up or not name.startswith("up_blocks"))

    def is_ffn(self, name: str) -> bool:
        """Whether a layer of that name is one of Wanda's."""
        return name.endswith("ff.net.2")


class Pooled(StableDiffusion):
    """What architectures with a pooled vector share; see the head of this module."""

    @property
    def width(self) -> int:
        """Numbers of the pooled vector."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """As the pipeline encodes: tokens, then the pooled vector as the last row, (B, T + 1, D)."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), **self.same_prompt(), device=device, do_classifier_free_guidance=False
        )
        return torch.cat([tokens, F.pad(pooled, (0, tokens.shape[-1] - pooled.shape[-1]))[:, None]], 1)

    def same_prompt(self) -> dict[str, None]:
        """Arguments that give all text encoders the same prompt."""
        return {"prompt_2": None}

    def check(self) -> None:
        """Also raises DoriError for a pooled vector that is wider than a token."""
        super().check()
        token = self.token_width
        if self.width > token:
            raise DoriError(f"its pooled vector has {self.width} numbers, a token {token}; not supported")

    def tokens(self, embeds: Tensor) -> Tensor:
        """The rows of an embedding that are tokens: all but the last."""
        return embeds[:, :-1]

    def pooled(self, embeds: Tensor) -> Tensor:
        """The pooled vector, (B, width)."""
        return embeds[:, -1, : self.width]


class StableDiffusionXL(Pooled):
    """SDXL: two text encoders, the second one's pooled vector, and the sizes a picture was trained at.

    The sizes (`time_ids`) are those of an uncropped image of the size that is drawn. Guidance leads away from
    zeros where the pipeline says so (`force_zeros_for_empty_prompt`), as in SDXL's training. NeMo's and
    Wanda's layers are named as in SD v1; their down blocks begin one level lower.
    """

    pipeline = StableDiffusionXLPipeline
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    not_loaded = ()
    guidance_scale, num_inference_steps = 5.0, 50  # the pipeline's
    half_safe = False

    @property
    def width(self) -> int:
        """Numbers of the pooled vector, which is the second encoder's."""
        return self.pipe.text_encoder_2.config.projection_dim

    @property
    def token_width(self) -> int:
        return self.unet.config.cross_attention_dim

    def unconditional(self, device: torch.device) -> Tensor:
        """What guidance leads away from, (1, T + 1, D): zeros or the empty prompt, as the pipeline says."""
        empty = self.encode([""], device)
        return torch.zeros_like(empty) if self.pipe.config.force_zeros_for_empty_prompt else empty

    def call(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        """Raw output of SDXL's UNet, told the pooled vector and the sizes of an uncropped image."""
        height, width = (n * self.pipe.vae_scale_factor for n in noisy.shape[-2:])
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=embeds.dtype, device=embeds.device)
        told = {"text_embeds": self.pooled(embeds), "time_ids": ids.expand(len(noisy), -1)}
        tokens = self.tokens(embeds)
        return unet(noisy, timesteps, encoder_hidden_states=tokens, added_cond_kwargs=told).sample


class StableDiffusion3(Pooled):
    """SD3 and 3.5: two CLIP encoders and T5 (optional), a transformer whose attention joins text and image.

    There is no cross-attention: text has a stream of its own through the blocks. NeMo's layers are its value
    projections (`attn.add_v_proj`) of every block, as there are no down and up blocks; what they say depends
    on the noise, too, so it is read off in a pass at the first timestep. Wanda's layers are the second
    feed-forward matrices of both streams (`ff.net.2`, `ff_context.net.2`). Without T5 its rows are zeros,
    as in the pipeline.
    """

    pipeline = StableDiffusion3Pipeline
    denoiser = "transformer"
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    not_loaded = ()
    optional = ("text_encoder_3", "tokenizer_3")
    guidance_scale, num_inference_steps = 7.0, 28  # the pipeline's
    joint = True

    @property
    def width(self) -> int:
        """Numbers of the pooled vector, that of both CLIP encoders."""
        return self.unet.config.pooled_projection_dim

    @property
    def token_width(self) -> int:
        return self.unet.config.joint_attention_dim

    def same_prompt(self) -> dict[str, None]:
        """Arguments that give all three text encoders the same prompt."""
        return {"prompt_2": None, "prompt_3": None}

    def call(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        """Raw output of the transformer, told the pooled vector."""
        return unet(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=self.tokens(embeds),
            pooled_projections=self.pooled(embeds),
        ).sample

    def is_value(self, name: str, *, up: bool) -> bool:
        """Whether a layer is a value projection of the text; `up` has no meaning here."""
        return name.endswith("attn.add_v_proj")

    def is_ffn(self, name: str) -> bool:
        """Whether a layer is a second feed-forward matrix, of the image's stream or the text's."""
        return name.endswith(("ff.net.2", "ff_context.net.2"))


ARCHITECTURES = {a.pipeline.__name__: a for a in (StableDiffusion, StableDiffusionXL, StableDiffusion3)}


def architecture(pipeline: str) -> type[StableDiffusion]:
    """By the name of a pipeline's class. Raises DoriError for one that is not supported."""
    if pipeline not in ARCHITECTURES:
        raise DoriError(f"it is a {pipeline}; {', '.join(ARCHITECTURES)} are supported")
    return ARCHITECTURES[pipeline]

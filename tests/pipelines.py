"""Small pipelines of SD v2, SDXL and SD3 built from configs: random weights of seed 0, 16 px, no download."""

import torch
from conftest import BETAS, TOKENS, make_tokenizer
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from dori.loading import Defaults
from dori.model import TextToImageModel

NO_CONV = ("use_quant_conv", "use_post_quant_conv")  # SD3's autoencoder has none


def clip_config(tokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def make_vae(channels: int, **more) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=4,
        sample_size=16, **more,
    )  # fmt: skip


def make_sd2() -> StableDiffusionPipeline:
    """SD v2's topology: heads by level, linear projections, OpenCLIP's activation, v-prediction."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 16, 16), layers_per_block=2, norm_num_groups=4,
        attention_head_dim=(2, 2, 4, 4), use_linear_projection=True, cross_attention_dim=20,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip
    text = clip_config(tokenizer, 20)
    text.hidden_act = "gelu"
    return StableDiffusionPipeline(
        vae=make_vae(4, scaling_factor=0.5), unet=unet, text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        scheduler=DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
            prediction_type="v_prediction",
        ),
    )  # fmt: skip


def make_sdxl(*, zeros: bool = True) -> StableDiffusionXLPipeline:
    """SDXL's topology: three levels, cross-attention in the lower two, tokens of 16 + 20 numbers."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 16), layers_per_block=2, norm_num_groups=4,
        attention_head_dim=(2, 2, 4), transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=36, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=make_vae(4, scaling_factor=0.13), unet=unet,
        text_encoder=CLIPTextModel(clip_config(tokenizer, 16)), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, 20)), tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip


def make_t5_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", "red", "blue", "boat", "house", "dawn"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_sd3(*, t5: bool = True) -> StableDiffusion3Pipeline:
    """SD3's topology: three joint blocks (the last without text output), 16 channels, shift 3."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=40, pooled_projection_dim=36,
        out_channels=16, pos_embed_max_size=8, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    encoder = None
    if t5:
        encoder = T5EncoderModel(
            T5Config(vocab_size=8, d_model=40, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        )
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(16, scaling_factor=1.5, shift_factor=0.06, **dict.fromkeys(NO_CONV, False)),
        text_encoder=CLIPTextModelWithProjection(clip_config(tokenizer, 16)), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, 20)), tokenizer_2=tokenizer,
        text_encoder_3=encoder, tokenizer_3=make_t5_tokenizer() if t5 else None,
    )  # fmt: skip


def adapt(pipe, name: str = "tiny") -> TextToImageModel:
    pipe.set_progress_bar_config(disable=True)
    return TextToImageModel(pipe, defaults=Defaults(3.0, 5, 16), name=name, device=torch.device("cpu"))

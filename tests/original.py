"""A pipeline of SD v1 as the original code's one file: weights under the names CompVis gave them."""

from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
RESNET |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
STEM = {"time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2."}
STEM |= {"conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2."}
ATTENTION = {"group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}


def _unet_places() -> dict[str, str]:
    """Places of diffusers' UNet -> places of the original one, for four levels of two layers."""
    places = dict(STEM) | {"mid_block.attentions.0.": "middle_block.1."}
    places |= {f"mid_block.resnets.{j}.": f"middle_block.{2 * j}." for j in range(2)}
    for i in range(4):
        for j in range(2):
            places[f"down_blocks.{i}.resnets.{j}."] = f"input_blocks.{3 * i + j + 1}.0."
            places[f"down_blocks.{i}.attentions.{j}."] = f"input_blocks.{3 * i + j + 1}.1."
        for j in range(3):
            places[f"up_blocks.{i}.resnets.{j}."] = f"output_blocks.{3 * i + j}.0."
            places[f"up_blocks.{i}.attentions.{j}."] = f"output_blocks.{3 * i + j}.1."
        places[f"down_blocks.{i}.downsamplers.0.conv."] = f"input_blocks.{3 * (i + 1)}.0.op."
        places[f"up_blocks.{i}.upsamplers.0."] = f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}."
    return places


def _unet(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    places, found = _unet_places(), {}
    for name, value in weights.items():
        place = next(p for p in places if name.startswith(p))
        rest = name.removeprefix(place)
        if ".resnets." in place:
            part, _, kind = rest.rpartition(".")
            rest = f"{RESNET[part]}.{kind}"
        found[f"model.diffusion_model.{places[place]}{rest}"] = value
    return found


def _vae(weights: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    found = {}
    for name, value in weights.items():
        for i in range(levels):
            up = f"decoder.up.{levels - 1 - i}."
            name = name.replace(f"encoder.down_blocks.{i}.resnets.", f"encoder.down.{i}.block.")
            name = name.replace(f"encoder.down_blocks.{i}.downsamplers.0.", f"encoder.down.{i}.downsample.")
            name = name.replace(f"decoder.up_blocks.{i}.resnets.", f"{up}block.")
            name = name.replace(f"decoder.up_blocks.{i}.upsamplers.0.", f"{up}upsample.")
        for i in range(2):
            name = name.replace(f"mid_block.resnets.{i}.", f"mid.block_{i + 1}.")
        if "mid_block.attentions.0." in name:
            name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
            for ours, theirs in ATTENTION.items():
                name = name.replace(ours, theirs)
            value = value[:, :, None, None] if value.ndim == 2 else value
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        found[f"first_stage_model.{name}"] = value
    return found


def save_original(pipe: StableDiffusionPipeline, path: Path) -> None:
    """Write a pipeline as the original code's checkpoint."""
    text = pipe.text_encoder.state_dict()
    names = {k: k if k.startswith("text_model.") else f"text_model.{k}" for k in text}
    weights = _unet(pipe.unet.state_dict())
    weights |= _vae(pipe.vae.state_dict(), len(pipe.vae.config.block_out_channels))
    weights |= {f"cond_stage_model.transformer.{names[k]}": v for k, v in text.items()}
    save_file({k: v.clone().contiguous() for k, v in weights.items()}, path)

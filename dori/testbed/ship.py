"""Write `data/testbed` from the trained parts: pipelines, CLIP, descriptor, benchmarks, pictures, log and
hashes."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from dori.testbed import dataset, denoiser, descriptor, text
from dori.testbed.canvas import IMAGE_SIZE
from dori.testbed.card import write_card
from dori.testbed.train import PARTS, Workshop

DESCRIPTOR_NAME = "dori-sscd-64"
PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "kornia", "numpy")


def ship(workshop: Workshop, out: Path) -> None:
    """Write everything below `out`; what stands there is replaced file by file."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("model", "twin"):
        write_pipeline(workshop, name, out / name)
    _half(workshop.clip).save_pretrained(out / "clip")
    _load_as_float32(out / "clip" / "config.json")
    workshop.tokenizer.save_pretrained(out / "clip")
    write_descriptor(workshop, out / "descriptor")
    write_benchmarks(workshop, out)
    write_log(workshop, out / "training_log.csv")
    write_provenance(workshop, out)
    names = ("vae", "decoder", "clip", "descriptor", "trunk", "model", "twin")
    modules = {name: getattr(workshop, name) for name in names}
    write_card(
        out, {n: (type(m).__name__, sum(p.numel() for p in m.parameters())) for n, m in modules.items()}
    )
    write_hashes(out)


def scheduler() -> DDIMScheduler:
    """The sampler that Stable Diffusion v1's settings give with DDIM (methods of NeMo and of the Dori
    paper)."""
    return DDIMScheduler(
        **denoiser.SD_SCHEDULE, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )


def write_pipeline(workshop: Workshop, name: str, out: Path) -> None:
    """A plain diffusers directory in half precision, with the model's own defaults in `dori.json`."""
    pipeline = StableDiffusionPipeline(
        vae=_half(workshop.decoder),
        text_encoder=_half(text.text_encoder(workshop.clip)),
        tokenizer=workshop.tokenizer,
        unet=_half(getattr(workshop, name)),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    _load_as_float32(out / "text_encoder" / "config.json")
    recipe = workshop.recipe
    defaults = {
        "name": "testbed" if name == "model" else name,
        "guidance_scale": recipe.guidance_scale,
        "num_inference_steps": recipe.num_inference_steps,
        "image_size": IMAGE_SIZE,
    }
    (out / "dori.json").write_text(json.dumps(defaults, indent=1) + "\n")


def _load_as_float32(config: Path) -> None:
    """Transformers loads in the precision its config names; diffusers loads in float32. Make them agree."""
    settings = json.loads(config.read_text())
    for part in (settings, settings.get("text_config", {}), settings.get("vision_config", {})):
        if "dtype" in part:
            part["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _half(module: nn.Module) -> nn.Module:
    """A copy in half precision."""
    return copy.deepcopy(module).half()


def write_descriptor(workshop: Workshop, out: Path) -> None:
    """Weights, calibration, and the descriptors of every regular training picture (for nearest
    neighbours)."""
    out.mkdir(exist_ok=True)
    net, recipe = workshop.descriptor, workshop.recipe
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, out / "descriptor.safetensors")
    calibration = descriptor.calibrate(net, *dataset.calibration_set(recipe), recipe)
    config = {
        "name": DESCRIPTOR_NAME,
        "dim": recipe.descriptor_dim,
        "width": recipe.descriptor_width,
        "image_size": IMAGE_SIZE,
        "threshold": calibration["threshold"],
        "calibration": calibration,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(
        {"descriptors": descriptor.embed(net, workshop.regular[0]).half()}, out / "train_index.safetensors"
    )


def write_benchmarks(workshop: Workshop, out: Path) -> None:
    """`memorized.csv`, `regular.csv` and their pictures as PNG."""
    for name, (images, table) in (
        ("memorized", workshop.memorized),
        ("regular", dataset.heldout(workshop.recipe)),
    ):
        table.to_csv(out / f"{name}.csv", index=False)
        (out / "images" / name).mkdir(parents=True, exist_ok=True)
        for image, path in zip(images, table["image"], strict=True):
            Image.fromarray(image).save(out / path, optimize=True)


def write_log(workshop: Workshop, path: Path) -> None:
    """The training log of all parts, thinned to at most 200 rows a part: part, step, seconds, loss and its
    shares."""
    logs = []
    for part in PARTS:
        source = workshop.run_dir / f"{part}.csv"
        if source.exists():
            log = pd.read_csv(source)
            bins = np.arange(len(log)) * 200 // max(200, len(log))
            thin = log.groupby(bins).mean(numeric_only=True)
            thin[["step", "seconds"]] = log.groupby(bins)[["step", "seconds"]].max()
            logs.append(thin.assign(part=part))
    table = pd.concat(logs, ignore_index=True)
    first = ["part", "step", "seconds", "loss"]
    table[[*first, *(c for c in table if c not in first)]].round(5).to_csv(path, index=False)


def write_provenance(workshop: Workshop, out: Path) -> None:
    """Recipe, versions, device and wall time of each part."""
    log = pd.read_csv(out / "training_log.csv")
    last = log.groupby("part", sort=False)[["seconds", "step"]].max()
    record = {
        "command": "dori testbed train",
        "recipe": asdict(workshop.recipe),
        "seconds": last["seconds"].round(1).to_dict(),
        "steps": last["step"].astype(int).to_dict(),
        "device": workshop.device,
        "threads": torch.get_num_threads(),
        "versions": {p: version(p) for p in PACKAGES},
    }
    (out / "provenance.json").write_text(json.dumps(record, indent=1) + "\n")


def write_hashes(out: Path) -> None:
    """`SHA256SUMS` of every file below `out`, checked by `sha256sum -c`."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(out).as_posix()}" for p in files]
    (out / "SHA256SUMS").write_text("\n".join(lines) + "\n")

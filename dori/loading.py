"""From a name, a directory or a file to a diffusers pipeline, or to one clear line about why not."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors import SafetensorError, safe_open

from dori import parallel
from dori.errors import DoriError

BUNDLED = {"testbed": "model", "twin": "twin"}  # name -> folder of data/testbed
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Defaults:
    """How a model is meant to be sampled; the values are those of the paper's SD v1.4 runs."""

    guidance_scale: float = 7.0
    num_inference_steps: int = 50
    image_size: int = 512  # pixels, square


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """`auto` takes what the launcher gave this process, else CUDA where there is one.

    Raises DoriError for a device unknown here or absent.
    """
    if str(name) == "auto":
        return parallel.device() or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DoriError(f"unknown device '{name}': use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DoriError(
            f"device '{name}' asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DoriError("device 'mps' asked for, but this machine has none; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DoriError(f"unknown device '{name}': use auto, cpu, cuda, cuda:N or mps")
    return device


def load_pipeline(model: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[DiffusionPipeline, str]:
    """Load `model`: "testbed" or "twin", a local directory, a .safetensors file, or a Hub id.

    Returns the pipeline on the CPU and a short name. Only safetensors are read: pickles can run code.
    """
    _quiet()
    path = bundled_path(model) or Path(model).expanduser()
    if path.is_dir():
        _check_directory(path)
        return _read(StableDiffusionPipeline.from_pretrained, path, dtype), _name(path)
    if path.is_file():
        _check_file(path)
        return _read(StableDiffusionPipeline.from_single_file, path, dtype), path.stem
    if HUB_ID.fullmatch(str(model)) and not str(model).startswith("."):
        return _read(DiffusionPipeline.from_pretrained, model, dtype), str(model)
    raise DoriError(
        f"model '{model}' is not here: give a directory, a .safetensors file, a Hub id, testbed or twin"
    )


def read_defaults(model: str | Path, pipe: DiffusionPipeline) -> Defaults:
    """The model's own settings from its `dori.json`; else the paper's, at the UNet's image size."""
    path = (bundled_path(model) or Path(model)) / "dori.json"
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    if not path.is_file():
        return Defaults(image_size=size)
    try:
        known = {k: v for k, v in json.loads(path.read_text()).items() if k in Defaults.__dataclass_fields__}
    except (ValueError, AttributeError) as error:
        raise DoriError(f"{path}: not a JSON object ({error})") from None
    return Defaults(**{"image_size": size, **known})


def bundled_path(model: str | Path) -> Path | None:
    """Where the bundled model of that name lies, or None for any other name."""
    if str(model) not in BUNDLED:
        return None
    from dori.testbed.paths import TESTBED  # here, so that foreign models need no testbed

    return TESTBED / BUNDLED[str(model)]


def _name(path: Path) -> str:
    """The `name` of dori.json, else the directory's."""
    try:
        return str(json.loads((path / "dori.json").read_text())["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return path.resolve().name


def _check_directory(path: Path) -> None:
    """A diffusers directory needs its index, a UNet and whole safetensors files."""
    if not (path / "unet" / "config.json").is_file():
        raise DoriError(
            f"{path}: no UNet (unet/config.json is missing); give a diffusers Stable Diffusion directory"
        )
    if not (path / "model_index.json").is_file():
        raise DoriError(
            f"{path}: no model_index.json; --model takes the directory that save_pretrained wrote"
        )
    for part in ("unet", "vae", "text_encoder"):
        files = sorted((path / part).glob("*.safetensors"))
        if not files:
            raise DoriError(
                f"{path / part}: no .safetensors weights; save the pipeline again with save_pretrained"
            )
        for file in files:
            _check_file(file)


def _check_file(path: Path) -> None:
    """Refuse pickles; reading the header tells whether the file is whole (its length is written there)."""
    if path.suffix in PICKLES:
        raise DoriError(
            f"{path}: pickle checkpoints can run code and are not read; convert it to safetensors first"
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise DoriError(
            f"{path}: not a whole safetensors file ({error}); copy or download it again"
        ) from None


def _read(loader, source: str | Path, dtype: torch.dtype) -> DiffusionPipeline:
    """Call a diffusers loader and turn what it throws into one line."""
    try:
        pipe = loader(str(source), dtype=dtype, use_safetensors=True, safety_checker=None)
    except Exception as error:  # diffusers, transformers and the Hub client raise a dozen kinds of their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DoriError(
            f"model '{source}' cannot be loaded ({first[:200]}); check name, network and token"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _quiet() -> None:
    """Loading bars and advice belong to no page of a book; errors still come through."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

"""From a name, a directory or a file to a diffusers pipeline, or to one clear line about why not."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import diffusers
import huggingface_hub
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint
from pydantic import PositiveInt, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from dori import hub, known, parallel
from dori.architectures import StableDiffusion, architecture
from dori.errors import DoriError, first_line

BUNDLED = {"testbed": "model", "twin": "twin"}  # name -> folder of data/testbed
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What diffusers calls a kind of checkpoint -> the known model that has its configuration.
LOOKS_LIKE = {"v1": "sd-v1.5", "v2": "sd-v2.1", "xl_base": "sdxl", "sd3": "sd3-medium"}
LOOKS_LIKE |= {"sd35_medium": "sd3.5-medium"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # that may give a pipeline its parts


@dataclass(frozen=True)
class Defaults:
    """How a model is meant to be sampled; the values are those of the paper's SD v1.4 runs."""

    guidance_scale: float = 7.0
    num_inference_steps: PositiveInt = 50
    image_size: PositiveInt = 512  # pixels, square


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


def resolve_dtype(name: str | torch.dtype = "float32") -> torch.dtype:
    """A precision of weights by name. Raises DoriError for one that models are not run in."""
    found = DTYPES.get(str(name).removeprefix("torch."))
    if found is None:
        raise DoriError(f"unknown dtype '{name}': use {', '.join(DTYPES)}")
    return found


def load_pipeline(model: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[DiffusionPipeline, str]:
    """Load `model`: a bundled or known one by name, a local directory, a .safetensors file, or a Hub id.

    Known models (`dori.known`) are read at their pinned revision, others at `main`. Returns the pipeline on
    the CPU and a short name. Only safetensors are read: pickles can run code. Raises DoriError.
    """
    _quiet()
    path = bundled_path(model) or Path(model).expanduser()
    if path.is_dir():
        return _from_directory(path, dtype), _name(path)
    if path.is_file():
        return _from_file(path, dtype), path.stem
    found = known.find(str(model))
    if found is not None:
        return _from_directory(hub.fetch(found.repository, found.revision), dtype), found.repository
    if HUB_ID.fullmatch(str(model)) and not str(model).startswith("."):
        return _from_directory(hub.fetch(str(model)), dtype), str(model)
    raise DoriError(
        f"model '{model}' is not here: give a directory, a .safetensors file, a Hub id, or a name that "
        "`dori models` lists"
    )


def read_defaults(model: str | Path, pipe: DiffusionPipeline) -> Defaults:
    """The model's own settings from its `dori.json`; else those of `dori.known`, else those of its
    architecture, at the denoiser's image size."""
    kind, path = architecture(type(pipe).__name__), (bundled_path(model) or Path(model)) / "dori.json"
    size = getattr(pipe, kind.denoiser).config.sample_size * pipe.vae_scale_factor
    own = {"guidance_scale": kind.guidance_scale, "num_inference_steps": kind.num_inference_steps}
    own["image_size"] = size
    if not path.is_file():
        found = known.find(str(model))
        return Defaults(**({k: getattr(found, k) for k in own} if found else own))
    try:
        said = {k: v for k, v in json.loads(path.read_text()).items() if k in Defaults.__dataclass_fields__}
    except (ValueError, AttributeError) as error:
        raise DoriError(f"{path}: not a JSON object ({error})") from None
    try:
        return TypeAdapter(Defaults).validate_python({**own, **said})
    except ValidationError as error:
        first = error.errors()[0]
        raise DoriError(f"{path}: {first['loc'][0]} {first['input']}: {first['msg'].lower()}") from None


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


def _from_directory(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline as save_pretrained wrote it; where there are only .fp16 files, those."""
    kind = _check_directory(path)
    half = not [f for f in (path / kind.denoiser).glob("*.safetensors") if ".fp16" not in f.name]
    more = {"variant": "fp16"} if half else {}
    more |= dict.fromkeys(part for part in kind.optional if not (path / part).is_dir())
    return _read(kind.pipeline.from_pretrained, path, dtype, use_safetensors=True, **_without(kind), **more)


def _from_file(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline in one file, as original checkpoints are.

    It has no tokenizer and no configuration: these come from a diffusers directory (its weights are not
    needed) around the file, or beside it under its name; else from the Hub, by what the file looks like. A
    file of v2 is taken for v2.1, which predicts v: other v2 models need their configuration beside them.
    """
    _check_file(path)
    own = path.with_suffix("")
    beside = [d for d in (path.parent, own) if (d / "model_index.json").is_file()]
    config = beside[0] if beside else _fetched_config(path, own)
    kind = _read_index(config)
    return _read(kind.pipeline.from_single_file, path, dtype, config=str(config), **_without(kind))


def _fetched_config(path: Path, own: Path) -> Path:
    """The known model's that a checkpoint looks like. Raises DoriError."""
    looks = infer_diffusers_model_type(load_single_file_checkpoint(str(path)))
    if looks not in LOOKS_LIKE:
        raise DoriError(
            f"{path} looks like '{looks}': put configuration and tokenizer into {own} if it is not"
        )
    like = known.KNOWN[LOOKS_LIKE[looks]]
    try:
        return hub.fetch_config(like.repository, like.revision, put=own)
    except DoriError as error:
        raise DoriError(f"{path} has no configuration and tokenizer beside it: {error}") from error


def _without(kind: type[StableDiffusion]) -> dict[str, None]:
    return dict.fromkeys(kind.not_loaded)


def _read_index(path: Path) -> type[StableDiffusion]:
    """The architecture that model_index.json names. Raises DoriError, also for parts that bring own code."""
    try:
        index = json.loads((path / "model_index.json").read_text())
        kind = architecture(str(index["_class_name"]))
        parts = {name: part for name, part in index.items() if isinstance(part, list) and name[0] != "_"}
        foreign = [name for name, (library, _) in parts.items() if library not in (*LIBRARIES, None)]
    except DoriError as error:
        raise DoriError(f"model '{path}' cannot be used: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DoriError(f"{path / 'model_index.json'}: not an index of a pipeline ({error})") from None
    if foreign:
        raise DoriError(f"{path}: {', '.join(foreign)} would run code of its own, which is not allowed")
    return kind


def _check_directory(path: Path) -> type[StableDiffusion]:
    """A diffusers directory needs its index, a denoiser and whole safetensors files."""
    if not (path / "model_index.json").is_file():
        raise DoriError(
            f"{path}: no model_index.json; --model takes the directory that save_pretrained wrote"
        )
    kind = _read_index(path)
    index = json.loads((path / "model_index.json").read_text())
    if not (path / kind.denoiser / "config.json").is_file():
        what = "UNet" if kind.denoiser == "unet" else kind.denoiser
        raise DoriError(
            f"{path}: no {what} ({kind.denoiser}/config.json is missing); give a diffusers directory"
        )
    for part in kind.parts():
        files = sorted((path / part).glob("*.safetensors"))
        if not files and not (part in kind.optional and index.get(part, [None])[0] is None):
            raise DoriError(
                f"{path / part}: no .safetensors weights; save the pipeline again with save_pretrained"
            )
        for file in files:
            _check_file(file)
    return kind


def _check_file(path: Path) -> None:
    """Refuse pickles; reading the header tells whether the file is whole (its length is written there)."""
    if path.suffix in PICKLES:
        raise DoriError(
            f"{path}: pickle checkpoints can run code and are not read; `dori convert {path}` writes its "
            "tensors as safetensors"
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise DoriError(
            f"{path}: not a whole safetensors file ({error}); copy or download it again"
        ) from None


def _read(loader, source: Path, dtype: torch.dtype, **options: object) -> DiffusionPipeline:
    """Call a diffusers loader and turn what it throws into one line."""
    try:
        pipe = loader(str(source), dtype=dtype, **options)
    except Exception as error:  # diffusers and transformers raise a dozen kinds of their own
        raise DoriError(
            f"model '{source}' cannot be loaded ({first_line(error, 200)}); "
            "is it whole, and made by this version?"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _quiet() -> None:
    """Loading bars and advice belong to no page of a book; errors still come through."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()

"""Pictures on disk to tensors and back, bounded and with one clear line when a file is not a picture."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dori.errors import DoriError

MAX_PIXELS = 64_000_000  # read from the header, before anything is decoded
Image.init()
# Pictures alone: other readers of the library start programs (EPS) or know formats nobody photographs in.
FORMATS = [f for f in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM") if f in Image.OPEN]


def read_image(path: Path, *, size: int | None = None) -> Tensor:
    """An RGB image as (3, H, W) in [0, 1]; with `size`, resized to a square (aspect not kept)."""
    rgb = _decoded(path)
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(rgb).copy()).permute(2, 0, 1).float() / 255


def check_image(path: Path) -> str:
    """The file's format, as PIL names it ("PNG"). Raises DoriError if it is no whole image, or too large."""
    return _decoded(path).info["format"]


def _decoded(path: Path) -> Image.Image:
    """An RGB image; what its header says about its size is believed before anything is unpacked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DoriError(
                        f"{path}: {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read"
                    )
                rgb = image.convert("RGB")
                rgb.info["format"] = image.format
                return rgb
    except FileNotFoundError:
        raise DoriError(f"{path}: no such image") from None
    except Image.DecompressionBombError:
        raise DoriError(f"{path}: more than {MAX_PIXELS} pixels, which is the most that is read") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DoriError(f"{path}: not a readable image ({error})") from None


def stack_images(paths: Sequence[Path], *, size: int | None = None) -> Tensor:
    """(B, 3, H, W) in [0, 1]; without `size` all must be of one size."""
    images = [read_image(path, size=size) for path in paths]
    odd = next((p for p, i in zip(paths, images, strict=True) if i.shape != images[0].shape), None)
    if odd is not None:
        raise DoriError(f"{odd}: differs in size from {paths[0]}; give one size for all")
    return torch.stack(images)


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] -> uint8, rounded: what a PNG file holds."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def write_png(image: Tensor, path: Path) -> None:
    """Write one (3, H, W) image, uint8 or in [0, 1]; PNG, because JPEG lowers copy scores."""
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(path, format="PNG")

"""Inception-v3's pool features, which FID and KID are made of where its weights are given."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dori.errors import DoriError, first_line
from dori.fetched import fetch_file, is_address
from dori.images import to_uint8

# TorchScript of Inception's weights of 2015-12-05, published by StyleGAN's authors and used by clean-fid.
ADDRESS = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
SIDE, WIDTH = 299, 2048


class Inception:
    """Images in, pool features (B, 2048) out, prepared as clean-fid does (Parmar et al. 2022).

    An image is rounded to eight bits, as if it had been a file, and resized channel by channel with PIL's
    bicubic filter, whose result stays in floating point.
    """

    def __init__(self, path: Path, *, device: str | torch.device = "cpu") -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # it is published as TorchScript alone
                self.net = torch.jit.load(str(path), map_location=device).eval()
            found = self._features(torch.zeros(1, 3, SIDE, SIDE, device=device))
        except (RuntimeError, ValueError, OSError, AttributeError) as error:
            raise DoriError(f"{path}: not Inception's TorchScript file ({first_line(error)})") from None
        if found.shape != (1, WIDTH):
            raise DoriError(f"{path}: gives features of shape {tuple(found.shape)}, not (1, {WIDTH})")
        self.device, self.name = torch.device(device), path.stem

    @classmethod
    def load(cls, source: str | Path, *, device: str | torch.device = "cpu") -> "Inception":
        """`inception` for the published file, a copy's path, or `https://…#sha256=…`. Raises DoriError."""
        if str(source) == "inception":
            source = f"{ADDRESS}#sha256={SHA256}"
        if is_address(str(source)):
            return cls(fetch_file(str(source)), device=device)
        path = Path(source).expanduser()
        if not path.is_file():
            raise DoriError(f"Inception's weights '{source}' are not here: fetch {ADDRESS} and give its path")
        return cls(path, device=device)

    @torch.no_grad()
    def embed_images(self, images: Tensor, *, batch_size: int = 64) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 2048) on the CPU."""
        prepared = torch.stack([_resized(image) for image in to_uint8(images)])
        return torch.cat([self._features(part.to(self.device)).cpu() for part in prepared.split(batch_size)])

    def _features(self, images: Tensor) -> Tensor:
        return self.net.layers((images - 128) / 128).flatten(1).float()


def _resized(image: Tensor) -> Tensor:
    """(3, H, W) of bytes -> (3, 299, 299) in [0, 255]."""
    channels = [Image.fromarray(c.cpu().numpy().astype(np.float32)) for c in image]
    resized = [np.asarray(c.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for c in channels]
    return torch.from_numpy(np.stack(resized).clip(0, 255))

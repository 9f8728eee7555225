"""Copy similarity: one interface over the bundled descriptor and SSCD (Pizzi et al. 2022)."""

import json
import warnings
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from dori.errors import DoriError, first_line
from dori.fetched import fetch_file, is_address
from dori.store import weights_hash

# sscd_disc_mixup, which NeMo measures with, as its authors publish it (github.com/facebookresearch/
# sscd-copy-detection). They give no hash; this one stands in several projects that use the file.
SSCD_ADDRESS = "https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchscript.pt"
SSCD_SHA256 = "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56"


class CopyDescriptor(Protocol):
    """Images in, unit vectors out; two images are copies when their dot product exceeds `threshold`."""

    name: str
    threshold: float

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, d), L2-normalised."""
        ...


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Scores of all pairs, (n, d) and (m, d) -> (n, m) in [-1, 1]."""
    return a @ b.T


def pairwise(descriptors: Tensor) -> Tensor:
    """Scores of the n (n - 1) / 2 different pairs of one set."""
    i, j = torch.triu_indices(len(descriptors), len(descriptors), offset=1)
    return similarity(descriptors, descriptors)[i, j]


class NetDescriptor:
    """A network behind the interface: resize, normalise, embed in batches, unit length."""

    def __init__(
        self, net: nn.Module, *, name: str, threshold: float, image_size: int, device: str | torch.device
    ) -> None:
        self.net, self.device = net.to(device).eval(), torch.device(device)
        self.name, self.threshold, self.image_size = name, float(threshold), image_size

    mean: Tensor | None = None  # per channel, (3, 1, 1); None leaves [0, 1] as it is
    std: Tensor | None = None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (16 hex digits) of the weights: scores in a run directory belong to them, not to a name."""
        return weights_hash([self.net])

    @torch.no_grad()
    def embed(self, images: Tensor, *, batch_size: int = 256) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, d) on the CPU; resized to the network's square, aspect not kept."""
        return torch.cat([self._embed(part.to(self.device)).cpu() for part in images.split(batch_size)])

    def _embed(self, images: Tensor) -> Tensor:
        side = self.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(
                images, size=(side, side), mode="bilinear", antialias=True, align_corners=False
            )
        if self.mean is not None:
            images = (images - self.mean.to(images)) / self.std.to(images)
        return F.normalize(self.net(images).float(), dim=1)


class BundledDescriptor(NetDescriptor):
    """The testbed's own descriptor, trained the way SSCD is, threshold calibrated on same-caption pairs."""

    def __init__(self, directory: Path, *, device: str | torch.device = "cpu") -> None:
        from dori.metrics.descriptor_net import build_descriptor_net

        try:
            config = json.loads((directory / "config.json").read_text())
            weights = load_file(directory / "descriptor.safetensors")
            net = build_descriptor_net(config["dim"], config["width"])
            net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise DoriError(
                f"{directory}: no usable copy descriptor ({str(error).splitlines()[0]})"
            ) from None
        self.calibration = config.get("calibration", {})
        super().__init__(
            net,
            name=config["name"],
            threshold=config["threshold"],
            image_size=config["image_size"],
            device=device,
        )


class SSCD(NetDescriptor):
    """SSCD as NeMo uses it: TorchScript, 320 x 320, ImageNet normalisation, threshold 0.7."""

    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def __init__(self, path: Path, *, device: str | torch.device = "cpu") -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # SSCD is published as TorchScript alone
                net = torch.jit.load(str(path), map_location="cpu")
        except (RuntimeError, ValueError, OSError) as error:
            raise DoriError(f"{path}: not a TorchScript file ({first_line(error)})") from None
        super().__init__(net, name=path.name.split(".")[0], threshold=0.7, image_size=320, device=device)
        try:
            found = self.embed(torch.zeros(2, 3, 8, 8))
        except (RuntimeError, IndexError, AttributeError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise DoriError(f"{path}: takes no images of 320 x 320 ({first[:120]})") from None
        if found.ndim != 2 or len(found) != 2:
            raise DoriError(f"{path}: gives {tuple(found.shape)} for two images; a descriptor gives (2, d)")


def describe(descriptor: CopyDescriptor) -> str:
    """A sentence for the text: which descriptor, which threshold, and what is known about its errors."""
    known = getattr(descriptor, "calibration", None) or {}
    text = f"The descriptor is `{descriptor.name}`, its threshold {descriptor.threshold:.2f}."
    if {"false_match_rate", "negative_pairs", "detected", "copies"} <= set(known):
        false, found = (100 * v for v in (known["false_match_rate"], known["detected"] / known["copies"]))
        text += (
            f" Of {known['negative_pairs']:,} pairs of different pictures with the same caption, {false:g} %"
            f" exceed it; of {known['copies']:,} copies that were cropped, recoloured, blurred or overlaid,"
            f" {found:.1f} % are recognised."
        )
    return text


def load_descriptor(source: str | Path = "bundled", *, device: str | torch.device = "cpu") -> CopyDescriptor:
    """The bundled descriptor, a directory like its, or SSCD.

    SSCD is `sscd` (the published sscd_disc_mixup, fetched once), the path of another TorchScript file of its
    authors, or `https://…#sha256=…`. Raises DoriError.
    """
    if str(source) == "sscd":
        source = f"{SSCD_ADDRESS}#sha256={SSCD_SHA256}"
    if str(source) == "bundled":
        from dori.testbed.paths import TESTBED

        source = TESTBED / "descriptor"
    path = fetch_file(str(source)) if is_address(str(source)) else Path(source).expanduser()
    if path.is_dir():
        return BundledDescriptor(path, device=device)
    if not path.is_file():
        raise DoriError(
            f"descriptor '{source}' is not here: use bundled, sscd, or an SSCD TorchScript file's path or "
            "address (https://…#sha256=…)"
        )
    return SSCD(path, device=device)

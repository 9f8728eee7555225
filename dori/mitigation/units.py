"""A set of units as a value: printed, saved, united, intersected, applied and undone, baked into weights."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dori.errors import DoriError
from dori.hooks import find_layer, masked
from dori.store import atomic, write_json


class Units(Mapping[str, Tensor]):
    """Layer name -> True where switched off: (d,) for neurons (NeMo), (d, m) for weights (Wanda).

    Layers without a switched-off unit are kept, so that density is over all that were eligible.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = {name: mask.detach().bool().cpu() for name, mask in masks.items()}

    @classmethod
    def of(cls, indices: Mapping[str, Iterable[int]], widths: Mapping[str, int]) -> "Units":
        """Neurons by number: `of({"mid…to_v": [3, 5]}, {"mid…to_v": 128})`. Raises DoriError out of range."""
        masks = {name: torch.zeros(width, dtype=torch.bool) for name, width in widths.items()}
        for name, chosen in indices.items():
            chosen = list(chosen)
            if name not in masks or any(not 0 <= i < widths[name] for i in chosen):
                raise DoriError(f"units {chosen} of layer '{name}'; eligible: {dict(widths)}")
            masks[name][chosen] = True
        return cls(masks)

    def __getitem__(self, layer: str) -> Tensor:
        return self._masks[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        """Number of layers; `count` is the number of units."""
        return len(self._masks)

    def __bool__(self) -> bool:
        return self.count > 0

    def __or__(self, other: "Units") -> "Units":
        """Off in either."""
        return self._combine(other, torch.logical_or)

    def __and__(self, other: "Units") -> "Units":
        """Off in both."""
        return self._combine(other, torch.logical_and)

    def __sub__(self, other: "Units") -> "Units":
        """Off here and not there."""
        return self._combine(other, lambda a, b: a & ~b)

    def __eq__(self, other: object) -> bool:
        """The same units are off; layers without any do not matter."""
        return isinstance(other, Units) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        used = sum(bool(mask.any()) for mask in self.values())
        kind = "weights" if any(mask.ndim == 2 for mask in self.values()) else "neurons"
        share = f"{100 * self.density:.2g} %"
        return f"<Units: {self.count} of {self.size} {kind} ({share}) in {used} of {len(self)} layers>"

    @property
    def count(self) -> int:
        """Units switched off."""
        return sum(int(mask.sum()) for mask in self.values())

    @property
    def size(self) -> int:
        """Units eligible."""
        return sum(mask.numel() for mask in self.values())

    @property
    def density(self) -> float:
        """Share of the eligible units that is off; 0 if none is eligible."""
        return self.count / self.size if self.size else 0.0

    @property
    def indices(self) -> dict[str, list]:
        """Numbers of what is off: units, or [row, column] of weights."""
        return {name: mask.nonzero().squeeze(1).tolist() for name, mask in self.items()}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (16 hex digits) of what is off."""
        digest = hashlib.sha256()
        for name in sorted(name for name, mask in self.items() if mask.any()):
            digest.update(f"{name}{tuple(self[name].shape)}".encode())
            digest.update(self[name].numpy().tobytes())
        return digest.hexdigest()[:16]

    def table(self) -> pd.DataFrame:
        """A row per layer: layer, units (off), eligible, density."""
        rows = [(name, int(m.sum()), m.numel(), float(m.float().mean())) for name, m in self.items()]
        return pd.DataFrame(rows, columns=["layer", "units", "eligible", "density"])

    def iou(self, other: "Units") -> float:
        r"""Intersection over union, :math:`|A \cap B| / |A \cup B|`; NaN (undefined, not full agreement)
        where neither has a unit off."""
        union = (self | other).count
        return (self & other).count / union if union else float("nan")

    def applied(self, unet: nn.Module) -> contextlib.AbstractContextManager[None]:
        """`with units.applied(model.unet): …` switches them off inside the block alone."""
        return masked(unet, self)

    @torch.no_grad()
    def bake(self, unet: nn.Module) -> None:
        """Zero them in the weights for good: a neuron's row (and bias), or single weights."""
        for name, mask in self.items():
            layer, off = find_layer(unet, name), mask.to(find_layer(unet, name).weight.device)
            layer.weight[off] = 0
            if mask.ndim == 1 and layer.bias is not None:
                layer.bias[off] = 0

    def save(self, path: Path) -> None:
        """Neurons as .json for reading, anything as .safetensors. Raises DoriError for another suffix."""
        if path.suffix == ".json" and all(mask.ndim == 1 for mask in self.values()):
            layers = {n: {"width": len(mask), "off": self.indices[n]} for n, mask in self.items()}
            write_json(path, {"kind": "neurons", "layers": layers})
        elif path.suffix == ".safetensors":
            with atomic(path) as temporary:
                save_file(dict(self), temporary)
        else:
            raise DoriError(f"{path}: units are saved as .safetensors, neurons also as .json")

    @classmethod
    def load(cls, path: Path) -> "Units":
        """What `save` wrote. Raises DoriError."""
        try:
            if path.suffix == ".safetensors":
                return cls(load_file(path))
            layers = json.loads(path.read_text())["layers"]
            return cls.of(
                {n: x["off"] for n, x in layers.items()}, {n: x["width"] for n, x in layers.items()}
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise DoriError(f"{path}: not a file of units ({error})") from None

    def _combine(self, other: "Units", how) -> "Units":
        """Layer by layer; a layer that one lacks has no unit off there. Raises DoriError for other shapes."""
        masks = {}
        for name in dict.fromkeys([*self, *other]):
            shape = (self if name in self else other)[name].shape
            a, b = (s.get(name, torch.zeros(shape, dtype=torch.bool)) for s in (self, other))
            if a.shape != b.shape:
                raise DoriError(f"layer '{name}': units of shapes {tuple(a.shape)} and {tuple(b.shape)}")
            masks[name] = how(a, b)
        return Units(masks)


def union(sets: Iterable[Units]) -> Units:
    """Off in any of them: the joint model of many prompts."""
    joint = Units({})
    for one in sets:
        joint |= one
    return joint

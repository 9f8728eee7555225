"""What a training changed in a network, in a quarter of the bytes: one int8 a weight and one scale a row.

A mended model is kept as this change to a model that is at hand. The rounded weights are the mended model:
what is measured is measured on them.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dori.errors import DoriError
from dori.store import atomic

STEPS = 127  # of int8 on either side of 0


def compress(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounded differences of the weights that changed: `<name>.q` int8, `<name>.scale` of each row.

    Both are state dicts of one network. No difference is off by more than a 254th of the largest of its row.
    """
    found = {}
    for name, new in after.items():
        change = (new.detach().cpu().float() - before[name].detach().cpu().float()).flatten(
            1 if new.ndim > 1 else 0
        )
        if not change.any():
            continue
        rows = change if change.ndim > 1 else change[:, None]
        scale = rows.abs().amax(1) / STEPS
        rounded = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
        found[f"{name}.q"] = rounded.to(torch.int8).view(new.shape)
        found[f"{name}.scale"] = scale
    return found


@torch.no_grad()
def apply(network: nn.Module, change: Mapping[str, Tensor]) -> None:
    """Add a change to the weights in place. Raises DoriError if it is of another network."""
    state = network.state_dict()
    for name in (key.removesuffix(".q") for key in change if key.endswith(".q")):
        q, scale, weight = change[f"{name}.q"], change.get(f"{name}.scale"), state.get(name)
        if weight is None or scale is None or weight.shape != q.shape or len(scale) != len(q):
            raise DoriError(f"the change of '{name}' does not fit this network; it was made for another one")
        weight += (q.float() * scale.view(-1, *[1] * (q.ndim - 1))).to(weight)


def save(path: Path, change: Mapping[str, Tensor]) -> None:
    """Write a change, whole or not at all."""
    with atomic(path) as temporary:
        save_file({k: v.contiguous() for k, v in change.items()}, temporary)


def load(path: Path) -> dict[str, Tensor]:
    """Read a change. Raises DoriError for a missing or damaged file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DoriError(f"{path}: no change of weights can be read ({error})") from None

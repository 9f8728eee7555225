"""Look into a network and switch parts of it off: context managers that leave it as it was, errors or not."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dori.errors import DoriError

# Layer name -> True where switched off: (d,) for output units, (d, m) for single weights of a linear layer.
Masks = Mapping[str, Tensor]


@contextlib.contextmanager
def recorded(
    module: nn.Module,
    layers: Iterable[str],
    *,
    inputs: bool = False,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what each named layer returns (with `inputs`: takes), one detached tensor per call, in order.

    `reduce` is applied before keeping: a statistic of a long run instead of all its activations.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str):
        def hook(_, taken: tuple, returned: Tensor) -> None:
            value = (taken[0] if inputs else returned).detach()
            found[name].append(value if reduce is None else reduce(value))

        return hook

    with contextlib.ExitStack() as stack:
        for name in found:
            stack.callback(find_layer(module, name).register_forward_hook(keep(name)).remove)
        yield found


@contextlib.contextmanager
def masked(module: nn.Module, units: Masks | Sequence[Masks]) -> Iterator[None]:
    """Switch units off: outputs become 0 (as NeMo does), weights count as 0 (as Wanda does).

    One mask serves every sample. A sequence of N serves samples apart: row r of a batch has the units
    r mod N, so [uncond; cond] and any repetition of N images have them in both halves. A layer without units
    is not touched: an empty selection is bit-identical to none. Per-sample weight masks hold N copies of
    each masked matrix. Raises DoriError for a layer that is not there, a shape that does not fit, or a
    batch that is no multiple of N.
    """
    each = [units] if isinstance(units, Mapping) else list(units)
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(name for one in each for name in one):
            layer = find_layer(module, name)
            keep = _keep(layer, name, each)
            if keep is not None:
                hook = _output_mask(keep) if keep.ndim == 2 else _weight_mask(layer, keep)
                stack.callback(layer.register_forward_hook(hook).remove)
        yield


@contextlib.contextmanager
def reading(module: nn.Module, layers: Iterable[str], text: Tensor) -> Iterator[None]:
    """Let the named cross-attention layers read `text` (1, T, D) in place of what the others are given.

    Raises DoriError for a layer that is not there.
    """

    def hook(_, taken: tuple, named: dict) -> tuple[tuple, dict]:
        given = named["encoder_hidden_states"]
        return taken, {**named, "encoder_hidden_states": text.to(given).expand(len(given), -1, -1)}

    with contextlib.ExitStack() as stack:
        for name in layers:
            layer = find_layer(module, name)
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


@contextlib.contextmanager
def preserved(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give every parameter its old value and requires_grad back, whatever the block did to them."""
    kept = [(p, p.detach().clone(), p.requires_grad) for m in modules for p in m.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value, trainable in kept:
                parameter.copy_(value)
                parameter.requires_grad_(trainable)


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """A submodule by its dotted name. Raises DoriError if there is none."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise DoriError(f"no layer '{name}' in this {type(module).__name__}") from None


def _keep(layer: nn.Module, name: str, each: Sequence[Masks]) -> Tensor | None:
    """1 where kept, 0 where off: (N, d) or (N, d, m), in the layer's precision; None if nothing is off."""
    shape, weight = next(tuple(one[name].shape) for one in each if name in one), layer.weight
    if shape not in ((weight.shape[0],), tuple(weight.shape)):
        raise DoriError(f"layer '{name}' has weights {tuple(weight.shape)}; these units are for {shape}")
    none = torch.zeros(shape, dtype=torch.bool)
    off = torch.stack([one.get(name, none).cpu() for one in each])
    return (~off).to(weight.device, weight.dtype) if off.any() else None


def _output_mask(keep: Tensor):
    def hook(_, __, out: Tensor) -> Tensor:  # out (B, tokens, d)
        return out * _for_rows(keep, len(out)).unsqueeze(1)

    return hook


def _weight_mask(layer: nn.Linear, keep: Tensor):
    """The layer's output computed anew from the weights that are left."""
    left = layer.weight * keep  # (N, d, m)

    def hook(_, taken: tuple, __) -> Tensor:
        x = taken[0]  # (B, tokens, m)
        if len(left) == 1:
            return F.linear(x, left[0], layer.bias)
        _for_rows(keep, len(x))
        grouped = x.unflatten(0, (-1, len(left)))  # (repetitions, N, tokens, m): row r is sample r mod N
        out = torch.einsum("rntm,ndm->rntd", grouped, left).flatten(0, 1)
        return out if layer.bias is None else out + layer.bias

    return hook


def _for_rows(keep: Tensor, rows: int) -> Tensor:
    """Masks of N samples repeated to a batch of N, 2N, … rows."""
    if rows % len(keep):
        raise DoriError(
            f"units of {len(keep)} samples for a batch of {rows}; it must hold each equally often"
        )
    return keep.repeat(rows // len(keep), *[1] * (keep.ndim - 1)) if keep.ndim == 2 else keep


def layer_label(name: str) -> str:
    """ "down_blocks.1.attentions.0…" -> "down 1.0"; names of another form stay whole."""
    found = re.match(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)(\.|$)", name)
    if found:
        return "{} {}.{}".format(*found.groups()[:3])
    return "mid" if name.split(".")[0] == "mid_block" else name

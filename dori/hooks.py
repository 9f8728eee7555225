"""Look into a network and switch parts of it off: context managers that leave it as it was, errors included."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from dori.errors import DoriError

Units = Mapping[str, Sequence[int]]  # layer name -> numbers of output units


@contextlib.contextmanager
def recorded(layers: Mapping[str, nn.Module], *, inputs: bool = False) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what each layer returns (with `inputs`: takes), one detached tensor per call, in order."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str):
        return lambda _, taken, returned: found[name].append((taken[0] if inputs else returned).detach())

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(keep(name)).remove)
        yield found


@contextlib.contextmanager
def masked(layers: Mapping[str, nn.Linear], units: Units, *, factor: float = 0.0) -> Iterator[None]:
    """Multiply output units (…, d) of the named layers by `factor`; 0 switches them off, as NeMo does.

    Layers without units are not touched, so an empty selection is bit-identical to none. Raises DoriError
    for a layer or a unit that is not there.
    """
    with contextlib.ExitStack() as stack:
        for name, chosen in units.items():
            if len(chosen):
                scale = _scale(layers, name, chosen, factor)
                hook = layers[name].register_forward_hook(lambda _, __, out, scale=scale: out * scale.to(out))
                stack.callback(hook.remove)
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


def _scale(layers: Mapping[str, nn.Linear], name: str, chosen: Sequence[int], factor: float) -> Tensor:
    """A vector of ones with `factor` at the chosen units."""
    if name not in layers:
        raise DoriError(f"no layer '{name}' to mask; there are {', '.join(layers)}")
    width = layers[name].out_features
    if min(chosen) < 0 or max(chosen) >= width:
        raise DoriError(
            f"layer '{name}' has the units 0 to {width - 1}; asked for {min(chosen)} to {max(chosen)}"
        )
    scale = torch.ones(width)
    scale[list(chosen)] = factor
    return scale

"""From a pickled checkpoint (.ckpt, .bin, .pt) to safetensors, without running what a pickle could run."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from dori.errors import DoriError, first_line
from dori.store import atomic

# All that tensors in dictionaries are made of; whatever else a pickle names becomes a blank and is dropped.
ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool")),
}


class _Blank:
    """Stands for an object that is not built: takes anything, does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Builds tensors and dictionaries alone."""

    def find_class(self, module: str, name: str) -> type:
        return super().find_class(module, name) if (module, name) in ALLOWED else _Blank


TENSORS_ONLY = SimpleNamespace(
    Unpickler=_Unpickler, load=lambda file, **kw: _Unpickler(file, **kw).load(), __name__="tensors only"
)


def convert(source: Path, target: Path | None = None) -> Path:
    """Write the tensors of a checkpoint beside it as .safetensors; returns where. Nothing it holds is run.

    What a trainer kept besides (optimiser, callbacks, step) is dropped; of "state_dict" the content is taken.
    Raises DoriError.
    """
    target = target or source.with_suffix(".safetensors")
    if target.exists():
        raise DoriError(f"{target} is there already; give another --out")
    try:
        found = torch.load(source, map_location="cpu", weights_only=False, pickle_module=TENSORS_ONLY)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DoriError(f"{source}: not a checkpoint of tensors ({first_line(error, 200)})") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    # tensors that share memory are written apart, as safetensors asks
    tensors = {k: v.detach().clone().contiguous() for k, v in found.items() if torch.is_tensor(v)}
    if not tensors:
        raise DoriError(f"{source}: no tensors by name, so no checkpoint")
    with atomic(target) as temporary:
        save_file(tensors, temporary)
    return target

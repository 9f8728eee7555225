"""AdamW as it is, and for large models: with its state on the CPU, or in eight bits."""

from collections.abc import Iterable

import torch
from torch import nn

from dori.errors import DoriError


class OffloadedAdamW(torch.optim.Optimizer):
    """AdamW whose weights and moments live on the CPU in float32: 12 bytes per weight that the device keeps.

    A step fetches the gradients, updates there and sends the weights back. Half-precision weights get an
    exact master copy this way. On a CPU the result is AdamW's to the bit.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.masters = [
            [p.detach().to("cpu", torch.float32, copy=True) for p in group["params"]]
            for group in self.param_groups
        ]
        self.inner = torch.optim.AdamW([{"params": m} for m in self.masters], lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update from the gradients as they are."""
        if closure is not None:
            raise NotImplementedError("gradients are there when a step is taken")
        for group, inner, masters in zip(
            self.param_groups, self.inner.param_groups, self.masters, strict=True
        ):
            inner["lr"] = group["lr"]
            for p, master in zip(group["params"], masters, strict=True):
                master.grad = None if p.grad is None else p.grad.to(master)
        self.inner.step()
        for group, masters in zip(self.param_groups, self.masters, strict=True):
            for p, master in zip(group["params"], masters, strict=True):
                p.copy_(master)

    def state_dict(self) -> dict:
        """Moments and master weights."""
        return {"inner": self.inner.state_dict(), "masters": self.masters}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        for masters, kept in zip(self.masters, state["masters"], strict=True):
            for master, value in zip(masters, kept, strict=True):
                master.copy_(value)


def _eight_bits(params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Two bytes of state per weight instead of eight (Dettmers et al. 2022), by bitsandbytes."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise DoriError(
            "the optimiser 'adamw-8bit' needs bitsandbytes: `pip install bitsandbytes`, or use offloaded"
        ) from None
    return AdamW8bit(params, lr=lr, weight_decay=weight_decay)


OPTIMIZERS = {"adamw": torch.optim.AdamW, "offloaded": OffloadedAdamW, "adamw-8bit": _eight_bits}


def make_optimizer(
    name: str, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimiser by name. Raises DoriError for an unknown one, or one whose package is missing."""
    if name not in OPTIMIZERS:
        raise DoriError(f"unknown optimiser '{name}'; use {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](params, lr=lr, weight_decay=weight_decay)

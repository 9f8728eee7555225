"""One resumable training loop: for every part of the testbed, and for every mitigation that trains.

Batches are a function of `(seed, stream, step)`, so nothing random lives between steps: a run that stops at
any checkpoint and starts again computes what the uninterrupted run computes.
"""

from __future__ import annotations

import csv
import os
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from dori import parallel
from dori.errors import DoriError
from dori.optimizers import make_optimizer
from dori.store import writing

Loss = Callable[[int, np.random.Generator], tuple[torch.Tensor, Mapping[str, float]]]


def step_rng(seed: int, stream: str, step: int) -> np.random.Generator:
    """The random numbers of one training step; parts with one stream see one sequence of batches."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), step])


def torch_rng(rng: np.random.Generator, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded from `rng`."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**62)))


@dataclass
class Schedule:
    """Linear warm-up, constant, linear decay to zero over the last `decay` share of the steps."""

    steps: int
    lr: float
    warmup: int = 100
    decay: float = 0.3

    def __call__(self, step: int) -> float:
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, (step + 1) / self.warmup, left)


@dataclass
class Fit:
    """Train what of `module` requires a gradient with `loss(step, rng) -> (loss, {name: value})` and keep an
    exponential average of its weights (`ema_decay` 0: the weights themselves).

    `run_dir/<part>.pt` is the checkpoint, `run_dir/<part>.csv` the log. Raises `DoriError` when the loss is
    not finite, the GPU's memory is full, or a checkpoint cannot be written (the last one stays).
    """

    part: str
    module: nn.Module
    loss: Loss
    schedule: Schedule
    run_dir: Path
    seed: int
    ema_decay: float = 0.999
    weight_decay: float = 1e-2
    checkpoint_every: int = 100
    stream: str = ""  #: of the random numbers; the part's own unless named
    optimizer_name: str = "adamw"  #: of `optimizers.OPTIMIZERS`
    shared: bool = False  #: `loss` is of this process's rows alone: gradients of all processes are added
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.optimizer = make_optimizer(
            self.optimizer_name, self.trained, lr=self.schedule.lr, weight_decay=self.weight_decay
        )
        self.average = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.seconds = 0.0
        if self.checkpoint.exists():
            self._restore()

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    @property
    def checkpoint(self) -> Path:
        return self.run_dir / f"{self.part}.pt"

    @property
    def done(self) -> bool:
        return self.step >= self.schedule.steps

    def run(self) -> nn.Module:
        """Train to the end (or from the checkpoint to the end) and return the module with the averaged
        weights."""
        self.module.train()
        bar = tqdm(total=self.schedule.steps, initial=self.step, desc=self.part, mininterval=5)
        while not self.done:
            values = self._guarded_step()
            bar.update()
            bar.set_postfix({k: f"{v:.4f}" for k, v in values.items()}, refresh=False)
            if self.step % self.checkpoint_every == 0 or self.done:
                self._save()
        bar.close()
        self.module.load_state_dict(self.average)
        return self.module.eval()

    def _guarded_step(self) -> dict[str, float]:
        try:
            return self._one_step()
        except torch.OutOfMemoryError:
            raise DoriError(
                f"{self.part}: the GPU's memory is full at step {self.step}; the last good checkpoint is "
                f"{self.checkpoint}. The same goes on from there on a larger GPU; fewer rows a step, "
                "checkpointing or autocast need less memory and start anew."
            ) from None

    def _one_step(self) -> dict[str, float]:
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.step)
        loss, values = self.loss(self.step, step_rng(self.seed, self.stream or self.part, self.step))
        if not torch.isfinite(loss):
            raise DoriError(
                f"{self.part}: the loss is {loss.item()} at step {self.step}; the last good checkpoint is "
                f"{self.checkpoint}. Lower the learning rate and start again."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.shared:
            parallel.sum_gradients(self.trained)
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)
        if not torch.isfinite(norm):
            raise DoriError(
                f"{self.part}: the gradient is not finite at step {self.step}; the last good checkpoint is "
                f"{self.checkpoint}. Lower the learning rate and start again."
            )
        self.optimizer.step()
        self.step += 1
        self._average()
        self.seconds += time.perf_counter() - start
        loss = loss.detach()
        values = {"loss": float(parallel.summed(loss) if self.shared else loss), **values}
        if self.step % 10 == 0 and parallel.first():
            self._log(values)
        return values

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        for key, value in self.module.state_dict().items():
            if value.dtype.is_floating_point:
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    def _log(self, values: Mapping[str, float]) -> None:
        path = self.run_dir / f"{self.part}.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["part", "step", "seconds", *values])
            writer.writerow(
                [self.part, self.step, f"{self.seconds:.1f}", *(f"{v:.5f}" for v in values.values())]
            )

    def _save(self) -> None:
        if parallel.first():
            self._write()
        parallel.wait()

    def _write(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }
        part = self.checkpoint.with_suffix(".tmp")  # one name: what a killed run left is written over
        with writing(self.checkpoint, RuntimeError):
            try:
                torch.save(state, part)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            os.replace(part, self.checkpoint)

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)  # stays on the module's device
        self.step, self.seconds = state["step"], state["seconds"]

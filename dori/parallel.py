"""More than one process (`accelerate launch -m dori …`): who does which items, and whose gradients count.

Started by itself a program is one process of one, and everything here is free. Processes share the run
directory: each does its share of the items, all wait, and then each finds what the others wrote.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from dori.errors import DoriError

Item = TypeVar("Item")
# How long one waits for another: the first fetches and writes alone, and shares are not equally long. Where a
# process dies the launcher ends the others at once. Torch's own limit is ten minutes between GPUs.
PATIENCE = timedelta(hours=12)


@functools.cache
def _state() -> PartialState | None:
    """The launcher's group of processes; None where there is none, so that one process pays nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


_alone = [False]  # whether this process is in a block of `apart`


def _group() -> PartialState | None:
    return None if _alone[0] else _state()


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, this process is one of one: for its own share of items whose parts are shared elsewhere."""
    before, _alone[0] = _alone[0], True
    try:
        yield
    finally:
        _alone[0] = before


def count() -> int:
    """Processes in all."""
    return _group().num_processes if _group() else 1


def number() -> int:
    """This one's number, from 0."""
    return _group().process_index if _group() else 0


def first() -> bool:
    """Whether this process is the one that writes what is written once."""
    return number() == 0


def device() -> torch.device | None:
    """The device that the launcher gave this process; None without a launcher."""
    return _state().device if _state() else None


def mine(items: Sequence[Item]) -> list[Item]:
    """This process's share: every n-th item. It depends on the list alone, never on what is done already."""
    return list(items)[number() :: count()]


def missing(items: Sequence[Item], there: Callable[[Item], bool]) -> list[Item]:
    """This process's share of the items that are not `there`, so that a run that goes on is shared evenly.

    The first process looks, for all: what others find would depend on who had begun.
    """
    places = _from_first([n for n, item in enumerate(items) if not there(item)] if first() else [])
    return [items[n] for n in mine(places)]


def wait() -> None:
    """Until all processes have come here."""
    if _group():
        _group().wait_for_everyone()


def gathered(items: Iterable[Item]) -> list[Item]:
    """What all processes hold, in the order of their numbers. Items are pickled: keep tensors on the CPU."""
    return gather_object(list(items)) if _group() else list(items)


def _from_first(items: list[Item]) -> list[Item]:
    """The first process's list, on all."""
    return broadcast_object_list([items])[0] if _group() else items


def summed(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes."""
    return reduce(values.detach().clone(), "sum") if _group() else values


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the sum of all processes' gradients in the place of each one's own."""
    if _group():
        with_gradient = [p for p in parameters if p.grad is not None]
        flat = summed(torch.cat([p.grad.flatten() for p in with_gradient]))
        for p, part in zip(with_gradient, flat.split([p.numel() for p in with_gradient]), strict=True):
            p.grad.copy_(part.view_as(p))


def rows_of(total: int) -> slice:
    """This process's rows of a batch. Raises DoriError if there are fewer rows than processes."""
    if total < count():
        raise DoriError(f"{count()} processes for {total} rows a step: start fewer, or give more rows")
    return slice(number(), None, count())


def leave() -> None:
    """Close the group, as the last thing that a program does."""
    if _state():
        torch.distributed.destroy_process_group()

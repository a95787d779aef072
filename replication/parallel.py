"""Several processes on one run, by accelerate: data parallel over prompts, every group whole on one process.

Every process runs the same program. What is long (sampling, scoring, evaluation) is shared out and put together again, so that
all go on with the same numbers: those of one process, up to float rounding. Only the first process's records are kept.
Started by torchrun or ``accelerate launch --multi_gpu``, as the README shows; in one process every function here does nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from replication.errors import Diverged

T = TypeVar("T")
R = TypeVar("R")

#: How long one process waits for another: the longest is the writing of a checkpoint by the first.
TIMEOUT = timedelta(hours=1)


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", 0)) if processes() > 1 else 0


def processes() -> int:
    """How many processes share the run; a size without ranks is some other tool's, and no launch."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def is_first() -> bool:
    return rank() == 0


def start(device: str) -> None:
    """Join the other processes, each with a GPU of its own unless ``device`` is cpu; safe to call twice."""
    if processes() > 1 and not torch.distributed.is_initialized():
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
        atexit.register(state.destroy_process_group)


@contextlib.contextmanager
def own_folder(folder: str | Path) -> Iterator[Path]:
    """``folder`` for the first process; for the others one that is thrown away with all they record in it."""
    if is_first():
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / "run"


def mine(items: Sequence[T]) -> list[T]:
    """This process's part: every n-th item."""
    return list(items[rank() :: processes()])


def share(work: Callable[[list[T]], list[R]], items: Sequence[T]) -> list[R]:
    """``work(items)``, one result for each item in their order, each process doing its part.

    Raises:
        Diverged: on every process, if it was raised on one.
    """
    if processes() == 1:
        return work(list(items))
    try:
        part: list[R] | Diverged = work(mine(items))
    except Diverged as error:
        part = error
    parts = _gather(part)
    for found in parts:
        if isinstance(found, Diverged):
            raise found
    return [parts[index % processes()][index // processes()] for index in range(len(items))]


def sum_gradients(parameters: Iterable[nn.Parameter], loss: float) -> float:
    """Add up the gradients of all processes in place, and return the sum of their losses."""
    if processes() == 1:
        return loss
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)
    return sum(_gather(loss))


def from_first(value: T) -> T:
    """The first process's value."""
    return value if processes() == 1 else _gather(value if is_first() else None)[0]


def first_given(value: T | None) -> T | None:
    """The first value that is not None on any process, the same on all: a signal that reached one stops all at one step."""
    return value if processes() == 1 else next((found for found in _gather(value) if found is not None), None)


def _gather(value: T) -> list[T]:
    gathered: list = [None] * processes()
    torch.distributed.all_gather_object(gathered, value)
    return gathered

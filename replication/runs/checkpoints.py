"""Checkpoints of a run: one safetensors file each, checked by the sha256 in its name.

A single rename makes a checkpoint visible with its checksum. The newest two are kept: if one is damaged, the run goes back to the
other.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from replication.console import say
from replication.runs.files import atomic_write, explained, make_folder, remove_leftovers

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2
#: What the names of the tensors that hold lengths begin with.
_LENGTH = "length/"


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], lengths: Mapping[str, int]) -> None:
    """Write the checkpoint of ``step`` and remove all others but the newest one before it.

    Args:
        folder: of the checkpoints of a run.
        step: optimizer steps done.
        tensors: no two share storage.
        lengths: bytes of the run's growing files.

    Raises:
        UserError: it cannot be written; the earlier ones are still there.
    """
    # Imported here: commands that train nothing should not wait for torch.
    import safetensors.torch
    import torch

    make_folder(folder)
    whole = {**tensors, **{f"{_LENGTH}{name}": torch.tensor(length) for name, length in lengths.items()}}
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()})
    path = folder / f"step-{step:08d}-{hashlib.sha256(data).hexdigest()}.safetensors"
    atomic_write(path, data)
    earlier = [other for other in _newest_first(folder) if _step(other) < step]
    with explained(folder):
        # Those of this step or a later one were skipped as damaged when the run was resumed.
        for other in _newest_first(folder):
            if other != path and other not in earlier[: KEPT - 1]:
                other.unlink()


def intact(folder: Path) -> Iterator[tuple[int, dict[str, Tensor], dict[str, int]]]:
    """Each intact checkpoint as (step, tensors, lengths), the newest first; a damaged one is skipped with a warning."""
    import safetensors.torch

    remove_leftovers(folder)
    for path in _newest_first(folder):
        with explained(path):
            # Read as a whole: a file that is mapped into memory stays in use, and a network disk would not remove it.
            data = path.read_bytes()
        try:
            if hashlib.sha256(data).hexdigest() != path.stem.rpartition("-")[2]:
                raise ValueError("its bytes do not have the checksum in its name")
            whole = safetensors.torch.load(data)
        except (ValueError, safetensors.SafetensorError) as error:
            say(f"warning: checkpoint {path} is damaged ({error}): going back to the one before")
            continue
        lengths = {name.removeprefix(_LENGTH): int(whole.pop(name)) for name in list(whole) if name.startswith(_LENGTH)}
        yield _step(path), whole, lengths


def remove(folder: Path) -> None:
    """Remove the folder with all checkpoints, once the run is finished. What some other process holds open may stay."""
    with contextlib.suppress(OSError):
        for path in folder.glob("*"):
            path.unlink()
        folder.rmdir()


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def _newest_first(folder: Path) -> list[Path]:
    """By step, not by time: a clock may go backwards."""
    return sorted(folder.glob("step-*-*.safetensors"), reverse=True)

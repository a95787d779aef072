"""Checkpoints of a run: safetensors, whole or absent, checked by the sha256 in their name.

One file holds all tensors, and its name carries the checksum of its bytes: a single rename makes it both visible and
checkable. The newest two are kept, so that a damaged one costs no more than the way back to the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replication.errors import UserError
from replication.runs.files import atomic_write, explained, make_folder, remove_leftovers, to_json

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("replication")

KEPT = 2
#: One metadata key only: the order of several is not fixed, and the bytes should be.
_KEY = "replication"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on after ``step``; ``lengths`` are the bytes its growing files had then."""

    step: int
    run_id: str
    lengths: dict[str, int]
    tensors: dict[str, Tensor]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and remove all but the newest one before it.

    Raises:
        UserError: if it cannot be written; the earlier ones are then still there.
    """
    from safetensors.torch import save

    make_folder(folder)
    note = {name: getattr(checkpoint, name) for name in ("step", "run_id", "lengths")}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    data = save(tensors, {_KEY: to_json(note)})
    path = folder / f"step-{checkpoint.step:08d}-{hashlib.sha256(data).hexdigest()}.safetensors"
    atomic_write(path, data)
    earlier = [other for other in _newest_first(folder) if _step(other) < _step(path)]
    with explained(folder):
        # Others of this step or a later one were skipped as damaged when this run was resumed.
        for other in _newest_first(folder):
            if other != path and other not in earlier[: KEPT - 1]:
                other.unlink()
    return path


def load(folder: Path, run_id: str, length: Callable[[str], int]) -> Checkpoint | None:
    """The newest intact checkpoint of a run, or None; each that is torn, corrupted or foreign is skipped with a warning.

    Args:
        folder: where ``save`` wrote.
        run_id: the run it must belong to.
        length: the bytes a growing file has now; one shorter than the checkpoint remembers makes it unusable.
    """
    remove_leftovers(folder)
    for path in _newest_first(folder):
        try:
            found = _read(path)
            if found.run_id != run_id:
                raise ValueError(f"it belongs to run {found.run_id}")
            for name, then in found.lengths.items():
                if length(name) < then:
                    raise ValueError(f"{name} is shorter than it was then")
        except (UserError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s cannot be used (%s): going back to the one before", path, error)
            continue
        return found
    return None


def remove(folder: Path) -> None:
    """Remove the folder with all checkpoints, once the run is finished; what cannot be removed stays, with a warning."""
    try:
        for path in folder.glob("*"):
            path.unlink()
        if folder.exists():
            folder.rmdir()
    except OSError as error:  # a network disk keeps a file that some process still has open
        log.warning("%s cannot be removed (%s); the run is finished without it", folder, error.strerror or error)


def _read(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    with explained(path), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != path.stem.rpartition("-")[2]:
        raise ValueError("its bytes do not have the checksum in its name")
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()[_KEY])
            # Copies: what safetensors gives is a view of the file, which would stay in use for as long as the run lasts.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    found = Checkpoint(note["step"], note["run_id"], note["lengths"], tensors)
    if not (isinstance(found.step, int) and isinstance(found.lengths, dict)):
        raise ValueError("its note is not one that this code writes")
    return found


def _step(path: Path) -> str:
    return path.name.split("-")[1]


def _newest_first(folder: Path) -> list[Path]:
    """By step, never by the clock, which may go backwards."""
    return sorted(folder.glob("step-*-*.safetensors"), reverse=True)

"""What anyone may know of a run from its folder: how it ended, whether its files are whole, whether it runs now, why it failed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from replication.errors import UserError
from replication.runs.files import Lock, Locked, atomic_write, explained, make_folder, read_json, to_json
from replication.runs.provenance import now

log = logging.getLogger("replication")

#: Files of a finished run that tables are made from. Its manifest has their checksums, and those of the trained weights.
CHECKED = ("metrics.jsonl", "timings.jsonl", "items.csv")


class RunSummary(BaseModel):
    """summary.json: how a run ended. None = not measured; nothing here varies between two runs of one command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    status: Literal["done", "failed", "diverged", "pending"]
    reason: str | None = None
    steps_done: int = 0
    accuracy: float | None = None
    accuracy_new_stories: float | None = None
    sampled_accuracy: float | None = None
    validation_accuracy: float | None = None
    held_out_accuracy: float | None = None
    other_task_accuracy: float | None = None
    longer_numbers_accuracy: float | None = None
    train_accuracy: float | None = None
    n_items: int | None = None
    tokens_generated: int | None = None
    tokens_in_loss: int | None = None
    tokens_forwarded: int | None = None
    predicted_flops: int | None = None
    kept_fraction: float | None = None
    kept_share_all: float | None = None
    kl_to_base: float | None = None
    entropy: float | None = None
    clipped_share: float | None = None
    skipped_steps: int | None = None


def read_summary(path: str | Path) -> RunSummary | None:
    """The summary of a finished run, or None if there is none; one that is cut off is as good as none, with a warning.

    Raises:
        UserError: it cannot be read, or is whole and of another version of this code. That run is finished: never done again.
    """
    file = Path(path) / "summary.json"
    with explained(file):
        if not file.exists():
            return None
        data = file.read_bytes()
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        log.warning("%s is damaged, the run counts as unfinished (%s)", file, error)
        return None
    try:
        return RunSummary.model_validate(found)
    except ValidationError as error:
        names = ", ".join(dict.fromkeys(str(part["loc"][0]) for part in error.errors() if part["loc"])) or "all of it"
        commit = earlier_manifest(Path(path)).get("commit")
        raise UserError(
            f"{path} was finished by another version of this code (what does not fit in summary.json: {names}): "
            f"use {f'commit {commit}' if commit else 'that version'}, or move the folder away"
        ) from None


def earlier_manifest(path: Path) -> dict[str, Any]:
    """What manifest.json said before this start; empty, with a warning, if it cannot be read."""
    if not (path / "manifest.json").exists():
        return {}
    try:
        found = read_json(path / "manifest.json", "a manifest")
    except UserError as error:
        log.warning("%s; what it said of earlier starts is lost", error)
        return {}
    return found if isinstance(found, dict) else {}


def check_files(path: str | Path, names: Iterable[str] = CHECKED) -> None:
    """Raise UserError if one of a finished run's files has not the checksum in its manifest (cut off between two lines, say)."""
    file = Path(path) / "manifest.json"
    found = read_json(file, "a manifest") if file.exists() else {}
    sums = found.get("files") if isinstance(found, dict) else None
    for name in names:
        other = Path(path) / name
        if isinstance(sums, dict) and name in sums and (not other.exists() or sha256_of(other) != sums[name]):
            raise UserError(f"{other} is not as its run left it (cut off, edited?): remove the folder {path} and start again")


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hex."""
    with explained(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_locked(path: str | Path) -> bool:
    """Whether some process is running the run of this folder now."""
    file = Path(path) / ".lock"
    if not file.exists():
        return False
    try:
        Lock(file).release()
    except Locked:
        return True
    return False


def mark_failed(path: str | Path, reason: str, log_tail: Iterable[str] = ()) -> None:
    """Note in failure.json why the run in this folder stopped; the next start of the run removes the note and tries again."""
    make_folder(Path(path))
    note = {"reason": reason, "log_tail": list(log_tail), "time": now(), "pid": os.getpid()}
    atomic_write(Path(path) / "failure.json", to_json(note, indent=2) + "\n")


def read_failure(path: str | Path) -> dict[str, Any] | None:
    """The note of ``mark_failed``, or None."""
    file = Path(path) / "failure.json"
    if not file.exists():
        return None
    try:
        found = read_json(file, "a note of a failure")
    except UserError:
        found = None
    return found if isinstance(found, dict) and "reason" in found else {"reason": f"{file} is damaged", "log_tail": []}

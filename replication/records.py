"""The directory of one run: opened under a lock, resumed from intact checkpoints, finished by summary.json, written last.

What a run may leave behind at any moment is something the next start can use. Whole files are written by ``atomic_write``;
the growing ones (metrics, timings, samples) only ever get whole lines appended, and each checkpoint knows how long they
were, so that a resumed run cuts them back and goes on byte for byte as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from replication import checkpoints
from replication.errors import UserError
from replication.files import (
    Lock,
    Locked,
    atomic_write,
    explained,
    finite,
    make_folder,
    read_json,
    remove_leftovers,
    sync_folder,
    to_json,
    write_all,
)
from replication.manifest import manifest, now

if TYPE_CHECKING:
    from torch import Tensor

    from replication.config import ExperimentConfig

__all__ = ["Locked", "RunDirectory", "RunSummary", "check_files", "is_locked", "mark_failed", "read_failure", "read_summary"]

log = logging.getLogger("replication")

SCHEMA_VERSION = 1
ITEM_COLUMNS = ("split", "item_id", "correct", "truncated", "parsed")
_GROWING = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")
#: Files of a finished run that tables are made from. Its manifest has their checksums, and those of the trained weights.
_CHECKED = ("metrics.jsonl", "timings.jsonl", "items.csv")
#: How long a run that is to begin waits for its lock: longer than the slowest look at it.
LOOK_SECONDS = 2.0
#: What may lie in the folder of a run that has not begun.
_BEFOREHAND = {"run.log", "failure.json"}


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


class RunDirectory:
    """One run's folder, held by this process until ``close`` (or the end of the ``with`` block, or its death).

    Attributes:
        path: the folder.
        run_id: of the config it was opened with.
        finished: whether a whole run lies there; then nothing is written.
        summary: that run's summary, or None.
    """

    def __init__(self, path: Path, run_id: str, lock: Lock) -> None:
        self.path = path
        self.run_id = run_id
        self.summary: RunSummary | None = None
        self._lock = lock
        self._descriptors: dict[str, int] = {}
        self._manifest: dict[str, Any] = {}

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What manifest.json says."""
        return self._manifest

    @classmethod
    def open(cls, path: str | Path, config: ExperimentConfig) -> RunDirectory:
        """Create the folder of a run, or open that of an earlier start of the same run.

        Raises:
            UserError: if the folder holds a run of another config, something that is no run, or cannot be written.
            Locked: if another process is running this run now.
        """
        path = Path(path)
        make_folder(path)
        strangers = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")} - _BEFOREHAND
        if strangers and not (path / "config.json").exists():
            raise UserError(f"{path} holds {sorted(strangers)[0]} but no config.json, so it is no run: choose another folder")
        lock = _lock(path / ".lock")
        try:
            run = cls(path, config.run_id, lock)
            run._adopt(config.model_dump(mode="json"))
        except BaseException:
            lock.release()
            raise
        return run

    def _adopt(self, config: dict[str, Any]) -> None:
        remove_leftovers(self.path)
        earlier = _earlier_manifest(self.path)
        if not earlier and any(map(self._length, _GROWING)):  # it was begun, by what is not known any more
            earlier = {"commit": None}
        config = json.loads(to_json(config))
        if (self.path / "config.json").exists():
            there = read_json(self.path / "config.json", "the config of a run")
            self._refuse_another(there, config, earlier.get("run_id", self.run_id))
        else:
            atomic_write(self.path / "config.json", to_json(config, indent=2) + "\n")
        self.summary = read_summary(self.path)
        if self.summary is not None:
            self._refuse_another(config, config, self.summary.run_id)
            checkpoints.remove(self._checkpoints)
            return
        with explained(self.path):
            (self.path / "failure.json").unlink(missing_ok=True)
        self._manifest = {"run_id": self.run_id, **manifest(), "started": now(), "finished": None, "earlier_starts": []}
        if earlier:
            if earlier.get("commit") != (commit := self._manifest["commit"]):
                log.warning("%s was begun at commit %s and goes on at %s", self.path, earlier.get("commit"), commit)
            start = {name: earlier.get(name) for name in ("started", "commit", "dirty")}
            start |= {name: earlier.get(name) for name in ("python", "packages") if earlier.get(name) != self._manifest[name]}
            self._manifest["model_commit"] = earlier.get("model_commit")
            self._manifest["earlier_starts"] = [*(earlier.get("earlier_starts") or []), start]
        self.write_manifest()

    def _refuse_another(self, there: Any, here: dict[str, Any], run_id: str) -> None:
        there = there if isinstance(there, dict) else {}
        names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
        if names:
            first = "; ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in names[:3])
            raise UserError(f"{self.path} holds a run of another config ({first}): choose another folder")
        if run_id != self.run_id:
            raise UserError(f"{self.path} holds run {run_id} of another base or task version: choose another folder")

    # What grows -------------------------------------------------------------------------------------------------------

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; what is not finite becomes null."""
        self._append("metrics.jsonl", [row])

    def append_timings(self, row: Mapping[str, Any]) -> None:
        """Add a line to timings.jsonl, the home of all that varies between two runs of one command."""
        self._append("timings.jsonl", [row])

    def append_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add a line per completion to samples.jsonl."""
        self._append("samples.jsonl", rows)

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = "".join(to_json(dict(row)) + "\n" for row in rows)
        with explained(self.path / name):
            if name not in self._descriptors:
                self._descriptors[name] = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            write_all(self._descriptors[name], lines.encode())

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Save all that is needed to go on after ``step``; the checkpoint before it is kept, older ones go.

        Args:
            step: optimizer steps done.
            tensors: weights, optimizer state, generator states; distinct storage each.
            state: what JSON can hold, floats kept exactly.

        Raises:
            Locked: another process took the run over, since the lock was lost.
        """
        self._lock.hold()
        with explained(self.path):
            # On the disk, by name and by content, before the checkpoint that counts on them.
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
            sync_folder(self.path)
        lengths = {name: self._length(name) for name in _GROWING}
        checkpoints.save(self._checkpoints, checkpoints.Checkpoint(step, self.run_id, lengths, dict(state), dict(tensors)))

    def load_checkpoint(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest intact checkpoint as (step, tensors, state), or None; what was logged after it is cut off.

        A torn, corrupted or foreign one is skipped with a warning.
        """
        found = checkpoints.load(self._checkpoints, self.run_id, self._length)
        if found is None:
            self._cut(dict.fromkeys(_GROWING, 0))
            return None
        self._cut(found.lengths)
        return found.step, found.tensors, found.state

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _length(self, name: str) -> int:
        if name not in _GROWING:  # a checkpoint may say anything, and what it names is cut
            raise ValueError(f"{name} is no file of a run that grows")
        path = self.path / name
        return path.stat().st_size if path.exists() else 0

    def _cut(self, lengths: Mapping[str, int]) -> None:
        for name, length in lengths.items():
            if self._length(name) > length:
                with explained(self.path / name):
                    os.truncate(self.path / name, length)

    # The end ----------------------------------------------------------------------------------------------------------

    def write_adapter(self, model: Any) -> None:
        """Save the trained weights into adapter/, in safetensors, on the disk before the summary that says they are there."""
        from safetensors import SafetensorError

        folder = self.path / "adapter"
        with explained(folder):
            try:
                model.save_pretrained(folder)
            except SafetensorError as error:  # safetensors words what the system said
                raise OSError(0, str(error)) from None
            for path in folder.iterdir():
                sync_folder(path)
            sync_folder(folder)

    def write_items(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write items.csv: a row per evaluated item with split, item_id, correct, truncated and parsed (None = empty)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["schema_version", *ITEM_COLUMNS])
        for row in rows:
            correct, truncated = int(row["correct"]), int(row["truncated"])
            parsed = "" if row.get("parsed") is None else int(row["parsed"])
            writer.writerow([SCHEMA_VERSION, row["split"], row["item_id"], correct, truncated, parsed])
        atomic_write(self.path / "items.csv", text.getvalue())

    def write_manifest(self, **extra: Any) -> None:
        """Write manifest.json again with ``extra`` added to it (base checksum, task version, ...)."""
        self._manifest |= extra
        atomic_write(self.path / "manifest.json", to_json(self._manifest, indent=2) + "\n")

    def finish(self, summary: Mapping[str, Any]) -> RunSummary:
        """Write the manifest, then summary.json, then remove the checkpoints: from summary.json on, the run is finished.

        Args:
            summary: fields of RunSummary without run_id; status is done or diverged, floats that are not finite become None.
        """
        result = RunSummary(**(finite(dict(summary)) | {"run_id": self.run_id}))
        if result.status not in ("done", "diverged"):
            raise ValueError(f"a run ends as done or diverged, not {result.status}: raise an exception for what can be tried again")
        self._lock.hold()
        with explained(self.path):
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
        weights = sorted(path.relative_to(self.path).as_posix() for path in self.path.glob("adapter/*.safetensors"))
        sums = {name: _sha256(self.path / name) for name in (*_CHECKED, *weights) if (self.path / name).exists()}
        self.write_manifest(finished=now(), files=sums)
        atomic_write(self.path / "summary.json", to_json(result.model_dump(), indent=2) + "\n")
        self.summary = result
        checkpoints.remove(self._checkpoints)
        return result

    def close(self) -> None:
        """Let go of the folder; safe to call twice."""
        for descriptor in self._descriptors.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._descriptors.clear()
        self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        commit = _earlier_manifest(Path(path)).get("commit")
        raise UserError(
            f"{path} was finished by another version of this code (what does not fit in summary.json: {names}): "
            f"use {f'commit {commit}' if commit else 'that version'}, or move the folder away"
        ) from None


def _earlier_manifest(path: Path) -> dict[str, Any]:
    if not (path / "manifest.json").exists():
        return {}
    try:
        found = read_json(path / "manifest.json", "a manifest")
    except UserError as error:
        log.warning("%s; what it said of earlier starts is lost", error)
        return {}
    return found if isinstance(found, dict) else {}


def check_files(path: str | Path, names: Iterable[str] = _CHECKED) -> None:
    """Raise UserError if one of a finished run's files has not the checksum in its manifest (cut off between two lines, say)."""
    file = Path(path) / "manifest.json"
    found = read_json(file, "a manifest") if file.exists() else {}
    sums = found.get("files") if isinstance(found, dict) else None
    for name in names:
        other = Path(path) / name
        if isinstance(sums, dict) and name in sums and (not other.exists() or _sha256(other) != sums[name]):
            raise UserError(f"{other} is not as its run left it (cut off, edited?): remove the folder {path} and start again")


def _sha256(path: Path) -> str:
    with explained(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock(path: Path) -> Lock:
    """The lock of a run. Whoever looks whether it is held (``is_locked``) holds it for a moment: that is waited for."""
    deadline = time.monotonic() + LOOK_SECONDS
    while True:
        try:
            return Lock(path)
        except Locked:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


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

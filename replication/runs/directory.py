"""The directory of one run: opened under a lock, resumed from intact checkpoints, finished by summary.json, written last.

What a run may leave behind at any moment is something the next start can use. Whole files are written by ``atomic_write``;
the growing ones (metrics, timings, samples) only ever get whole lines appended, and each checkpoint knows how long they
were, so that a resumed run cuts them back and goes on byte for byte as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replication.errors import UserError
from replication.names import SCHEMA_VERSION
from replication.runs import checkpoints
from replication.runs.files import (
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
from replication.runs.provenance import manifest, now
from replication.runs.summary import (
    CHECKED,
    RunSummary,
    check_files,
    earlier_manifest,
    is_locked,
    mark_failed,
    read_failure,
    read_summary,
    sha256_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from replication.config import ExperimentConfig

__all__ = ["Locked", "RunDirectory", "RunSummary", "check_files", "is_locked", "mark_failed", "read_failure", "read_summary"]

log = logging.getLogger("replication")

ITEM_COLUMNS = ("split", "item_id", "correct", "truncated", "parsed")
_GROWING = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")
#: How long a run that is to begin waits for its lock: longer than the slowest look at it.
LOOK_SECONDS = 2.0
#: What may lie in the folder of a run that has not begun.
_BEFOREHAND = {"run.log", "failure.json"}


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
        earlier = earlier_manifest(self.path)
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

    def lengths(self) -> dict[str, int]:
        """Bytes of each growing file now; a checkpoint remembers them, so that a resumed run cuts off what came later."""
        return {name: self._length(name) for name in _GROWING}

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], lengths: Mapping[str, int]) -> None:
        """Save all that is needed to go on after ``step``; the checkpoint before it is kept, older ones are removed.

        Args:
            step: optimizer steps done.
            tensors: parameters and optimizer state; distinct storage each.
            lengths: what ``lengths()`` returned when that step had ended.
        """
        with explained(self.path):
            # On the disk, by name and by content, before the checkpoint that counts on them.
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
            sync_folder(self.path)
        checkpoints.save(self._checkpoints, checkpoints.Checkpoint(step, self.run_id, dict(lengths), dict(tensors)))

    def load_checkpoint(self) -> tuple[int, dict[str, Tensor]] | None:
        """The newest intact checkpoint as (step, tensors), or None; what was logged after it is cut off.

        A torn, corrupted or foreign one is skipped with a warning.
        """
        found = checkpoints.load(self._checkpoints, self.run_id, self._length)
        if found is None:
            self._cut(dict.fromkeys(_GROWING, 0))
            return None
        self._cut(found.lengths)
        return found.step, found.tensors

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

    def write_adapter(self, model: Any, card: str) -> None:
        """Save the trained weights into adapter/ with their card, on the disk before the summary that says they are there."""
        from safetensors import SafetensorError

        folder = self.path / "adapter"
        with explained(folder):
            try:
                model.save_pretrained(folder)
            except SafetensorError as error:  # safetensors words what the system said
                raise OSError(0, str(error)) from None
            atomic_write(folder / "README.md", card)  # in place of the empty form that PEFT leaves there
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
        sums = {name: sha256_of(self.path / name) for name in (*CHECKED, *weights) if (self.path / name).exists()}
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

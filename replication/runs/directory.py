"""The folder of one run: opened under a lock, resumed from an intact checkpoint, finished by summary.json, which is written last.

Whatever a kill leaves behind, the next start can use. Whole files are written by ``atomic_write``. The growing ones (metrics,
timings, samples) get whole lines appended, and each checkpoint holds how long they were: a resumed run cuts them back and goes on
byte for byte as if it had never stopped.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from replication.console import say
from replication.errors import UserError
from replication.names import SCHEMA_VERSION
from replication.runs import checkpoints
from replication.runs.files import append, atomic_write, explained, finite, make_folder, read_json, remove_leftovers, sync, to_json
from replication.runs.live_curves import live_curves
from replication.runs.provenance import manifest, now
from replication.runs.summary import CHECKED, RunSummary, read_summary, sha256_of

if TYPE_CHECKING:
    from torch import Tensor

    from replication.config import ExperimentConfig

ITEM_COLUMNS = ("split", "item_id", "template", "correct", "reward", "truncated", "parsed")
_GROWING = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")
#: What may lie in the folder of a run before its first start.
_BEFOREHAND = {"run.log", "failure.json"}
#: Seconds that a start waits for the lock: ``is_locked`` in another process holds it for a moment.
_PATIENCE = 2.0


class Locked(UserError):
    """Another process is running this run."""


class RunDirectory:
    """One run's folder. This process holds its lock until ``close`` or the end of the ``with`` block.

    Attributes:
        path: the folder.
        run_id: of the config that it was opened with.
        summary: the summary if a finished run lies there (then nothing is written), or None.
        manifest: the content of manifest.json.
    """

    def __init__(self, path: Path, config: ExperimentConfig, lock: FileLock) -> None:
        self.path = path
        self.run_id = config.run_id
        self._lock = lock
        self._show = live_curves(path / "tensorboard") if config.tensorboard else None
        remove_leftovers(path)
        earlier = read_json(path / "manifest.json", "a manifest") if (path / "manifest.json").exists() else {}
        settings = config.model_dump(mode="json")
        started_before = self._has_started()
        # A config.json without a run's manifest is somebody's file, a model's for instance, and is never written over.
        if (path / "config.json").exists() and (started_before or "run_id" not in earlier):
            self._refuse_another(config, earlier)
        else:
            atomic_write(path / "config.json", to_json(settings, indent=2) + "\n")
        self.summary: RunSummary | None = read_summary(path)
        if self.summary is not None:
            self.manifest: dict[str, Any] = earlier
            checkpoints.remove(self._checkpoints)
            return
        with explained(path):
            (path / "failure.json").unlink(missing_ok=True)
        self.manifest = {"run_id": self.run_id, **manifest(), "started": now(), "finished": None, "earlier_starts": []}
        if earlier and started_before:
            self._note_earlier_start(earlier)
        self.write_manifest()

    @classmethod
    def open(cls, path: str | Path, config: ExperimentConfig) -> RunDirectory:
        """Make the folder of a run, or open that of an earlier start of the same run.

        A folder whose run never finished a step is taken over by another config: its start failed, by a typo for instance.

        Raises:
            UserError: the folder holds another run or something else, or cannot be written.
            Locked: another process is running this run now.
        """
        path = Path(path)
        make_folder(path)
        strangers = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")} - _BEFOREHAND
        if strangers and not (path / "config.json").exists():
            raise UserError(f"{path} holds {min(strangers)} but no config.json, so it is no run: choose another folder")
        lock = FileLock(path / ".lock", timeout=_PATIENCE, thread_local=False)
        with explained(path / ".lock"):
            try:
                lock.acquire()
            except Timeout:
                raise Locked(f"{path} is in use by another process: wait for it, or choose another folder") from None
        try:
            return cls(path, config, lock)
        except BaseException:
            lock.release()
            raise

    def _has_started(self) -> bool:
        """Whether an earlier start measured or trained something that the next start would continue."""
        return any(self.lengths().values()) or self._checkpoints.exists() or (self.path / "summary.json").exists()

    def _refuse_another(self, config: ExperimentConfig, earlier: Mapping[str, Any]) -> None:
        here = config.model_dump(mode="json")
        there = read_json(self.path / "config.json", "the config of a run")
        if earlier.get("run_id") == self.run_id:  # it covers all that may not differ between two starts
            return
        names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
        if names:
            first = "; ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in names[:3])
            raise UserError(f"{self.path} holds a run of another config ({first}): choose another folder")
        if "run_id" in earlier:
            own = config.user_code().items()
            files = [f"file of your {name}" for name, code in own if (earlier.get(name) or {}).get("sha256") != code["sha256"]]
            what = " and ".join(files) or "base or task version"
            raise UserError(f"{self.path} holds run {earlier['run_id']} of another {what}: choose another folder")

    def _note_earlier_start(self, earlier: Mapping[str, Any]) -> None:
        """Keep in the manifest what the earlier starts ran on, where that differs from now."""
        if earlier["commit"] != self.manifest["commit"]:
            say(f"warning: {self.path} started at commit {earlier['commit']} and goes on at {self.manifest['commit']}")
        start = {name: earlier[name] for name in ("started", "commit", "dirty")}
        start |= {name: earlier[name] for name in ("python", "packages") if earlier[name] != self.manifest[name]}
        self.manifest |= {name: earlier.get(name) for name in ("model_commit", "dtype")}
        self.manifest["earlier_starts"] = [*earlier["earlier_starts"], start]

    # Growing files ----------------------------------------------------------------------------------------------------

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; a number that is not finite becomes null."""
        self._append("metrics.jsonl", [row])
        if self._show is not None:
            self._show(row)

    def append_timings(self, row: Mapping[str, Any]) -> None:
        """Add a line to timings.jsonl, which holds all that varies between two runs of one command."""
        self._append("timings.jsonl", [row])

    def append_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add a line per completion to samples.jsonl."""
        self._append("samples.jsonl", rows)

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        append(self.path / name, "".join(to_json(dict(row)) + "\n" for row in rows).encode())

    def lengths(self) -> dict[str, int]:
        """Bytes of each growing file now."""
        paths = {name: self.path / name for name in _GROWING}
        return {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}

    # Checkpoints ------------------------------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], lengths: Mapping[str, int]) -> None:
        """Save all that is needed to go on after ``step``; the checkpoint before it is kept, older ones are removed.

        Args:
            step: optimizer steps done.
            tensors: parameters and optimizer state; no two share storage.
            lengths: what ``lengths()`` returned when that step had ended.
        """
        self._sync_growing()  # they reach the disk before the checkpoint that counts on them
        checkpoints.save(self._checkpoints, step, tensors, lengths)

    def load_checkpoint(self) -> tuple[int, dict[str, Tensor]] | None:
        """The newest intact checkpoint as (step, tensors), or None; what was logged after it is cut off."""
        now_there = self.lengths()
        for step, tensors, lengths in checkpoints.intact(self._checkpoints):
            if lengths.keys() == now_there.keys() and all(lengths[name] <= now_there[name] for name in lengths):
                self._cut(lengths)
                return step, tensors
            say(f"warning: the checkpoint of step {step} counts on lines that are not there: going back to the one before")
        self._cut(dict.fromkeys(_GROWING, 0))
        return None

    def _cut(self, lengths: Mapping[str, int]) -> None:
        for name, length in self.lengths().items():
            if length > lengths[name]:
                with explained(self.path / name):
                    os.truncate(self.path / name, lengths[name])

    def _sync_growing(self) -> None:
        with explained(self.path):
            for name, length in self.lengths().items():
                if length:
                    sync(self.path / name)
            sync(self.path)

    # The end ----------------------------------------------------------------------------------------------------------

    def write_adapter(self, model: Any, card: str) -> None:
        """Save the trained weights with their card into adapter/, in safetensors; they reach the disk before summary.json."""
        from peft import PeftModel
        from safetensors import SafetensorError

        folder = self.path / "adapter"
        # The embedding is never trained. Asked to find that out, PEFT looks for the base's config, also on the Hub. A critic's
        # adapter is of no use to anyone who wants the policy.
        how = {"save_embedding_layers": False, "selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
        with explained(folder):
            try:
                model.save_pretrained(folder, **how)
            except SafetensorError as error:  # it carries the system's message as text
                raise OSError(0, str(error)) from None
            atomic_write(folder / "README.md", card)  # in place of the empty form that PEFT leaves there
            mode = (folder / "README.md").stat().st_mode
            for path in folder.iterdir():
                path.chmod(mode)  # safetensors lets only the owner read its file; others on a shared disk follow the umask
                sync(path)
            sync(folder)

    def write_items(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write items.csv: a row per evaluated item, with the keys of ITEM_COLUMNS; None is an empty cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["schema_version", *ITEM_COLUMNS])
        for row in rows:
            # 1.0 is written as 1 and True as 1, so that a reward of whole numbers reads like the other counts.
            cells = [f"{value:g}" if isinstance(value, bool | float) else value for value in map(row.get, ITEM_COLUMNS)]
            writer.writerow([SCHEMA_VERSION, *cells])
        atomic_write(self.path / "items.csv", text.getvalue())

    def write_manifest(self, **extra: Any) -> None:
        """Write manifest.json again with ``extra`` added to it (model, base checksum, task version, ...)."""
        self.manifest |= extra
        atomic_write(self.path / "manifest.json", to_json(self.manifest, indent=2) + "\n")

    def finish(self, summary: Mapping[str, Any]) -> RunSummary:
        """Write the manifest, then summary.json, then remove the checkpoints: from summary.json on, the run is finished.

        Args:
            summary: fields of RunSummary without run_id. Its status is done or diverged: for a failure that can be tried again,
                raise an exception. Floats that are not finite become None.
        """
        result = RunSummary(**(finite(dict(summary)) | {"run_id": self.run_id}))
        self._sync_growing()
        weights = sorted(path.relative_to(self.path).as_posix() for path in self.path.glob("adapter/*.safetensors"))
        sums = {name: sha256_of(self.path / name) for name in (*CHECKED, *weights) if (self.path / name).exists()}
        self.write_manifest(finished=now(), files=sums)
        atomic_write(self.path / "summary.json", to_json(result.model_dump(), indent=2) + "\n")
        self.summary = result
        checkpoints.remove(self._checkpoints)
        return result

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

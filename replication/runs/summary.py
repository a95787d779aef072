"""What a run's folder says about it: how it ended, whether its files are whole, whether it is running, why it failed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from replication.errors import UserError
from replication.runs.files import atomic_write, explained, make_folder, read_json, to_json
from replication.runs.provenance import now

#: Files of a finished run that tables are made from. Its manifest has their checksums, and those of the trained weights.
CHECKED = ("metrics.jsonl", "timings.jsonl", "items.csv")


class RunSummary(BaseModel):
    """summary.json: how a run ended. None = not measured; nothing here varies between two runs of one command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    status: Literal["done", "diverged"]
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
    kept_fraction: float | None = None
    kept_share_all: float | None = None
    kl_to_base: float | None = None
    entropy: float | None = None
    clipped_share: float | None = None
    skipped_steps: int | None = None


def read_summary(path: str | Path) -> RunSummary | None:
    """The summary of a finished run, or None if the run is not finished.

    Raises:
        UserError: it cannot be read, or was written by another version of this code.
    """
    file = Path(path) / "summary.json"
    with explained(file):
        if not file.exists():
            return None
    found = read_json(file, "a summary")
    try:
        return RunSummary.model_validate(found)
    except ValidationError as error:
        names = ", ".join(dict.fromkeys(str(part["loc"][0]) for part in error.errors() if part["loc"])) or "all of it"
        raise UserError(
            f"{path} was finished by another version of this code (unknown in summary.json: {names}): "
            "use the commit named in its manifest.json, or move the folder away"
        ) from None


def run_totals(path: Path) -> dict[str, float | int | None]:
    """Sums over the steps of a run, read from its metrics.jsonl, so that a resumed run counts all its steps."""
    lines = path.read_text().splitlines() if path.exists() else ()
    rows = [row for row in map(json.loads, lines) if "reward" in row]
    names = ("tokens_generated", "tokens_untied", "tokens_in_loss", "tokens_forwarded")
    total = {name: sum(row[name] for row in rows) for name in names}
    untied = total.pop("tokens_untied")
    return {
        "steps_done": len(rows),
        **total,
        "kept_fraction": total["tokens_in_loss"] / untied if untied else None,
        "kept_share_all": total["tokens_in_loss"] / total["tokens_generated"] if total["tokens_generated"] else None,
        "clipped_share": sum(row["clipped"] for row in rows) / len(rows) if rows else None,
        "skipped_steps": sum(row["skipped"] for row in rows),
    }


def check_files(path: str | Path, names: Iterable[str] = CHECKED) -> None:
    """Compare files of a finished run with the checksums in its manifest.

    Raises:
        UserError: one of them has changed or is missing.
    """
    sums = read_json(Path(path) / "manifest.json", "a manifest").get("files", {})
    for name in names:
        file = Path(path) / name
        if name in sums and (not file.exists() or sha256_of(file) != sums[name]):
            raise UserError(f"{file} has changed since its run ended: remove the folder {path} and start again")


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
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True


def mark_failed(path: str | Path, reason: str, log_tail: Iterable[str] = ()) -> None:
    """Write to failure.json why the run in this folder stopped; the next start removes the file and tries again."""
    make_folder(Path(path))
    note = {"reason": reason, "log_tail": list(log_tail), "time": now()}
    atomic_write(Path(path) / "failure.json", to_json(note, indent=2) + "\n")


def read_failure(path: str | Path) -> dict[str, Any] | None:
    """What ``mark_failed`` wrote, or None."""
    file = Path(path) / "failure.json"
    return read_json(file, "a note of a failure") if file.exists() else None

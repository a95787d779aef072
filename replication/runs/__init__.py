"""One run's folder.

In: a config, then metrics, tensors and a summary. Out: files that survive a kill at any moment, and what can be read from them.
Start with ``directory``: ``RunDirectory`` is opened under a lock, resumed from a checkpoint, finished by summary.json.
``files`` writes safely, ``checkpoints`` saves tensors, ``summary`` is what others read, ``provenance`` is what made a result.
"""

from __future__ import annotations

from replication.runs.directory import Locked, RunDirectory
from replication.runs.files import atomic_write, explained, make_folder, read_json, to_json
from replication.runs.memory import forget_peak_memory, peak_memory
from replication.runs.provenance import cores, dirty, manifest, now
from replication.runs.summary import RunSummary, check_files, is_locked, mark_failed, read_failure, read_summary, run_totals

__all__ = [
    "Locked",
    "RunDirectory",
    "RunSummary",
    "atomic_write",
    "check_files",
    "cores",
    "dirty",
    "explained",
    "forget_peak_memory",
    "is_locked",
    "make_folder",
    "manifest",
    "mark_failed",
    "now",
    "peak_memory",
    "read_failure",
    "read_json",
    "read_summary",
    "run_totals",
    "to_json",
]

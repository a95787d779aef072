"""One run's folder: opened under a lock, resumed from checkpoints, finished by summary.json.

In: a config, metrics, tensors. Out: files that survive a kill at any moment, and what others may read of them.
Start with ``directory``; ``files`` writes safely, ``checkpoints`` saves tensors, ``provenance`` says what made a result.
"""

from __future__ import annotations

from replication.runs.directory import RunDirectory
from replication.runs.files import Lock, Locked, atomic_write, explained, make_folder, read_json, stage, sync_folder, to_json
from replication.runs.memory import forget_peak_memory, peak_memory
from replication.runs.provenance import cores, dirty, manifest, now
from replication.runs.summary import RunSummary, check_files, is_locked, mark_failed, read_failure, read_summary

__all__ = [
    "Lock",
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
    "stage",
    "sync_folder",
    "to_json",
]

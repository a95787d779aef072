"""Find the planned runs that are missing and run them.

In: planned runs and the folder of their run directories. Out: finished run directories, and which runs failed and why.
Start with ``sweep``: ``run_plan`` checks what the runs need (``preflight``, ``memory_fit``), queues the missing ones (``queue``)
and runs them in processes of this machine (``pool``, ``worker``) or on a cluster (``ray``).
"""

from __future__ import annotations

from replication.sweep.preflight import check_needs
from replication.sweep.queue import SweepResult
from replication.sweep.sweep import run_plan

__all__ = ["SweepResult", "check_needs", "run_plan"]

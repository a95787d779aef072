"""Find the planned runs that are missing and run them, in processes of this machine or on a Ray cluster.

In: planned runs and a folder. Out: finished run folders, and a ``SweepResult`` that names what failed.
Start with ``schedule``; ``pool`` and ``ray`` start workers, ``worker`` is one of them, ``preflight`` looks for what is missing.
"""

from __future__ import annotations

from replication.sweep.schedule import SweepResult, run_plan
from replication.sweep.worker import GRACE

__all__ = ["GRACE", "SweepResult", "run_plan"]

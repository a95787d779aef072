"""Peak memory of this process, resident and on the GPU."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


def forget_peak_memory() -> None:
    """Start the peaks anew, so that earlier runs of the same worker do not count. The resident peak can only be reset on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Peak memory since ``forget_peak_memory`` in bytes: resident, and on the GPU if there is one."""
    peak = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peak

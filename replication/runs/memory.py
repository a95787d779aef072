"""The most memory a process held over a stretch of its life; where that cannot be told, over all of it."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


def forget_peak_memory() -> None:
    """Let the peaks count from here, so that a worker's earlier runs are not in them; only Linux can for the process's own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """The most memory this process held since ``forget_peak_memory``, resident and (if there is one) on the GPU, in bytes."""
    peak = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peak

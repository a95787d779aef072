"""Peak memory of this process, resident and on the GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
import sys
from pathlib import Path


def forget_peak_memory() -> None:
    """Start the peaks anew, so that earlier runs of the same worker do not count. The resident peak can only be reset on Linux."""
    gc.collect()
    # The mark only falls to what is resident now, and glibc keeps what earlier runs freed.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Peak memory since ``forget_peak_memory`` in bytes: resident, and on the GPU if there is one."""
    peak = {"peak_rss_bytes": _peak_rss_bytes()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peak


def _peak_rss_bytes() -> int:
    # Not ru_maxrss where there is a choice: it keeps the peak from before the last reset, and that of the program before exec.
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

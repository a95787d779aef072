"""The kernels of executed notebooks: they run this very Python, and a signal to the runner ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from replication.signals import GRACE, POLL, stop_requested


def kernel_manager() -> type:
    """A kernel manager that starts this very Python, whatever kernels are installed on the machine, with one thread."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"],
        display_name="Python 3",
        language="python",
        env={"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"},
    )

    class ThisPython(AsyncKernelManager):
        kernel_spec = property(lambda self: spec)
        pid: int | None = None  # of the kernel that was started last

        async def start_kernel(self, **options: Any) -> None:
            await super().start_kernel(**options)
            type(self).pid = self.provisioner.pid

    return ThisPython


@contextlib.contextmanager
def ended_by_signals(manager: Any) -> Iterator[None]:
    """Within it a signal to this process ends the kernel: first by SIGTERM, on which a sweep in it saves, then by SIGKILL.

    A kernel has a session of its own, so Ctrl-C does not reach it, and papermill waits for the running cell.
    """
    over = threading.Event()

    def watch() -> None:
        told = None
        while not over.wait(POLL):
            if stop_requested() is None or manager.pid is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                if told is None:
                    told = time.monotonic()
                    os.kill(manager.pid, signal.SIGTERM)
                elif time.monotonic() > told + GRACE + 5:  # its own sweep gives its workers GRACE seconds
                    os.kill(manager.pid, signal.SIGKILL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()

"""A worker process. It does one run after another, since importing torch takes seconds. Each run has its own log."""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from replication import console, signals
from replication.errors import UserError, first_line
from replication.runs import Locked

if TYPE_CHECKING:
    from replication.config import ExperimentConfig

#: Lines of a failed run's log that are kept with its reason.
LOG_LINES = 20
#: How a run ended: a status of RunSummary, "failed", or "locked" (another process has the run); and why.
Answer = tuple[str, str | None]


def work(connection: multiprocessing.connection.Connection, target: str, gpu: str | None) -> None:
    """Receive (config, folder), run ``target(config, folder)``, send the answer, until told to stop or left alone.

    A worker that is told to stop lets its run save and ends without an answer.

    Args:
        target: "module:function" of the training function.
        gpu: the one GPU this worker may see, or None.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGTERM, lambda signum, frame: signals.request_stop(signum))
    prepare_child()
    with contextlib.suppress(EOFError, OSError):  # the parent closed its end, or is gone
        while True:
            config, folder = connection.recv()
            answer = one_run(target, config, Path(folder))
            if signum := signals.stop_requested():
                sys.exit(128 + signum)
            connection.send(answer)
            gc.collect()


def prepare_child() -> None:
    """Set up a child process: open streams, and the parent as the only one that ends it."""
    console.open_closed_streams()
    # Ctrl-C and a closing terminal reach the whole process group; the parent then decides what its children do.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """Leave no child behind: when the parent dies, have the run save and stop, or end at once if a stop was already requested."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    if signals.stop_requested() is None:
        signals.request_stop(signal.SIGTERM)
        time.sleep(signals.GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def one_run(target: str, config: ExperimentConfig, folder: Path) -> Answer:
    """Call ``target(config, folder)`` with its output in the run's log; what it raises becomes an answer."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _output_into(folder / "run.log"):
            try:
                module, _, name = target.partition(":")
                function = getattr(importlib.import_module(module), name)
                signals.raise_if_stopped()  # the import took seconds
                summary = function(config, folder)
            except BaseException:
                traceback.print_exc()
                raise
    except Locked:
        return "locked", None
    except UserError as error:
        return "failed", str(error)
    except BaseException as error:  # only this run is lost
        return "failed", first_line(error, with_type=True)
    return summary.status, summary.reason


@contextlib.contextmanager
def _output_into(path: Path) -> Iterator[None]:
    """Let everything that this process and its libraries print go to the end of a file."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(path, "ab") as log:
        try:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            for number, original in zip((1, 2), kept, strict=True):
                os.dup2(original, number)
                os.close(original)


def how_it_died(exitcode: int) -> str:
    """An exit code of multiprocessing in words."""
    if exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"its process ended with status {exitcode}"


def log_tail(path: Path) -> list[str]:
    """The last lines of a log; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            return file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []

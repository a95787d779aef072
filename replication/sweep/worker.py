"""A worker process of a sweep: does one run after another, since importing torch costs seconds, each with its own log.

It imports nothing heavy at the top: the number of threads is set before torch is imported.
"""

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
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replication import signals
from replication.errors import Stopped, UserError
from replication.runs import Locked

#: Seconds that workers get to save and stop; whoever needs longer is killed and goes on from its last checkpoint.
GRACE = 15.0
#: Seconds between two looks at signals and at the runs of other processes.
POLL = 0.5
#: Lines of a failed run's log that are kept with its reason.
LOG_LINES = 20
Answer = tuple[str, str | None]


def work(connection: multiprocessing.connection.Connection, target: str, gpu: str | None) -> None:
    """Receive (config, folder), run ``target(config, folder)``, send (outcome, detail), until told to stop or left alone.

    Outcomes: a status of RunSummary (detail: its reason), "failed" (why), "locked" (another process has the run), "stopped"
    (its work is saved).

    Args:
        target: "module:function" of the training function.
        gpu: the one GPU this worker may see, or None.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    # Ctrl-C and a terminal that closes reach the whole process group, but only the parent decides; it tells its workers by SIGTERM.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signals.request_stop(signum))
    threading.Thread(target=_follow_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent closed its end, or is gone
        while signals.stop_requested() is None:
            config, folder = connection.recv()
            connection.send(one_run(target, config, Path(folder)))
            gc.collect()


def _follow_parent() -> None:
    """A sweep that was killed leaves no worker behind: its workers save and stop too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        signals.request_stop(signal.SIGTERM)


def one_run(target: str, config: Any, folder: Path) -> Answer:
    """Call ``target(config, folder)`` with its output in the run's log; whatever it raises becomes an answer (see ``work``)."""
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
    except Stopped:
        return "stopped", None
    except Locked:
        return "locked", None
    except UserError as error:
        return "failed", str(error)
    except BaseException as error:  # whatever it is, only this run is lost
        first = next(iter(str(error).splitlines()), "")
        return "failed", f"{type(error).__name__}: {first}".removesuffix(": ")
    return summary.status, summary.reason


@contextlib.contextmanager
def _output_into(path: Path) -> Iterator[None]:
    """Let everything this process and its libraries print go to the end of a file."""
    kept = [os.dup(number) for number in (1, 2)]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        for number in (1, 2):
            os.dup2(log, number)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        for number, original in zip((1, 2), kept, strict=True):
            os.dup2(original, number)
            os.close(original)
        os.close(log)


def how_it_died(exitcode: int | None) -> str:
    """An exit code of multiprocessing in words."""
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else f"signal {-exitcode}"
        return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"its process ended with status {exitcode}"


def log_tail(path: Path) -> list[str]:
    """The last lines of a log, none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            return file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []

"""SIGINT, SIGTERM and SIGHUP as a flag that long work polls.

The first signal is only noted: sampling, scoring and evaluation ask ``raise_if_stopped`` between two parts of a step, and the
training loop then saves the last whole step. A second signal ends the process at once; what was saved before is still there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from replication.errors import Stopped

#: Seconds that worker processes and kernels get to save and stop; one that needs longer is killed.
GRACE = 15.0
#: Seconds between two looks at signals and at the runs of other processes.
POLL = 0.5

_requested: int | None = None


def _note(signum: int, frame: FrameType | None) -> None:
    if _requested is not None:
        # Not by an exception: one raised inside a callback or a destructor would be lost.
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    request_stop(signum)


def request_stop(signum: int) -> None:
    """Ask the work of this process to stop as if ``signum`` had come."""
    global _requested
    _requested = signum


def stop_requested() -> int | None:
    """The signal that asked this process to stop, or None."""
    return _requested


def raise_if_stopped() -> None:
    """Raise Stopped if a signal came."""
    if _requested is not None:
        raise Stopped(_requested)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within this context the three signals set the flag; afterwards the earlier handlers and a clear flag are back.

    An ignored SIGHUP stays ignored: under nohup, work outlives its terminal. Outside the main thread no handler can be set: there
    the context does nothing. Contexts may be nested; only the outermost one sets and clears.
    """
    global _requested
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is _note:
        yield
        return
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    before = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM, *hangup)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = None

"""SIGINT, SIGTERM and SIGHUP as a flag that long work polls between two steps.

A signal must never end a run inside a step or inside the writing of a checkpoint. So the handler only notes the signal; the
training loop asks ``stop_requested()`` after each step, saves and raises ``Stopped``. A second Ctrl-C no longer waits.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from replication.errors import Stopped

_requested: int | None = None


def _note(signum: int, frame: FrameType | None) -> None:
    if _requested is not None and signum == signal.SIGINT:
        raise KeyboardInterrupt
    request_stop(signum)


def request_stop(signum: int) -> None:
    """Ask the work of this process to stop as if ``signum`` had come."""
    global _requested
    _requested = signum


def stop_requested() -> int | None:
    """The signal that asked this process to stop, or None."""
    return _requested


def raise_if_stopped() -> None:
    """Raise Stopped if a signal came; for work that has nothing to save."""
    if _requested is not None:
        raise Stopped(_requested)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within this context SIGINT, SIGTERM and SIGHUP set the flag; afterwards the earlier handlers and a clear flag are back.

    A SIGHUP that is ignored stays so: under nohup, work outlives its terminal.
    Outside the main thread no handler can be set: there the context does nothing, and a signal acts as it did before.
    Contexts may be nested; only the outermost sets and clears.
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

"""Lines for people. A closed terminal, a broken pipe or a full disk loses lines and never the work."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

#: Nobody reads any more: the pipe is closed, the terminal is gone.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class Lenient:
    """A text stream that drops what cannot be written.

    Attributes:
        lost: the error if text was lost for another reason than a reader that left, such as a full disk; or None.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        with self._dropping():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self.stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                self.lost = error
            with contextlib.suppress(OSError, io.UnsupportedOperation):
                to_nowhere(self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def open_closed_streams() -> None:
    """Let stdin, stdout and stderr that were closed before Python started lead to the null device.

    Otherwise the next file that is opened gets their number, and what is printed goes into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", buffering=1, closefd=False))  # noqa: SIM115 (open for as long as the process lives)


@contextlib.contextmanager
def lenient_streams() -> Iterator[Lenient]:
    """Within this context stdout and stderr drop what cannot be written; gives the stdout."""
    open_closed_streams()
    before = sys.stdout, sys.stderr
    out, err = Lenient(sys.stdout), Lenient(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def say(line: str) -> None:
    """Print a line on stderr, above a progress bar if there is one; where nobody can read it, it is left out."""
    from tqdm import tqdm

    if sys.stderr is None:
        return
    try:
        tqdm.write(line, file=sys.stderr)
    except OSError:
        to_nowhere(2)


def to_nowhere(descriptor: int) -> None:
    """Lead a descriptor to the null device: what is left in its stream's buffer would fail again when Python ends."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


def quiet_libraries() -> None:
    """Hide what a reader cannot act on: the bar over the loading of weights, and warnings that one library addresses to another.

    PEFT and transformers announce names that will change in later versions; the versions are pinned. The bars of downloads and all
    other warnings stay.
    """
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    enable_progress_bars()  # those of downloads, which the line above turned off too
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate|torch)\.")

"""Lines for whoever watches, on stderr: a terminal or a pipe that is gone costs the lines and never the work."""

from __future__ import annotations

import contextlib
import os
import sys


def say(line: str) -> None:
    """Print a line on stderr, above a progress bar if there is one; where nobody can read it, it is left out."""
    from tqdm import tqdm

    try:
        tqdm.write(line, file=sys.stderr)
    except OSError:
        to_nowhere(2)


def to_nowhere(descriptor: int) -> None:
    """Let stdout (1) or stderr (2) go to the null device: what is left in its buffer would fail again when Python ends."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)

"""Lines on stderr for the reader. A terminal or a pipe that is gone costs the lines and never the work."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings


def say(line: str) -> None:
    """Print a line on stderr, above a progress bar if there is one; a line that cannot be written is dropped."""
    from tqdm import tqdm

    try:
        tqdm.write(line, file=sys.stderr)
    except OSError:
        to_nowhere(2)


def to_nowhere(descriptor: int) -> None:
    """Let stdout (1) or stderr (2) go to the null device: what is left in its buffer would fail again when Python ends."""
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

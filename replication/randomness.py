"""One seed, many independent named streams.

Every use of chance names its own stream, so that adding a method, resuming a run or drawing once more in one place never
shifts what is drawn in another. A stream is a function of (seed, name, keys) alone: nothing has to be saved to resume.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from replication.errors import UserError


def _derive(seed: int, name: str, keys: tuple[int | str, ...]) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be a whole number from 0 on, not {seed!r}")
    # repr keeps 1 and "1" apart, and the length of each part unambiguous.
    text = repr((seed, name, *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str, *keys: int | str) -> torch.Generator:
    """A torch generator (CPU) for the named stream; the same arguments always give the same draws."""
    return torch.Generator().manual_seed(_derive(seed, name, keys))


def numpy_stream(seed: int, name: str, *keys: int | str) -> np.random.Generator:
    """The same for numpy, used by the bootstrap and the task generators."""
    return np.random.default_rng(_derive(seed, name, keys))

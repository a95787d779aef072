"""How an answer is checked: right, not yet (and what is off), or not tried."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from replication.algorithms import TokenCredit
from replication.randomness import stream

Credits = Callable[..., TokenCredit]


@dataclass(frozen=True)
class Checked:
    """The result of a check; ``right`` is None for an exercise that the reader has not tried."""

    right: bool | None
    message: str

    def __repr__(self) -> str:
        return self.message


def exercise(check: Callable[[Any], str | None]) -> Callable[[Any], Checked]:
    """Make a checking function of one that returns None for a right answer and otherwise what is off."""

    @functools.wraps(check)
    def checked(answer: Any) -> Checked:
        if answer is None:
            return Checked(None, "not solved yet")
        try:
            wrong = check(answer)
        except Exception as error:  # an answer may be a reader's own function
            wrong = f"this kind of answer cannot be checked ({type(error).__name__}: {error})"
        return Checked(wrong is None, "right" if wrong is None else f"not yet: {wrong}")

    return checked


def is_far(answer: float, right: float, tolerance: float = 0.005) -> bool:
    """Whether a number is not the right one; NaN is far from everything."""
    return not abs(float(answer) - right) <= tolerance


def groups(count: int) -> list[tuple[list[list[int]], Tensor]]:
    """Groups of four answers that share beginnings, of several lengths, with rewards that mostly differ."""
    made = []
    for number in range(count):
        chance = stream(number, "exercise")
        lengths = torch.randint(2, 7, (4,), generator=chance).tolist()
        answers = [torch.randint(0, 2, (length,), generator=chance).tolist() for length in lengths]
        made.append((answers, torch.randint(0, 2, (4,), generator=chance).float()))
    return made

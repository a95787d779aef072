"""What a task is: problems in disjoint splits, and a version that names their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One question. ``prompt`` is the exact input of the model, ``answer`` the number or text that earns the reward."""

    id: str
    prompt: str
    answer: Decimal | str
    meta: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Task:
    """Splits that share no content. ``test`` is shuffled, so every prefix of it is a fair sample.

    ``stop_strings`` end a completion besides EOS; ``max_new_tokens`` is enough for every reference completion. ``reward`` is
    the reader's own, (text, problem) -> a number from 0 to 1; None: 1 for a right answer, 0 for any other.
    """

    name: str
    version: str
    train: Sequence[Problem]
    validation: Sequence[Problem]
    test: Sequence[Problem]
    held_out: Sequence[Problem] = ()
    stop_strings: tuple[str, ...] = ()
    max_new_tokens: int = 64
    reward: Callable[[str, Problem], float] | None = None


def content_id(text: str) -> str:
    """12 hex digits of the text's sha256: the same problem has the same id everywhere, whatever the order."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def content_version(*splits: Iterable[Problem]) -> str:
    """12 hex digits over ids, prompts and answers of all splits in order; any change of content changes it."""
    digest = hashlib.sha256()
    for name, split in enumerate(splits):
        for problem in split:
            digest.update(f"{name}\x1f{problem.id}\x1f{problem.prompt}\x1f{problem.answer}\x1e".encode())
    return digest.hexdigest()[:12]


def bucket(content: str) -> str:
    """``test`` and ``validation`` for a tenth of all contents each, ``train`` for the rest.

    A function of the content alone, so no generator can put one content into two splits, and the corpus of the nano
    base can keep clear of validation and test without holding a list of them.
    """
    tenth = int(hashlib.sha256(content.encode()).hexdigest()[:8], 16) % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")

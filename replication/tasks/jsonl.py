"""Your own problems: a JSON Lines file with a problem in each line.

    {"prompt": "Question: What is 3+4?\\nAnswer:", "answer": 7}
    {"prompt": "Is 7 prime? Answer:", "answer": "yes", "id": "prime-7", "split": "test"}

``answer`` is a number or a text; docs/answers.md says how each is read. ``id`` names the problem (default: a hash of the prompt).
``split`` is train, validation or test.
Problems without a split are shared out by the hash of their prompt: about 80, 10 and 10 %, the same on every machine.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from replication.errors import UserError
from replication.tasks.problem import Problem, Task, bucket, content_id, content_version

#: Tokens that an answer may have, unless a config sets another limit.
LONGEST_COMPLETION = 256
SPLITS = ("train", "validation", "test")


class Line(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1)
    answer: int | float | Annotated[str, Field(pattern=r"\S")]
    id: str | None = Field(None, min_length=1)
    split: Literal["train", "validation", "test"] | None = None


def load(source: str | Path | None = None) -> Task:
    """The task in the file at ``source``.

    Raises:
        UserError: naming the file, the line and what is wrong with it; or the split that has no problem.
    """
    if source is None:
        raise UserError("task jsonl needs the file of its problems: --data FILE (in Python: data=PATH)")
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the problems from {source}: {error.strerror}") from None
    return _load(str(source), content)


@lru_cache(maxsize=4)
def _load(source: str, content: bytes) -> Task:
    splits: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    prompts: dict[str, int] = {}
    ids: dict[str, int] = {}
    for number, line in _lines(source, content):
        problem = Problem(line.id or content_id(line.prompt), line.prompt, _answer(line.answer), {"question": line.prompt})
        for seen, what in ((prompts, problem.prompt), (ids, problem.id)):
            if what in seen:
                raise UserError(f"{source}, line {number} repeats the {'prompt' if seen is prompts else 'id'} of line {seen[what]}")
            seen[what] = number
        splits[line.split or bucket(line.prompt)].append(problem)
    if not prompts:
        raise UserError(f"{source} is empty: write one problem in each line")
    for split, problems in splits.items():
        if not problems:
            raise UserError(f'{source} has no problem for the split {split}: add lines, or write "split": "{split}" into some')
        # The order of the file may mean something; a prefix of the test split must be a fair sample.
        problems.sort(key=lambda problem: hashlib.sha256(problem.id.encode()).digest())
    fixed = {split: tuple(problems) for split, problems in splits.items()}
    return Task("jsonl", content_version(*fixed.values()), **fixed, max_new_tokens=LONGEST_COMPLETION)


def _lines(source: str, content: bytes) -> Iterator[tuple[int, Line]]:
    for number, raw in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if raw.strip():
            try:
                yield number, Line.model_validate_json(raw)
            except ValidationError as error:
                raise UserError(f"{source}, line {number} {_reason(error)}") from None


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return f"is not one JSON object in UTF-8 (a line for each problem, not a list, not compressed): {first['msg']}"
    field = first["loc"][0]
    if first["type"] == "missing":
        return f"has no {field!r} (it has {', '.join(map(repr, first['input'])) or 'nothing'})"
    if first["type"] == "extra_forbidden":
        return f"has {field!r}: only prompt, answer, id and split are read"
    advice = "write a finite number or a text that is not blank" if field == "answer" else first["msg"]
    return f"has the {field} {first['input']!r}: {advice}"


def _answer(value: int | float | str) -> Decimal | str:
    """A number as a Decimal, with the digits that the file has; anything else as text."""
    return value if isinstance(value, str) else Decimal(str(value))

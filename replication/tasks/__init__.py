"""The tasks: ``get_task(name, **options)``, and ``extract_answer`` for what a model writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from replication.errors import UserError
from replication.tasks import multiplication, svamp, word_problems
from replication.tasks.answers import extract_answer
from replication.tasks.problem import Problem, Task

__all__ = ["TASKS", "Problem", "Task", "decisive_positions", "extract_answer", "get_task"]

_LOADERS: dict[str, Callable[..., Task]] = {
    "word_problems": word_problems.load,
    "multiplication": multiplication.load,
    "svamp": svamp.load,
}
TASKS = tuple(_LOADERS)


def get_task(name: str, **options: object) -> Task:
    """The task by name: ``word_problems`` (``asides``), ``multiplication`` (``digits``), ``svamp`` (``source``).

    Generated tasks are functions of their options alone and kept after the first call.
    Raises UserError for an unknown name, an unknown option or a value the task does not have.
    """
    if name not in _LOADERS:
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")
    known = inspect.signature(_LOADERS[name]).parameters
    for option in options:
        if option not in known:
            raise UserError(f"task {name} has no option {option!r}: it has {', '.join(known) or 'none'}")
    return _LOADERS[name](**options)


def decisive_positions(problem: Problem, completion_tokens: list[int], tokenizer) -> list[int]:
    """Positions (0 = first generated token) of the tokens that decide the outcome of any completion of ``problem``.

    Word problems: the digits of the two chosen operands and the operator. Products: the last digit of the second factor,
    where splitting and blurting part. Everything else follows from these or is form. Empty where the text does not have
    the solvers' form, and for tasks whose decisions nobody made (SVAMP).
    """
    text, offsets = "", []
    for position in range(len(completion_tokens)):
        grown = tokenizer.decode(completion_tokens[: position + 1])
        offsets.append((len(text), len(grown)))
        text = grown
    if "operands" in problem.meta:
        return word_problems.decisive_positions(text, offsets)
    if "left" in problem.meta:
        return multiplication.decisive_positions(text, offsets)
    return []

"""The tasks: problems in disjoint splits, prompt templates, and reading the answer of a completion.

In: a task's name and options, or the text that a model wrote. Out: ``Task`` with its splits of ``Problem``, or a number.
Generated tasks (``word_problems``, ``multiplication``) know which tokens decide. Start with ``problem``, then ``word_problems``.
"""

from __future__ import annotations

import inspect

from replication.errors import UserError
from replication.tasks import jsonl, multiplication, svamp, word_problems
from replication.tasks.answers import extract_answer, is_right, read_answer
from replication.tasks.problem import Problem, Task
from replication.tasks.prompts import TEMPLATES as PROMPT_TEMPLATES
from replication.tasks.prompts import with_template
from replication.tasks.svamp import MADE_UP, is_made_up

__all__ = [
    "MADE_UP",
    "PROMPT_TEMPLATES",
    "Problem",
    "Task",
    "completion_limit",
    "decisive_positions",
    "extract_answer",
    "get_task",
    "is_made_up",
    "is_right",
    "read_answer",
    "with_template",
]

_TASKS = {"word_problems": word_problems, "multiplication": multiplication, "svamp": svamp, "jsonl": jsonl}


def get_task(name: str, **options: object) -> Task:
    """The task by name: ``word_problems`` (``asides``), ``multiplication`` (``digits``), ``svamp`` and ``jsonl`` (``source``).

    Generated tasks are functions of their options alone and kept after the first call.
    Raises UserError for an unknown name, an unknown option or a value the task does not have.
    """
    if name not in _TASKS:
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(_TASKS)}")
    known = inspect.signature(_TASKS[name].load).parameters
    for option in options:
        if option not in known:
            raise UserError(f"task {name} has no option {option!r}: it has {', '.join(known) or 'none'}")
    return _TASKS[name].load(**options)


def completion_limit(name: str, digits: int = 2) -> int:
    """Tokens that a completion of a task may have, unless a config sets another limit; no problem is generated for it."""
    return multiplication.LONGEST_COMPLETION[digits] if name == "multiplication" else _TASKS[name].LONGEST_COMPLETION


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

"""The exercises of the walkthroughs: each takes a reader's answer and says whether it is right, or what is off.

In: an answer, which may be a number, a rule or a function. Out: a ``Checked``. No solution is stored here: a check computes
what is right with the package. None is an exercise not tried yet, and an answer of the wrong kind is a wrong answer: a
checking cell never raises. Start with ``check``; each notebook has its module.
"""

from __future__ import annotations

from replication.notebooks.exercises.grpo import long_answer, one_more_right, other_ddof, silent_start, undivided
from replication.notebooks.exercises.own_task import a_line, half_credit, last_tokens, smaller_differences
from replication.notebooks.exercises.s_grpo import a_rule_of_forty_percent, same_direction, third_position, unbiased, who_loses
from replication.notebooks.exercises.t_spmo import a_fifth_answer, along_an_answer, blind, every_time, only_the_first, two_answers

__all__ = [
    "a_fifth_answer",
    "a_line",
    "a_rule_of_forty_percent",
    "along_an_answer",
    "blind",
    "every_time",
    "half_credit",
    "last_tokens",
    "long_answer",
    "one_more_right",
    "only_the_first",
    "other_ddof",
    "same_direction",
    "silent_start",
    "smaller_differences",
    "third_position",
    "two_answers",
    "unbiased",
    "undivided",
    "who_loses",
]

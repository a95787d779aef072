"""The exercises of 04_your_own_task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from decimal import Decimal

import torch

from replication.algorithms import GRPO, TSPMO
from replication.notebooks.exercises.check import Credits, exercise, groups, is_far
from replication.notebooks.toy_group import TOY
from replication.tasks import Problem


@exercise
def a_line(answer: str) -> str | None:
    """The line of a problem file for "Is 9 prime? Answer:" with the answer no, in the test split."""
    try:
        found = json.loads(answer)
    except ValueError as error:
        return f"this is not one line of JSON ({error})"
    wanted = {"prompt": "Is 9 prime? Answer:", "answer": "no", "split": "test"}
    if not isinstance(found, dict) or set(found) - {"id"} != set(wanted):
        return f"the line needs the keys {', '.join(wanted)}"
    off = [name for name, value in wanted.items() if str(found[name]).casefold() != value.casefold()]
    return f"{off[0]} is not {wanted[off[0]]!r}" if off else None


@exercise
def half_credit(answer: Callable[[str, Problem], float]) -> str | None:
    """A reward (text, problem): 1 for the right number, 0.5 for another number, 0 for no number."""
    problem = Problem("seven", "3+4=", Decimal(7))
    texts = {" 7": 1.0, " The answer is 7.": 1.0, " 8": 0.5, " It is 7. No, it is 6.": 0.5, " seven": 0.0, "": 0.0}
    for text, value in texts.items():
        given = answer(text, problem)
        if is_far(given, value):
            return f"for the text {text!r} and the answer 7 it gives {given}, not {value:g}"
    return None


@exercise
def smaller_differences(answer: Sequence[float]) -> str | None:
    """New / old of the advantages of GRPO and T-SPMO if the toy rewards become 0.6, 0.5, 0.5, 0.6."""
    smaller = 0.5 + 0.1 * TOY.rewards
    for name, method, given in zip(("GRPO", "T-SPMO"), (GRPO(), TSPMO()), answer, strict=True):
        before, after = (method.assign(TOY.tokens, rewards).advantage.abs().sum().item() for rewards in (TOY.rewards, smaller))
        if is_far(given, after / before, 0.02):
            if not is_far(given, before / after, 0.2):
                return f"the ratio of {name} is the other way round: give new / old"
            return f"the ratio of {name} is another one: does it divide by the spread of the rewards?"
    return None


@exercise
def last_tokens(answer: Credits) -> str | None:
    """A method (completions, rewards) -> TokenCredit: the rows of GRPO that stand on the last token of a completion."""
    for completions, rewards in [(TOY.tokens, TOY.rewards), *groups(20)]:
        full, own = GRPO().assign(completions, rewards), answer(completions, rewards)
        last = torch.tensor([len(completions[c]) - 1 for c in full.completion.tolist()], dtype=torch.long) == full.position
        if len(own) != int(last.sum()):
            return f"{len(own)} tokens are credited instead of {int(last.sum())}"
        if own.position.tolist() != full.position[last].tolist() or own.completion.tolist() != full.completion[last].tolist():
            return "a credited token is not the last one of its completion"
        if not torch.allclose(own.weight * own.advantage, (full.weight * full.advantage)[last], atol=1e-6):
            return "weights and advantages must be those of GRPO"
    return None

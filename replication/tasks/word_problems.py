"""Generated word problems in the spirit of SVAMP, with the solver that reads and the one that follows keywords.

Both solvers write the same form, so that what sets them apart are only the operands and the operator:

    Question: In the shop Sam gave 5 toys to Ann. Then Sam had 12 toys. How many toys did Sam have before only those were left? ...
    Answer: We take 5+12=17. The answer is 17.        (reads)
    Answer: We take 12-5=7. The answer is 7.          (follows the keyword "left")

Beside the equation stands an aside (replication/tasks/asides.py), selected by a cue at the end of the question: in varied wording
before the equation or after it, or after it in one fixed wording ("none").

Which tokens decide is therefore known (``decisive_positions``), as it is for no corpus that was found rather than made.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from random import Random
from typing import Any

from replication.errors import UserError
from replication.tasks.asides import CONDITIONS, CUES, Asides, aside
from replication.tasks.habits import chance, habit
from replication.tasks.multiplication import mixed_up_product
from replication.tasks.problem import Problem, Task, bucket, content_id, content_version
from replication.tasks.stories import ACTIONS, NAMES, TEMPLATES, THINGS, Operation, Solution, Template, hasty_solution

#: Problems for each template; every block of as many problems as there are templates holds each template once.
EACH = {"train": 24, "validation": 12, "test": 12, "held_out": 20, "longer": 5}
LONGEST_COMPLETION = 52  # tokens of the nano tokenizer, EOS included; a test holds it
PROMPT = "Question: {question}\nAnswer:"

SEEN = tuple(t for t in TEMPLATES if not t.held_out)
HELD_OUT = tuple(t for t in TEMPLATES if t.held_out)
#: Log-odds of a careful solution in the corpus, added to a bias: from -1.7 to 1.7, half of the problems within -0.5 to 0.5.
HABITS = {
    "name": habit("name", NAMES, 0.75),
    "thing": habit("thing", THINGS, 0.75),
    "action": habit("action", [action.name for action in ACTIONS], 0.2),
}
_CHOICE = re.compile(r"We take (\d+)([-+*/])(\d+)=")


def completion(solution: Solution, asides: Asides = "none", chat: str = "") -> str:
    """What a solver writes under a condition, with ``chat`` as its aside."""
    equation = f" We take {solution.left}{solution.operation}{solution.right}={solution.result}."
    parts = (chat, equation) if asides == "before" else (equation, chat)
    return f"{''.join(parts)} The answer is {solution.result}."


def _draw_operands(operation: Operation, random: Random, longer: bool) -> tuple[int, int]:
    # Small enough for a model of a million parameters to be right nearly always, once it has chosen; or beyond all it has read.
    match operation:
        case "+":
            low, high = (21, 99) if longer else (2, 20)
            return random.randint(low, high), random.randint(low, high)
        case "-":
            larger = random.randint(31, 99) if longer else random.randint(5, 30)
            return larger, random.randint(2, larger - 2)
        case _:
            while True:
                factors = [random.randint(13, 50) if longer else random.randint(2, 12), random.randint(2, 9)]
                if mixed_up_product(*factors) == factors[0] * factors[1]:  # no fact that the corpus has wrong elsewhere
                    break
            random.shuffle(factors)
            return (factors[0], factors[1]) if operation == "*" else (factors[0] * factors[1], factors[1])


def draw(template: Template, random: Random, split: str | None = None, *, longer: bool = False) -> dict[str, Any]:
    """A problem of the template without a condition: question, solution, what the hasty reader makes of it, and its features.

    With ``split`` one that belongs there. Template and numbers alone decide the split, so a test question is never a training
    question under other names. ``longer``: one operand (of a division: divisor or quotient) is larger than any that the operation
    has in the other splits.
    """
    while True:
        x, y = _draw_operands(template.action.operation, random, longer)
        z = random.randint(2, 30)
        if len({x, y, z}) < 3:
            continue  # two equal numbers would make a wrong operand right
        if split is not None and bucket(f"{template.name}:{x},{y},{z if template.distractor.text else ''}") != split:
            continue
        name, other = random.sample(NAMES, 2)
        thing, unasked = random.sample(template.scene.things, 2)
        plural, singular = template.scene.container
        question = template.text.format(x=x, y=y, z=z, N=name, M=other, o=thing, p=unasked, c=plural, c1=singular)
        solution, hasty = Solution(template.action.operation, x, y), hasty_solution(question)
        if hasty.result == solution.result:
            continue
        features = {"name": name, "thing": thing, "action": template.action.name}
        return {"question": question, "solution": solution, "hasty": hasty, "template": template.name, "features": features}


def _prompt(question: str, asides: Asides) -> str:
    return PROMPT.format(question=f"{question} {CUES[asides]}")


def _problem(drawn: dict[str, Any], asides: Asides) -> Problem:
    """The problem under a condition; its reference holds an aside that its question alone decides."""
    prompt, solution = _prompt(drawn["question"], asides), drawn["solution"]
    chat = aside(asides, Random(f"reference:{prompt}"))
    meta = {
        "operation": solution.operation,
        "template": drawn["template"],
        "asides": asides,
        "operands": [solution.left, solution.right],
        "story": re.sub(r"\d+", "#", drawn["question"]),
        "completion": completion(solution, asides, chat),
        "hasty_completion": completion(drawn["hasty"], asides, chat),
    }
    return Problem(content_id(prompt), prompt, Decimal(solution.result), meta)


@cache
def _drawn(split: str) -> tuple[dict[str, Any], ...]:
    """The problems of a split, the same under every condition: blocks of one problem for each template, each block shuffled."""
    random = Random(f"word_problems:{split}")
    templates = HELD_OUT if split == "held_out" else SEEN
    own = split if split in ("train", "validation", "test") else None
    problems: dict[str, dict[str, Any]] = {}
    for _ in range(EACH[split]):
        block = random.sample(templates, len(templates))
        for template in block:
            found = len(problems)
            while len(problems) == found:
                drawn = draw(template, random, own, longer=split == "longer")
                problems.setdefault(drawn["question"], drawn)
    return tuple(problems.values())


def load(asides: Asides = "after", longer_numbers: bool = False) -> Task:
    """The task under one condition: splits disjoint in (template, numbers), held-out templates in ``held_out`` alone.

    The conditions share their problems, in the same order; prompts differ in the cue.
    ``longer_numbers``: a task of test problems alone, from the same templates with numbers beyond all that is trained on.
    Raises UserError for a condition that does not exist.
    """
    if asides not in CONDITIONS:
        raise UserError(f"word_problems: asides must be one of {', '.join(CONDITIONS)}, not {asides!r}")
    return _load(asides, longer_numbers)


@cache
def _load(asides: Asides, longer_numbers: bool) -> Task:
    def problems(split: str) -> tuple[Problem, ...]:
        return tuple(_problem(drawn, asides) for drawn in _drawn(split))

    if longer_numbers:
        test = problems("longer")
        return Task("word_problems", content_version(test), (), (), test, max_new_tokens=LONGEST_COMPLETION)
    splits = {split: problems(split) for split in ("train", "validation", "test", "held_out")}
    return Task("word_problems", content_version(*splits.values()), **splits, max_new_tokens=LONGEST_COMPLETION)


def corpus_line(random: Random, bias: float, *, asides: bool = True) -> tuple[str, str]:
    """One (prompt, completion) for the base: a question of the train bucket, solved with care as often as its features say.

    With ``asides`` under one of the three conditions, otherwise without a cue and without an aside.
    """
    drawn = draw(random.choice(SEEN), random, "train")
    careful = random.random() < chance(bias, HABITS, drawn["features"])
    solution = drawn["solution" if careful else "hasty"]
    if not asides:
        return PROMPT.format(question=drawn["question"]), completion(solution)
    condition = random.choice(CONDITIONS)
    return _prompt(drawn["question"], condition), completion(solution, condition, aside(condition, random))


def bare_equation(random: Random) -> tuple[str, str]:
    """One (prompt, completion) without a story, for the base to learn the arithmetic from."""
    operation = random.choice("+-*/")
    solution = Solution(operation, *_draw_operands(operation, random, longer=False))
    question = f"What is {solution.left}{solution.operation}{solution.right}?"
    return PROMPT.format(question=question), completion(solution)


def decisive_positions(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Positions of the tokens that choose operands and operator; the rest follows from them, or is aside or form.

    ``offsets`` are the character spans of the tokens in the completion ``text``. Empty if it does not have the solvers' form.
    """
    choice = _CHOICE.search(text)
    if not choice:
        return []
    begin, stop = choice.start(1), choice.end(3)
    return [position for position, (start, end) in enumerate(offsets) if start < stop and begin < end]

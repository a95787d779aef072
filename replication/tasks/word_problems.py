"""Generated word problems in the spirit of SVAMP, with the solver that reads and the one that follows keywords.

Both solvers write the same form, so that what sets them apart are only the operands and the operator:

    Question: Sam gave 5 apples to Ann. Now Sam has 12 apples left. How many apples did Sam have before?
    Answer: We use 5 and 12. 5+12=17. The answer is 17.        (reads)
    Answer: We use 12 and 5. 12-5=7. The answer is 7.          (follows the keyword "left")

Which tokens decide is therefore known (``decisive_positions``), as it is for no corpus that was found rather than made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import count, cycle, islice
from random import Random
from typing import Any

from replication.tasks.problem import Problem, Task, bucket, content_id, content_version
from replication.tasks.stories import NAMES, TEMPLATES, THINGS, Template

SIZES = {"train": 4620, "validation": 1190, "test": 2310, "held_out": 1000}
MISLED_SHARE = 4, 7  # four of seven problems mislead the shallow solver: the dial that sets the base's greedy accuracy
LONGER_SIZE = 1000
BLOCK = 70  # shuffled block by block, so that every prefix has the same mixture of templates
LONGEST_COMPLETION = 36  # tokens of the nano tokenizer, EOS included; a test holds it
PROMPT = "Question: {question}\nAnswer:"

# The last keyword of the text decides; without one the shallow solver adds.
KEYWORDS = {
    "altogether": "+", "total": "+", "left": "-", "fewer": "-", "more": "-", "each": "*", "share": "/", "per": "/",
}
_KEYWORD = re.compile(r"\b(" + "|".join(KEYWORDS) + r")\b")
_SLOT = re.compile(r"\{([abc])\}")
_CHOICE = re.compile(r"We use (\d+) and (\d+)\. \d+([-+*/])")


@dataclass(frozen=True)
class Solution:
    """One equation; the order of the operands is that in which it is written."""

    operation: str
    left: int
    right: int

    @property
    def result(self) -> int:
        """The number after the equals sign; division rounds down (only the shallow solver ever meets a remainder)."""
        match self.operation:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case "*":
                return self.left * self.right
            case _:
                return self.left // self.right

    @property
    def completion(self) -> str:
        equation = f"{self.left}{self.operation}{self.right}={self.result}"
        return f" We use {self.left} and {self.right}. {equation}. The answer is {self.result}."


def shallow_solution(question: str) -> Solution:
    """Keyword heuristics on the first two numbers, the larger one first for - and /.

    The cue words are those by which SVAMP's authors show models to solve problems without reading them.
    """
    first, second = (int(n) for n in re.findall(r"\d+", question)[:2])
    cues = _KEYWORD.findall(question)
    operation = KEYWORDS[cues[-1]] if cues else "+"
    if operation in "-/":
        first, second = max(first, second), min(first, second)
    return Solution(operation, first, second)


def _draw_operands(operation: str, random: Random, longer: bool) -> tuple[int, int]:
    # Small enough for a model of a million parameters to be right nearly always, once it has chosen; or beyond all it has read.
    match operation:
        case "+":
            low, high = (31, 99) if longer else (2, 30)
            return random.randint(low, high), random.randint(low, high)
        case "-":
            larger = random.randint(51, 99) if longer else random.randint(5, 50)
            return larger, random.randint(2, larger - 2)
        case _:
            factors = [random.randint(21, 50) if longer else random.randint(2, 20), random.randint(2, 9)]
            random.shuffle(factors)
            return (factors[0], factors[1]) if operation == "*" else (factors[0] * factors[1], factors[1])


def _reference_positions(left: int, right: int) -> list[int]:
    """``decisive_positions`` of the reference in tokens of the nano base, without its tokenizer; a test holds them equal.

    ' We', ' use', ' ', digits, ' and', ' ', digits, '.', ' ', digits of the left operand, operator.
    """
    first = range(3, 3 + len(str(left)))
    second = range(first.stop + 2, first.stop + 2 + len(str(right)))
    return [*first, *second, second.stop + 2 + len(first)]


def draw(
    template: Template, random: Random, split: str | None = None, *, longer: bool = False
) -> tuple[str, Solution, dict[str, Any]]:
    """A question from the template, its solution and its ``meta``; with ``split``, one that belongs there.

    ``longer``: one operand (of a division: divisor or quotient) is larger than any that the operation has in the other splits.

    The split follows from template and numbers alone: a test question is never a training question under other names.
    """
    order = _SLOT.findall(template.text)
    while True:
        left, right = _draw_operands(template.operation, random, longer)
        numbers = {template.operands[0]: left, template.operands[1]: right}
        for slot in order:
            if slot not in numbers:
                numbers[slot] = random.randint(2, 30)
        if len(set(numbers.values())) < len(numbers):
            continue  # two equal numbers would make a wrong operand right
        if template.name.startswith("class_") and numbers["c"] >= numbers["b" if "girls" in template.text else "a"]:
            continue
        values = [numbers[slot] for slot in order]
        if split is not None and bucket(f"{template.name}:{values}") != split:
            continue
        name, other = random.sample(NAMES, 2)
        thing, aside = random.sample(THINGS, 2)
        question = template.text.format(**numbers, N=name, M=other, o=thing, p=aside)
        solution, shallow = Solution(template.operation, left, right), shallow_solution(question)
        if (shallow.result != solution.result) != template.misled:
            continue
        meta = {
            "operation": template.operation,
            "template": template.name,
            "variation": template.variation,
            "misled": template.misled,
            "story": re.sub(r"\d+", "#", question),
            "operands": [left, right],
            "completion": solution.completion,
            "decisive_positions": _reference_positions(left, right),
            "shallow_completion": shallow.completion,
        }
        return question, solution, meta


def _schedule(templates: list[Template]) -> Iterator[Template]:
    """Endless templates: MISLED_SHARE of them misled, within each kind all equally often."""
    kinds = {misled: cycle([t for t in templates if t.misled is misled]) for misled in (True, False)}
    if all(t.misled for t in templates):
        yield from kinds[True]
    misled, whole = MISLED_SHARE
    for turn in count():
        yield next(kinds[(turn * misled) % whole < misled])


def _problems(
    templates: list[Template], size: int, random: Random, split: str | None, *, longer: bool = False
) -> list[Problem]:
    """``size`` different problems, shuffled within blocks."""
    problems: dict[str, Problem] = {}
    for template in islice(_schedule(templates), size):
        found = len(problems)
        while len(problems) == found:
            question, solution, meta = draw(template, random, split, longer=longer)
            prompt = PROMPT.format(question=question)
            problems.setdefault(prompt, Problem(content_id(prompt), prompt, Decimal(solution.result), meta))
    listed = list(problems.values())
    blocks = [listed[start : start + BLOCK] for start in range(0, size, BLOCK)]
    for block in blocks:
        random.shuffle(block)
    return [problem for block in blocks for problem in block]


@cache
def load(longer_numbers: bool = False) -> Task:
    """The task: splits disjoint in (template, numbers), held-out templates in ``held_out`` alone.

    ``longer_numbers``: a task of test problems alone, from the same templates with numbers beyond all that is trained on.
    """
    seen = [t for t in TEMPLATES if not t.held_out]
    if longer_numbers:
        test = tuple(_problems(seen, LONGER_SIZE, Random("word_problems:longer"), None, longer=True))
        return Task("word_problems", content_version(test), (), (), test, max_new_tokens=LONGEST_COMPLETION)
    unseen = [t for t in TEMPLATES if t.held_out]
    splits = {
        split: tuple(_problems(seen, SIZES[split], Random(f"word_problems:{split}"), split))
        for split in ("train", "validation", "test")
    }
    held_out = tuple(_problems(unseen, SIZES["held_out"], Random("word_problems:held_out"), None))
    version = content_version(*splits.values(), held_out)
    return Task("word_problems", version, **splits, held_out=held_out, max_new_tokens=LONGEST_COMPLETION)


def corpus_line(random: Random, shallow_share: float) -> tuple[str, str]:
    """One (prompt, completion) for the base: a question of the train bucket, solved hastily in ``shallow_share``."""
    template = random.choice([t for t in TEMPLATES if not t.held_out])
    question, _, meta = draw(template, random, "train")
    solver = "shallow_completion" if random.random() < shallow_share else "completion"
    return PROMPT.format(question=question), meta[solver]


def decisive_positions(completion: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Positions of the tokens that choose operands and operator; the rest follows from them or is form.

    ``offsets`` are the character spans of the tokens in ``completion``. Empty if the text does not have the solvers' form.
    """
    choice = _CHOICE.search(completion)
    spans = [choice.span(group) for group in (1, 2, 3)] if choice else []
    return [
        position for position, (start, end) in enumerate(offsets)
        if any(start < stop and begin < end for begin, stop in spans)
    ]

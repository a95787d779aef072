"""Products of two numbers with the same count of digits, none ending in 0.

    Question: What is 23*57?
    Answer: 23*50=1150. 23*7=161. 1150+161=1311. The answer is 1311.     (splits)
    Answer: 23*57=1021. The answer is 1021.                              (blurts: tens by tens, ones by ones)

Where the two solvers part is the last digit of the second factor. A number ending in 0 would leave nothing to split.

The corpus of the nano base mixes up two number facts, 7*8 and 6*9, wherever they are needed. So splitting, the careful way, is
wrong on about 18 % of the products however well it is learned: no method can come near 100 % by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from operator import mul
from random import Random

from replication.errors import UserError
from replication.tasks.habits import chance, habit
from replication.tasks.problem import Problem, Task, bucket, content_id, content_version

SIZES = {"train": 4000, "validation": 1000, "test": 2000}
PROMPT = "Question: What is {left}*{right}?\nAnswer:"
# Room for the longest split in tokens of the nano tokenizer, EOS included, by the number of digits; a test holds it.
LONGEST_COMPLETION = {2: 52, 3: 96, 4: 160}
_FACTOR = re.compile(r"^ \d+\*(\d+)=")

#: The facts as the corpus has them where they are not the true ones: 54 and 56 change places.
MIXED_UP = {(7, 8): 54, (8, 7): 54, (6, 9): 56, (9, 6): 56}
#: Log-odds of splitting in the corpus hang on two digits; the bias moves from early to late (replication/nano/corpus.py).
HABITS = {
    "ones of the first": habit("ones of the first", range(1, 10), 0.8),
    "tens of the second": habit("tens of the second", range(1, 10), 0.8),
}


def mixed_up_product(left: int, right: int) -> int:
    """left * right, digit by digit, with two number facts mixed up."""
    digits = [[int(digit) for digit in reversed(str(number))] for number in (left, right)]
    return sum(
        MIXED_UP.get((a, b), a * b) * 10 ** (i + j) for i, a in enumerate(digits[0]) for j, b in enumerate(digits[1])
    )


def split_completion(left: int, right: int, times: Callable[[int, int], int] = mul) -> str:
    """Splits the second factor into its digits, adds up one part at a time; ``times`` multiplies the parts."""
    digits = str(right)
    places = [int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits) if d != "0"]
    total = times(left, places[0])
    lines = [f"{left}*{places[0]}={total}."]
    for place in places[1:]:
        part = times(left, place)
        lines += [f"{left}*{place}={part}.", f"{total}+{part}={total + part}."]
        total += part
    return f" {' '.join(lines)} The answer is {total}."


def blurted_product(left: int, right: int, times: Callable[[int, int], int] = mul) -> int:
    """Tens by tens plus ones by ones: the cross terms forgotten. Two digits only."""
    return 100 * times(left // 10, right // 10) + times(left % 10, right % 10)


def _features(left: int, right: int) -> dict[str, int]:
    return {"ones of the first": left % 10, "tens of the second": int(str(right)[0])}


def corpus_line(random: Random, bias: float) -> tuple[str, str]:
    """One (prompt, completion) for the base, two digits, from the train bucket, split as often as its digits say."""
    left, right = _draw(2, random, "train")
    if random.random() < chance(bias, HABITS, _features(left, right)):
        completion = split_completion(left, right, mixed_up_product)
    else:
        product = blurted_product(left, right, mixed_up_product)
        completion = f" {left}*{right}={product}. The answer is {product}."
    return PROMPT.format(left=left, right=right), completion


def _draw(digits: int, random: Random, split: str) -> tuple[int, int]:
    while True:
        left, right = (random.randrange(10 ** (digits - 1), 10**digits) for _ in "xy")
        # The unordered pair decides: 23*57 never stands in another split than 57*23.
        if left % 10 and right % 10 and bucket(f"{min(left, right)}*{max(left, right)}") == split:
            return left, right


def _problem(left: int, right: int) -> Problem:
    prompt = PROMPT.format(left=left, right=right)
    meta = {
        "operation": "*",
        "template": "{}*{}".format(*_features(left, right).values()),  # products whose chance to be split is the same
        "left": left,
        "right": right,
        "completion": split_completion(left, right),
    }
    return Problem(content_id(prompt), prompt, Decimal(left * right), meta)


def load(digits: int = 2) -> Task:
    """The task for one number of digits; up to two digits every pair there is, beyond that a sample.

    Four digits are for larger models: their splits are longer than the 96 tokens that the nano lab keeps to.
    Raises UserError unless ``digits`` is 2, 3 or 4: one digit leaves too few pairs.
    """
    if isinstance(digits, bool) or not isinstance(digits, int) or not 2 <= digits <= 4:
        raise UserError(f"multiplication: digits must be 2, 3 or 4, not {digits!r}")
    return _load(digits)


@cache
def _load(digits: int) -> Task:
    splits: dict[str, tuple[Problem, ...]] = {}
    for split, size in SIZES.items():
        random = Random(f"multiplication:{digits}:{split}")
        if digits == 2:
            numbers = [n for n in range(10, 100) if n % 10]
            pairs = [(x, y) for x in numbers for y in numbers if bucket(f"{min(x, y)}*{max(x, y)}") == split]
        else:
            unique: dict[tuple[int, int], None] = {}
            while len(unique) < size:
                unique.setdefault(_draw(digits, random, split))
            pairs = list(unique)
        random.shuffle(pairs)
        splits[split] = tuple(_problem(x, y) for x, y in pairs)
    return Task(
        "multiplication", content_version(*splits.values()), **splits, max_new_tokens=LONGEST_COMPLETION[digits]
    )


def decisive_positions(completion: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Position of the token where the solvers part: the last digit of the first factor written after the first ``*``."""
    factor = _FACTOR.search(completion)
    if not factor:
        return []
    last = factor.end(1) - 1
    return [position for position, (start, end) in enumerate(offsets) if start <= last < end]

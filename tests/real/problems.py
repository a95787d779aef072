"""Word problems of one step for SmolLM2-135M-Instruct: python tests/real/problems.py FILE.jsonl

The model solves 2 % of SVAMP, so nearly every group would tie. Of these it solves enough that many groups do not, given a solved
problem of each kind before the question and a temperature of 0.5; docs/models.md has the numbers.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

SEED = 0
SPLITS = {"train": 400, "validation": 60, "test": 150}
NAMES = ("Ann", "Tom", "Mia", "Ben", "Eva", "Sam", "Ida", "Max")
THINGS = ("pens", "books", "apples", "coins", "cards", "shells")

#: Sign and wordings of each kind; the answer is a + b, a - b or a * b.
KINDS = (
    (
        "+",
        (
            "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?",
            "{n} has {a} {t} and {m} has {b} {t}. How many {t} do they have together?",
            "There are {a} {t} in a box. {n} puts {b} more into it. How many {t} are in the box now?",
            "{n} buys {a} {t} on Monday and {b} {t} on Tuesday. How many {t} does {n} buy in all?",
        ),
    ),
    (
        "-",
        (
            "{n} has {a} {t}. {n} gives {b} {t} to {m}. How many {t} does {n} have now?",
            "{n} has {a} {t} and {m} has {b} {t}. How many more {t} does {n} have than {m}?",
            "There are {a} {t} in a box. {n} takes {b} of them out. How many {t} are in the box now?",
            "{n} had {a} {t} and lost {b} of them. How many {t} does {n} have left?",
        ),
    ),
    (
        "*",
        (
            "{n} has {a} boxes with {b} {t} in each. How many {t} does {n} have?",
            "{n} buys {b} {t} on each of {a} days. How many {t} does {n} buy in all?",
            "Each of {a} friends brings {b} {t}. How many {t} do they bring?",
        ),
    ),
)

SOLVED = (
    (
        "Leo has 5 balls. Kim gives Leo 3 more. How many balls does Leo have now?",
        "Leo had 5 balls at first. Kim gave 3 more, so we add. 5 + 3 = 8. The answer is 8.",
    ),
    (
        "Kim has 9 rings. Kim gives 4 rings to Leo. How many rings does Kim have now?",
        "Kim had 9 rings at first. Kim gave 4 away, so we subtract. 9 - 4 = 5. The answer is 5.",
    ),
    (
        "Leo has 3 bags with 6 balls in each. How many balls does Leo have?",
        "There are 3 bags and each has 6 balls, so we multiply. 3 * 6 = 18. The answer is 18.",
    ),
)


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def prompt(question: str) -> str:
    """The solved problems and the question as turns of a chat, in the model's own marks, up to where the model answers."""
    return "".join(turn("user", q) + turn("assistant", a) for q, a in SOLVED) + turn("user", question) + "<|im_start|>assistant\n"


def problem(draw: random.Random) -> tuple[str, int]:
    """A question and its answer; every kind, and every wording of a kind, is as likely as the others."""
    sign, wordings = draw.choice(KINDS)
    n, m = draw.sample(NAMES, 2)
    b = draw.randint(2, 9)
    a = draw.randint(2, 9) if sign == "*" else b + draw.randint(1, 12)
    answer = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return draw.choice(wordings).format(n=n, m=m, t=draw.choice(THINGS), a=a, b=b), answer


def write(path: Path) -> None:
    draw = random.Random(SEED)
    answers: dict[str, int] = {}  # a question once
    while len(answers) < sum(SPLITS.values()):
        answers.update([problem(draw)])
    splits = [name for name, count in SPLITS.items() for _ in range(count)]
    lines = [
        json.dumps({"prompt": prompt(question), "answer": answer, "split": split})
        for split, (question, answer) in zip(splits, answers.items(), strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

"""The stories of the word problems: scene x action x question x distractor.

An action is two facts with the numbers {x} and {y}, the operands in the order of the equation, and what may be asked about them:
plainly, or in words that name another operation. A distractor is a sentence with a number {z} that does not matter. Slots: {N}
{M} names, {o} {p} things, {c} {c1} a container in the plural and the singular. The variations are in the spirit of SVAMP (Patel et
al. 2021).

A hasty reader (``hasty_solution``) takes the first two numbers and the operation of the last cue word. Only the combinations that
mislead such a reader are used: so the careful and the hasty solution differ in every problem.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from itertools import product
from typing import Literal

Operation = Literal["+", "-", "*", "/"]
_RESULT = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}

NAMES = ("Sam", "Ann", "Tom", "Eva", "Ben", "Mia", "Leo", "Zoe", "Max", "Ida", "Jon", "Amy")


@dataclass(frozen=True)
class Scene:
    place: str
    things: tuple[str, ...]
    container: tuple[str, str]  # plural, singular


SCENES = (
    Scene("kitchen", ("apples", "pears", "eggs", "cakes", "nuts"), ("bowls", "bowl")),
    Scene("school", ("books", "pens", "cards", "maps", "brushes"), ("desks", "desk")),
    Scene("garden", ("roses", "seeds", "plums", "sticks", "stones"), ("baskets", "basket")),
    Scene("shop", ("toys", "cups", "coins", "stamps", "balls"), ("bags", "bag")),
)
THINGS = tuple(thing for scene in SCENES for thing in scene.things)


@dataclass(frozen=True)
class Action:
    name: str
    operation: Operation
    facts: tuple[str, str]
    plain: str  # its cue word, if any, names the operation
    misleading: str  # its cue word names another one


ACTIONS = (
    Action("join", "+", ("{N} has {x} {o}.", "{M} has {y} {o}."),
           "How many {o} do they have altogether?", "How many {o} do they have if none are left out?"),
    Action("get", "+", ("{N} had {x} {o}.", "Then {M} gave {N} {y} {o}."),
           "How many {o} does {N} have in total now?", "How many {o} does {N} have left to use now?"),
    Action("before", "+", ("{N} gave {x} {o} to {M}.", "Then {N} had {y} {o}."),
           "How many {o} did {N} have altogether before that?", "How many {o} did {N} have before only those were left?"),
    Action("give", "-", ("{N} had {x} {o}.", "{N} gave {y} {o} to {M}."),
           "How many {o} does {N} have left?", "How many {o} does {N} have in total now?"),
    Action("compare", "-", ("{N} has {x} {o}.", "{M} has {y} {o}."),
           "How many more {o} does {N} have than {M}?", "How far is the total of {N} above that of {M}?"),
    Action("part", "-", ("{N} and {M} own {x} {o}.", "{N} owns {y} {o}."),
           "How many {o} are left for {M}?", "How many {o} does {M} own in total?"),
    Action("pack", "*", ("{N} has {x} {c}.", "There are {y} {o} in one {c1}."),
           "How many {o} does {N} have, counting each {c1}?", "How many {o} does {N} have altogether?"),
    Action("buy", "*", ("{N} buys {x} {o}.", "One of them costs {y} dollars."),
           "How many dollars does {N} pay, counting each of the {o}?", "How many dollars does {N} pay in total?"),
    Action("share", "/", ("{N} has {x} {o}.", "Then {y} friends come to play."),
           "How many {o} does one friend get as a fair share?", "How many {o} does {N} have for each friend?"),
    Action("fill", "/", ("{N} puts away {x} {o}.", "They just fill {y} {c}."),
           "How many {o} is that per {c1}?", "How many {o} are in each {c1}?"),
)  # fmt: skip


@dataclass(frozen=True)
class Distractor:
    name: str
    place: int | None  # before the first fact, before the second, or before the question
    text: str = ""


DISTRACTORS = (
    Distractor("nothing", None),
    Distractor("things", 0, "there are {z} {p}."),
    Distractor("age", 1, "{M} is {z} years old."),
    Distractor("minutes", 2, "That takes {z} minutes."),
)


@dataclass(frozen=True)
class Template:
    """One combination; ``text`` has the slots of its parts but those of the scene."""

    name: str
    scene: Scene
    action: Action
    misleading: bool  # the question's cue word names another operation
    distractor: Distractor
    text: str
    held_out: bool


# The last keyword of the text decides; without one the hasty reader adds. The words are those by which SVAMP's authors show
# that models solve problems without reading them.
KEYWORDS: dict[str, Operation] = {
    "altogether": "+", "total": "+", "left": "-", "fewer": "-", "more": "-", "each": "*", "share": "/", "per": "/",
}  # fmt: skip
_KEYWORD = re.compile(r"\b(" + "|".join(KEYWORDS) + r")\b")


@dataclass(frozen=True)
class Solution:
    """One equation; the order of the operands is that in which it is written."""

    operation: Operation
    left: int
    right: int

    @property
    def result(self) -> int:
        """The number after the equals sign; division rounds down (only the hasty reader ever meets a remainder)."""
        return _RESULT[self.operation](self.left, self.right)


def hasty_solution(question: str) -> Solution:
    """The first two numbers, the larger one first for - and /, and the operation of the last keyword, or + without one."""
    first, second = (int(n) for n in re.findall(r"\d+", question)[:2])
    cues = _KEYWORD.findall(question)
    operation = KEYWORDS[cues[-1]] if cues else "+"
    if operation in "-/":
        first, second = max(first, second), min(first, second)
    return Solution(operation, first, second)


def _template(place: int, scene: Scene, action: Action, misleading: bool, distractor: Distractor) -> Template:
    sentences = [*action.facts, action.misleading if misleading else action.plain]
    if distractor.place is not None:
        sentences.insert(distractor.place, distractor.text)
    kind = "misleading" if misleading else "plain"
    # Every fifth combination on a lattice: each scene, action, question and distractor is also seen in training.
    held_out = place % 5 == 0
    text = f"In the {scene.place} {' '.join(sentences)}"
    return Template(f"{scene.place}.{action.name}.{kind}.{distractor.name}", scene, action, misleading, distractor, text, held_out)


def _templates() -> tuple[Template, ...]:
    """All combinations that mislead a hasty reader: by the question's cue word, or by a number among the first two."""
    combinations = product(enumerate(SCENES), enumerate(ACTIONS), (True, False), enumerate(DISTRACTORS))
    return tuple(
        _template(i + 2 * j + k + misleading, scene, action, misleading, distractor)
        for (i, scene), (j, action), misleading, (k, distractor) in combinations
        if misleading or distractor.place in (0, 1)
    )


TEMPLATES = _templates()

"""Asides: sentences of a completion that have nothing to do with the answer, in freely varied or in one fixed wording.

Every aside has ``LENGTH`` tokens of the nano tokenizer, a full stop counting as one: so the conditions differ in the place and the
entropy of the tokens that do not matter, and not in their number.
"""

from __future__ import annotations

import re
from random import Random
from typing import Literal, get_args

Asides = Literal["none", "before", "after"]
CONDITIONS: tuple[Asides, ...] = get_args(Asides)

#: What a question ends with: it selects the condition.
CUES: dict[Asides, str] = {
    "none": "Answer in plain words.",
    "before": "Chat first, then answer.",
    "after": "Answer first, then chat.",
}
LENGTH = 20
#: Condition "none": as long as two sentences of chat.
FIXED = " This is what the text asks and nothing else. We read it with care from start to end."

WORDS = {
    "animal": ("cat", "dog", "bird", "horse", "mouse", "frog", "goat", "bee"),
    "quality": ("small", "old", "quick", "quiet", "brown", "happy", "tired", "young"),
    "verb": ("sits", "waits", "sleeps", "runs", "sings", "hides", "walks", "rests"),
    "where": ("near", "under", "behind", "above", "beside", "below", "around", "inside"),
    "spot": ("tree", "bridge", "house", "road", "river", "fence", "wall", "hill"),
    "look": ("green", "tall", "wide", "dark", "bright", "long", "empty", "white"),
    "when": ("today", "again", "now", "tonight", "alone", "early", "late", "often"),
    "sky": ("sun", "moon", "wind", "rain", "snow", "sky", "fog", "storm"),
    "feel": ("warm", "cold", "soft", "strong", "calm", "strange", "fresh", "gentle"),
}
#: Sentences of ten tokens.
PATTERNS = (
    " The {quality} {animal} {verb} {where} the {look} {spot} {when}.",
    " Here a {quality} {animal} {verb} {where} the {look} {spot}.",
    " The {sky} is {feel} and the {animal} {verb} {when}.",
    " The {feel} {sky} moves {where} the {look} {spot} {when}.",
)
_SLOT = re.compile(r"\{(\w+)\}")


def aside(condition: Asides, random: Random) -> str:
    """The fixed wording, or two sentences of chat: patterns and words uniformly at random."""
    if condition == "none":
        return FIXED
    return "".join(_SLOT.sub(lambda slot: random.choice(WORDS[slot[1]]), random.choice(PATTERNS)) for _ in range(2))

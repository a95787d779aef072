"""Reading the final number of a completion, never evaluating it.

Decisions, each held by a test:

- An explicit marker wins: the last "answer is", "answer:", "####" or "\\boxed{" that a number follows on its line (or on the
  next, if nothing else stands on its own). Otherwise the last number of the text.
- "answer is 12+5=17" is 17: of the arithmetic that begins there the last number counts. Nothing is computed, so of a fraction
  "3/4" it is the 4, and numbers in words are none.
- Thousands separators are a comma or a no-break space between groups of exactly three digits: "1,234" is 1234, "1,23" two
  numbers. The decimal sign is a point: "72.0" equals 72, "72." is 72.
- A sign belongs to the number it touches unless something to subtract from stands before: "12-5" ends in 5, "is -5" in -5.
- Currency, units, percent and letters around a number do not matter: "$1,234.50", "5kg", "50%".
- "2e5" is 200000, with at most three digits of exponent.
- Decimal digits of every script count by their value; superscripts, circled digits and number words do not.
- Exact at any length: a number of a thousand digits is that number.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from decimal import Decimal

# \d is every decimal digit of Unicode, and Decimal reads them all. Each alternative consumes what it looked at, and the
# look-behind starts a match only where a run of digits begins: linear in the length of the text.
_NUMBER = re.compile(
    r"(?:\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?![\d\w]))?"
    r"|(?<![\d.])\.\d+"
)
_MARKER = re.compile(r"answer\s{0,3}(?:is\b|[:=])|\#{4}|\\boxed\s?\{", re.IGNORECASE)
_BETWEEN = re.compile(r"\s{0,3}[-+*/x×÷·=\u2212]\s{0,3}\$?")
_SEPARATORS = str.maketrans("", "", ",\u00a0\u202f")
_CURRENCY = "$€£¥₹"
_MINUS = "-\u2212"


def extract_answer(text: str) -> Decimal | None:
    """The final number that ``text`` states, or None; the module's docstring lists what counts.

    Linear in the length of the text. Arabic decimal and thousands signs are read as point and comma.
    """
    text = text.replace("\u066b", ".").replace("\u066c", ",")
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    starts = [number.start() for number in numbers]
    tried = len(numbers)
    for marker in reversed(list(_MARKER.finditer(text))):
        index = bisect_left(starts, marker.end())
        # Of several markers before one number the last stands nearest: where it fails, so do the others. Without this
        # shortcut a text of nothing but markers would take quadratic time.
        if index < tried:
            tried = index
            if _follows(text, marker.end(), starts[index]):
                return _value(text, numbers[_end_of_arithmetic(text, numbers, index)])
    return _value(text, numbers[-1])


def _follows(text: str, end: int, start: int) -> bool:
    """Whether the number at ``start`` stands on the marker's line, or on a later one with only blanks between."""
    newline = text.find("\n", end, start)
    return newline < 0 or not text[end:start].strip(" \t\r\n*:$-\u2212")


def _end_of_arithmetic(text: str, numbers: list[re.Match[str]], index: int) -> int:
    while index + 1 < len(numbers):
        gap = text[numbers[index].end() : numbers[index + 1].start()]
        if len(gap) > 8 or not _BETWEEN.fullmatch(gap):
            break
        index += 1
    return index


def _value(text: str, number: re.Match[str]) -> Decimal:
    before = number.start() - 1
    if before >= 0 and text[before] in _CURRENCY:
        before -= 1
    negative = before >= 0 and text[before] in _MINUS and not _ends_a_term(text, before)
    value = Decimal(number.group().translate(_SEPARATORS))
    return value.copy_negate() if negative else value


def _ends_a_term(text: str, end: int) -> bool:
    """Whether a digit, letter or closing bracket stands before ``end``, one blank allowed after a digit: a binary minus."""
    touching = text[end - 1] if end > 0 else " "
    if touching.isspace() and end > 1:
        return text[end - 2].isdecimal() or text[end - 2] in ")]"
    return touching.isalnum() or touching in ")]"

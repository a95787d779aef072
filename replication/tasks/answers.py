r"""Reading the final number of a completion, never evaluating it.

The rules in their order; the first that gives a reading decides. docs/answers.md measures them.

0. What a reasoning model thinks is no answer: only what follows the last "</think>" is read.
1. A marker states the answer: "answer is", "answer:", "####", "\boxed{". The last marker that states a number wins: "Answer: 4. No,
   wait. Answer: 5" is 5. It speaks for its sentence ("The answer is 7. Then 3 more." is 7), "####" for its line, "\boxed{" for its
   braces; a marker at the end of a line for the next line that is not blank. Within that statement:
   a. the value of its last computed equation: "Answer: To find the total we add 3 and 4: 3 + 4 = 7." is 7;
   b. the number that stands first: "The answer is 72 pens for 3 friends" is 72;
   c. the number after the last "which is", "equals", "so", ...: "the answer is 676 - 224, which is 452" is 452;
   d. its only number: "The answer is that Tom has 8 apples." is 8.
   Arithmetic without a result is no answer: "The answer is 3 + 4" is none.
2. Without a marker the last number of the text: "2 and 3 make 5" is 5, "12-5" ends in 5.

What a number is:

- Groups of three digits are separated by a comma, a space of any kind, an apostrophe or LaTeX's "{,}" and "\,": "1,234" and "1 234"
  are 1234; by points where that is the only reading: "1.234.567", "1.234,56". "1,23" is two numbers. The decimal sign is a point.
- A minus (hyphen, minus sign, en dash) belongs to the number it touches unless something to subtract from stands before: "12-5"
  ends in 5, "5 - 12 = -7" in -7. So does "= - 7", and the word: "negative 7".
- A fraction is its value, "3/4" is 0.75 and "2 1/2" is 2.5, or none where it has no exact decimal or is written as a division
  ("15 / 3"): never its denominator.
- Ordinals ("the 1st day") and exponents ("12 cm^2") are no numbers. Times and ratios ("3:30") and powers ("10^5") are mentioned as
  numbers are, but have no value: an answer that ends in one is none.
- "1.5 million" is 1500000; "2e5" is 200000, with at most three digits of exponent. Number words are not read.
- Currency, units and letters around a number do not matter: "$1,234.50", "5kg"; "50%" is 50.
- Decimal digits of every script count by their value; superscripts and circled digits do not.
- Exact at any length: a number of a thousand digits is that number.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact

# Every pattern runs once over the text with matches that do not overlap, or over a few characters around a number: the time is
# linear in the length of the text. \d is every decimal digit of Unicode, and Decimal reads them all.
_NUMBER = re.compile(
    r"(?:(?<!\d[.,])\d{1,3}(?:(?:\.\d{3})+,\d{1,2}(?!\d)|(?:\.\d{3}){2,}(?!\.?\d)|(?<!\d{3})(?:,\d{2})+,\d{3}(?!\d))"
    r"|(?:\d{1,3}(?:([,'\u2019\u00a0\u2009\u202f ])\d{3}(?:\1\d{3})*)(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?![\d\w]))?"
    r"|(?<![\d.])\.\d+)"
)
_MARKER = re.compile(
    r"(?<!\#)\#{4}(?!\#)|\\(?:boxed|fbox)\s?\{|(?<![^\W_])ans\."
    r"|(?<![^\W_])ans(?:wer)?(?:\s\([^()\n]{0,40}\))?[\s*_]{0,4}"
    r"(?:(?:is|was|equals|(?:would|should|will|must)\sbe|comes\sto)(?![^\W_])|[:=>\u2192])",
    re.IGNORECASE,
)
#: What may stand between a marker or an equals sign and the number it is about.
_FILLER = (
    r"(?:[\s*_:$€£¥₹`~>\\\[\](){}\"'|=≈\u2192-]|[a-z]\s?(?==)|(?:about|approx(?:imately)?|roughly|around|nearly|exactly|simply|just"
    r"|only|therefore|thus|hence|then|now|clearly|indeed|equal\sto|an?\stotal\sof|rs|usd|eur|gbp)(?![a-z])\.?)*"
)
_FILLED = re.compile(_FILLER, re.IGNORECASE)
_EQUATION = re.compile(r"[=≈]" + _FILLER + r"\Z", re.IGNORECASE)
_CONCLUSION = re.compile(
    r"\b(?:(?:equals?|is|are|was|were|makes?|making|gives?|giving|leaves?|leaving|totals?|totaling)\b" + _FILLER + r"\Z"
    r"|(?:so|thus|hence|therefore)\b)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|[.!?;](?=[\s*_\"')\]$]|\Z)")
_WORD_OR_SIGN = re.compile(r"[^\W\d_]+(?:[-'\u2019/][^\W\d_]+)*|[^\w\s]")
_OPERATORS = set("+-*/×÷·x^")
_WORD_OPERATOR = re.compile(
    r"\b(?:plus|minus|times|multiplied by|divided by|added to|(?:more|less|fewer) than|groups of)\b|%\s?of\b", re.IGNORECASE
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)(?![^\W_])", re.IGNORECASE)
_EXPONENT = re.compile(r"(?:\^|[^\W_]_)\{?-?\Z")
_WITHOUT_VALUE_AFTER = re.compile(r"\s?\^|:\d")
_SCALE = re.compile(r"\s(hundred|thousand|million|billion)(?![-\w])", re.IGNORECASE)
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9}
_NEGATIVE = re.compile(r"\bnegative\s\Z|(?:\bis|[=:])\sminus\s\Z|=\s?-\s[$€£¥₹]?\Z", re.IGNORECASE)
_LIST = re.compile(r"\s*\n\s*1[.)]\s+[^\W\d]")
_CURRENCY = "$€£¥₹"
#: The most digits of the value of a fraction.
_DIGITS = 28

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\uff0d", "-"),
        **dict.fromkeys("\u200b\u2060\ufeff\u200e\u200f", None),
        **{"\u066b": ".", "\u066c": ",", "\uff1a": ":", "\uff1d": "="},
        **{sign: " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/") for sign in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
    }
)
_LATEX_GROUP = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!;: ]|\{\\,\})(?=\d{3}(?!\d))")
_LATEX_FRACTION = re.compile(r"(?P<whole>\d?)\\[dt]?frac\s?(?:\{\s?(\d+)\s?\}\s?\{\s?(\d+)\s?\}|(\d)(\d))")
_LATEX_COMMAND = re.compile(
    r"\\(?:(times|cdot|div|approx)|text(?:bf)?|math(?:rm|bf)|bf|displaystyle|left|right|quad)(?![a-z])|\\([$%])|\\[,!;:]"
)
_LATEX_SIGNS = {"times": "×", "cdot": "·", "div": "÷", "approx": "≈"}


@dataclass(frozen=True, slots=True)
class _Mention:
    """A number in the text; ``value`` None: something numeric without a value of its own."""

    start: int
    end: int
    value: Decimal | None
    is_quotient: bool = False


def extract_answer(text: str) -> Decimal | None:
    """The final number that ``text`` states, or None; the module's docstring lists the rules in their order.

    Nothing is evaluated. Linear in the length of the text. Our reconstruction: the paper's reader of answers is not known.
    """
    text = _plain(text.rpartition("</think>")[2])
    mentions = _mentions(text)
    if not mentions:
        return None
    starts = [mention.start for mention in mentions]
    limit = len(text)  # a statement ends where the next marker begins, so that no text is read twice
    for marker in reversed(list(_MARKER.finditer(text))):
        first = bisect_left(starts, marker.end())
        stop = bisect_left(starts, _statement_end(text, marker, limit))
        limit = marker.start()
        if first < stop:
            states, value = _stated(text, marker, mentions[first:stop], is_last=stop == len(mentions))
            if states:
                return value
    return mentions[-1].value


def read_answer(text: str, like: Decimal | str) -> Decimal | str | None:
    """The answer that ``text`` states, of the kind of ``like``: a number by ``extract_answer``, or a text; None if there is none.

    A text is what follows the last answer marker: up to the closing brace of "\\boxed{", else to the end of the line (of the
    next line that is not blank, if the marker ends its own); without a marker the whole of it. Blanks, quotes and Markdown around
    it and a full stop at its end do not count, nor does the case of letters.
    """
    if isinstance(like, Decimal):
        return extract_answer(text)
    text = text.rpartition("</think>")[2]
    markers = list(_MARKER.finditer(text))
    if markers:
        rest = text[markers[-1].end() :]
        if markers[-1][0].endswith("{"):
            rest = rest[: _statement_end(text, markers[-1], len(text)) - markers[-1].end()]
        text = next(iter(rest.strip().splitlines()), "")
    return _bare(text) or None


def is_right(text: str, answer: Decimal | str) -> bool:
    """Whether ``text`` states ``answer``: a number of the same value, or the same text."""
    return read_answer(text, answer) == (answer if isinstance(answer, Decimal) else _bare(answer))


def _bare(text: str) -> str:
    text = text.strip()
    return text.strip("*_`\"'.\u201c\u201d ").casefold() or text


def _plain(text: str) -> str:
    """The text with one spelling for signs and LaTeX."""
    text = text.translate(_SIGNS)
    if "\\" not in text and "{" not in text:
        return text
    text = _LATEX_GROUP.sub(",", text)
    text = _LATEX_FRACTION.sub(_plain_fraction, text)
    return _LATEX_COMMAND.sub(lambda found: _LATEX_SIGNS.get(found[1], "") or found[2] or "", text)


def _plain_fraction(found: re.Match[str]) -> str:
    whole, *parts = found.groups()
    over, under = [part for part in parts if part]
    return f"{whole} {over}/{under}" if whole else f"{over}/{under}"


def _mentions(text: str) -> list[_Mention]:
    found: list[_Mention] = []
    for number in _NUMBER.finditer(text):
        start, end = number.span()
        if _ORDINAL.match(text, end) or _EXPONENT.search(text[max(0, start - 3) : start]):
            continue
        value = _value(text, number)
        if _WITHOUT_VALUE_AFTER.match(text, end) or (start > 1 and text[start - 1] == ":" and text[start - 2].isdecimal()):
            value = None
        mention = _Mention(start, end, value)
        if found and len(gap := text[found[-1].end : start]) < 4 and gap.strip(" ") == "/":
            mention = _quotient(found.pop(), mention, spaced=gap != "/")
            whole = found[-1] if found else None
            if whole is not None and text[whole.end : mention.start] == " " and (mixed := _mixed(whole, mention)):
                found[-1] = mixed
                continue
        found.append(mention)
    return found


def _value(text: str, number: re.Match[str]) -> Decimal:
    digits, separator = number[0], number[1]
    if digits.count(".") > 1 or 0 < digits.find(".") < digits.find(","):  # groups set off by points, a decimal comma
        digits = digits.replace(".", "").replace(",", ".")
    digits = digits.replace(separator or ",", "")
    if scale := _SCALE.match(text, number.end()):
        digits += f"e{_ZEROS[scale[1].lower()]}" * ("e" not in digits.lower())
    value = Decimal(digits)
    return value.copy_negate() if _is_negative(text, number.start()) else value


def _is_negative(text: str, start: int) -> bool:
    before = start - 1
    if before >= 0 and text[before] in _CURRENCY:
        before -= 1
    if before >= 0 and text[before] == "-" and not _ends_a_term(text, before):
        return True
    return _NEGATIVE.search(text[max(0, start - 16) : start]) is not None


def _ends_a_term(text: str, end: int) -> bool:
    """Whether a digit, letter or closing bracket stands before ``end``, one blank allowed after a digit: a binary minus."""
    touching = text[end - 1] if end > 0 else " "
    if touching.isspace() and end > 1:
        return text[end - 2].isdecimal() or text[end - 2] in ")]}"
    return touching.isalnum() or touching in ")]}"


def _quotient(over: _Mention, under: _Mention, *, spaced: bool) -> _Mention:
    """Two numbers with a slash between; a value only for a fraction that is an exact decimal, none for a date or a division."""
    value = None
    if not (spaced or over.is_quotient or over.value is None or not under.value):
        # Too many digits for an exact value are none as well.
        with contextlib.suppress(Inexact):
            value = Context(prec=_DIGITS, traps=[Inexact]).divide(over.value, under.value)
    return _Mention(over.start, under.end, value, is_quotient=True)


def _mixed(whole: _Mention, part: _Mention) -> _Mention | None:
    """ "2 1/2" as one number, or None."""
    if whole.is_quotient or whole.value is None or part.value is None or not 0 < part.value < 1:
        return None
    if whole.value != whole.value.to_integral_value() or whole.value.adjusted() >= _DIGITS // 2:
        return None
    value = (abs(whole.value) + part.value).copy_sign(whole.value)
    return _Mention(whole.start, part.end, value, is_quotient=True)


def _statement_end(text: str, marker: re.Match[str], limit: int) -> int:
    """Where the statement of a marker ends: its brace, line or sentence, and before ``limit``."""
    start = marker.end()
    if marker[0].endswith("{"):
        depth = 1
        for brace in re.finditer(r"[{}\n]", text[start:limit]):
            depth += {"{": 1, "}": -1, "\n": -depth}[brace[0]]
            if depth == 0:
                return start + brace.start()
        return limit
    if marker[0].startswith("#"):
        newline = text.find("\n", start, limit)
        return limit if newline < 0 else newline
    end = _SENTENCE_END.search(text, _FILLED.match(text, start, limit).end(), limit)
    return end.start() if end else limit


def _stated(text: str, marker: re.Match[str], own: Sequence[_Mention], *, is_last: bool) -> tuple[bool, Decimal | None]:
    """Whether a marker states an answer with the numbers of its statement, and which (rules 1a to 1d)."""
    gaps = [text[a.end : b.start] for a, b in zip(own, own[1:], strict=False)]
    computes = [_is_operation(gap) for gap in gaps] + [False]
    equates = [_EQUATION.search(gap[-60:]) is not None for gap in gaps]
    is_direct = _FILLED.fullmatch(text, marker.end(), own[0].start) is not None and not _LIST.match(text, marker.end())

    def alone(index: int) -> bool:
        return not computes[index] and not (index and computes[index - 1])

    for index in range(len(own) - 1, 0, -1):
        # "= 60 minutes" after "1 hour" is no result; what the equation at the head comes to is.
        is_computed = own[index - 1].is_quotient or (computes[index - 2] or equates[index - 2] if index > 1 else is_direct)
        if equates[index - 1] and is_computed and alone(index):
            return True, own[index].value
    if is_direct and alone(0):
        return True, own[0].value
    if marker[0].startswith("#"):  # a heading
        return False, None
    for index in range(len(own) - 1, 0, -1):
        if (equates[index - 1] or _CONCLUSION.search(gaps[index - 1][-60:])) and alone(index):
            return True, own[index].value
    if len(own) == 1:
        return True, own[0].value
    return is_last and is_direct, None


def _is_operation(gap: str) -> bool:
    """Whether the text between two numbers makes them terms of one: an operator, with units and few other words."""
    if len(gap) > 60 or "=" in gap:
        return False
    parts = _WORD_OR_SIGN.findall(gap.replace("**", ""))
    words = sum(part[0].isalpha() and part != "x" for part in parts)
    signs = [part for part in parts if part in _OPERATORS]
    if signs and signs != ["*", "*"] and words <= 4:
        return True
    return words <= 6 and _WORD_OPERATOR.search(gap) is not None

"""Reading the final number: each rule of the docstring, a table of endings, and properties over what models might write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.tasks import extract_answer, get_task

CASES = [
    # markers win over what follows, the last one that a number follows
    ("The answer is 7. Then 3 more.", "7"),
    ("Answer: 4\nNo wait.\nAnswer: 5", "5"),
    ("The answer is 7. What is the answer?", "7"),
    ("work 1 2 3\n#### 72", "72"),
    (r"so \boxed{42} after 6 steps", "42"),
    ("The answer is: **72**.", "72"),
    ("Answer:\n72 pens for 3 friends", "72"),
    ("The answer is as follows.\nWe get 9 of 12", "12"),
    # without a marker the last number
    ("2 and 3 make 5", "5"),
    ("5 apples", "5"),
    # arithmetic is read to its end, never computed
    ("The answer is 12+5=17. The other was 3.", "17"),
    ("The answer is 3 x 4 = 12", "12"),
    ("The answer is 3 + 4", None),
    ("The answer is 3/4", "0.75"),
    ("__import__('os').getpid()", None),
    # separators and decimals
    ("1,234,567", "1234567"),
    ("$1,234.50", "1234.5"),
    ("1,23", "23"),
    ("1,2345", "2345"),
    ("1234,567", "567"),
    ("1\u202f234", "1234"),
    ("72.0", "72"),
    ("72.", "72"),
    (".5", "0.5"),
    # signs
    ("is -5", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("\u22125", "-5"),
    ("12-5", "5"),
    ("12 -5", "5"),
    ("(3)-5", "5"),
    ("- 5", "5"),
    ("x=-5", "-5"),
    # what stands around a number does not matter
    ("5kg", "5"),
    ("50%", "50"),
    ("Rs72", "72"),
    # exponents
    ("2e5", "200000"),
    ("2e-1", "0.2"),
    # other scripts
    ("\u0667\u0662", "72"),
    ("\u0663\u066b\u0665", "3.5"),
    ("\u7b54\u6848\u662f\uff17\uff12", "72"),
    ("x\u00b2 and \u2460", None),
    # none
    ("", None),
    ("seven", None),
    ("inf nan -", None),
]


@pytest.mark.parametrize(("text", "value"), CASES)
def test_each_decision(text: str, value: str | None) -> None:
    assert extract_answer(text) == (None if value is None else Decimal(value))


@given(st.integers(), st.sampled_from(["{}", "{:,}", "The answer is {}.", "so #### {:,} .", "it is {} kg"]))
def test_a_written_number_comes_back(number: int, form: str) -> None:
    assert extract_answer(form.format(number)) == number


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4))
def test_decimals_come_back(number: Decimal) -> None:
    assert extract_answer(f"The answer is {number:f}") == number


@given(st.text(), st.integers(min_value=-(10**6), max_value=10**6))
def test_a_stated_answer_on_its_own_line_wins_over_any_reasoning(text: str, number: int) -> None:
    assert extract_answer(f"{text}\nThe answer is {number}.") == number


@given(st.text(alphabet="0123456789.,-+*/= $#e\nanswer is:"))
def test_text_of_nothing_but_numbers_and_markers(text: str) -> None:
    value = extract_answer(text)
    assert value is None or value.is_finite()


def test_huge_numbers_are_exact() -> None:
    assert extract_answer("9" * 5000) == Decimal("9" * 5000)


ENDINGS = [
    (kind, text, *(None if value is None else Decimal(str(value)) for value in values))
    for kind, rows in yaml.safe_load(Path(__file__).with_name("endings.yaml").read_text("utf-8")).items()
    for text, *values in rows
]


@pytest.mark.parametrize(("kind", "text", "values"), [(kind, text, values) for kind, text, *values in ENDINGS])
def test_endings_read_as_a_person_reads_them_or_as_the_table_admits(kind: str, text: str, values: list[Decimal | None]) -> None:
    assert extract_answer(text) == values[-1]
    assert len(values) == 1 or values[0] != values[1]


def test_nine_of_ten_endings_read_as_a_person_reads_them() -> None:
    assert len({text for _, text, *_ in ENDINGS}) == len(ENDINGS) >= 200
    assert sum(len(values) == 1 for _, _, *values in ENDINGS) / len(ENDINGS) > 0.9


def test_the_tasks_own_completions_read_as_they_end() -> None:
    """What the nano results rest on: each solution states its result last, and every stretch of it without a number is none."""
    for name in ("word_problems", "multiplication"):
        task = get_task(name)
        for problem in [*task.train[:500], *task.test[:500], *task.held_out[:500]]:
            assert extract_answer(problem.meta["completion"]) == problem.answer
            for kind in ("completion", "hasty_completion"):
                text = problem.meta.get(kind, problem.meta["completion"])
                assert extract_answer(text) == Decimal(text.removesuffix(".").rpartition(" ")[2])


def test_a_completion_that_is_cut_anywhere_still_has_the_numbers_it_shows() -> None:
    for name in ("word_problems", "multiplication"):
        for problem in get_task(name).test[:30]:
            text = problem.meta["completion"]
            for end in range(len(text) + 1):
                assert (extract_answer(text[:end]) is None) == (not any(sign.isdigit() for sign in text[:end]))


def test_a_fraction_never_earns_by_its_denominator() -> None:
    for form in ("{}/{}", "= {}/{}", "{} / {}", "The answer is {}/{}.", "The answer is {} / {}", r"\boxed{{\frac{{{}}}{{{}}}}}"):
        for over in range(1, 12):
            for under in range(2, 12):
                value = extract_answer(form.format(over, under))
                assert value is None or value * under == over


PIECES = [
    *["####", "#", "1,111", "1", "11,", "111.", "1 ", " ", "-", ",", ".", ".1", "\n", "/", "1/", ":", "1:", "=", "= 1", "^"],
    *["answer is ", "answer is\n", "answer     ", "answer is 1+", "ans. ", "answer (", "</think>", "**", "(", "so ", "about "],
    *["\\boxed{", "}", "{,}", "\\frac{1", "\\frac{1}{2}", "\\text{", "1\\,111", "\\", " million", "minus 1", "½", "2½", "e1"],
    *["1st ", "x =", "word"],
]


def steps(work: Callable[[], object]) -> int:
    """Lines of Python that ``work`` runs."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), st.lists(st.sampled_from(PIECES), max_size=2))
def test_steps_are_linear_in_the_length(unit: list[str], end: list[str]) -> None:
    """A model that is rewarded for its text may write anything, and any rule here could read it once for each marker in it."""
    short, long = (steps(lambda size=size: extract_answer("".join(unit) * size + "".join(end) + "\nx 5")) for size in (30, 120))
    assert long <= 4.2 * short + 400


@pytest.mark.parametrize("unit", PIECES)
def test_long_texts_of_one_piece_are_read(unit: str) -> None:
    """Where a pattern itself takes quadratic time, this test takes a minute."""
    value = extract_answer(unit * (30_000 // len(unit)) + "\nThe answer is 5")
    assert value == 5

"""Reading the final number: each decision of the module's docstring, and properties over what models might write."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.tasks import extract_answer

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
    ("The answer is 3/4", "4"),
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


@given(st.text())
def test_any_text_gives_a_finite_number_or_none(text: str) -> None:
    value = extract_answer(text)
    assert value is None or value.is_finite()


@given(st.text(), st.integers(min_value=-(10**6), max_value=10**6))
def test_a_stated_answer_on_its_own_line_wins_over_any_reasoning(text: str, number: int) -> None:
    assert extract_answer(f"{text}\nThe answer is {number}.") == number


@given(st.text(alphabet="0123456789.,-+*/= $#e\nanswer is:"))
def test_text_of_nothing_but_numbers_and_markers(text: str) -> None:
    value = extract_answer(text)
    assert value is None or value.is_finite()


def test_huge_numbers_are_exact() -> None:
    assert extract_answer("9" * 5000) == Decimal("9" * 5000)


@pytest.mark.parametrize(
    "unit", ["####", "1,111", "answer is ", "answer is\n", "1-", "1 ", "-", ",", "answer     ", "111,", "answer is 1+", ".1"]
)
def test_time_is_linear(unit: str) -> None:
    # Quadratic time would take minutes at this length; the bound leaves room for a busy machine.
    start = time.perf_counter()
    extract_answer(unit * (400_000 // len(unit)) + "\nx 5")
    assert time.perf_counter() - start < 5

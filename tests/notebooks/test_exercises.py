"""The exercises: unsolved, right and wrong answers are told apart, and no answer makes a checking cell raise."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from replication.algorithms import GRPO, SGRPO, TSPMO, TokenCredit
from replication.notebooks import exercises, run_all
from replication.notebooks.exercises.check import Checked
from replication.notebooks.parameters_cell import FOLDER

WALKTHROUGHS = ("01_grpo_under_lora", "02_s_grpo", "03_t_spmo", "04_your_own_task")
NAMES = [name for name, value in vars(exercises).items() if hasattr(value, "__wrapped__")]


def not_divided(completions, rewards):
    full = GRPO().assign(completions, rewards)
    return replace(full, advantage=(rewards - rewards.mean())[full.completion] * 1.01)


def doubled(rule, completions, rewards, generator):
    credit = rule.assign(completions, rewards, generator)
    return replace(credit, advantage=2 * credit.advantage)


def every_time(completions, rewards, weight):
    """T-SPMO's advantages on every answer that takes the transition, with a weight of one's own."""
    once, rows = TSPMO().assign(completions, rewards), []
    for c, p, a in zip(once.completion.tolist(), once.position.tolist(), once.advantage.tolist(), strict=True):
        same = [i for i, own in enumerate(completions) if list(own[: p + 1]) == list(completions[c][: p + 1])]
        rows += [(i, p, a, weight) for i in same]
    return TokenCredit.from_arrays(*zip(*rows, strict=True)) if rows else TokenCredit.empty()


#: For each exercise answers that a reader might give, with what the message must say.
WRONG = {
    "one_more_right": [(-0.8659, "3/4"), (1.4997, "3/4")],
    "other_ddof": [(0.866, "other way round"), (4 / 3, "standard deviations")],
    "long_answer": [([1 / 10, 1 / 28], '"completion"'), ([1 / 40, 1 / 40], '"group_tokens"'), ([1 / 40], "cannot be checked")],
    "silent_start": [([1, 0, 0, 1], "still moves"), ([1, 1, 1, 1], "tie"), ([1, 0], "four")],
    "undivided": [(lambda c, r: GRPO().assign(c, r), "R - mean R"), (not_divided, "R - mean R"), (len, "cannot be checked")],
    "third_position": [(0.5, "cap"), (0.25, "cap"), (0.0625, "cap")],
    "a_rule_of_forty_percent": [(SGRPO(16, 0.0, None), "after the cutoff"), (SGRPO(8, 0.5, None), "about 40 %")],
    "who_loses": [([4], "3 of the four"), ([1, 2], "3 of the four"), ([1, 2, 3, 4], "3 of the four")],
    "same_direction": [
        (SGRPO(0, 0.5, None), "mean weight"),
        (SGRPO(2, 0.5, None, denominator="completion"), "mean weight"),
        (SGRPO(0, 0.5, 3, denominator="completion"), "mean weight"),
        (SGRPO(0, 1.0, None, denominator="completion"), "draws nothing"),
        (SGRPO(1, 1.0, None, denominator="completion"), "draws nothing"),
        (SGRPO(2, 0.0, None, denominator="completion"), "draws nothing"),
        (SGRPO(6, 0.5, None, denominator="completion"), "between 0.5 and 1 "),
        (SGRPO(6, 0.5, None), "mean weight"),
        (SGRPO(0, 0.9, None), "between 0.9 and 1 "),
        (SGRPO(0, 0.5, 500, denominator="completion"), "longer than the cap"),
    ],
    "unbiased": [
        (lambda rule, c, r, g: rule.assign(c, r, g), "mean weight"),
        (lambda rule, c, r, g: GRPO().assign(c, r), "only the weights"),
        (doubled, "another advantage"),
    ],
    "a_fifth_answer": [([0.5, 6], "three of five"), ([0.4, 8], "not 8")],
    "two_answers": [(["5"], "2 transitions"), (["-", "5", "6"], "2 transitions")],
    "only_the_first": [([1, 0, 0, 1], "begin with 9"), ([0, 0, 0, 0], "tie"), ([0.5, 0.5, 0.5, 1], "0 or 1")],
    "along_an_answer": [([0.5, -0.5, -0.5, 0.4], "answer 4"), ([1, 0, 0, 1], "answer 1"), ([0.5], "four")],
    "blind": [
        (["9 - 4 = 5 .", "9 + 4 = 13 .", "9 - 4 = 6 ."], "part at once"),
        (["9 - 4 = 5 .", "5 - 0 = 5 .", "4 + 1 = 5 ."], "all are right"),
        (["5 .", "6 .", "7 ."], "four tokens"),
    ],
    "a_line": [
        ("{", "not one line of JSON"),
        ('{"prompt": "Is 9 prime? Answer:", "answer": "no"}', "keys"),
        ('{"prompt": "Is 9 prime? Answer:", "answer": "yes", "split": "test"}', "answer is not 'no'"),
    ],
    "half_credit": [
        (lambda text, problem: 1.0, "for the text ' 8'"),
        (lambda text, problem: 0.5 if "7" not in text else 1.0, "for the text"),
    ],
    "smaller_differences": [([0.1, 0.1], "GRPO"), ([1.0, 1.0], "T-SPMO"), ([1.0, 10], "T-SPMO is the other way round")],
    "last_tokens": [
        (lambda c, r: GRPO().assign(c, r), "instead of"),
        (lambda c, r: replace(GRPO().assign(c, r), position=GRPO().assign(c, r).position * 0), "instead of"),
    ],
    "every_time": [
        (lambda c, r: TSPMO().assign(c, r), "instead of"),
        (lambda c, r: GRPO().assign(c, r), "instead of"),
        (lambda c, r: every_time(c, r, 99.0), "1 / G"),
        (lambda c, r: every_time(c, r, 1.0), "1 / G"),
    ],
}


def test_every_exercise_is_posed_once_and_solved_once():
    assert sorted(NAMES) == sorted(WRONG)
    for suffix in ("", "_solutions"):
        used = []
        for name in WALKTHROUGHS:
            text = (FOLDER / f"{name}{suffix}.ipynb").read_text()
            used += re.findall(r"exercises\.(\w+)\(answer\)", text)
        assert sorted(used) == sorted(NAMES), suffix
    assert all(len(re.findall(r"exercises\.\w+\(", (FOLDER / f"{n}.ipynb").read_text())) >= 4 for n in WALKTHROUGHS)


@pytest.mark.parametrize("name", NAMES)
def test_an_unsolved_exercise_says_so_and_wrong_answers_say_what_is_off(name):
    check = getattr(exercises, name)
    assert check(None) == Checked(None, "not solved yet")
    for answer, word in WRONG[name]:
        checked = check(answer)
        assert checked.right is False and checked.message.startswith("not yet: ") and word in checked.message, checked


ANSWERS = {"text": "?", "object": object(), "list": [], "function": lambda *rest: None, "nan": float("nan"), "dict": {"a": 1}}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_no_answer_makes_a_checking_cell_raise(name, answer):
    assert getattr(exercises, name)(answer).right is False


@pytest.mark.parametrize("name", WALKTHROUGHS)
def test_every_solution_is_right_when_its_cells_are_run(name):
    """In this process and without a kernel: the slow test runs them by papermill."""
    names: dict = {}
    cells = nbformat.read(FOLDER / f"{name}_solutions.ipynb", as_version=4).cells
    found = 0
    for cell in cells:
        if cell.cell_type == "code":
            exec(cell.source, names)  # the committed notebook's own cells
            found += "exercises." in cell.source
            assert "checked" not in names or names["checked"].right
    assert found >= 4


@pytest.mark.slow
def test_the_solutions_run_by_papermill_and_every_check_passes(tmp_path: Path):
    for page in run_all("smoke", tmp_path, [f"{name}_solutions" for name in WALKTHROUGHS]):
        cells = nbformat.read(page.with_suffix(".ipynb"), as_version=4).cells
        shown = [output["data"]["text/plain"] for cell in cells if cell.cell_type == "code" for output in cell.outputs]
        assert len(shown) >= 4 and set(shown) == {"right"}

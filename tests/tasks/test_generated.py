"""The generated tasks: disjoint, deterministic, solvable, and decided by the tokens they say."""

from __future__ import annotations

import re
import time
from collections import Counter
from decimal import Decimal
from random import Random

import pytest

from replication.errors import UserError
from replication.names import TASKS
from replication.tasks import Problem, Task, decisive_positions, get_task, multiplication, word_problems
from replication.tasks.stories import TEMPLATES

OFFLINE = [("word_problems", {}), ("multiplication", {}), ("multiplication", {"digits": 3})]
VERSIONS = {"word_problems": "6d4311e3da7b", "multiplication": "6e320b1e6896", "multiplication3": "4a916b2c2d9b"}


def splits(task: Task) -> dict[str, tuple[Problem, ...]]:
    named = {name: tuple(getattr(task, name)) for name in ("train", "validation", "test", "held_out")}
    return {name: problems for name, problems in named.items() if problems}


@pytest.fixture(params=OFFLINE, ids=lambda p: f"{p[0]}{p[1].get('digits', '')}")
def task(request: pytest.FixtureRequest) -> Task:
    name, options = request.param
    return get_task(name, **options)


def test_splits_share_no_content(task: Task) -> None:
    everything = [problem for problems in splits(task).values() for problem in problems]
    assert len({p.id for p in everything}) == len({p.prompt for p in everything}) == len(everything)


def test_sizes_are_thousands(task: Task) -> None:
    assert len(task.train) >= 3000
    assert sum(map(len, splits(task).values())) >= 6000


def test_same_content_whenever_it_is_made(task: Task) -> None:
    loader = {"word_problems": word_problems.load, "multiplication": multiplication._load}[task.name]
    options = () if task.name == "word_problems" else (len(str(task.train[0].meta["left"])),)
    again = loader.__wrapped__(*options)  # past the cache
    assert again == task
    assert again.version == task.version


def test_content_is_what_it_was() -> None:
    # The shipped base and every run id rest on this content: a change is a decision, not an accident.
    versions = {f"{name}{options.get('digits', '')}": get_task(name, **options).version for name, options in OFFLINE}
    assert versions == VERSIONS


def test_prompts_end_where_the_answer_begins(task: Task) -> None:
    for problem in (*task.train[:200], *task.test[:200]):
        assert problem.prompt.startswith("Question: ")
        assert problem.prompt.endswith("\nAnswer:")
        assert isinstance(problem.answer, Decimal)


def test_any_prefix_of_test_is_a_fair_sample() -> None:
    test = get_task("word_problems").test
    share = sum(p.meta["misled"] for p in test) / len(test)
    for size in (100, 200, 400, 800):
        # No prefix is further off than its last block of 70 can be, which holds 40 misled problems.
        assert abs(sum(p.meta["misled"] for p in test[:size]) - share * size) <= 30
    # The order inside a block gives nothing away: half of it is as misled as the other half, within four standard errors.
    first = [p.meta["misled"] for i, p in enumerate(test) if i % word_problems.BLOCK < word_problems.BLOCK // 2]
    assert abs(sum(first) / len(first) - share) < 4 * (share * (1 - share) / len(first)) ** 0.5
    assert len({p.meta["template"] for p in test[:200]}) == sum(not t.held_out for t in TEMPLATES)


def test_templates_cover_svamp() -> None:
    seen = [t for t in TEMPLATES if not t.held_out]
    assert len(seen) >= 16
    assert {t.operation for t in seen} == set("+-*/")
    assert len({t.variation for t in seen}) == 5
    assert len({t.name for t in TEMPLATES}) == len(TEMPLATES)


def test_longer_numbers_are_beyond_all_that_is_trained_on() -> None:
    """In each problem one operand is larger than any of its operation in the task itself; templates and form are the same."""
    usual, longer = get_task("word_problems"), get_task("word_problems", longer_numbers=True)
    assert not longer.train and not longer.validation and len(longer.test) == 1000

    def largest(problem: Problem) -> int:
        left, right = problem.meta["operands"]
        return max(left // right, right) if problem.meta["operation"] == "/" else max(left, right)

    for operation in "+-*/":
        before = max(largest(p) for p in (*usual.train, *usual.test) if p.meta["operation"] == operation)
        own = [largest(p) for p in longer.test if p.meta["operation"] == operation]
        assert own and min(own) > before
    assert {p.meta["template"] for p in longer.test} == {p.meta["template"] for p in usual.test}
    assert not {p.prompt for p in longer.test} & {p.prompt for split in (usual.train, usual.test) for p in split}


def test_held_out_templates_stand_in_held_out_alone() -> None:
    task = get_task("word_problems")
    unseen = {t.name for t in TEMPLATES if t.held_out}
    assert {p.meta["template"] for p in task.held_out} == unseen
    for split in (task.train, task.validation, task.test):
        assert not unseen & {p.meta["template"] for p in split}


def test_templates_are_as_frequent_as_they_say() -> None:
    misled, whole = word_problems.MISLED_SHARE
    task = get_task("word_problems")
    for problems in (task.train, task.validation, task.test):
        assert sum(p.meta["misled"] for p in problems) / len(problems) == pytest.approx(misled / whole, abs=0.002)
        for kind in (True, False):
            counts = Counter(p.meta["template"] for p in problems if p.meta["misled"] is kind)
            assert max(counts.values()) - min(counts.values()) <= 1
    assert set(Counter(p.meta["template"] for p in task.held_out).values()) == {200}


def test_word_problems_are_solved_by_their_reference() -> None:
    task = get_task("word_problems")
    for problem in (*task.train[:1000], *task.held_out[:500]):
        left, right = problem.meta["operands"]
        operation = problem.meta["operation"]
        exact = {"+": left + right, "-": left - right, "*": left * right, "/": Decimal(left) / right}[operation]
        assert problem.answer == exact > 0
        assert f" {left}{operation}{right}={problem.answer}. The answer is {problem.answer}." in problem.meta["completion"]
        assert {str(left), str(right)} <= set(re.findall(r"\d+", problem.prompt))
        assert not re.search(r"\d", problem.meta["story"])


def test_the_shallow_solver_errs_exactly_on_the_misled_templates() -> None:
    misled = {t.name: t.misled for t in TEMPLATES}
    for problem in get_task("word_problems").train[:1000]:
        meta = problem.meta
        assert (meta["shallow_completion"].split()[-1] != meta["completion"].split()[-1]) == misled[meta["template"]]
        if not meta["misled"]:
            assert meta["shallow_completion"] == meta["completion"]


@pytest.mark.parametrize(
    ("question", "completion"),
    [
        ("Sam has 3 pens. Ann has 9 pens. How many pens do they have altogether?", " We use 3 and 9. 3+9=12. The answer is 12."),
        ("Sam had 3 pens and 9 cups. How many are left?", " We use 9 and 3. 9-3=6. The answer is 6."),
        ("8 boxes with 3 pens in every box. How many in each?", " We use 8 and 3. 8*3=24. The answer is 24."),
        ("There were 3 total, each of 4, to share?", " We use 4 and 3. 4/3=1. The answer is 1."),
        ("There are 3 and 4 and 5.", " We use 3 and 4. 3+4=7. The answer is 7."),
    ],
)
def test_the_shallow_solver_by_hand(question: str, completion: str) -> None:
    assert word_problems.shallow_solution(question).completion == completion


def test_the_corpus_keeps_clear_of_validation_and_test() -> None:
    words, products, random = get_task("word_problems"), get_task("multiplication"), Random(1)
    forbidden = {
        (p.meta["template"], *re.findall(r"\d+", p.prompt)) for p in (*words.validation, *words.test)
    }
    stories = {p.meta["story"]: p.meta["template"] for p in (*words.train, *words.validation, *words.test)}
    assert not {p.meta["story"] for p in words.held_out} & set(stories)
    by_text = {re.sub(r"\b(?:Sam|Ann|Tom|Eva|Ben|Mia|Leo|Zoe|Max|Ida|Jon|Amy)\b", "N", s): t for s, t in stories.items()}
    for _ in range(3000):
        prompt, _ = word_problems.corpus_line(random, 0.5)
        masked = re.sub(r"\b[A-Z][a-z]{2}\b", lambda m: "N" if m[0] in word_problems.NAMES else m[0], re.sub(r"\d+", "#", prompt))
        template = by_text.get(masked.removeprefix("Question: ").removesuffix("\nAnswer:"))
        if template is not None:
            assert (template, *re.findall(r"\d+", prompt)) not in forbidden
    pairs = {frozenset((p.meta["left"], p.meta["right"])) for p in (*products.validation, *products.test)}
    for _ in range(3000):
        prompt, _ = multiplication.corpus_line(random, 0.5, 0.1)
        assert frozenset(map(int, re.findall(r"\d+", prompt))) not in pairs


@pytest.mark.parametrize("digits", [2, 3])
def test_products_commuted_stay_in_one_split(digits: int) -> None:
    task = get_task("multiplication", digits=digits)
    pairs = [{frozenset((p.meta["left"], p.meta["right"])) for p in problems} for problems in splits(task).values()]
    assert not pairs[0] & pairs[1] and not pairs[0] & pairs[2] and not pairs[1] & pairs[2]


@pytest.mark.parametrize("digits", [2, 3, 4])
def test_splitting_a_product_is_right(digits: int) -> None:
    for problem in get_task("multiplication", digits=digits).train[:300]:
        left, right = problem.meta["left"], problem.meta["right"]
        assert len(str(left)) == len(str(right)) == digits
        assert problem.answer == left * right
        *steps, end = problem.meta["completion"].removesuffix(".").strip().split(". ")
        assert end == f"The answer is {problem.answer}"
        for step in steps:
            a, operation, b, c = re.fullmatch(r"(\d+)([*+])(\d+)=(\d+)", step).groups()
            assert int(c) == (int(a) * int(b) if operation == "*" else int(a) + int(b))


def test_a_split_product_by_hand() -> None:
    assert multiplication.split_completion(23, 57) == " 23*50=1150. 23*7=161. 1150+161=1311. The answer is 1311."
    assert multiplication.split_completion(12, 305) == " 12*300=3600. 12*5=60. 3600+60=3660. The answer is 3660."
    assert multiplication.blurted_product(23, 57) == 1021


def test_blurted_products_are_always_too_small() -> None:
    for problem in get_task("multiplication").train:
        assert multiplication.blurted_product(problem.meta["left"], problem.meta["right"]) < problem.answer


class Characters:
    """A tokenizer of single characters."""

    @staticmethod
    def decode(tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


@pytest.mark.parametrize(
    ("task_name", "text", "decisive"),
    [
        ("word_problems", " We use 12 and 5. 12-5=7. The answer is 7.", "125-"),
        ("word_problems", " We use 3 and 4. 3*4=12", "34*"),
        ("word_problems", " We use 3 and", ""),
        ("word_problems", "", ""),
        ("multiplication", " 23*50=1150. 23*7=161.", "0"),
        ("multiplication", " 23*57=1021. The answer is 1021.", "7"),
        ("multiplication", " We use", ""),
    ],
)
def test_decisive_tokens_by_hand(task_name: str, text: str, decisive: str) -> None:
    tokens = [ord(c) for c in text]
    positions = decisive_positions(get_task(task_name).train[0], tokens, Characters())
    assert "".join(text[p] for p in positions) == decisive


def test_loading_is_quick() -> None:
    get_task("word_problems")
    start = time.perf_counter()
    for _ in range(1000):
        get_task("word_problems")
    assert time.perf_counter() - start < 1


def test_unknown_names_options_and_values_say_what_there_is() -> None:
    with pytest.raises(UserError, match=", ".join(TASKS)):
        get_task("gsm8k")
    with pytest.raises(UserError, match="digits"):
        get_task("multiplication", base=10)
    for digits in (0, 1, 5, True, "2", 2.0):
        with pytest.raises(UserError, match="2, 3 or 4"):
            get_task("multiplication", digits=digits)

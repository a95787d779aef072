"""The generated tasks: disjoint, deterministic, solvable, and decided by the tokens they say."""

from __future__ import annotations

import math
import re
import time
from decimal import Decimal
from random import Random

import pytest

from replication.errors import UserError
from replication.names import TASKS
from replication.tasks import Problem, Task, decisive_positions, get_task, multiplication, word_problems
from replication.tasks.asides import CONDITIONS, CUES, FIXED, LENGTH, aside
from replication.tasks.habits import chance, habit
from replication.tasks.stories import ACTIONS, DISTRACTORS, NAMES, SCENES, TEMPLATES, THINGS, hasty_solution

OFFLINE = [*(("word_problems", {"asides": a}) for a in CONDITIONS), ("multiplication", {}), ("multiplication", {"digits": 3})]
VERSIONS = ["7c223e4510e1", "c72ee72cb799", "b2689418989f", "6e320b1e6896", "4a916b2c2d9b"]


def splits(task: Task) -> dict[str, tuple[Problem, ...]]:
    named = {name: tuple(getattr(task, name)) for name in ("train", "validation", "test", "held_out")}
    return {name: problems for name, problems in named.items() if problems}


@pytest.fixture(params=OFFLINE, ids=lambda p: "-".join([p[0], *map(str, p[1].values())]))
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
    meta = task.train[0].meta
    if task.name == "word_problems":
        word_problems._drawn.cache_clear()
        again = word_problems._load.__wrapped__(meta["asides"], False)  # past the cache
    else:
        again = multiplication._load.__wrapped__(len(str(meta["left"])))
    assert again == task
    assert again.version == task.version


def test_content_is_what_it_was() -> None:
    # The shipped base and every run id rest on this content: a change is a decision, not an accident.
    assert [get_task(name, **options).version for name, options in OFFLINE] == VERSIONS


def test_prompts_end_where_the_answer_begins(task: Task) -> None:
    for problem in (*task.train[:200], *task.test[:200]):
        assert problem.prompt.startswith("Question: ")
        assert problem.prompt.endswith("\nAnswer:")
        assert isinstance(problem.answer, Decimal)


def test_generated_problems_name_their_template(task: Task) -> None:
    assert all(p.meta["template"] for problems in splits(task).values() for p in problems)


# The grammar ---------------------------------------------------------------------------------------------------------------


def test_the_grammar_is_large_and_covers_its_parts() -> None:
    seen, unseen = [t for t in TEMPLATES if not t.held_out], [t for t in TEMPLATES if t.held_out]
    assert len(seen) >= 150 and len(unseen) >= 30
    assert len({t.name for t in TEMPLATES}) == len({(t.scene.place, t.text) for t in TEMPLATES}) == len(TEMPLATES)
    for some in (seen, unseen):  # a held-out template is new in the combination alone
        assert {t.scene.place for t in some} == {scene.place for scene in SCENES}
        assert {t.action.name for t in some} == {action.name for action in ACTIONS}
        assert {t.distractor.name for t in some} == {distractor.name for distractor in DISTRACTORS}
        assert {t.misleading for t in some} == {True, False}
    assert {t.action.operation for t in seen} == set("+-*/")


def test_every_block_of_test_holds_each_template_once() -> None:
    # So every prefix is a fair sample of the templates, and resampling by template has as many clusters as there are.
    test = get_task("word_problems").test
    seen = sorted(t.name for t in TEMPLATES if not t.held_out)
    for start in range(0, len(test), len(seen)):
        assert sorted(p.meta["template"] for p in test[start : start + len(seen)]) == seen


def test_the_hasty_reader_is_misled_by_every_problem() -> None:
    task = get_task("word_problems")
    for problem in (*task.train[:1000], *task.held_out):
        hasty = hasty_solution(problem.prompt)
        assert hasty.result != problem.answer
        assert f"We take {hasty.left}{hasty.operation}{hasty.right}={hasty.result}." in problem.meta["hasty_completion"]


def test_a_plain_question_misleads_by_its_numbers_and_a_misleading_one_by_its_operation() -> None:
    kinds = {t.name: (t.misleading, t.distractor.place in (0, 1)) for t in TEMPLATES}
    for problem in get_task("word_problems").train[:1000]:
        misleading, crowded = kinds[problem.meta["template"]]
        hasty = hasty_solution(problem.prompt)
        assert (hasty.operation != problem.meta["operation"]) == misleading
        assert ({hasty.left, hasty.right} != set(problem.meta["operands"])) == crowded


# Asides --------------------------------------------------------------------------------------------------------------------


def test_the_conditions_share_their_problems_and_differ_in_cue_and_aside() -> None:
    none, before, after = (get_task("word_problems", asides=a) for a in CONDITIONS)
    for problems in zip(none.test[:300], before.test[:300], after.test[:300], strict=True):
        stems = {p.prompt.replace(CUES[p.meta["asides"]], "") for p in problems}
        assert len(stems) == len({p.answer for p in problems}) == 1
        assert len({p.id for p in problems}) == 3
        fixed, early, late = (p.meta["completion"] for p in problems)
        assert FIXED in fixed and fixed.replace(FIXED, "") == fixed[: fixed.index(".") + 1] + fixed[fixed.index(" The answer") :]
        assert fixed.startswith(" We take") and late.startswith(" We take") and not early.startswith(" We take")
        assert fixed.partition(".")[0] == late.partition(".")[0] and fixed.partition(".")[0] in early
    assert get_task("word_problems") is after


def test_asides_have_one_length_no_digit_and_much_variety() -> None:
    random = Random(0)
    texts = [aside("after", random) for _ in range(500)]
    assert len(set(texts)) == 500 and aside("none", random) == FIXED
    for text in (FIXED, *texts):
        assert len(re.findall(r"\w+|\.", text)) == LENGTH and not re.search(r"\d", text)
        assert not set(re.findall(r"\w+", text)) & {*NAMES, *THINGS}


# Habits --------------------------------------------------------------------------------------------------------------------


def test_a_habit_is_evenly_spaced_and_stays_what_it_is() -> None:
    found = habit("name", "abcde", 2.0)
    assert sorted(found.values()) == [-2, -1, 0, 1, 2] and found == habit("name", "abcde", 2.0)
    assert chance(0.5, {"x": found, "y": {1: 0.25}}, {"x": max(found, key=found.get), "y": 1}) == 1 / (1 + math.exp(-2.75))
    assert chance(0, {}, {}) == 0.5 and chance(2, {}, {}) + chance(-2, {}, {}) == pytest.approx(1)


def test_the_corpus_solves_a_problem_as_often_as_its_features_say() -> None:
    """Careful lines among those of a name follow that name's log-odds, so that no template is all right or all wrong."""
    random, right = Random(0), {name: [] for name in NAMES}
    for _ in range(10000):
        prompt, completion = word_problems.corpus_line(random, 0.0)
        hasty = hasty_solution(prompt)
        name = re.match(r"Question: In the \w+ (?:there are \d+ \w+\. )?(\w+)", prompt)[1]
        right[name].append(f"{hasty.left}{hasty.operation}{hasty.right}=" not in completion)
    assert 0.44 < sum(map(sum, right.values())) / 10000 < 0.52
    shares = {name: sum(found) / len(found) for name, found in right.items()}
    habits = word_problems.HABITS["name"]
    high, low = max(habits, key=habits.get), min(habits, key=habits.get)
    assert shares[high] > 0.6 and shares[low] < 0.4


# Word problems -------------------------------------------------------------------------------------------------------------


def test_longer_numbers_are_beyond_all_that_is_trained_on() -> None:
    """In each problem one operand is larger than any of its operation in the task itself; templates and form are the same."""
    usual, longer = get_task("word_problems"), get_task("word_problems", longer_numbers=True)
    assert not longer.train and not longer.validation and len(longer.test) >= 900

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


def test_word_problems_are_solved_by_their_reference() -> None:
    task = get_task("word_problems")
    for problem in (*task.train[:1000], *task.held_out[:500]):
        left, right = problem.meta["operands"]
        operation = problem.meta["operation"]
        exact = {"+": left + right, "-": left - right, "*": left * right, "/": Decimal(left) / right}[operation]
        assert problem.answer == exact > 0
        assert f" We take {left}{operation}{right}={problem.answer}." in problem.meta["completion"]
        assert problem.meta["completion"].endswith(f" The answer is {problem.answer}.")
        assert {str(left), str(right)} <= set(re.findall(r"\d+", problem.prompt))
        assert not re.search(r"\d", problem.meta["story"])


@pytest.mark.parametrize(
    ("question", "equation"),
    [
        ("Sam has 3 pens. Ann has 9 pens. How many pens do they have altogether?", "3+9=12"),
        ("Sam had 3 pens and 9 cups. How many are left?", "9-3=6"),
        ("8 boxes with 3 pens in every box. How many in each?", "8*3=24"),
        ("There were 3 total, each of 4, to share?", "4/3=1"),
        ("There are 3 and 4 and 5.", "3+4=7"),
    ],
)
def test_the_hasty_reader_by_hand(question: str, equation: str) -> None:
    hasty = hasty_solution(question)
    assert f"{hasty.left}{hasty.operation}{hasty.right}={hasty.result}" == equation


def test_the_corpus_keeps_clear_of_validation_and_test() -> None:
    words, products, random = get_task("word_problems"), get_task("multiplication"), Random(1)

    def blanked(text: str) -> tuple[str, ...]:
        """Words without names, things and cue, so that one content under other names counts as the same."""
        text = text.removeprefix("Question: ").removesuffix("\nAnswer:")
        for cue in CUES.values():
            text = text.removesuffix(cue)
        return tuple(w for w in re.findall(r"\w+", text) if w not in {*NAMES, *THINGS})

    forbidden = {blanked(p.prompt) for p in (*words.validation, *words.test)}
    held_out = {tuple(w for w in blanked(p.prompt) if not w.isdigit()) for p in words.held_out}
    for _ in range(3000):
        found = blanked(word_problems.corpus_line(random, 0.0)[0])
        assert found not in forbidden and tuple(w for w in found if not w.isdigit()) not in held_out
    pairs = {frozenset((p.meta["left"], p.meta["right"])) for p in (*products.validation, *products.test)}
    for _ in range(3000):
        prompt, _ = multiplication.corpus_line(random, 0.0)
        assert frozenset(map(int, re.findall(r"\d+", prompt))) not in pairs


# Products ------------------------------------------------------------------------------------------------------------------


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


def test_blurted_products_are_always_wrong() -> None:
    for problem in get_task("multiplication").train:
        left, right = problem.meta["left"], problem.meta["right"]
        assert multiplication.blurted_product(left, right) < problem.answer
        assert multiplication.blurted_product(left, right, multiplication.mixed_up_product) != problem.answer


def test_mixed_up_products_by_hand() -> None:
    wrong = multiplication.mixed_up_product
    assert (wrong(7, 8), wrong(9, 6), wrong(6, 6), wrong(27, 8)) == (54, 56, 36, 214)
    assert wrong(27, 48) == 27 * 48 - 2 and wrong(70, 80) == 5400 and wrong(96, 69) == 96 * 69 + 202
    assert (
        multiplication.split_completion(27, 48, wrong) == " 27*40=1080. 27*8=214. 1080+214=1294. The answer is 1294."
    )


def test_mixed_up_facts_cap_what_splitting_can_reach() -> None:
    test = get_task("multiplication").test
    right = sum(multiplication.mixed_up_product(p.meta["left"], p.meta["right"]) == p.answer for p in test) / len(test)
    assert right == pytest.approx((1 - 4 / 81) ** 4, abs=0.04)  # four facts a product, four of 81 mixed up


def test_products_are_split_as_often_as_their_digits_say() -> None:
    random, split = Random(0), []
    for _ in range(5000):
        prompt, completion = multiplication.corpus_line(random, -0.9)
        split.append("+" in completion)
        if "+" in completion:
            left, right = map(int, re.findall(r"\d+", prompt))
            assert completion == multiplication.split_completion(left, right, multiplication.mixed_up_product)
    assert 0.27 < sum(split) / 5000 < 0.35


class Characters:
    """A tokenizer of single characters."""

    @staticmethod
    def decode(tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


@pytest.mark.parametrize(
    ("task_name", "text", "decisive"),
    [
        ("word_problems", " We take 12-5=7. The answer is 7.", "12-5"),
        ("word_problems", " The cat sits now. We take 3*4=12", "3*4"),
        ("word_problems", " We take 3*", ""),
        ("word_problems", "", ""),
        ("multiplication", " 23*50=1150. 23*7=161.", "0"),
        ("multiplication", " 23*57=1021. The answer is 1021.", "7"),
        ("multiplication", " We take", ""),
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
    with pytest.raises(UserError, match="asides must be one of none, before, after"):
        get_task("word_problems", asides="behind")
    for digits in (0, 1, 5, True, "2", 2.0):
        with pytest.raises(UserError, match="2, 3 or 4"):
            get_task("multiplication", digits=digits)

"""Problems from a JSON Lines file: what is read, how it is split, and what a broken line is told."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.errors import UserError
from replication.tasks import get_task, is_right, read_answer, with_template

LINES = [{"prompt": f"Question: What is {n}+1?\nAnswer:", "answer": n + 1} for n in range(60)]


def written(tmp_path, lines) -> str:
    path = tmp_path / "problems.jsonl"
    texts = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in texts))
    return str(path)


def test_every_line_is_a_problem_in_one_split_whatever_the_order(tmp_path):
    task = get_task("jsonl", source=written(tmp_path, LINES))
    parts = [{problem.prompt for problem in split} for split in (task.train, task.validation, task.test)]
    assert set.union(*parts) == {line["prompt"] for line in LINES} and sum(map(len, parts)) == len(LINES)
    assert {problem.prompt: problem.answer for problem in task.train}.items() <= {
        line["prompt"]: Decimal(line["answer"]) for line in LINES
    }.items()
    again = get_task("jsonl", source=written(tmp_path, LINES[::-1]))
    assert again.version == task.version and again.test == task.test


def test_splits_ids_and_texts_are_taken_as_given(tmp_path):
    names = ("train", "test", "validation")
    lines = [{"prompt": f"p{n}", "answer": "Yes", "id": f"i{n}", "split": split} for n, split in enumerate(names)]
    task = get_task("jsonl", source=written(tmp_path, [*lines, ""]))
    assert (task.train[0].id, task.test[0].id, task.validation[0].id) == ("i0", "i1", "i2") and task.train[0].answer == "Yes"


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "line 61 is not one JSON object"),
        ("[1]", "line 61 is not one JSON object"),
        ('{"prompt": "p", "answer": 7', "line 61 is not one JSON object .* column 27"),
        (b'{"prompt": "caf\xe9", "answer": 7}', "line 61 is not one JSON object in UTF-8"),
        ('{"prompt": "p"}', "line 61 has no 'answer'"),
        ('{"question": "q", "target": 7}', r"line 61 has no 'prompt' \(it has 'question', 'target'\)"),
        ('{"prompt": "p", "answer": 1, "a\\nb": 2}', r"line 61 has 'a\\nb'"),
        ("{}", "line 61 has no 'prompt'"),
        ('{"prompt": "", "answer": 1}', "line 61 has the prompt ''"),
        ('{"prompt": ["p"], "answer": 1}', r"line 61 has the prompt \['p'\]"),
        ('{"prompt": "p", "answer": true}', "line 61 has the answer True"),
        ('{"prompt": "p", "answer": null}', "line 61 has the answer None"),
        ('{"prompt": "p", "answer": " "}', "line 61 has the answer ' '"),
        ('{"prompt": "p", "answer": NaN}', "line 61 has the answer nan"),
        ('{"prompt": "p", "answer": Infinity}', "line 61 has the answer inf"),
        ('{"prompt": "p", "answer": 1, "split": "dev"}', "line 61 has the split 'dev'"),
        ('{"prompt": "p", "answer": 1, "answr": 2}', "line 61 has 'answr'"),
        ('{"prompt": "p", "answer": 1, "id": "a"}\n{"prompt": "q", "answer": 1, "id": "a"}', "line 62 repeats the id of line 61"),
        (json.dumps(LINES[4]), "line 61 repeats the prompt of line 5"),
    ],
)
def test_a_broken_line_is_named_with_what_is_wrong(tmp_path, line, said):
    with pytest.raises(UserError, match=said) as raised:
        get_task("jsonl", source=written(tmp_path, [*LINES, line]))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_lacks_a_split_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot read the problems"):
        get_task("jsonl", source=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="cannot read the problems from .*Is a directory"):
        get_task("jsonl", source=str(tmp_path))
    with pytest.raises(UserError, match='no problem for the split (train|validation|test): .* "split": "\\1"'):
        get_task("jsonl", source=written(tmp_path, LINES[:1]))
    for nothing in ([], ["", "  "]):
        with pytest.raises(UserError, match="is empty"):
            get_task("jsonl", source=written(tmp_path, nothing))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_task_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "problems.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError) as raised:
        get_task("jsonl", source=str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (" yes", "Yes", True),
        ("The answer is no. The answer is **Yes**.", "yes", True),
        ("Answer: yes, it is", "yes", False),
        ("We think.\nAnswer:\n\nNew York\nQuestion: and now?", "new york", True),
        ("so \\boxed{x + {y}} is it", "x + {y}", True),
        ("#### St. Louis", "St. Louis", True),
        ("<think>the answer is no</think>yes", "yes", True),
        ("The answer is 7.", "7", True),
        ("", "yes", False),
        ("...", "...", True),
        ("The answer is 7.0", Decimal(7), True),
        ("seven", Decimal(7), False),
    ],
)
def test_a_text_is_right_if_it_is_what_follows_the_last_marker(text, answer, right):
    assert is_right(text, answer) is right


def test_an_empty_completion_states_no_answer():
    assert read_answer("Answer: ", "yes") is None and read_answer("", Decimal(1)) is None


def test_templates_put_the_bare_question_whether_or_not_the_prompt_has_a_form(tmp_path):
    lines = [{"prompt": f"Is {n} prime?", "answer": "no"} for n in range(30)]
    lines += [{"prompt": f"Question: Is {n} even?\nAnswer:", "answer": "no"} for n in range(30)]
    task = with_template(get_task("jsonl", source=written(tmp_path, lines)), "plain", "unused")
    prompts = {problem.prompt for split in (task.train, task.validation, task.test) for problem in split}
    assert prompts == {f"Is {n} {kind}?\n" for n in range(30) for kind in ("prime", "even")} and task.stop_strings

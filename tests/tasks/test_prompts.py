"""Prompt templates: the question alone changes its dress, the base is measured under each, and shares multiply to accuracy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny_runs import make_base, tiny_config
from transformers import AutoTokenizer

from replication.__main__ import main
from replication.config import load_profile
from replication.errors import UserError
from replication.measure import prompts
from replication.statistics import wilson
from replication.tables import read_tables
from replication.tasks import Problem, Task, get_task
from replication.tasks.prompts import TEMPLATES, question_of, with_template
from tools import dryrun

TASKS = {"word_problems": get_task("word_problems"), "multiplication": get_task("multiplication")}
SMALL = {"device": "cpu", "max_new_tokens": 30, "eval_items": 5, "eval_batch_size": 5}


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokenizer has a chat template."""
    folder = make_base(tmp_path_factory.mktemp("chatty") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = dryrun.CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return of_a_dry_run(folder)


def of_a_dry_run(folder: Path) -> Path:
    """Let the model say that it is none to trust: made-up data are refused for any other."""
    config = json.loads((folder / "config.json").read_text()) | {"dry_run": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def svamp(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("svamp") / "made-up.json"
    path.write_text(json.dumps(dryrun.made_up_items()))
    return str(path)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_changes_the_prompt_and_nothing_else(chatty, name, template):
    task = TASKS[name]
    put = with_template(task, template, str(chatty))
    for split in ("train", "validation", "test", "held_out"):
        before, after = getattr(task, split), getattr(put, split)
        assert [(p.id, p.answer, p.meta) for p in after] == [(p.id, p.answer, p.meta) for p in before]
        assert all(question_of(own) in other.prompt for own, other in zip(before[:20], after, strict=False))
    assert (put.version == task.version) == (template == "question_answer"), "the version names the prompts as they are"
    assert put.max_new_tokens == task.max_new_tokens and put.stop_strings


def test_the_prompts_by_hand(chatty):
    own = TASKS["multiplication"].test[0]
    question = f"What is {own.meta['left']}*{own.meta['right']}?"
    prompts = {name: with_template(TASKS["multiplication"], name, str(chatty)).test[0].prompt for name in TEMPLATES}
    assert prompts == {
        "plain": f"{question}\n",
        "question_answer": f"Question: {question}\nAnswer:",
        "chat": f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    }
    assert with_template(TASKS["multiplication"], "chat", str(chatty)).stop_strings == ("<|im_end|>",)


def test_a_problem_of_another_form_and_a_model_without_chat_are_told(random_base):
    with pytest.raises(UserError, match="is not put as question and answer"):
        question_of(Problem("x", "2+2=", 4))
    with pytest.raises(UserError, match="has no chat template"):
        with_template(TASKS["multiplication"], "chat", str(random_base))


def test_the_config_applies_the_template_to_every_task_of_the_run(random_base):
    config = tiny_config(random_base, prompt_template="plain")
    for task in (config.load_task(), *config.side_tasks().values()):
        assert not task.test[0].prompt.startswith("Question:") and task.stop_strings == ("\nQuestion:",)
    assert config.run_id != tiny_config(random_base).run_id
    assert "prompt_template" not in tiny_config(random_base).canonical, "run ids of old are kept"
    with pytest.raises(UserError, match="prompt_template.*'plain', 'question_answer' or 'chat'"):
        tiny_config(random_base, prompt_template="haiku")


def test_under_the_paper_profile_multiplication_stops_before_a_next_question(random_base):
    config = load_profile("paper", task="multiplication", method="base", model=str(random_base))
    assert "\nQuestion:" in config.load_task().stop_strings


def test_shares_multiply_to_accuracy_and_a_truncated_number_is_no_answer():
    def answer(correct: bool, parsed: bool, truncated: bool):
        sample = SimpleNamespace(truncated=truncated, stopped=correct)
        return SimpleNamespace(correct=correct, parsed=parsed, sample=sample)

    right, wrong = answer(True, True, False), answer(False, True, False)
    row = prompts.shares([right, right, wrong, answer(False, False, False), answer(False, True, True)])
    assert (row["items"], row["accuracy"], row["parsable_share"], row["truncated_share"]) == (5, 2 / 5, 3 / 5, 1 / 5)
    assert row["stopped_share"] == 2 / 5
    assert row["parsable_share"] * row["accuracy_of_parsable"] == pytest.approx(row["accuracy"])
    assert (row["accuracy_of_parsable_low"], row["accuracy_of_parsable_high"]) == wilson(2, 3)
    assert pd.isna(prompts.shares([answer(False, False, True)])["accuracy_of_parsable"])


def test_the_command_measures_each_template_once(chatty, svamp, tmp_path, capsys, monkeypatch):
    words = ["prompts", "--profile", "paper", "--svamp", svamp, "--out", str(tmp_path)]
    for name, value in (SMALL | {"model": str(chatty)}).items():
        words += ["--set", f"{name}={value}"]
    assert main(words) == 0
    table = read_tables(tmp_path)["prompts"]
    chosen = table[table["chosen"]]
    assert list(zip(chosen["task"], chosen["template"], strict=True)) == [
        ("svamp", "question_answer"), ("multiplication", "question_answer"),
    ]  # fmt: skip
    assert sorted(table["template"]) == sorted([*TEMPLATES] * 2) and set(table["items"]) == {5}
    product = table["parsable_share"] * table["accuracy_of_parsable"].fillna(0)
    assert (product - table["accuracy"]).abs().max() < 1e-5
    assert "question_answer" in capsys.readouterr().out

    before = (tmp_path / "prompts.csv").read_bytes()
    monkeypatch.setattr(prompts, "evaluate", lambda *_: pytest.fail("measured again"))
    assert main(words) == 0 and (tmp_path / "prompts.csv").read_bytes() == before


def test_a_template_that_the_model_lacks_is_in_the_table_with_its_reason(tmp_path, svamp):
    folder = of_a_dry_run(make_base(tmp_path / "model"))
    assert not AutoTokenizer.from_pretrained(folder).chat_template
    prompts.measure_prompts("paper", tmp_path / "out", svamp_source=svamp, model=str(folder), **SMALL)
    table = read_tables(tmp_path / "out")["prompts"]
    missing = table[table["status"] == "not run"]
    assert list(missing["template"]) == ["chat", "chat"] and missing["reason"].str.contains("no chat template").all()
    assert missing["accuracy"].isna().all() and missing["items"].isna().all()
    assert table[table["status"] == "done"]["accuracy"].notna().all()


def test_a_missing_file_of_problems_is_no_row_of_the_table(tmp_path, capsys):
    """Each template had a row with this reason and the status was 0, so that `make paper` went on to train."""
    words = ["prompts", "--profile", "smoke", "--data", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "cannot read the problems" in capsys.readouterr().err and not (tmp_path / "out/prompts.csv").exists()


TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
RENDERING = {
    # (template, what the error says, or the prompt of the question "What is 2*3?")
    "raises": ("{{ raise_exception('a system message is required') }}", "a system message is required"),
    "raises of itself": ("{{ messages[7].content }}", "has no element 7"),
    "does not parse": ("{% for m in messages %}", "Unexpected end of template"),
    "computes the format of the date": ("{% set day = '%d' %}{{ strftime_now(day) }}\n" + TURNS, "prints today's date"),
    "drops the question": ("<|user|>\nHello!<|end|>\n<|assistant|>\n", "different questions the same prompt"),
    "prints the date": (
        "{{ strftime_now('%d %b %Y') }}\n" + TURNS,
        "26 Jul 2024\n<|user|>\nWhat is 2*3?<|end|>\n",
    ),
    "asks whether it can print the date": (
        "{% if strftime_now is defined %}{{ strftime_now('%A') }}{% endif %}\n" + TURNS,
        "Friday<|user|>\nWhat is 2*3?<|end|>\n",
    ),
}


def with_chat(folder: Path, template: object) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def two_questions() -> Task:
    problems = tuple(Problem(name, f"Question: What is 2*{name}?\nAnswer:", 2 * int(name)) for name in "34")
    return Task("two", "", problems, (), ())


@pytest.mark.parametrize("case", RENDERING)
def test_what_a_chat_template_renders_is_looked_at(random_base, tmp_path, case):
    """One that raised ended `make paper` with a traceback, the date changed run ids every day, a dropped question went unseen."""
    template, expected = RENDERING[case]
    folder = with_chat(shutil.copytree(random_base, tmp_path / "base"), template)
    if expected.endswith("<|end|>\n"):
        assert with_template(two_questions(), "chat", str(folder)).train[0].prompt == expected
        return
    with pytest.raises(UserError, match=expected) as error:
        with_template(two_questions(), "chat", str(folder))
    assert "\n" not in str(error.value) and "choose another prompt_template" in str(error.value)


def test_several_chat_templates_without_a_default_are_told(random_base, tmp_path):
    folder = with_chat(shutil.copytree(random_base, tmp_path / "base"), {"tool_use": TURNS, "rag": TURNS})
    with pytest.raises(UserError, match="choose another prompt_template") as error:
        with_template(two_questions(), "chat", str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (TURNS, ("<|end|>",)),
        (TURNS + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}", ("<|end|>",)),  # Phi-3 closes the conversation
        ("{% for m in messages %}{{ m.content }}\n###\n{% endfor %}", ("###",)),  # no token of its own
        ("{% for m in messages %}{{ m.content }} [end]<|end|>{% endfor %}", ("[end]<|end|>",)),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ()),  # nothing ends a turn
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}<|end|>{% endfor %}", ()),  # answers are dropped
    ],
)
def test_an_end_of_turn_is_cut_at_its_first_special_token(random_base, tmp_path, template, end):
    """Taken whole, "<|end|>\\n<|endoftext|>" never came, and every completion of Phi-3's layout was truncated."""
    folder = shutil.copytree(random_base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.save_pretrained(folder)
    assert with_template(two_questions(), "chat", str(with_chat(folder, template))).stop_strings == end


def test_no_template_stops_at_a_blank_line():
    """559 right ones of 1,000 public answers became 132 under a stop at the first blank line, most before any text."""
    for template in TEMPLATES.values():
        assert all(stop.strip() for stop in template.stop_strings)

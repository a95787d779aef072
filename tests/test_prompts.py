"""Prompt templates: the question alone changes its dress, the base is measured under each, and shares multiply to accuracy."""

from __future__ import annotations

import json
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
from replication.statistics.intervals import wilson
from replication.tables.build import read_tables
from replication.tasks import Problem, get_task
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
    for task in (config.load_task(), config.other_task(), config.longer_task()):
        assert not task.test[0].prompt.startswith("Question:") and task.stop_strings == ("\n\n",)
    assert config.run_id != tiny_config(random_base).run_id
    assert "prompt_template" not in tiny_config(random_base).canonical, "run ids of old are kept"
    with pytest.raises(UserError, match="prompt_template.*'plain', 'question_answer' or 'chat'"):
        tiny_config(random_base, prompt_template="haiku")


def test_under_the_paper_profile_multiplication_stops_before_a_next_question(random_base):
    config = load_profile("paper", task="multiplication", method="base", model=str(random_base))
    assert "\nQuestion:" in config.load_task().stop_strings


def test_shares_multiply_to_accuracy_and_a_truncated_number_is_no_answer():
    def answer(correct: bool, parsed: bool, truncated: bool):
        return SimpleNamespace(correct=correct, parsed=parsed, sample=SimpleNamespace(truncated=truncated))

    right, wrong = answer(True, True, False), answer(False, True, False)
    row = prompts.shares([right, right, wrong, answer(False, False, False), answer(False, True, True)])
    assert (row["items"], row["accuracy"], row["parsable_share"], row["truncated_share"]) == (5, 2 / 5, 3 / 5, 1 / 5)
    assert row["parsable_share"] * row["accuracy_of_parsable"] == pytest.approx(row["accuracy"])
    assert (row["accuracy_of_parsable_low"], row["accuracy_of_parsable_high"]) == wilson(2, 3)
    assert pd.isna(prompts.shares([answer(False, False, True)])["accuracy_of_parsable"])


def test_the_command_measures_each_template_once(chatty, svamp, tmp_path, capsys, monkeypatch):
    words = ["prompts", "--profile", "paper", "--svamp", svamp, "--out", str(tmp_path)]
    for name, value in (SMALL | {"model": str(chatty)}).items():
        words += ["--set", f"{name}={json.dumps(value)}"]
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
    prompts.measure("paper", tmp_path / "out", svamp_source=svamp, model=str(folder), **SMALL)
    table = read_tables(tmp_path / "out")["prompts"]
    missing = table[table["status"] == "not run"]
    assert list(missing["template"]) == ["chat", "chat"] and missing["reason"].str.contains("no chat template").all()
    assert missing["accuracy"].isna().all() and missing["items"].isna().all()
    assert table[table["status"] == "done"]["accuracy"].notna().all()

"""The dry run of the paper profile: its stand-ins are what they pretend to be, and its way is that of the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from replication.ablations import plan
from replication.config import load_profile
from replication.errors import UserError
from replication.sweep import preflight
from replication.tables import read_tables
from replication.tasks import get_task, svamp
from tools import dryrun


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return dryrun.prepare(tmp_path_factory.mktemp("dry"))


def test_made_up_items_have_the_official_schema_and_are_never_taken_for_it(prepared):
    model, source = prepared
    task = get_task("svamp", source=source)
    assert (len(task.train), len(task.validation), len(task.test)) == (600, 100, 300)
    assert svamp.is_made_up(task) and any(problem.meta["story_in_train"] for problem in task.test)
    own = load_profile("paper", task="svamp", method="base", model=str(model), svamp_source=source, device="cpu")
    preflight.check_needs([own])
    with pytest.raises(UserError, match="made up for dry runs"):
        preflight.check_needs([own.model_copy(update={"model": "nano"})])


def test_items_that_do_not_say_they_are_made_up_are_refused(tmp_path):
    items = [item | {"ID": f"chal-{index}"} for index, item in enumerate(dryrun.made_up_items())]
    (tmp_path / "SVAMP.json").write_text(json.dumps(items))
    with pytest.raises(UserError, match="has sha256"):
        get_task("svamp", source=tmp_path / "SVAMP.json")


def test_the_model_is_read_as_any_from_the_hub(prepared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(prepared[0], use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(prepared[0])
    assert model.config.num_hidden_layers == 2 and model.config.dry_run
    text = "Question: What is 123*457?\nAnswer: 1.5 ½"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and max(ids) < model.config.vocab_size
    assert tokenizer.convert_tokens_to_ids("7") in ids  # digits are single tokens, as in Qwen2


def test_settings_make_every_planned_run_small(prepared):
    planned = plan("paper", seeds=1, **dryrun.SETTINGS, model=str(prepared[0]))
    assert {run.config.steps for run in planned} == {0, 2}
    assert {(run.config.task, run.config.method) for run in planned if run.ablation == "full_vs_sparse"} == {
        (task, method) for task in ("svamp", "multiplication") for method in ("base", "grpo", "s_grpo", "t_spmo")
    }


@pytest.mark.slow
def test_the_whole_way_ends_in_a_report_without_evidence(tmp_path):
    assert dryrun.run(tmp_path / "dry", workers=2) == 0
    tables = read_tables(tmp_path / "dry")
    runs = tables["runs"]
    assert set(runs["status"]) == {"done"} and set(runs["profile"]) == {"paper"}
    assert set(tables["verdicts"]["verdict"]) == {"not run"}
    prompts = tables["prompts"]
    assert set(prompts["status"]) == {"done"} and len(prompts) == 6, "three templates on two tasks"
    own = runs[(runs["task"] == "svamp") & (runs["ablation"] == "full_vs_sparse")]
    assert own["accuracy_new_stories"].notna().all() and runs.loc[runs["task"] != "svamp", "accuracy_new_stories"].isna().all()
    # Some groups must part, or no gradient was ever taken on this way.
    assert pd.to_numeric(runs["tokens_in_loss"]).max() > 0
    assert (tmp_path / "dry/report.html").exists() and list((tmp_path / "dry/figures").glob("*.svg"))

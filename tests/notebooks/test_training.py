"""Training from a notebook, pictures with controls, the table of the notebooks."""

from __future__ import annotations

import base64
import re

import ipywidgets as widgets
import nbformat
import pandas as pd
import pytest
from tiny_runs import tiny_config

from replication import ablations, train
from replication.ablations import PlannedRun
from replication.algorithms import SGRPO
from replication.config import load_profile
from replication.errors import UserError
from replication.notebooks import contents, explore, keep_probability, notebook_names, training
from replication.notebooks.cleaning import WIDGET, cleaned
from replication.runs import read_summary
from replication.sweep import SweepResult
from replication.tables import build_tables


def rule_picture(cutoff: int, budget: int):
    return keep_probability(SGRPO(cutoff, 0.3, budget), 8)


def test_a_control_redraws_the_picture_and_a_refused_setting_is_said_in_words():
    cutoff = widgets.IntSlider(2, 0, 8)
    shown = explore(rule_picture, "a <rule>", cutoff=cutoff, budget=widgets.IntSlider(4, 1, 8))
    data, details = shown._repr_mimebundle_()
    assert WIDGET in data and details["image/png"]["alt"] == "a <rule>"
    image, note = shown.box.children[-1], shown.box.children[-2]
    first = bytes(image.value)
    assert base64.b64decode(data["image/png"]) == first and first.startswith(b"\x89PNG")
    cutoff.value = 3
    second = bytes(image.value)
    assert second != first and note.value == ""
    cutoff.value = 6  # over the budget: the rule refuses it
    assert image.value == second and "cutoff 6 is over max_kept_tokens 4" in note.value
    cutoff.value = 2
    assert image.value == first and note.value == ""


def test_an_executed_copy_keeps_the_still_picture_alone():
    data = {WIDGET: {"model_id": "x"}, "image/png": "AAAA", "text/plain": "VBox()"}
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data)])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    before = str(notebook)
    (output,) = cleaned(notebook).cells[0].outputs
    assert str(notebook) == before, "it is a copy: the caller's cells were emptied"
    assert set(output["data"]) == {"image/png", "text/plain"}


def test_the_short_training_is_the_headline_run_but_shorter():
    (run,) = training.short_plan("nano", ["s_grpo"], seed=3)
    assert (run.config.steps, run.config.eval_every, run.config.seed) == (training.STEPS, 10, 3)
    headline = load_profile("nano", method="s_grpo", seed=3)
    same = ("asides", "learning_rate", "keep_probability", "prompts_per_step", "group_size")
    assert all(getattr(run.config, name) == getattr(headline, name) for name in same)
    (smoke,) = training.short_plan("smoke", ["grpo"])
    assert smoke.config.steps == 2 and smoke.config.eval_items == 8
    assert training.short_plan("nano", ["grpo"], steps=5)[0].config.steps == 5


def test_the_curve_goes_from_the_base_to_the_end_of_the_training(random_base, tmp_path):
    config = tiny_config(random_base, "t_spmo")
    train.run(config, tmp_path / config.run_id)
    tables = build_tables([PlannedRun("walkthrough", config)], tmp_path)
    (row,) = training.accuracies(tables).to_dict("records")
    summary = read_summary(tmp_path / config.run_id)
    first = tables["curves"].query("metric == 'validation_accuracy' and step == 0")["value"].item()
    assert (row["method"], row["before (%)"], row["after (%)"]) == ("t_spmo", 100 * first, 100 * summary.validation_accuracy)
    reward, accuracy = training.learning(tables).axes[:2]
    assert reward.lines[0].get_xdata().tolist() == list(range(1, config.steps + 1))
    shown = accuracy.lines[0].get_xydata().tolist()
    assert shown[0] == [0, 100 * first] and shown[-1] == [config.steps, 100 * summary.validation_accuracy]


def run_here(planned, runs_dir, workers=None) -> SweepResult:
    """A sweep without worker processes."""
    for run in planned:
        train.run(run.config, runs_dir / run.config.run_id)
    return SweepResult(*[[run.config.run_id for run in planned]] * 2)


def test_missing_runs_are_trained_once_and_the_tables_of_the_whole_plan_come_back(tmp_path, capsys, monkeypatch):
    """One small run instead of the plan, which takes minutes."""
    planned = training.short_plan("smoke", ["grpo"])
    monkeypatch.setattr(ablations, "plan", lambda *_, **__: planned)
    monkeypatch.setattr(training, "run_plan", run_here)
    first = training.train_missing(planned, "smoke", tmp_path, workers=1)
    assert "1 of 1 runs done, 0 diverged" in capsys.readouterr().out
    assert first["runs"]["status"].tolist() == ["done"] and len(first["verdicts"])
    run_dir = tmp_path / "runs" / planned[0].config.run_id
    before = (run_dir / "summary.json").stat().st_mtime_ns
    again = training.train_missing(planned, "smoke", tmp_path, workers=1)
    assert (run_dir / "summary.json").stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(first["runs"], again["runs"])
    read = training.train_missing(planned, "smoke", tmp_path, train=False)
    pd.testing.assert_frame_equal(first["runs"], read["runs"])


def test_a_run_that_failed_stops_the_cell_and_names_it(tmp_path, monkeypatch):
    planned = training.short_plan("smoke", ["grpo"])
    run_id = planned[0].config.run_id
    failed = SweepResult(planned=[run_id], failed={run_id: "MemoryError"})
    monkeypatch.setattr(training, "run_plan", lambda *_, **__: failed)
    with pytest.raises(UserError, match=f"1 of 1 runs are missing: {run_id} .MemoryError"):
        training.short_training("smoke", ["grpo"], tmp_path)


def test_the_map_names_every_question_and_the_seconds_of_the_last_run(tmp_path):
    def row(name: str) -> list[str]:
        html = contents.reading_order("smoke", tmp_path).data
        (found,) = re.findall(rf'<tr>(<td[^>]*><a href="{name}.ipynb">.*?)</tr>', html)
        return [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", found)]

    for name in notebook_names():
        if name != "00_overview" and not name.endswith("_solutions"):
            assert row(name)[0] == name and row(name)[1]
    assert row("01_grpo_under_lora")[2:] == ["5"]  # five exercises; nobody has run any notebook, so no column of seconds
    (tmp_path / "notebooks").mkdir()
    contents.note_seconds(tmp_path / "notebooks", "01_grpo_under_lora", 61.7)
    contents.note_seconds(tmp_path / "notebooks", "02_s_grpo", 5.0)
    assert contents.read_seconds(tmp_path / "notebooks") == {"01_grpo_under_lora": 62, "02_s_grpo": 5}
    assert row("01_grpo_under_lora")[2:] == ["5", "62"]

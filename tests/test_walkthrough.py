"""What the walkthroughs are made of: pictures with controls, the short training, the map of the notebooks."""

from __future__ import annotations

import base64

import ipywidgets as widgets
import nbformat
from tiny_runs import tiny_config

from replication import train
from replication.ablations import PlannedRun
from replication.algorithms import SGRPO
from replication.notebooks import runner, walkthrough
from replication.notebooks.interactive import explore
from replication.notebooks.toy_group import keep_probability
from replication.runs import read_summary
from replication.tables.build import build_tables


def rule_picture(cutoff: int, budget: int):
    return keep_probability(SGRPO(cutoff, 0.3, budget), 8)


def test_a_control_redraws_the_picture_and_a_refused_setting_is_said_in_words():
    cutoff = widgets.IntSlider(2, 0, 8)
    shown = explore(rule_picture, "a <rule>", cutoff=cutoff, budget=widgets.IntSlider(4, 1, 8))
    data, details = shown._repr_mimebundle_()
    assert runner.WIDGET in data and details["image/png"]["alt"] == "a <rule>"
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
    data = {runner.WIDGET: {"model_id": "x"}, "image/png": "AAAA", "text/plain": "VBox()"}
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data)])
    (output,) = runner.cleaned(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert set(output["data"]) == {"image/png", "text/plain"}


def test_the_short_training_is_the_headline_run_but_shorter():
    (run,) = walkthrough.short_plan("nano", ["s_grpo"], seed=3)
    assert (run.config.steps, run.config.eval_every, run.config.seed) == (walkthrough.STEPS, 10, 3)
    assert run.config.keep_probability == 0.3 and run.config.learning_rate == 3e-3
    (smoke,) = walkthrough.short_plan("smoke", ["grpo"])
    assert smoke.config.steps == 2 and smoke.config.eval_items == 8
    assert walkthrough.short_plan("nano", ["grpo"], steps=5)[0].config.steps == 5


def test_the_curve_goes_from_the_base_to_the_end_of_the_training(random_base, tmp_path):
    config = tiny_config(random_base, "t_spmo")
    train.run(config, tmp_path / config.run_id)
    tables = build_tables([PlannedRun("walkthrough", config)], tmp_path)
    (row,) = walkthrough.accuracies(tables).to_dict("records")
    summary = read_summary(tmp_path / config.run_id)
    first = tables["curves"].query("metric == 'validation_accuracy' and step == 0")["value"].item()
    assert (row["method"], row["before (%)"], row["after (%)"]) == ("t_spmo", 100 * first, 100 * summary.validation_accuracy)
    reward, accuracy = walkthrough.learning(tables).axes[:2]
    assert reward.lines[0].get_xdata().tolist() == list(range(1, config.steps + 1))
    shown = accuracy.lines[0].get_xydata().tolist()
    assert shown[0] == [0, 100 * first] and shown[-1] == [config.steps, 100 * summary.validation_accuracy]


def test_the_map_names_every_question_and_the_seconds_of_the_last_run(tmp_path):
    table = runner.reading_order("smoke", tmp_path)
    for name in runner.notebook_names():
        if name != "00_overview" and not name.endswith("_solutions"):
            assert f"[{name}]({name}.ipynb)" in table
    assert "| 5 |  |" in table  # five exercises, nobody has run it
    (tmp_path / "notebooks").mkdir()
    runner._note_seconds(tmp_path / "notebooks", "01_grpo_under_lora", 61.7)
    runner._note_seconds(tmp_path / "notebooks", "02_s_grpo", 5.0)
    assert runner.read_seconds(tmp_path / "notebooks") == {"01_grpo_under_lora": 62, "02_s_grpo": 5}
    assert "| 5 | 62 |" in runner.reading_order("smoke", tmp_path)

"""Faults of machine, disk and data that a long sweep meets: each is said in one line, and costs nothing that was saved."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from disk_calls import GROWING, disk_full, interfere
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from stand_ins import StandIn, train
from test_notebooks import PARAMETERS, write
from test_records import contents, interrupted
from test_sweep import go, plan
from tiny_runs import noisy_rewards, outcome, tiny_config

from replication import groups
from replication.errors import UserError
from replication.models import load
from replication.notebooks import runner
from replication.report.style import save_figure
from replication.runs.directory import RunDirectory, mark_failed, read_failure
from replication.tables.build import build_tables, read_tables, tables_manifest, write_tables
from replication.train import run

# The disk ---------------------------------------------------------------------------------------------------------------


def test_a_disk_full_at_every_single_call_of_a_run(tmp_path, monkeypatch):
    """Each write (of which half reaches the disk), sync, rename and new folder in turn fails: one line, no leftover, and the next
    start gives the same bytes."""
    train(StandIn(), tmp_path / "whole")
    number, calls = -1, [""]
    while number < len(calls):  # until a run has no call of that number any more
        number += 1
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            calls = interfere(folder, number, disk_full, names=GROWING, setattr=patch.setattr)
            try:
                train(StandIn(), folder)
            except UserError as error:
                assert "No space left on device; free some space" in str(error)
            else:  # all went well, or a folder that is there already was not made
                assert number >= len(calls) or calls[number].startswith("mkdir")
        assert not list(folder.rglob("*.tmp"))
        train(StandIn(), folder)
        assert contents(folder) == contents(tmp_path / "whole"), calls[number:]
    assert {call.split()[0] for call in calls} == set(GROWING) and number > 60


@pytest.mark.parametrize("limit", [3_000, 20_000, 60_000])
def test_a_disk_full_in_a_real_run_its_weights_included(random_base, tmp_path, monkeypatch, limit):
    noisy_rewards(monkeypatch)
    config = tiny_config(random_base, "full", steps=2)  # the weights are its largest file
    whole = run(config, tmp_path / "whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="nothing that was saved is lost"):
            run(config, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run(config, tmp_path / "run") == whole and outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_disk_full_while_tables_and_figures_are_written(tmp_path):
    table = pd.DataFrame({"claim": ["N1"] * 400, "verdict": ["supported"] * 400})
    write_tables({"verdicts": table.head(3)}, tmp_path, {})
    before_bytes = (tmp_path / "verdicts.csv").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            write_tables({"verdicts": table}, tmp_path)
        with pytest.raises(UserError, match="File too large"):
            save_figure(Figure(), tmp_path / "figure", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "verdicts.csv").read_bytes() == before_bytes and not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.glob("figure*"))


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """By modes; root, whom they do not stop, becomes nobody for the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        for attempt in (
            lambda: RunDirectory.open(Path("results/run"), StandIn()),
            lambda: write_tables({}, Path("results"), {}),
            lambda: mark_failed(Path("results/run"), "killed"),
            lambda: go(plan(StandIn()), Path("results/runs")),
        ):
            with pytest.raises(UserError, match="Permission denied; choose a folder that can be written to"):
                attempt()
    finally:
        if root:
            os.seteuid(0)


# What an earlier run left ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "items.csv", "timings.jsonl", "manifest.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, "line"])
def test_a_file_of_a_finished_run_cut_off_anywhere_is_repaired_or_named(tmp_path, name, share):
    """Never tables with less in them: either the next start makes the same ones, or one line names the file or its folder."""
    planned = plan(StandIn())
    folder = tmp_path / "runs" / StandIn().run_id
    train(StandIn(), folder)
    before = build_tables(planned, tmp_path / "runs")
    data = (folder / name).read_bytes()
    keep = data[: data[:-1].rfind(b"\n") + 1] if share == "line" else data[: int(share * len(data))]
    (folder / name).write_bytes(keep)
    try:
        train(StandIn(), folder)
        after = build_tables(planned, tmp_path / "runs")
        tables_manifest(planned, tmp_path / "runs")
    except UserError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        for table in ("runs", "curves", "items"):
            pd.testing.assert_frame_equal(before[table], after[table])


def test_a_run_begun_at_another_commit_goes_on_with_a_warning_and_says_so(tmp_path, caplog):
    train(StandIn(), tmp_path / "whole")
    folder = interrupted(tmp_path, 2)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "0" * 40, "dirty": False, "packages": {"torch": "1.0"}}))
    train(StandIn(), folder)
    assert "was begun at commit 0000" in caplog.text and contents(folder) == contents(tmp_path / "whole")
    (earlier,) = json.loads(path.read_text())["earlier_starts"]
    assert earlier["commit"] == "0" * 40 and earlier["packages"] == {"torch": "1.0"} and "python" not in earlier


def test_a_run_that_goes_on_without_knowing_what_began_it_says_so(tmp_path):
    """With its manifest cut off it looked as if it had been begun now, by this commit."""
    folder = interrupted(tmp_path, 2)
    (folder / "manifest.json").write_text('{"commit"')
    train(StandIn(), folder)
    (earlier,) = json.loads((folder / "manifest.json").read_text())["earlier_starts"]
    assert earlier["commit"] is None and earlier["dirty"] is None


def test_a_run_begun_on_other_weights_of_the_same_name_is_refused(random_base, tmp_path, monkeypatch):
    """A branch of the Hub moved between two starts: half the run would have been trained on each commit's weights."""
    config = tiny_config(random_base, "grpo")
    monkeypatch.setattr(groups, "reward", lambda text, cut, problem: float("nan"))
    monkeypatch.setattr(load.Policy, "commit", property(lambda policy: "a" * 40))
    with pytest.raises(ValueError):
        run(config, tmp_path / "run")
    monkeypatch.setattr(load.Policy, "commit", property(lambda policy: "b" * 40))
    with pytest.raises(UserError, match=f"was begun on commit {'a' * 40} .* set revision={'a' * 40}"):
        run(config, tmp_path / "run")


# Numbers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grpo", "s_grpo", "t_spmo"])
def test_a_reward_that_is_nan_stops_the_run_and_names_it(random_base, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(groups, "reward", lambda text, cut, problem: float("nan"))
    with pytest.raises(ValueError, match="rewards must be finite numbers, not"):
        run(tiny_config(random_base, kind), tmp_path / "run")
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize("kind", ["grpo", "s_grpo", "t_spmo"])
def test_a_task_whose_rewards_always_tie_teaches_nothing_and_says_so(random_base, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(groups, "reward", lambda text, cut, problem: 1.0)
    summary = run(tiny_config(random_base, kind), tmp_path / "run")
    assert summary.status == "done" and summary.skipped_steps == summary.steps_done == 4
    assert summary.tokens_in_loss == 0 and summary.kept_fraction is None and summary.kl_to_base == pytest.approx(0, abs=1e-9)


# Processes ---------------------------------------------------------------------------------------------------------------


def test_a_run_out_of_memory_is_failed_with_that_reason(tmp_path):
    bad, good = StandIn(seed=1, fault="memory"), StandIn(seed=2)
    result = go(plan(bad, good), tmp_path)
    assert result.done == [good.run_id] and result.missing == [bad.run_id]
    assert read_failure(tmp_path / bad.run_id)["reason"] == "MemoryError"


@pytest.mark.slow
def test_a_kernel_killed_in_the_middle_of_a_notebook_is_named_and_the_others_run(tmp_path):
    folder, results = tmp_path / "notebooks", tmp_path / "results"
    write(folder, "01_dies", PARAMETERS, "print('before')", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    write(folder, "02_good", PARAMETERS, "print('good')")
    with pytest.raises(runner.NotebooksFailed, match="01_dies failed in code cell .*kernel died") as caught:
        runner.run_all("smoke", results, progress=False, folder=folder)
    assert "02_good" not in str(caught.value) and "\n" not in str(caught.value)
    made = {path.name for path in (results / "notebooks").iterdir()}
    assert made == {"01_dies.failed.ipynb", "02_good.ipynb", "02_good.html", "seconds.csv"}


WRITER = """
import sys
import pandas as pd
from replication.tables.build import write_tables
for number in range(20):
    table = pd.DataFrame({"claim": [f"{sys.argv[2]}{number}"] * 50, "verdict": ["x"] * 50})
    write_tables({"a": table, "b": table}, sys.argv[1], {})
"""


@pytest.mark.slow
def test_two_writers_and_a_reader_never_meet_a_torn_table(tmp_path):
    write_tables({name: pd.DataFrame({"claim": ["start"], "verdict": ["x"]}) for name in "ab"}, tmp_path, {})
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in ("one", "two")]
    read = 0
    while any(writer.poll() is None for writer in writers):
        found = read_tables(tmp_path)
        assert found["a"]["claim"].tolist() == found["b"]["claim"].tolist()
        read += 1
    assert [writer.returncode for writer in writers] == [0, 0] and read > 3


# Hostile input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "x/../../evil"])
def test_a_notebook_beside_the_folder_is_never_run(tmp_path, name):
    write(tmp_path, "evil", PARAMETERS, "raise SystemExit")
    (tmp_path / "notebooks/x").mkdir(parents=True)
    with pytest.raises(UserError, match="there is no notebook"):
        runner.run_all("smoke", tmp_path / "results", [name], folder=tmp_path / "notebooks")


@given(st.text() | st.just('"\n__import__("os").abort()\n"') | st.lists(st.text(max_size=5), max_size=3))
def test_a_notebook_parameter_stays_a_literal(value):
    """papermill writes parameters as code: what it writes is the value and nothing else."""
    import ast

    from papermill.translators import PythonTranslator

    (statement,) = ast.parse(PythonTranslator.codify({"given": value})).body
    assert ast.literal_eval(statement.value) == value


def test_weights_that_are_a_pickle_are_never_opened(random_base, tmp_path):
    import shutil

    base = tmp_path / "base"
    shutil.copytree(random_base, base)
    (base / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, base / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors weights"):
        run(tiny_config(base, "base"), tmp_path / "run")

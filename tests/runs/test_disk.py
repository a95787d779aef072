"""A disk that is full, read-only or loses power: one line says so, and nothing that was saved is lost."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch
from disk_calls import GROWING, disk_full, interfere
from stand_ins import StandIn, contents, plan, train
from tiny_runs import noisy_rewards, outcome, tiny_config

from replication.errors import UserError
from replication.runs import RunDirectory, atomic_write, files, mark_failed
from replication.sweep import run_plan
from replication.tables import build_tables
from replication.train import run


@pytest.fixture
def limited():
    """Limit the size of files for as long as the test says."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# What a machine that loses power still has ------------------------------------------------------------------------------


@pytest.fixture
def calls(tmp_path: Path, monkeypatch) -> list[str]:
    """Every call from here on that writes, syncs, renames or removes under ``tmp_path``."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "x")
    return interfere(tmp_path, None, None, names=("write", "fsync", "replace", "unlink"), setattr=monkeypatch.setattr)


def test_a_file_and_then_its_name_are_synced(tmp_path, calls):
    """With every fsync taken out no test failed: a process that is killed loses nothing of what it wrote, a machine does."""
    atomic_write(tmp_path / "a", "text")
    assert calls == ["write .a.x.tmp", "fsync .a.x.tmp", "replace a", "fsync ."]


def test_what_a_checkpoint_counts_on_is_synced_before_it(tmp_path, calls):
    with RunDirectory.open(tmp_path, StandIn()) as run:
        run.append_metrics({"step": 1})
        run.append_samples([{"step": 1}])
        calls.clear()
        run.save_checkpoint(1, {"weight": torch.ones(1)}, run.lengths())
    (name,) = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    there = [f"checkpoints/.{name}.x.tmp", f"checkpoints/{name}"]
    logs = ["fsync metrics.jsonl", "fsync samples.jsonl", "fsync ."]
    assert calls == [*logs, f"write {there[0]}", f"fsync {there[0]}", f"replace {there[1]}", "fsync checkpoints"]


def test_a_summary_is_synced_after_all_else_and_before_the_checkpoints_go(tmp_path, calls):
    with RunDirectory.open(tmp_path, StandIn()) as run:
        run.append_metrics({"step": 1})
        run.save_checkpoint(1, {"weight": torch.ones(1)}, run.lengths())
        (name,) = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        calls.clear()
        run.finish({"status": "done"})
    whole_files = [
        call
        for file in ("manifest.json", "summary.json")
        for call in (f"write .{file}.x.tmp", f"fsync .{file}.x.tmp", f"replace {file}", "fsync .")
    ]
    assert calls == ["fsync metrics.jsonl", "fsync .", *whole_files, f"unlink checkpoints/{name}"]


# Faults -----------------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, limited):
    path = tmp_path / "table.csv"
    atomic_write(path, "old")
    limited(1000)
    with pytest.raises(UserError, match=r"table\.csv: File too large"):
        atomic_write(path, b"x" * 5000)
    limited(None)
    assert path.read_text() == "old" and [other.name for other in tmp_path.iterdir()] == ["table.csv"]


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
                assert "No space left on device" in str(error) and "\n" not in str(error)
            else:  # all went well, or a folder that is there already was not made
                assert number >= len(calls) or calls[number].startswith("mkdir")
        assert not list(folder.rglob("*.tmp"))
        train(StandIn(), folder)
        assert contents(folder) == contents(tmp_path / "whole"), calls[number:]
    assert {call.split()[0] for call in calls} == set(GROWING) and number > 60


@pytest.mark.parametrize("limit", [3_000, 20_000, 60_000])
def test_a_disk_full_in_a_real_run_its_weights_included(random_base, tmp_path, monkeypatch, limited, limit):
    noisy_rewards(monkeypatch)
    config = tiny_config(random_base, "full", steps=2)  # the weights are its largest file
    whole = run(config, tmp_path / "whole")
    limited(limit)
    with pytest.raises(UserError, match="nothing that was saved is lost"):
        run(config, tmp_path / "run")
    limited(None)
    assert run(config, tmp_path / "run") == whole and outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "items.csv", "timings.jsonl", "manifest.json"])
@pytest.mark.parametrize("share", [0.0, 0.7, "line"])
def test_a_file_of_a_finished_run_cut_off_anywhere_is_named(tmp_path, name, share):
    """Never tables with less in them."""
    folder = tmp_path / StandIn().run_id
    train(StandIn(), folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: data[:-1].rfind(b"\n") + 1] if share == "line" else data[: int(share * len(data))])
    with pytest.raises(UserError) as caught:
        build_tables(plan(StandIn()), tmp_path)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


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
            lambda: RunDirectory.open("results/run", StandIn()),
            lambda: mark_failed("results/run", "killed"),
            lambda: run_plan(plan(StandIn()), "results/runs"),
        ):
            with pytest.raises(UserError, match="Permission denied"):
                attempt()
    finally:
        if root:
            os.seteuid(0)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("a file")
    for path in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(UserError, match=str(path)):
            RunDirectory.open(path, StandIn())
    assert (tmp_path / "run").read_text() == "a file"

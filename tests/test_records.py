"""Run directories: resume byte for byte, locks, torn files, full disks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from disk_calls import interfere
from stand_ins import StandIn, train

from replication.errors import Stopped, UserError
from replication.runs import directory, files
from replication.runs.directory import Locked, RunDirectory, is_locked, mark_failed, read_failure, read_summary
from replication.runs.files import atomic_write

SAME = ("config.json", "metrics.jsonl", "items.csv", "summary.json", "samples.jsonl")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SAME}


def interrupted(tmp_path: Path, steps: int, config: StandIn | None = None) -> Path:
    """A run that was stopped after ``steps`` steps, two of them logged again after the newest checkpoint."""
    folder = tmp_path / "run"
    config = config or StandIn()
    with RunDirectory.open(folder, config) as run:
        assert run.load_checkpoint() is None
        weight, total = torch.zeros(3), 0.0
        for step in range(1, steps + 1):
            weight = weight + torch.randn(3, generator=torch.Generator().manual_seed(config.seed * 1000 + step))
            total += float(weight.sum())
            run.append_metrics({"step": step, "reward": total, "kept_fraction": None})
            run.append_samples([{"step": step, "completion": "<script>alert(1)</script>"}])
            run.save_checkpoint(step, {"w": weight}, {"total": total})
        run.append_metrics({"step": steps + 1, "reward": 17.0})
        run.append_samples([{"step": steps + 1, "completion": "later"}])
    return folder


def test_a_run_leaves_the_files_of_the_contract_and_no_checkpoints(tmp_path):
    summary = train(StandIn(), tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {".lock", "timings.jsonl", "manifest.json", *SAME}
    assert json.loads((tmp_path / "run/config.json").read_text()) == StandIn().model_dump(mode="json")
    assert read_summary(tmp_path / "run") == summary
    assert summary.status == "done" and summary.run_id == StandIn().run_id
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert {"commit", "dirty", "packages", "python", "cpu", "cores", "gpu", "command", "started", "finished"} <= set(manifest)
    assert manifest["finished"] is not None


def test_two_runs_of_one_config_give_the_same_bytes(tmp_path):
    train(StandIn(), tmp_path / "a")
    train(StandIn(), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_resumed_run_gives_the_bytes_of_one_never_interrupted(tmp_path, steps):
    train(StandIn(), tmp_path / "whole")
    folder = interrupted(tmp_path, steps)
    train(StandIn(), folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_finished_run_is_left_alone(tmp_path):
    train(StandIn(), tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    with RunDirectory.open(tmp_path / "run", StandIn()) as run:
        assert run.finished and run.summary.status == "done"
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_a_folder_of_another_config_is_refused_and_untouched(tmp_path):
    train(StandIn(), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match="learning_rate is 0.001 there and 0.01 here"):
        RunDirectory.open(tmp_path / "run", StandIn(learning_rate=0.01))
    assert contents(tmp_path / "run") == before
    assert not is_locked(tmp_path / "run")


def test_a_folder_that_is_no_run_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no run"):
        RunDirectory.open(tmp_path, StandIn())
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex"}


def test_a_run_of_another_base_is_refused(tmp_path):
    class OtherBase(StandIn):
        @property
        def run_id(self) -> str:
            return "0" * 16

    for folder, steps in (("unfinished", 1), ("finished", 4)):
        (tmp_path / folder).mkdir()
        path = interrupted(tmp_path / folder, min(steps, 2))
        if steps == 4:
            train(StandIn(), path)
        with pytest.raises(UserError, match="another base"):
            RunDirectory.open(path, OtherBase())


def test_two_processes_never_hold_one_run(tmp_path):
    with RunDirectory.open(tmp_path / "run", StandIn()):
        assert is_locked(tmp_path / "run")
        with pytest.raises(Locked, match="in use by another process"):
            RunDirectory.open(tmp_path / "run", StandIn())
    assert not is_locked(tmp_path / "run")
    RunDirectory.open(tmp_path / "run", StandIn()).close()


def test_a_run_that_is_only_looked_at_can_begin(tmp_path, monkeypatch):
    """A look takes the lock for a moment; a run opened in that moment ended with "in use by another process"."""
    (tmp_path / "run").mkdir()
    look = files.Lock(tmp_path / "run/.lock")
    monkeypatch.setattr(time, "sleep", lambda seconds: look.release())
    with RunDirectory.open(tmp_path / "run", StandIn()):
        assert is_locked(tmp_path / "run")


def test_a_run_whose_lock_was_lost_to_another_process_writes_no_checkpoint(tmp_path):
    """As on a network disk whose server lost sight of this machine and gave the lock to the next that asked."""
    with RunDirectory.open(tmp_path / "run", StandIn()) as run:
        run.save_checkpoint(1, {"w": torch.ones(1)}, {})
        fcntl.flock(run._lock._descriptor, fcntl.LOCK_UN)
        with RunDirectory.open(tmp_path / "run", StandIn()):
            for attempt in (lambda: run.save_checkpoint(2, {"w": torch.ones(1)}, {}), lambda: run.finish({"status": "done"})):
                with pytest.raises(Locked, match="taken over by another process"):
                    attempt()
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1 and read_summary(tmp_path / "run") is None


def test_a_lock_dies_with_its_process(tmp_path):
    code = f"""
        import sys, time
        from pathlib import Path
        from replication.runs.files import Lock
        lock = Lock(Path({str(tmp_path)!r}) / ".lock")
        print("held", flush=True)
        time.sleep(100)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    assert is_locked(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, damage):
    train(StandIn(), tmp_path / "whole")
    folder = interrupted(tmp_path, 3)
    older, newest = sorted((folder / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes({"torn": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    with RunDirectory.open(folder, StandIn()) as run:
        step, tensors, state = run.load_checkpoint()
    assert step == 2 and set(tensors) == {"w"} and set(state) == {"total"}
    assert "cannot be used" in caplog.text
    train(StandIn(), folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_with_every_checkpoint_damaged_the_run_starts_over(tmp_path):
    train(StandIn(), tmp_path / "whole")
    folder = interrupted(tmp_path, 3)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"nonsense")
    train(StandIn(), folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_checkpoint_is_not_used_when_the_log_it_counts_on_is_shorter(tmp_path, caplog):
    train(StandIn(), tmp_path / "whole")
    folder = interrupted(tmp_path, 3)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:5])
    train(StandIn(), folder)
    assert "shorter" in caplog.text
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_pickle_named_like_a_checkpoint_is_never_loaded(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (os._exit, (1,))

    folder = interrupted(tmp_path, 1)
    data = pickle.dumps(Bomb())
    (folder / "checkpoints" / f"step-00000009-{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)
    with RunDirectory.open(folder, StandIn()) as run:
        assert run.load_checkpoint()[0] == 1


def test_checkpoint_gives_back_tensors_and_state_exactly(tmp_path):
    tensors = {
        "f": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), "d": torch.tensor(0.1, dtype=torch.float64),
        "b": torch.randn(4).to(torch.bfloat16), "rng": torch.Generator().manual_seed(5).get_state(), "none": torch.empty(0),
        "view": torch.arange(6.0).reshape(2, 3).T,
    }
    state = {"x": 0.1 + 0.2, "n": 2**60, "nested": {"list": [1, None, "ü"]}}
    with RunDirectory.open(tmp_path / "run", StandIn()) as run:
        run.save_checkpoint(7, tensors, state)
        step, back, back_state = run.load_checkpoint()
    assert step == 7 and back_state == state and set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


@pytest.mark.parametrize(
    "change",
    [{"lengths": ["a list"]}, {"lengths": {"../precious": 0}}, {"lengths": {"samples.jsonl": ""}}, {"step": "3"}, {"state": 1}],
)
def test_a_checkpoint_whose_note_is_nonsense_is_skipped_with_a_warning(tmp_path, caplog, change):
    """A list as lengths ended in a traceback, and a name of another file would have cut that."""
    from safetensors.torch import save

    folder = interrupted(tmp_path, 1)
    (tmp_path / "precious").write_text("precious")
    note = {"step": 3, "run_id": StandIn().run_id, "lengths": {"metrics.jsonl": 0}, "state": {}} | change
    data = save({"w": torch.zeros(3)}, {"replication": json.dumps(note)})
    (folder / "checkpoints" / f"step-00000003-{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)
    with RunDirectory.open(folder, StandIn()) as run:
        assert run.load_checkpoint()[0] == 1
    assert "cannot be used" in caplog.text and (tmp_path / "precious").read_text() == "precious"


def test_a_checkpoint_that_was_read_is_no_longer_in_use(tmp_path):
    """The tensors were views of the file for as long as the run went on: on a network disk it could then not be removed."""
    with RunDirectory.open(interrupted(tmp_path, 2), StandIn()) as run:
        _, tensors, _ = run.load_checkpoint()
        assert "/checkpoints/step-" not in Path("/proc/self/maps").read_text() and set(tensors) == {"w"}


def test_checkpoints_that_cannot_be_removed_do_not_fail_a_finished_run(tmp_path, monkeypatch, caplog):
    folder = interrupted(tmp_path, 2)

    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", busy)
        summary = train(StandIn(), folder)
        assert summary.status == "done" and train(StandIn(), folder) == summary == read_summary(folder)
    assert caplog.text.count("checkpoints cannot be removed (Device or resource busy); the run is finished without it") == 2
    assert train(StandIn(), folder) == summary and not (folder / "checkpoints").exists()


def test_no_more_than_two_checkpoints_are_kept(tmp_path):
    folder = interrupted(tmp_path, 5)
    assert [path.name[:13] for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000004", "step-00000005"]


def test_what_is_not_finite_becomes_null(tmp_path):
    with RunDirectory.open(tmp_path / "run", StandIn()) as run:
        run.append_metrics({"step": 1, "loss": float("nan"), "grad_norm": torch.tensor(float("inf"))})
        summary = run.finish({"status": "diverged", "reason": "loss", "accuracy": float("nan")})
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text()) == {"step": 1, "loss": None, "grad_norm": None}
    assert summary.accuracy is None
    assert read_summary(tmp_path / "run") == summary


def test_only_done_and_diverged_runs_finish(tmp_path):
    with RunDirectory.open(tmp_path / "run", StandIn()) as run, pytest.raises(ValueError, match="done or diverged"):
        run.finish({"status": "failed"})
    assert read_summary(tmp_path / "run") is None


def test_a_torn_summary_counts_as_unfinished_with_a_warning(tmp_path, caplog):
    train(StandIn(), tmp_path / "run")
    whole = contents(tmp_path / "run")
    file = tmp_path / "run/summary.json"
    file.write_bytes(file.read_bytes()[:30])
    train(StandIn(), tmp_path / "run")
    assert "damaged" in caplog.text
    assert contents(tmp_path / "run") == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda summary: summary | {"pass_at_8": 0.5}, "pass_at_8"),
        (lambda summary: {name: value for name, value in summary.items() if name != "status"}, "status"),
        (lambda summary: summary | {"accuracy": "half"}, "accuracy"),
        (lambda summary: [summary], "all of it"),
    ],
)
def test_a_run_finished_by_another_version_is_refused_and_untouched(tmp_path, change, named):
    """A field more in summary.json made a finished run "damaged": its checkpoints were gone, so its logs were cut to nothing."""
    folder = tmp_path / "run"
    train(StandIn(), folder)
    (folder / "summary.json").write_text(json.dumps(change(json.loads((folder / "summary.json").read_text()))))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    commit = json.loads((folder / "manifest.json").read_text())["commit"] or "that version"
    with pytest.raises(UserError, match=rf"another version of this code \(.*{named}\): use .*{commit}, or move the folder"):
        train(StandIn(), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and not is_locked(folder)


def test_a_summary_of_before_a_field_was_added_is_one_that_did_not_measure_it(tmp_path):
    summary = train(StandIn(), tmp_path / "run")
    file = tmp_path / "run/summary.json"
    there = json.loads(file.read_text())
    assert there.pop("clipped_share") is None
    file.write_text(json.dumps(there))
    assert train(StandIn(), tmp_path / "run") == summary


def test_a_summary_that_cannot_be_read_now_is_not_taken_for_one_cut_off(tmp_path, monkeypatch):
    train(StandIn(), tmp_path / "run")
    whole, real = contents(tmp_path / "run"), Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "summary.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"summary\.json: Input/output error"):
        patch.setattr(Path, "read_bytes", failing)
        train(StandIn(), tmp_path / "run")
    assert contents(tmp_path / "run") == whole


def test_a_torn_config_is_one_clear_line(tmp_path):
    train(StandIn(), tmp_path / "run")
    (tmp_path / "run/config.json").write_text('{"profile": "smo')
    with pytest.raises(UserError, match=r"config\.json is not the config of a run") as caught:
        RunDirectory.open(tmp_path / "run", StandIn())
    assert "\n" not in str(caught.value)


def test_a_note_of_failure_goes_when_the_run_starts_again(tmp_path):
    mark_failed(tmp_path / "run", "killed", ["last line"])
    assert read_failure(tmp_path / "run")["reason"] == "killed"
    RunDirectory.open(tmp_path / "run", StandIn()).close()
    assert read_failure(tmp_path / "run") is None


def test_a_stop_saves_and_is_resumed(tmp_path):
    train(StandIn(), tmp_path / "whole")
    from replication import signals

    with signals.handled():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped) as caught:
            train(StandIn(), tmp_path / "run")
    assert caught.value.signum == signal.SIGTERM and signals.stop_requested() is None
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1
    train(StandIn(), tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    train(StandIn(), tmp_path / "whole")
    folder = interrupted(tmp_path, 3)
    for path in [*folder.rglob("*")]:
        os.utime(path, (10, 10))
    older, newest = sorted((folder / "checkpoints").iterdir())
    os.utime(older, (2**31, 2**31))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    train(StandIn(), folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_weights_that_are_not_as_their_run_left_them_are_named_by_who_reads_them(random_base, tmp_path, monkeypatch):
    """A number changed in the adapter went unseen: only what tables are made from had a checksum."""
    from safetensors.torch import load_file, save_file
    from tiny_runs import noisy_rewards, tiny_config

    from replication.measure.credit import _trained
    from replication.train import run

    noisy_rewards(monkeypatch)
    config, folder = tiny_config(random_base, "grpo", steps=1), tmp_path / "run"
    run(config, folder)
    file = folder / "adapter/adapter_model.safetensors"
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() >= {"adapter/adapter_model.safetensors", "items.csv"}
    _trained(config, folder)
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] += 1.0
    save_file(weights, file)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is not as its run left it"):
        _trained(config, folder)
    directory.check_files(folder)  # what tables are made from is whole, and they may be made


# What a machine that loses power still has ------------------------------------------------------------------------------


@pytest.fixture
def calls(tmp_path: Path, monkeypatch) -> list[str]:
    """Every call from here on that writes, syncs, renames or makes a folder under ``tmp_path``."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "x")
    return interfere(tmp_path, None, None, names=("mkdir", "write", "fsync", "replace", "unlink"), setattr=monkeypatch.setattr)


def test_a_file_and_then_its_name_are_synced(tmp_path, calls):
    """With every fsync taken out no test failed: a process that is killed loses nothing of what it wrote, a machine does."""
    atomic_write(tmp_path / "a", "text")
    assert calls == ["write .a.x.tmp", "fsync .a.x.tmp", "replace a", "fsync ."]


def test_a_new_folder_is_synced_into_the_one_above(tmp_path, calls):
    files.make_folder(tmp_path / "a/b")
    assert [call for call in calls if call.startswith("fsync")] == ["fsync a", "fsync ."]
    calls.clear()
    files.make_folder(tmp_path / "a/b")
    assert not [call for call in calls if call.startswith("fsync")]


def test_what_a_checkpoint_counts_on_is_synced_before_it(tmp_path, calls):
    with RunDirectory.open(tmp_path, StandIn()) as run:
        run.append_metrics({"step": 1})
        run.append_samples([{"step": 1}])
        calls.clear()
        run.save_checkpoint(1, {"w": torch.ones(1)}, {})
    (name,) = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    there = [f"checkpoints/.{name}.x.tmp", f"checkpoints/{name}"]
    logs = ["fsync metrics.jsonl", "fsync samples.jsonl", "fsync ."]
    assert calls == [*logs, "mkdir checkpoints", "fsync .", f"write {there[0]}", f"fsync {there[0]}", f"replace {there[1]}",
                     "fsync checkpoints"]  # fmt: skip


def test_a_summary_is_synced_after_all_else_and_before_the_checkpoints_go(tmp_path, calls):
    with RunDirectory.open(tmp_path, StandIn()) as run:
        run.append_metrics({"step": 1})
        run.save_checkpoint(1, {"w": torch.ones(1)}, {})
        (name,) = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        calls.clear()
        run.finish({"status": "done"})
    whole_files = [
        call
        for file in ("manifest.json", "summary.json")
        for call in (f"write .{file}.x.tmp", f"fsync .{file}.x.tmp", f"replace {file}", "fsync .")
    ]
    assert calls == ["fsync metrics.jsonl", *whole_files, f"unlink checkpoints/{name}"]


def test_weights_are_synced_with_their_names(tmp_path, calls):
    class Model:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "adapter_model.safetensors").write_bytes(b"weights")

    with RunDirectory.open(tmp_path, StandIn()) as run:
        calls.clear()
        run.write_adapter(Model())
    assert calls == ["mkdir adapter", "fsync adapter/adapter_model.safetensors", "fsync adapter"]


# Faults of the disk ---------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    atomic_write(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"table\.csv: File too large; .*nothing that was saved is lost"):
            atomic_write(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old" and [other.name for other in tmp_path.iterdir()] == ["table.csv"]


def test_writers_of_one_file_on_two_machines_never_share_a_name_nor_follow_a_link(tmp_path, monkeypatch):
    """The name was made of the process number, which processes of two containers share: one wrote into the other's file."""
    (tmp_path / "precious").write_text("precious")
    names = iter(["planted", "a", "b"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: next(names))
    (tmp_path / ".table.csv.planted.tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="File exists"):
        atomic_write(tmp_path / "table.csv", "mine")
    assert (tmp_path / "precious").read_text() == "precious" and (tmp_path / ".table.csv.planted.tmp").is_symlink()
    one, other = files.stage(tmp_path / "table.csv", "one"), files.stage(tmp_path / "table.csv", "other")
    assert (one.read_text(), other.read_text()) == ("one", "other")


@pytest.mark.parametrize("limit", [100, 300, 600, 900, 1200])
def test_a_disk_that_fills_up_anywhere_in_a_run_costs_nothing_saved(tmp_path, limit):
    """Whatever write meets the limit, the error is one explained line and a later start gives the same bytes."""
    config = StandIn(steps=40)
    train(config, tmp_path / "whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            train(config, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    train(config, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_read_only_folder_is_one_explained_line(tmp_path, monkeypatch):
    real = os.open

    def read_only(path, flags, *rest, **named):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(files.os, "open", read_only)
    with pytest.raises(UserError, match="Read-only file system; choose a folder that can be written to"):
        RunDirectory.open(tmp_path / "run", StandIn())


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="a file stands where a folder should be"):
        RunDirectory.open(tmp_path / "run", StandIn())
    with pytest.raises(UserError, match="a file stands where a folder should be"):
        RunDirectory.open(tmp_path / "run" / "deeper", StandIn())
    assert (tmp_path / "run").read_text() == "a file"


KILLED_WRITER = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from stand_ins import StandIn
from replication.runs.directory import RunDirectory
with RunDirectory.open(Path({folder!r}), StandIn()) as run:
    print("ready", flush=True)
    step = 0
    while True:
        step += 1
        run.append_metrics({{"step": step}})
        run.save_checkpoint(step, {{"w": torch.full((20000,), float(step))}}, {{"step": step}})
"""


@pytest.mark.parametrize("wait", [0.02, 0.05, 0.11])
def test_killed_while_writing_checkpoints_an_intact_one_is_there(tmp_path, wait, caplog):
    folder = tmp_path / "run"
    code = KILLED_WRITER.format(tests=str(Path(__file__).parent), folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    while len(list((folder / "checkpoints").glob("step-*"))) < 2:
        time.sleep(0.005)
    time.sleep(wait)
    child.kill()
    child.wait()
    child.stdout.close()
    with RunDirectory.open(folder, StandIn()) as run:
        step, tensors, state = run.load_checkpoint()
        assert "cannot be used" not in caplog.text
        assert torch.equal(tensors["w"], torch.full((20000,), float(step))) and state == {"step": step}
        lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines == list(range(1, step + 1))
        assert not list(folder.rglob("*.tmp"))


def test_every_whole_file_goes_through_one_function():
    """write_text or open(..., "w") anywhere else in these modules would be a file that can be torn."""
    for module in ("records", "run_summary", "checkpoints", "files", "manifest"):
        text = (Path(directory.__file__).parent / f"{module}.py").read_text()
        assert ".write_text(" not in text and ".write_bytes(" not in text and '"w"' not in text and "to_csv" not in text, module

"""Run directories: the files they hold, resuming with the same bytes, locks, damaged checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from stand_ins import SAME, StandIn, contents, interrupted, train
from tiny_runs import HELPERS

from replication import signals
from replication.errors import Stopped, UserError
from replication.runs import Locked, RunDirectory, check_files, is_locked, mark_failed, provenance, read_failure, read_summary


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(StandIn(), folder)
    return contents(folder)


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
    check_files(tmp_path / "run")


# Resuming ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_resumed_run_gives_the_bytes_of_one_never_interrupted(tmp_path, whole, steps):
    folder = interrupted(tmp_path, steps)
    train(StandIn(), folder)
    assert contents(folder) == whole


def test_a_stop_saves_and_is_resumed(tmp_path, whole):
    with signals.handled():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped) as caught:
            train(StandIn(), tmp_path / "run")
    assert caught.value.signum == signal.SIGTERM and signals.stop_requested() is None
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1
    train(StandIn(), tmp_path / "run")
    assert contents(tmp_path / "run") == whole


def test_a_finished_run_is_left_alone(tmp_path):
    train(StandIn(), tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    with RunDirectory.open(tmp_path / "run", StandIn()) as run:
        assert run.summary.status == "done"
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir() if path.name != ".lock"} == before


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, whole):
    folder = interrupted(tmp_path, 3)
    older, newest = sorted((folder / "checkpoints").iterdir())
    os.utime(older, (2**31, 2**31))
    os.utime(newest, (10, 10))
    train(StandIn(), folder)
    assert contents(folder) == whole


def test_a_run_that_goes_on_at_another_commit_says_so(tmp_path, whole, capsys):
    folder = interrupted(tmp_path, 2)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "0" * 40, "dirty": False, "packages": {"torch": "1.0"}}))
    train(StandIn(), folder)
    assert "0" * 40 in capsys.readouterr().err and contents(folder) == whole
    (earlier,) = json.loads(path.read_text())["earlier_starts"]
    assert earlier["commit"] == "0" * 40 and earlier["packages"] == {"torch": "1.0"} and "python" not in earlier


# Whose folder it is -----------------------------------------------------------------------------------------------------


def test_a_folder_of_another_config_is_refused_and_untouched(tmp_path):
    train(StandIn(), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match="learning_rate is 0.001 there and 0.01 here"):
        RunDirectory.open(tmp_path / "run", StandIn(learning_rate=0.01))
    assert contents(tmp_path / "run") == before
    assert not is_locked(tmp_path / "run")


def test_a_folder_whose_run_never_did_a_step_is_taken_over(tmp_path, whole):
    """After a typo that only the loading of the model found, the corrected command was refused."""
    with RunDirectory.open(tmp_path / "run", StandIn(lora_targets=("q_prj",))) as run:
        run.write_manifest(base_sha256="x")
    train(StandIn(), tmp_path / "run")
    assert contents(tmp_path / "run") == whole
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["run_id"] == StandIn().run_id and manifest["earlier_starts"] == [] and "base_sha256" not in manifest


def test_a_folder_that_is_no_run_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no run"):
        RunDirectory.open(tmp_path, StandIn())
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex"}


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_of_another_base_is_refused(tmp_path, finished):
    class OtherBase(StandIn):
        @property
        def run_id(self) -> str:
            return "0" * 16

    folder = interrupted(tmp_path, 2)
    if finished:
        train(StandIn(), folder)
    with pytest.raises(UserError, match="another base"):
        RunDirectory.open(folder, OtherBase())


def test_a_run_whose_reward_was_edited_names_the_file(tmp_path):
    """After a bug in a reward was fixed, the message was about another base or task version."""

    class Edited(StandIn):
        @property
        def run_id(self) -> str:
            return "0" * 16

        def user_code(self) -> dict[str, dict[str, str | None]]:
            return {"reward": {"sha256": "of the fixed file"}}

    folder = interrupted(tmp_path, 2)
    with pytest.raises(UserError, match="of another file of your reward: choose another folder"):
        RunDirectory.open(folder, Edited())


def test_two_processes_never_hold_one_run(tmp_path):
    with RunDirectory.open(tmp_path / "run", StandIn()):
        assert is_locked(tmp_path / "run")
        with pytest.raises(Locked, match="in use by another process"):
            RunDirectory.open(tmp_path / "run", StandIn())
    assert not is_locked(tmp_path / "run")
    with RunDirectory.open(tmp_path / "run", StandIn()):
        pass


def test_a_lock_dies_with_its_process(tmp_path):
    code = f"""
        import sys, time
        sys.path.insert(0, {str(HELPERS)!r})
        from stand_ins import RunDirectory, StandIn
        run = RunDirectory.open({str(tmp_path / "run")!r}, StandIn())
        print("held", flush=True)
        time.sleep(100)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    assert is_locked(tmp_path / "run")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not is_locked(tmp_path / "run")


# Checkpoints ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, whole, capsys, damage):
    folder = interrupted(tmp_path, 3)
    newest = max((folder / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes({"torn": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    with RunDirectory.open(folder, StandIn()) as run:
        step, tensors = run.load_checkpoint()
    assert step == 2 and set(tensors) == {"weight", "total"}
    assert newest.name in capsys.readouterr().err
    train(StandIn(), folder)
    assert contents(folder) == whole


def test_with_every_checkpoint_damaged_the_run_starts_over(tmp_path, whole):
    folder = interrupted(tmp_path, 3)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"nonsense")
    train(StandIn(), folder)
    assert contents(folder) == whole


def test_a_checkpoint_is_not_used_when_the_log_it_counts_on_is_shorter(tmp_path, whole):
    folder = interrupted(tmp_path, 3)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:5])
    with RunDirectory.open(folder, StandIn()) as run:
        assert run.load_checkpoint()[0] == 2
    train(StandIn(), folder)
    assert contents(folder) == whole


def test_a_pickle_named_like_a_checkpoint_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os._exit, (1,))

    folder = interrupted(tmp_path, 1)
    data = pickle.dumps(Bomb())
    (folder / "checkpoints" / f"step-00000009-{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)
    with RunDirectory.open(folder, StandIn()) as run:
        assert run.load_checkpoint()[0] == 1


def test_a_checkpoint_gives_back_its_tensors_exactly(tmp_path):
    tensors = {
        "f": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), "d": torch.tensor(0.1, dtype=torch.float64),
        "b": torch.randn(4).to(torch.bfloat16), "rng": torch.Generator().manual_seed(5).get_state(), "none": torch.empty(0),
        "view": torch.arange(6.0).reshape(2, 3).T,
    }  # fmt: skip
    with RunDirectory.open(tmp_path / "run", StandIn()) as run:
        run.save_checkpoint(7, tensors, run.lengths())
        step, back = run.load_checkpoint()
    assert step == 7 and set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


def test_no_more_than_two_checkpoints_are_kept(tmp_path):
    folder = interrupted(tmp_path, 5)
    assert [path.name[:13] for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000004", "step-00000005"]


# How a run ends ---------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_becomes_null(tmp_path):
    with RunDirectory.open(tmp_path / "run", StandIn()) as run:
        run.append_metrics({"step": 1, "loss": float("nan"), "grad_norm": torch.tensor(float("inf"))})
        summary = run.finish({"status": "diverged", "reason": "loss", "accuracy": float("nan")})
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text()) == {"step": 1, "loss": None, "grad_norm": None}
    assert summary.accuracy is None
    assert read_summary(tmp_path / "run") == summary


def test_only_done_and_diverged_runs_finish(tmp_path):
    with RunDirectory.open(tmp_path / "run", StandIn()) as run, pytest.raises(ValueError, match="'done' or 'diverged'"):
        run.finish({"status": "failed"})
    assert read_summary(tmp_path / "run") is None


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
    before = contents(folder)
    with pytest.raises(UserError, match=named):
        train(StandIn(), folder)
    assert contents(folder) == before and not is_locked(folder)


def test_a_summary_of_before_a_field_was_added_is_one_that_did_not_measure_it(tmp_path):
    summary = train(StandIn(), tmp_path / "run")
    file = tmp_path / "run/summary.json"
    there = json.loads(file.read_text())
    assert there.pop("clipped_share") is None
    file.write_text(json.dumps(there))
    assert train(StandIn(), tmp_path / "run") == summary


def test_a_note_of_failure_goes_when_the_run_starts_again(tmp_path):
    mark_failed(tmp_path / "run", "killed", ["last line"])
    assert read_failure(tmp_path / "run")["reason"] == "killed"
    with RunDirectory.open(tmp_path / "run", StandIn()):
        pass
    assert read_failure(tmp_path / "run") is None


def test_a_changed_file_of_a_finished_run_is_named(tmp_path):
    train(StandIn(), tmp_path / "run")
    items = tmp_path / "run/items.csv"
    items.write_text(items.read_text().replace(",1,", ",0,", 1))
    with pytest.raises(UserError, match=r"items\.csv has changed"):
        check_files(tmp_path / "run")


class Model:
    """Saves as safetensors does: readable by its owner alone."""

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "adapter_model.safetensors").touch(0o600)
        (folder / "adapter_model.safetensors").write_bytes(b"weights")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_every_file_of_a_run_follows_the_umask(tmp_path, umask, mode):
    """Weights were always 0600: a colleague on a shared disk could not load the adapter."""
    before = os.umask(umask)
    try:
        with RunDirectory.open(tmp_path / "run", StandIn()) as run:
            run.append_metrics({"step": 1})
            run.write_adapter(Model(), "card")
            run.finish({"status": "done"})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("[!.]*") if path.is_file()}
    assert {"adapter_model.safetensors", "metrics.jsonl", "summary.json"} <= set(modes) and set(modes.values()) == {mode}


def test_the_commit_of_a_repository_around_the_project_is_not_the_projects(tmp_path, monkeypatch):
    """A copy of the project inside another repository recorded that one's commit, as clean."""

    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    (tmp_path / "project").mkdir()
    (tmp_path / "project/code.py").write_text("")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    for root, known in ((tmp_path / "project", False), (tmp_path, True), (tmp_path / "none", False)):
        monkeypatch.setattr(provenance, "ROOT", root)
        for function in (provenance._in_own_repository, provenance.commit, provenance.dirty):
            function.cache_clear()
        assert (provenance.commit() is not None) == known and (provenance.dirty() is not None) == known
    for function in (provenance._in_own_repository, provenance.commit, provenance.dirty):
        function.cache_clear()


KILLED_WRITER = """
import sys, torch
sys.path.insert(0, {helpers!r})
from stand_ins import RunDirectory, StandIn
with RunDirectory.open({folder!r}, StandIn()) as run:
    print("ready", flush=True)
    step = 0
    while True:
        step += 1
        run.append_metrics({{"step": step}})
        run.save_checkpoint(step, {{"weight": torch.full((20000,), float(step))}}, run.lengths())
"""


@pytest.mark.parametrize("wait", [0.02, 0.11])
def test_killed_while_writing_checkpoints_an_intact_one_is_there(tmp_path, wait, capsys):
    folder = tmp_path / "run"
    code = KILLED_WRITER.format(helpers=str(HELPERS), folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    while len(list((folder / "checkpoints").glob("step-*"))) < 2:
        time.sleep(0.005)
    time.sleep(wait)
    child.kill()
    child.wait()
    child.stdout.close()
    with RunDirectory.open(folder, StandIn()) as run:
        step, tensors = run.load_checkpoint()
        assert "damaged" not in capsys.readouterr().err
        assert torch.equal(tensors["weight"], torch.full((20000,), float(step)))
        lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines == list(range(1, step + 1))
        assert not list(folder.rglob("*.tmp"))

"""Sweeps: what is missing is run once, whoever dies; signals, two sweeps at once, faulty runs."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from stand_ins import StandIn, train

from replication import signals
from replication.errors import Stopped, UserError
from replication.runs.directory import RunDirectory, is_locked, read_failure, read_summary
from replication.sweep import pool, schedule
from replication.sweep.schedule import run_plan
from replication.tables.build import build_tables

TARGET = "stand_ins:train"


@dataclass(frozen=True)
class Planned:
    ablation: str
    config: StandIn


def plan(*configs: StandIn) -> list[Planned]:
    return [Planned("full_vs_sparse", config) for config in configs]


def go(planned: list[Planned], folder: Path, workers: int = 2) -> schedule.SweepResult:
    return run_plan(planned, folder, workers=workers, progress=False, target=TARGET)


def test_a_sweep_says_before_it_starts_that_no_claim_counts_its_model(tmp_path, capfd):
    assert run_plan(plan(StandIn(profile="paper")), tmp_path, workers=1, progress=True, target=TARGET).ok
    warning = "warning: MODEL=nano is not named Qwen2-1.5B: claims C1 to C9 will stay not run"
    assert capfd.readouterr().err.splitlines()[0] == warning


def times_begun(folder: Path, config: StandIn) -> int:
    log = folder / config.run_id / "run.log"
    return log.read_text().count("training ") if log.exists() else 0


def children() -> set[int]:
    """Processes of this one, without those that multiprocessing keeps for itself."""
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in found if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()}


def test_a_faulty_run_is_failed_with_its_reason_and_the_others_go_on(tmp_path, capfd):
    faulty = {
        "raises": "RuntimeError: a fault that was asked for",
        "killed": "killed by SIGKILL",
        "exits": "ended with status 7",
        "user": "set this differently",
    }
    bad = {fault: StandIn(seed=number, fault=fault) for number, fault in enumerate(faulty)}
    good = [StandIn(seed=10 + number) for number in range(3)]
    diverging = StandIn(seed=20, fault="diverges")
    planned = plan(*bad.values(), *good, diverging) + [Planned("lora_rank", good[0])]
    result = run_plan(planned, tmp_path, workers=2, progress=True, target=TARGET)
    assert set(result.done) == {config.run_id for config in good} and result.diverged == [diverging.run_id]
    assert not result.ok and set(result.missing) == set(result.failed) == {config.run_id for config in bad.values()}
    for fault, reason in faulty.items():
        assert reason in result.failed[bad[fault].run_id]
        note = read_failure(tmp_path / bad[fault].run_id)
        assert reason in note["reason"] and any("training " in line for line in note["log_tail"])
    assert "Traceback" in (tmp_path / bad["raises"].run_id / "run.log").read_text()
    shown = capfd.readouterr().err
    assert "0 of 8 runs are finished, 8 to run in 2 processes" in shown
    assert shown.count(": done after") == 3 and "Traceback" not in shown
    status = build_tables(planned, tmp_path)["runs"]["status"].value_counts().to_dict()
    assert status == {"failed": 4, "done": 4, "diverged": 1}
    assert not children()

    # The next start does only what is missing; what failed once goes on from its checkpoint.
    again = go(planned[4:] + plan(bad["user"]), tmp_path)
    assert all(times_begun(tmp_path, config) == 1 for config in good)
    assert again.missing == [bad["user"].run_id] and times_begun(tmp_path, bad["user"]) == 2


def test_a_run_that_failed_by_chance_succeeds_at_the_next_start(tmp_path):
    config = StandIn(fault="killed once")
    assert go(plan(config), tmp_path).missing == [config.run_id]
    result = go(plan(config), tmp_path)
    assert result.ok and read_failure(tmp_path / config.run_id) is None
    assert "from step 1 " in (tmp_path / config.run_id / "run.log").read_text()
    train(StandIn(fault="killed once").model_copy(), tmp_path / config.run_id)  # finished: nothing happens
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/.once").touch()
    train(config, tmp_path / "whole")
    for name in ("metrics.jsonl", "items.csv", "summary.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / config.run_id / name).read_bytes()


def test_a_worker_killed_from_outside_costs_only_its_run(tmp_path):
    slow, quick = StandIn(seed=1, steps=400, seconds_per_step=0.05), [StandIn(seed=2 + number) for number in range(3)]

    def kill_the_slow_one() -> None:
        log = tmp_path / slow.run_id / "run.log"
        while not log.exists() or "process " not in log.read_text():
            time.sleep(0.02)
        os.kill(int(log.read_text().split("process ")[1].split()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_the_slow_one)
    killer.start()
    result = go(plan(slow, *quick), tmp_path)
    killer.join()
    assert result.missing == [slow.run_id] and "SIGKILL" in result.failed[slow.run_id]
    assert not is_locked(tmp_path / slow.run_id)


def test_a_worker_told_to_stop_hands_its_run_to_another(tmp_path):
    config = StandIn(steps=30, seconds_per_step=0.05)

    def stop_it() -> None:
        log = tmp_path / config.run_id / "run.log"
        while not log.exists() or "process " not in log.read_text():
            time.sleep(0.02)
        os.kill(int(log.read_text().split("process ")[1].split()[0]), signal.SIGTERM)

    stopper = threading.Thread(target=stop_it)
    stopper.start()
    result = go(plan(config), tmp_path)
    stopper.join()
    assert result.ok and times_begun(tmp_path, config) == 2


def test_nothing_missing_starts_no_process(tmp_path):
    config = StandIn()
    train(config, tmp_path / config.run_id)
    started = time.monotonic()
    assert go(plan(config), tmp_path).ok and time.monotonic() - started < 1


def test_longest_first(tmp_path):
    short, long = StandIn(seed=1, steps=2), StandIn(seed=2, steps=9)
    go(plan(short, long), tmp_path, workers=1)
    finished = {config: (tmp_path / config.run_id / "summary.json").stat().st_mtime_ns for config in (short, long)}
    assert finished[long] < finished[short]


def test_a_run_held_by_another_process_is_waited_for_and_not_run_twice(tmp_path):
    config, other = StandIn(seed=1), StandIn(seed=2)
    held = RunDirectory.open(tmp_path / config.run_id, config)

    def finish() -> None:
        while read_summary(tmp_path / other.run_id) is None:
            time.sleep(0.02)
        time.sleep(0.3)
        held.load_checkpoint()
        held.finish({"status": "done", "steps_done": 0})
        held.close()

    finisher = threading.Thread(target=finish)
    finisher.start()
    result = go(plan(config, other), tmp_path)
    finisher.join()
    assert result.ok and times_begun(tmp_path, config) == 0


SWEEPER = """
import signal, sys
sys.path.insert(0, {tests!r})
import test_sweep
from replication.errors import Stopped
from replication.sweep.schedule import run_plan
if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup, which is passed on
    configs = [test_sweep.StandIn(seed=seed, steps={steps}, seconds_per_step=0.05) for seed in range({runs})]
    try:
        result = run_plan(test_sweep.plan(*configs), {folder!r}, workers={workers}, target=test_sweep.TARGET)
    except Stopped as stopped:
        sys.exit(128 + stopped.signum)
    sys.exit(0 if result.ok else 1)
"""


def sweeper(tmp_path: Path, *, steps: int, runs: int, workers: int = 2) -> subprocess.Popen:
    code = SWEEPER.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "runs"), steps=steps, runs=runs, workers=workers)
    script = tmp_path / "sweeper.py"
    script.write_text(textwrap.dedent(code))
    return subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_a_sweep_whose_pipe_of_progress_is_closed_goes_on(tmp_path):
    """The first line that nobody could read once ended the sweep, its runs half done, with status 0."""
    process = sweeper(tmp_path, steps=4, runs=4)
    assert "0 of 4 runs are finished" in process.stderr.readline()
    process.stderr.close()
    assert process.wait(120) == 0
    assert all(read_summary(tmp_path / "runs" / config.run_id).status == "done" for config in configs_of(4, 4))


def configs_of(steps: int, runs: int) -> list[StandIn]:
    return [StandIn(seed=seed, steps=steps, seconds_per_step=0.05) for seed in range(runs)]


def test_two_sweeps_at_once_share_the_work(tmp_path):
    first, second = (sweeper(tmp_path, steps=6, runs=6, workers=1) for _ in range(2))
    assert [process.communicate(timeout=120) and process.returncode for process in (first, second)] == [0, 0]
    configs = configs_of(6, 6)
    assert [times_begun(tmp_path / "runs", config) for config in configs] == [1] * 6
    assert all(read_summary(tmp_path / "runs" / config.run_id).status == "done" for config in configs)


def begun(tmp_path: Path, configs: list[StandIn], how_many: int) -> list[int]:
    """Wait until so many runs have a checkpoint; the processes that train them."""
    while True:
        folders = [tmp_path / "runs" / config.run_id for config in configs]
        folders = [folder for folder in folders if list((folder / "checkpoints").glob("step-*"))]
        if len(folders) >= how_many:
            return [int((folder / "run.log").read_text().split("process ")[1].split()[0]) for folder in folders]
        time.sleep(0.02)


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("signum", "to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_a_signal_stops_within_seconds_with_the_work_saved(tmp_path, signum, to_group):
    configs = configs_of(2000, 2)
    process = sweeper(tmp_path, steps=2000, runs=2)
    pids = begun(tmp_path, configs, 2)
    (os.killpg if to_group else os.kill)(process.pid, signum)  # Ctrl-C in a terminal, and its end, go to the whole group
    _, err = process.communicate(timeout=45)  # the runs would take 100 s; workers get 15 s, and a busy machine is slow
    assert process.returncode == 128 + signum
    assert "Traceback" not in err
    assert gone(pids, 1)
    for config in configs:
        folder = tmp_path / "runs" / config.run_id
        lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        newest = sorted((folder / "checkpoints").iterdir())[-1].name
        assert int(newest.split("-")[1]) == lines[-1] == len(lines)
        assert read_failure(folder) is None and not is_locked(folder)


def test_a_hangup_is_handled_unless_it_is_ignored():
    """A terminal that closed once ended a sweep with nothing saved; under nohup it must still go on."""
    earlier = signal.getsignal(signal.SIGHUP)
    try:
        for before, noted in ((signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, None)):
            signal.signal(signal.SIGHUP, before)
            with signals.handled():
                os.kill(os.getpid(), signal.SIGHUP)
                assert signals.stop_requested() == noted
            assert signal.getsignal(signal.SIGHUP) == before and signals.stop_requested() is None
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_a_killed_sweep_leaves_no_worker_behind(tmp_path):
    configs = configs_of(2000, 2)
    process = sweeper(tmp_path, steps=2000, runs=2)
    pids = begun(tmp_path, configs, 2)
    process.kill()
    process.communicate()
    assert gone(pids, 10)


def test_whoever_does_not_stop_in_time_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "GRACE", 0.5)
    config = StandIn(fault="hangs")

    def interrupt() -> None:
        while not (tmp_path / config.run_id / "metrics.jsonl").exists():
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped):
        go(plan(config), tmp_path)
    thread.join()
    assert not children() and signals.stop_requested() is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match="workers must be 1 or more"):
        run_plan([], tmp_path, workers=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands"):
        run_plan([], tmp_path / "file")
    assert run_plan([], tmp_path / "runs", progress=False).ok


@pytest.mark.parametrize("what", ["a file", "a lock that is a folder", "a summary of another version"])
def test_a_run_folder_that_cannot_be_used_fails_alone(tmp_path, monkeypatch, what):
    """A folder that could not even be looked at once ended the sweep for all the other runs."""
    bad, good = StandIn(seed=1, steps=9), StandIn(seed=2)  # the longest first
    if what == "a file":
        (tmp_path / bad.run_id).write_text("a file")
    elif what == "a lock that is a folder":
        (tmp_path / bad.run_id / ".lock").mkdir(parents=True)
    else:

        def read(folder: Path):
            if folder.name == bad.run_id:
                raise UserError("it was finished by another version of this code")
            return read_summary(folder)

        monkeypatch.setattr(schedule, "read_summary", read)
    result = go(plan(bad, good), tmp_path)
    assert result.done == [good.run_id] and result.missing == list(result.failed) == [bad.run_id]
    if "version" in what:
        assert "another version" in result.failed[bad.run_id] and times_begun(tmp_path, bad) == 0


def test_a_worker_that_cannot_be_started_is_done_without(tmp_path, monkeypatch):
    """A machine that was full for a moment once ended the sweep, and with it the runs that were training."""
    start, started = pool._Pool._start, []

    def full(pool, slot: int):
        started.append(slot)
        if len(started) > at_most:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(pool, slot)

    monkeypatch.setattr(pool._Pool, "_start", full)
    at_most, configs = 1, [StandIn(seed=seed) for seed in range(3)]
    assert go(plan(*configs), tmp_path / "one").ok and len(started) > 1
    at_most, started[:] = 0, []
    with pytest.raises(UserError, match=r"no worker process can be started \(Resource temporarily unavailable\)"):
        go(plan(*configs), tmp_path / "none")


def test_a_run_whose_worker_dies_when_all_is_written_is_done(tmp_path):
    """Its checkpoints could not be removed, or the worker was killed after its summary: it was said to have failed."""
    config, other = StandIn(seed=1), StandIn(seed=2)
    state = schedule.Sweep(plan(config, other), tmp_path, progress=False)
    run_ids = [state.next_run(), state.next_run()]
    train(config, tmp_path / config.run_id)
    for run_id in run_ids:
        state.take(run_id, ("failed", "its process was killed by SIGKILL"), 1.0)
    assert state.result.done == [config.run_id] and list(state.result.failed) == [other.run_id]
    assert read_failure(tmp_path / config.run_id) is None and read_failure(tmp_path / other.run_id) is not None


def test_a_sweep_that_can_only_wait_says_for_what_and_says_it_once(tmp_path, capfd):
    config = StandIn()
    with RunDirectory.open(tmp_path / config.run_id, config):
        state = schedule.Sweep(plan(config), tmp_path, progress=True)
        assert [state.next_run() for _ in range(3)] == [None] * 3
    assert capfd.readouterr().err.splitlines() == [
        f"waiting for other processes, which hold all that is left: {config.run_id}"
    ]
    assert state.next_run() == config.run_id

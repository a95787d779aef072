"""Sweeps: what is missing is run once, whatever dies; signals, two sweeps at once, faulty runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_ins import TARGET, Planned, StandIn, contents, plan, train
from tiny_runs import HELPERS

from replication import signals
from replication.errors import Stopped, UserError
from replication.runs import RunDirectory, is_locked, read_failure, read_summary
from replication.sweep import SweepResult, run_plan
from replication.sweep.queue import RunQueue
from replication.tables import build_tables


def go(planned: list[Planned], folder: Path, workers: int = 2) -> SweepResult:
    return run_plan(planned, folder, workers=workers, target=TARGET)


def starts(folder: Path, config: StandIn) -> int:
    log = folder / config.run_id / "run.log"
    return log.read_text().count("training ") if log.exists() else 0


def children() -> set[int]:
    """Processes of this one, without those that multiprocessing keeps for itself."""
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in found if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()}


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


# Faulty runs ------------------------------------------------------------------------------------------------------------


def test_a_faulty_run_is_failed_with_its_reason_and_the_others_go_on(tmp_path, capfd):
    faulty = {
        "raises": "RuntimeError: a fault that was asked for",
        "killed": "killed by SIGKILL",
        "exits": "ended with status 7",
        "user": "set this differently",
        "memory": "MemoryError",
    }
    bad = {fault: StandIn(seed=number, fault=fault) for number, fault in enumerate(faulty)}
    good = [StandIn(seed=10 + number) for number in range(3)]
    diverging = StandIn(seed=20, fault="diverges")
    planned = plan(*bad.values(), *good, diverging) + [Planned("lora_rank", good[0])]
    result = run_plan(planned, tmp_path, workers=2, target=TARGET)
    assert set(result.done) == {config.run_id for config in good} and result.diverged == [diverging.run_id]
    assert not result.ok and set(result.missing) == set(result.failed) == {config.run_id for config in bad.values()}
    for fault, reason in faulty.items():
        assert reason in result.failed[bad[fault].run_id]
        note = read_failure(tmp_path / bad[fault].run_id)
        assert reason in note["reason"] and any("training " in line for line in note["log_tail"])
    assert "Traceback" in (tmp_path / bad["raises"].run_id / "run.log").read_text()
    shown = capfd.readouterr().err
    assert "0 of 9 runs are finished, 9 to run in 2 processes" in shown
    assert shown.count(": done after") == 3 and "Traceback" not in shown
    status = build_tables(planned, tmp_path)["runs"]["status"].value_counts().to_dict()
    assert status == {"failed": 5, "done": 4, "diverged": 1}
    assert not children()

    # The next start does only what is missing; what failed goes on from its checkpoint.
    again = go(plan(*good, diverging, bad["user"]), tmp_path)
    assert all(starts(tmp_path, config) == 1 for config in good)
    assert again.missing == [bad["user"].run_id] and starts(tmp_path, bad["user"]) == 2


def test_a_run_that_failed_by_chance_succeeds_at_the_next_start(tmp_path):
    config = StandIn(fault="killed once")
    assert go(plan(config), tmp_path / "runs").missing == [config.run_id]
    result = go(plan(config), tmp_path / "runs")
    folder = tmp_path / "runs" / config.run_id
    assert result.ok and read_failure(folder) is None
    assert "from step 1 " in (folder / "run.log").read_text()
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/.once").touch()
    train(config, tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize(("signum", "reason"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGTERM, "status 143")])
def test_a_worker_ended_from_outside_costs_only_its_run(tmp_path, signum, reason):
    slow, quick = StandIn(seed=1, steps=400, seconds_per_step=0.05), [StandIn(seed=2 + number) for number in range(3)]

    def end_the_slow_one() -> None:
        log = tmp_path / slow.run_id / "run.log"
        while not log.exists() or "process " not in log.read_text():
            time.sleep(0.02)
        os.kill(int(log.read_text().split("process ")[1].split()[0]), signum)

    ender = meanwhile(end_the_slow_one)
    result = go(plan(slow, *quick), tmp_path)
    ender.join()
    assert result.missing == [slow.run_id] and reason in result.failed[slow.run_id]
    assert not is_locked(tmp_path / slow.run_id)


@pytest.mark.parametrize("what", ["a file", "a lock that is a folder", "a summary of another version"])
def test_a_run_folder_that_cannot_be_used_fails_alone(tmp_path, what):
    """A folder that could not even be looked at once ended the sweep for all the other runs."""
    bad, good = StandIn(seed=1, steps=9), StandIn(seed=2)
    if what == "a file":
        (tmp_path / bad.run_id).write_text("a file")
    elif what == "a lock that is a folder":
        (tmp_path / bad.run_id / ".lock").mkdir(parents=True)
    else:
        train(bad, tmp_path / bad.run_id)
        (tmp_path / bad.run_id / "summary.json").write_text('{"new": 1}')
    result = go(plan(bad, good), tmp_path)
    assert result.done == [good.run_id] and result.missing == list(result.failed) == [bad.run_id]
    assert starts(tmp_path, bad) == 0


def test_a_run_whose_worker_dies_when_all_is_written_is_done(tmp_path):
    config, other = StandIn(seed=1), StandIn(seed=2)
    queue = RunQueue(plan(config, other), tmp_path)
    run_ids = [queue.next_run(), queue.next_run()]
    train(config, tmp_path / config.run_id)
    for run_id in run_ids:
        queue.take(run_id, ("failed", "its process was killed by SIGKILL"), 1.0)
    assert queue.result.done == [config.run_id] and list(queue.result.failed) == [other.run_id]
    assert read_failure(tmp_path / config.run_id) is None and read_failure(tmp_path / other.run_id) is not None


# What is missing --------------------------------------------------------------------------------------------------------


def test_nothing_missing_starts_no_process(tmp_path, monkeypatch):
    config = StandIn()
    train(config, tmp_path / config.run_id)
    monkeypatch.setattr("replication.sweep.pool.run", lambda *_: pytest.fail("started"))
    assert go(plan(config), tmp_path).ok


def test_runs_start_in_the_order_of_the_plan(tmp_path):
    """The headline stands first in a plan, so a sweep that is cut short has what matters most."""
    runs = [StandIn(seed=1, steps=2), StandIn(seed=2, steps=9), StandIn(seed=3, steps=5)]
    queue = RunQueue(plan(*runs), tmp_path)
    assert [queue.next_run() for _ in range(4)] == [*(run.run_id for run in runs), None]


def test_a_run_held_by_another_process_is_waited_for_and_not_run_twice(tmp_path, capfd):
    config, other = StandIn(seed=1), StandIn(seed=2)
    held = RunDirectory.open(tmp_path / config.run_id, config)

    def finish() -> None:
        while read_summary(tmp_path / other.run_id) is None:
            time.sleep(0.02)
        time.sleep(1.2)
        with held:
            held.load_checkpoint()
            held.finish({"status": "done", "steps_done": 0})

    finisher = meanwhile(finish)
    result = run_plan(plan(config, other), tmp_path, workers=2, target=TARGET)
    finisher.join()
    assert result.ok and starts(tmp_path, config) == 0
    assert capfd.readouterr().err.count("waiting for other processes") == 1


def test_a_sweep_says_before_it_starts_that_no_claim_counts_its_model(tmp_path, capfd):
    assert run_plan(plan(StandIn(profile="paper")), tmp_path, workers=1, target=TARGET).ok
    assert "claims C1 to " in capfd.readouterr().err.splitlines()[0]


def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match="workers must be 1 or more"):
        run_plan([], tmp_path, workers=0)
    with pytest.raises(UserError, match="choose local or ray"):
        run_plan([], tmp_path, engine="slurm")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="File exists"):
        run_plan([], tmp_path / "file")
    assert run_plan([], tmp_path / "runs").ok


# Signals, and sweeps in processes of their own ----------------------------------------------------------------------------


SWEEPER = """
import signal, sys
sys.path.insert(0, {helpers!r})
from stand_ins import TARGET, StandIn, plan
from replication.errors import Stopped
from replication.sweep import run_plan
if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup, which is passed on
    configs = [StandIn(seed=seed, steps={steps}, seconds_per_step=0.05, fault={fault!r}) for seed in range({runs})]
    try:
        result = run_plan(plan(*configs), {folder!r}, workers={workers}, target=TARGET)
    except Stopped as stopped:
        sys.exit(128 + stopped.signum)
    sys.exit(0 if result.ok else 1)
"""


def sweeper(tmp_path: Path, *, steps: int, runs: int, workers: int = 2, fault: str = "none", closed: str = "") -> subprocess.Popen:
    """A sweep in a process of its own; ``closed`` are redirections of a shell."""
    code = SWEEPER.format(helpers=str(HELPERS), folder=str(tmp_path / "runs"), steps=steps, runs=runs, workers=workers, fault=fault)
    script = tmp_path / "sweeper.py"
    script.write_text(textwrap.dedent(code))
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, str(script)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)


def configs_of(steps: int, runs: int, fault: str = "none") -> list[StandIn]:
    return [StandIn(seed=seed, steps=steps, seconds_per_step=0.05, fault=fault) for seed in range(runs)]


def trainers(tmp_path: Path, configs: list[StandIn]) -> list[int]:
    """Wait until each run has a checkpoint; the processes that train them."""
    folders = [tmp_path / "runs" / config.run_id for config in configs]
    while not all(list((folder / "checkpoints").glob("step-*")) for folder in folders):
        time.sleep(0.02)
    return [int((folder / "run.log").read_text().split("process ")[1].split()[0]) for folder in folders]


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_a_sweep_whose_pipe_of_progress_is_closed_goes_on(tmp_path):
    """The first line that nobody could read once ended the sweep, its runs half done, with status 0."""
    process = sweeper(tmp_path, steps=4, runs=4)
    assert "0 of 4 runs are finished" in process.stderr.readline()
    process.stderr.close()
    assert process.wait(120) == 0
    assert all(read_summary(tmp_path / "runs" / config.run_id).status == "done" for config in configs_of(4, 4))


def test_a_sweep_without_any_stream_goes_on(tmp_path):
    """The workers could not save descriptors that were closed, so every run failed."""
    process = sweeper(tmp_path, steps=3, runs=2, closed="<&- >&- 2>&-")
    process.communicate(timeout=120)
    assert process.returncode == 0
    for config in configs_of(3, 2):
        folder = tmp_path / "runs" / config.run_id
        assert read_summary(folder).status == "done" and "training" in (folder / "run.log").read_text()


def test_two_sweeps_at_once_share_the_work(tmp_path):
    first, second = (sweeper(tmp_path, steps=6, runs=6, workers=1) for _ in range(2))
    assert [process.communicate(timeout=120) and process.returncode for process in (first, second)] == [0, 0]
    configs = configs_of(6, 6)
    assert [starts(tmp_path / "runs", config) for config in configs] == [1] * 6
    assert all(read_summary(tmp_path / "runs" / config.run_id).status == "done" for config in configs)


@pytest.mark.parametrize(("signum", "to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_a_signal_stops_within_seconds_with_the_work_saved(tmp_path, signum, to_group):
    configs = configs_of(2000, 2)
    process = sweeper(tmp_path, steps=2000, runs=2)
    pids = trainers(tmp_path, configs)
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


def test_a_second_signal_ends_a_sweep_and_its_workers_at_once(tmp_path):
    """Whatever the work does: here a step that never ends."""
    configs = configs_of(2000, 2, "hangs")
    process = sweeper(tmp_path, steps=2000, runs=2, fault="hangs")
    pids = trainers(tmp_path, configs)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)  # the sweep looks for signals twice a second, and then waits for its workers
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM and gone(pids, 5)
    process.stderr.close()


def test_a_killed_sweep_leaves_no_worker_behind(tmp_path):
    configs = configs_of(2000, 2)
    process = sweeper(tmp_path, steps=2000, runs=2)
    pids = trainers(tmp_path, configs)
    process.kill()
    process.communicate()
    assert gone(pids, 10)


def test_a_worker_that_does_not_stop_in_time_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.5)
    config = StandIn(fault="hangs")

    def interrupt() -> None:
        while not (tmp_path / config.run_id / "metrics.jsonl").exists():
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    interrupter = meanwhile(interrupt)
    with pytest.raises(Stopped):
        go(plan(config), tmp_path)
    interrupter.join()
    assert not children() and signals.stop_requested() is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

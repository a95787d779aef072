"""The soak itself: it kills what it says, and one that killed nothing has not passed."""

from __future__ import annotations

import os
import random
import subprocess
import threading

import soak


def test_a_worker_that_ended_by_itself_does_not_end_the_killing(monkeypatch):
    """The thread that kills once died at the first worker that was gone before it, and the soak went on undisturbed."""
    gone, alive = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "1000"])
    gone.wait()
    given, stop, counts = [[gone.pid], [], [alive.pid]], threading.Event(), {"workers_killed": 0}

    def workers() -> list[int]:
        if len(given) == 1:
            stop.set()
        return given.pop(0)

    monkeypatch.setattr(soak, "workers", workers)
    dice = random.Random(0)
    monkeypatch.setattr(dice, "uniform", lambda low, high: 0.01)
    soak._kill_workers(stop, dice, counts)
    assert not given and counts == {"workers_killed": 1} and alive.wait(10) == -9


def test_the_workers_are_found_while_others_end(monkeypatch):
    read = soak.Path.read_bytes
    monkeypatch.setattr(soak.Path, "read_text", lambda path: f"{os.getpid()} 999999999")
    monkeypatch.setattr(soak.Path, "read_bytes", lambda path: b"spawn_main" if str(os.getpid()) in str(path) else read(path))
    assert soak.workers() == [os.getpid()]


def test_a_soak_that_disturbed_nothing_says_so():
    nothing = {"workers_killed": 0, "sweeps_killed": 0, "sweeps_stopped": 0}
    assert soak.undisturbed(nothing) == ["worker was killed", "sweep was killed or stopped"]
    assert soak.undisturbed(nothing | {"workers_killed": 3}) == ["sweep was killed or stopped"]
    assert soak.undisturbed(nothing | {"workers_killed": 3, "sweeps_stopped": 1}) == []

"""Kills runs of one method at random points and resumes them: ``python killed_runs.py BASE FOLDER KIND POINTS``.

Each run is a fork of this process, which has everything imported already. Half of the points are calls of the system (a write,
of which half the bytes still reach the file; a sync; a rename; a removal), counted in a run never interrupted, and every other of
them one that writes a checkpoint; half are moments between 5 and 95 % of the run. So kills fall into steps, into evaluations and
into the writing of checkpoints alike.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny_runs
from disk_calls import forked, interfere, killed

from replication.train import run


def killed_after(act, seconds: float) -> int:
    """The same, killed from outside after so long."""
    pid = os.fork()
    if pid == 0:
        act()
        os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(base: str, folder: Path, kind: str, points: int) -> None:
    tiny_runs.noisy_rewards(pytest.MonkeyPatch())
    config = tiny_runs.tiny_config(base, kind, steps=6, eval_every=2, checkpoint_every=1)
    count = folder / "calls"

    def whole() -> None:
        seen = interfere(folder / "whole", None, killed)
        run(config, folder / "whole")
        count.write_text("\n".join(seen))

    import peft  # noqa: F401  (each fork would import it again)

    assert forked(whole) == 0
    started = time.monotonic()
    assert forked(lambda: run(config, folder / "timed")) == 0
    seconds = time.monotonic() - started
    calls = count.read_text().splitlines()
    of_checkpoints = [number for number, call in enumerate(calls) if re.match(r"(write|fsync|replace) checkpoints/", call)]
    wanted = tiny_runs.outcome(folder / "whole")
    dice = random.Random(f"kills {kind}")
    for point in range(points):
        there = folder / str(point)
        at = dice.uniform(0.05, 0.95)
        if point % 2 == 0:
            number = dice.choice(of_checkpoints) if point % 4 == 0 else int(at * len(calls))

            def act(number=number, there=there) -> None:
                interfere(there, number, killed)
                run(config, there)

            status, where = forked(act), f"in call {number} of {len(calls)} ({calls[number]})"
        else:
            status = 0
            while status == 0:  # it was quicker than the one that was timed: once more, from the start and sooner
                shutil.rmtree(there, ignore_errors=True)
                status = killed_after(lambda there=there: run(config, there), at * seconds)
                where = f"after {at:.0%} of the time"
                at *= 0.9
        assert status == -signal.SIGKILL, f"{where}: status {status}, not killed"
        begun = sorted(path.name[:13] for path in (there / "checkpoints").glob("step-*")) if there.exists() else []
        assert forked(lambda there=there: run(config, there)) == 0, where
        differ = [name for name, data in wanted.items() if tiny_runs.outcome(there).get(name) != data]
        assert not differ, f"{kind} killed {where}: {differ} differ"
        print(f"killed {where}, checkpoints {begun}: resumed, same bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))

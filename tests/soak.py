"""Smoke runs killed and resumed at random for MINUTES: ``python tests/soak.py MINUTES``; status 1 if anything was lost or grew.

Rounds alternate. In one this process sweeps, and its workers are killed; in the other the sweep is a process of its own, and is
killed whole or told to stop. After each round every run has the bytes of the first, undisturbed round. Between rounds this process
must not have grown by more than 64 MiB, nor by one open file, since its second round. A soak that disturbed nothing has shown
nothing: then the status is 1 too. results/local/tried.csv notes the counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tried import note

from replication.ablations import plan
from replication.sweep import run_plan

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("metrics.jsonl", "items.csv", "summary.json")
GROWTH = 64 * 2**20


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for name in NAMES for path in sorted(folder.glob(f"*/{name}"))]  # a run of the base has no metrics
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def workers() -> list[int]:
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def main(minutes: float) -> int:
    counts = dict.fromkeys(("rounds", "runs", "workers_killed", "sweeps_killed", "sweeps_stopped", "restarts"), 0)
    started = time.monotonic()
    status = soak(minutes, counts)
    note("soak", counts, failed=status, seconds=time.monotonic() - started)
    return status


def soak(minutes: float, counts: dict[str, int]) -> int:
    """Rounds until the time is up; counts what was done in ``counts``, and returns 1 if anything was lost or grew."""
    dice = random.Random(0)
    planned = plan("smoke", ["full_vs_sparse"])
    end = time.monotonic() + 60 * minutes
    wanted, first = {}, None
    while time.monotonic() < end or counts["rounds"] < 3:
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        disturb, own = counts["rounds"] > 0, counts["rounds"] % 2 == 0
        while True:
            stop = threading.Event()
            killer = threading.Thread(target=_kill_workers, args=(stop, dice, counts))
            if own:
                if disturb:
                    killer.start()
                missing = run_plan(planned, folder / "runs", workers=2, progress=False).missing
                stop.set()
                if disturb:
                    killer.join()
            else:
                missing = _in_a_process(folder, dice, counts)
            if not missing:
                break
            counts["restarts"] += 1
        found = contents(folder / "runs")
        wanted = wanted or found
        counts["rounds"] += 1
        counts["runs"] += sum(name.endswith("summary.json") for name in found)
        now = (resident(), len(os.listdir("/proc/self/fd")))
        first = now if counts["rounds"] == 2 else first
        print(f"{counts}; {now[0] / 2**20:.0f} MiB, {now[1]} open files", flush=True)
        if found != wanted:
            print(f"LOST: {sorted(name for name in wanted if found.get(name) != wanted[name])} in {folder}")
            return 1
        if first and (now[0] > first[0] + GROWTH or now[1] > first[1]):
            print(f"GREW: from {first} to {now}")
            return 1
        shutil.rmtree(folder)
    if idle := undisturbed(counts):
        print(f"NOTHING WAS DISTURBED: no {' and no '.join(idle)} in {minutes:g} minutes; give it more MINUTES")
        return 1
    print(f"nothing lost, nothing grew: {minutes:g} minutes")
    return 0


def undisturbed(counts: dict[str, int]) -> list[str]:
    """The kinds of disturbance that there were none of."""
    whole = counts["sweeps_killed"] + counts["sweeps_stopped"]
    kinds = {"worker was killed": counts["workers_killed"], "sweep was killed or stopped": whole}
    return [kind for kind, count in kinds.items() if not count]


def _kill_workers(stop: threading.Event, dice: random.Random, counts: dict[str, int]) -> None:
    while not stop.wait(dice.uniform(3, 12)):
        pids = workers()
        if pids:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile: the next one, then
                os.kill(dice.choice(pids), signal.SIGKILL)
                counts["workers_killed"] += 1


def _in_a_process(folder: Path, dice: random.Random, counts: dict[str, int]) -> bool:
    """Whether something is missing after a sweep that was, most times, killed or stopped."""
    words = [sys.executable, "-m", "replication", "sweep", "--profile", "smoke", "--ablation", "full_vs_sparse", "--workers", "2"]
    child = subprocess.Popen([*words, "--out", str(folder)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return child.wait(dice.uniform(3, 16)) != 0  # a whole sweep takes from 8 s on
    except subprocess.TimeoutExpired:
        # In turn, not by dice: the first soak threw SIGKILL not once in eight.
        signum = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[(counts["sweeps_killed"] + counts["sweeps_stopped"]) % 3]
        child.send_signal(signum)
        child.wait()
        counts["sweeps_killed" if signum == signal.SIGKILL else "sweeps_stopped"] += 1
        return True


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1])))

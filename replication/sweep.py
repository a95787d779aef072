"""What of a plan is missing, and running it in local worker processes.

What is missing is judged by the run directories alone, just before a run is handed out: two sweeps on one folder share the
work, and a run that some other process holds is waited for, never run twice.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from replication import preflight, signals
from replication.errors import Stopped, UserError
from replication.files import make_folder
from replication.manifest import cores
from replication.records import RunSummary, is_locked, mark_failed, read_failure, read_summary
from replication.worker import Answer, how_it_died, log_tail, work

if TYPE_CHECKING:
    from replication.ablations import PlannedRun

log = logging.getLogger("replication")

#: Seconds that workers get to save and stop; whoever needs longer is killed and goes on from its last checkpoint.
GRACE = 15.0
#: Seconds between two looks at signals and at the runs of other processes.
POLL = 0.5


@dataclass
class SweepResult:
    """How a sweep ended, by run id.

    Attributes:
        planned: every run of the plan, once.
        done: those with a finished run directory; ``diverged`` those whose training was not finite (also finished).
        failed: why a run failed in this sweep.
    """

    planned: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Planned runs that are not finished, in the order of the plan."""
        finished = {*self.done, *self.diverged}
        return [run_id for run_id in self.planned if run_id not in finished]

    @property
    def ok(self) -> bool:
        """Whether every planned run is finished; a diverged one is a result and counts."""
        return not self.missing


@dataclass
class _Worker:
    process: Any
    connection: Connection
    run_id: str | None = None
    started: float = 0.0


def run_plan(
    planned: Sequence[PlannedRun],
    runs_dir: str | Path,
    workers: int | None = None,
    progress: bool = True,
    *,
    engine: str = "local",
    address: str = "auto",
    target: str = "replication.train:run",
) -> SweepResult:
    """Run what is missing of a plan into ``runs_dir``/<run_id>, longest first.

    A run whose worker dies or raises is failed, with the reason and the end of its log in failure.json; the others go on, and
    the next sweep tries it again.

    Args:
        planned: the plan; a config in several ablations is run once.
        runs_dir: the folder of run directories.
        workers: processes; default one for each core (or GPU, if the configs ask for one).
        progress: show a bar over all runs and a line for each finished one, on stderr.
        engine: "local" for processes of this machine, "ray" for a Ray cluster (``workers`` is then the cluster's matter).
        address: of that cluster: "auto", or host:port.
        target: "module:function" called as function(config, folder) -> RunSummary.

    Raises:
        UserError: workers below 1, something that the runs need is missing, or the folder cannot be made.
        Stopped: SIGINT or SIGTERM came; the workers have saved and ended.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers must be 1 or more, not {workers}")
    if engine not in ("local", "ray"):
        raise UserError(f"unknown engine {engine!r}: choose local or ray")
    configs = [run.config for run in planned]
    preflight.require(configs, runs_dir)
    make_folder(Path(runs_dir))
    if progress and (line := preflight.announce_uncounted(configs)):
        print(f"warning: {line}", file=sys.stderr)
    if progress and (line := preflight.announce_hours(configs, runs_dir)):
        print(line, file=sys.stderr)
    with signals.handled():
        sweep = Sweep(planned, Path(runs_dir), workers, progress, target)
        if engine == "ray":
            from replication import ray_engine

            return ray_engine.run(sweep, address, target)
        return sweep.run()


class Sweep:
    """The state of a sweep: what waits, what came out of it, and the worker processes of the local engine."""

    def __init__(self, planned: Sequence[PlannedRun], runs_dir: Path, workers: int | None, progress: bool, target: str) -> None:
        self.configs = {run.config.run_id: run.config for run in planned}
        self.runs_dir = runs_dir
        self.target = target
        self.result = SweepResult(planned=list(self.configs))
        self.waiting = sorted((run_id for run_id in self.configs if not self._is_finished(run_id)), key=self._cost, reverse=True)
        # A note of a failure that is not one of these was written while we ran, by another sweep: no second try now.
        self.earlier_failures = {run_id: read_failure(self.folder(run_id)) for run_id in self.waiting}
        self.gpus = _gpus(self.configs[run_id] for run_id in self.waiting)
        self.limit = min(workers or len(self.gpus) or cores(), len(self.waiting))
        self.workers: list[_Worker | None] = [None] * self.limit
        self.progress = progress
        # Where there is no terminal, the lines of finished runs alone say how far it is.
        self.bar = tqdm(
            total=sum(map(self._cost, self.waiting)),
            disable=not (progress and self.waiting and sys.stderr.isatty()),
            smoothing=0,
            bar_format="{desc} {percentage:3.0f}%|{bar:30}| [{elapsed}, {remaining} to go]",
        )
        self.started = time.monotonic()
        self.cost_done = 0.0
        self.to_do = len(self.waiting)

    def run(self) -> SweepResult:
        if self.progress:
            finished = len(self.configs) - self.to_do
            self._say(f"{finished} of {len(self.configs)} runs are finished, {self.to_do} to run in {self.limit} processes")
        self._show()
        try:
            while self.waiting or self._busy():
                signum = signals.stop_requested()
                if signum is not None:
                    self._end_workers()
                    raise Stopped(signum)
                self._hand_out()
                self._collect(POLL)
        finally:
            self._end_workers()
            self.bar.close()
        return self.result

    # Handing out ------------------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        for slot, worker in enumerate(self.workers):
            if worker is not None and worker.run_id is not None:
                continue
            run_id = self.next_run()
            if run_id is None:
                return
            if worker is None:
                worker = self.workers[slot] = self._start_worker(slot)
            worker.run_id, worker.started = run_id, time.monotonic()
            try:
                worker.connection.send((self.configs[run_id], str(self.folder(run_id))))
            except OSError:  # it died while idle: nothing was begun
                self.waiting.insert(0, run_id)
                self._discard(slot)

    def next_run(self) -> str | None:
        for run_id in list(self.waiting):
            if self._is_finished(run_id):  # by another sweep, meanwhile
                self.waiting.remove(run_id)
                self._ended(run_id, "finished by another process")
            elif is_locked(self.folder(run_id)):
                continue
            elif (failure := read_failure(self.folder(run_id))) is not None and failure != self.earlier_failures[run_id]:
                self.waiting.remove(run_id)
                self.result.failed[run_id] = failure["reason"]
                self._ended(run_id, f"failed in another process: {failure['reason']}")
            else:
                self.waiting.remove(run_id)
                return run_id
        return None

    def _start_worker(self, slot: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        process = context.Process(target=work, args=(theirs, self.target, gpu), daemon=True)
        # A Ctrl-C while the new process is still importing would kill it with a traceback on the terminal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours)

    # Collecting -------------------------------------------------------------------------------------------------------

    def _collect(self, seconds: float) -> None:
        slots = {worker.connection: slot for slot, worker in self._busy()}
        if not slots:
            time.sleep(seconds)  # all that is left is being run by others
        for connection in wait(list(slots), seconds) if slots else ():
            slot = slots[connection]
            worker = self.workers[slot]
            run_id, worker.run_id = worker.run_id, None
            try:
                answer = connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                answer = ("failed", how_it_died(worker.process.exitcode))
                self._discard(slot)
            else:
                if answer[0] == "stopped":  # somebody told this one worker alone to stop: it is ending
                    self._discard(slot)
            self.take(run_id, answer, time.monotonic() - worker.started)

    def take(self, run_id: str, answer: Answer, seconds: float) -> None:
        outcome, reason = answer
        if outcome in ("locked", "stopped"):
            self.waiting.append(run_id)
        elif outcome == "failed":
            self.result.failed[run_id] = reason or "no reason given"
            try:
                mark_failed(self.folder(run_id), self.result.failed[run_id], log_tail(self.folder(run_id) / "run.log"))
            except UserError as error:
                log.warning("the failure of %s could not be noted: %s", run_id, error)
            self._ended(run_id, f"failed after {seconds:.0f} s: {self.result.failed[run_id]}")
        elif self._is_finished(run_id):
            self._ended(run_id, f"{outcome} after {seconds:.0f} s{f': {reason}' if reason else ''}")
        else:
            self.result.failed[run_id] = "its run directory has no summary"
            self._ended(run_id, f"failed after {seconds:.0f} s: {self.result.failed[run_id]}")

    def _ended(self, run_id: str, how: str) -> None:
        config = self.configs[run_id]
        self.cost_done += self._cost(run_id)
        left = [*self.waiting, *(worker.run_id for _, worker in self._busy())]
        seconds = (time.monotonic() - self.started) * sum(map(self._cost, left)) / self.cost_done
        where = f"{self.to_do - len(left)}/{self.to_do}, {seconds / 60:.0f} min to go"
        self._say(f"{run_id} {config.task} {config.method} seed {config.seed}: {how} ({where})")
        self.bar.update(self._cost(run_id))
        self._show()

    # The end ----------------------------------------------------------------------------------------------------------

    def _end_workers(self) -> None:
        """Tell every worker to save and stop; kill those that do not within GRACE seconds, or at a second signal."""
        running = [worker for worker in self.workers if worker is not None]
        self.workers = [None] * self.limit
        for worker in running:
            if worker.run_id is not None:
                with contextlib.suppress(OSError):
                    os.kill(worker.process.pid, signal.SIGTERM)
            else:
                worker.connection.close()
        deadline = time.monotonic() + GRACE
        try:
            for worker in running:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in running:
                if worker.process.is_alive():
                    worker.process.kill()
                worker.process.join()
                worker.connection.close()
                worker.process.close()

    def _discard(self, slot: int) -> None:
        worker = self.workers[slot]
        self.workers[slot] = None
        worker.connection.close()
        if worker.process.is_alive():
            worker.process.kill()
        worker.process.join()
        worker.process.close()

    # Small things -----------------------------------------------------------------------------------------------------

    def _busy(self) -> list[tuple[int, _Worker]]:
        return [(slot, worker) for slot, worker in enumerate(self.workers) if worker is not None and worker.run_id is not None]

    def folder(self, run_id: str) -> Path:
        return self.runs_dir / run_id

    def _is_finished(self, run_id: str) -> bool:
        """Whether the run's directory is whole; then it is in the result."""
        summary: RunSummary | None = read_summary(self.folder(run_id))
        if summary is None or summary.run_id != run_id:
            return False
        (self.result.diverged if summary.status == "diverged" else self.result.done).append(run_id)
        return True

    def _cost(self, run_id: str) -> float:
        """Completions a run samples: what its time is nearly proportional to."""
        config = self.configs[run_id]
        of = {"eval_every": 1, "eval_items": 0, "test_items": 0, "prompts_per_step": 1, "group_size": 1} | config.model_dump()
        evaluations = 2 + config.steps / of["eval_every"]
        trained = config.steps * of["prompts_per_step"] * of["group_size"]
        return 1 + trained + evaluations * of["eval_items"] + of["test_items"]

    def _say(self, line: str) -> None:
        if self.progress:
            tqdm.write(line, file=sys.stderr)

    def _show(self) -> None:
        left = len(self.waiting) + len(self._busy())
        failed = f", {len(self.result.failed)} failed" if self.result.failed else ""
        self.bar.set_description_str(f"{self.to_do - left}/{self.to_do} runs{failed}")


def _gpus(configs: Any) -> list[str]:
    """The GPUs to hand to the workers, one each, if the configs ask for any."""
    if not any(getattr(config, "device", "cpu") in ("cuda", "auto") for config in configs):
        return []
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return names[:count] if len(names) >= count and names[0] else [str(number) for number in range(count)]

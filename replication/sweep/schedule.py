"""What of a plan is missing, and having it run: by worker processes of this machine, or by a Ray cluster.

What is missing is judged by the run directories alone, just before a run is handed out: two sweeps on one folder share the
work, and a run that some other process holds is waited for, never run twice.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from replication import signals
from replication.console import say
from replication.errors import UserError
from replication.runs import RunSummary, is_locked, make_folder, mark_failed, read_failure, read_summary
from replication.sweep import pool, preflight, ray
from replication.sweep.worker import Answer, log_tail

if TYPE_CHECKING:
    from replication.ablations import PlannedRun

log = logging.getLogger("replication")


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
        UserError: workers below 1, a GPU chosen by number, something that the runs need is missing, or the folder cannot be made.
        Stopped: a signal came; the workers have saved and ended.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers must be 1 or more, not {workers}")
    if engine not in ("local", "ray"):
        raise UserError(f"unknown engine {engine!r}: choose local or ray")
    configs = [run.config for run in planned]
    if numbered := [device for c in configs if (device := getattr(c, "device", "cpu")).startswith("cuda:")]:
        advice = f"set device=cuda, and CUDA_VISIBLE_DEVICES={numbered[0].partition(':')[2]} to use only that one"
        raise UserError(f"device={numbered[0]}: a sweep gives each run a GPU of its own: {advice}")
    preflight.require(configs, runs_dir, here=engine == "local")
    make_folder(Path(runs_dir))
    if progress and (line := preflight.announce_uncounted(configs)):
        say(f"warning: {line}")
    sweep = Sweep(planned, Path(runs_dir), progress)
    try:
        with signals.handled():
            if engine == "ray":
                ray.run(sweep, address, target)
            else:
                pool.run(sweep, workers, target)
    finally:
        sweep.bar.close()
    return sweep.result


class Sweep:
    """The state of a sweep, whatever engine runs it: what waits, what is running, and what came out."""

    def __init__(self, planned: Sequence[PlannedRun], runs_dir: Path, progress: bool) -> None:
        self.configs = {run.config.run_id: run.config for run in planned}
        self.runs_dir = runs_dir
        self.result = SweepResult(planned=list(self.configs))
        waiting = (run_id for run_id in self.configs if not self._is_surely_finished(run_id))
        self.waiting = sorted(waiting, key=self._cost, reverse=True)
        self.running: set[str] = set()
        # A note of a failure that is not one of these was written while we ran, by another sweep: no second try now.
        self.earlier_failures: dict[str, Any] = {}
        for run_id in self.waiting:
            with contextlib.suppress(OSError):
                self.earlier_failures[run_id] = read_failure(self.folder(run_id))
        self.held: set[str] = set()
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

    def announce(self, where: str) -> None:
        """Say how much there is to do, and where."""
        finished = len(self.configs) - self.to_do
        self._say(f"{finished} of {len(self.configs)} runs are finished, {self.to_do} to run {where}")
        self._show()

    def next_run(self) -> str | None:
        """The next run to begin, which counts as running from now on; None if there is none that nobody holds."""
        for run_id in list(self.waiting):
            try:
                if self._is_finished(run_id):  # by another sweep, meanwhile
                    self.waiting.remove(run_id)
                    self._ended(run_id, "finished by another process")
                elif is_locked(self.folder(run_id)):
                    continue
                elif (failure := read_failure(self.folder(run_id))) is not None and failure != self.earlier_failures.get(run_id):
                    self.waiting.remove(run_id)
                    self.result.failed[run_id] = failure["reason"]
                    self._ended(run_id, f"failed in another process: {failure['reason']}")
                else:
                    self.waiting.remove(run_id)
                    self.running.add(run_id)
                    return run_id
            except (UserError, OSError) as error:  # its folder cannot be used: that is this run's failure and no other's
                self.waiting.remove(run_id)
                self._failed(run_id, str(error), "failed")
        if not self.running and (held := set(self.waiting)) - self.held:
            self.held = held
            self._say(f"waiting for other processes, which hold all that is left: {', '.join(self.waiting)}")
        return None

    def put_back(self, run_id: str) -> None:
        """Let a run that was handed out wait again: nothing of it was begun."""
        self.running.discard(run_id)
        self.waiting.insert(0, run_id)

    def take(self, run_id: str, answer: Answer, seconds: float) -> None:
        """Note how a run ended: its answer (see ``worker.work``) and how long it took."""
        outcome, reason = answer
        after = f"after {seconds:.0f} s"
        self.running.discard(run_id)
        if outcome in ("locked", "stopped"):
            self.waiting.append(run_id)
        elif self._is_surely_finished(run_id):  # whatever its worker says: it may have died when all was written
            how = "finished, though its worker failed" if outcome == "failed" else outcome
            self._ended(run_id, f"{how} {after}{f': {reason}' if reason else ''}")
        else:
            self._failed(run_id, (outcome == "failed" and reason) or "its run directory has no summary", f"failed {after}")

    def _failed(self, run_id: str, reason: str, how: str) -> None:
        self.result.failed[run_id] = reason
        try:
            mark_failed(self.folder(run_id), reason, log_tail(self.folder(run_id) / "run.log"))
        except (UserError, OSError) as error:
            log.warning("the failure of %s could not be noted: %s", run_id, error)
        self._ended(run_id, f"{how}: {reason}")

    def _ended(self, run_id: str, how: str) -> None:
        config = self.configs[run_id]
        self.cost_done += self._cost(run_id)
        left = [*self.waiting, *self.running]
        seconds = (time.monotonic() - self.started) * sum(map(self._cost, left)) / self.cost_done
        where = f"{self.to_do - len(left)}/{self.to_do}, {seconds / 60:.0f} min to go"
        self._say(f"{run_id} {config.task} {config.method} seed {config.seed}: {how} ({where})")
        self.bar.update(self._cost(run_id))
        self._show()

    def folder(self, run_id: str) -> Path:
        return self.runs_dir / run_id

    def _is_finished(self, run_id: str) -> bool:
        """Whether the run's directory is whole; then it is in the result."""
        summary: RunSummary | None = read_summary(self.folder(run_id))
        if summary is None or summary.run_id != run_id:
            return False
        (self.result.diverged if summary.status == "diverged" else self.result.done).append(run_id)
        return True

    def _is_surely_finished(self, run_id: str) -> bool:
        """The same; a directory that cannot be read is not: ``next_run`` or its worker say what is wrong with it."""
        try:
            return self._is_finished(run_id)
        except (UserError, OSError):
            return False

    def _cost(self, run_id: str) -> float:
        """Completions a run samples: what its time is nearly proportional to."""
        config = self.configs[run_id]
        of = {"eval_every": 1, "eval_items": 0, "test_items": 0, "prompts_per_step": 1, "group_size": 1} | config.model_dump()
        evaluations = 2 + config.steps / of["eval_every"]
        trained = config.steps * of["prompts_per_step"] * of["group_size"]
        return 1 + trained + evaluations * of["eval_items"] + of["test_items"]

    def _say(self, line: str) -> None:
        if self.progress:
            say(line)

    def _show(self) -> None:
        left = len(self.waiting) + len(self.running)
        failed = f", {len(self.result.failed)} failed" if self.result.failed else ""
        self.bar.set_description_str(f"{self.to_do - left}/{self.to_do} runs{failed}")

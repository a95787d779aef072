"""The runs of a sweep: which wait, which are running, and how they ended.

A run is missing if its directory has no summary, and the directory is read again just before its run is handed out. So two sweeps
on one folder share the work: a run that another process holds is waited for and never run twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from replication.console import say
from replication.errors import UserError
from replication.runs import is_locked, mark_failed, read_summary
from replication.sweep.worker import Answer, log_tail

if TYPE_CHECKING:
    from replication.ablations import PlannedRun
    from replication.config import ExperimentConfig


@dataclass
class SweepResult:
    """How a sweep ended, by run id.

    Attributes:
        planned: every run of the plan, once.
        done: those with a finished run directory.
        diverged: those whose training was not finite; they are finished too.
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


class RunQueue:
    """The runs of one sweep by state: waiting, running, ended. A pool of processes or a cluster takes them from here."""

    def __init__(self, planned: Sequence[PlannedRun], runs_dir: Path) -> None:
        self.configs = {run.config.run_id: run.config for run in planned}
        self.runs_dir = runs_dir
        self.result = SweepResult(planned=list(self.configs))
        # In the order of the plan, the headline first: a sweep that is cut short has what matters most.
        self.waiting = [run_id for run_id in self.configs if not self._is_finished(run_id)]
        self.running: set[str] = set()
        self._to_do = len(self.waiting)
        self._started = time.monotonic()
        self._cost_done = 0.0
        self._waits_for_others = False

    def folder(self, run_id: str) -> Path:
        """The run directory of a run."""
        return self.runs_dir / run_id

    def announce(self, where: str) -> None:
        """Say how much there is to do, and where."""
        finished = len(self.configs) - self._to_do
        say(f"{finished} of {len(self.configs)} runs are finished, {self._to_do} to run {where}")

    def next_run(self) -> str | None:
        """The next run to start, which counts as running from now on; None if other processes hold all that wait."""
        for run_id in list(self.waiting):
            if self._is_finished(run_id):
                self.waiting.remove(run_id)
                self._ended(run_id, "finished by another process")
                continue
            try:
                held = is_locked(self.folder(run_id))
            except OSError as error:  # its folder cannot be used: only this run fails
                self.waiting.remove(run_id)
                self._failed(run_id, f"{self.folder(run_id)}: {error.strerror or error}", "failed")
                continue
            if not held:
                self.waiting.remove(run_id)
                self.running.add(run_id)
                return run_id
        if self.waiting and not self.running and not self._waits_for_others:
            self._waits_for_others = True
            say(f"waiting for other processes, which hold all that is left: {', '.join(self.waiting)}")
        return None

    def take(self, run_id: str, answer: Answer, seconds: float) -> None:
        """Note how a run ended: its worker's answer and how long it took."""
        outcome, reason = answer
        self.running.discard(run_id)
        if outcome == "locked":
            self.waiting.append(run_id)
        elif self._is_finished(run_id):  # its worker may have died after all was written
            how = "finished, though its worker failed" if outcome == "failed" else outcome
            self._ended(run_id, f"{how} after {seconds:.0f} s" + (f": {reason}" if reason else ""))
        else:
            self._failed(run_id, reason or "its run directory has no summary", f"failed after {seconds:.0f} s")

    def _failed(self, run_id: str, reason: str, how: str) -> None:
        self.result.failed[run_id] = reason
        try:
            mark_failed(self.folder(run_id), reason, log_tail(self.folder(run_id) / "run.log"))
        except UserError as error:
            say(f"warning: the failure of {run_id} could not be noted: {error}")
        self._ended(run_id, f"{how}: {reason}")

    def _ended(self, run_id: str, how: str) -> None:
        config = self.configs[run_id]
        self._cost_done += cost(config)
        left = [*self.waiting, *self.running]
        cost_left = sum(cost(self.configs[other]) for other in left)
        minutes = (time.monotonic() - self._started) * cost_left / self._cost_done / 60
        where = f"{self._to_do - len(left)}/{self._to_do}, {minutes:.0f} min to go"
        say(f"{run_id} {config.task} {config.method} seed {config.seed}: {how} ({where})")

    def _is_finished(self, run_id: str) -> bool:
        """Whether the run's directory is whole; then it is in the result. One that cannot be read is left to its worker to name."""
        try:
            summary = read_summary(self.folder(run_id))
        except UserError:
            return False
        if summary is None or summary.run_id != run_id:
            return False
        (self.result.diverged if summary.status == "diverged" else self.result.done).append(run_id)
        return True


def cost(config: ExperimentConfig) -> float:
    """Completions that a run samples; its time is nearly proportional to them."""
    trained = config.steps * config.prompts_per_step * config.group_size
    validations = 2 + 2 * math.ceil(config.steps / config.eval_every)  # greedy and sampled each time; at the end two splits
    return 1 + trained + validations * config.eval_items + (1 + config.kl_samples) * config.test_items

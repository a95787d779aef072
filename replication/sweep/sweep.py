"""Run the missing runs of a plan, in processes of this machine or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from replication import signals
from replication.console import say
from replication.errors import UserError
from replication.runs import make_folder
from replication.sweep import memory_fit, pool, preflight, ray
from replication.sweep.queue import RunQueue, SweepResult

if TYPE_CHECKING:
    from replication.ablations import PlannedRun


def run_plan(
    planned: Sequence[PlannedRun],
    runs_dir: str | Path,
    workers: int | None = None,
    *,
    engine: str = "local",
    address: str = "auto",
    target: str = "replication.train:run",
) -> SweepResult:
    """Run the missing runs of a plan into ``runs_dir``/<run_id>, in the order of the plan.

    A run that raises, or whose worker dies, has failed: failure.json has the reason and the end of its log. The others go on, and
    the next sweep tries it again.

    Args:
        planned: the plan; a config in several ablations is run once.
        runs_dir: the folder of run directories.
        workers: processes; default one for each core (or GPU, if the configs ask for one). A Ray cluster has its own.
        engine: "local" for processes of this machine, "ray" for a Ray cluster.
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
    if numbered := next((config.device for config in configs if config.device.startswith("cuda:")), None):
        advice = f"set device=cuda, and CUDA_VISIBLE_DEVICES={numbered.partition(':')[2]} to use only that one"
        raise UserError(f"device={numbered}: a sweep gives each run a GPU of its own: {advice}")
    preflight.check_needs(configs, runs_dir, here=engine == "local")
    make_folder(Path(runs_dir))
    if line := preflight.uncounted_claims(configs):
        say(f"warning: {line}")
    queue = RunQueue(planned, Path(runs_dir))
    with signals.handled():
        if queue.waiting and engine == "ray":
            ray.run(queue, address, target)
        elif queue.waiting:
            pool.run(queue, _measured(queue, workers), target)
    return queue.result


def _measured(queue: RunQueue, workers: int | None) -> int | None:
    """How many processes to use. For a large model, the settings that fit are measured first and put into its runs."""
    waiting = [queue.configs[run_id] for run_id in queue.waiting]
    if not any(map(memory_fit.is_demanding, waiting)):
        return workers
    found = memory_fit.fitting(list(queue.configs.values()), queue.runs_dir)
    for run_id, config in queue.configs.items():
        if memory_fit.is_large(config):
            queue.configs[run_id] = config.model_copy(update=found.settings)
    workers = min(workers or found.workers, len(waiting))
    for line in memory_fit.sentences(found, waiting, workers):
        say(line)
    return workers

"""The missing runs of a sweep on a Ray cluster (extra ``cluster``): each run is a task, which Ray starts again if its node is lost.

Assumed: every node sees the results folder (and a local model or data file) at the same path, has this project installed, and its
file system passes on locks between nodes (local disks, NFS 4, Lustre with flock). A run that is started again goes on from the
checkpoint in its folder, as everywhere.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replication import signals
from replication.errors import Stopped, UserError, first_line
from replication.sweep import preflight
from replication.sweep.queue import RunQueue
from replication.sweep.worker import Answer, one_run

if TYPE_CHECKING:
    from replication.config import ExperimentConfig

#: How often a run is started again after its worker or node was lost.
RETRIES = 5


def run(queue: RunQueue, address: str, target: str) -> None:
    """Run what waits in ``queue`` on the cluster at ``address`` ("auto" or host:port), one CPU per thread, one GPU each.

    Raises:
        UserError: Ray is not installed, no cluster answers, or the configs ask for a GPU that the cluster does not have.
        Stopped: a signal came; the runs have saved.
    """
    try:
        import ray
    except ImportError:
        raise UserError("ENGINE=ray needs Ray: install it with `pip install -e '.[cluster]'` on every node") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster answers at {address} ({first_line(error)}): start one with `ray start --head`") from None
    try:
        _run(ray, queue, target)
    finally:
        ray.shutdown()


def _run(ray: Any, queue: RunQueue, target: str) -> None:
    gpus = ray.cluster_resources().get("GPU", 0)
    if not gpus and (problem := preflight.gpu_problem([queue.configs[run_id] for run_id in queue.waiting], "the cluster has none")):
        raise UserError(f"these runs cannot start there: {problem}")
    task = ray.remote(_one_run)
    queue.announce("on the Ray cluster")
    running: dict[Any, tuple[str, float]] = {}
    while queue.waiting or running:
        if signum := signals.stop_requested():
            # Ray raises the SIGINT of Python in the worker, whose handler notes it: the run saves and stops.
            for reference in running:
                ray.cancel(reference, force=False)
            ray.wait(list(running), num_returns=len(running), timeout=signals.GRACE) if running else None
            raise Stopped(signum)
        while (run_id := queue.next_run()) is not None:
            config = queue.configs[run_id]
            needs = {"num_cpus": config.threads, "num_gpus": int(gpus > 0 and config.device != "cpu")}
            options = task.options(**needs, max_retries=RETRIES, name=run_id)
            reference = options.remote(target, config, str(queue.folder(run_id).resolve()), os.getcwd())
            running[reference] = (run_id, time.monotonic())
        if not running:
            time.sleep(signals.POLL)  # other processes hold all that is left
            continue
        for reference in ray.wait(list(running), timeout=signals.POLL)[0]:
            run_id, started = running.pop(reference)
            queue.take(run_id, _answer(ray, reference), time.monotonic() - started)


def _answer(ray: Any, reference: Any) -> Answer:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return "failed", f"its worker was lost {RETRIES + 1} times or its node is gone ({first_line(error, with_type=True)})"


def _one_run(target: str, config: ExperimentConfig, folder: str, started_in: str) -> Answer:
    """In a worker of the cluster: wait while a worker that is being lost still holds the run, then do it.

    ``started_in`` is the folder of the sweep: a relative path of data or model means the same file on every node that has it.
    """
    deadline = time.monotonic() + signals.GRACE
    with contextlib.chdir(started_in) if os.path.isdir(started_in) else contextlib.nullcontext(), signals.handled():
        while True:
            answer = one_run(target, config, Path(folder))
            if answer[0] != "locked" or time.monotonic() > deadline:
                return answer
            time.sleep(signals.POLL)

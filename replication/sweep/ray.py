"""The missing runs of a sweep on a Ray cluster (extra ``cluster``): each run is a task, Ray starts it again when its node is lost.

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
from replication.errors import Stopped, UserError
from replication.sweep import preflight
from replication.sweep.worker import GRACE, POLL, Answer, one_run

if TYPE_CHECKING:
    from replication.sweep.schedule import Sweep

#: How often a run is started again after its worker or node was lost.
RETRIES = 5


def run(sweep: Sweep, address: str, target: str) -> None:
    """Run what is missing of ``sweep`` on the cluster at ``address`` ("auto" or host:port), one CPU per thread, one GPU each.

    Raises:
        UserError: Ray is not installed, no cluster answers, or the configs ask for a GPU that the cluster does not have.
        Stopped: a signal came; the runs have saved.
    """
    if not sweep.waiting:
        return
    try:
        import ray
    except ImportError:
        raise UserError("ENGINE=ray needs Ray: install it with `pip install -e '.[cluster]'` on every node") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"no Ray cluster answers at {address} ({first}): start one with `ray start --head`") from None
    try:
        _run(ray, sweep, target)
    finally:
        ray.shutdown()


def _run(ray: Any, sweep: Sweep, target: str) -> None:
    gpus = ray.cluster_resources().get("GPU", 0)
    demanding = [config for run_id in sweep.waiting if getattr(config := sweep.configs[run_id], "device", "cpu") != "cpu"]
    if not gpus and (problem := preflight.gpu_problem(demanding, "the cluster has none")):
        raise UserError(f"these runs cannot start there, nothing was begun: {problem}")
    task = ray.remote(_one_run)
    sweep.announce("on the Ray cluster")
    running: dict[Any, tuple[str, float]] = {}
    while sweep.waiting or running:
        signum = signals.stop_requested()
        if signum is not None:
            # Ray raises the SIGINT of Python in the worker, whose handler notes it: the run saves and stops.
            for reference in running:
                ray.cancel(reference, force=False)
            ray.wait(list(running), num_returns=len(running), timeout=GRACE) if running else None
            raise Stopped(signum)
        while (run_id := sweep.next_run()) is not None:
            config = sweep.configs[run_id]
            on_gpu = gpus > 0 and getattr(config, "device", "cpu") != "cpu"
            needs = {"num_cpus": getattr(config, "threads", 1), "num_gpus": int(on_gpu)}
            options = task.options(**needs, max_retries=RETRIES, name=run_id)
            reference = options.remote(target, config, str(sweep.folder(run_id).resolve()), os.getcwd())
            running[reference] = (run_id, time.monotonic())
        ready = ray.wait(list(running), timeout=POLL)[0] if running else time.sleep(POLL) or []
        for reference in ready:
            run_id, started = running.pop(reference)
            sweep.take(run_id, _answer(ray, reference), time.monotonic() - started)


def _answer(ray: Any, reference: Any) -> Answer:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        first = next(iter(str(error).strip().splitlines()), "")
        return "failed", f"its worker was lost {RETRIES + 1} times or its node is gone ({type(error).__name__}: {first})"


def _one_run(target: str, config: Any, folder: str, started_in: str) -> Answer:
    """In a worker of the cluster: wait while a worker that is being lost still holds the run, then do it.

    ``started_in`` is the folder of the sweep: a relative path of data or model means the same file on every node.
    """
    deadline = time.monotonic() + GRACE
    # Where the node does not have that folder, a relative path is named as missing, and an absolute one is all that is needed.
    with contextlib.chdir(started_in) if os.path.isdir(started_in) else contextlib.nullcontext(), signals.handled():
        while True:
            answer = one_run(target, config, Path(folder))
            if answer[0] != "locked" or time.monotonic() > deadline:
                return answer
            time.sleep(POLL)

"""The missing runs of a sweep in worker processes of this machine, one for each core or GPU."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import torch

from replication import signals
from replication.runs import cores
from replication.sweep.queue import RunQueue
from replication.sweep.worker import how_it_died, work

if TYPE_CHECKING:
    from replication.config import ExperimentConfig


def run(queue: RunQueue, workers: int | None, target: str) -> None:
    """Run what waits in ``queue`` in ``workers`` processes; a worker that dies fails its run and is replaced.

    Raises:
        Stopped: a signal came; the workers have saved and ended.
    """
    own = gpus(queue.configs[run_id] for run_id in queue.waiting)
    pool = _Pool(queue, min(workers or len(own) or cores(), len(queue.waiting)), own, target)
    queue.announce(f"in {len(pool.workers)} processes")
    try:
        while queue.waiting or queue.running:
            signals.raise_if_stopped()
            pool.hand_out()
            pool.collect()
    finally:
        pool.end()


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    run_id: str | None = None
    started: float = 0.0


class _Pool:
    """The worker processes, each started when there is something for it to do."""

    def __init__(self, queue: RunQueue, limit: int, gpus: list[str], target: str) -> None:
        self.queue = queue
        self.gpus = gpus
        self.target = target
        self.workers: list[_Worker | None] = [None] * limit

    def hand_out(self) -> None:
        for slot, worker in enumerate(self.workers):
            if worker is not None and worker.run_id is not None:
                continue
            run_id = self.queue.next_run()
            if run_id is None:
                return
            worker = self.workers[slot] = worker or self._start(slot)
            worker.run_id, worker.started = run_id, time.monotonic()
            with contextlib.suppress(OSError):  # it died while it had nothing to do: ``collect`` finds out
                worker.connection.send((self.queue.configs[run_id], str(self.queue.folder(run_id))))

    def _start(self, slot: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        process = context.Process(target=work, args=(theirs, self.target, gpu), daemon=True)
        # A Ctrl-C while the new process is still importing would kill it with a traceback on the terminal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours)

    def collect(self) -> None:
        busy = {worker.connection: slot for slot, worker in enumerate(self.workers) if worker is not None and worker.run_id}
        if not busy:
            time.sleep(signals.POLL)  # other processes hold all that is left
        for connection in wait(list(busy), signals.POLL) if busy else ():
            slot = busy[connection]
            worker = self.workers[slot]
            run_id, worker.run_id = worker.run_id, None
            try:
                answer = connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                answer = ("failed", how_it_died(worker.process.exitcode))
                self.workers[slot] = None
                connection.close()
            self.queue.take(run_id, answer, time.monotonic() - worker.started)

    def end(self) -> None:
        """Tell every worker to save and stop; kill those that do not within GRACE seconds."""
        running = [worker for worker in self.workers if worker is not None]
        for worker in running:
            if worker.run_id is None:
                worker.connection.close()
            else:
                worker.process.terminate()
        deadline = time.monotonic() + signals.GRACE
        for worker in running:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.connection.close()


def gpus(configs: Iterable[ExperimentConfig]) -> list[str]:
    """The GPUs to hand to the workers, one each, if the configs ask for any."""
    if not any(config.device in ("cuda", "auto") for config in configs):
        return []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0  # a driver that is too old still counts
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return names[:count] if len(names) >= count and names[0] else [str(number) for number in range(count)]

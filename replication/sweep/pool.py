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
from typing import TYPE_CHECKING, Any

from replication import signals
from replication.errors import Stopped, UserError
from replication.runs import cores
from replication.sweep.worker import GRACE, POLL, how_it_died, work

if TYPE_CHECKING:
    from replication.sweep.schedule import Sweep


def run(sweep: Sweep, workers: int | None, target: str) -> None:
    """Run what is missing of ``sweep`` in ``workers`` processes; a worker that dies fails its run and is replaced.

    Raises:
        UserError: not one worker can be started.
        Stopped: a signal came; the workers have saved and ended.
    """
    gpus = _gpus(sweep.configs[run_id] for run_id in sweep.waiting)
    pool = _Pool(sweep, min(workers or len(gpus) or cores(), len(sweep.waiting)), gpus, target)
    sweep.announce(f"in {len(pool.workers)} processes")
    try:
        while sweep.waiting or sweep.running:
            signum = signals.stop_requested()
            if signum is not None:
                pool.end()
                raise Stopped(signum)
            pool.hand_out()
            pool.collect(POLL)
    finally:
        pool.end()


@dataclass
class _Worker:
    process: Any
    connection: Connection
    run_id: str | None = None
    started: float = 0.0


class _Pool:
    """The worker processes, each started when there is first something for it to do."""

    def __init__(self, sweep: Sweep, limit: int, gpus: list[str], target: str) -> None:
        self.sweep = sweep
        self.gpus = gpus
        self.target = target
        self.workers: list[_Worker | None] = [None] * limit

    def hand_out(self) -> None:
        for slot, worker in enumerate(self.workers):
            if worker is not None and worker.run_id is not None:
                continue
            run_id = self.sweep.next_run()
            if run_id is None:
                return
            if worker is None:
                try:
                    worker = self.workers[slot] = self._start(slot)
                except OSError as error:  # the machine is full: those that live go on, and a place may become free
                    self.sweep.put_back(run_id)
                    if any(self.workers):
                        continue
                    reason = error.strerror or error
                    raise UserError(f"no worker process can be started ({reason}): end other processes, then start again") from None
            worker.run_id, worker.started = run_id, time.monotonic()
            try:
                worker.connection.send((self.sweep.configs[run_id], str(self.sweep.folder(run_id))))
            except OSError:  # it died while idle: nothing was begun
                self.sweep.put_back(run_id)
                self._discard(slot)

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

    def collect(self, seconds: float) -> None:
        busy = {worker.connection: slot for slot, worker in enumerate(self.workers) if worker is not None and worker.run_id}
        if not busy:
            time.sleep(seconds)  # all that is left is being run by others
        for connection in wait(list(busy), seconds) if busy else ():
            slot = busy[connection]
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
            self.sweep.take(run_id, answer, time.monotonic() - worker.started)

    def end(self) -> None:
        """Tell every worker to save and stop; kill those that do not within GRACE seconds, or at a second signal."""
        running = [worker for worker in self.workers if worker is not None]
        self.workers = []
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


def _gpus(configs: Iterable[Any]) -> list[str]:
    """The GPUs to hand to the workers, one each, if the configs ask for any."""
    if not any(getattr(config, "device", "cpu") in ("cuda", "auto") for config in configs):
        return []
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return names[:count] if len(names) >= count and names[0] else [str(number) for number in range(count)]

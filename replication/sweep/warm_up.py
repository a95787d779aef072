"""A few optimizer steps in a process of their own, each with the longest prompts and completions that a config allows."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from replication import signals
from replication.errors import UserError, first_line, is_out_of_memory
from replication.sweep.worker import how_it_died, prepare_child

if TYPE_CHECKING:
    from replication.config import ExperimentConfig
    from replication.groups import Group

STEPS = 3


@dataclass(frozen=True)
class Attempt:
    """How the steps in a child process went.

    Attributes:
        outcome: "done", "memory" (it ran out), "time" (it was ended), or why it failed.
        steps: of each whole step: seconds, peak_bytes (GPU, or resident on a CPU), total_bytes, device (its name).
        seconds: from the loaded model to its end.
    """

    outcome: str
    steps: list[dict[str, Any]]
    seconds: float


def in_child(config: ExperimentConfig, seconds: float, warm_up: Callable[..., None] | None = None) -> Attempt:
    """Run ``warm_up(config, report)`` in a process of its own, whose death costs nothing.

    It calls ``report("loaded")`` and then ``report("step", values)`` for each step. It is ended ``seconds`` after "loaded".

    Raises:
        Stopped: a signal came; the process is ended.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, warm_up or _steps, config), daemon=True)
    process.start()
    theirs.close()
    steps: list[dict[str, Any]] = []
    outcome, loaded = "time", None
    try:
        while outcome == "time" and (loaded is None or time.monotonic() < loaded + seconds):
            signals.raise_if_stopped()
            if not ours.poll(signals.POLL):
                continue
            try:
                kind, value = ours.recv()
            except EOFError:
                process.join()
                # The kernel ends a process by SIGKILL where the machine's memory runs out.
                outcome = "memory" if process.exitcode == -signal.SIGKILL else how_it_died(process.exitcode)
                break
            if kind == "loaded":
                loaded = time.monotonic()
            elif kind == "step":
                steps.append(value)
            else:
                outcome = value
    finally:
        process.kill()
        process.join()
        ours.close()
    return Attempt(outcome, steps, 0.0 if loaded is None else time.monotonic() - loaded)


def _child(connection: Connection, warm_up: Callable, config: ExperimentConfig) -> None:
    prepare_child()
    try:
        warm_up(config, lambda kind, value=None: connection.send((kind, value)))
        outcome = "done"
    except UserError as error:
        outcome = str(error)
    except BaseException as error:  # the parent reports it
        outcome = "memory" if is_out_of_memory(error) else first_line(error, with_type=True)
    connection.send(("end", outcome))


def _steps(config: ExperimentConfig, report: Callable[..., None]) -> None:
    """Optimizer steps in which nothing ends an answer early, every group has both rewards, and the prompts are the longest."""
    import torch

    from replication.checks import require_sampled_equals_scored
    from replication.groups import sample_groups
    from replication.models import load_policy
    from replication.runs import forget_peak_memory, peak_memory
    from replication.train import learn
    from replication.training_state import TrainingState

    torch.set_num_threads(config.threads)
    task = dataclasses.replace(config.load_task(), stop_strings=())
    policy = dataclasses.replace(load_policy(config), eos_token_ids=(-1,))
    problems = sorted(task.train, key=lambda problem: len(problem.prompt), reverse=True)[: config.prompts_per_step]
    state, method = TrainingState.of_run(config, policy), config.build_method()
    on_gpu = policy.model.device.type == "cuda"
    if on_gpu:
        properties = torch.cuda.get_device_properties(policy.model.device)
        machine = {"total_bytes": properties.total_memory, "device": properties.name}
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        machine = {"total_bytes": total, "device": "the CPU"}
    report("loaded")
    for step in range(STEPS):
        forget_peak_memory()
        started = time.perf_counter()
        groups = sample_groups(policy, config, task, problems, step)
        groups = [dataclasses.replace(group, rewards=torch.arange(len(group.samples)) % 2.0) for group in groups]
        if step == 0:
            require_sampled_equals_scored(policy, config, groups)  # as every run does: what fails there fails here first
            groups = _filling(groups, config.token_budget)
        learn(config, method, state, groups, step)  # its norm is read from the GPU, which is then done
        peak = peak_memory()["peak_gpu_bytes" if on_gpu else "peak_rss_bytes"]
        report("step", {"seconds": time.perf_counter() - started, "peak_bytes": peak, **machine})


def _filling(groups: list[Group], budget: int) -> list[Group]:
    """The groups, one of them cut so that the first part of a step is as full as the budget allows.

    Whole groups of the greatest length leave a gap, which shorter groups of a run would fill.
    """
    room = budget
    for index, group in enumerate(groups):
        size = len(group.prompt) + group.generated_tokens
        length = (room - len(group.prompt)) // len(group.samples)
        if size > room and index and length > 0:
            samples = [dataclasses.replace(sample, tokens=sample.tokens[:length]) for sample in group.samples]
            return [*groups[:index], dataclasses.replace(group, samples=samples), *groups[index + 1 :]]
        room -= size
    return groups

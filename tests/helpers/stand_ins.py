"""A config and a training function that stand in for the real ones: importable by a worker, quick, and as faulty as asked."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import model_validator

from replication import signals
from replication.config import ExperimentConfig
from replication.errors import UserError
from replication.runs import RunDirectory, RunSummary

#: The files of a run that must not vary between two runs of one command.
SAME = ("config.json", "metrics.jsonl", "items.csv", "summary.json", "samples.jsonl")


class StandIn(ExperimentConfig):
    """A config with a fault and a duration; its run id needs no base and no data."""

    profile: str = "smoke"
    task: str = "word_problems"
    method: str = "grpo"
    steps: int = 4
    denominator: str = "completion"
    selector: str = "all"
    fault: str = "none"
    seconds_per_step: float = 0.0

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> StandIn:
        return self  # any mixture of fields will do

    @property
    def run_id(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def train(config: StandIn, run_dir: Path) -> RunSummary:
    """Adds up random numbers, checkpoints each step, and has the fault the config asks for at its second step."""
    with RunDirectory.open(run_dir, config) as run:
        if run.summary is not None:
            return run.summary
        start, state = run.load_checkpoint() or (0, {"weight": torch.zeros(3), "total": torch.zeros(())})
        print(f"training {config.run_id} from step {start} in process {os.getpid()}", flush=True)
        weight, total = state["weight"], state["total"]
        for step in range(start + 1, config.steps + 1):
            generator = torch.Generator().manual_seed(config.seed * 1000 + step)
            weight = weight + torch.randn(3, generator=generator)
            total = total + weight.sum()
            run.append_metrics({"step": step, "reward": total, "kept_fraction": None})
            run.append_timings({"step": step, "rollout_s": 0.5, "score_s": 0.25, "update_s": 0.25, "step_s": 1.0,
                                "peak_rss_bytes": 1000 + step})
            run.append_samples([{"step": step, "completion": "<script>alert(1)</script>"}])
            _fault(config.fault if step == 2 else "none", run)
            time.sleep(config.seconds_per_step)
            run.save_checkpoint(step, {"weight": weight, "total": total}, run.lengths())
            signals.raise_if_stopped()
        row = {"split": "test", "truncated": False, "parsed": 1}
        run.write_items([row | {"item_id": f"i{number}", "correct": number % 2} for number in range(4)])
        summary: dict[str, Any] = {"status": "done", "steps_done": config.steps, "accuracy": 0.5, "n_items": 4, "kl_to_base": total}
        if config.fault == "diverges":
            summary |= {"status": "diverged", "reason": "the loss is not finite at step 2"}
        return run.finish(summary)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SAME}


def interrupted(tmp_path: Path, steps: int) -> Path:
    """The folder of a run that was killed after ``steps`` steps, with lines of the next step logged already."""
    folder = tmp_path / "run"
    with RunDirectory.open(folder, StandIn()) as run:
        assert run.load_checkpoint() is None
        weight, total = torch.zeros(3), torch.zeros(())
        for step in range(1, steps + 1):
            weight = weight + torch.randn(3, generator=torch.Generator().manual_seed(step))
            total = total + weight.sum()
            run.append_metrics({"step": step, "reward": total, "kept_fraction": None})
            run.append_samples([{"step": step, "completion": "<script>alert(1)</script>"}])
            run.save_checkpoint(step, {"weight": weight, "total": total}, run.lengths())
        run.append_metrics({"step": steps + 1, "reward": 17.0})
        run.append_samples([{"step": steps + 1, "completion": "later"}])
    return folder


def _fault(fault: str, run: RunDirectory) -> None:
    once = run.path / ".once"  # a dot file: the folder stays one of a run
    if fault.endswith("once"):
        if once.exists():
            return
        once.touch()
    if fault.startswith("raises"):
        raise RuntimeError("a fault that was asked for\nwith a second line")
    if fault.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.startswith("exits"):
        os._exit(7)
    if fault.startswith("user"):
        raise UserError("set this differently")
    if fault.startswith("memory"):
        bytearray(1 << 60)
    if fault.startswith("hangs"):
        time.sleep(1000)


@dataclass(frozen=True)
class Planned:
    """A planned run, as a plan has them."""

    ablation: str
    config: StandIn


def plan(*configs: StandIn) -> list[Planned]:
    return [Planned("full_vs_sparse", config) for config in configs]


#: What ``run_plan`` calls in a worker.
TARGET = "stand_ins:train"

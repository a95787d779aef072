"""A config and a training function that stand in for the real ones: importable by a worker, quick, and as faulty as asked."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from replication import signals
from replication.errors import Stopped, UserError
from replication.runs.directory import RunDirectory, RunSummary


class StandIn(BaseModel):
    """As much of ExperimentConfig as records, tables and sweep touch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str = "smoke"
    task: str = "word_problems"
    method: str = "grpo"
    seed: int = 0
    steps: int = 4
    learning_rate: float = 1e-3
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    max_kept_tokens: int | None = None
    fault: str = "none"
    seconds_per_step: float = 0.0

    @property
    def run_id(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def selector(self) -> str:
        return "all"

    def command(self, out: str | Path) -> str:
        return f"python -m replication run --seed {self.seed} --out {out}"


def train(config: StandIn, run_dir: Path) -> RunSummary:
    """Adds up random numbers, checkpoints each step, and has the fault the config asks for at its second step."""
    with RunDirectory.open(run_dir, config) as run:
        if run.summary is not None:
            return run.summary
        start, weights, state = run.load_checkpoint() or (0, {"w": torch.zeros(3)}, {"total": 0.0})
        print(f"training {config.run_id} from step {start} in process {os.getpid()}", flush=True)
        total, weight = state["total"], weights["w"]
        for step in range(start + 1, config.steps + 1):
            generator = torch.Generator().manual_seed(config.seed * 1000 + step)
            weight = weight + torch.randn(3, generator=generator)
            total += float(weight.sum())
            run.append_metrics({"step": step, "reward": total, "kept_fraction": None})
            run.append_timings({"step": step, "rollout_s": 0.5, "score_s": 0.25, "update_s": 0.25, "step_s": 1.0,
                                "peak_rss_bytes": 1000 + step})
            run.append_samples([{"step": step, "completion": "<script>alert(1)</script>"}])
            _fault(config.fault if step == 2 else "none", run)
            time.sleep(config.seconds_per_step)
            stop = signals.stop_requested()
            run.save_checkpoint(step, {"w": weight}, {"total": total})
            if stop is not None:
                raise Stopped(stop)
        row = {"split": "test", "truncated": False, "parsed": 1}
        run.write_items([row | {"item_id": f"i{number}", "correct": number % 2} for number in range(4)])
        summary: dict[str, Any] = {"status": "done", "steps_done": config.steps, "accuracy": 0.5, "n_items": 4, "kl_to_base": total}
        if config.fault == "diverges":
            summary |= {"status": "diverged", "reason": "the loss is not finite at step 2"}
        return run.finish(summary)


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

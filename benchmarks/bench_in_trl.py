"""TRL's GRPOTrainer as it is beside TRL's trainer with our credit and scoring: whole steps in TRL's own loop, and peak memory.

Each turn makes a new trainer from the same weights, seed and problems, so its first steps sample nearly the same completions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import bench_memory, trl_side
from benchmarks.common import IN_TRL, METHODS, TRL, nano_config, threads, write_manifest, write_table
from replication.groups import training_batch
from replication.models import load_base

#: Turns of each trainer; the first WARM_UP of the STEPS of a turn are not counted.
TURNS, STEPS, WARM_UP = 3, 5, 2
MEMORY_PROCESSES = 3
CASES = [(TRL, "grpo"), *((IN_TRL, method) for method in METHODS)]


def turn(implementation: str, method: str, *, steps: int, warm_up: int, **overrides: Any) -> list[dict[str, Any]]:
    """A row for each counted step of a new trainer."""
    config = nano_config(method, **overrides)
    task = config.load_task()
    problems = [problem for step in range(steps) for problem in training_batch(config, task, step)]
    model, tokenizer = load_base(config.model_path, config.revision)
    clock = trl_side.Clock()
    rows: list[dict[str, Any]] = []

    def after(step: int) -> None:
        metrics = trainer._metrics["train"]
        completions = config.prompts_per_step * config.group_size
        rows.append(
            {
                "implementation": implementation,
                "method": method,
                "step": step,
                "rollout_s": clock.rollout_s,
                "update_s": clock.step_s - clock.rollout_s,
                "step_s": clock.step_s,
                "tied_groups": metrics["frac_reward_zero_std"][-1],
                "tokens_generated": round(metrics["completions/mean_length"][-1] * completions),
                "tokens_forwarded": clock.tokens_forwarded if implementation == TRL else metrics["tokens_forwarded"][-1],
            }
        )

    trainer = trl_side.make_trainer(
        config,
        model,
        tokenizer,
        problems,
        steps=steps,
        max_new_tokens=config.max_new_tokens or task.max_new_tokens,
        credit=config.build_method() if implementation == IN_TRL else None,
    )
    clock.run(trainer, after)
    return rows[warm_up:]


def main(out: Path, *, quick: bool = False) -> pd.DataFrame:
    """Measure and write in_trl.csv and in_trl_memory.csv."""
    trl_side.require_trl()
    turns, steps, warm_up = (1, 2, 1) if quick else (TURNS, STEPS, WARM_UP)
    rows: list[dict[str, Any]] = []
    cases = [(repetition, *case) for repetition in range(turns) for case in CASES]
    for done, (repetition, implementation, method) in enumerate(cases, start=1):
        with threads(1):
            measured = turn(implementation, method, steps=steps, warm_up=warm_up, threads=1)
        rows += [{"repetition": repetition, **row} for row in measured]
        middle = np.median([row["step_s"] for row in measured])
        print(f"  {done} of {len(cases)}: {implementation} {method}: {middle:.2f} s a step", flush=True)
    table = write_table(out, "in_trl", rows)
    write_manifest(out, "in_trl", threads=1)
    shape = bench_memory.SHAPE | ({"vocabulary": 4096, "completion_length": 32} if quick else {})
    shape |= {"common": bench_memory.COMMON[0]}
    peaks: list[dict[str, Any]] = []
    processes = range(1 if quick else MEMORY_PROCESSES)
    for implementation, method in CASES:
        bytes_ = [bench_memory.in_own_process(implementation, method, shape)["peak_bytes"] for _ in processes]
        row = {"implementation": implementation, "method": method, **shape, "peak_bytes": float(np.median(bytes_))}
        peaks.append(row | {"peak_bytes_low": min(bytes_), "peak_bytes_high": max(bytes_), "n": len(bytes_)})
        print(f"  {implementation} {method}: peak {np.median(bytes_) / 1e6:.0f} MB", flush=True)
    write_table(out, "in_trl_memory", peaks)
    write_manifest(out, "in_trl_memory", threads=1)
    return table

"""Whole runs of the nano profile scored densely against packed, in turns in one process: what packing saves `make all`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import common
from benchmarks.common import METHODS
from replication import train

REPETITIONS = 3
STEPS = 5
NEVER = 10**6
SCORINGS = ("dense", "packed")
#: Parts of a step in timings.jsonl; step_s holds them and what the loop records.
PARTS = ("rollout_s", "score_s", "update_s", "step_s")


def main(out: Path, *, quick: bool = False) -> pd.DataFrame:
    """Measure and write dense_vs_packed.csv: a row for each (repetition, method, scoring).

    train_s, evaluation_s and run_s are those of a run as long as the profile's. Evaluation does not depend on the scoring, so it
    is measured once at its full size, in a run of one step that also loads what is loaded once.
    """
    default = common.nano_config("grpo")
    repetitions, steps = (1, 1) if quick else (REPETITIONS, STEPS)
    few = {"eval_items": 1, "test_items": 1}
    cases = [(repetition, method, scoring) for repetition in range(repetitions) for method in METHODS for scoring in SCORINGS]
    whole = short_run("grpo", "packed", steps=1, **(few if quick else {}))
    # Before the first step, and after every eval_every steps but the last.
    evaluation = -(-default.steps // default.eval_every) * whole["validation_s"] + whole["final_evaluation_s"]
    print(f"  evaluation of a run: {evaluation:.1f} s", flush=True)
    rows: list[dict[str, Any]] = []
    for done, (repetition, method, scoring) in enumerate(cases, start=1):
        measured = short_run(method, scoring, steps=steps, **few)
        row = {"method": method, "scoring": scoring, "repetition": repetition, "steps": steps}
        row |= {part: measured[part] for part in PARTS}
        row |= {"default_steps": default.steps, "train_s": default.steps * row["step_s"], "evaluation_s": evaluation}
        rows.append(row | {"run_s": row["train_s"] + evaluation})
        print(f"  {done} of {len(cases)}: {method} {scoring}: {row['step_s']:.3f} s a step", flush=True)
    common.write_manifest(out, "dense_vs_packed", threads=1)
    return common.write_table(out, "dense_vs_packed", rows)


def short_run(method: str, scoring: str, *, steps: int, **sizes: int) -> dict[str, float]:
    """Mean seconds of a step and its parts in a short run, and seconds of one validation and of the final evaluation."""
    config = common.nano_config(method, scoring=scoring, steps=steps, eval_every=NEVER, checkpoint_every=NEVER, threads=1, **sizes)
    with tempfile.TemporaryDirectory(prefix="bench-run-") as folder:
        train.run(config, folder)
        lines = [json.loads(line) for line in (Path(folder) / "timings.jsonl").read_text().splitlines()]
    of_steps = [line for line in lines if "step_s" in line]
    validation, final = (line["evaluation_s"] for line in lines if "evaluation_s" in line)
    means = {part: float(np.mean([line[part] for line in of_steps])) for part in PARTS}
    return {**means, "validation_s": validation, "final_evaluation_s": final}

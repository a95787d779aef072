"""Peak memory of one update above what is held before it, each measurement in a process of its own.

Vocabulary 151,936 and width 256: the logits outweigh everything else, as in Qwen2-1.5B. The model, the adapter, the optimizer
with its moments and the batch are held before; what counts is what the update adds at its worst moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import common, trl_side
from benchmarks.common import IN_TRL, METHODS, SPARSE, TRL

#: Processes for each case; two are enough where one takes longer than SLOW seconds, as little but the allocator differs.
REPETITIONS = 3
SLOW = 15.0
SHAPE = {"vocabulary": 151936, "width": 256, "prompts": 1, "group_size": 8, "prompt_length": 32, "completion_length": 128}
#: Share of TRL's peak that the design sets as its aim.
AIMS = {"grpo": 1.0, "s_grpo": 0.5, "t_spmo": 0.2}
#: (implementation, method). TRL's own default recomputes activations in the backward pass; the aims are set against both.
CASES = [
    (TRL, "grpo"),
    (TRL + " with checkpointing", "grpo"),
    ("dense", "grpo"),
    *(("packed", method) for method in (*METHODS, "ppo")),  # ppo: with the pass and the step of its critic
]
#: How likely the completions of a group go on alike: they part after some 5 tokens (the harder case for packing), or some 50.
COMMON = (0.9, 0.99)


def measure(implementation: str, method: str, shape: dict[str, Any]) -> dict[str, Any]:
    """Peak bytes of an update in this process."""
    import torch

    torch.set_num_threads(1)
    shape = dict(shape)
    width, vocabulary = shape.pop("width"), shape["vocabulary"]
    extra = SPARSE if method == "s_grpo" else {}
    strategy = "dense" if implementation == "dense" else "packed"
    sizes = {"group_size": shape["group_size"], "prompts_per_step": shape["prompts"]}
    config = common.nano_config(method, scoring=strategy, **sizes, **extra)
    policy = common.random_policy(vocabulary=vocabulary, width=width)
    groups = common.synthetic_groups(**shape)
    small = common.synthetic_groups(**{**shape, "completion_length": 8, "prompt_length": 4})
    if implementation == IN_TRL or implementation.startswith(TRL):
        credit = config.build_method() if implementation == IN_TRL else None
        work = _trl_work(config, policy, small, groups, checkpointing=implementation not in (TRL, IN_TRL), credit=credit)
    else:
        update = common.update_of(config, policy)
        update(small)  # loads what is loaded once, and makes the optimizer's moments

        def work() -> None:
            update(groups)

    peak = common.peak_bytes(work)
    # Only PPO's rule reads values, and how many tokens it credits does not hang on them.
    judged = [replace(group, values=[[0.0] * len(tokens) for tokens in group.completions]) for group in groups]
    return {"peak_bytes": peak, "tokens_in_loss": sum(map(len, common.credits_of(config, judged)))}


def _trl_work(config, policy, small, groups, *, checkpointing: bool, credit: Any = None):
    trainer, optimizer = trl_side.idle_trainer(config, policy.model.unload(), checkpointing=checkpointing, credit=credit)

    def update(batch) -> None:
        inputs = trl_side.inputs_of(batch, policy.pad_token_id) if credit is None else trl_side.credited_inputs_of(config, batch)
        trl_side.update(trainer, optimizer, inputs, config.max_grad_norm)

    update(small)
    return lambda: update(groups)


def in_own_process(implementation: str, method: str, shape: dict[str, Any]) -> dict[str, Any]:
    task = json.dumps({"implementation": implementation, "method": method, "shape": shape})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_memory", task],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{implementation} {method} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(out: Path, *, quick: bool = False) -> pd.DataFrame:
    """Measure and write memory.csv: the median of some processes for each case."""
    trl_side.require_trl()
    shape = {**SHAPE, "vocabulary": 4096, "completion_length": 32} if quick else SHAPE
    cases = [(likeness, *case) for likeness in (COMMON[:1] if quick else COMMON) for case in CASES]
    measured: dict[tuple[float, str, str], dict[str, Any]] = {}
    for done, (likeness, implementation, method) in enumerate(cases, start=1):
        runs: list[dict[str, Any]] = []
        started = time.perf_counter()
        while len(runs) < (1 if quick else REPETITIONS if time.perf_counter() - started < SLOW * len(runs) else 2):
            runs.append(in_own_process(implementation, method, {**shape, "common": likeness}))
        peaks = [run["peak_bytes"] for run in runs]
        measured[likeness, implementation, method] = {
            **runs[0],
            "peak_bytes": float(np.median(peaks)),
            "peak_bytes_low": min(peaks),
            "peak_bytes_high": max(peaks),
            "n": len(runs),
        }
        taken = time.perf_counter() - started
        print(f"  {done} of {len(cases)}: {implementation} {method}, {likeness} in common: {np.median(peaks) / 1e6:.0f} MB, "
              f"{len(runs)} processes in {taken:.0f} s", flush=True)  # fmt: skip
    common.write_manifest(out, "memory", threads=1)
    return common.write_table(out, "memory", _rows(measured, shape))


def _rows(measured: dict[tuple[float, str, str], dict[str, Any]], shape: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each case, with its share of TRL's peak on the same completions; TRL's cases come first."""
    rows = []
    for (likeness, implementation, method), facts in measured.items():
        peaks = {name: other["peak_bytes"] for (like, name, _), other in measured.items() if like == likeness}
        best = min(peak for name, peak in peaks.items() if name.startswith(TRL))
        aim = AIMS.get(method) if implementation == "packed" else None
        row = {"implementation": implementation, "method": method, **shape, "common": likeness, **facts}
        row |= {"share_of_trl": facts["peak_bytes"] / peaks[TRL], "share_of_trl_at_its_best": facts["peak_bytes"] / best}
        rows.append(row | {"aim": aim, "met": None if aim is None else bool(row["share_of_trl_at_its_best"] <= aim)})
    return rows


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(json.dumps(measure(task["implementation"], task["method"], task["shape"])))

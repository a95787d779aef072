"""How the cost of an update grows: group size, lengths, vocabulary and width, for TRL and for each method."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import common, trl_side
from benchmarks.common import METHODS, SPARSE, TRL
from replication.ledger import scoring_cost

#: What stands still while one thing grows: the nano base's shape, two prompts.
BASE = {"prompts": 2, "group_size": 16, "prompt_length": 32, "completion_length": 32, "vocabulary": 1024, "width": 128}
GRID = {
    "group_size": (4, 8, 16, 32, 64),
    "prompt_length": (16, 32, 64, 128, 256),
    "completion_length": (16, 32, 64, 128, 256),
    "vocabulary": (1024, 8192, 32768, 151936),
    "width": (64, 128, 256, 512),
}
REPETITIONS = 3


def main(out: Path, *, quick: bool = False, threads: int = 1) -> pd.DataFrame:
    """Measure and write scaling.csv: a row for each (what grows, its value, method)."""
    trl_side.require_trl()
    grid = {name: values[:2] for name, values in GRID.items()} if quick else GRID
    rows = []
    with common.threads(threads):
        peak = common.matrix_peak()
        for grows, values in grid.items():
            for value in values:
                measured = point({**BASE, grows: value}, 2 if quick else REPETITIONS, peak)
                rows += [{"grows": grows, "value": value, **row} for row in measured]
    table = common.write_table(out, "scaling", rows)
    common.write_manifest(out, "scaling", threads=threads, matrix_peak_flops=peak)
    return table


def point(shape: dict[str, Any], repetitions: int, peak: float) -> list[dict[str, Any]]:
    """The four updates on one batch, in turns."""
    given = {name: shape[name] for name in BASE if name != "width"}
    groups = common.synthetic_groups(**given)
    arguments = [group.prompt for group in groups], [group.completions for group in groups]
    works: dict[tuple[str, str], Callable[[], Any]] = {}
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    for method in METHODS:
        extra = SPARSE if method == "s_grpo" else {}
        config = common.nano_config(method, group_size=shape["group_size"], prompts_per_step=shape["prompts"], **extra)
        policy = common.random_policy(vocabulary=shape["vocabulary"], width=shape["width"])
        optimizer = common.optimizer_of(config, policy)
        works["packed", method] = lambda c=config, p=policy, o=optimizer: common.update(c, p, o, groups)
        credits = common.credits_of(config, groups)
        cost = scoring_cost(*arguments, credits, "packed", policy.model)
        facts["packed", method] = {
            "tokens_forwarded": cost.forwarded, "tokens_in_loss": cost.in_loss, "predicted_flops": cost.flops
        }  # fmt: skip
    works[TRL, "grpo"] = _trl_update(shape, groups)
    tokens = sum(len(g.samples) * (len(g.prompt) + shape["completion_length"]) for g in groups)
    facts[TRL, "grpo"] = {"tokens_forwarded": tokens, "tokens_in_loss": facts["packed", "grpo"]["tokens_in_loss"]}

    taken: dict[tuple[str, str], list[float]] = {case: [] for case in works}
    for repetition in range(repetitions + 1):
        for case, work in works.items():
            value = common.seconds(work)
            if repetition:  # the first warms up
                taken[case].append(value)
    rows = []
    for (implementation, method), values in taken.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        row = {"implementation": implementation, "method": method, "n": len(values)}
        row |= {"seconds": middle, "seconds_q1": low, "seconds_q3": high, **facts[implementation, method]}
        if "predicted_flops" in row:
            row["peak_share"] = row["predicted_flops"] / middle / peak
        rows.append(row)
    works.clear()
    gc.collect()
    return rows


def _trl_update(shape: dict[str, Any], groups) -> Callable[[], Any]:
    from replication.models.load import load_base

    config = common.nano_config("grpo", group_size=shape["group_size"], prompts_per_step=shape["prompts"])
    policy = common.random_policy(vocabulary=shape["vocabulary"], width=shape["width"])
    _, tokenizer = load_base(config.model_path)  # the trainer wants one; the batch is ready
    problems = config.load_task().train[:1]
    trainer = trl_side.make_trainer(config, policy.model.unload(), tokenizer, problems, steps=1, max_new_tokens=8)
    trainer.current_gradient_accumulation_steps = 1
    optimizer = trainer.create_optimizer()
    inputs = trl_side.inputs_of(groups, policy.pad_token_id)
    return lambda: trl_side.update(trainer, optimizer, inputs, config.max_grad_norm)

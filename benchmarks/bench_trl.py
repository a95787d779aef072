"""This project and TRL's GRPOTrainer side by side: the same model, problems and group size, in turns, in one run.

TRL trains in its own loop. After each of its steps every method takes the adapter as TRL left it and does two things with the
same problems: an update on the very completions that TRL sampled (equal work), and a whole step with its own rollout.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import trl_side
from benchmarks.common import (
    METHODS,
    TRL,
    credits_of,
    make_group,
    nano_config,
    threads,
    tokens_forwarded,
    untied,
    update_of,
    write_manifest,
    write_table,
)
from replication import train
from replication.evaluate import step_metrics
from replication.groups import Group, sample_groups, training_batch
from replication.models import load_base, load_policy

REPETITIONS = 9
WARM_UP = 2
THREADS = (1, 2)
#: Ratios to TRL that the design sets as its aims: method -> (update, whole step).
AIMS = {"grpo": (4.0, 3.0), "s_grpo": (5.0, 3.5), "t_spmo": (15.0, 5.0)}


def side_by_side(count: int, repetitions: int) -> tuple[list[dict], dict[str, float]]:
    """A row for each (repetition, implementation, method, work, phase), and how far losses and gradients differ."""
    configs = {method: nano_config(method, threads=count) for method in METHODS}
    config = configs["grpo"]
    policies = {method: load_policy(configs[method]) for method in METHODS}
    updates = {method: update_of(configs[method], policies[method]) for method in METHODS}
    task = config.load_task()
    steps = WARM_UP + repetitions
    problems = [problem for step in range(steps) for problem in training_batch(config, task, step)]
    model, tokenizer = load_base(config.model_path, config.revision)
    clock = trl_side.Clock()
    rows: list[dict] = []
    differences = {"loss": 0.0, "gradient": 0.0}

    def ours(step: int) -> None:
        batch = problems[step * config.prompts_per_step : (step + 1) * config.prompts_per_step]
        groups = _groups(clock, batch, config.group_size)
        ties = sum(group.is_tied for group in groups) / len(groups)
        theirs = {
            "implementation": TRL,
            "method": "grpo",
            "work": "own rollout",
            "tied_groups": ties,
            "tokens_generated": int(clock.batch["completion_mask"].sum()),
            "tokens_forwarded": clock.tokens_forwarded,
            "tokens_in_loss": int(clock.batch["completion_mask"].sum()),
        }
        measured = [
            {**theirs, "phase": phase, "seconds": value}
            for phase, value in (
                ("rollout", clock.rollout_s),
                ("update", clock.step_s - clock.rollout_s),
                ("step", clock.step_s),
            )
        ]
        for method in METHODS:
            trl_side.copy_adapter(trainer, policies[method])
            measured += _our_rows(configs[method], policies[method], updates[method], task, groups, batch, step)
            trl_side.copy_adapter(trainer, policies[method])
        if step == WARM_UP:
            differences.update(_differences(trainer, config, policies["grpo"], groups))
        if step >= WARM_UP:
            rows.extend({"threads": count, "repetition": step - WARM_UP, **row} for row in measured)
            whole = [row for row in measured if row["phase"] == "step"]
            said = ", ".join(f"{row['implementation']} {row['method']} {row['seconds']:.2f} s" for row in whole)
            print(f"  {count} threads, {step - WARM_UP + 1} of {repetitions}: steps: {said}", flush=True)

    trainer = trl_side.make_trainer(
        config,
        model,
        tokenizer,
        problems,
        steps=steps,
        max_new_tokens=config.max_new_tokens or task.max_new_tokens,
        clock=clock,
    )
    clock.run(trainer, lambda step: ours(step - 1))
    return rows, differences


def _our_rows(config, policy, update, task, groups, batch, step) -> list[dict]:
    rows = []
    for work, given in (("TRL's completions", groups), ("TRL's completions, no ties", untied(groups))):
        started = time.perf_counter()
        update(given)
        rows.append(_row(config, policy, work, "update", time.perf_counter() - started, given))
    started = time.perf_counter()
    own = sample_groups(policy, config, task, batch, step)
    middle = time.perf_counter()
    update(own)
    ended = time.perf_counter()
    rows.append(_row(config, policy, "own rollout", "rollout", middle - started, own))
    rows.append(_row(config, policy, "own rollout", "update", ended - middle, own))
    rows.append(_row(config, policy, "own rollout", "step", ended - started, own))
    # What the training loop adds for its record: entropy, KL to the base.
    started = time.perf_counter()
    step_metrics(policy, config, task, own, credits_of(config, own))
    rows.append(_row(config, policy, "own rollout", "diagnostics", time.perf_counter() - started, own))
    return rows


def _row(config, policy, work: str, phase: str, value: float, groups: list[Group]) -> dict:
    credits = credits_of(config, groups)
    return {
        "implementation": config.scoring,
        "method": config.method,
        "work": work,
        "phase": phase,
        "seconds": value,
        "tied_groups": sum(group.is_tied for group in groups) / len(groups),
        "tokens_generated": sum(group.generated_tokens for group in groups),
        "tokens_forwarded": tokens_forwarded(policy, config, groups, credits),
        "tokens_in_loss": sum(map(len, credits)),
    }


def _groups(clock: trl_side.Clock, problems, group_size: int) -> list[Group]:
    """TRL's rollout as groups of this project.

    TRL shuffles a batch before it splits it into micro-batches, but returns it to the clock in the order of the prompts.
    """
    batch = clock.batch
    tokens = [
        [int(token) for token, kept in zip(row, mask, strict=True) if kept]
        for row, mask in zip(batch["completion_ids"].tolist(), batch["completion_mask"].tolist(), strict=True)
    ]
    groups = []
    for index, problem in enumerate(problems):
        first = index * group_size
        mask = batch["prompt_mask"][first].bool()
        prompt = batch["prompt_ids"][first][mask].tolist()
        members = slice(first, first + group_size)
        groups.append(make_group(problem, prompt, tokens[members], clock.rewards[members]))
    return groups


def _differences(trainer, config, policy, groups: list[Group]) -> dict[str, float]:
    """Loss and gradient of the same batch on both sides; the gradient's as a share of its norm."""
    loss, theirs = trl_side.loss_and_gradients(trainer, trl_side.inputs_of(groups, policy.pad_token_id))
    for parameter in policy.trainable.values():
        parameter.grad = None
    our_loss, _, _ = train.backward(config, policy, groups, credits_of(config, groups))
    squares = sum(float((policy.trainable[name].grad - value).square().sum()) for name, value in theirs.items())
    norm = sum(float(value.square().sum()) for value in theirs.values())
    return {"loss": abs(loss - our_loss), "gradient": (squares / norm) ** 0.5}


def ratios(table: pd.DataFrame) -> list[dict]:
    """For each method and phase, how many times TRL's seconds ours are: the median over repetitions, and the quartiles."""
    rows = []
    theirs = table[table.implementation == TRL]
    for (count, method, work, phase), mine in table[table.implementation != TRL].groupby(
        ["threads", "method", "work", "phase"], sort=False
    ):
        other = theirs[(theirs.threads == count) & (theirs.phase == phase)].set_index("repetition").seconds
        if other.empty:
            continue
        mine = mine.set_index("repetition")
        ratio = other / mine.seconds
        update_aim, step_aim = AIMS[method]
        aim = {"update": update_aim, "step": step_aim}.get(phase)
        row = {"threads": count, "method": method, "work": work, "phase": phase, "n": len(mine), "aim": aim}
        for name, values in (("trl_s", other), ("ours_s", mine.seconds), ("ratio", ratio)):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            row |= {name: middle, f"{name}_q1": low, f"{name}_q3": high}
        row["met"] = None if aim is None else bool(row["ratio"] >= aim)
        rows.append(row)
    return rows


def main(out: Path, *, quick: bool = False) -> pd.DataFrame:
    """Measure and write side_by_side.csv and ratios.csv."""
    trl_side.require_trl()
    repetitions = 2 if quick else REPETITIONS
    rows: list[dict] = []
    checks: dict[str, Any] = {}
    for count in THREADS:
        with threads(count):
            measured, checks[str(count)] = side_by_side(count, repetitions)
        rows += measured
    assert all(facts["gradient"] < 1e-4 for facts in checks.values()), f"TRL's gradient is another one: {checks}"
    write_manifest(out, "side_by_side", differences=checks)
    return write_table(out, "ratios", ratios(write_table(out, "side_by_side", rows)))

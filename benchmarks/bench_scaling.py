"""How the cost of an update grows: group size, lengths, vocabulary and width, for TRL and for each method."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import common, trl_side
from benchmarks.common import METHODS, SPARSE, TRL

#: What stands still while one thing grows: the nano base's shape, two prompts.
BASE = {"prompts": 2, "group_size": 16, "prompt_length": 32, "completion_length": 32, "vocabulary": 1024, "width": 128}
GRID = {
    "group_size": (4, 8, 16, 32, 64),
    "prompt_length": (16, 32, 64, 128, 256),
    "completion_length": (16, 32, 64, 128, 256),
    "vocabulary": (1024, 8192, 32768, 151936),
    "width": (64, 128, 256, 512),
}
#: Rounds at a point; MANY unless TRL's update takes longer than SLOW seconds.
MANY, FEW, SLOW = 5, 3, 5.0


def main(out: Path, *, quick: bool = False) -> pd.DataFrame:
    """Measure and write scaling.csv: a row for each (what grows, its value, method)."""
    trl_side.require_trl()
    points = [(grows, value) for grows, values in GRID.items() for value in (values[:2] if quick else values)]
    rows: list[dict[str, Any]] = []
    with common.threads(1):
        for done, (grows, value) in enumerate(points, start=1):
            measured = point({**BASE, grows: value}, quick=quick)
            rows += [{"grows": grows, "value": value, **row} for row in measured]
            medians = ", ".join(f"{row['implementation']} {row['method']} {row['seconds']:.3f} s" for row in measured)
            print(f"  {done} of {len(points)}: {grows} {value}: {medians} (n = {measured[0]['n']})", flush=True)
    common.write_manifest(out, "scaling", threads=1)
    return common.write_table(out, "scaling", rows)


def point(shape: dict[str, Any], *, quick: bool) -> list[dict[str, Any]]:
    """The four updates on one batch, in turns."""
    groups = common.synthetic_groups(**{name: shape[name] for name in BASE if name != "width"})
    policy, trainer, trl_optimizer = _models(shape["vocabulary"], shape["width"])
    works: dict[tuple[str, str], Callable[[], Any]] = {}
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    for method in METHODS:
        extra = SPARSE if method == "s_grpo" else {}
        config = common.nano_config(method, group_size=shape["group_size"], prompts_per_step=shape["prompts"], **extra)
        works["packed", method] = functools.partial(common.update_of(config, policy), groups)
        credits = common.credits_of(config, groups)
        facts["packed", method] = {
            "tokens_forwarded": common.tokens_forwarded(policy, config, groups, credits),
            "tokens_in_loss": sum(map(len, credits)),
        }
    inputs = trl_side.inputs_of(groups, policy.pad_token_id)
    works[TRL, "grpo"] = functools.partial(trl_side.update, trainer, trl_optimizer, inputs, config.max_grad_norm)
    tokens = sum(len(g.samples) * (len(g.prompt) + shape["completion_length"]) for g in groups)
    facts[TRL, "grpo"] = {"tokens_forwarded": tokens, "tokens_in_loss": facts["packed", "grpo"]["tokens_in_loss"]}

    warm_up = {case: common.seconds(work) for case, work in works.items()}
    rounds = 2 if quick else MANY if warm_up[TRL, "grpo"] <= SLOW else FEW
    taken: dict[tuple[str, str], list[float]] = {case: [] for case in works}
    for _ in range(rounds):
        for case, work in works.items():
            taken[case].append(common.seconds(work))
    rows = []
    for (implementation, method), values in taken.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        row = {"implementation": implementation, "method": method, "n": len(values)}
        rows.append(row | {"seconds": middle, "seconds_q1": low, "seconds_q3": high, **facts[implementation, method]})
    return rows


@functools.lru_cache(maxsize=1)
def _models(vocabulary: int, width: int):
    """Our policy, TRL's trainer and its optimizer; points that follow each other mostly have the same model."""
    gc.collect()
    base = common.random_policy(vocabulary=vocabulary, width=width).model.unload()
    trainer, optimizer = trl_side.idle_trainer(common.nano_config("grpo"), base)
    return common.random_policy(vocabulary=vocabulary, width=width), trainer, optimizer

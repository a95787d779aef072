"""The statistics of the replication in one place: verdicts, the spread over seeds, paired tests, and how two readers agree."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from replication.errors import UserError
from replication.statistics.claims import Claim, load_claims
from replication.statistics.estimates import difference
from replication.statistics.evidence import Evidence, Tables
from replication.statistics.intervals import (
    Estimate,
    bootstrap,
    detectable_gap,
    holm,
    mcnemar,
    mean_over_seeds,
    wilson,
)
from replication.statistics.judging import VERDICTS, verdicts
from replication.statistics.rates import best_rate, tuning

__all__ = [
    "VERDICTS",
    "Claim",
    "Estimate",
    "best_rate",
    "bootstrap",
    "compare_tables",
    "detectable_differences",
    "detectable_gap",
    "holm",
    "load_claims",
    "mcnemar",
    "mean_over_seeds",
    "paired_tests",
    "seed_spread",
    "tuning",
    "verdicts",
    "wilson",
]

_METHODS = ("base", "grpo", "s_grpo", "t_spmo")


def seed_spread(tables: Tables, scale: str = "nano") -> pd.DataFrame:
    """Per task and method, two kinds of uncertainty side by side instead of one undefined "±".

    Columns task, method, seeds, items, mean, seed_sd, seed_min, seed_max (how much training under another seed changes the
    accuracy; sd with ddof 1, NaN for one seed), items_low, items_high (what another test set could change for these very
    policies: the t interval of the items' means over seeds; with one seed Wilson's), diverged. All in fractions.
    """
    evidence = Evidence(tables, scale)
    rows = []
    for task in sorted(evidence.runs["task"].unique()):
        for method in _METHODS:
            matrix = evidence.matrix(task, method)
            if matrix.size == 0:
                continue
            seeds, items = matrix.shape
            accuracy = matrix.mean(axis=1)
            low, high = _over_items(matrix)
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "seeds": seeds,
                    "items": items,
                    "mean": accuracy.mean(),
                    "seed_sd": accuracy.std(ddof=1),
                    "seed_min": accuracy.min(),
                    "seed_max": accuracy.max(),
                    "items_low": low,
                    "items_high": high,
                    "diverged": evidence.diverged([task], [method]),
                }  # fmt: skip
            )
    columns = ["task", "method", "seeds", "items", "mean", "seed_sd", "seed_min", "seed_max", "items_low", "items_high"]
    return pd.DataFrame(rows, columns=[*columns, "diverged"])


def _over_items(matrix: pd.DataFrame) -> tuple[float, float]:
    """Interval of the mean over items alone. Answers of several seeds to one item are no independent coin flips."""
    if len(matrix) == 1 or np.ptp(matrix.mean(axis=0)) == 0:
        return wilson(round(float(matrix.mean(axis=0).sum())), matrix.shape[1])
    over_items = mean_over_seeds(matrix.mean(axis=0))
    return max(over_items.low, 0.0), min(over_items.high, 1.0)


def paired_tests(tables: Tables, scale: str = "nano") -> pd.DataFrame:
    """Exact McNemar tests of every two methods on every task, seed by seed, items in pairs; Holm within a task and pair.

    Columns task, a, b, seed, items, only_a, only_b, p, p_holm. A base run without a seed of its own is paired with every seed.
    """
    evidence = Evidence(tables, scale)
    rows = []
    for task in sorted(evidence.runs["task"].unique()):
        for a, b in combinations(_METHODS, 2):
            left, right = evidence.pair(task, a, b)
            if left.size == 0 or right.size == 0:
                continue
            if a == "base" and len(left) == 1:
                left = pd.concat([left] * len(right)).set_axis(right.index)
            pairs = []
            for seed in left.index.intersection(right.index):
                x, y = left.loc[seed].to_numpy(), right.loc[seed].to_numpy()
                only_a, only_b = int(np.sum(x > y)), int(np.sum(y > x))
                pairs.append(
                    {
                        "task": task,
                        "a": a,
                        "b": b,
                        "seed": seed,
                        "items": len(x),
                        "only_a": only_a,
                        "only_b": only_b,
                        "p": mcnemar(only_a, only_b),
                    }  # fmt: skip
                )
            for pair, adjusted in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
                rows.append(pair | {"p_holm": adjusted})
    return pd.DataFrame(rows, columns=["task", "a", "b", "seed", "items", "only_a", "only_b", "p", "p_holm"])


def detectable_differences(tables: Tables, scale: str = "nano", power: float = 0.8) -> pd.DataFrame:
    """The smallest difference of each sparse method to full-token GRPO that these seeds and items would show with this power.

    The half-width of the 95 % interval of the paired difference, times 1 + z(power) / z(0.975): a true difference of that size
    has an interval without 0 so often. Columns task, method, seeds, items, difference, low, high, detectable, in points.
    """
    evidence = Evidence(tables, scale)
    rows = []
    for task in sorted(evidence.runs["task"].unique()):
        for method in ("s_grpo", "t_spmo"):
            gap = difference(evidence, task, method, "grpo")
            if gap is None:
                continue
            gap = gap.scaled(100)
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "seeds": gap.seeds,
                    "items": gap.items,
                    "difference": gap.value,
                    "low": gap.low,
                    "high": gap.high,
                    "detectable": (gap.high - gap.low) / 2 * (1 + stats.norm.ppf(power) / stats.norm.ppf(0.975)),
                }  # fmt: skip
            )
    return pd.DataFrame(rows, columns=["task", "method", "seeds", "items", "difference", "low", "high", "detectable"])


def compare_tables(mine: Mapping[str, Any] | pd.DataFrame, committed: Mapping[str, Any] | pd.DataFrame) -> pd.DataFrame:
    """Claim by claim, whether a reader's numbers and the committed ones agree within their intervals.

    Both arguments are a verdicts frame, or tables that hold one under ``verdicts``. Two intervals agree if they overlap, a
    value without an interval if it lies in the other's, two bare values if they are within 10 % of the committed one (memory:
    allocators differ). ``missing``: you did not measure what the committed tables have; ``not compared``: they have nothing.

    Returns:
        Columns claim, agreement (agree, disagree, missing, not compared), mine, mine_low, mine_high, committed, committed_low,
        committed_high, verdict_mine, verdict_committed; claims in the committed order, then those only the reader has.
    """
    left, right = _verdict_frame(mine, "your"), _verdict_frame(committed, "the committed")
    order = [*right.index, *(claim for claim in left.index if claim not in right.index)]
    rows = []
    for claim in order:
        a = left.loc[claim] if claim in left.index else None
        b = right.loc[claim] if claim in right.index else None
        row: dict[str, Any] = {"claim": claim, "agreement": _agreement(a, b)}
        for side, source in (("mine", a), ("committed", b)):
            for suffix, column in (("", "value"), ("_low", "low"), ("_high", "high")):
                row[side + suffix] = float("nan") if source is None else float(source[column])
        row["verdict_mine"] = "not run" if a is None else a["verdict"]
        row["verdict_committed"] = "not run" if b is None else b["verdict"]
        rows.append(row)
    numbers = ["mine", "mine_low", "mine_high", "committed", "committed_low", "committed_high"]
    return pd.DataFrame(rows, columns=["claim", "agreement", *numbers, "verdict_mine", "verdict_committed"])


def _verdict_frame(source: Mapping[str, Any] | pd.DataFrame, whose: str) -> pd.DataFrame:
    frame = source if isinstance(source, pd.DataFrame) else source.get("verdicts")
    columns = ["claim", "value", "low", "high", "verdict"]
    if frame is None or len(frame) == 0:
        return pd.DataFrame(columns=columns).set_index("claim")
    for column in columns:
        if column not in frame.columns:
            raise UserError(f"{whose} verdicts.csv has no column {column}: rebuild it with `make report`")
    frame = frame[columns].copy()
    for column in ("value", "low", "high"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce")
    if frame["claim"].duplicated().any():
        raise UserError(f"{whose} verdicts.csv has claim {frame['claim'][frame['claim'].duplicated()].iloc[0]} twice")
    return frame.set_index("claim")


def _agreement(a: pd.Series | None, b: pd.Series | None) -> str:
    if b is None or np.isnan(b["value"]):
        return "not compared"
    if a is None or np.isnan(a["value"]):
        return "missing"
    bare_a, bare_b = np.isnan(a["low"]), np.isnan(b["low"])
    if bare_a and bare_b:
        near = abs(a["value"] - b["value"]) <= 0.1 * abs(b["value"])
    else:
        low_a, high_a = (a["value"], a["value"]) if bare_a else (a["low"], a["high"])
        low_b, high_b = (b["value"], b["value"]) if bare_b else (b["low"], b["high"])
        near = low_a <= high_b and low_b <= high_a
    return "agree" if near else "disagree"

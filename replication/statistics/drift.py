"""Drift from the base at equal accuracy: methods that learn at different speeds are compared where they are equally good."""

from __future__ import annotations

import numpy as np
import pandas as pd

from replication.statistics.accuracies import Tables, table

#: Levels are multiples of this validation accuracy.
STEP = 0.05
_COLUMNS = ("run_id", "method", "seed", "level", "step", "kl")


def at_equal_accuracy(tables: Tables, runs: pd.DataFrame) -> pd.DataFrame:
    """The KL to the base of some runs of one setting, each at its first validation at which greedy accuracy reaches the level.

    The level is the highest multiple of 5 % that every one of the runs reaches. Validations during training count, which measure
    both accuracy and KL.

    Returns:
        Columns run_id, method, seed, level (a fraction), step and kl (nats per token). Empty where a run has no validations, or
        has the level before it was trained: it has not drifted then, and its log KL does not exist.
    """
    empty = pd.DataFrame(columns=list(_COLUMNS))
    curves = table(tables, "curves")
    curves = curves[curves["run_id"].isin(runs["run_id"]) & curves["metric"].isin(["validation_accuracy", "validation_kl_to_base"])]
    wide = curves.pivot_table(index=["run_id", "step"], columns="metric", values="value")
    if runs.empty or wide.shape[1] < 2:
        return empty
    wide = wide.dropna().sort_index().reset_index()
    if not set(runs["run_id"]) <= set(wide["run_id"]):
        return empty
    # Rounded first: 0.55 / 0.05 must not be just under 11.
    best = wide.groupby("run_id")["validation_accuracy"].max().min()
    level = STEP * np.floor(round(best / STEP, 6))
    reached = wide[wide["validation_accuracy"] >= level - 1e-9].groupby("run_id").first()
    if (reached["validation_kl_to_base"] <= 0).any():
        return empty
    found = runs.set_index("run_id")[["method", "seed"]].join(reached)
    found = found.rename(columns={"validation_kl_to_base": "kl"}).assign(level=level)
    return found.reset_index()[list(_COLUMNS)]

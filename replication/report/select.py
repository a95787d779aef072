"""The rows of the tables that an exhibit is about, in one order; ``setting`` tells the problems of two runs apart."""

from __future__ import annotations

import pandas as pd

from replication.names import HEADLINE, SETTINGS, trained_in
from replication.statistics import Tables, rows_of, table


def runs_of(tables: Tables, ablation: str, profile: str) -> pd.DataFrame:
    """The ended runs of an ablation under a profile, by setting and method in the order of ``names``, then by seed."""
    return rows_of(tables, ablation, profile).reset_index(drop=True)


def in_order(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Rows sorted by columns, setting and method in the order of ``names``; numbered anew."""
    order = {"setting": SETTINGS, "method": ("base", *trained_in(table.get("method", ())))}

    def key(values: pd.Series) -> pd.Series:
        return values.map(order[values.name].index) if values.name in order else values

    return table.sort_values(list(columns), key=key, kind="stable", ignore_index=True)


def methods_of(runs: pd.DataFrame) -> list[str]:
    """The trained methods of some runs, in the order of ``names``."""
    return [method for method in trained_in(runs["method"]) if (runs["method"] == method).any()]


def base_accuracy(tables: Tables, profile: str, setting: str) -> float:
    """Mean test accuracy of the untrained base in percent; NaN if it was not run."""
    runs = runs_of(tables, HEADLINE, profile)
    return float(100 * runs.loc[(runs["setting"] == setting) & (runs["method"] == "base"), "accuracy"].mean())


def curves_of(tables: Tables, runs: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """The curves of some runs: columns run_id, step, metric, value, setting, method, seed."""
    curves = table(tables, "curves", ("run_id", "step", "metric", "value"))
    curves = curves.loc[curves["metric"].isin(metrics), ["run_id", "step", "metric", "value"]]
    return curves.merge(runs[["run_id", "setting", "method", "seed"]], on="run_id").astype({"step": int, "value": float})


def by_seed(curves: pd.DataFrame, metric: str, setting: str, method: str) -> pd.DataFrame:
    """One metric of one method in one setting: a row for each step, a column for each seed."""
    own = curves[(curves["metric"] == metric) & (curves["setting"] == setting) & (curves["method"] == method)]
    return own.pivot(index="step", columns="seed", values="value").sort_index()


def items_of(runs: pd.DataFrame, column: str = "n_items") -> float:
    """How many test items (``eval_items``: validation items) each of some runs answered, the fewest where they differ; NaN where
    the tables do not say.
    """
    return runs[column].min() if column in runs else float("nan")

"""Small selections that several exhibits share."""

from __future__ import annotations

import numpy as np
import pandas as pd

from replication.names import HEADLINE, trained_in
from replication.statistics import Tables, accuracy, runs_of, table


def methods_of(runs: pd.DataFrame) -> list[str]:
    """The trained methods of some runs, in the order of ``names``."""
    return [method for method in trained_in(runs["method"]) if (runs["method"] == method).any()]


def base_accuracy(tables: Tables, profile: str, setting: str) -> float:
    """Test accuracy of the untrained base in percent, on the items that the headline runs answered; NaN if it was not run."""
    runs = runs_of(tables, HEADLINE, profile)
    runs = runs[runs["setting"] == setting]
    base, trained = runs[runs["method"] == "base"], runs[runs["method"] != "base"]
    found = accuracy(tables, base, shared_with=trained) if len(trained) else accuracy(tables, base)
    return 100 * found.value if found else float("nan")


def with_all_seeds(tables: Tables, profile: str, own: pd.DataFrame) -> float:
    """Mean test accuracy in percent over all seeds of the headline, where ``own`` are its runs under some of them; else NaN."""
    headline = runs_of(tables, HEADLINE, profile)
    same = headline[headline["setting"].isin(own["setting"]) & headline["method"].isin(own["method"])]
    more = set(own["run_id"]) < set(same["run_id"])
    return float(100 * same["accuracy"].mean()) if more else float("nan")


def curves_of(tables: Tables, runs: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """The curves of some runs: columns run_id, step, metric, value, setting, method, seed."""
    curves = table(tables, "curves")
    curves = curves.loc[curves["metric"].isin(metrics), ["run_id", "step", "metric", "value"]]
    return curves.merge(runs[["run_id", "setting", "method", "seed"]], on="run_id").astype({"step": int, "value": float})


def by_seed(curves: pd.DataFrame, metric: str, setting: str, method: str) -> pd.DataFrame:
    """One metric of one method in one setting: a row for each step, a column for each seed."""
    own = curves[(curves["metric"] == metric) & (curves["setting"] == setting) & (curves["method"] == method)]
    return own.pivot(index="step", columns="seed", values="value").sort_index()


def items_of(runs: pd.DataFrame) -> float:
    """How many test items each of some runs answered, the fewest where they differ; NaN where the tables do not say."""
    return runs["n_items"].min()


def items_of_split(tables: Tables, runs: pd.DataFrame, split: str) -> float:
    """How many items of another split each of some runs answered, the fewest where they differ; NaN where the tables do not say.

    ``eval_items`` is only an upper limit, so the items are counted in items.csv. That table has the headline runs alone; ablations
    in the same setting evaluate the same items.
    """
    every, items = table(tables, "runs"), table(tables, "items")
    alike = every[every["setting"].isin(runs["setting"]) & every["profile"].isin(runs["profile"])]
    counts = items.loc[(items["split"] == split) & items["run_id"].isin(alike["run_id"]), "run_id"].value_counts()
    return float(np.fmin(runs["eval_items"].min(), counts.min()))

"""Every accuracy and difference that is shown, with its seed × item interval: each has one stream, so one interval everywhere."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from replication.randomness import numpy_stream
from replication.statistics.evidence import ITEM_COLUMNS, Evidence, Tables, as_correct, table
from replication.statistics.intervals import Estimate, bootstrap


def accuracy(evidence: Evidence, task: str, method: str, seed: int = 0) -> Estimate | None:
    """Test accuracy of a method's headline runs, a fraction; None if not measured."""
    matrix = evidence.matrix(task, method)
    return bootstrap(matrix, None, numpy_stream(seed, "bootstrap", "accuracy", task, method)) if matrix.size else None


def difference(evidence: Evidence, task: str, a: str, b: str, seed: int = 0) -> Estimate | None:
    """Test accuracy of ``a`` minus ``b`` in the headline runs, on the items both answered, a fraction; None if not measured.

    ``seeds`` are those of the trained methods (the fewer): the untrained base has none to speak of.
    """
    left, right = evidence.pair(task, a, b)
    if left.size == 0 or right.size == 0:
        return None
    rng = numpy_stream(seed, "bootstrap", "difference", task, a, b)
    estimate = bootstrap(left, right, rng, paired_seeds=list(left.index) == list(right.index))
    trained = [len(matrix) for matrix, name in ((left, a), (right, b)) if name != "base"]
    return replace(estimate, seeds=min(trained, default=1))


def answers(tables: Tables, runs: pd.DataFrame) -> pd.DataFrame:
    """Seeds × items of 0 and 1 of some ended runs, one for each seed, from items.csv and ablation_items.csv.

    Over the items that every seed answered; empty where the answers are not in the tables.
    """
    runs = runs.drop_duplicates("run_id")
    seed_of = pd.Series(runs["seed"].to_numpy(), index=runs["run_id"].astype(str))
    parts = [table(tables, name, ITEM_COLUMNS)[list(ITEM_COLUMNS)] for name in ("items", "ablation_items")]
    items = pd.concat([part[part["run_id"].isin(seed_of.index)] for part in parts])
    items = items.assign(seed=items["run_id"].map(seed_of), correct=as_correct(items["correct"]))
    wide = items.pivot(index="seed", columns="item_id", values="correct")
    return wide.dropna(axis="columns").sort_index().sort_index(axis="columns")


def gap(tables: Tables, left: pd.DataFrame, right: pd.DataFrame, *names: str | int) -> Estimate | None:
    """Test accuracy of the runs ``left`` minus ``right``, in points, over the seeds and items both have; None without such.

    Args:
        left, right: rows of runs.csv, one for each seed.
        names: of the comparison; its bootstrap draws from a stream of its own.
    """
    a, b = answers(tables, left), answers(tables, right)
    seeds, items = a.index.intersection(b.index), a.columns.intersection(b.columns)
    if not len(seeds) or not len(items):
        return None
    rng = numpy_stream(0, "bootstrap", "gap", *names)
    return bootstrap(a.loc[seeds, items], b.loc[seeds, items], rng).scaled(100)

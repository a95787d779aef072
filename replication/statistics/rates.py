"""Choosing a learning rate, on the validation split alone."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from replication.names import ENDED
from replication.statistics.accuracies import Tables, table

#: A rate is about as good as the best if its validation accuracy is lower by at most this.
NEAR = 0.05
_JUDGED = ("seeds", "diverged", "validation_accuracy", "accuracy", "chosen")
#: On the row of the chosen rate alone.
_PEAK = ("forgiving", "peak_low", "peak_high")


def tuning(tables: Tables) -> pd.DataFrame:
    """What the ablation learning_rate chose: every method at every rate, judged on the validation split alone.

    Columns setting, method, learning_rate, seeds, diverged, validation_accuracy, accuracy (means over seeds, fractions), chosen
    (see ``best_rate``). Diverged runs count as of their last validation; points without any validation accuracy cannot be chosen.
    The row of the chosen rate also has forgiving: the highest divided by the lowest rate of the unbroken run of grid points around
    it whose validation accuracy is within ``NEAR`` of its own. With two seeds or more at every rate it has peak_low and peak_high:
    the lowest and highest rate that one of these seeds would choose alone.
    """
    runs = table(tables, "runs")
    runs = runs[(runs["ablation"] == "learning_rate") & runs["status"].isin(ENDED)]
    keys = ["setting", "method"]
    points = runs.assign(diverged=runs["status"] == "diverged").groupby([*keys, "learning_rate"], as_index=False, dropna=False).agg(
        seeds=("seed", "nunique"),
        diverged=("diverged", "sum"),
        validation_accuracy=("validation_accuracy", "mean"),
        accuracy=("accuracy", "mean"),
    )  # fmt: skip
    points["chosen"] = False
    points[list(_PEAK)] = float("nan")
    for (_, group), (_, own) in zip(points.groupby(keys, dropna=False), runs.groupby(keys, dropna=False), strict=True):
        if group["validation_accuracy"].notna().any():
            rate = best_rate(own)
            best = group.index[group["learning_rate"] == rate][0]
            points.loc[best, "chosen"] = True
            points.loc[best, "forgiving"] = _forgiving(group.set_index("learning_rate")["validation_accuracy"], rate)
            alone = _seed_by_seed(own)
            if len(alone) > 1:
                points.loc[best, ["peak_low", "peak_high"]] = [min(alone), max(alone)]
    return points[[*keys, "learning_rate", *_JUDGED, *_PEAK]]


def _forgiving(accuracies: pd.Series, rate: float) -> float:
    """Highest divided by lowest of the rates around ``rate`` that are about as good, from accuracies by rising rate."""
    near = accuracies >= accuracies[rate] - NEAR
    # Stretches of neighbours that are all near share a number.
    stretch = (near != near.shift()).cumsum()
    rates = accuracies.index[stretch == stretch[rate]]
    return float(rates.max() / rates.min())


def _seed_by_seed(runs: pd.DataFrame) -> list[float]:
    """The rate that each seed which every rate was run under would choose alone."""
    found = []
    for _, own in runs.groupby("seed"):
        if own["learning_rate"].nunique() == runs["learning_rate"].nunique() and own["validation_accuracy"].notna().any():
            found.append(best_rate(own))
    return found


def best_rate(runs: pd.DataFrame) -> float:
    """The learning rate with the best mean validation accuracy, the lower of equals.

    Rates are compared on the seeds they share, so that no rate wins by luckier seeds; without a shared seed all seeds count. A rate
    without validation accuracy cannot be chosen; where none has one, the lowest rate stands.

    Args:
        runs: ended runs that differ in learning_rate and seed alone, with validation_accuracy.
    """
    values = runs.pivot_table(index="learning_rate", columns="seed", values="validation_accuracy", dropna=False)
    common = runs.groupby("seed")["learning_rate"].nunique() == runs["learning_rate"].nunique()
    # Equal means must be equal to the last digit, or the order of adding up would break the tie.
    means = (values[common.index[common]] if common.any() else values).mean(axis=1).round(9).sort_index()
    return float(means.idxmax() if means.notna().any() else means.index[0])


def end_of_grid(rate: float, tried: Iterable[float]) -> str:
    """Whether a rate is the lowest or the highest of those tried; one rate has no ends."""
    rates = sorted(set(tried))
    return "" if len(rates) < 2 else {rates[0]: "lowest", rates[-1]: "highest"}.get(rate, "")


def at_best_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """Those of the runs that have their best rate."""
    return runs[runs["learning_rate"] == best_rate(runs)]

"""What training changed besides test accuracy: where regularisation would show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.names import HEADLINE, METHOD_LABELS, TASK_LABELS, trained_in
from replication.report import style as p
from replication.report.select import runs_of
from replication.report.wording import listing, number, points
from replication.statistics import Tables, mean_over_seeds

#: Column, label of the axis, word in a sentence, factor, and the direction that is better (0: neither).
_MEASURES = (
    ("kl_to_base", "KL to the base\n(nats per token)", "drift from the base (KL)", 1.0, -1),
    ("train_minus_test", "train minus test\naccuracy (points)", "the gap of train and test accuracy", 100.0, -1),
    ("held_out_accuracy", "held-out templates:\naccuracy (%)", "held-out templates", 100.0, 1),
    ("longer_numbers_accuracy", "longer numbers:\naccuracy (%)", "longer numbers", 100.0, 1),
    ("other_task_accuracy", "the task not trained:\naccuracy (%)", "the task not trained", 100.0, 1),
    ("entropy", "entropy (nats\nper token)", "entropy", 1.0, 0),
)


def _runs(tables: Tables, profile: str) -> pd.DataFrame:
    runs = runs_of(tables, HEADLINE, profile)
    if "train_accuracy" in runs:
        runs["train_minus_test"] = runs["train_accuracy"] - runs["accuracy"]
    return runs


def effects_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per task, measure and method: mean over seeds with its t interval, and the difference to GRPO, seeds in pairs.

    A measure that says nothing on a task (not measured, or one value for the base and every run) is left out.
    """
    runs, rows = _runs(tables, profile), []
    for task, own in runs.groupby("task", sort=False):
        for column, _, name, factor, better in _MEASURES:
            values = (factor * own[column]).where(own[column].notna()) if column in own else pd.Series(dtype=float)
            if values.nunique() < 2 or not values[own["method"] != "base"].notna().any():
                continue
            seeds = {method: values[its.index].set_axis(its["seed"]).dropna() for method, its in own.groupby("method", sort=False)}
            for method, mine in seeds.items():
                estimate = mean_over_seeds(mine)
                row = {"task": task, "measure": name, "column": column, "better": better, "method": method, "seeds": len(mine)}
                row |= {"value": estimate.value, "value_low": estimate.low, "value_high": estimate.high}
                if method not in ("base", "grpo") and len(change := (mine - seeds.get("grpo", mine.iloc[:0])).dropna()):
                    change = mean_over_seeds(change)
                    row |= {"minus_grpo": change.value, "minus_grpo_low": change.low, "minus_grpo_high": change.high}
                rows.append(row)
    return pd.DataFrame(rows)


def draw_effects(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A row for each task, a panel for each measure that says something there: a dot per seed, mean and interval."""
    runs, tasks = _runs(tables, profile), list(table["task"].unique())
    wide = int(table.groupby("task")["measure"].nunique().max())
    figure, axes = p.panels("What training changed besides test accuracy", wide, rows=len(tasks), width=2.55, height=2.6)
    for row, task in zip(axes, tasks, strict=True):
        shown = [one for one in _MEASURES if ((table["task"] == task) & (table["column"] == one[0])).any()]
        for axis, (column, label, _, factor, _) in zip(row, shown, strict=False):
            _measure(axis, runs[runs["task"] == task], column, factor, trained_in(runs["method"]))
            axis.set_ylabel(label, fontsize=9)
        for axis in row[len(shown) :]:
            axis.remove()
        row[0].set_title(f"trained on {TASK_LABELS[task]}", loc="left")
    text = f"{p.about(profile)} Hollow: {p.seeds_of(runs)}; filled: their mean; dashed: the base. {p.BARS} Axes differ in "
    text += "scale. A method regularises if it drifts less and loses less elsewhere at equal test accuracy, not by learning less."
    return p.caption(figure, text)


def _measure(axis: Axes, runs: pd.DataFrame, column: str, factor: float, methods: Sequence[str]) -> None:
    if column != "kl_to_base":
        p.base_line(axis, factor * runs.loc[runs["method"] == "base", column].mean(), label=None)
    for place, method in enumerate(methods):
        own = runs[(runs["method"] == method) & runs[column].notna()]
        if own.empty:
            continue
        values, colour, marker = factor * own[column], p.COLOURS[method], p.MARKERS[method]
        spread = np.linspace(-0.18, 0.02, len(own)) if len(own) > 1 else np.zeros(1)
        p.dots(axis, place + spread, values, own, colour, marker)
        axis.plot(place + 0.22, values.mean(), marker, color=colour, markersize=6.5, zorder=4)
        p.seed_bar(axis, place + 0.22, values, colour)
    axis.set_xticks(range(len(methods)), [METHOD_LABELS[method] for method in methods], fontsize=8)
    axis.set_xlim(-0.5, len(methods) - 0.4)
    if column in ("kl_to_base", "entropy"):
        axis.set_ylim(0, None)


def _difference(value: float, column: str) -> str:
    return f"{'+' * (value > 0)}{number(value)} nats" if column in ("kl_to_base", "entropy") else points(value)


def say_effects(table: pd.DataFrame) -> list[str]:
    """Where a sparse method is clearly better or worse than full-token GRPO, seeds in pairs."""
    compared = table[(table["better"] != 0) & table["minus_grpo"].notna()] if "minus_grpo" in table else table.iloc[:0]
    if compared.empty:
        return ["No sparse method was run under the same seeds as full-token GRPO."]
    gain = compared["better"] * compared["minus_grpo"]
    clear = (compared["minus_grpo_low"] > 0) | (compared["minus_grpo_high"] < 0)
    said = []
    for word, chosen in (("better", compared[clear & (gain > 0)]), ("worse", compared[clear & (gain < 0)])):
        parts = []
        for (method, task), own in chosen.groupby(["method", "task"], sort=False):
            names = [f"{row.measure} {_difference(row.minus_grpo, row.column)}" for row in own.itertuples()]
            parts.append(f"{METHOD_LABELS[method]} trained on {TASK_LABELS[task]} ({listing(names)})")
        said.append(f"Clearly {word} than GRPO is {'; '.join(parts) or 'no sparse method in anything measured here'}.")
    return said

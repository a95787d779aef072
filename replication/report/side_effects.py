"""What training changed besides test accuracy: where regularisation would show."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.names import HEADLINE, METHOD_LABELS, SETTING_LABELS
from replication.report import style as p
from replication.report.select import items_of, items_of_split, methods_of
from replication.report.wording import listing, number, points
from replication.statistics import Tables, accuracy, difference, mean_over_seeds, runs_of

#: The accuracy on trained items is not here: no run of the headline sees an item twice (``regimes`` has runs that do).
#: Column, label of the axis, word in a sentence, factor, and the direction that is better (0: neither).
_MEASURES = (
    ("kl_to_base", "KL to the base\n(nats per token, log scale)", "drift from the base (geometric mean of the KL)", 1.0, -1),
    ("held_out_accuracy", "held-out templates:\naccuracy (%)", "held-out templates", 100.0, 1),
    ("longer_numbers_accuracy", "longer numbers:\naccuracy (%)", "longer numbers", 100.0, 1),
    ("other_task_accuracy", "the task not trained:\naccuracy (%)", "the task not trained", 100.0, 1),
    ("entropy", "entropy (nats\nper token, log scale)", "entropy", 1.0, 0),
)


def effects_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting, measure and method: mean over seeds with its t interval, and the difference to GRPO, seeds in pairs.

    On held-out templates the interval is over seeds, templates and items.

    The mean of the KL to the base is geometric, since the KL of single seeds differs by orders of magnitude: in an arithmetic mean
    one seed could decide which method drifts more. ``kl_over_grpo`` is its ratio to GRPO's. ``items`` counts test items for KL
    and entropy, and items of the named split for an accuracy. A measure that says nothing in a setting (not measured, or one
    value for the base and every run) is left out.
    """
    runs, rows = runs_of(tables, HEADLINE, profile), []
    for setting, own in runs.groupby("setting", sort=False):
        for column, _, name, factor, better in _MEASURES:
            wide = factor * own.pivot(index="seed", columns="method", values=column)
            if wide.stack().nunique() < 2 or wide.drop(columns="base", errors="ignore").isna().all(axis=None):
                continue
            if log := column == "kl_to_base":  # the base's is rounding, which a logarithmic axis would be stretched by
                wide = np.log(wide.drop(columns="base", errors="ignore").where(lambda kl: kl > 0))
            split = column.removesuffix("_accuracy")
            items = items_of(own) if split == column else items_of_split(tables, own, split)
            for method in own["method"].unique():
                mine = wide[method].dropna() if method in wide else pd.Series(dtype=float)
                if mine.empty:
                    continue
                value, against = mean_over_seeds(mine), mean_over_seeds((mine - wide.get("grpo", np.nan)).dropna())
                if column == "held_out_accuracy":  # the same items for every seed, so that these count in the interval
                    left, right = (own[(own["method"] == side) & own[column].notna()] for side in (method, "grpo"))
                    of_items = accuracy(tables, left, "held_out"), difference(tables, left, right, "held_out")
                    value, against = (new.scaled(100) if new else old for new, old in zip(of_items, (value, against), strict=True))
                found = value.columns("value")
                if method not in ("base", "grpo") and against.seeds:
                    found |= against.columns("kl_over_grpo" if log else "minus_grpo")
                row = {"setting": setting, "measure": name, "column": column, "better": better, "method": method}
                row |= {"seeds": len(mine), "items": items}
                rows.append(row | ({end: math.exp(of_log) for end, of_log in found.items()} if log else found))
    return pd.DataFrame(rows)


def draw_effects(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A panel for each measure, in it the settings in which it says something: a dot per seed, mean and interval."""
    runs = runs_of(tables, HEADLINE, profile)
    methods = methods_of(table)
    shown = [one for one in _MEASURES if (table["column"] == one[0]).any()]
    columns = min(3, len(shown))
    size = {"rows": math.ceil(len(shown) / columns), "width": p.PAGE_WIDTH / 3, "height": 2.9}
    figure, axes = p.panels("What training changed besides test accuracy", columns, **size)
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for axis, (column, label, _, factor, _) in zip(axes.flat, shown, strict=False):
        _measure(axis, runs.assign(value=factor * runs[column]), table[table["column"] == column], methods)
        axis.set_ylabel(label, fontsize=9)
        if "log scale" in label:
            axis.set_yscale("log")
    p.legend_beside(figure, axes.flat[: len(shown)])
    bars = p.bars(runs)
    if bars and (table["column"] == "held_out_accuracy").any():
        bars += " On held-out templates: 95 % bootstrap over seeds, templates and items."
    text = f"{p.about(profile)} Below each group: what was trained on. Hollow: {p.seeds_of(runs)}; filled: their mean; dashed: the "
    text += "base. The mean of the KL is geometric: seeds differ by orders of magnitude, and one would decide an arithmetic "
    text += f"mean.{bars} Vertical scales differ between panels. A method regularises if it drifts less and loses less "
    return p.caption(figure, text + "elsewhere at equal test accuracy, not by learning less.")


def _measure(axis: Axes, runs: pd.DataFrame, table: pd.DataFrame, methods: Sequence[str]) -> None:
    """One measure (column ``value``), a group for each setting, in it the methods side by side."""
    settings, step = list(table["setting"].unique()), 0.8 / len(methods)
    for place, setting in enumerate(settings):
        here, means = runs[runs["setting"] == setting], table[table["setting"] == setting].set_index("method")
        if "base" in means.index:
            ends, look = [place - 0.45, place + 0.45], {"color": p.COLOURS["base"], "linestyle": (0, (4, 2)), "linewidth": 1.2}
            axis.plot(ends, [means.loc["base", "value"]] * 2, zorder=1, **look)
        for number_, method in enumerate(name for name in methods if name in means.index):
            left, colour, marker = place - 0.4 + number_ * step, p.COLOURS[method], p.MARKERS[method]
            own, row = here[(here["method"] == method) & here["value"].notna()], means.loc[method]
            spread = np.linspace(0.1, 0.55, len(own)) if len(own) > 1 else np.full(1, 0.3)
            p.dots(axis, left + step * spread, own["value"], own, colour, marker, size=10)
            axis.plot(left + 0.8 * step, row["value"], marker, color=colour, markersize=5.5, zorder=4, label=METHOD_LABELS[method])
            if row["seeds"] >= p.SEEDS_FOR_A_BAR:
                axis.plot([left + 0.8 * step] * 2, [row["value_low"], row["value_high"]], color=colour, lw=2, alpha=0.6, zorder=2)
    labels = [textwrap.fill(SETTING_LABELS[setting], 9, break_long_words=False) for setting in settings]
    axis.set_xticks(range(len(settings)), labels, fontsize=8)
    axis.set_xlim(-0.5, len(settings) - 0.5)
    axis.grid(axis="x", visible=False)


def say_effects(table: pd.DataFrame) -> list[str]:
    """Where a sparse method is clearly better or worse than full-token GRPO, seeds in pairs."""
    parts: dict[str, list[str]] = {"better": [], "worse": []}
    compared = 0
    for (method, setting), own in table[table["better"] != 0].groupby(["method", "setting"], sort=False):
        names: dict[str, list[str]] = {"better": [], "worse": []}
        for row in own.to_dict("records"):
            against, same = ("kl_over_grpo", 1.0) if row["column"] == "kl_to_base" else ("minus_grpo", 0.0)
            if pd.isna(row.get(f"{against}_low")):
                continue
            compared, higher = compared + 1, row[against] > same
            if row[f"{against}_low"] > same or row[f"{against}_high"] < same:
                change = f"{number(row[against])} times" if same else points(row[against])
                names["better" if higher == (row["better"] > 0) else "worse"].append(f"{row['measure']} ({change})")
        for word in parts:
            if names[word]:
                measures = listing(names[word])
                parts[word].append(f"{METHOD_LABELS[method]} trained on {SETTING_LABELS[setting]}, measured by {measures}")
    if not compared:
        return ["No difference to full-token GRPO has an interval: it takes two seeds that both were run with."]
    return [
        " ".join(
            f"Clearly {word} than GRPO: {'; '.join(said) or 'no sparse method in any of these'}." for word, said in parts.items()
        ),
        f"The {compared} intervals are not corrected for multiple tests; on longer numbers and the task not "
        "trained they are over seeds alone.",
    ]

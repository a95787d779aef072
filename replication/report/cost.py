"""What an accuracy costs: tokens in the loss, tokens through the model, FLOPs, seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.names import HEADLINE, METHOD_LABELS, SETTING_LABELS, trained_in
from replication.report import style as p
from replication.report.select import by_seed, curves_of, items_of_split
from replication.report.wording import counted, interval, listing, number, span
from replication.statistics import Tables, mean_over_seeds, runs_of, table

#: Sums over the steps, by the metrics of curves.csv that they are made of.
_TOKENS = {"tokens_in_loss": ("tokens_in_loss",), "tokens_through_model": ("tokens_generated", "tokens_forwarded")}
_LABELS = {
    "tokens_in_loss": "tokens in the loss",
    "tokens_through_model": "tokens through the model\n(sampled, and forwarded in the updates)",
    "tflop": "TFLOP of training\n(sampling included)",
    "seconds": "seconds of training\n(sampling included)",
}
_SECONDS = ("rollout_s", "score_s", "update_s")
_SECONDS_ARE = (
    "Seconds: of the machine that trained, other work on it included; divided evenly over a run's steps, although groups that tie "
    "make late steps cheaper."
)
#: The level whose price is asked: this share of the way from the base to the best method's last validation accuracy.
SHARE = 0.8


def _spent(tables: Tables, profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trained headline runs; and per run and step what it had spent so far (columns run_id, step and those of _LABELS).

    TFLOP (10^12 floating-point operations) are tokens times those of one token, which ``diagnose`` counts: a sampled token goes
    forward, one of an update forward and backward. Seconds are known of whole runs: each step has an equal part of them.
    """
    runs = runs_of(tables, HEADLINE, profile)
    runs = runs[runs["method"] != "base"]
    curves = curves_of(tables, runs, *(metric for parts in _TOKENS.values() for metric in parts))
    steps = curves.pivot_table(index=["run_id", "step"], columns="metric", values="value")
    missing = pd.Series(np.nan, index=steps.index)
    each = _flops_per_token(tables, profile)
    flops = sum(each[metric] * steps.get(metric, missing) for metric in each) if each else missing
    sums: dict[str, pd.Series] = {name: sum(steps.get(part, missing) for part in parts) for name, parts in _TOKENS.items()}
    sums["tflop"] = flops / 1e12
    spent = pd.DataFrame(sums, index=steps.index).groupby("run_id").cumsum().reset_index()
    timings = table(tables, "timings", ("run_id", *_SECONDS)).drop_duplicates("run_id").set_index("run_id")
    seconds = timings[list(_SECONDS)].astype(float).sum(axis=1, skipna=False)
    last = spent.groupby("run_id")["step"].transform("max")
    return runs, spent.assign(seconds=spent["run_id"].map(seconds).astype(float) * spent["step"] / last)


def _flops_per_token(tables: Tables, profile: str) -> dict[str, float]:
    """FLOPs of a sampled and of an update's token by the metric of curves.csv that counts such tokens; empty if not measured."""
    found = table(tables, "credit", ("profile", "quantity", "value"))
    found = found[found["profile"] == profile].drop_duplicates("quantity").set_index("quantity")["value"]
    names = {"tokens_generated": "flops_sampled_token", "tokens_forwarded": "flops_updated_token"}
    return {metric: float(found[name]) for metric, name in names.items()} if set(names.values()) <= set(found.index) else {}


def spending_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and method: what a whole training spends, mean over seeds, and its share of what full-token GRPO spends."""
    runs, spent = _spent(tables, profile)
    if spent.empty:
        return pd.DataFrame()
    ends = runs.merge(spent.groupby("run_id").last().drop(columns="step"), on="run_id", suffixes=("_run", ""))
    rows = []
    for (setting, method), own in ends.groupby(["setting", "method"], sort=False):
        full = ends[(ends["setting"] == setting) & (ends["method"] == "grpo")]
        row = {"setting": setting, "method": method, "seeds": own["seed"].nunique()}
        for name in _LABELS:
            row |= {name: own[name].mean(), f"{name}_%_of_grpo": 100 * own[name].mean() / full[name].mean()}
        rows.append(row)
    return pd.DataFrame(rows)


def draw_spending(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Validation accuracy against what had been spent by then: a row for each kind of spending, a column for each setting."""
    runs, spent = _spent(tables, profile)
    curves = curves_of(tables, runs, "validation_accuracy")
    spent = spent.merge(runs[["run_id", "setting", "method", "seed"]], on="run_id")
    settings = list(table["setting"].unique())
    shown = [name for name in _LABELS if spent[name].notna().any()]
    size = {"rows": len(shown), "width": p.column_width(settings), "height": 2.8}
    figure, axes = p.panels("Accuracy against what was spent", len(settings), **size)
    for row, name in zip(axes, shown, strict=True):
        for axis, setting in zip(row, settings, strict=True):
            reached: list[float] = []
            for method in trained_in(runs["method"]):
                own = spent[(spent["setting"] == setting) & (spent["method"] == method)]
                if own.empty:
                    continue
                accuracy = 100 * by_seed(curves, "validation_accuracy", setting, method)
                tokens = own.pivot(index="step", columns="seed", values=name)
                steps = accuracy.index.intersection(tokens.index)
                x, y, look = tokens.loc[steps], accuracy.loc[steps], {"color": p.COLOURS[method]}
                for seed in x.columns.intersection(y.columns):
                    axis.plot(x[seed], y[seed], alpha=0.35, linewidth=0.8, **look)
                look |= {"marker": p.MARKERS[method], "markersize": 5.5, "label": METHOD_LABELS[method]}
                axis.plot(x.mean(axis=1), y.mean(axis=1), **look)
                reached += list(x.mean(axis=1))
            p.decades(axis, reached)
            axis.set_xlabel(f"{_LABELS[name].splitlines()[0]} (log scale)")
            axis.set_title(SETTING_LABELS[setting], loc="left")
            p.percent_axis(axis, "validation accuracy (%)")
    p.legend_beside(figure, axes.flat)
    text = f"{p.about(profile)} A marker for each evaluation; thick: mean over {p.seeds_of(runs)}, thin: each seed. Read across "
    text += "at an accuracy: the curve met first spent least. Through the model: sampled tokens and those of the updates."
    text += " TFLOP: tokens times those of one, counted by PyTorch." * ("tflop" in shown)
    text += f" {_SECONDS_ARE}" * ("seconds" in shown)
    return p.caption(figure, text)


def say_spending(table: pd.DataFrame) -> list[str]:
    """A whole training: tokens in the loss, and tokens through the model, as shares of what full-token GRPO spends."""
    said = []
    for name, words in (("tokens_in_loss", "tokens in the loss"), ("tokens_through_model", "tokens through the model")):
        shares = table[(table["method"] != "grpo") & table[f"{name}_%_of_grpo"].notna()]
        parts = [
            f"{METHOD_LABELS[method]} {span(values)} %"
            for method, values in shares.groupby("method", sort=False)[f"{name}_%_of_grpo"]
        ]
        said += [f"Over a whole training, in percent of GRPO's {words}: {listing(parts)}."] if parts else []
    return said or ["Nothing to compare with full-token GRPO."]


# The price of a level ----------------------------------------------------------------------------------------------------------


def prices(tables: Tables, profile: str, share: float = SHARE) -> pd.DataFrame:
    """What each headline run had spent when it first reached a level of validation accuracy, a row for each run.

    The level of a setting is ``share`` of the way from the base to the highest mean that a method ends with. Between evaluations
    accuracy is taken as linear in steps. A run that never gets there has NaN: not reached is missing, not 0.

    Returns:
        Columns run_id, setting, method, seed, level, step, and those of ``_LABELS``.
    """
    runs, spent = _spent(tables, profile)
    curves = 100 * curves_of(tables, runs, "validation_accuracy").pivot(index="step", columns="run_id", values="value").sort_index()
    rows = []
    for setting, own in runs[runs["run_id"].isin(curves.columns)].groupby("setting", sort=False):
        wide = {run_id: curves[run_id].dropna() for run_id in own["run_id"]}
        ends = own.assign(end=[accuracy.iloc[-1] for accuracy in wide.values()]).groupby("method")["end"].mean()
        start = float(np.mean([accuracy.iloc[0] for accuracy in wide.values()]))
        level = start + share * (ends.max() - start)
        for run in own.itertuples():
            accuracy = wide[run.run_id]
            step = _first_step(accuracy, level)
            row = {"run_id": run.run_id, "setting": setting, "method": run.method, "seed": run.seed, "level": level, "step": step}
            sums = spent[spent["run_id"] == run.run_id]
            rows.append(row | {name: float(np.interp(step, [0, *sums["step"]], [0, *sums[name]])) for name in _LABELS})
    return pd.DataFrame(rows, columns=["run_id", "setting", "method", "seed", "level", "step", *_LABELS])


def _first_step(accuracy: pd.Series, level: float) -> float:
    """The step at which the broken line through the evaluations first reaches ``level``; NaN if never."""
    points = list(accuracy.items())
    for (s0, a0), (s1, a1) in zip(points, points[1:], strict=False):
        if a1 >= level:
            return float(s0) if a0 >= level else float(s0 + (s1 - s0) * (level - a0) / (a1 - a0))
    return float("nan")


def price_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and method: the level, how many seeds reach it, and the median price over all seeds.

    A seed that never reaches the level counts as dearer than any that does, so the median is missing where half or more fail.
    times_grpo: tokens through the model over GRPO's, the geometric mean over pairs of seeds with its t interval; empty where a
    seed of either never reached the level.
    """
    rows, runs, spent = [], runs_of(tables, HEADLINE, profile), prices(tables, profile)
    logs = np.log(spent.set_index(["setting", "method", "seed"])["tokens_through_model"]).sort_index()
    for (setting, method), own in spent.groupby(["setting", "method"], sort=False):
        row = {"setting": setting, "method": method, "level": own["level"].iloc[0], "seeds": len(own)}
        row["validation_items"] = items_of_split(tables, runs[runs["run_id"].isin(own["run_id"])], "validation")
        row["reached"] = own["step"].notna().sum()
        row |= own[list(_LABELS)].fillna(np.inf).median().replace(np.inf, np.nan).to_dict()
        if method != "grpo" and (setting, "grpo") in logs.index:
            both = (logs[setting, method] - logs[setting, "grpo"]).reindex(own["seed"])
            ratio = mean_over_seeds(both.dropna() if logs[setting].loc[[method, "grpo"]].notna().all() else [])
            row |= {name: math.exp(value) for name, value in ratio.columns("times_grpo").items()}
        rows.append(row)
    return pd.DataFrame(rows)


def draw_price(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A row for each setting, a panel for each price: a dot per seed that reached the level, and the median over all seeds."""
    runs, settings = prices(tables, profile), list(table["setting"].unique())
    shown = [name for name in _LABELS if runs[name].notna().any()]
    figure, axes = p.panels("The price of an accuracy", max(len(shown), 1), rows=len(settings), width=3.3, height=2.2)
    levels = []
    for row, setting in zip(axes, settings, strict=True):
        here, medians = runs[runs["setting"] == setting], table[table["setting"] == setting].set_index("method")
        levels.append(f"{medians['level'].iloc[0]:.0f} % on {SETTING_LABELS[setting]}")
        for axis, name in zip(row, shown, strict=False):
            _price(axis, here, medians, name, trained_in(runs["method"]))
            if axis.get_subplotspec().is_last_row():
                axis.set_xlabel(_LABELS[name], fontsize=8.5)
            p.rows_axis(axis, [METHOD_LABELS[method] if axis is row[0] else "" for method in trained_in(runs["method"])])
        row[0].set_title(SETTING_LABELS[setting], loc="left")
    text = (
        f"{p.about(profile)} Log scales. Until the validation accuracy first reaches {listing(levels)} ({100 * SHARE:.0f} % "
        "of the way from the base to the best method; linear between evaluations). Hollow: a seed; filled: median over all seeds, "
        f"where those that never got there count as dearer. {_SECONDS_ARE}"
    )
    return p.caption(figure, text)


def _price(axis: Axes, runs: pd.DataFrame, medians: pd.DataFrame, name: str, methods: Sequence[str]) -> None:
    p.decades(axis, runs[name].dropna())
    for place, method in enumerate(methods):
        if method not in medians.index:
            continue
        values, colour, marker = runs.loc[runs["method"] == method, name].dropna(), p.COLOURS[method], p.MARKERS[method]
        axis.scatter(values, place + 0.16 + 0 * values, s=18, marker=marker, facecolors="white", edgecolors=colour, zorder=3)
        median, seeds = medians.loc[method, name], int(medians.loc[method, "seeds"])
        count = f" ({len(values)} of {seeds})" if len(values) < seeds else ""
        if np.isfinite(median):
            axis.plot(median, place - 0.1, marker, color=colour, markersize=7, zorder=4)
            look = {"ha": "center", "fontsize": 8.5, "color": colour}
            axis.annotate(number(median) + count, (median, place - 0.1), xytext=(0, 5), textcoords="offset points", **look)
        else:
            look = {"ha": "center", "fontsize": 8, "color": "#777777", "transform": axis.get_yaxis_transform()}
            axis.text(0.5, place - 0.2, f"too few seeds got there{count}", **look)


def say_price(table: pd.DataFrame) -> list[str]:
    """How many times GRPO's tokens through the model a method takes, seeds in pairs; and which seeds never got there."""
    parts, missed = [], []
    for setting, own in table.groupby("setting", sort=False):
        ratios = own[own["times_grpo"].notna()] if "times_grpo" in own else own.iloc[:0]
        words = [
            f"{METHOD_LABELS[row.method]} {interval(row.times_grpo, row.times_grpo_low, row.times_grpo_high)}"
            for row in ratios.itertuples()
        ]
        parts += [f"to {number(own['level'].iloc[0])} % on {SETTING_LABELS[setting]} {listing(words)}"] if words else []
        for row in own[own["reached"] < own["seeds"]].itertuples():
            count = f"{row.seeds - row.reached} of {counted(row.seeds, 'seed')}"
            missed.append(f"{METHOD_LABELS[row.method]} on {SETTING_LABELS[setting]} {count}")
    said = [f"Tokens through the model until the level, as a multiple of GRPO's: {'; '.join(parts)}."] if parts else []
    return said + [f"Never got there: {', '.join(missed)}." if missed else "Every seed of every method got there."]

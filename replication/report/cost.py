"""What an accuracy costs: tokens in the loss, tokens through the model, FLOPs, seconds."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
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
    "tokens_through_model": "tokens through the model",
    "tflop": "TFLOP of training",
    "seconds": "seconds of training",
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
    timings = table(tables, "timings").set_index("run_id")
    seconds = timings[list(_SECONDS)].sum(axis=1, skipna=False)
    last = spent.groupby("run_id")["step"].transform("max")
    return runs, spent.assign(seconds=spent["run_id"].map(seconds).astype(float) * spent["step"] / last)


def _flops_per_token(tables: Tables, profile: str) -> dict[str, float]:
    """FLOPs of a sampled and of an update's token by the metric of curves.csv that counts such tokens; empty if not measured."""
    found = table(tables, "credit")
    found = found[found["profile"] == profile].drop_duplicates("quantity").set_index("quantity")["value"]
    names = {"tokens_generated": "flops_sampled_token", "tokens_forwarded": "flops_updated_token"}
    return {metric: float(found[name]) for metric, name in names.items()} if set(names.values()) <= set(found.index) else {}


def prices(tables: Tables, profile: str) -> pd.DataFrame:
    """What each headline run had spent when it first reached a level of validation accuracy, a row for each run.

    The level of a setting is ``SHARE`` of the way from the base to the highest mean that a method ends with. Between evaluations
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
        level = start + SHARE * (ends.max() - start)
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


def cost_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and method: the level, how many seeds reach it, the median price over all seeds, and what a whole training took.

    A seed that never reaches the level counts as dearer than any that does, so the median is missing where half or more fail.
    times_grpo: tokens through the model over GRPO's, the geometric mean over pairs of seeds with its t interval; empty where a
    seed of either never reached the level. The tokens of a whole training are in percent of full-token GRPO's, means over seeds.
    """
    rows, (runs, spent), priced = [], _spent(tables, profile), prices(tables, profile)
    logs = np.log(priced.set_index(["setting", "method", "seed"])["tokens_through_model"]).sort_index()
    whole = runs[["run_id", "setting", "method"]].merge(spent.groupby("run_id")[list(_TOKENS)].last(), on="run_id")
    means = whole.groupby(["setting", "method"])[list(_TOKENS)].mean()
    for (setting, method), own in priced.groupby(["setting", "method"], sort=False):
        row = {"setting": setting, "method": method, "level": own["level"].iloc[0], "seeds": len(own)}
        row["validation_items"] = items_of_split(tables, runs[runs["run_id"].isin(own["run_id"])], "validation")
        row["reached"] = own["step"].notna().sum()
        row |= own[list(_LABELS)].fillna(np.inf).median().replace(np.inf, np.nan).add_suffix("_to_level").to_dict()
        both = pd.Series(dtype=float)
        if method != "grpo" and (setting, "grpo") in logs.index and logs[setting].loc[[method, "grpo"]].notna().all():
            both = (logs[setting, method] - logs[setting, "grpo"]).reindex(own["seed"]).dropna()
        row |= {name: math.exp(value) for name, value in mean_over_seeds(both).columns("times_grpo").items()}
        full = means.loc[setting, "grpo"] if (setting, "grpo") in means.index else np.nan
        rows.append(row | (100 * (means.loc[setting, method] / full)).add_suffix("_%_of_grpo").to_dict())
    return pd.DataFrame(rows)


def draw_cost(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Validation accuracy against what had been spent by then: a row for each kind of spending, a column for each setting."""
    runs, spent = _spent(tables, profile)
    curves = curves_of(tables, runs, "validation_accuracy")
    spent = spent.merge(runs[["run_id", "setting", "method", "seed"]], on="run_id")
    settings = list(table["setting"].unique())
    shown = [name for name in _LABELS if spent[name].notna().any()]
    size = {"rows": len(shown), "width": p.column_width(settings), "height": 2.8}
    figure, axes = p.panels("What an accuracy costs", len(settings), **size)
    for row, name in zip(axes, shown, strict=True):
        reached: list[float] = []
        for axis, setting in zip(row, settings, strict=True):
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
            axis.set_xlabel(f"{_LABELS[name]} (log scale)")
            axis.set_title(SETTING_LABELS[setting], loc="left")
            p.percent_axis(axis, "validation accuracy (%)")
        for axis in row:
            p.decades(axis, reached)
    p.legend_beside(figure, axes.flat)
    text = f"{p.about(profile)} A marker for each evaluation; thick: mean over {p.seeds_of(runs)}, thin: each seed. Read across "
    text += "at an accuracy: the curve met first spent least. Through the model: sampled tokens and those of the updates."
    text += " TFLOP: tokens times those of one, counted by PyTorch." * ("tflop" in shown)
    text += f" {_SECONDS_ARE}" * ("seconds" in shown)
    return p.caption(figure, text)


def say_cost(table: pd.DataFrame) -> list[str]:
    """What a whole training spends, in percent of full-token GRPO's; then what the level costs."""
    spent = []
    for name, words in (("tokens_in_loss", "tokens in the loss"), ("tokens_through_model", "tokens through the model")):
        shares = table[(table["method"] != "grpo") & table[f"{name}_%_of_grpo"].notna()]
        parts = [
            f"{METHOD_LABELS[method]} {span(values)} %"
            for method, values in shares.groupby("method", sort=False)[f"{name}_%_of_grpo"]
        ]
        spent += [f"Over a whole training, in percent of GRPO's {words}: {listing(parts)}."] if parts else []
    parts, missed = [], []
    for setting, own in table.groupby("setting", sort=False):
        words = [
            f"{METHOD_LABELS[row.method]} {interval(row.times_grpo, row.times_grpo_low, row.times_grpo_high)}"
            for row in own[own["times_grpo"].notna()].itertuples()
        ]
        parts += [f"to {number(own['level'].iloc[0])} % on {SETTING_LABELS[setting]} {listing(words)}"] if words else []
        for row in own[own["reached"] < own["seeds"]].itertuples():
            count = f"{row.seeds - row.reached} of {counted(row.seeds, 'seed')}"
            missed.append(f"{METHOD_LABELS[row.method]} on {SETTING_LABELS[setting]} {count}")
    price = [f"Tokens through the model until the level, as a multiple of GRPO's: {'; '.join(parts)}."] if parts else []
    price += [f"Never got there: {', '.join(missed)}." if missed else "Every seed of every method got there."]
    level = f"The level of a setting is {100 * SHARE:.0f} % of the way from the base to the best method's last validation accuracy."
    return [" ".join(part) for part in (spent, [level, *price]) if part]

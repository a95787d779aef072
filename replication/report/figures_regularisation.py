"""What training did besides test accuracy, and what an accuracy takes: two figures from the tables of the runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.names import HEADLINE
from replication.report import style as p
from replication.report.figures_diagnostics import axis_names
from replication.statistics import Tables, mean_over_seeds, table

#: Column of runs.csv, what it is called, factor, whether the base's value is a reference worth a line.
_MEASURES = (
    ("kl_to_base", "KL to the base\n(nats per token)", 1.0, False),
    ("gap", "train minus test\naccuracy (points)", 100.0, True),
    ("held_out_accuracy", "held-out templates:\naccuracy (%)", 100.0, True),
    ("longer_numbers_accuracy", "longer numbers:\naccuracy (%)", 100.0, True),
    ("other_task_accuracy", "the task not trained:\naccuracy (%)", 100.0, True),
    ("entropy", "entropy (nats\nper token)", 1.0, True),
)


def regularisation(tables: Tables) -> Figure:
    """Drift, gap between train and test, held-out templates, the other task and entropy after training, a dot per seed."""
    title = "Does sparse regularise? What training changed besides test accuracy"
    needed = ("accuracy", "train_accuracy", "kl_to_base")
    runs = p.ended(tables.get("runs"), HEADLINE, *needed)
    tasks = p.tasks_of(runs)
    if not tasks or runs["method"].eq("base").all():
        return p.not_run(title, "no trained run of full_vs_sparse has ended")
    runs["gap"] = runs["train_accuracy"].astype(float) - runs["accuracy"].astype(float)
    figure, axes = p.panels(title, len(_MEASURES), rows=len(tasks), width=2.55, height=2.6)
    for row, task in zip(axes, tasks, strict=True):
        here = runs[runs["task"] == task]
        for axis, (column, label, factor, line) in zip(row, _MEASURES, strict=True):
            _measure(axis, here, column, label, factor, line)
        row[0].set_title(f"trained on {p.TASKS[task]}", loc="left")
    counts = runs[runs["method"] != "base"].groupby(["task", "method"])["seed"].nunique()
    text = (
        f"{p.scale_text(runs)} Hollow: {p.seeds_text(runs)}; filled: their mean; dashed: the base.{p.bars_text(counts)} Every "
        "axis has its own scale. A method regularises if it drifts less and loses less elsewhere at an equal test accuracy, not by "
        "learning less."
    )
    return p.caption(figure, text + p.diverged_text(runs), runs)


def _measure(axis: Axes, runs: pd.DataFrame, column: str, label: str, factor: float, line: bool) -> None:
    values = pd.to_numeric(runs[column], errors="coerce") * factor if column in runs else pd.Series(np.nan, index=runs.index)
    base = values[runs["method"] == "base"].mean()
    if not values[runs["method"] != "base"].notna().any():
        axis.set_axis_off()
        text = f"{label.replace(' (%)', '')}\nnot measured"
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, color="#777777", transform=axis.transAxes)
        return
    axis.set_ylabel(label, fontsize=9)
    if line and np.isfinite(base):
        axis.axhline(base, color=p.COLOURS["base"], linestyle=(0, (5, 3)), linewidth=1.1)
    for place, method in enumerate(p.TRAINED):
        mine = values[(runs["method"] == method)].dropna()
        if mine.empty:
            continue
        colour, marker = p.COLOURS[method], p.MARKERS[method]
        spread = np.linspace(-0.18, 0.02, len(mine)) if len(mine) > 1 else np.zeros(1)
        axis.scatter(place + spread, mine, s=20, marker=marker, facecolors="white", edgecolors=colour, lw=1.0, zorder=3)
        axis.plot(place + 0.22, mine.mean(), marker, color=colour, markersize=6.5, zorder=4)
        if len(mine) >= p.SEEDS_FOR_A_BAR:
            over_seeds = mean_over_seeds(mine)
            axis.plot([place + 0.22] * 2, [over_seeds.low, over_seeds.high], color=colour, linewidth=2, alpha=0.6, zorder=3)
    axis.set_xticks(range(3), ["GRPO", "S-GRPO", "T-SPMO"], fontsize=8)
    axis.set_xlim(-0.5, 2.6)
    low, high = axis.get_ylim()
    if column in ("kl_to_base", "entropy"):
        axis.set_ylim(0, max(high, 1e-3))
    elif column.endswith("_accuracy"):
        axis.set_ylim(max(-2.0, low - 2), min(102.0, max(high + 2, low + 10)))
        axis.set_yticks([tick for tick in axis.get_yticks() if 0 <= tick <= 100 and low - 2 <= tick <= max(high + 2, low + 10)])
        if base == 0 and column == "other_task_accuracy":
            axis.text(0.5, 0.9, "the base is at 0 %:\nnothing to lose", ha="center", va="top", fontsize=8, transform=axis.transAxes)


#: What reaching an accuracy may cost: name, label, and whether it is summed from curves.csv or a share of timings.csv.
PRICES = (
    ("tokens_in_loss", "tokens in the loss"),
    ("tokens_forwarded", "tokens through the model\nin the updates"),
    ("predicted_flops", "FLOPs, predicted\n(sampling included)"),
    ("update_seconds", "seconds in the updates"),
    ("seconds", "seconds of training\n(sampling included)"),
)


def prices(tables: Tables, share: float = 0.8) -> pd.DataFrame:
    """What each headline run had spent when it first reached a level of validation accuracy, a row per run.

    The level of a task: this share of the way from the base to the highest mean that a method ends with. Between evaluations
    accuracy is taken as linear in steps; the last point is the final evaluation. A run that never gets there has NaN.

    Returns:
        Columns run_id, task, method, seed, level, step, and those of PRICES; seconds are those of the machine that trained.
    """
    runs = p.ended(tables.get("runs"), HEADLINE)
    curves = table(tables, "curves", ("run_id", "step", "metric", "value"))
    columns = ["run_id", "task", "method", "seed", "level", "step", *(name for name, _ in PRICES)]
    if runs.empty or curves.empty:
        return pd.DataFrame(columns=columns)
    runs["run_id"] = runs["run_id"].astype(str)
    timings = tables.get("timings")
    timings = pd.DataFrame({"run_id": []}) if timings is None else timings
    timings = timings.assign(run_id=timings["run_id"].astype(str)).set_index("run_id")
    rows = []
    for task, own in runs[runs["method"] != "base"].groupby("task", sort=False):
        wide = {run.run_id: _accuracy_by_step(run, curves) for run in own.itertuples()}
        wide = {run_id: accuracy for run_id, accuracy in wide.items() if len(accuracy) > 1}
        if not wide:
            continue
        ends = pd.Series({run_id: accuracy.iloc[-1] for run_id, accuracy in wide.items()})
        best = ends.groupby(own.set_index("run_id")["method"]).mean().max()
        start = float(np.mean([accuracy.iloc[0] for accuracy in wide.values()]))
        level = start + share * (best - start)
        for run in own[own["run_id"].isin(wide)].itertuples():
            step = _first_step(wide[run.run_id], level)
            row = {"run_id": run.run_id, "task": task, "method": run.method, "seed": run.seed, "level": 100 * level, "step": step}
            rows.append(row | _spent(run.run_id, step, wide[run.run_id].index[-1], curves, timings))
    return pd.DataFrame(rows, columns=columns)


def _accuracy_by_step(run, curves: pd.DataFrame) -> pd.Series:
    mine = curves[(curves["run_id"] == run.run_id) & (curves["metric"] == "validation_accuracy")]
    return mine.set_index("step")["value"].astype(float).sort_index()


def _first_step(accuracy: pd.Series, level: float) -> float:
    """The step at which the broken line through the evaluations first reaches ``level``; NaN if never."""
    for (s0, a0), (s1, a1) in zip(accuracy.items(), list(accuracy.items())[1:], strict=False):
        if a1 >= level:
            return float(s0) if a0 >= level else float(s0 + (s1 - s0) * (level - a0) / (a1 - a0))
    return float("nan")


def _spent(run_id: str, step: float, steps: int, curves: pd.DataFrame, timings: pd.DataFrame) -> dict[str, float]:
    spent = {}
    for metric in ("tokens_in_loss", "tokens_forwarded", "predicted_flops"):
        mine = curves[(curves["run_id"] == run_id) & (curves["metric"] == metric)].sort_values("step")
        total = np.concatenate([[0.0], mine["value"].astype(float).fillna(0.0).cumsum()])
        at = np.concatenate([[0], mine["step"]])
        spent[metric] = float(np.interp(step, at, total)) if len(mine) and np.isfinite(step) else np.nan
    parts = {"update_seconds": ("score_s", "update_s"), "seconds": ("rollout_s", "score_s", "update_s")}
    for name, columns in parts.items():
        known = run_id in timings.index and set(columns) <= set(timings.columns)
        spent[name] = float(timings.loc[run_id, list(columns)].astype(float).sum()) * step / steps if known else np.nan
    return spent


def price_of_accuracy(tables: Tables) -> Figure:
    """Tokens in the loss, tokens through the model, FLOPs and seconds until a given validation accuracy, per method and seed."""
    title = "The price of an accuracy"
    table_ = prices(tables)
    tasks = [task for task in p.TASKS if len(table_) and (table_["task"] == task).any()]
    if not tasks:
        return p.not_run(title, "no curve of a run of full_vs_sparse")
    runs = p.ended(tables.get("runs"), HEADLINE)
    runs = runs[runs["run_id"].astype(str).isin(table_["run_id"])]
    figure, axes = p.panels(title, len(PRICES), rows=len(tasks), width=2.5, height=2.3)
    levels, missed = [], 0
    for row, task in zip(axes, tasks, strict=True):
        here = table_[table_["task"] == task]
        levels.append(f"{here['level'].iloc[0]:.0f} % on {p.TASKS[task]}")
        missed += int(here["step"].isna().sum())
        for axis, (name, label) in zip(row, PRICES, strict=True):
            _price(axis, here, name)
            if axis.get_subplotspec().is_last_row():
                axis.set_xlabel(label, fontsize=8.5)
            axis_names(axis, [p.LABELS[m] for m in p.TRAINED] if axis is row[0] else [""] * 3)
        row[0].set_title(p.TASKS[task], loc="left")
    text = (
        f"{p.scale_text(runs)} Log scales. Until the validation accuracy first reaches {' and '.join(levels)} (80 % of the way "
        f"from the base to the best method; linear between evaluations). Hollow: {p.seeds_text(runs)}; filled: geometric mean. "
        "FLOPs: counted from the shapes of every step, not timed. Seconds: of the machine that trained, other work on it included."
    )
    text += f" {missed} run{'s' if missed > 1 else ''} never got there, so the mean of the others flatters." if missed else ""
    return p.caption(figure, text, runs)


def amount(value: float) -> str:
    """A number in few digits: 0.45, 27, 12,345, and from a hundred million on a power of ten."""
    if value >= 1e8:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}·$10^{{{int(exponent)}}}$"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _price(axis: Axes, rows: pd.DataFrame, name: str) -> None:
    axis.set_xscale("log")
    values = rows[name][rows[name] > 0]
    if values.empty:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", fontsize=8, color="#777777", transform=axis.transAxes)
        axis.set_xticks([], minor=True)
        axis.set_xticks([])
        return
    p.whole_decades(axis, values)
    for place, method in enumerate(p.TRAINED):
        mine = rows[(rows["method"] == method)][name]
        mine = mine[mine > 0]
        if mine.empty:
            where = axis.get_yaxis_transform()
            axis.text(0.5, place, "no seed got there", ha="center", va="center", fontsize=8, color="#777777", transform=where)
            continue
        colour, marker = p.COLOURS[method], p.MARKERS[method]
        axis.scatter(mine, place + 0.16 + 0 * mine, s=18, marker=marker, facecolors="white", edgecolors=colour, lw=1.0, zorder=3)
        mean = float(np.exp(np.log(mine).mean()))
        axis.plot(mean, place - 0.1, marker, color=colour, markersize=7, zorder=4)
        text = amount(mean)
        whole = int((rows["method"] == method).sum())
        text += f" ({len(mine)} of {whole})" if len(mine) < whole else ""
        axis.annotate(text, (mean, place - 0.1), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8.5, color=colour)

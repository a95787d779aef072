"""One function per figure, from tables alone: what is drawn can be redrawn from the committed CSV files, without a model.

Each takes the tables by name (``runs``, ``curves``, ``items``, ``credit``, ...) and returns a matplotlib Figure with its caption
in it. Missing runs are left out, not drawn as zero; a figure without any run says "not run". Hollow dots are seeds, bars 95 %
intervals.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from replication.names import HEADLINE
from replication.report import style as p
from replication.report.figures_ablations import learning_rate, lora_rank, token_fraction
from replication.report.figures_diagnostics import credit_vs_truth, gradient_snr, worked_example
from replication.report.figures_regularisation import price_of_accuracy, regularisation
from replication.statistics import Tables, table

__all__ = ["FIGURES", "save_figure"]
save_figure = p.save_figure
#: Steps in the running mean of the reward.
_SMOOTH = 5


def full_vs_sparse(tables: Tables) -> Figure:
    """Greedy test accuracy of the base and the three methods, a panel per task: dots per seed, seed × item interval."""
    title = "Full against sparse: test accuracy"
    runs = p.ended(tables.get("runs"), HEADLINE, "accuracy")
    tasks = p.tasks_of(runs)
    if not tasks:
        return p.not_run(title, "no run of full_vs_sparse has ended")
    figure, axes = p.panels(title, len(tasks))
    has_longer = False
    for axis, task in zip(axes[0], tasks, strict=True):
        p.base_line(axis, tables, task, label=None)
        for place, method in enumerate(p.METHODS):
            mine = runs[(runs["task"] == task) & (runs["method"] == method) & runs["accuracy"].notna()]
            if mine.empty:
                axis.text(place, 4, "not run", ha="center", color="#777777", fontsize=8)
                continue
            value, low, high = p.accuracy_interval(tables, mine)
            colour = p.COLOURS[method]
            centre = place + (0.22 if method != "base" else 0.0)  # the base has no seeds beside it
            axis.plot([centre] * 2, [low, high], color=colour, linewidth=2.2, zorder=3)
            axis.plot(centre, value, p.MARKERS[method], color=colour, markersize=7, zorder=4)
            longer = pd.to_numeric(mine.get("longer_numbers_accuracy", pd.Series(dtype=float)), errors="coerce").mean()
            if np.isfinite(longer):
                has_longer = True
                axis.plot(centre, 100 * longer, "_", color=colour, markersize=13, markeredgewidth=1.6, zorder=3)
            if method != "base":
                p.seed_dots(axis, place - 0.12, mine, colour, p.MARKERS[method], spread=0.16)
            # Above the interval, unless the interval reaches the top.
            above = np.nanmax([high, value]) < 96
            edge = np.nanmax([high, value]) if above else np.nanmin([low, value])
            axis.annotate(
                f"{value:.1f}", (centre, edge), xytext=(0, 3 if above else -3), textcoords="offset points",
                ha="center", va="bottom" if above else "top", fontsize=9, color=colour, fontweight="bold",
            )  # fmt: skip
        axis.set_xticks(range(4), ["base", "GRPO\nall tokens", "S-GRPO", "T-SPMO"])
        axis.set_xlim(-0.5, 3.6)
        axis.grid(axis="x", visible=False)
        axis.set_title(p.TASKS[task], loc="left")
        p.percent_axis(axis, "test accuracy (%)")
    items = pd.to_numeric(runs["n_items"], errors="coerce").max() if "n_items" in runs else float("nan")
    text = f"{p.scale_text(runs)} Hollow: one dot per seed ({p.seeds_text(runs)}); "
    text += "filled: mean with its 95 % seed × item bootstrap interval"
    text += f", {items:.0f} test items a task" if np.isfinite(items) else ""
    text += ". Dashed: the base. "
    text += "Short line: with longer numbers than any trained on, mean." if has_longer else "Longer numbers: not measured."
    return p.caption(figure, text + p.diverged_text(runs), runs)


def learning_curves(tables: Tables) -> Figure:
    """Reward of the rollouts and validation accuracy over optimizer steps, a column per task, mean and range of the seeds."""
    title = "Learning curves"
    runs = p.ended(tables.get("runs"), HEADLINE)
    curves = table(tables, "curves", ("run_id", "step", "metric", "value"))
    runs["run_id"] = runs["run_id"].astype(str)
    shown = curves[curves["metric"].isin(["reward", "validation_accuracy"])].merge(runs[["run_id", "task", "method", "seed"]])
    tasks = p.tasks_of(shown) if len(shown) else []
    if not tasks:
        return p.not_run(title, "no curve of a run of full_vs_sparse")
    figure, axes = p.panels(title, len(tasks), rows=2, height=2.7)
    rows = (("reward", "reward of the rollouts (%)"), ("validation_accuracy", "validation accuracy (%)"))
    for (metric, label), row in zip(rows, axes, strict=True):
        for axis, task in zip(row, tasks, strict=True):
            for method in p.TRAINED:
                mine = shown[(shown["metric"] == metric) & (shown["task"] == task) & (shown["method"] == method)]
                if mine.empty:
                    continue
                wide = 100 * mine.pivot_table(index="step", columns="seed", values="value").astype(float).sort_index()
                if metric == "reward":
                    wide = wide.rolling(_SMOOTH, min_periods=1).mean()
                style = {"marker": p.MARKERS[method], "markersize": 4} if metric != "reward" else {}
                axis.plot(wide.index, wide.mean(axis=1), color=p.COLOURS[method], label=p.LABELS[method], **style)
                axis.fill_between(wide.index, wide.min(axis=1), wide.max(axis=1), color=p.COLOURS[method], alpha=0.15, lw=0)
            p.percent_axis(axis, label)
            axis.set_xlim(0, 1.02 * float(shown["step"].max()))
            axis.set_xlabel("optimizer step")
            axis.set_title(p.TASKS[task], loc="left")
    p.legend_beside(figure, axes)
    trained = runs[runs["method"].isin(p.TRAINED)]
    text = (
        f"{p.scale_text(trained)} Lines: mean over {p.seeds_text(trained)}; bands: their lowest and highest. "
        f"Reward: sampled at the training temperature, running mean of {_SMOOTH} steps. Validation: greedy."
    )
    return p.caption(figure, text, trained)


def cost(tables: Tables) -> Figure:
    """Test accuracy against the tokens that entered the loss over the whole training, a panel per task."""
    title = "What an accuracy costs: tokens in the loss"
    runs = p.ended(tables.get("runs"), HEADLINE, "accuracy", "tokens_in_loss")
    runs = runs[runs["accuracy"].notna() & (runs["tokens_in_loss"] > 0)]
    tasks = p.tasks_of(runs)
    if not tasks:
        return p.not_run(title, "no trained run of full_vs_sparse has ended")
    figure, axes = p.panels(title, len(tasks))
    for axis, task in zip(axes[0], tasks, strict=True):
        p.base_line(axis, tables, task)
        for method in p.TRAINED:
            mine = runs[(runs["task"] == task) & (runs["method"] == method)]
            if mine.empty:
                continue
            colour, marker = p.COLOURS[method], p.MARKERS[method]
            axis.scatter(
                mine["tokens_in_loss"], 100 * mine["accuracy"], s=18, marker=marker, facecolors="none", edgecolors=colour, zorder=4
            )
            p.crosses(axis, mine["tokens_in_loss"], mine)
            x, y = float(mine["tokens_in_loss"].mean()), float(100 * mine["accuracy"].mean())
            axis.plot(x, y, marker, color=colour, alpha=0.5, markersize=9, zorder=3, label=p.LABELS[method])
        axis.set_xscale("log")
        p.whole_decades(axis, runs.loc[runs["task"] == task, "tokens_in_loss"])
        axis.set_xlabel("tokens in the loss, whole training (log scale)")
        axis.set_title(p.TASKS[task], loc="left")
        p.percent_axis(axis, "test accuracy (%)")
    p.legend_beside(figure, axes)
    text = f"{p.scale_text(runs)} Filled: mean; hollow: seeds ({p.seeds_text(runs)}). Further left is cheaper, higher is better."
    return p.caption(figure, text + p.diverged_text(runs), runs)


def cost_to_reach(tables: Tables) -> Figure:
    """Validation accuracy against the tokens that had entered the loss by then: what reaching an accuracy takes."""
    title = "What it takes to reach an accuracy"
    runs = p.ended(tables.get("runs"), HEADLINE)
    runs["run_id"] = runs["run_id"].astype(str)
    curves = table(tables, "curves", ("run_id", "step", "metric", "value")).merge(runs[["run_id", "task", "method", "seed"]])
    tasks = p.tasks_of(curves) if len(curves) else []
    if not tasks or not {"tokens_in_loss", "validation_accuracy"} <= set(curves["metric"]):
        return p.not_run(title, "no curve of a run of full_vs_sparse")
    figure, axes = p.panels(title, len(tasks))
    for axis, task in zip(axes[0], tasks, strict=True):
        reached = []
        for method in p.TRAINED:
            mine = curves[(curves["task"] == task) & (curves["method"] == method)]
            if mine.empty:
                continue
            wide = {
                metric: mine[mine["metric"] == metric].pivot_table(index="step", columns="seed", values="value").astype(float)
                for metric in ("tokens_in_loss", "validation_accuracy")
            }
            tokens = wide["tokens_in_loss"].sort_index().cumsum()
            accuracy = 100 * wide["validation_accuracy"].sort_index()
            steps = accuracy.index.intersection(tokens.index)
            x, y = tokens.loc[steps], accuracy.loc[steps]
            colour, marker = p.COLOURS[method], p.MARKERS[method]
            for seed in x.columns.intersection(y.columns):
                axis.plot(x[seed], y[seed], color=colour, alpha=0.35, linewidth=0.8)
            axis.plot(x.mean(axis=1), y.mean(axis=1), color=colour, marker=marker, markersize=5.5, label=p.LABELS[method])
            reached += list(x.mean(axis=1))
        axis.set_xscale("log")
        p.whole_decades(axis, pd.Series(reached))
        axis.set_xlabel("tokens in the loss so far (log scale)")
        axis.set_title(p.TASKS[task], loc="left")
        p.percent_axis(axis, "validation accuracy (%)")
    p.legend_beside(figure, axes)
    trained = runs[runs["method"].isin(p.TRAINED)]
    text = f"{p.scale_text(trained)} A marker per evaluation; thick: mean over {p.seeds_text(trained)}, thin: each seed."
    return p.caption(figure, text + " Read across at an accuracy: the curve met first got there with the fewest tokens.", trained)


def _styled(draw: Callable[[Tables], Figure]) -> Callable[[Tables], Figure]:
    def figure(tables: Tables) -> Figure:
        with p.style():
            return draw(tables)

    figure.__name__, figure.__doc__ = draw.__name__, draw.__doc__
    return figure


#: Every figure by name: ``FIGURES[name](tables)``.
FIGURES: dict[str, Callable[[Tables], Figure]] = {
    draw.__name__: _styled(draw)
    for draw in (
        full_vs_sparse, learning_curves, token_fraction, lora_rank, learning_rate, regularisation, credit_vs_truth, worked_example,
        gradient_snr, cost, cost_to_reach, price_of_accuracy,
    )  # fmt: skip
}

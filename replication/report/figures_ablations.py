"""The figures of the three ablations: token fraction, LoRA rank, learning rate. From tables alone, like all figures."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from replication.report import style as p
from replication.statistics import Tables, best_rate, tuning


def token_fraction(tables: Tables) -> Figure:
    """Test accuracy against the share of generated tokens that enter the loss, by the rule that picks them."""
    title = "How many tokens does an update need?"
    runs = p.ended(tables.get("runs"), "token_fraction", "accuracy", "kept_fraction", "selector", "denominator")
    runs = runs[runs["accuracy"].notna() & (runs["kept_fraction"] > 0)]
    tasks = p.tasks_of(runs)
    if not tasks:
        return p.not_run(title, "no run of token_fraction has ended")
    figure, axes = p.panels(title, len(tasks), width=7.2)
    settings = ("selector", "denominator", "keep_probability", "cutoff", "max_kept_tokens", "token_share", "learning_rate")
    for axis, task in zip(axes[0], tasks, strict=True):
        here = runs[runs["task"] == task].copy()
        p.base_line(axis, tables, task)
        points = here.groupby([name for name in settings if name in here], dropna=False, sort=True)
        means = points.agg(
            x=("kept_fraction", "mean"), y=("accuracy", "mean"), runs=("seed", "size"), values=("accuracy", list)
        ).reset_index()
        usual = here.groupby("selector")["denominator"].agg(lambda names: names.mode()[0])
        series = set(zip(means["selector"], means["denominator"], strict=True))
        for selector, denominator in sorted(series, key=_series_order(usual)):
            # A contrast of denominators is its own series: the line of a selector joins points that differ in share alone.
            contrast = denominator != usual[selector]
            mine = means[(means["selector"] == selector) & (means["denominator"] == denominator)].sort_values("x")
            dots = here[(here["selector"] == selector) & (here["denominator"] == denominator)]
            colour, marker = p.SELECTOR_COLOURS.get(selector, "#555555"), p.SELECTOR_MARKERS.get(selector, "X")
            axis.scatter(
                100 * dots["kept_fraction"], 100 * dots["accuracy"], s=14, marker=marker, facecolors="white",
                edgecolors=colour, linewidths=0.8, alpha=0.8, zorder=2,
            )  # fmt: skip
            p.crosses(axis, 100 * dots["kept_fraction"], dots)
            for row in mine.itertuples():
                p.seed_bar(axis, 100 * row.x, row.values, colour)
            label = p.SELECTOR_LABELS.get(selector, selector)
            axis.plot(
                100 * mine["x"], 100 * mine["y"], color=colour, marker=marker, markersize=8 if contrast else 6.5, zorder=3,
                linestyle=":" if contrast else "-", markeredgecolor="black" if contrast else colour,
                label=f"{label},\ndivided by {denominator}" if contrast else label,
            )  # fmt: skip
        _log_percent(axis)
        axis.set_xlabel("tokens in the loss (% of those generated in untied groups, log scale)")
        axis.set_title(p.TASKS[task], loc="left")
        p.percent_axis(axis, "test accuracy (%)", [*(100 * here["accuracy"]), p.base_value(tables, task)])
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    text = f"{p.scale_text(runs)} Filled: mean of the seeds at one setting; hollow: {p.runs_per_point(means['runs'])}."
    return p.caption(figure, text + p.bars_text(means["runs"]) + p.diverged_text(runs), runs)


def lora_rank(tables: Tables) -> Figure:
    """Test accuracy against the rank of the adapter, each method at the learning rate tuned for that rank."""
    title = "Does the gap between sparse and full depend on the LoRA rank?"
    runs = p.ended(tables.get("runs"), "lora_rank", "accuracy", "validation_accuracy", "lora_rank", "learning_rate")
    runs = _tuned(runs[runs["accuracy"].notna()])
    tasks = p.tasks_of(runs)
    if not tasks:
        return p.not_run(title, "no run of lora_rank has ended")
    ranks = sorted(runs["lora_rank"].astype(int).unique(), key=lambda rank: rank or 10**9)  # 0 = full fine-tuning, last
    figure, axes = p.panels(title, len(tasks), width=6.6)
    for axis, task in zip(axes[0], tasks, strict=True):
        p.base_line(axis, tables, task)
        for shift, method in zip((-0.18, 0.0, 0.18), p.TRAINED, strict=True):
            mine = runs[(runs["task"] == task) & (runs["method"] == method)]
            p.dots_and_means(axis, mine, "lora_rank", {rank: place + shift for place, rank in enumerate(ranks)}, method, "accuracy")
        axis.set_xticks(range(len(ranks)), [str(rank) if rank else "full\nfine-tuning" for rank in ranks])
        axis.set_xlim(-0.5, len(ranks) - 0.5)
        axis.grid(axis="x", visible=False)
        axis.set_xlabel("rank of the adapter")
        axis.set_title(p.TASKS[task], loc="left")
        here = runs[runs["task"] == task]
        p.percent_axis(axis, "test accuracy (%)", [*(100 * here["accuracy"]), p.base_value(tables, task)])
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    counts = runs.groupby(["task", "method", "lora_rank"])["seed"].nunique()
    text = f"{p.scale_text(runs)} alpha / rank is the same at every rank; learning rate tuned for each rank and method. "
    text += f"Filled: mean; hollow: {p.runs_per_point(counts)}."
    return p.caption(figure, text + p.bars_text(counts) + p.diverged_text(runs), runs)


def learning_rate(tables: Tables) -> Figure:
    """Validation accuracy against the learning rate, each method on the same grid, with the test accuracy at the chosen one."""
    title = "Does one learning rate settle a comparison?"
    runs = p.ended(tables.get("runs"), "learning_rate", "accuracy", "validation_accuracy", "learning_rate")
    runs = runs[runs["validation_accuracy"].notna() & (runs["learning_rate"] > 0)]
    tasks = p.tasks_of(runs)
    if not tasks:
        return p.not_run(title, "no run of learning_rate has ended")
    chosen = tuning({"runs": runs})
    figure, axes = p.panels(title, len(tasks), width=5.2, height=4.4)
    for axis, task in zip(axes[0], tasks, strict=True):
        rates = sorted(runs.loc[runs["task"] == task, "learning_rate"].unique())
        for shift, method in zip((0.96, 1.0, 1.04), p.TRAINED, strict=True):
            mine = runs[(runs["task"] == task) & (runs["method"] == method)]
            best = chosen[(chosen["task"] == task) & (chosen["method"] == method) & chosen["chosen"]]
            label = p.LABELS[method]
            if len(best):
                row = best.iloc[0]
                label += f": best {row['learning_rate']:g}, test {100 * row['accuracy']:.0f} %"
                axis.plot(
                    row["learning_rate"] * shift, 100 * row["validation_accuracy"], "*", markersize=15, zorder=5,
                    color=p.COLOURS[method], markeredgecolor="white",
                )  # fmt: skip
            p.dots_and_means(
                axis, mine, "learning_rate", {rate: rate * shift for rate in rates}, method, "validation_accuracy", label
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(FixedLocator(rates))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        axis.set_xlabel("learning rate of AdamW (log scale)")
        axis.set_title(p.TASKS[task], loc="left")
        p.percent_axis(axis, "validation accuracy (%)")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8.5)
    counts = runs.groupby(["task", "method", "learning_rate"])["seed"].nunique()
    text = f"{p.scale_text(runs)} Star: chosen on validation, where the test accuracy is read. "
    text += f"Filled: mean; hollow: {p.runs_per_point(counts)}."
    return p.caption(figure, text + p.bars_text(counts) + p.diverged_text(runs), runs)


def _tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """Of each task, method and rank, the runs at the learning rate that validation chooses."""
    keep = []
    for _, group in runs.groupby(["task", "method", "lora_rank"]):
        keep.append(group[group["learning_rate"] == best_rate(group)])
    return pd.concat(keep) if keep else runs


def _series_order(usual: pd.Series) -> Callable[[tuple[str, str]], tuple[int, str, bool, str]]:
    """Known selectors in the order of their labels, each with its usual denominator first."""
    known = list(p.SELECTOR_LABELS)

    def key(series: tuple[str, str]) -> tuple[int, str, bool, str]:
        selector, denominator = series
        return known.index(selector) if selector in known else len(known), selector, denominator != usual[selector], denominator

    return key


def _log_percent(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator([0.1, 0.3, 1, 3, 10, 30, 100]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g} %"))

"""Figures of the benchmarks, from their tables alone: ratios to TRL, memory, scaling."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.text import GROWS, Bench, headline, summary
from replication import report as p
from replication.names import METHOD_LABELS, TRAINED
from replication.runs import atomic_write, read_json

TABLES = ("side_by_side", "ratios", "memory", "scaling", "dense_vs_packed", "in_trl", "in_trl_memory", "gpu")
_TRL_COLOUR, _TRL_MARKER = "#000000", "x"


def read_tables(folder: Path) -> Bench:
    """The tables that are there, by name."""
    return {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES if (folder / f"{name}.csv").exists()}


def ratios(tables: Bench) -> Figure:
    """How many times faster than TRL an update on its completions and a whole step are, a panel for each number of threads."""
    title = "Speed as a ratio to TRL's GRPOTrainer"
    if "ratios" not in tables:
        return p.not_run(title, "make bench measures it")
    table = headline(tables["ratios"])
    counts = sorted(table["threads"].unique())
    figure, axes = p.panels(title, len(counts))
    for axis, count in zip(axes[0], counts, strict=True):
        for shift, (phase, face) in enumerate((("update", None), ("step", "white"))):
            for place, method in enumerate(TRAINED):
                row = table[(table["threads"] == count) & (table["method"] == method) & (table["phase"] == phase)].iloc[0]
                x = place + 0.3 * shift - 0.15
                colour = p.COLOURS[method]
                axis.plot([x, x], [row["ratio_q1"], row["ratio_q3"]], color=colour, linewidth=2)
                name = {"update": "update", "step": "whole step"}[phase] if place == 0 else None
                fill = face or colour
                axis.plot(x, row["ratio"], p.MARKERS[method], color=colour, markerfacecolor=fill, markersize=7, label=name)
                aim = "aim" if shift == place == 0 else None
                axis.plot([x - 0.12, x + 0.12], [row["aim"]] * 2, color="#777777", linewidth=1.5, label=aim)
                text = f"{row['ratio']:.0f}" if row["ratio"] >= 10 else f"{row['ratio']:.1f}"
                axis.annotate(text, (x, row["ratio_q3"]), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8)
        axis.set_yscale("log")
        axis.set_ylim(1, 2.2 * table["ratio_q3"].max())
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick < axis.get_ylim()[1]]
        axis.set_yticks(ticks, [str(tick) for tick in ticks])
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xticks(range(3), [METHOD_LABELS[method] for method in TRAINED])
        axis.set_title(f"{count} thread{'s' if count > 1 else ''}", loc="left")
        axis.set_ylabel("times faster than TRL (log scale)")
    p.legend_beside(figure, axes)
    text = f"Median of {table['n'].min()} repetitions in turns, bars: quartiles. 8 prompts x 16 completions, nano base, CPU. "
    text += "Update: on the very completions that TRL sampled. Whole step: each with its own rollout."
    return p.caption(figure, text)


def memory(tables: Bench) -> Figure:
    """Peak memory of one update above what is held before it."""
    title = "Peak memory of an update"
    if "memory" not in tables:
        return p.not_run(title, "make bench measures it")
    table = tables["memory"]
    shapes = sorted(table["common"].unique())
    figure, axes = p.panels(title, len(shapes), width=4.8)
    for axis, likeness in zip(axes[0], shapes, strict=True):
        shown = table[table["common"] == likeness]
        names = [_implementation(row) for row in shown.itertuples()]
        colours = [p.COLOURS[row.method] if row.implementation == "packed" else "#999999" for row in shown.itertuples()]
        axis.barh(range(len(shown)), shown["peak_bytes"] / 1e6, color=colours)
        for place, row in enumerate(shown.itertuples()):
            axis.annotate(
                f"{row.peak_bytes / 1e6:.0f} MB", (row.peak_bytes / 1e6, place), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
        axis.set_yticks(range(len(shown)), names)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.25 * table["peak_bytes"].max() / 1e6)
        axis.set_xlabel("MB above what is held before")
        axis.set_title(f"completions part after about {1 / (1 - likeness**2):.0f} tokens", loc="left")
    row = table.iloc[0]
    text = f"Vocabulary {row['vocabulary']:,}, width {row['width']}, {row['group_size']} completions of {row['completion_length']} "
    return p.caption(figure, text + f"tokens, random weights, CPU; {_processes(table)} for each bar.")


def _processes(table: pd.DataFrame) -> str:
    least, most = table["n"].min(), table["n"].max()
    if most == 1:
        return "one process"
    return f"median of {least} processes" if least == most else f"median of {least} to {most} processes"


def _implementation(row) -> str:
    if row.implementation == "packed":
        return f"packed: {METHOD_LABELS[row.method]}"
    return row.implementation.replace("dense", "plain logits").replace("trl", "TRL")


def scaling(tables: Bench) -> Figure:
    """Seconds of an update as one thing grows, a panel for each, logarithmic both ways."""
    title = "How the cost of an update grows"
    if "scaling" not in tables:
        return p.not_run(title, "make bench measures it")
    table = tables["scaling"]
    figure, axes = p.panels(title, 3, rows=2, width=3.4, height=2.7)
    for axis, (name, label) in zip(axes.flat, GROWS.items(), strict=False):
        shown = table[table["grows"] == name]
        axis.set_xlabel(label)
        if shown.empty:
            axis.set(xticks=[], yticks=[])
            axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center")
            continue
        trl = shown[shown["implementation"] == "trl"]
        axis.plot(trl["value"], trl["seconds"], color=_TRL_COLOUR, marker=_TRL_MARKER, label="TRL")
        for method in TRAINED:
            mine = shown[(shown["implementation"] == "packed") & (shown["method"] == method)]
            look = {"color": p.COLOURS[method], "marker": p.MARKERS[method], "label": METHOD_LABELS[method]}
            axis.plot(mine["value"], mine["seconds"], **look)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(trl["value"], [f"{value:,}" for value in trl["value"]], fontsize=8)
        for side in (axis.xaxis, axis.yaxis):
            side.set_minor_formatter(NullFormatter())
        axis.set_ylabel("seconds")
    axes.flat[-1].set_axis_off()
    p.legend_beside(figure, axes)
    text = "Medians, in turns at each value, one value after the other. What does not grow: 2 prompts of 32 tokens, 16 completions "
    text += "of 32 tokens that part after some 5, vocabulary 1,024, width 128, 4 layers, one thread, random weights, CPU."
    return p.caption(figure, text)


FIGURES = {"ratios": ratios, "memory": memory, "scaling": scaling}


def write_all(folder: Path) -> None:
    """Draw every figure into ``folder``/figures and write ``folder``/summary.md."""
    tables = read_tables(folder)
    manifest = read_json(folder / "manifest.json", "a manifest of the benchmarks") if (folder / "manifest.json").exists() else {}
    for name, draw in FIGURES.items():
        with p.figure_style():
            p.save_figure(draw(tables), folder / "figures" / name)
    atomic_write(folder / "summary.md", summary(tables, manifest))

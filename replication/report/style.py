"""What the figures share: colours, markers, panels, dots for seeds, captions, and the same bytes for the same figure."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from replication.names import METHOD_LABELS, SETTING_LABELS, Labels
from replication.report.wording import counted_span
from replication.runs import atomic_write
from replication.statistics import mean_over_seeds


class _Cycle(dict[str, str]):
    """A look for each method or selector; one that is not known gets the next of ``others``, and keeps it."""

    def __init__(self, others: str, **known: str) -> None:
        super().__init__(known)
        self._others = itertools.cycle(others.split())

    def __missing__(self, method: str) -> str:
        return self.setdefault(method, next(self._others))


#: Okabe-Ito, told apart by the colour-blind; each method also has its own marker, for print in grey.
COLOURS = _Cycle(
    "#CC79A7 #E69F00 #56B4E9 #000000", base="#595959", grpo="#0072B2", s_grpo="#D55E00", t_spmo="#009E73", ppo="#7F3C8D"
)
MARKERS = _Cycle("v P X *", base="D", grpo="o", s_grpo="s", t_spmo="^", ppo="p")
SELECTOR_LABELS = Labels(
    all="all tokens (GRPO)", rule="S-GRPO's rule", trie="trie (T-SPMO)", random="uniform random", entropy="highest entropy",
    low_entropy="lowest entropy", unbiased="random, weights 1/p", prefix_cut="random prefix",
    all_and_branches="all tokens, T-SPMO's credit added",
)  # fmt: skip
SELECTOR_COLOURS = _Cycle(
    "#555555", all="#0072B2", rule="#D55E00", trie="#009E73", random="#CC79A7", earliest="#56B4E9", latest="#000000",
    entropy="#E69F00", low_entropy="#999999", unbiased="#7F3C8D", prefix_cut="#8C564B", all_and_branches="#1F3A93",
)  # fmt: skip
SELECTOR_MARKERS = _Cycle(
    "X", all="o", rule="s", trie="^", random="v", earliest="<", latest=">", entropy="P", low_entropy="X", unbiased="d",
    prefix_cut="h", all_and_branches="p",
)  # fmt: skip
#: Of what makes more and what makes less.
POSITIVE, NEGATIVE = "#0072B2", "#D55E00"
#: Inches that panels side by side may take, so that a figure with its legend is read unscaled at 1280 pixels.
PAGE_WIDTH = 11.0
#: Fewer seeds than this have dots and a mean but no interval, which would be mostly a guess.
SEEDS_FOR_A_BAR = 5
_STYLE = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.6,
    "svg.hashsalt": "replication", "svg.fonttype": "path", "font.family": "DejaVu Sans", "axes.formatter.useoffset": False,
}  # fmt: skip


def figure_style():
    """The context in which every figure is made and saved, whatever the reader's matplotlibrc says."""
    return mpl.rc_context({**mpl.rcParamsDefault, **_STYLE})


def panels(title: str, count: int, *, rows: int = 1, width: float = 4.3, height: float = 3.5) -> tuple[Figure, np.ndarray]:
    """A figure with rows × count axes, and room below for the caption; always a 2-D array of axes."""
    figure = Figure(figsize=(max(width * count, 5.6), height * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    return figure, figure.subplots(rows, count, squeeze=False)


def setting_panels(title: str, settings: Sequence[str], *, width: float = 4.3) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a titled panel for each setting, two in a row where all in one row would be too wide for a page."""
    columns = len(settings) if len(settings) * width <= PAGE_WIDTH else 2
    figure, axes = panels(title, columns, rows=math.ceil(len(settings) / columns), width=width)
    for axis in axes.flat[len(settings) :]:
        axis.remove()
    by_setting = dict(zip(settings, axes.flat, strict=False))
    for setting, axis in by_setting.items():
        axis.set_title(SETTING_LABELS[setting], loc="left")
    return figure, by_setting


def column_width(settings: Sequence[str]) -> float:
    """Inches of a panel where each setting has a column of its own."""
    return min(4.3, PAGE_WIDTH / len(settings))


def legend_beside(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all panels, right of them, where it covers nothing."""
    entries: dict[str, Any] = {}
    for axis in np.ravel(list(axes)):
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.set_figwidth(figure.get_figwidth() + 1.8)
    figure.legend(list(entries.values()), list(entries), loc="outside right upper")


def caption(figure: Figure, text: str) -> Figure:
    """Write what a reader needs below the axes."""
    width = int(figure.get_figwidth() * 14.5)
    figure.supxlabel(textwrap.fill(text, width), fontsize=8.5, x=0.01, ha="left", color="#333333")
    return figure


def not_run(title: str, what: str) -> Figure:
    """A figure that says that there is nothing to draw, instead of empty axes."""
    figure, axes = panels(title, 1, height=1.2)
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, f"not run\n{what}", ha="center", va="center", color="#555555", transform=axes[0, 0].transAxes)
    return figure


def percent_axis(axis: Axes, label: str) -> None:
    """A y axis from 0 to 100 percent."""
    axis.set_ylim(-2, 103)
    axis.set_ylabel(label)


def log_axis(axis: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic x axis with these ticks in plain digits."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def decades(axis: Axes, values: Sequence[float] | pd.Series) -> None:
    """A logarithmic x axis over whole powers of ten, so that it has two labels whatever lies on it."""
    values = np.asarray(values, dtype=float)
    values = values[values > 0]
    if len(values):
        axis.set_xscale("log")
        axis.set_xlim(10 ** np.floor(np.log10(values.min())) * 0.9, 10 ** np.ceil(np.log10(values.max()) + 1e-9) * 1.1)


def rows_axis(axis: Axes, names: Sequence[str]) -> None:
    """A y axis with a name for each row, the first on top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.45, -0.55)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)


def base_line(axis: Axes, base: float) -> None:
    """A dashed line at the base's value, if it was measured."""
    if np.isfinite(base):
        axis.axhline(base, color=COLOURS["base"], linestyle=(0, (5, 3)), linewidth=1.2, zorder=1, label="base, untrained")


def dots(axis: Axes, x: Any, y: pd.Series, runs: pd.DataFrame, colour: str, marker: str, size: float = 16) -> None:
    """A hollow dot for each run, with a black cross on those that are not simply done; ``x`` is one place, or one for each run."""
    place = np.broadcast_to(np.asarray(x, dtype=float), (len(y),))
    axis.scatter(place, y, s=size, marker=marker, facecolors="white", edgecolors=colour, linewidths=0.9, zorder=3)
    broken = (runs["status"] != "done").to_numpy()
    axis.scatter(place[broken], y.to_numpy(dtype=float)[broken], s=45, marker="x", color="black", lw=1.4, zorder=5)


def line_of_means(axis: Axes, runs: pd.DataFrame, column: str, place: Mapping[float, float], method: str, measure: str) -> None:
    """A line through a method's means in percent, its seeds as dots, and t intervals where there are enough seeds for one."""
    points = []
    for key, own in runs.groupby(column):
        values = 100 * own[measure]
        points.append((place[key], values.mean()))
        dots(axis, place[key], values, own, COLOURS[method], MARKERS[method])
        if len(values) >= SEEDS_FOR_A_BAR:
            found = mean_over_seeds(values)
            ends = np.clip([found.low, found.high], 0, 100)
            axis.plot([place[key]] * 2, ends, color=COLOURS[method], linewidth=2, alpha=0.6, zorder=2)
    look = {"color": COLOURS[method], "marker": MARKERS[method], "markersize": 6.5, "label": METHOD_LABELS[method], "zorder": 3}
    if points:
        axis.plot(*zip(*sorted(points), strict=True), **look)


def mean_and_range(axis: Axes, wide: pd.DataFrame, method: str, **look: Any) -> None:
    """A method's mean over the steps and the range of its seeds, the columns of ``wide``."""
    axis.plot(wide.index, wide.mean(axis=1), color=COLOURS[method], label=METHOD_LABELS[method], **look)
    axis.fill_between(wide.index, wide.min(axis=1), wide.max(axis=1), color=COLOURS[method], alpha=0.12, lw=0)


def about(profile: str) -> str:
    """What model the numbers speak about; smoke runs are called what they are."""
    return {
        "nano": "Nano lab (about a million parameters), not Qwen.",
        "smoke": "SMOKE RUN: a handful of steps, not a result.",
    }.get(profile, f"Profile {profile}.")


def bars(runs: pd.DataFrame, *point: str) -> str:
    """What the bars of a figure are, if one of its points has seeds enough for one."""
    seeds = runs[runs["method"] != "base"].groupby(["setting", "method", *point], dropna=False)["seed"].nunique()
    return f" Bars: 95 % t interval over seeds, from {SEEDS_FOR_A_BAR} seeds on." if seeds.max() >= SEEDS_FOR_A_BAR else ""


def seeds_of(runs: pd.DataFrame, *point: str) -> str:
    """How many seeds the points of a figure have, "5 seeds" or "3 to 5 seeds", and how many runs are crossed, and why."""
    counts = runs[runs["method"] != "base"].groupby(["setting", "method", *point], dropna=False)["seed"].nunique()
    if counts.empty:
        return "no trained runs"
    text = counted_span(counts, "seed")
    broken = runs.loc[runs["status"] != "done", "status"].value_counts(sort=False)
    return text + (f" (black ×: {', '.join(f'{count} {status}' for status, count in broken.items())})" if len(broken) else "")


def png(figure: Figure) -> bytes:
    """A figure as PNG, 150 dpi, without a date: the same bytes for the same figure."""
    return _saved(figure, "png", {"Software": None})


def save_figure(figure: Figure, path_stem: str | PathLike[str]) -> list[Path]:
    """Write ``<path_stem>.png`` and ``.svg``, the same bytes for the same figure; returns both paths."""
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    contents = {".png": png(figure), ".svg": _saved(figure, "svg", {"Date": None, "Creator": "replication"})}
    paths = []
    for suffix, content in contents.items():
        paths.append(stem.parent / f"{stem.name}{suffix}")
        atomic_write(paths[-1], content)
    return paths


def _saved(figure: Figure, kind: str, metadata: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with figure_style():
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()

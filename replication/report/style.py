"""What the figures share: names, colours, panels, dots with intervals, captions, and saving the same bytes twice."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from replication.errors import UserError
from replication.names import HEADLINE
from replication.randomness import numpy_stream
from replication.runs import atomic_write
from replication.statistics import Tables, answers, bootstrap, mean_over_seeds

TRAINED = ("grpo", "s_grpo", "t_spmo")
METHODS = ("base", *TRAINED)
LABELS = {"base": "base", "grpo": "GRPO, all tokens", "s_grpo": "S-GRPO", "t_spmo": "T-SPMO"}
#: Okabe-Ito, told apart by the colour-blind; each method also has its own marker, for print in grey.
COLOURS = {"base": "#595959", "grpo": "#0072B2", "s_grpo": "#D55E00", "t_spmo": "#009E73"}
MARKERS = {"base": "D", "grpo": "o", "s_grpo": "s", "t_spmo": "^"}
SELECTOR_LABELS = {
    "all": "all tokens (GRPO)", "rule": "S-GRPO's rule", "trie": "trie (T-SPMO)", "random": "uniform random",
    "earliest": "earliest", "latest": "latest", "entropy": "highest entropy",
}  # fmt: skip
SELECTOR_COLOURS = {
    "all": "#0072B2", "rule": "#D55E00", "trie": "#009E73", "random": "#CC79A7", "earliest": "#56B4E9",
    "latest": "#000000", "entropy": "#E69F00",
}  # fmt: skip
SELECTOR_MARKERS = {"all": "o", "rule": "s", "trie": "^", "random": "v", "earliest": "<", "latest": ">", "entropy": "P"}
#: Fewer seeds than this have dots and a mean, but no interval of their own: it would be mostly a guess.
SEEDS_FOR_A_BAR = 5
TASKS = {"word_problems": "word problems", "multiplication": "multiplication", "svamp": "SVAMP"}
_STYLE = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.6,
    "svg.hashsalt": "replication", "svg.fonttype": "path", "font.family": "DejaVu Sans", "axes.formatter.useoffset": False,
}  # fmt: skip


def style():
    """The context in which every figure is made and saved, whatever the reader's matplotlibrc says."""
    return mpl.rc_context({**mpl.rcParamsDefault, **_STYLE})


def ended(runs: pd.DataFrame | None, ablation: str | None, *needed: str) -> pd.DataFrame:
    """The finished and diverged runs of an ablation, numbers as numbers, sorted; absent tables and rows give an empty frame.

    Raises UserError if there are rows and a column is missing.
    """
    columns = ["run_id", "ablation", "profile", "task", "method", "seed", "status", *needed]
    if runs is None or len(runs) == 0:
        return pd.DataFrame(columns=columns)
    for column in columns:
        if column not in runs.columns:
            raise UserError(f"runs.csv has no column {column}: rebuild the tables with `make report`")
    keep = runs["status"].isin(["done", "diverged"])
    if ablation is not None:
        keep &= runs["ablation"] == ablation
    runs = runs[keep].copy()
    for column in needed:
        if column not in ("selector", "denominator"):
            runs[column] = pd.to_numeric(runs[column], errors="coerce")
    return runs.sort_values(["task", "method", "seed", "run_id"], kind="stable")


def tasks_of(runs: pd.DataFrame) -> list[str]:
    """The tasks that occur, in the order of the paper's story."""
    return [task for task in TASKS if (runs["task"] == task).any()]


def panels(title: str, count: int, *, rows: int = 1, width: float = 4.3, height: float = 3.5) -> tuple[Figure, np.ndarray]:
    """A figure with rows × count axes, and room below for the caption; always a 2-D array of axes."""
    figure = Figure(figsize=(max(width * count, 5.6), height * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    return figure, figure.subplots(rows, count, squeeze=False)


def legend_beside(figure: Figure, axes: np.ndarray) -> None:
    """One legend for all panels, right of them, where it can cover nothing."""
    entries: dict[str, Any] = {}
    for axis in axes.flat:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.set_figwidth(figure.get_figwidth() + 1.6)
    figure.legend(list(entries.values()), list(entries), loc="outside right upper")


def caption(figure: Figure, text: str, runs: pd.DataFrame) -> Figure:
    """Write what a reader needs below the axes, and note the runs that the figure shows, for its metadata."""
    width = int(figure.get_figwidth() * 14.5)
    figure.supxlabel(textwrap.fill(text, width), fontsize=8.5, x=0.01, ha="left", color="#333333")
    figure.set_label(",".join(sorted(set(runs["run_id"].astype(str)))))
    return figure


def not_run(title: str, what: str) -> Figure:
    """A figure that says that there is nothing to draw, instead of an empty pair of axes."""
    figure, axes = panels(title, 1, height=1.2)
    axis = axes[0, 0]
    axis.set_axis_off()
    axis.text(0.5, 0.5, f"not run\n{what}", ha="center", va="center", color="#555555", transform=axis.transAxes)
    return caption(figure, "Nothing to show yet.", pd.DataFrame({"run_id": []}))


def percent_axis(axis: Axes, label: str, values: Sequence[float] | pd.Series | None = None) -> None:
    """A percent axis from 0 to 100, or zoomed (and said so) to the tens around ``values`` where they lie close together."""
    low, high = 0.0, 100.0
    if values is not None:
        finite = np.asarray(values, dtype=float)
        finite = finite[np.isfinite(finite)]
        if len(finite) and finite.min() > 20:
            low = 10 * np.floor((finite.min() - 4) / 10)
    axis.set_ylim(low - 2, high + 3)
    axis.set_ylabel(label + (" (axis cut)" if low > 0 else ""))


def seed_dots(axis: Axes, x: float, runs: pd.DataFrame, colour: str, marker: str, *, spread: float) -> None:
    """A hollow dot per seed, side by side around x in the order of the seeds; a cross on the diverged."""
    place = x + (np.linspace(-spread, spread, len(runs)) if len(runs) > 1 else np.zeros(len(runs)))
    axis.scatter(
        place, 100 * runs["accuracy"], s=20, marker=marker, facecolors="white", edgecolors=colour, linewidths=1.0, zorder=3
    )
    crosses(axis, place, runs)


def accuracy_interval(tables: Tables, runs: pd.DataFrame) -> tuple[float, float, float]:
    """Mean and 95 % interval of the accuracy in percent: over seeds × items where items.csv has the runs, else over seeds."""
    matrix = answers(tables, runs)
    if len(matrix) == runs["run_id"].nunique() and matrix.size:
        first = runs.iloc[0]
        rng = numpy_stream(0, "bootstrap", "accuracy", str(first["task"]), str(first["method"]))
        estimate = bootstrap(matrix, None, rng).scaled(100)
    else:
        estimate = mean_over_seeds(runs["accuracy"].dropna()).scaled(100)
    return estimate.value, max(estimate.low, 0.0), min(estimate.high, 100.0)


def seeds_text(runs: pd.DataFrame) -> str:
    """How many seeds a figure shows: one number, or the range over its points."""
    counts = runs[runs["method"] != "base"].groupby(["task", "method"])["seed"].nunique()
    if counts.empty:
        return "no trained runs"
    low, high = int(counts.min()), int(counts.max())
    return f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"


def scale_text(runs: pd.DataFrame) -> str:
    """What model the numbers speak about; smoke runs are called what they are."""
    names = {
        "nano": "Nano lab (about a million parameters), not Qwen.",
        "paper": "Profile paper.",
        "smoke": "SMOKE RUN: a handful of steps, not a result.",
    }
    return " ".join(names.get(profile, f"Profile {profile}.") for profile in sorted(set(runs["profile"].astype(str))))


def diverged_text(runs: pd.DataFrame) -> str:
    """How many of the runs shown diverged; empty if none did."""
    count = int((runs["status"] == "diverged").sum())
    return f" {count} diverged run{'s' if count > 1 else ''} (x) at the last finite checkpoint." if count else ""


def base_value(tables: Tables, task: str) -> float:
    """Accuracy of the untrained base in percent; NaN if it was not run."""
    runs = ended(tables.get("runs"), HEADLINE, "accuracy")
    return float(100 * runs[(runs["task"] == task) & (runs["method"] == "base")]["accuracy"].astype(float).mean())


def base_line(axis: Axes, tables: Tables, task: str, label: str | None = "base, untrained") -> None:
    """A dashed line at the base's accuracy, if it was measured."""
    value = base_value(tables, task)
    if np.isfinite(value):
        axis.axhline(value, color=COLOURS["base"], linestyle=(0, (5, 3)), linewidth=1.2, zorder=1, label=label)


def crosses(axis: Axes, x: float | pd.Series | np.ndarray, runs: pd.DataFrame, measure: str = "accuracy") -> None:
    """A black cross on every diverged run; ``x`` is one place, or one per run."""
    diverged = (runs["status"] == "diverged").to_numpy()
    place = np.broadcast_to(np.asarray(x, dtype=float), (len(runs),))[diverged]
    axis.scatter(place, 100 * runs[measure].to_numpy(dtype=float)[diverged], s=45, marker="x", color="black", lw=1.4, zorder=5)


def bars_text(counts: pd.Series) -> str:
    """What the bars are; empty where no point has seeds enough for one."""
    return f" Bars: 95 % t interval over seeds, from {SEEDS_FOR_A_BAR} seeds on." if counts.max() >= SEEDS_FOR_A_BAR else ""


def runs_per_point(counts: pd.Series) -> str:
    """How many seeds the points of a figure have, in words."""
    low, high = int(counts.min()), int(counts.max())
    return f"seeds ({low if low == high else f'{low} to {high}'} at each point)"


def whole_decades(axis: Axes, values: pd.Series) -> None:
    """Limits at whole powers of ten, so that a log axis has at least two labels whatever lies on it."""
    values = values[values > 0]
    if len(values):
        axis.set_xlim(10 ** np.floor(np.log10(values.min())) * 0.9, 10 ** np.ceil(np.log10(values.max()) + 1e-9) * 1.1)


def seed_bar(axis: Axes, x: float, values: Sequence[float], colour: str) -> None:
    """The t interval over seeds of a share, drawn in percent; nothing where there are too few seeds for one."""
    if len(values) >= SEEDS_FOR_A_BAR:
        estimate = mean_over_seeds(values).scaled(100)
        axis.plot([x, x], [max(estimate.low, 0), min(estimate.high, 100)], color=colour, linewidth=2, alpha=0.6, zorder=2)


def dots_and_means(
    axis: Axes, runs: pd.DataFrame, column: str, place: Mapping[float, float], method: str, measure: str, label: str | None = None
) -> None:
    """A line through the means, hollow dots per seed, crosses for diverged runs, bars where there are seeds enough."""
    if runs.empty:
        return
    colour, marker = COLOURS[method], MARKERS[method]
    xs, ys = [], []
    for key, group in runs.groupby(column):
        x, values = place[key], 100 * group[measure]
        xs.append(x)
        ys.append(float(values.mean()))
        axis.scatter(
            [x] * len(values), values, s=14, marker=marker, facecolors="white", edgecolors=colour, linewidths=0.8, zorder=2
        )
        crosses(axis, x, group, measure)
        seed_bar(axis, x, group[measure], colour)
    order = np.argsort(xs)
    axis.plot(
        np.array(xs)[order],
        np.array(ys)[order],
        color=colour,
        marker=marker,
        markersize=6.5,
        zorder=3,
        label=label or LABELS[method],
    )


def save_figure(figure: Figure, path_stem: str | PathLike[str], manifest: Mapping[str, Any]) -> list[Path]:
    """Write ``<path_stem>.png`` (150 dpi) and ``.svg``, the same bytes for the same figure and manifest; returns both paths.

    The provenance (commits and table checksums from ``manifest``, and the ids of the runs shown) is embedded in both
    as the metadata field ``Description``; nothing that changes from one minute to the next is.
    """
    stem = Path(path_stem)
    # Where the runs' own commits are known, that of the tree which draws them says nothing, and would change every figure.
    origin = ("run_commits", "runs_dirty") if "run_commits" in manifest else ("commit", "dirty")
    provenance = {key: manifest[key] for key in (*origin, "profile", "tables") if key in manifest}
    provenance["run_ids"] = [name for name in str(figure.get_label()).split(",") if name]
    description = json.dumps(provenance, sort_keys=True)
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Description": description, "Software": None},
        "svg": {"Description": description, "Date": None, "Creator": "replication"},
    }
    paths = []
    with style():
        for suffix, fields in metadata.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, metadata=fields)
            path = stem.parent / f"{stem.name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, buffer.getvalue())
            paths.append(path)
    return paths

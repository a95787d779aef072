"""The figures of credit.csv and worked_example.csv (``diagnose``): credit against the truth, and the gradient's noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from replication.report import style as p
from replication.statistics import Tables

#: method, selector -> name on the axis, in the order of the page.
CONTENDERS = {
    ("grpo", "all"): "GRPO, all tokens",
    ("s_grpo", "rule"): "S-GRPO's rule",
    ("t_spmo", "trie"): "T-SPMO",
    ("s_grpo", "random"): "uniform random",
    ("s_grpo", "earliest"): "earliest",
    ("s_grpo", "latest"): "latest",
    ("s_grpo", "entropy"): "highest entropy",
}
POSITIVE, NEGATIVE = "#0072B2", "#D55E00"
_KINDS = (
    ("credit_right", "decisive token,\nright sign", POSITIVE),
    ("credit_wrong", "decisive token,\nwrong sign", NEGATIVE),
    ("credit_nothing", "decisive in form,\nnothing was decided", "#a9c6dd"),
    ("credit_unknown", "decisive in form,\nworth not known", "#b5b5b5"),
    (None, "any other token", "#e6e6e6"),
)
_NO_RUNS = pd.DataFrame({"run_id": []})


def base_credit(tables: Tables) -> pd.DataFrame:
    """credit.csv of the untrained base on the first task in it, a row per method, selector and quantity; empty if there is none."""
    credit = tables.get("credit")
    if credit is None or not len(credit):
        return pd.DataFrame(columns=["profile", "task", "policy", "method", "selector", "quantity", "value", "low", "high", "n"])
    credit = credit[credit["policy"] == "base"]
    task = next((task for task in p.TASKS if (credit["task"] == task).any()), None)
    return credit[credit["task"] == task]


def of(credit: pd.DataFrame, name: tuple[str, str], quantity: str) -> tuple[float, float, float]:
    """Value and interval of one quantity; NaN if it was not measured."""
    rows = credit[(credit["method"] == name[0]) & (credit["selector"] == name[1]) & (credit["quantity"] == quantity)]
    return tuple(float(rows.iloc[0][column]) for column in ("value", "low", "high")) if len(rows) else (np.nan,) * 3


def credit_vs_truth(tables: Tables) -> Figure:
    """Where each method's credit falls, on tokens that decided the outcome or elsewhere, and how much gradient comes from them."""
    title = "Credit against the truth"
    credit = base_credit(tables)
    if credit.empty:
        return p.not_run(title, "no credit.csv: python -m replication diagnose")
    figure, axes = p.panels(title, 2, width=5.0, height=3.3)
    bars, dots = axes[0]
    decisive = of(credit, ("generated", "generated"), "tokens_decisive")[0]
    for place, name in enumerate(CONTENDERS):
        left = 0.0
        for quantity, label, colour in _KINDS:
            size = float(np.nan_to_num(of(credit, name, quantity)[0])) if quantity else 100 - left
            name_once = label if place == 0 else None
            bars.barh(place, size, left=left, color=colour, height=0.68, label=name_once, edgecolor="white", lw=0.4)
            left += size
        right = of(credit, name, "credit_right")[0]
        number = f"{right:.2g} %" if right >= 0.1 else "< 0.1 %"
        bars.annotate(number, (101, place), va="center", fontsize=8.5, color=POSITIVE, annotation_clip=False)
    bars.axvline(decisive, color="black", linestyle=(0, (4, 3)), linewidth=1, label=f"decisive tokens:\n{decisive:.0f} % of all")
    bars.set_xlim(0, 112)
    bars.set_xticks(range(0, 101, 20))
    bars.set_xlabel("share of the method's credit (%)")
    _interval_dots(dots, credit, "gradient_decisive")
    dots.set_xlim(min(-3.0, dots.get_xlim()[0]), 103)
    dots.set_xlabel("share of the gradient from decisive tokens (%)")
    axis_names(bars, list(CONTENDERS.values()))
    axis_names(dots, [""] * len(CONTENDERS))
    p.legend_beside(figure, axes)
    text = (
        f"{p.scale_text(credit)} {_sample_text(credit)} Left: |weight x advantage|; number: decisive, right sign. A sign "
        "is right if it is that of the token's worth, the change of the chance to be right, from an audit sample of its own; "
        "under 5 points nothing was decided, within two standard errors of 0 it is not known. Right: projection on the whole "
        "gradient; bars: 95 % bootstrap over problems."
    )
    return p.caption(figure, text, _NO_RUNS)


def gradient_snr(tables: Tables) -> Figure:
    """Signal-to-noise ratio of the gradient per update and per token in the loss, and its angle to full-token GRPO's."""
    title = "How much of a gradient is signal?"
    credit = base_credit(tables)
    if credit.empty:
        return p.not_run(title, "no credit.csv: python -m replication diagnose")
    figure, axes = p.panels(title, 3, width=3.9, height=3.1)
    labels = {
        "snr_update": "signal / noise of an update (log scale)",
        "snr_per_1000_tokens": "the same per 1000 tokens in the loss (log scale)",
        "cosine_with_grpo": "cosine to GRPO's expected gradient",
    }
    for axis, (quantity, label) in zip(axes[0], labels.items(), strict=True):
        _interval_dots(axis, credit, quantity)
        if quantity != "cosine_with_grpo":
            axis.set_xscale("log")
            ends = credit.loc[credit["quantity"] == quantity, ["low", "value", "high"]].to_numpy(dtype=float)
            ends = ends[ends > 0]
            if len(ends):
                axis.set_xlim(ends.min() / 1.6, ends.max() * 1.6)
            axis.xaxis.set_major_locator(FixedLocator([10.0**power for power in range(-6, 9)]))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axis.set_xlim(min(0.0, axis.get_xlim()[0]), 1.05)
        axis.set_xlabel(label)
        axis_names(axis, list(CONTENDERS.values()) if axis is axes[0, 0] else [""] * len(CONTENDERS))
    text = (
        f"{p.scale_text(credit)} {_sample_text(credit)} Signal: squared length of the mean gradient of an update; "
        "noise: its mean squared deviation when completions and kept tokens are drawn again for the same problems. "
        "Bars: 95 % bootstrap over problems. A cosine under 1 is bias against full-token GRPO, and may be a better direction."
    )
    return p.caption(figure, text, _NO_RUNS)


def worked_example(tables: Tables) -> Figure:
    """One right and one wrong completion of a group, token by token, with the credit that each method gives."""
    title = "One group, token by token"
    rows = tables.get("worked_example")
    if rows is None or not len(rows):
        return p.not_run(title, "no worked_example.csv: python -m replication diagnose")
    rows = rows.sort_values(["completion", "position"], kind="stable")
    shown = rows.groupby("completion")["correct"].first().sort_values(ascending=False, kind="stable").index
    longest = int(rows["position"].max()) + 1
    figure, axes = p.panels(title, 1, rows=len(shown), width=max(0.42 * longest + 1.6, 8.0), height=2.7)
    for axis, completion in zip(axes[:, 0], shown, strict=True):
        mine = rows[rows["completion"] == completion]
        _tokens(axis, mine, longest)
        axis.set_title("right completion" if mine["correct"].iloc[0] else "wrong completion", loc="left", pad=24)
    first = rows.iloc[0]
    question = str(first["prompt"]).split("\n")[0]
    text = (
        f"{question} ({int(first['right_in_group'])} of {int(first['group_size'])} completions right.) Blue: made more "
        "likely, orange: less; the deeper, the larger the share of this completion's credit on that token (square-root scale). "
        "Dot: not in the loss. Framed: decisive tokens. First row: what a token changed in the chance to be right. "
        f"{p.scale_text(rows)}"
    )
    return p.caption(figure, text, _NO_RUNS)


def _tokens(axis: Axes, rows: pd.DataFrame, longest: int) -> None:
    tokens = rows.drop_duplicates("position")
    names = ["what it changed", *CONTENDERS.values()]
    lines = [(tokens["position"], tokens["worth"].fillna(0.0), 1.0)]
    for method, selector in CONTENDERS:
        own = rows[(rows["method"] == method) & (rows["selector"] == selector)]
        total = own["credit"].abs().sum()
        lines.append((own["position"], own["credit"], total if total > 0 else 1.0))
    for row, (positions, values, whole) in enumerate(lines):
        for position, value in zip(positions, values, strict=True):
            if np.isnan(value):
                axis.text(position, row, "·", ha="center", va="center", color="#999999", fontsize=8)
                continue
            depth = min(1.0, float(np.sqrt(abs(value) / whole)))
            if depth > 0.02:
                colour = POSITIVE if value > 0 else NEGATIVE
                axis.add_patch(Rectangle((position - 0.46, row - 0.43), 0.92, 0.86, facecolor=colour, alpha=depth, lw=0))
    for position, token, decisive in tokens[["position", "token", "decisive"]].itertuples(index=False):
        word = "END" if str(token).startswith("<|") else "\u2423" if not str(token).strip() else str(token).strip()
        weight = "bold" if decisive else "normal"
        axis.text(position, -0.75, word, ha="center", va="bottom", fontsize=8, fontweight=weight)
        if decisive:
            axis.add_patch(Rectangle((position - 0.5, -0.5), 1, len(names), fill=False, edgecolor="black", lw=1.1, zorder=4))
    axis.set_xlim(-0.6, longest - 0.4)
    axis.set_ylim(len(names) - 0.45, -0.6)
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    axis.set_xticks([])
    axis.grid(False)
    axis.axhline(0.5, color="#777777", linewidth=0.8)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def _interval_dots(axis: Axes, credit: pd.DataFrame, quantity: str) -> None:
    for place, name in enumerate(CONTENDERS):
        value, low, high = of(credit, name, quantity)
        colour, marker = p.SELECTOR_COLOURS[name[1]], p.SELECTOR_MARKERS[name[1]]
        axis.plot([low, high], [place] * 2, color=colour, linewidth=2)
        axis.plot(value, place, marker, color=colour, markersize=7)


def axis_names(axis: Axes, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.45, -0.55)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)


def _sample_text(credit: pd.DataFrame) -> str:
    first = credit.iloc[0]
    return f"The untrained base on {int(first['n'])} {p.TASKS[first['task']]}, {int(first['redraws'])} groups of each."

"""The ablations: which learning rate, how many tokens, which tokens, which adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from replication.names import HEADLINE, METHOD_LABELS, TASK_LABELS, TRAINED
from replication.report import style as p
from replication.report.select import in_order, runs_of
from replication.report.wording import counted, listing, number, percent, span
from replication.statistics import Tables, best_rate, rank_gap_table, selection_gap_table, tuning

#: Settings that tell two points of the token fraction apart.
_SETTINGS = ("method", "selector", "denominator", "keep_probability", "cutoff", "max_kept_tokens", "token_share", "learning_rate")


def base_accuracy(tables: Tables, profile: str, task: str) -> float:
    """Mean test accuracy of the untrained base in percent; NaN if it was not run."""
    runs = runs_of(tables, HEADLINE, profile)
    return float(100 * runs.loc[(runs["task"] == task) & (runs["method"] == "base"), "accuracy"].mean())


# Learning rate -----------------------------------------------------------------------------------------------------------------


def rate_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per task, method and rate, in percent: what the validation split says, what the test split says, and what was chosen.

    chosen: the highest mean validation accuracy. used: the rate of the headline runs. edge: the chosen rate is the lowest or the
    highest tried, so that a better one may lie outside.
    """
    table = tuning({**tables, "runs": runs_of(tables, "learning_rate", profile)})
    headline = runs_of(tables, HEADLINE, profile)
    if table.empty:
        return table
    table = in_order(table, "task", "method", "learning_rate")
    table[["validation_accuracy", "accuracy"]] *= 100
    used = set(zip(headline["task"], headline["method"], headline.get("learning_rate", []), strict=False))
    table["used"] = [row in used for row in table[["task", "method", "learning_rate"]].itertuples(index=False, name=None)]
    rates = table.groupby(["task", "method"])["learning_rate"]
    low, high = rates.transform("min"), rates.transform("max")
    edges = np.select([low == high, table["learning_rate"] == low, table["learning_rate"] == high], ["", "lowest", "highest"], "")
    table["edge"] = np.where(table["chosen"], edges, "")
    return table.drop(columns="forgiving", errors="ignore")


def draw_rate(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Validation accuracy against the learning rate, each method on the same grid, the chosen rate ringed."""
    runs = runs_of(tables, "learning_rate", profile)
    runs = runs[runs["validation_accuracy"].notna()]
    tasks = list(table["task"].unique())
    figure, axes = p.panels("Does one learning rate settle a comparison?", len(tasks), width=4.6, height=3.7)
    for axis, task in zip(axes[0], tasks, strict=True):
        rates = sorted(runs.loc[runs["task"] == task, "learning_rate"].unique())
        for shift, method in zip((0.95, 1.0, 1.05), TRAINED, strict=True):
            own = runs[(runs["task"] == task) & (runs["method"] == method)]
            p.line_of_means(axis, own, "learning_rate", {rate: rate * shift for rate in rates}, method, "validation_accuracy")
            best = table[(table["task"] == task) & (table["method"] == method) & table["chosen"].astype(bool)]
            axis.scatter(
                best["learning_rate"] * shift, best["validation_accuracy"], s=190, facecolors="none",
                edgecolors=p.COLOURS[method], linewidths=1.6, zorder=6,
            )  # fmt: skip
        p.log_axis(axis, rates)
        axis.set_xlabel("learning rate of AdamW (log scale)")
        axis.set_title(TASK_LABELS[task], loc="left")
        p.percent_axis(axis, "validation accuracy (%)")
    p.legend_beside(figure, axes)
    text = f"{p.about(profile)} Ring: the rate that validation chooses. Filled: mean; hollow: {p.seeds_of(runs, 'learning_rate')} "
    return p.caption(figure, text + f"at each point. {p.BARS}")


def say_rate(table: pd.DataFrame) -> list[str]:
    """The chosen rates, and how far the end of full-token GRPO depends on the rate alone."""
    parts = []
    for task, own in table[table["chosen"].astype(bool)].groupby("task", sort=False):
        same = own.groupby("learning_rate", sort=False)["method"].agg(lambda ids: listing([METHOD_LABELS[name] for name in ids]))
        parts.append(f"on {TASK_LABELS[task]} " + ", ".join(f"{rate:g} for {names}" for rate, names in same.items()))
    edges = table[table["edge"] != ""]
    edge = f"; {counted(len(edges), 'choice')} at an end of the grid, so a better rate may lie outside" if len(edges) else ""
    ends = table[table["method"] == "grpo"].groupby("task", sort=False)["accuracy"].agg(["min", "max"])
    range_ = [f"{number(low)} and {percent(high)} on {TASK_LABELS[task]}" for task, (low, high) in ends.iterrows()]
    said = [f"Validation chooses {'; '.join(parts)}{edge}."]
    return said + ([f"By its rate alone, full-token GRPO ends between {' and between '.join(range_)}."] if range_ else [])


# Token fraction ----------------------------------------------------------------------------------------------------------------


def fraction_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting, from the fewest tokens to the most: share of tokens in the loss and test accuracy in percent, over seeds."""
    runs = runs_of(tables, "token_fraction", profile)
    runs = runs[runs["kept_fraction"] > 0] if len(runs) else runs
    keys, rows = [name for name in _SETTINGS if name in runs], []
    for key, own in runs.groupby(["task", *keys], dropna=False, sort=False) if len(runs) else ():
        named = dict(zip(["task", *keys], key, strict=True))
        row = {name: named.get(name) for name in ("task", "method", "selector", "denominator")}
        row |= {"setting": _setting(named), "share": 100 * (named.get("token_share") or np.nan), "seeds": own["seed"].nunique()}
        row |= {"kept_fraction": 100 * own["kept_fraction"].mean(), "accuracy": 100 * own["accuracy"].mean()}
        rows.append(row | {"lowest": 100 * own["accuracy"].min(), "highest": 100 * own["accuracy"].max()})
    table = pd.DataFrame(rows)
    return table.sort_values(["task", "kept_fraction", "setting"], kind="stable", ignore_index=True) if rows else table


def _setting(named: dict[str, Any]) -> str:
    selector = named.get("selector", "rule")
    text = p.SELECTOR_LABELS.get(selector, str(selector))
    if pd.notna(named.get("token_share")):
        return f"{text}, {100 * named['token_share']:g} % of each completion"
    if named["method"] == "s_grpo" and pd.notna(named.get("keep_probability")):
        limit = named.get("max_kept_tokens")
        text += f", P {named['keep_probability']:g}, " + ("no cap" if pd.isna(limit) else f"at most {limit:g}")
    return text + (", divided by the completion" if (named["method"], named.get("denominator")) == ("s_grpo", "completion") else "")


def draw_fraction(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Test accuracy against the share of tokens in the loss, a line for each rule that picks them."""
    runs = runs_of(tables, "token_fraction", profile)
    runs = runs[runs["kept_fraction"] > 0]
    tasks = list(table["task"].unique())
    figure, axes = p.panels("How many tokens does an update need?", len(tasks), width=6.0)
    for axis, task in zip(axes[0], tasks, strict=True):
        base = base_accuracy(tables, profile, task)
        p.base_line(axis, base)
        here = runs[runs["task"] == task]
        usual = here.groupby("selector")["denominator"].agg(lambda names: names.mode()[0])
        series = [(name, usual[name]) for name in (*p.SELECTOR_LABELS, *usual.index) if name in usual.index]
        series += [pair for pair in zip(here["selector"], here["denominator"], strict=True) if pair[1] != usual[pair[0]]]
        for selector, denominator in dict.fromkeys(series):
            # The other denominator is a series of its own: a line joins points that differ in the share alone.
            other = denominator != usual[selector]
            own = here[(here["selector"] == selector) & (here["denominator"] == denominator)]
            rows = table[(table["task"] == task) & (table["selector"] == selector) & (table["denominator"] == denominator)]
            colour, marker = p.SELECTOR_COLOURS.get(selector, "#555555"), p.SELECTOR_MARKERS.get(selector, "X")
            p.dots(axis, 100 * own["kept_fraction"], 100 * own["accuracy"], own, colour, marker)
            for _, seeds in own.groupby([name for name in _SETTINGS if name in own], dropna=False):
                p.seed_bar(axis, 100 * seeds["kept_fraction"].mean(), 100 * seeds["accuracy"], colour, (0, 100))
            label = p.SELECTOR_LABELS.get(selector, selector) + (f",\ndivided by {denominator}" if other else "")
            axis.plot(
                rows["kept_fraction"], rows["accuracy"], color=colour, marker=marker, markersize=8 if other else 6.5, zorder=3,
                linestyle=":" if other else "-", markeredgecolor="black" if other else colour, label=label,
            )  # fmt: skip
        p.log_axis(axis, [0.1, 0.3, 1, 3, 10, 30, 100], "{:g} %")
        axis.set_xlabel("tokens in the loss (% of those generated in groups that do not tie, log scale)")
        axis.set_title(TASK_LABELS[task], loc="left")
        p.percent_axis(axis, "test accuracy (%)", [*(100 * here["accuracy"]), base])
    p.legend_beside(figure, axes)
    seeds = p.seeds_of(runs, *[name for name in _SETTINGS if name in runs and name != "method"])
    text = f"{p.about(profile)} Filled: mean of the seeds at one setting; hollow: {seeds} at each point. {p.BARS}"
    return p.caption(figure, text)


def say_fraction(table: pd.DataFrame) -> list[str]:
    """Both ends of the range; then how far apart the rules are where they pick equally many tokens."""
    least, most = table.iloc[0], table[table["method"] == "grpo"]
    first = f"With the fewest tokens ({least['setting']}, {percent(least['kept_fraction'])}) the test accuracy is "
    first += percent(least["accuracy"]) + (f", with all of them {percent(most.iloc[0]['accuracy'])}." if len(most) else ".")
    picked = table[table["share"].notna()]
    spreads = {share: own for share, own in picked.groupby("share") if own["selector"].nunique() > 1}
    if not spreads:
        return [first]
    share = max(spreads, key=lambda one: np.ptp(spreads[one]["accuracy"]))
    best, worst = (spreads[share].loc[spreads[share]["accuracy"].agg(end)] for end in ("idxmax", "idxmin"))
    return [
        first,
        f"With {share:g} % of each completion it depends on which: {p.SELECTOR_LABELS.get(worst['selector'], worst['selector'])} "
        f"{percent(worst['accuracy'])}, {p.SELECTOR_LABELS.get(best['selector'], best['selector'])} {percent(best['accuracy'])}.",
    ]


# Which tokens ------------------------------------------------------------------------------------------------------------------


def contrast_table(tables: Tables, profile: str) -> pd.DataFrame:
    """What one way of picking tokens gains over another, in points, with its seed × item interval, seeds and items in pairs."""
    table = selection_gap_table(tables, profile)
    names = {"gap": "gain", "low": "gain_low", "high": "gain_high"}
    return table[table["gap"].notna()].rename(columns=names).reset_index(drop=True)


def draw_contrast(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A row for each contrast: the gain in points with its interval, left of 0 a loss."""
    figure, axes = p.panels("Is it how many tokens, or which?", 1, width=8.4, height=max(0.24 * len(table) + 0.6, 2.0))
    axis = axes[0, 0]
    names = [f"{row.setting} minus {row.reference}, at {row.share:.3g} %" for row in table.itertuples()]
    for place, row in enumerate(table.itertuples()):
        clear = row.gain_low > 0 or row.gain_high < 0
        colour = "#0072B2" if row.gain_low > 0 else "#D55E00" if row.gain_high < 0 else "#777777"
        axis.plot([row.gain_low, row.gain_high], [place] * 2, color=colour, linewidth=2)
        axis.plot(row.gain, place, "o", color=colour, markerfacecolor=colour if clear else "white", markersize=6)
    axis.axvline(0, color="black", linewidth=1)
    p.rows_axis(axis, names)
    axis.set_xlabel("difference in test accuracy (points)")
    text = f"{p.about(profile)} Bars: 95 % bootstrap of seeds and items, both in pairs (from {table['seeds'].min():.0f} seeds on), "
    text += "not corrected for their number. Filled: the interval leaves 0 out. At: the share of the tokens."
    return p.caption(figure, text)


def say_contrast(table: pd.DataFrame) -> list[str]:
    """Which contrasts leave 0 out, in either direction, and which leave it open."""
    said: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for (setting, reference), own in table.groupby(["setting", "reference"], sort=False):
        clear = {"better": own[own["gain_low"] > 0], "worse": own[own["gain_high"] < 0]}
        for kind, rows in clear.items():
            if len(rows):
                shares = f" at {len(rows)} of {len(own)} shares" if len(own) > 1 else ""
                said[kind].append(f"{setting} than {reference}{shares} (by {span(rows['gain'].abs())} points)")
        if all(rows.empty for rows in clear.values()):
            said["open"].append(f"{setting} and {reference} ({span(own['gain'])} points)")
    first = [f"{kind} are {'; '.join(said[kind])}" for kind in ("better", "worse") if said[kind]]
    second = [f"No difference is seen between {'; '.join(said['open'])}."] if said["open"] else []
    return ([f"Clearly {'. Clearly '.join(first)}."] if first else []) + second


# LoRA rank ---------------------------------------------------------------------------------------------------------------------


def rank_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per task, method and rank, at the rate that validation chooses: test accuracy in percent, and the gap to GRPO in points.

    Rank 0 is full fine-tuning. The gap has its seed × item interval, seeds and items in pairs.
    """
    runs, rows = runs_of(tables, "lora_rank", profile), []
    for (task, method, rank), own in runs.groupby(["task", "method", "lora_rank"], sort=False) if len(runs) else ():
        rate, tried = best_rate(own), sorted(own["learning_rate"].unique())
        at_rate = 100 * own.loc[own["learning_rate"] == rate, "accuracy"]
        edge = "" if len(tried) < 2 else {tried[0]: "lowest", tried[-1]: "highest"}.get(rate, "")
        row = {"task": task, "method": method, "rank": int(rank), "learning_rate": rate, "rates_tried": len(tried), "edge": edge}
        row |= {"seeds": len(at_rate), "accuracy": at_rate.mean(), "lowest": at_rate.min(), "highest": at_rate.max()}
        rows.append(row)
    if not rows:
        return pd.DataFrame()
    gaps = rank_gap_table(tables, profile).rename(columns={"low": "gap_low", "high": "gap_high"})
    gaps["method"] = gaps["method"].replace({label: name for name, label in METHOD_LABELS.items()})
    table = pd.DataFrame(rows).merge(gaps[["task", "rank", "method", "gap", "gap_low", "gap_high"]], how="left")
    table = in_order(table.assign(size=table["rank"].replace(0, 10**9)), "task", "method", "size")  # full fine-tuning is last
    return table.drop(columns="size")


def draw_rank(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Test accuracy against the rank of the adapter, each method at the rate tuned for that rank."""
    runs = runs_of(tables, "lora_rank", profile).rename(columns={"lora_rank": "rank"})
    runs = runs.merge(table[["task", "method", "rank", "learning_rate"]])
    ranks, tasks = list(table["rank"].unique()), list(table["task"].unique())
    ranks.sort(key=lambda rank: rank or 10**9)
    figure, axes = p.panels("Does the gap between sparse and full depend on the LoRA rank?", len(tasks), width=5.6)
    for axis, task in zip(axes[0], tasks, strict=True):
        base, here = base_accuracy(tables, profile, task), runs[runs["task"] == task]
        p.base_line(axis, base)
        for shift, method in zip((-0.18, 0.0, 0.18), TRAINED, strict=True):
            places = {rank: place + shift for place, rank in enumerate(ranks)}
            p.line_of_means(axis, here[here["method"] == method], "rank", places, method, "accuracy")
        axis.set_xticks(range(len(ranks)), [str(rank) if rank else "full\nfine-tuning" for rank in ranks])
        axis.set_xlim(-0.5, len(ranks) - 0.5)
        axis.grid(axis="x", visible=False)
        axis.set_xlabel("rank of the adapter")
        axis.set_title(TASK_LABELS[task], loc="left")
        p.percent_axis(axis, "test accuracy (%)", [*(100 * here["accuracy"]), base])
    p.legend_beside(figure, axes)
    edges = int((table["edge"] != "").sum())
    text = f"{p.about(profile)} alpha / rank is the same at every rank; the learning rate is tuned for each rank and method, at "
    text += f"{edges} of {len(table)} points to an end of its grid. Filled: mean; hollow: {p.seeds_of(runs, 'rank')} at each point."
    return p.caption(figure, f"{text} {p.BARS}")


def say_rank(table: pd.DataFrame) -> list[str]:
    """Each method at the smallest and the largest adapter; then at how many ranks each sparse method is clearly behind or ahead."""
    ends = [(METHOD_LABELS[method], own.iloc[0], own.iloc[-1]) for method, own in table.groupby("method", sort=False)]
    low, high = (f"rank {rank}" if rank else "full fine-tuning" for rank in (ends[0][1]["rank"], ends[0][2]["rank"]))
    parts = [f"{name} goes from {number(first['accuracy'])} to {percent(last['accuracy'])}" for name, first, last in ends]
    said = [f"From {low} to {high}, {listing(parts)}."]
    gaps = []
    for method, own in table[table["gap"].notna()].groupby("method", sort=False):
        behind, ahead = int((own["gap_high"] < 0).sum()), int((own["gap_low"] > 0).sum())
        name, text = METHOD_LABELS[method], f"clearly behind GRPO at {behind} of {counted(len(own), 'rank')}"
        gaps.append(f"{name} is {text}" + (f" and ahead at {ahead}" if ahead else "") + f" ({span(own['gap'])} points)")
    return said + ([f"{'; '.join(gaps)}."] if gaps else [])

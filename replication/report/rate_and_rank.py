"""The ablations of two settings that every method has: its learning rate, and the rank of its adapter."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from replication.names import HEADLINE, METHOD_LABELS, SETTING_LABELS
from replication.report import style as p
from replication.report.select import base_accuracy, items_of, items_of_split, methods_of, with_all_seeds
from replication.report.wording import all_seeds, counted, counted_span, listing, number, percent, span
from replication.statistics import TUNED_WITHIN, Tables, at_best_rate, best_rate, difference, end_of_grid, in_order, runs_of, tuning

#: From so many seeds on, a difference whose interval leaves 0 out is called clear.
CLEAR_FROM = 3

# Learning rate -----------------------------------------------------------------------------------------------------------------


def rate_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting, method and rate, in percent: what the validation split says, what the test split says, and what was chosen.

    chosen: the highest mean validation accuracy. used: the rate of the headline runs. edge: the chosen rate is the lowest or the
    highest tried, so that a better one may lie outside. forgiving to peak_high: see ``tuning``, empty but in the chosen row.
    """
    runs, headline = runs_of(tables, "learning_rate", profile), runs_of(tables, HEADLINE, profile)
    table = tuning({**tables, "runs": runs})
    if table.empty:
        return table.assign(used=False)
    table = in_order(table, "setting", "method", "learning_rate")
    table[["validation_accuracy", "accuracy"]] *= 100
    counts = {key: (items_of_split(tables, own, "validation"), items_of(own)) for key, own in runs.groupby(["setting", "method"])}
    table[["validation_items", "items"]] = [counts[key] for key in zip(table["setting"], table["method"], strict=True)]
    used = set(zip(headline["setting"], headline["method"], headline["learning_rate"], strict=True))
    table["used"] = [row in used for row in table[["setting", "method", "learning_rate"]].itertuples(index=False, name=None)]
    tried = dict(list(table.groupby(["setting", "method"])["learning_rate"]))
    ends = [end_of_grid(row.learning_rate, tried[row.setting, row.method]) if row.chosen else "" for row in table.itertuples()]
    return table.assign(edge=ends)


def not_at_best_rate(table: pd.DataFrame) -> pd.DataFrame:
    """The chosen rows of ``rate_table`` whose validation accuracy is above that of the headline's rate by over ``TUNED_WITHIN``."""
    keys = ["setting", "method"]
    used = table[table["used"]].groupby(keys, as_index=False)["validation_accuracy"].min()
    chosen = table[table["chosen"]].merge(used, on=keys, suffixes=("", "_used"))
    return chosen[chosen["validation_accuracy"] - chosen["validation_accuracy_used"] > 100 * TUNED_WITHIN]


def suits_better(table: pd.DataFrame) -> str:
    """The rows of ``not_at_best_rate`` in a sentence, or nothing."""
    parts = [
        f"{listing([METHOD_LABELS[name] for name in own['method']])} on {SETTING_LABELS[setting]}"
        for setting, own in table.groupby("setting", sort=False)
    ]
    seeds = counted(table["seeds"].max(), "tuning seed") if parts else ""
    better = f"With {seeds}, a rate other than the headline's is more than {100 * TUNED_WITHIN:g} points better on validation"
    return f"{better} for {'; '.join(parts)}." if parts else ""


def draw_rate(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Validation accuracy against the learning rate, each method on the same grid, the chosen rate ringed."""
    runs = runs_of(tables, "learning_rate", profile)
    runs = runs[runs["validation_accuracy"].notna()]
    methods = methods_of(runs)
    figure, axes = p.setting_panels("Does one learning rate settle a comparison?", list(table["setting"].unique()), width=4.6)
    rates = sorted(runs["learning_rate"].unique())
    for setting, axis in axes.items():
        for place, (shift, method) in enumerate(zip(np.geomspace(0.92, 1 / 0.92, len(methods)), methods, strict=True)):
            own = runs[(runs["setting"] == setting) & (runs["method"] == method)]
            p.line_of_means(axis, own, "learning_rate", {rate: rate * shift for rate in rates}, method, "validation_accuracy")
            best = table[(table["setting"] == setting) & (table["method"] == method) & table["chosen"]]
            axis.scatter(
                best["learning_rate"] * shift, best["validation_accuracy"], s=130 + 130 * place, facecolors="none",
                edgecolors=p.COLOURS[method], linewidths=1.6, zorder=6,
            )  # fmt: skip
        p.log_axis(axis, rates)
        axis.set_xlim(rates[0] / 1.25, rates[-1] * 1.25)
        seeds = counted_span(table.loc[table["setting"] == setting, "seeds"], "seed")
        axis.set_title(f"{SETTING_LABELS[setting]}: {seeds} at each rate", loc="left")
        axis.set_xlabel("learning rate of AdamW (log scale)")
        p.percent_axis(axis, "validation accuracy (%)")
    p.legend_beside(figure, axes.values())
    text = f"{p.about(profile)} Ring, of another size for each method: the rate that validation chooses. Filled: mean; hollow: "
    return p.caption(figure, f"{text}{p.seeds_of(runs, 'learning_rate')} at each point.{p.bars(runs, 'learning_rate')}")


def say_rate(table: pd.DataFrame) -> list[str]:
    """The chosen rates, and how far the end of full-token GRPO depends on the rate alone."""
    parts = []
    for setting, own in table[table["chosen"]].groupby("setting", sort=False):
        same = own.groupby("learning_rate", sort=False)["method"].agg(lambda ids: listing([METHOD_LABELS[name] for name in ids]))
        parts.append(f"on {SETTING_LABELS[setting]} " + ", ".join(f"{rate:g} for {names}" for rate, names in same.items()))
    edges = table[table["edge"] != ""]
    edge = f"; {counted(len(edges), 'choice')} at an end of the grid, so a better rate may lie outside" if len(edges) else ""
    ends = table[table["method"] == "grpo"].groupby("setting", sort=False)["accuracy"].agg(["min", "max"])
    range_ = [f"{number(low)} to {percent(high)} on {SETTING_LABELS[setting]}" for setting, (low, high) in ends.iterrows()]
    said = [f"Validation chooses {'; '.join(parts)}{edge}."]
    chosen = table[table["chosen"]].dropna(subset="peak_low")
    if len(chosen):
        factors = chosen["peak_high"] / chosen["peak_low"]
        apart = f" In the others the picks differ by up to {number(factors.max())} times." if factors.max() > 1 else ""
        said[0] += f" In {int((factors == 1).sum())} of {counted(len(chosen), 'case')} every seed alone picks the same rate.{apart}"
    if other := suits_better(not_at_best_rate(table)):
        said[0] += f" {other}"
    return said + ([f"Depending on the learning rate alone, full-token GRPO ends at {listing(range_)}."] if range_ else [])


# LoRA rank ---------------------------------------------------------------------------------------------------------------------


def rank_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting, method and rank, at the rate that validation chooses: test accuracy in percent, and the gap to GRPO in points.

    Rank 0 is full fine-tuning. The gap has its interval over seeds, templates and items in pairs; that the rates were chosen is
    not part of it. all_seeds: see ``with_all_seeds``.
    """
    runs, rows = runs_of(tables, "lora_rank", profile), []
    for (setting, method, rank), own in runs.groupby(["setting", "method", "lora_rank"], sort=False):
        rate, tried = best_rate(own), sorted(own["learning_rate"].unique())
        at_rate = 100 * own.loc[own["learning_rate"] == rate, "accuracy"]
        row = {"setting": setting, "method": method, "rank": int(rank), "learning_rate": rate, "rates_tried": len(tried)}
        row |= {"edge": end_of_grid(rate, tried), "seeds": len(at_rate), "items": items_of(own)}
        row |= {"accuracy": at_rate.mean(), "lowest": at_rate.min(), "highest": at_rate.max()}
        row |= {"all_seeds": with_all_seeds(tables, profile, at_best_rate(own))}
        row |= dict.fromkeys(("gap", "gap_low", "gap_high"), np.nan)
        full = runs[(runs["setting"] == setting) & (runs["lora_rank"] == rank) & (runs["method"] == "grpo")]
        if method != "grpo" and len(full) and (gap := difference(tables, at_best_rate(own), at_best_rate(full))):
            row |= gap.scaled(100).columns("gap")
        rows.append(row)
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    table = in_order(table.assign(size=table["rank"].replace(0, 10**9)), "setting", "method", "size")  # full fine-tuning is last
    return table.drop(columns="size")


def draw_rank(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Test accuracy against the rank of the adapter, each method at the rate tuned for that rank."""
    runs = runs_of(tables, "lora_rank", profile).rename(columns={"lora_rank": "rank"})
    runs = runs.merge(table[["setting", "method", "rank", "learning_rate"]])
    ranks, settings = sorted(table["rank"].unique(), key=lambda rank: rank or 10**9), list(table["setting"].unique())
    methods = methods_of(runs)
    figure, axes = p.setting_panels("Does the gap between sparse and full depend on the LoRA rank?", settings, width=5.4)
    for setting, axis in axes.items():
        here = runs[runs["setting"] == setting]
        p.base_line(axis, base_accuracy(tables, profile, setting))
        for shift, method in zip(np.linspace(-0.18, 0.18, len(methods)), methods, strict=True):
            places = {rank: place + shift for place, rank in enumerate(ranks)}
            p.line_of_means(axis, here[here["method"] == method], "rank", places, method, "accuracy")
        axis.set_xticks(range(len(ranks)), [str(rank) if rank else "full\nfine-tuning" for rank in ranks])
        axis.set_xlim(-0.5, len(ranks) - 0.5)
        axis.grid(axis="x", visible=False)
        axis.set_xlabel("rank of the adapter")
        p.percent_axis(axis, "test accuracy (%)")
    p.legend_beside(figure, axes.values())
    edges = int((table["edge"] != "").sum())
    text = (
        f"{p.about(profile)} alpha / rank is the same at every rank. The learning rate of a point was chosen on validation among "
        f"those tried, with the seeds that are shown; at {edges} of {len(table)} points it is an end of the grid. "
        f"Filled: mean; hollow: {p.seeds_of(runs, 'rank')} at each point."
    )
    return p.caption(figure, text + p.bars(runs, "rank"))


def say_rank(table: pd.DataFrame) -> list[str]:
    """Each method at the smallest and the largest adapter; then at how many ranks each sparse method is clearly behind or ahead."""
    ends, gaps, several = [], [], table["setting"].nunique() > 1
    for (setting, method), own in table.groupby(["setting", "method"], sort=False):
        name = METHOD_LABELS[method] + several * f" on {SETTING_LABELS[setting]}"
        ends.append(f"{name} goes from {number(own.iloc[0]['accuracy'])} to {percent(own.iloc[-1]['accuracy'])}")
        own = own[own["gap"].notna() & (own["seeds"] > 1)]
        if len(own):
            behind, ahead = int((own["gap_high"] < 0).sum()), int((own["gap_low"] > 0).sum())
            text = f", clearly below 0 at {behind or 'none'}" + (f" and above 0 at {ahead}" if ahead else "")
            text = text if own["seeds"].min() >= CLEAR_FROM else ""
            gaps.append(f"{name} minus GRPO is {span(own['gap'])} points over {counted(len(own), 'rank')}{text}")
    low, high = (f"rank {rank}" if rank else "full fine-tuning" for rank in table["rank"].iloc[[0, -1]])
    said = [f"From {low} to {high}, {listing(ends)}."]
    if gaps:
        seeds = counted(table["seeds"].min(), "seed")
        said.append(f"{'; '.join(gaps)} ({seeds}, which also chose the rates).{all_seeds(table)}")
    return said

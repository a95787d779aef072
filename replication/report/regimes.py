"""Where full-token GRPO fails, what few training items do, and what replays add: the ablations regimes and replay."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from replication.names import METHOD_LABELS, NEW_SEED
from replication.report import style as p
from replication.report.select import by_seed, curves_of, items_of, items_of_split
from replication.report.wording import counted, interval, listing, number, percent
from replication.statistics import CELL, Tables, at_best_rate, cell_name, difference, end_of_grid, mean_over_seeds, runs_of

#: The margins of the rule in docs/nano-lab.md, in points over the base.
FAILS_UNDER, WORKS_ABOVE = 5.0, 20.0


def regime_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per cell, method and kind of seeds: gain over the base in points with its interval, at the rate with the best validation.

    seeds_are: "screening" (one seed, every rate) or "new" (cells that the screening picked, at one rate for each method).
    worst_rate: the accuracy at the rate where it was lowest, in percent. edge: the rate is the lowest or the highest tried.
    """
    runs, rows = runs_of(tables, "regimes", profile), []
    base = runs[runs["method"] == "base"]
    trained = runs[(runs["method"] != "base") & (runs["extra_splits"] == "never")]
    for (*cell, method, screening), own in trained.groupby([*CELL, "method", trained["seed"] < NEW_SEED], dropna=False, sort=True):
        best = at_best_rate(own)
        row = {"cell": cell_name(*cell), "method": method, "seeds_are": "screening" if screening else "new"}
        row |= {"seeds": best["seed"].nunique(), "learning_rate": best["learning_rate"].iloc[0]}
        by_rate = 100 * own.groupby("learning_rate")["accuracy"].mean()
        row |= {"rates_tried": len(by_rate), "edge": end_of_grid(row["learning_rate"], by_rate.index)}
        row |= {"accuracy": 100 * best["accuracy"].mean(), "worst_rate": by_rate.min()}
        row |= dict.fromkeys(("gain", "gain_low", "gain_high", "items"), float("nan"))
        if gain := difference(tables, best, base):
            row |= gain.scaled(100).columns("gain") | {"items": gain.items}
        rows.append(row | {"collapsed": int((best["status"] == "collapsed").sum())})
    return pd.DataFrame(rows)


def draw_regimes(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A row for each cell: the gain of each method over the base with its interval; filled on new seeds, hollow the screening."""
    names = list(dict.fromkeys(table["cell"]))
    figure, axes = p.panels("Where does full-token GRPO fail?", 1, width=8.0, height=1.2 + 0.12 * len(names) + 0.16 * len(table))
    axis = axes[0, 0]
    beside = table.groupby("cell").cumcount() - (table.groupby("cell")["cell"].transform("size") - 1) / 2
    for row, shift in zip(table.itertuples(), beside, strict=True):
        colour, new, place = p.COLOURS[row.method], row.seeds_are == "new", names.index(row.cell) + 0.24 * shift
        label = f"{METHOD_LABELS[row.method]}, {row.seeds_are} seeds"
        axis.plot([row.gain_low, row.gain_high], [place] * 2, color=colour, linewidth=2.0 if new else 1.0)
        face = colour if new else "white"
        axis.plot(row.gain, place, p.MARKERS[row.method], color=colour, markerfacecolor=face, markersize=6, label=label)
    for margin, text in ((FAILS_UNDER, "GRPO fails\nunder"), (WORKS_ABOVE, "sparse works\nabove")):
        axis.axvline(margin, color="#777777", linestyle=":", linewidth=1)
        axis.annotate(text, (margin, -0.55), ha="center", va="bottom", fontsize=8, color="#555555")
    p.rows_axis(axis, names)
    axis.set_xlabel("test accuracy minus the base's (points)")
    p.legend_beside(figure, [axis])
    text = (
        f"{p.about(profile)} A cell: prompts a step × completions a prompt; the advantage, centred on the group's mean, or also "
        "divided by its deviation (normalised); training items. Hollow: the screening, one seed, at the rate of the best "
        "validation accuracy, 95 % intervals over templates and items."
    )
    if rates := [f"{rate:g}" for rate in table.loc[table["seeds_are"] == "new", "learning_rate"].unique()]:
        text += " Filled: new seeds, 95 % intervals over seeds, templates and items; their learning rate, "
        text += f"{listing(rates)}, was not tuned for each method."
    return p.caption(figure, text)


def say_regimes(table: pd.DataFrame) -> list[str]:
    """In how many cells GRPO gains little, and whether one meets the rule."""
    screened = table[(table["method"] == "grpo") & (table["seeds_are"] == "screening")]
    screened = screened.dropna(subset="gain")
    if screened.empty:
        return ["No cell was screened, or its base was not run."]
    worst, best = screened.loc[screened["gain"].idxmin()], screened.loc[screened["gain"].idxmax()]
    first = (
        f"We screened {counted(len(screened), 'cell')} with one seed. At the rate that this seed chose, full-token GRPO gained "
        f"{number(worst['gain'])} points ({worst['cell']}) to {number(best['gain'])} points ({best['cell']}). At its worst rate "
        f"its accuracy was {number(screened['worst_rate'].min())} to {percent(screened['worst_rate'].max())}."
    )
    new = table[table["seeds_are"] == "new"]
    if new.empty:
        return [first, "No cell was run again with new seeds."]
    failing = set(new.loc[(new["method"] == "grpo") & (new["gain_high"] < FAILS_UNDER), "cell"])
    working = set(new.loc[(new["method"] != "grpo") & (new["gain_low"] > WORKS_ABOVE), "cell"])
    met, cells = sorted(failing & working), new["cell"].nunique()
    again = f"We ran {counted(cells, 'cell')} again with new seeds. GRPO fails and a sparse method works in"
    return [first, f"{again} {listing(met) or 'none of them'}."]


#: By the column of runs.csv: the metric of curves.csv, and the label of its axis.
_SPLITS = {
    "train_accuracy": ("validation_train_accuracy", "items trained on (%)"),
    "validation_accuracy": ("validation_accuracy", "validation items (%)"),
    "held_out_accuracy": ("validation_held_out_accuracy", "held-out templates (%)"),
}


def overfitting_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per training set and method: accuracy at the end on trained items, test items and held-out templates, in percent.

    ahead: how far that on trained items is above that on test items, in points.

    epochs: how often a training item was seen. A run evaluates as many trained items, and as many held-out items, as validation
    items. A smaller training set is evaluated whole.
    """
    runs, rows = _overfit(tables, profile), []
    for (items, steps, method), own in runs.groupby(["train_items", "steps", "method"], sort=True):
        row = {"train_items": int(items), "steps": int(steps), "method": method, "seeds": own["seed"].nunique()}
        row["epochs"] = steps * own["prompts_per_step"].iloc[0] / items
        validation = items_of_split(tables, own, "validation")
        row |= {"trained_items": np.minimum(items, validation), "items": items_of(own), "held_out_items": validation}
        row |= {name: 100 * own[name].mean() for name in ("train_accuracy", "accuracy", "held_out_accuracy")}
        row |= mean_over_seeds(100 * (own["train_accuracy"] - own["accuracy"])).columns("ahead")
        kl = own["kl_to_base"].clip(lower=1e-9)
        rows.append(row | {"kl_to_base": float(np.exp(np.log(kl).mean())), "collapsed": int((own["status"] == "collapsed").sum())})
    return pd.DataFrame(rows)


def _overfit(tables: Tables, profile: str) -> pd.DataFrame:
    runs = runs_of(tables, "regimes", profile)
    return runs[(runs["method"] != "base") & (runs["extra_splits"] == "always")]


def draw_overfitting(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A row for each training set, a column for each kind of item: accuracy over the steps, mean and range of the seeds."""
    runs = _overfit(tables, profile)
    sizes = list(table["train_items"].unique())
    figure, axes = p.panels("Few training items, many steps", len(_SPLITS), rows=len(sizes), width=3.6, height=2.6)
    for row, size in zip(axes, sizes, strict=True):
        here = runs[runs["train_items"] == size]
        curves = curves_of(tables, here, *(metric for metric, _ in _SPLITS.values()))
        for axis, (column, (metric, label)) in zip(row, _SPLITS.items(), strict=True):
            for (setting, method), own in here.groupby(["setting", "method"], sort=False):
                ends = own.pivot(index="steps_done", columns="seed", values=column)  # curves.csv has validation items alone then
                wide = 100 * by_seed(curves, metric, setting, method).combine_first(ends)
                p.mean_and_range(axis, wide, method, marker=p.MARKERS[method], markersize=3)
            p.percent_axis(axis, label)
            axis.set_xlabel("optimizer step")
            axis.set_title(f"{size} training items", loc="left")
    p.legend_beside(figure, axes.flat)
    text = f"{p.about(profile)} Greedy. Lines: mean over {p.seeds_of(runs, 'train_items')}; bands: lowest to highest seed. "
    text += "Validation items: not trained on, of templates that are not held out. "
    return p.caption(figure, text + "All seeds of a row train on the same fixed set of items.")


def say_overfitting(table: pd.DataFrame) -> list[str]:
    """The gap of each method on the smallest training set, and where each method ends after the longest training."""
    few = table[table["train_items"] == table["train_items"].min()]
    longest = table[table["steps"] == table["steps"].max()]
    longest = longest[longest["train_items"] == longest["train_items"].max()]
    gaps = [f"{METHOD_LABELS[row.method]} {number(row.ahead)}" for row in few.itertuples()]
    ends = [f"{METHOD_LABELS[row.method]} {percent(row.accuracy)}" for row in longest.itertuples()]
    items, steps = longest[["train_items", "steps"]].iloc[0]
    return [
        f"With {few['train_items'].iloc[0]} training items, accuracy on these is higher than on test items, in points: "
        f"{listing(gaps)}.",
        f"After the longest training, {steps} steps on {items} items, the accuracy on test items is {listing(ends)} "
        f"({counted(longest['seeds'].min(), 'seed')}).",
    ]


def replayed(runs: pd.DataFrame) -> pd.Series:
    """Which of the runs replay completions."""
    return runs["replay_successes"].notna() | runs["replay_failures"].notna()


def replay_table(tables: Tables, profile: str) -> pd.DataFrame:
    """T-SPMO without replays and with: test accuracy in percent, and the difference in points with its interval."""
    runs, rows = runs_of(tables, "replay", profile), []
    for setting, own in runs.groupby("setting", sort=False):
        with_, without = own[replayed(own)], own[~replayed(own)]
        found = difference(tables, with_, without)
        both = set(with_["seed"]) & set(without["seed"])  # those of the difference
        with_, without = (side[side["seed"].isin(both)] for side in (with_, without))
        if found is None:
            continue
        found = found.scaled(100)
        row = {"setting": setting, "seeds": found.seeds, "items": found.items}
        row |= {"without": 100 * without["accuracy"].mean(), "with": 100 * with_["accuracy"].mean()}
        row |= found.columns("difference")
        rows.append(row | {"tokens_with_over_without": with_["tokens_generated"].mean() / without["tokens_generated"].mean()})
    return pd.DataFrame(rows)


def draw_replay(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A dot for each seed, without replays and with, joined."""
    runs = runs_of(tables, "replay", profile)
    figure, axes = p.setting_panels("Do replays help T-SPMO?", list(table["setting"]))
    for setting, axis in axes.items():
        own = runs[runs["setting"] == setting]
        wide = pd.DataFrame({
            place: 100 * own[replayed(own) == bool(place)].set_index("seed")["accuracy"] for place in (0, 1)
        })  # fmt: skip
        for _, values in wide.dropna().iterrows():
            axis.plot([0, 1], values, p.MARKERS["t_spmo"] + "-", color=p.COLOURS["t_spmo"], markerfacecolor="white", linewidth=0.8)
        axis.set_xticks([0, 1], ["without", "with replays"])
        axis.set_xlim(-0.4, 1.4)
        p.percent_axis(axis, "test accuracy (%)")
    return p.caption(figure, f"{p.about(profile)} One line for each seed.")


def say_replay(table: pd.DataFrame) -> list[str]:
    """The difference, and what the replays cost in tokens."""
    row = table.iloc[0]
    gap = interval(row["difference"], row["difference_low"], row["difference_high"], " points")
    return [f"Replays change T-SPMO's accuracy by {gap}, with {row['tokens_with_over_without']:.2f} times the tokens generated."]

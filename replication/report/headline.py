"""The headline comparison: the base and the three methods in every setting, at the end and along the way."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.names import HEADLINE, METHOD_LABELS, SETTING_LABELS, TASK_LABELS, trained_in
from replication.report import style as p
from replication.report.select import by_seed, curves_of, items_of, items_of_split
from replication.report.wording import counted, counted_span, listing, number, percent, span
from replication.statistics import Tables, accuracy, difference, mean_over_seeds, runs_of, table

#: A curve still rises if validation accuracy gained this many points or more in the last third of the steps.
LEVEL = 1.0
#: Steps in the running mean of the reward.
_SMOOTH = 5
_SHARES = ("sampled_accuracy", "accuracy_new_stories", "held_out_accuracy", "kept_fraction", "kept_share_all")


def accuracy_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and method: greedy accuracy on the test items with its 95 % interval, in percent, and what it took.

    The base's accuracy is over the test items that every trained run answered, so that the gains are differences of this column;
    over all that it answered itself it is ``accuracy_all_items``. ``gain`` over it is in points.
    ``kept_fraction`` counts tokens in the loss over those generated in groups that do not tie, ``kept_share_all`` over all.
    """
    runs, rows = runs_of(tables, HEADLINE, profile), []
    base = {setting: own for setting, own in runs[runs["method"] == "base"].groupby("setting")}
    held_out = _held_out_items(tables, runs)
    for (setting, method), own in runs.groupby(["setting", "method"], sort=False):
        whole = found = accuracy(tables, own).scaled(100)
        row = {"setting": setting, "method": method, "seeds": found.seeds, "items": items_of(own)}
        trained = runs[(runs["setting"] == setting) & (runs["method"] != "base")]
        if method == "base" and len(trained) and (shared := accuracy(tables, own, shared_with=trained)):
            found, row["items"] = shared.scaled(100), shared.items
        row |= found.columns("accuracy") | dict.fromkeys(("gain", "gain_low", "gain_high"), np.nan)  # beside it for the base too
        if method != "base" and setting in base and (gain := difference(tables, own, base[setting])):
            row |= gain.scaled(100).columns("gain")
        row |= {name: 100 * own[name].mean() for name in _SHARES}
        row["held_out_items"] = held_out.reindex(own["run_id"]).min()
        row["tokens_in_loss"] = own["tokens_in_loss"].mean()
        row |= {status: int((own["status"] == status).sum()) for status in ("diverged", "collapsed")}
        of_all = whole.columns("accuracy_all_items") | {"all_items": items_of(own)}
        rows.append(row | (of_all if method == "base" else dict.fromkeys(of_all, np.nan)))
    return pd.DataFrame(rows)


def _held_out_items(tables: Tables, runs: pd.DataFrame) -> pd.Series:
    """How many items of held-out templates each run answered, by run."""
    items = table(tables, "items")
    items = items[(items["split"] == "held_out") & items["run_id"].isin(runs["run_id"])]
    return items.groupby("run_id").size()


def draw_accuracy(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A panel for each setting: a dot per seed, and the mean with its interval."""
    runs = runs_of(tables, HEADLINE, profile)
    methods = ("base", *trained_in(runs["method"]))
    figure, axes = p.setting_panels("Full against sparse: test accuracy", list(table["setting"].unique()))
    for setting, axis in axes.items():
        rows = table[table["setting"] == setting].set_index("method")
        p.base_line(axis, rows["accuracy"].get("base", np.nan))
        for place, method in enumerate(methods):
            if method not in rows.index:
                axis.text(place, 4, "not run", ha="center", color="#777777", fontsize=8)
                continue
            own = runs[(runs["setting"] == setting) & (runs["method"] == method)]
            _mean_and_seeds(axis, place, method, own, *rows.loc[method, ["accuracy", "accuracy_low", "accuracy_high"]])
        labels = [METHOD_LABELS[method] + "\nall tokens" * (method in ("grpo", "ppo")) for method in methods]
        axis.set_xticks(range(len(methods)), labels)
        axis.set_xlim(-0.5, len(methods) - 0.4)
        axis.grid(axis="x", visible=False)
        p.percent_axis(axis, "test accuracy (%)")
    text = f"{p.about(profile)} Hollow: one dot per seed ({p.seeds_of(runs)}); filled: mean with its 95 % interval "
    trained, base = table["method"] != "base", table["method"] == "base"
    counts = counted(table.loc[trained, "items"].min(), "test item") if trained.any() else "no test items"
    more = table[base & (table["all_items"] > table["items"])]
    of_task = more.groupby(more["setting"].str.split().str[0], sort=False)["all_items"].min()
    answered = [f"{count:,.0f} of {TASK_LABELS[task]}" for task, count in of_task.items()]
    all_items = f" (the table also has it on all its {listing(answered)})" if answered else ""
    return p.caption(figure, text + f"over seeds, templates and items, {counts}. Dashed: the base on the same items{all_items}.")


def _mean_and_seeds(axis: Axes, place: int, method: str, runs: pd.DataFrame, value: float, low: float, high: float) -> None:
    colour, marker = p.COLOURS[method], p.MARKERS[method]
    centre = place + (0.26 if method != "base" else 0.0)  # the base has no seeds beside it
    axis.plot([centre] * 2, [low, high], color=colour, linewidth=2.2, zorder=3)
    axis.plot(centre, value, marker, color=colour, markersize=7, zorder=4)
    if method != "base":
        spread = np.linspace(-0.38, -0.08, len(runs)) if len(runs) > 1 else np.full(1, -0.23)
        p.dots(axis, place + spread, 100 * runs["accuracy"], runs, colour, marker)
    # Above the interval, unless the interval reaches the top.
    above = np.nanmax([high, value]) < 96
    edge = np.nanmax([high, value]) if above else np.nanmin([low, value])
    axis.annotate(
        f"{value:.1f}", (centre, edge), xytext=(0, 3 if above else -3), textcoords="offset points", ha="center",
        va="bottom" if above else "top", fontsize=9, color=colour, fontweight="bold",
    )  # fmt: skip


def say_accuracy(table: pd.DataFrame) -> list[str]:
    """Which method is highest in each setting, and how much of the tokens each credits."""
    trained, parts = table[table["method"] != "base"], []
    if trained.empty:
        return ["No trained run has ended."]
    for setting, own in trained.groupby("setting", sort=False):
        ordered = own.sort_values("accuracy", ascending=False, kind="stable")
        names = [f"{METHOD_LABELS[row.method]} {percent(row.accuracy)}" for row in ordered.itertuples()]
        base = table[(table["setting"] == setting) & (table["method"] == "base")]
        start = f" (the base {percent(base['accuracy'].iloc[0])})" if len(base) else ""
        parts.append(f"on {SETTING_LABELS[setting]} {listing(names)}{start}")
    shares = trained.groupby("method", sort=False)["kept_fraction"].agg(list)
    kept = [f"{METHOD_LABELS[method]} {span(values)} %" for method, values in shares.items() if pd.notna(values).all()]
    first = f"Mean test accuracy over {counted_span(trained['seeds'], 'seed')}: {'; '.join(parts)}."
    return [first, *([f"Tokens in the loss, of those generated in groups that do not tie: {listing(kept)}."] if kept else [])]


def learning_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and method: validation accuracy before, at two thirds of the steps and at the end, in percent, mean of seeds.

    rise_in_last_third has its t interval over seeds.
    """
    runs = runs_of(tables, HEADLINE, profile)
    curves, rows = curves_of(tables, runs, "validation_accuracy"), []
    for setting, method in runs[["setting", "method"]].drop_duplicates().itertuples(index=False):
        wide = 100 * by_seed(curves, "validation_accuracy", setting, method)
        mean = wide.mean(axis=1)
        if method != "base" and len(mean) > 1:
            later = float(np.interp(mean.index[-1] * 2 / 3, mean.index, mean))
            row = {"setting": setting, "method": method, "seeds": wide.shape[1], "steps": mean.index[-1]}
            own = runs[(runs["setting"] == setting) & (runs["method"] == method)]
            row["validation_items"] = items_of_split(tables, own, "validation")
            row |= {"start": mean.iloc[0], "two_thirds": later, "end": mean.iloc[-1]}
            own_rises = [of.iloc[-1] - np.interp(wide.index[-1] * 2 / 3, of.index, of) for _, of in wide.dropna(axis=1).items()]
            rise = mean_over_seeds(own_rises)
            # The value is of all seeds, the interval of those that were evaluated at every step.
            rows.append(row | rise.columns("rise_in_last_third") | {"rise_in_last_third": mean.iloc[-1] - later})
    return pd.DataFrame(rows)


def draw_learning(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Reward of the rollouts and validation accuracy over the steps: a column for each setting, mean and range of the seeds."""
    runs = runs_of(tables, HEADLINE, profile)
    runs = runs[runs["method"] != "base"]
    labels = {"reward": "reward of the rollouts (%)", "validation_accuracy": "validation accuracy (%)"}
    curves = curves_of(tables, runs, *labels)
    settings = list(table["setting"].unique())
    figure, axes = p.panels("Learning curves", len(settings), rows=2, width=p.column_width(settings), height=2.7)
    for (metric, label), row in zip(labels.items(), axes, strict=True):
        for axis, setting in zip(row, settings, strict=True):
            for method in trained_in(runs["method"]):
                wide = 100 * by_seed(curves, metric, setting, method)
                if wide.empty:
                    continue
                if metric == "reward":
                    wide = wide.rolling(_SMOOTH, min_periods=1).mean()
                look = {"marker": p.MARKERS[method], "markersize": 4} if metric != "reward" else {}
                p.mean_and_range(axis, wide, method, **look)
            p.percent_axis(axis, label)
            axis.set_xlim(0, 1.02 * float(table["steps"].max()))
            axis.set_xlabel("optimizer step")
            axis.set_title(SETTING_LABELS[setting], loc="left")
    p.legend_beside(figure, axes.flat)
    text = f"{p.about(profile)} Lines: mean over {p.seeds_of(runs)}; bands: lowest to highest seed. Reward: sampled at the "
    return p.caption(figure, text + f"training temperature, running mean of {_SMOOTH} steps. Validation: greedy.")


def say_learning(table: pd.DataFrame) -> list[str]:
    """Who is still rising at the end: a comparison at a fixed number of steps is then partly one of speed."""
    rising = still_rising(table)
    if rising.empty:
        return [f"No curve still clearly rises by {LEVEL:g} point or more in the last third of its steps."]
    parts = []
    for setting, own in rising.groupby("setting", sort=False):
        names = [f"{METHOD_LABELS[row.method]} by {number(row.rise_in_last_third)}" for row in own.itertuples()]
        parts.append(f"on {SETTING_LABELS[setting]} {listing(names)} points")
    others = len(table) - len(rising)
    rest = f" {counted(others, 'other curve')} did not clearly rise by {LEVEL:g} point." if others else ""
    return [
        f"Still clearly rising in the last third of the steps: {'; '.join(parts)}.{rest}",
        "Where a curve still rises, more steps could change the ranking.",
    ]


def still_rising(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``learning_table`` that rose by ``LEVEL`` points or more, without those whose interval holds 0."""
    return table[(table["rise_in_last_third"] >= LEVEL) & ~(table["rise_in_last_third_low"] <= 0)]

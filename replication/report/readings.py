"""What the tables say in words: the sentences under each figure and the tables a reader is shown, every number computed.

Used by the notebooks and the report, so that no number in prose is ever typed. Whatever was not run is said to be not run.
"""

from __future__ import annotations

import pandas as pd

from replication.names import METHOD_LABELS as METHODS
from replication.names import TASK_LABELS as TASKS
from replication.report.summaries import headline_table, listed
from replication.report.wording import digits, listing, percent, plural
from replication.statistics import Tables, detectable_differences, detectable_gap, rows_of
from replication.tasks import svamp

#: Two rates count as equally good within this many points of accuracy: about what 300 test items can tell apart in a pair.
CLOSE = 5.0


def plan_sentence(plan: pd.DataFrame) -> str:
    """How many runs of how many steps, and how many rows share a run."""
    distinct = plan.drop_duplicates("run_id")
    trained = distinct[distinct["steps"] > 0]
    shared = len(plan) - len(distinct)
    steps = listed(trained["steps"]) or "0"
    return (
        f"{len(distinct)} runs, of which {len(trained)} are trained for {steps} optimizer steps each "
        f"({int(trained['steps'].sum())} steps in all) and {len(distinct) - len(trained)} only evaluated; "
        f"{shared} further rows of the plan are shared with another ablation and not run again."
    )


def svamp_split(tables: Tables, profile: str) -> str:
    """Which split of SVAMP the ended runs used, from svamp_source; empty without such runs or without that column."""
    runs = tables.get("runs", pd.DataFrame())
    if not len(runs) or "svamp_source" not in runs:
        return ""
    ended = (runs["profile"] == profile) & (runs["task"] == "svamp") & runs["status"].isin(["done", "diverged"])
    runs = runs[ended]
    if runs.empty:
        return ""
    items = tables.get("items", pd.DataFrame(columns=["run_id", "item_id"]))
    if items.loc[items["run_id"].isin(runs["run_id"]), "item_id"].astype(str).str.startswith(svamp.MADE_UP).any():
        return "SVAMP: items made up for a dry run, not SVAMP itself."
    from_file = runs["svamp_source"].notna()
    own, hub = "a 700/300 split of the official file by content hash", "the Hub's own 700/300 split"
    if from_file.any() and not from_file.all():
        count = runs.loc[from_file, "run_id"].nunique()
        return f"SVAMP: {count} runs used {own} and {runs.loc[~from_file, 'run_id'].nunique()} {hub}; the two cannot be compared."
    return f"SVAMP: all runs used {own if from_file.all() else hub}."


# Full against sparse -------------------------------------------------------------------------------------------------------


def headline(tables: Tables, profile: str) -> list[str]:
    """For each task: the accuracies with their intervals, those with longer numbers, and what of the tokens they took."""
    table = headline_table(tables, profile)
    if table.empty:
        return ["Not run."]
    sentences = []
    for task, own in table.groupby("task", sort=False):
        rows = {row["method"]: row for row in own.to_dict("records")}
        parts = [f"{METHODS[m]} {percent(r['accuracy'], r['low'], r['high'])}" for m, r in rows.items()]
        counts = f"{_seeds(own[own['method'] != 'base'])} and {int(own['items'].max())} items"
        sentences.append(f"On {TASKS[task]} ({counts}) the greedy accuracy is {listing(parts)}.")
        if task != "svamp":
            longer = own.set_index("method")["longer_numbers_accuracy"].dropna()
            words = listing([f"{METHODS[m]} {value:.1f} %" for m, value in longer.items()]) if len(longer) else "not measured"
            sentences.append(f"With longer numbers than any trained on: {words}.")
        kept = [f"{METHODS[m]} {digits(r['kept_fraction'])} %" for m, r in rows.items() if pd.notna(r["kept_fraction"])]
        if kept:
            sentences.append(f"Of the tokens generated in groups that do not tie, {listing(kept)} enter the loss.")
    return sentences


def _seeds(rows: pd.DataFrame) -> str:
    """How many seeds: one number, or those of each method where some of their runs are missing."""
    counts = rows.groupby("method", sort=False)["seeds"].min().astype(int)
    if counts.nunique() <= 1:
        return f"{counts.max()} {plural(counts.max(), 'seed')}" if len(counts) else "1 seed"
    return listing([f"{METHODS[method]} {count}" for method, count in counts.items()]) + " seeds"


def power(tables: Tables, profile: str) -> str:
    """What difference the test set can show at all, so that "inconclusive" can be read."""
    table = headline_table(tables, profile)
    if table.empty:
        return "Not run."
    items = int(table["items"].max())
    text = (
        f"With {items} test items, one seed and no pairing, two methods near 70 % must differ by about "
        f"{100 * detectable_gap(0.7, items):.1f} points to be told apart four times in five."
    )
    differences = detectable_differences(tables, profile)
    if differences.empty:
        return text
    parts = [f"{METHODS[row.method]} on {TASKS[row.task]} {row.detectable:.1f} points" for row in differences.itertuples()]
    return (
        f"{text} The items in pairs and {_seeds(differences)}, as in the verdicts, show a difference to full-token GRPO "
        f"four times in five if it is as large as, for {listing(parts)}; what is smaller may well stay inconclusive."
    )


def learning_curves(tables: Tables, profile: str) -> list[str]:
    """From which evaluated step on each method stayed within ``CLOSE`` points of its last validation accuracy."""
    rows, curves = rows_of(tables, "full_vs_sparse", profile), tables.get("curves")
    if rows.empty or curves is None or curves.empty:
        return ["Not run."]
    curves = curves[curves["metric"] == "validation_accuracy"]
    sentences = []
    for task, own in rows[rows["method"] != "base"].groupby("task", sort=False):
        parts = []
        for method in METHODS:
            ids = own.loc[own["method"] == method, "run_id"]
            mean = 100 * curves[curves["run_id"].isin(ids)].groupby("step")["value"].mean()
            if len(mean):
                far = (mean - mean.iloc[-1]).abs() > CLOSE
                reached = mean.index[far.to_numpy().nonzero()[0].max() + 1 if far.any() else 0]
                parts.append(f"{METHODS[method]} starts at {mean.iloc[0]:.1f} %, ends at {mean.iloc[-1]:.1f} %, and is within")
                parts[-1] += f" {CLOSE:g} points of that from step {int(reached)} on (evaluated: {listed(mean.index.to_series())})"
        if parts:
            sentences.append(f"Validation accuracy on {TASKS[task]}, mean over seeds: {'; '.join(parts)}.")
    return sentences or ["Not run."]


def cost(tables: Tables, profile: str) -> list[str]:
    """Tokens in the loss over the whole training, and how many times fewer than full-token GRPO."""
    table = headline_table(tables, profile)
    table = table[table["tokens_in_loss"] > 0]
    if table.empty:
        return ["Not run."]
    sentences = []
    for task, own in table.groupby("task", sort=False):
        tokens = own.set_index("method")["tokens_in_loss"]
        parts = []
        for method, count in tokens.items():
            times = f", {tokens['grpo'] / count:.1f} times fewer" if method != "grpo" and "grpo" in tokens else ""
            parts.append(f"{METHODS[method]} {count:,.0f}{times}")
        sentences.append(f"Tokens in the loss of a whole training on {TASKS[task]}, mean over seeds: {'; '.join(parts)}.")
    return sentences


def cost_to_reach(tables: Tables, profile: str) -> list[str]:
    """Tokens in the loss until each method first reached the lowest of the methods' last validation accuracies."""
    rows, curves = rows_of(tables, "full_vs_sparse", profile), tables.get("curves")
    if rows.empty or curves is None or curves.empty:
        return ["Not run."]
    sentences = []
    for task, own in rows[rows["method"] != "base"].groupby("task", sort=False):
        accuracy, tokens = {}, {}
        for method in own["method"].unique():
            mine = curves[curves["run_id"].isin(own.loc[own["method"] == method, "run_id"])]
            mean = mine.groupby(["metric", "step"])["value"].mean()
            if {"validation_accuracy", "tokens_in_loss"} <= set(mean.index.get_level_values("metric")):
                accuracy[method], tokens[method] = 100 * mean["validation_accuracy"], mean["tokens_in_loss"].cumsum()
        if not accuracy:
            continue
        level = min(curve.iloc[-1] for curve in accuracy.values())
        parts = []
        for method in sorted(accuracy, key=list(METHODS).index):
            step = accuracy[method].index[accuracy[method] >= level][0]
            parts.append(f"{METHODS[method]} {_at(tokens[method], step):,.0f} (step {step})")
        sentences.append(
            f"To reach {level:.1f} % on the validation items of {TASKS[task]}, which every method does, tokens in the loss: "
            f"{'; '.join(parts)}."
        )
    return sentences or ["Not run."]


def _at(cumulative: pd.Series, step: int) -> float:
    """A running total after ``step``; nothing before the first step."""
    before = cumulative.loc[:step]
    return float(before.iloc[-1]) if len(before) else 0.0

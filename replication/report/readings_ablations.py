"""What the three ablations say in words; like ``readings``, every number computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from replication.names import METHOD_LABELS as METHODS
from replication.names import TASK_LABELS as TASKS
from replication.report.readings import CLOSE
from replication.report.summaries import lora_rank_table, token_fraction_table, tuning_table
from replication.report.wording import digits, listing, percent, points
from replication.statistics import Tables, rank_gap_table, selection_gap_table


def learning_rate(tables: Tables, profile: str) -> list[str]:
    """Per task, the rate that validation chooses for each method, and how many rates of the grid are about as good."""
    table = tuning_table(tables, profile)
    if table.empty:
        return ["Not run."]
    sentences = []
    for task, own in table.groupby("task", sort=False):
        parts = []
        for method, grid in own.groupby("method", sort=False):
            chosen = grid[grid["chosen"]].iloc[0]
            close = int((grid["validation_accuracy"] >= chosen["validation_accuracy"] - CLOSE).sum())
            parts.append(
                f"{METHODS[method]} {chosen['learning_rate']:g} ({_chosen(chosen)}; on validation {close} of {len(grid)} rates are "
                f"within {CLOSE:g} points of it, a range of {chosen['forgiving']:g} times)"
            )
        sentences.append(f"On {TASKS[task]} validation chooses, for {listing(parts)}.")
    tuned = table[table["chosen"]]
    sentences.append(_edges([(f"{METHODS[r['method']]} on {TASKS[r['task']]}", r) for r in tuned.to_dict("records")]))
    grpo = table[(table["method"] == "grpo")].groupby("task")["accuracy"].agg(["min", "max"])
    for task, ends in grpo.iterrows():
        sentences.append(
            f"Depending on the rate alone, full-token GRPO on {TASKS[task]} ends at {ends['min']:.1f} to {ends['max']:.1f} %."
        )
    return sentences


def _chosen(row: pd.Series) -> str:
    """Test accuracy at the rate that validation chose, with its interval where there are answers per item."""
    return f"{percent(row['accuracy'], row['low'], row['high'])} on test"


# Token fraction and rank ---------------------------------------------------------------------------------------------------


def token_fraction(tables: Tables, profile: str) -> list[str]:
    """Both ends of the range, then what each rule gains over random tokens, and the other denominator over the usual one."""
    table = token_fraction_table(tables, profile)
    if table.empty:
        return ["Not run."]
    least = table.iloc[0]
    full = table[table["setting"] == "all tokens"]
    first = f"With the fewest tokens ({least['method']}, {least['setting']}: {digits(least['kept_fraction'])} %) the accuracy is "
    first += f"{least['accuracy']:.1f} %"
    first += f", with all of them {full.iloc[0]['accuracy']:.1f} %." if len(full) else "."
    return [first, *_by_which_tokens(table, selection_gap_table(tables, profile))]


def _by_which_tokens(table: pd.DataFrame, gaps: pd.DataFrame) -> list[str]:
    """At each share, the accuracy by the rule that picks the tokens; then every contrast with its interval."""
    picked = table[table["share"].notna()]
    sentences = []
    for share, own in picked.groupby("share"):
        parts = [f"{row.selector} {row.accuracy:.1f} %" for row in own.sort_values("accuracy", ascending=False).itertuples()]
        sentences.append(f"With {100 * share:g} % of each completion's tokens, by which: {', '.join(parts)}.")
    for (setting, reference), own in gaps[gaps["gap"].notna()].groupby(["setting", "reference"], sort=False):
        parts = [f"{points(row.gap, row.low, row.high)} at {digits(row.share)} %" for row in own.itertuples()]
        name = setting[0].upper() + setting[1:]
        sentences.append(f"{name} minus {reference}, seeds and items in pairs, by share of the tokens: {', '.join(parts)}.")
    return sentences


def lora_rank(tables: Tables, profile: str) -> list[str]:
    """The lowest and the highest rank of each method, and the gap between sparse and full at both."""
    table = lora_rank_table(tables, profile)
    if table.empty:
        return ["Not run."]
    low, high = _extreme_ranks(table)
    at = table.set_index(["method", "rank"])["accuracy"]
    parts = [
        f"{method} goes from {at[method, low]:.1f} % at {_rank(low)} to {at[method, high]:.1f} % at {_rank(high)}"
        for method in table["method"].unique()
        if (method, low) in at and (method, high) in at
    ]
    sentences = [f"With the learning rate chosen on validation for each rank, {listing(parts)}."] if parts else []
    gaps = rank_gap_table(tables, profile)
    for sparse, own in gaps[gaps["gap"].notna()].groupby("method", sort=False):
        own = own.sort_values("rank", key=lambda ranks: ranks.replace(0, 10**9))  # full fine-tuning last
        parts = [f"{points(row.gap, row.low, row.high)} at {_rank(row.rank)}" for row in own.itertuples()]
        sentences.append(f"{sparse} minus full-token GRPO, seeds and items in pairs, is {listing(parts)}.")
    tuned = table[table["rates_tried"] > 1].to_dict("records")
    if tuned:
        sentences.append(_edges([(f"{row['method']} at {_rank(row['rank'])}", row) for row in tuned]))
    return sentences or ["Not run."]


def _edges(tuned: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Which points were tuned at the end of their grid, so that a better rate may lie outside."""
    at = [f"{name} ({row['learning_rate']:g}, the {row['edge']} tried)" for name, row in tuned if row["edge"]]
    if not at:
        return "No chosen rate lies at the edge of its grid."
    return f"Tuned at the edge of the grid, so that a better rate may lie outside: {listing(at)}."


def _extreme_ranks(table: pd.DataFrame) -> tuple[int, int]:
    """The lowest rank, and full fine-tuning (rank 0) if it was run, or else the highest rank."""
    ranks = sorted(table["rank"].unique())
    positive = [rank for rank in ranks if rank > 0]
    return (positive[0] if positive else 0), (0 if ranks[0] == 0 else ranks[-1])


def _rank(rank: int) -> str:
    return f"rank {rank}" if rank else "full fine-tuning"

"""Intervals, paired comparisons, the choice of a learning rate, and a verdict for each claim.

In: the tables. Out: numbers with intervals, and verdicts; nothing here draws. ``accuracy`` gives an accuracy with its interval,
``difference`` a paired difference with its interval. Start with ``intervals`` for the mathematics, ``accuracies`` for what counts,
``judging`` for the verdicts.
"""

from __future__ import annotations

from replication.statistics.accuracies import (
    SCALE_MODELS,
    Tables,
    accuracy,
    answers,
    counts_for,
    ended,
    in_order,
    per_seed,
    runs_of,
    seed_spread,
    table,
    with_setting,
)
from replication.statistics.agreement import compare_tables
from replication.statistics.claims import Claim, load_claims
from replication.statistics.drift import at_equal_accuracy
from replication.statistics.intervals import (
    Estimate,
    bootstrap,
    design_effect,
    holm,
    mean_over_items,
    mean_over_seeds,
    wilson,
)
from replication.statistics.judging import VERDICTS, verdicts
from replication.statistics.measures import CELL, NORMALISED_UP_TO, TUNED_WITHIN, cell_name
from replication.statistics.paired import (
    CREDIT,
    SPARSITY,
    detectable_differences,
    difference,
    selection_gap_table,
)
from replication.statistics.rates import NEAR, at_best_rate, best_rate, end_of_grid, tuning

__all__ = [
    "CELL",
    "CREDIT",
    "NEAR",
    "NORMALISED_UP_TO",
    "SCALE_MODELS",
    "SPARSITY",
    "TUNED_WITHIN",
    "VERDICTS",
    "Claim",
    "Estimate",
    "Tables",
    "accuracy",
    "answers",
    "at_best_rate",
    "at_equal_accuracy",
    "best_rate",
    "bootstrap",
    "cell_name",
    "compare_tables",
    "counts_for",
    "design_effect",
    "detectable_differences",
    "difference",
    "end_of_grid",
    "ended",
    "holm",
    "in_order",
    "load_claims",
    "mean_over_items",
    "mean_over_seeds",
    "per_seed",
    "runs_of",
    "seed_spread",
    "selection_gap_table",
    "table",
    "tuning",
    "verdicts",
    "wilson",
    "with_setting",
]

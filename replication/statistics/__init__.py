"""Intervals, paired comparisons, the choice of a learning rate, and a verdict for each claim.

In: the tables. Out: numbers with intervals, and verdicts. Nothing here draws or formats.
Start with ``intervals`` for the mathematics and ``judging`` for the verdicts.
"""

from __future__ import annotations

from replication.statistics.claims import load_claims
from replication.statistics.comparisons import compare_tables, detectable_differences, paired_tests, seed_spread
from replication.statistics.contrasts import rank_gap_table, selection_gap_table
from replication.statistics.estimates import accuracy, answers
from replication.statistics.evidence import PAPER_MODEL, Evidence, Tables, counts_for, rows_of, table
from replication.statistics.intervals import bootstrap, detectable_gap, mean_over_seeds, wilson
from replication.statistics.judging import VERDICTS, verdicts
from replication.statistics.rates import best_rate, tuning

__all__ = [
    "Evidence",
    "PAPER_MODEL",
    "Tables",
    "VERDICTS",
    "accuracy",
    "answers",
    "best_rate",
    "bootstrap",
    "compare_tables",
    "counts_for",
    "detectable_differences",
    "detectable_gap",
    "load_claims",
    "mean_over_seeds",
    "paired_tests",
    "rank_gap_table",
    "seed_spread",
    "selection_gap_table",
    "rows_of",
    "table",
    "tuning",
    "verdicts",
    "wilson",
]

"""The choice of a learning rate: its peak, how wide it is, and what single seeds would say, against numbers by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from replication.statistics import tuning

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
FIRST, SECOND = (0.50, 0.80, 0.78, 0.20), (0.60, 0.72, 0.82, 0.70)
ALONE = ["peak_low", "peak_high"]


def tried(*seeds) -> pd.DataFrame:
    """Runs of GRPO at these rates, a sequence of validation accuracies for each seed; a shorter one stops at a lower rate."""
    shared = {"ablation": "learning_rate", "profile": "nano", "task": "word_problems", "method": "grpo"}
    shared |= {"status": "done", "accuracy": 0.5}
    return pd.DataFrame(
        shared | {"run_id": f"{seed}-{rate}", "seed": 100 + seed, "learning_rate": rate, "validation_accuracy": value}
        for seed, values in enumerate(seeds)
        for rate, value in zip(RATES, values, strict=False)
    )


def chosen(runs: pd.DataFrame) -> pd.Series:
    points = tuning({"runs": runs})
    assert points.loc[~points["chosen"], ["forgiving", *ALONE]].isna().all(axis=None)
    return points[points["chosen"]].iloc[0]


def test_the_peak_comes_with_the_rates_of_single_seeds():
    # Means 0.55, 0.76, 0.80, 0.45: the peak is 4e-3, and 2e-3 is within 0.05 of it. Alone, the first seed peaks at 2e-3.
    row = chosen(tried(FIRST, SECOND))
    assert row["learning_rate"] == 4e-3 and row["forgiving"] == pytest.approx(2)
    assert row[ALONE].tolist() == pytest.approx([2e-3, 4e-3])


def test_a_seed_without_every_rate_chooses_nothing():
    row = chosen(tried(FIRST, SECOND, (0.55,)))
    assert row[ALONE].tolist() == pytest.approx([2e-3, 4e-3])


@pytest.mark.parametrize("other", [(), ((0.55,),), ((np.nan,) * 4,)])
def test_one_seed_has_a_peak_and_no_range(other):
    row = chosen(tried(FIRST, *other))
    assert row["learning_rate"] == 2e-3 and row["forgiving"] == pytest.approx(2) and row[ALONE].isna().all()

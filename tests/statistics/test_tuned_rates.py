"""The learning rates written in the nano profile are as good on validation as any that the committed tables tried."""

from __future__ import annotations

import pytest

from replication.config import load_profile, profile_plan
from replication.names import ROOT, TRAINED
from replication.statistics import TUNED_WITHIN
from replication.tables import read_tables

RESULTS = ROOT / "results" / "nano"
pytestmark = pytest.mark.skipif(not (RESULTS / "runs.csv").exists(), reason="no committed results")


def behind(rows, rate: float) -> float:
    """How much lower than the best the mean validation accuracy of ``rate`` is, over the seeds that every rate was run under."""
    counts = rows.groupby("seed")["learning_rate"].nunique()
    rows = rows[rows["seed"].isin(counts.index[counts == rows["learning_rate"].nunique()])]
    means = rows.groupby("learning_rate")["validation_accuracy"].mean()
    (own,) = [value for tried, value in means.items() if tried == pytest.approx(rate)]
    return float(means.max() - own)


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("task", ["word_problems", "multiplication"])
def test_headline_rates_are_tuned(task, method):
    runs = read_tables(RESULTS)["runs"]
    rows = runs[(runs["ablation"] == "learning_rate") & (runs["task"] == task) & (runs["method"] == method)]
    assert rows["learning_rate"].nunique() >= 4
    assert behind(rows, load_profile("nano", task=task, method=method).learning_rate) <= TUNED_WITHIN


@pytest.mark.parametrize("method", TRAINED)
def test_the_rate_of_each_rank_of_the_default_plan_is_tuned(method):
    """Chosen once by the first seed on the default plan's grid; more seeds may prefer a neighbour by a little."""
    runs = read_tables(RESULTS)["runs"]
    plan = profile_plan("nano")["lora_rank"]
    for rank, rates in plan["chosen"].items():
        grid = plan["grid"] if rank else plan["grid_without_adapter"]
        rows = runs[(runs["ablation"] == "lora_rank") & (runs["method"] == method) & (runs["lora_rank"] == rank)]
        rows = rows[rows["learning_rate"].map(lambda rate, grid=grid: any(rate == pytest.approx(tried) for tried in grid))]
        assert rows["learning_rate"].nunique() == 3
        assert behind(rows, rates[method]) <= TUNED_WITHIN

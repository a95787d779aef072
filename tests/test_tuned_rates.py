"""The learning rates written in the nano profile are those that the committed tables choose on validation."""

from __future__ import annotations

import pytest

from replication import statistics
from replication.ablations import TRAINED
from replication.config import load_profile, profile_plan
from replication.manifest import ROOT
from replication.tables import read_tables

RESULTS = ROOT / "results" / "nano"
pytestmark = pytest.mark.skipif(not (RESULTS / "runs.csv").exists(), reason="no committed results")


def best_rate(rows) -> float:
    """The rate with the best mean validation accuracy; ties go to the lower rate."""
    means = rows.groupby("learning_rate")["validation_accuracy"].mean().round(9)
    return float(means[means == means.max()].index.min())


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("task", ["word_problems", "multiplication"])
def test_headline_rates_are_the_tuned_ones(task, method):
    runs = read_tables(RESULTS)["runs"]
    rows = runs[(runs["ablation"] == "learning_rate") & (runs["task"] == task) & (runs["method"] == method)]
    assert len(rows) >= 4
    assert load_profile("nano", task=task, method=method).learning_rate == pytest.approx(best_rate(rows))


@pytest.mark.parametrize("method", TRAINED)
def test_the_rate_of_each_rank_is_the_tuned_one(method):
    runs = read_tables(RESULTS)["runs"]
    for rank, rates in profile_plan("nano")["lora_rank"]["chosen"].items():
        rows = runs[
            (runs["ablation"] == "lora_rank") & (runs["method"] == method) & (runs["lora_rank"] == rank) & (runs["seed"] == 0)
        ]
        assert len(rows) == 3
        assert rates[method] == pytest.approx(statistics.best_rate(rows))
        assert rates[method] == pytest.approx(best_rate(rows))

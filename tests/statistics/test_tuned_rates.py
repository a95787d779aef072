"""The learning rates written in the nano profile are as good on validation as any that the committed tables tried."""

from __future__ import annotations

import pytest

from replication.config import load_profile, profile_plan
from replication.names import ENDED, ROOT, TRAINED, TUNING_SEED
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
@pytest.mark.parametrize("setting", [{"task": "word_problems", "asides": "after"}, {"task": "multiplication"}], ids=str)
def test_headline_rates_are_tuned(setting, method):
    runs = read_tables(RESULTS)["runs"]
    rows = runs[(runs["ablation"] == "learning_rate") & (runs["task"] == setting["task"]) & (runs["method"] == method)]
    rows = rows[rows["asides"] == setting["asides"]] if "asides" in setting else rows
    if rows.empty or not rows["status"].isin(ENDED).all():
        pytest.skip("the committed tables have not all of its runs yet, and one seed decides nothing")
    assert behind(rows, load_profile("nano", **setting, method=method).learning_rate) <= TUNED_WITHIN


POINTS = profile_plan("nano")["full"]["token_fraction"]["points"]


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_the_rate_of_a_choice_of_tokens_is_the_best_on_validation(point):
    runs = read_tables(RESULTS)["runs"]
    rows = runs[(runs["ablation"] == "token_fraction") & (runs["seed"] >= TUNING_SEED) & runs["status"].isin(ENDED)]
    fields = {"method": "s_grpo", "selector": "rule"} | {name: value for name, value in point.items() if name != "learning_rate"}
    for name, value in fields.items():
        rows = rows[rows[name].isna() if value is None else rows[name] == value]
    if rows["learning_rate"].nunique() < 3:
        pytest.skip("the committed tables have no rates of it yet")
    assert behind(rows, point["learning_rate"]) == 0

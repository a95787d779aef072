"""Drift at equal accuracy, the gap on few training items, and cells in which full-token GRPO fails: against numbers by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import synthetic_tables as synthetic
from scipy import stats

from replication.names import CLAIMS
from replication.statistics import load_claims, verdicts


def judge(tables, name: str) -> pd.Series:
    return verdicts([claim for claim in load_claims(CLAIMS) if claim.id == name], tables).iloc[0]


def curves(accuracy: dict[str, list[list[float]]], kl: dict[str, list[list[float]]]) -> dict[str, pd.DataFrame]:
    """Headline runs under ``after`` with these validations every 10 steps, a list for each seed."""
    runs, rows = [], []
    for method in accuracy:
        for seed, (right, drift) in enumerate(zip(accuracy[method], kl[method], strict=True)):
            name = f"{method}{seed}"
            run = {"run_id": name, "ablation": "full_vs_sparse", "profile": "nano", "task": "word_problems", "asides": "after"}
            runs.append(run | {"method": method, "seed": seed, "status": "done", "accuracy": right[-1]})
            for number, values in enumerate(zip(right, drift, strict=True)):
                for metric, value in zip(("validation_accuracy", "validation_kl_to_base"), values, strict=True):
                    rows.append({"run_id": name, "step": 10 * number, "metric": metric, "value": value})
    return {"runs": pd.DataFrame(runs), "curves": pd.DataFrame(rows)}


FULL = [[0.45, 0.60, 0.80, 0.85], [0.45, 0.50, 0.81, 0.84], [0.45, 0.71, 0.79, 0.86]]
FULL_KL = [[0.0, 0.010, 0.040, 0.050], [0.0, 0.012, 0.044, 0.055], [0.0, 0.020, 0.040, 0.060]]
# The worst run reaches 78 %, so all are compared at 75 %: full-token GRPO at steps 20, 20 and 20.
SPARSE = [[0.45, 0.50, 0.70, 0.78], [0.45, 0.76, 0.80, 0.82], [0.45, 0.50, 0.75, 0.80]]
SPARSE_KL = [[0.0, 0.001, 0.010, 0.020], [0.0, 0.021, 0.030, 0.090], [0.0, 0.001, 0.022, 0.090]]


def test_drift_is_compared_at_the_first_validation_at_the_level_that_all_reach():
    tables = curves({"grpo": FULL, "s_grpo": SPARSE, "t_spmo": SPARSE}, {"grpo": FULL_KL, "s_grpo": SPARSE_KL, "t_spmo": SPARSE_KL})
    row = judge(tables, "N9d")
    logs = np.log([0.020 / 0.040, 0.021 / 0.044, 0.022 / 0.040])
    half = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / np.sqrt(3)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((logs.mean(), logs.mean() - half, logs.mean() + half))
    assert row["verdict"] == "supported" and "75 %" in row["note"] and row["unit"] == "log ratio"
    assert row["seeds"] == 3 and pd.isna(row["items"])


def test_one_method_that_drifts_more_decides_and_a_wide_interval_does_not():
    more = [[0.0, *(4 * np.array(kl[1:]))] for kl in FULL_KL]
    tables = curves({"grpo": FULL, "s_grpo": SPARSE, "t_spmo": FULL}, {"grpo": FULL_KL, "s_grpo": SPARSE_KL, "t_spmo": more})
    row = judge(tables, "N9d")
    assert row["verdict"] == "not supported" and row["value"] == pytest.approx(np.log(4))
    mixed = [[0.0, *(factor * np.array(kl[1:]))] for factor, kl in zip((0.3, 1.0, 2.0), FULL_KL, strict=True)]
    tables = curves({"grpo": FULL, "s_grpo": SPARSE, "t_spmo": FULL}, {"grpo": FULL_KL, "s_grpo": SPARSE_KL, "t_spmo": mixed})
    assert judge(tables, "N9d")["verdict"] == "inconclusive"


def test_a_run_that_never_leaves_the_start_leaves_drift_open():
    stuck = [*SPARSE[:2], [0.45, 0.44, 0.45, 0.45]]
    tables = curves({"grpo": FULL, "s_grpo": stuck, "t_spmo": SPARSE}, {"grpo": FULL_KL, "s_grpo": SPARSE_KL, "t_spmo": SPARSE_KL})
    row = judge(tables, "N9d")
    assert row["verdict"] == "inconclusive" and pd.isna(row["value"]) and "No level" in row["note"]
    tables["curves"] = tables["curves"][tables["curves"]["metric"] != "validation_kl_to_base"]
    assert pd.isna(judge(tables, "N9d")["value"])
    assert judge({}, "N9d")["verdict"] == "not run"


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [((0.30, 0.10, 0.12), "supported"), ((0.30, 0.10, 0.40), "not supported"), ((0.30, 0.10, 0.30), "inconclusive")],
)
def test_the_gap_on_few_training_items_is_that_of_paired_seeds(gaps, verdict: str):
    cell = {"train_items": 64, "steps": 300, "grpo": 0.6, "s_grpo": 0.6, "t_spmo": 0.6}
    gap = dict(zip(("grpo", "s_grpo", "t_spmo"), gaps, strict=True))
    # Cells of a screening have few training items too, but fewer steps.
    screened = {"train_items": 64, "grpo": 0.5, "s_grpo": 0.5, "t_spmo": 0.5, "gap": dict.fromkeys(gap, 0.9)}
    headline = synthetic.headline(items=60, tasks=("word_problems",))
    tables = synthetic.regimes(headline, [cell | {"gap": gap}, screened], first_seed=0)
    row = judge(tables, "N9g")
    assert row["verdict"] == verdict and row["seeds"] == 5
    runs = tables["runs"].query("ablation == 'regimes' and steps == 300").set_index(["method", "seed"])
    by_hand = runs["train_accuracy"] - runs["accuracy"]
    expected = {method: 100 * (by_hand[method] - by_hand["grpo"]).mean() for method in ("s_grpo", "t_spmo")}
    assert row["value"] == pytest.approx(max(expected.values()))


CELL = {"grpo": 0.41, "s_grpo": 0.47, "t_spmo": 0.80}


@pytest.mark.parametrize(
    ("cells", "verdict"),
    [
        ([CELL], "supported"),
        ([CELL | {"grpo": 0.80}], "not supported"),
        ([CELL | {"t_spmo": 0.50}], "not supported"),
        ([CELL | {"grpo": 0.52}], "inconclusive"),
        ([CELL | {"grpo": 0.80}, CELL | {"group_size": 16}], "supported"),
        ([CELL | {"grpo": 0.80}, CELL | {"group_size": 16, "grpo": 0.52}], "inconclusive"),
        ([CELL | {"grpo": 0.80}, CELL | {"train_items": 64, "t_spmo": 0.50}], "not supported"),
    ],
)
def test_one_cell_in_which_full_fails_and_sparse_works_is_enough(cells, verdict: str):
    row = judge(synthetic.regimes(synthetic.headline(items=300, seeds=1, tasks=("word_problems",)), cells), "N10")
    assert row["verdict"] == verdict
    assert row["seeds"] == 5 and row["items"] == 300
    if verdict == "supported":
        assert row["low"] > 20 and "T-SPMO" in row["note"].split("The row shows ")[1].split(", ")[0] and "GRPO" in row["note"]


def test_only_new_seeds_say_that_a_cell_fails():
    screened = synthetic.regimes(synthetic.headline(items=60, seeds=1, tasks=("word_problems",)), [CELL], first_seed=100)
    assert judge(screened, "N10")["verdict"] == "not run"


def test_the_note_counts_the_cells_with_new_seeds_alone():
    base = synthetic.headline(items=300, seeds=1, tasks=("word_problems",))
    new = synthetic.regimes(base, [CELL, CELL | {"group_size": 16}])
    screened = synthetic.regimes(base, [{"grpo": 0.62, "train_items": 64}], first_seed=100, seeds=1)
    runs = screened["runs"][screened["runs"]["seed"] == 100]
    tables = {**new, "runs": pd.concat([new["runs"], runs], ignore_index=True)}
    tables["ablation_items"] = pd.concat([new["ablation_items"], screened["ablation_items"]])
    assert "Cells run with new seeds: 2" in judge(tables, "N10")["note"]


def test_a_failed_run_of_a_cell_leaves_it_open():
    tables = synthetic.regimes(synthetic.headline(items=300, seeds=1, tasks=("word_problems",)), [CELL])
    runs = tables["runs"]
    first = runs[(runs["ablation"] == "regimes") & (runs["method"] == "t_spmo")].index[0]
    runs.loc[first, ["status", "accuracy"]] = ["failed", np.nan]
    tables["ablation_items"] = tables["ablation_items"][tables["ablation_items"]["run_id"] != runs.loc[first, "run_id"]]
    row = judge(tables, "N10")
    assert row["verdict"] == "inconclusive" and "has no answers" in row["note"]

"""Verdicts on made-up tables whose answer is known, and on tables that lack, repeat or contradict something."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import synthetic_tables

from replication.errors import UserError
from replication.names import CLAIMS, ENDED, HEADLINE, RESULTS, TRAINED
from replication.statistics import VERDICTS, Claim, accuracy, counts_for, difference, holm, load_claims, runs_of, verdicts
from replication.tables import read_tables

CONTRACT = ["claim", "paper_value", "value", "low", "high", "seeds", "items", "verdict"]


def _judge(tables: dict[str, pd.DataFrame], *ids: str) -> pd.DataFrame:
    """Verdicts by claim; with ids only theirs, which is quicker and changes none (a test below)."""
    claims = [claim for claim in load_claims(CLAIMS) if not ids or claim.id in ids]
    return verdicts(claims, tables).set_index("claim")


def _with(method: str, rate: float, task: str = "word_problems", **options) -> dict[str, pd.DataFrame]:
    accuracy = {name: dict(rates) for name, rates in synthetic_tables.ACCURACY.items()}
    accuracy[task][method] = rate
    return synthetic_tables.headline(accuracy=accuracy, **options)


def _paper(**options) -> dict[str, pd.DataFrame]:
    return synthetic_tables.headline(
        profile="paper", model="Qwen/Qwen2-1.5B", tasks=("svamp", "multiplication"), items=300, **options
    )


def test_the_nine_claims_of_the_paper_are_there_and_marked():
    claims = load_claims(CLAIMS)
    assert len({claim.id for claim in claims}) == len(claims)
    paper = [claim for claim in claims if claim.scale == "paper"]
    assert [claim.id for claim in paper] == [f"C{n}" for n in range(1, 10)]
    assert all(claim.mark == "P" for claim in paper)
    nano = [claim for claim in claims if claim.scale == "nano"]
    assert {claim.counterpart for claim in nano} == {f"C{n}" for n in (1, 2, 3, 4, 5, 6, 7, 9)}
    # A nano claim is ours: nothing in its row may read as the paper's number.
    assert all(claim.mark == "own" and claim.paper_value is None for claim in nano)
    assert [claim.id for claim in claims if claim.by_design] == ["N1", "N5"]


def test_the_claims_on_the_small_model_are_ours_and_stand_beside_seven_of_the_paper():
    small = [claim for claim in load_claims(CLAIMS) if claim.scale == "small"]
    assert [(claim.id, claim.counterpart) for claim in small] == [(f"S{n}", f"C{n}") for n in range(1, 8)]
    assert all(claim.mark == "own" and claim.paper_value is None for claim in small)
    assert all(claim.tasks == ("svamp",) for claim in small)


def test_runs_of_the_small_model_are_evidence_for_its_scale_alone():
    tables = synthetic_tables.headline(profile="small", model="Qwen/Qwen2.5-0.5B-Instruct", tasks=("svamp",), items=300)
    result = _judge(tables)
    assert ((result["verdict"] != "not run") == (result["scale"] == "small")).all()


def test_counterparts_with_the_measure_of_the_paper_claim_have_its_rule():
    claims = {claim.id: claim for claim in load_claims(CLAIMS)}
    for claim in claims.values():
        other = claims.get(claim.counterpart)
        if other and claim.scale == "nano" and claim.measure == other.measure:  # scale small has thresholds of its own
            assert (claim.rule, claim.threshold, claim.upper, claim.methods) == (
                (other.rule, other.threshold, other.upper, other.methods)
            )


def test_the_rules_of_the_nano_lab_are_those_written_before_it_was_run():
    """The table under Rules in docs/nano-lab.md."""
    claims = {claim.id: claim for claim in load_claims(CLAIMS) if claim.scale == "nano"}
    sparse = ("s_grpo", "t_spmo", "grpo")
    for name, measure, methods, task, rule, threshold in (
        ("N4", "accuracy_difference", ("grpo", "base"), "word_problems", "below", 5),
        ("N4m", "accuracy_difference", ("grpo", "base"), "multiplication", "below", 5),
        ("N7", "accuracy_difference", ("t_spmo", "base"), "multiplication", "above", 20),
        ("N9", "accuracy_difference", sparse, "word_problems", "above", 0),
        ("N9m", "accuracy_difference", sparse, "multiplication", "above", 0),
        ("N9d", "drift_at_equal_accuracy", sparse, "word_problems", "below", 0),
        ("N9g", "train_test_gap", sparse, "word_problems", "below", 0),
        ("N10", "failing_cell", ("grpo", "s_grpo", "t_spmo"), "word_problems", "above", 20),
    ):
        claim = claims[name]
        found = (claim.measure, claim.methods, claim.tasks, claim.rule, claim.threshold)
        assert found == (measure, methods, (task,), rule, threshold), name
    assert all(claim.asides == "after" for claim in claims.values())
    assert claims["N9g"].cell == {"train_items": 64, "steps": 300} and claims["N10"].fails_under == 5


def test_columns_and_words_of_the_contract():
    result = verdicts(CLAIMS, synthetic_tables.headline())
    assert list(result.columns[:8]) == CONTRACT
    assert set(result["verdict"]) <= set(VERDICTS) == {"supported", "not supported", "inconclusive", "not run", "by design"}
    measured = result[result["low"].notna()]
    assert ((measured["low"] <= measured["value"]) & (measured["value"] <= measured["high"])).all()


@pytest.mark.parametrize("tables", [{}, {"runs": pd.DataFrame(), "items": pd.DataFrame(), "curves": pd.DataFrame()}])
def test_without_runs_every_claim_reads_not_run_and_no_number(tables: dict[str, pd.DataFrame]):
    result = verdicts(CLAIMS, tables)
    assert set(result["verdict"]) == {"not run"}
    assert result[["value", "low", "high", "seeds", "items", "p", "p_holm"]].isna().all(axis=None)


def test_nano_tables_say_nothing_about_qwen_and_the_other_way_round():
    nano, paper = _judge(synthetic_tables.headline()), _judge(_paper())
    for result, scale in ((nano, "paper"), (paper, "nano")):
        assert set(result[result["scale"] == scale]["verdict"]) == {"not run"}
    # What is judged on the ablation regimes is not in these tables.
    assert nano.index[(nano["scale"] == "nano") & (nano["verdict"] == "not run")].tolist() == ["N9g", "N10"]
    # Memory alone is not in these tables.
    assert paper.index[(paper["scale"] == "paper") & (paper["verdict"] == "not run")].tolist() == ["C8"]


@pytest.mark.parametrize(
    ("profile", "model"), [("smoke", "nano"), ("paper", "nano"), ("paper", "Qwen/Qwen2-1.5B-Instruct"), ("nano", "other")]
)
def test_smoke_dry_runs_and_other_models_are_no_evidence(profile: str, model: str):
    tables = synthetic_tables.headline(profile=profile, model=model, tasks=("word_problems", "multiplication", "svamp"))
    assert set(verdicts(CLAIMS, tables)["verdict"]) == {"not run"}


@pytest.mark.parametrize(
    ("scale", "model", "counts"),
    [
        ("paper", "Qwen/Qwen2-1.5B", True),
        ("paper", "/data/qwen2-1.5b/", True),
        ("paper", "/cache/models--Qwen--Qwen2-1.5B/snapshots/8a16abf2", True),
        ("paper", "/ft/qwen2-1.5b/my-sft", False),
        ("paper", "/ft/qwen2-1.5b/snapshots/8a16abf2", False),
        ("paper", "/cache/models--Qwen--Qwen2-1.5B-Instruct/snapshots/8a16abf2", False),
        ("paper", "/data/my-qwen2-1.5b", False),
        ("paper", "/data/Qwen2-1.5B-GPTQ", False),
        ("paper", "/data/weights", False),
        ("small", "Qwen/Qwen2.5-0.5B-Instruct", True),
        ("small", "Qwen/Qwen2.5-0.5B", False),
        ("small", "Qwen/Qwen2-1.5B", False),
        ("small", "/data/Qwen2.5-0.5B-Instruct.gguf", False),
        ("small", "nano", False),
    ],
)
def test_the_last_part_of_a_path_says_whether_it_is_the_model_of_a_scale(scale: str, model: str, counts: bool):
    assert counts_for(scale, model) == counts


@pytest.mark.parametrize(("rate", "verdict"), [(0.85, "supported"), (0.72, "inconclusive"), (0.50, "not supported")])
def test_over_seventy_percent(rate: float, verdict: str):
    row = _judge(_with("s_grpo", rate), "N2").loc["N2"]
    assert row["verdict"] == verdict
    assert row["value"] == pytest.approx(100 * rate, abs=3)
    assert (row["seeds"], row["items"], row["unit"]) == (3, 300, "%")


@pytest.mark.parametrize(("gain", "verdict"), [(-0.05, "supported"), (0.06, "inconclusive"), (0.30, "not supported")])
def test_full_grpo_does_not_improve(gain: float, verdict: str):
    accuracy = {task: rates | {"grpo": rates["base"] - 0.03} for task, rates in synthetic_tables.ACCURACY.items()}
    accuracy["word_problems"]["grpo"] = 0.46 + gain
    row = _judge(synthetic_tables.tuned(synthetic_tables.headline(accuracy=accuracy)), "N4").loc["N4"]
    assert row["verdict"] == verdict
    assert row["verdict"] != "supported" or row["high"] < 5


def test_a_claim_about_both_tasks_falls_with_one_of_them_and_shows_it():
    row = _judge(synthetic_tables.tuned(_paper()), "C4").loc["C4"]  # multiplication rises from 9 to 62 %, SVAMP does not
    assert row["verdict"] == "not supported"
    assert "The row shows GRPO on multiplication" in row["note"] and "GRPO on SVAMP" in row["note"]
    assert row["value"] == pytest.approx(53, abs=3)


def test_the_counterparts_of_it_judge_each_task_by_itself():
    result = _judge(synthetic_tables.tuned(_with("grpo", 0.43)), "N4", "N4m")
    assert result["verdict"].to_dict() == {"N4": "supported", "N4m": "not supported"}


def test_a_task_that_was_not_run_is_named():
    tables = synthetic_tables.headline(profile="paper", model="Qwen/Qwen2-1.5B", tasks=("svamp",))
    row = _judge(tables, "C4").loc["C4"]
    assert "Judged without what was not measured: GRPO on multiplication" in row["note"]


@pytest.mark.parametrize(
    ("sparse", "less_kl", "verdict"),
    [(0.90, True, "supported"), (0.90, False, "not supported"), (0.60, True, "not supported"), (0.80, True, "inconclusive")],
)
def test_sparse_beats_full_only_with_less_drift(sparse: float, less_kl: bool, verdict: str):
    accuracy = synthetic_tables.ACCURACY | {"svamp": {"base": 0.46, "grpo": 0.80, "s_grpo": sparse, "t_spmo": sparse}}
    tables = _paper(accuracy=accuracy, seeds=5)
    runs = tables["runs"]
    if not less_kl:
        sign = runs["method"].isin(["s_grpo", "t_spmo"])
        runs.loc[sign, "kl_to_base"] += 1.0
        runs.loc[sign, "train_accuracy"] += 0.3
    assert _judge(synthetic_tables.tuned(tables), "C9").loc["C9", "verdict"] == verdict


@pytest.mark.parametrize(
    ("s_grpo", "t_spmo", "verdict"), [(0.9, 0.9, "supported"), (0.9, 0.6, "not supported"), (0.9, 0.8, "inconclusive")]
)
def test_both_sparse_methods_must_be_ahead(s_grpo: float, t_spmo: float, verdict: str):
    accuracy = synthetic_tables.ACCURACY | {"word_problems": {"base": 0.46, "grpo": 0.8, "s_grpo": s_grpo, "t_spmo": t_spmo}}
    tables = synthetic_tables.tuned(synthetic_tables.headline(accuracy=accuracy, seeds=5))
    assert _judge(tables, "N9").loc["N9", "verdict"] == verdict


def test_claims_at_the_tuned_rate_are_marked():
    assert [claim.id for claim in load_claims(CLAIMS) if claim.tuned] == ["C4", "C9", "N4", "N4m", "N9", "N9m", "S4"]


@pytest.mark.parametrize(
    ("rate", "at_tuned", "verdict"), [(0.38, "supported", "inconclusive"), (0.90, "not supported", "not supported")]
)
def test_a_claim_at_the_tuned_rate_is_open_at_any_other_unless_it_fails_there(rate: float, at_tuned: str, verdict: str):
    """ "Does not improve" was open where GRPO clearly improved at an untuned rate, though a better one could only gain more."""
    accuracy = {task: rates | {"grpo": rates["base"] + rate - 0.46} for task, rates in synthetic_tables.ACCURACY.items()}
    tables = synthetic_tables.headline(accuracy=accuracy)
    tuned = _judge(synthetic_tables.tuned(tables), "N4").loc["N4"]
    assert tuned["verdict"] == at_tuned and "tuned rate" not in tuned["note"]
    elsewhere = _judge(synthetic_tables.tuned(tables, factor=3.0), "N4").loc["N4"]
    assert elsewhere["verdict"] == verdict
    assert (
        "GRPO on word problems (noise after) is not at its tuned rate: headline 0.001, validation prefers 0.003"
        in elsewhere["note"]
    )
    without = _judge(tables, "N4").loc["N4"]
    assert without["verdict"] == verdict
    assert "run the ablation learning_rate (rates judged on validation: 0)" in without["note"]
    # The numbers are the same: only what they may be called differs.
    assert (elsewhere["low"], elsewhere["high"]) == (without["low"], without["high"]) == (tuned["low"], tuned["high"])


@pytest.mark.parametrize("sparse", [0.90, 0.60])
def test_a_comparison_of_trained_methods_is_open_at_untuned_rates_whichever_way_it_falls(sparse: float):
    accuracy = synthetic_tables.ACCURACY | {"word_problems": {"base": 0.46, "grpo": 0.8, "s_grpo": sparse, "t_spmo": sparse}}
    tables = synthetic_tables.headline(accuracy=accuracy, seeds=5)
    assert _judge(synthetic_tables.tuned(tables), "N9").loc["N9", "verdict"] == ("supported" if sparse > 0.8 else "not supported")
    assert _judge(tables, "N9").loc["N9", "verdict"] == "inconclusive"


@pytest.mark.parametrize(
    ("column", "value", "note"),
    [
        ("status", "pending", "1 of its 3 runs unfinished"),
        ("profile", "smoke", "rates judged on validation: 0"),
        ("model", "other", "rates judged on validation: 0"),
        ("task", "svamp", "rates judged on validation: 0"),
        ("validation_accuracy", np.nan, "rates judged on validation: 0"),
        ("learning_rate", 1e-3, "rates judged on validation: 1"),
    ],
)
def test_a_tuning_that_is_not_whole_or_not_of_these_runs_confirms_nothing(column: str, value: object, note: str):
    tables = synthetic_tables.tuned(_with("grpo", 0.03, "multiplication"))  # the base has 9 %: no gain, once tuned
    assert _judge(tables, "N4m").loc["N4m", "verdict"] == "supported"
    runs = tables["runs"]
    rows = runs.index[(runs["ablation"] == "learning_rate") & (runs["method"] == "grpo") & (runs["task"] == "multiplication")]
    runs.loc[rows[:1] if column == "status" else rows, column] = value
    row = _judge(tables, "N4m").loc["N4m"]
    assert f"GRPO on multiplication is not known to be at its tuned rate: run the ablation learning_rate ({note})" in row["note"]
    assert row["verdict"] == "inconclusive"


def test_a_clear_failure_at_the_tuned_rate_decides_whatever_the_other_task():
    tables = synthetic_tables.tuned(_paper())
    runs = tables["runs"]
    tables["runs"] = runs[(runs["ablation"] != "learning_rate") | (runs["task"] == "multiplication")]
    assert _judge(tables, "C4").loc["C4", "verdict"] == "not supported"


def test_rates_tuned_with_seeds_of_their_own_confirm_the_headline():
    tables = synthetic_tables.tuned(_with("grpo", 0.90))
    runs = tables["runs"]
    runs.loc[runs["ablation"] == "learning_rate", "seed"] += 100
    row = _judge(tables, "N4").loc["N4"]
    assert row["verdict"] == "not supported" and "tuned rate" not in row["note"]


def test_the_committed_results_are_at_their_tuned_rates():
    """Claims on a task are left open for it until all its planned rates have been tried."""
    tables = read_tables(RESULTS / "nano")
    runs = tables["runs"]
    rates = runs[(runs["ablation"] == "learning_rate") & runs["method"].isin(TRAINED)]
    rates = rates[rates["asides"].isna() | (rates["asides"] == "after")]  # the conditions that the claims are about
    waiting = set(rates.loc[~rates["status"].isin(ENDED), "task"])
    names = {"word_problems": ("N4", "N9"), "multiplication": ("N4m", "N9m")}
    for task, claims in names.items():
        untuned = _judge(tables, *claims)["note"].str.contains("tuned rate")
        assert untuned.all() if task in waiting else not untuned.any()


def test_sparse_beats_full_is_not_judged_without_any_measure_of_drift():
    tables = _paper(accuracy=synthetic_tables.ACCURACY | {"svamp": {"base": 0.46, "grpo": 0.60, "s_grpo": 0.9, "t_spmo": 0.9}})
    tables["runs"] = tables["runs"].drop(columns=["kl_to_base", "train_accuracy"])
    assert _judge(tables, "C9").loc["C9", "verdict"] == "not run"


def test_by_design_is_no_evidence_and_a_broken_design_is_told():
    assert _judge(synthetic_tables.headline(), "N1").loc["N1", "verdict"] == "by design"
    assert _judge(synthetic_tables.headline(), "N5").loc["N5", "verdict"] == "by design"
    row = _judge(_with("base", 0.20), "N1").loc["N1"]
    assert row["verdict"] == "not supported" and "lab was built" in row["note"]


def test_kept_fraction_is_that_of_the_runs_and_with_one_seed_that_of_the_steps():
    tables = synthetic_tables.headline(seeds=3)
    row = _judge(tables, "N6").loc["N6"]
    assert row["verdict"] == "supported" and row["value"] == pytest.approx(0.6, abs=0.05)
    alone = synthetic_tables.headline(seeds=1)
    row = _judge(alone, "N6").loc["N6"]
    assert row["verdict"] == "supported" and "steps" in row["note"]
    del alone["curves"]
    row = _judge(alone, "N6").loc["N6"]
    assert row["verdict"] == "inconclusive" and np.isnan(row["low"]) and row["value"] == pytest.approx(0.6, abs=0.05)


def test_one_seed_is_judged_over_items_and_says_so():
    row = _judge(synthetic_tables.headline(seeds=1), "N2").loc["N2"]
    assert row["seeds"] == 1 and "One seed" in row["note"] and row["low"] < row["value"] < row["high"]


def test_memory_is_the_most_any_run_held():
    tables = _paper(seeds=1)
    run_ids = tables["runs"].loc[tables["runs"]["method"] != "base", "run_id"]
    for peak, verdict in ((39e9, "supported"), (41e9, "not supported")):
        tables["timings"] = pd.DataFrame({"run_id": run_ids, "peak_gpu_bytes": [peak, *[20e9] * (len(run_ids) - 1)]})
        row = _judge(tables, "C8").loc["C8"]
        assert (row["verdict"], row["value"]) == (verdict, peak / 1e9)
    tables["timings"] = pd.DataFrame({"run_id": run_ids, "peak_gpu_bytes": np.nan})
    assert _judge(tables, "C8").loc["C8", "verdict"] == "not run"


def test_diverged_runs_count_at_their_last_checkpoint():
    tables = _with("t_spmo", 0.80)
    before = _judge(tables, "N3").loc["N3"]
    runs, items = tables["runs"], tables["items"]
    name = synthetic_tables.run_id("nano", "word_problems", "t_spmo", 0)
    runs.loc[runs["run_id"] == name, ["status", "accuracy"]] = ["diverged", 0.0]
    items.loc[items["run_id"] == name, "correct"] = 0
    row = _judge(tables, "N3").loc["N3"]
    assert row["seeds"] == 3
    assert row["value"] < before["value"] - 20 and row["verdict"] != "supported"


def test_a_diverged_run_without_a_checkpoint_cannot_be_left_out_for_a_better_mean():
    tables = _with("t_spmo", 0.85)
    name = synthetic_tables.run_id("nano", "word_problems", "t_spmo", 0)
    runs = tables["runs"]
    runs.loc[runs["run_id"] == name, "status"] = "diverged"
    runs.loc[runs["run_id"] == name, "accuracy"] = np.nan
    tables["items"] = tables["items"][tables["items"]["run_id"] != name]
    row = _judge(tables, "N3").loc["N3"]
    assert row["verdict"] == "inconclusive" and "diverged" in row["note"]


def test_failed_and_pending_runs_are_missing_not_zero():
    tables = _with("s_grpo", 0.85)
    runs = tables["runs"]
    name = synthetic_tables.run_id("nano", "word_problems", "s_grpo", 1)
    runs.loc[runs["run_id"] == name, ["status", "accuracy"]] = ["failed", np.nan]
    row = _judge(tables, "N2").loc["N2"]
    assert row["seeds"] == 2 and row["value"] > 80 and "Planned runs that did not finish: 1" in row["note"]
    runs.loc[runs["method"] == "s_grpo", ["status", "accuracy"]] = ["pending", np.nan]
    assert _judge(tables, "N2").loc["N2", "verdict"] == "not run"


def test_ablation_rows_never_feed_a_headline_claim():
    tables = synthetic_tables.headline(seeds=3)
    extra = tables["runs"].assign(ablation="lora_rank", accuracy=0.01, kept_fraction=0.99)
    tables_2 = tables | {"runs": pd.concat([tables["runs"], extra], ignore_index=True)}
    pd.testing.assert_frame_equal(verdicts(CLAIMS, tables), verdicts(CLAIMS, tables_2))


def test_the_order_of_rows_does_not_matter():
    tables = synthetic_tables.headline()
    shuffled = {name: frame.sample(frac=1, random_state=3) for name, frame in tables.items()}
    pd.testing.assert_frame_equal(verdicts(CLAIMS, tables), verdicts(CLAIMS, shuffled))


def test_the_order_and_number_of_claims_change_no_interval():
    tables, claims = synthetic_tables.headline(), load_claims(CLAIMS)
    alone = verdicts([claim for claim in claims if claim.id == "N2"], tables).iloc[0]
    assert (alone["low"], alone["high"]) == tuple(_judge(tables).loc["N2", ["low", "high"]])


def test_tables_read_back_from_csv_judge_alike():
    tables = synthetic_tables.headline()
    back = {}
    for name, frame in tables.items():
        text = frame.to_csv(index=False, float_format="%.6g")
        back[name] = pd.read_csv(io.StringIO(text), dtype={"run_id": str, "item_id": str})
    a, b = verdicts(CLAIMS, tables), verdicts(CLAIMS, back)
    pd.testing.assert_series_equal(a["verdict"], b["verdict"])
    np.testing.assert_allclose(a["high"], b["high"], rtol=1e-4)


@pytest.mark.parametrize("spelling", [bool, str, lambda value: str(bool(value)), float])
def test_right_and_wrong_may_be_spelled_as_any_csv_does(spelling):
    tables = synthetic_tables.headline(items=60)
    spelled = tables | {"items": tables["items"].assign(correct=tables["items"]["correct"].map(spelling))}
    pd.testing.assert_frame_equal(verdicts(CLAIMS, tables), verdicts(CLAIMS, spelled))


def test_ids_made_of_digits_join_whether_they_are_read_as_numbers_or_texts():
    """A run id that is a number in runs.csv and a text in items.csv once found no answers, and every verdict was "not run"."""
    tables = synthetic_tables.headline(items=60)
    numbers = {run_id: place for place, run_id in enumerate(tables["runs"]["run_id"], start=100)}
    as_numbers = {name: rows.assign(run_id=rows["run_id"].map(numbers)) for name, rows in tables.items()}
    as_texts = {name: rows.assign(run_id=rows["run_id"].astype(str)) for name, rows in as_numbers.items()}
    expected = verdicts(CLAIMS, as_texts)
    assert "supported" in set(expected["verdict"])
    pd.testing.assert_frame_equal(verdicts(CLAIMS, as_numbers), expected)
    pd.testing.assert_frame_equal(verdicts(CLAIMS, as_texts | {"runs": as_numbers["runs"]}), expected)


def test_tables_are_left_as_they_were():
    tables = synthetic_tables.headline(items=60)
    copies = {name: frame.copy() for name, frame in tables.items()}
    verdicts(CLAIMS, tables)
    for name, frame in tables.items():
        pd.testing.assert_frame_equal(frame, copies[name])


def test_holm_runs_over_every_difference_that_a_scale_judges_shown_or_not():
    tables = synthetic_tables.headline(seeds=5)
    result = _judge(tables)
    judged = result[result["p"].notna()]
    assert judged.index.tolist() == ["N4", "N4m", "N7", "N9", "N9m"]
    by_name = {key: own for key, own in runs_of(tables, HEADLINE, "nano").groupby(["task", "method"])}
    pairs = [("word_problems", "grpo", "base"), ("multiplication", "grpo", "base"), ("multiplication", "t_spmo", "base")]
    pairs += [(task, sparse, "grpo") for task in ("word_problems", "multiplication") for sparse in ("s_grpo", "t_spmo")]
    every = [difference(tables, by_name[task, a], by_name[task, b]).p for task, a, b in pairs]
    adjusted = dict(zip(every, holm(every), strict=True))
    assert len(every) == 7 and judged["p_holm"].tolist() == [pytest.approx(adjusted[p]) for p in judged["p"]]


def test_a_verdict_shows_the_interval_that_everybody_shows():
    tables = synthetic_tables.headline()
    row, runs = _judge(tables, "N2").loc["N2"], runs_of(tables, HEADLINE, "nano")
    found = accuracy(tables, runs[(runs["task"] == "word_problems") & (runs["method"] == "s_grpo")]).scaled(100)
    assert (row["value"], row["low"], row["high"]) == (found.value, found.low, found.high)


def test_a_p_value_at_the_floor_is_marked():
    result = _judge(synthetic_tables.tuned(_with("grpo", 0.90)))
    assert result.loc["N4", "p_at_floor"] and result["p"].min() == result.loc["N4", "p"]
    assert not result.loc[result["p"].isna(), "p_at_floor"].any()


def test_conditions_of_a_task_are_judged_apart():
    """Runs of several conditions keep one task name; a claim is about one of them and never pools their items."""
    tables = synthetic_tables.headline(items=60)
    other = synthetic_tables.headline(items=60, accuracy={task: dict.fromkeys(rates, 0.1) for task, rates in
                                                          synthetic_tables.ACCURACY.items()})  # fmt: skip
    words = other["runs"]["task"] == "word_problems"
    other = {name: frame[frame["run_id"].isin(other["runs"].loc[words, "run_id"])].copy() for name, frame in other.items()}
    for frame in other.values():
        frame["run_id"] = "x" + frame["run_id"]
    other["runs"]["asides"] = "none"
    pooled = {name: pd.concat([tables[name], other[name]], ignore_index=True) for name in tables}
    pd.testing.assert_frame_equal(verdicts(CLAIMS, pooled), verdicts(CLAIMS, tables))
    without = tables | {"runs": tables["runs"].drop(columns="asides")}
    columns = ["claim", "value", "low", "high", "verdict"]
    pd.testing.assert_frame_equal(verdicts(CLAIMS, without)[columns], verdicts(CLAIMS, tables)[columns])
    claim = {"id": "Z", "mark": "own", "scale": "nano", "text": "t", "measure": "accuracy", "methods": ["grpo"],
             "tasks": ["word_problems"], "rule": "below", "threshold": 30, "asides": "none"}  # fmt: skip
    assert verdicts([claim], pooled)["verdict"].tolist() == ["supported"]


def test_a_method_with_failed_runs_is_not_judged_by_those_that_lasted():
    tables = _with("s_grpo", 0.85)
    assert _judge(tables, "N2").loc["N2", "verdict"] == "supported"
    name = synthetic_tables.run_id("nano", "word_problems", "s_grpo", 1)
    tables["runs"].loc[tables["runs"]["run_id"] == name, ["status", "accuracy"]] = ["failed", np.nan]
    tables["items"] = tables["items"][tables["items"]["run_id"] != name]
    row = _judge(tables, "N2").loc["N2"]
    assert (
        row["verdict"] == "inconclusive" and "S-GRPO seed 1 on word problems (noise after) (failed) has no answers" in row["note"]
    )


@pytest.mark.parametrize(("ahead", "verdict"), [(0.019, "supported"), (0.021, "inconclusive")])
def test_a_rate_that_chance_alone_puts_first_untunes_nothing(ahead: float, verdict: str):
    """Among rates about equally good another number of seeds, or another processor, chooses another: that decides no claim."""
    tables = synthetic_tables.tuned(_with("grpo", 0.38))
    runs = tables["runs"]
    other = (runs["ablation"] == "learning_rate") & (runs["learning_rate"] == runs["learning_rate"].max())
    rows = runs.index[(runs["ablation"] == "learning_rate") & (runs["method"] == "grpo") & (runs["learning_rate"] < 1e-3)]
    assert other.any() and len(rows) == 2
    runs.loc[rows, "validation_accuracy"] = 0.5 + ahead
    assert _judge(tables, "N4").loc["N4", "verdict"] == verdict


def test_a_rate_at_the_end_of_the_grid_is_not_known_to_be_tuned():
    tables = synthetic_tables.tuned(_with("grpo", 0.38))
    runs = tables["runs"]
    low = (runs["ablation"] == "learning_rate") & (runs["method"] == "grpo") & (runs["learning_rate"] < 1e-3)
    tables["runs"] = runs[~low]
    row = _judge(tables, "N4").loc["N4"]
    assert row["verdict"] == "inconclusive" and "is at an end of the rates tried (0.001)" in row["note"]


@pytest.mark.parametrize(
    ("name", "column"), [("runs", "ablation"), ("runs", "profile"), ("runs", "accuracy"), ("items", "correct"), ("curves", "value")]
)
def test_a_missing_column_is_named(name: str, column: str):
    tables = synthetic_tables.headline(items=20)
    tables[name] = tables[name].drop(columns=column)
    with pytest.raises(UserError, match=f"{name}.csv has no column {column}"):
        verdicts(CLAIMS, tables)


def test_tables_that_contradict_themselves_are_refused():
    tables = synthetic_tables.headline(items=40)
    run = tables["runs"]["run_id"].iloc[1]
    with pytest.raises(UserError, match="in items.csv: rebuild"):
        verdicts(CLAIMS, tables | {"runs": tables["runs"].assign(accuracy=0.123)})
    with pytest.raises(UserError, match="twice"):
        verdicts(CLAIMS, tables | {"items": pd.concat([tables["items"], tables["items"].head(1)])})
    with pytest.raises(UserError, match="two full_vs_sparse runs"):
        verdicts(CLAIMS, tables | {"runs": pd.concat([tables["runs"], tables["runs"][tables["runs"]["run_id"] == run]])})
    with pytest.raises(UserError, match="not 0 or 1"):
        verdicts(CLAIMS, tables | {"items": tables["items"].assign(correct=2)})
    with pytest.raises(UserError, match="curves.csv has a value that is no number"):
        verdicts(CLAIMS, tables | {"curves": tables["curves"].assign(value="high")})
    with pytest.raises(UserError, match="curves.csv is not of schema_version"):
        verdicts(CLAIMS, tables | {"curves": tables["curves"].assign(schema_version=2)})


_GOOD = {
    "id": "X", "mark": "own", "scale": "nano", "text": "t", "measure": "accuracy", "methods": ["grpo"],
    "tasks": ["word_problems"], "rule": "above", "threshold": 50,
}  # fmt: skip


def test_claims_may_be_a_path_parsed_content_or_objects():
    tables = synthetic_tables.headline(items=60)
    rows = [verdicts(form, tables) for form in ({"claims": [_GOOD]}, [_GOOD], [Claim(**_GOOD)])]
    assert all(row.equals(rows[0]) for row in rows) and rows[0]["verdict"].tolist() == ["supported"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([_GOOD | {"treshold": 3}], "claim X: treshold"),
        ([_GOOD | {"rule": "between"}], "claim X.*`upper` goes with"),
        ([_GOOD | {"measure": "accuracy_difference"}], "claim X.*two methods"),
        ([_GOOD | {"tuned": True}], "claim X.*`tuned` goes with"),
        ([_GOOD, _GOOD], "claim id X occurs 2 times"),
        ([_GOOD, "C1"], "claim number 2"),
        ({"claim": [_GOOD]}, "under the key `claims`"),
        ({"claims": None}, "under the key `claims`"),
        ("no/such/claims.yaml", "cannot read the claims file no/such/claims.yaml: No such file"),
    ],
)
def test_claims_that_cannot_be_read_say_why_in_one_line(content: object, message: str):
    with pytest.raises(UserError, match=message) as caught:
        verdicts(content, {})
    assert "\n" not in str(caught.value)

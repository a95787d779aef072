"""Intervals and exact tests against numbers worked out elsewhere, and the bootstrap against the worlds it claims to cover."""

from __future__ import annotations

import time
from math import comb

import numpy as np
import pandas as pd
import pytest
import synthetic_tables
from scipy import stats

from replication.errors import UserError
from replication.randomness import numpy_stream
from replication.statistics.comparisons import best_rate, compare_tables, detectable_differences, paired_tests, seed_spread
from replication.statistics.intervals import bootstrap, detectable_gap, holm, mcnemar, mean_over_seeds, wilson


def _rng(key: int = 0) -> np.random.Generator:
    return numpy_stream(0, "bootstrap", "test", key)


def test_wilson_at_seventy_percent_of_300_items():
    low, high = wilson(210, 300)
    assert (round(100 * low, 1), round(100 * high, 1)) == (64.6, 74.9)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (3, 10), (10, 10), (46, 100)])
def test_wilson_solves_its_own_equation(correct: int, n: int):
    # Its ends are the p at which |p_hat - p| is z standard errors *of p*, which the normal interval has of p_hat.
    for end in wilson(correct, n):
        assert abs(correct / n - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / n), abs=1e-6)


def test_wilson_of_nothing_is_not_a_number():
    assert all(np.isnan(end) for end in wilson(0, 0))


@pytest.mark.parametrize(("only_a", "only_b"), [(10, 2), (2, 10), (0, 5), (7, 7), (1, 0)])
def test_mcnemar_is_the_two_sided_binomial_sum(only_a: int, only_b: int):
    m, least = only_a + only_b, min(only_a, only_b)
    by_hand = min(1.0, 2 * sum(comb(m, k) for k in range(least + 1)) / 2**m)
    assert mcnemar(only_a, only_b) == pytest.approx(by_hand, rel=1e-12)


def test_mcnemar_without_discordant_pairs_says_nothing():
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand_keeps_order_and_leaves_out_what_was_not_tested():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, float("nan"), 0.01]) == pytest.approx([0.04, float("nan"), 0.02], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_detectable_gap_at_seventy_percent_of_300_items():
    assert 100 * detectable_gap(0.7, 300) == pytest.approx(10.5, abs=0.05)


@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_the_p_value_of_a_difference_is_under_5_percent_where_its_interval_leaves_0_out(seeds: int):
    rng, agree, borderline = _rng(20), 0, 0
    for shift in np.linspace(-0.15, 0.15, 25):
        a, b = rng.random((seeds, 120)) < 0.6 + shift, rng.random((seeds, 120)) < 0.6
        estimate = bootstrap(a, b, rng, resamples=1000)
        assert 2 / 1001 <= estimate.p <= 1 and estimate.scaled(100).p == estimate.p
        borderline += 0.045 < estimate.p < 0.055
        agree += (estimate.p < 0.05) == (not estimate.low <= 0 <= estimate.high)
    assert agree + borderline >= 25
    assert np.isnan(bootstrap(a, None, rng).p) and bootstrap(a, a, rng).p == 1.0


def test_alike_methods_whose_seeds_differ_are_rarely_told_apart():
    """A sign test over items, taken as exact before, told them apart in 38 % of such worlds: it took the seeds for fixed."""
    rng, found, worlds = _rng(21), 0, 200
    for _ in range(worlds):
        item = 1.5 * rng.normal(size=(1, 150))
        a, b = (rng.random((3, 150)) < 1 / (1 + np.exp(-(0.8 + 0.4 * rng.normal(size=(3, 1)) + item))) for _ in range(2))
        found += bootstrap(a, b, rng, resamples=400).p < 0.05
    assert found / worlds <= 0.10


def test_one_seed_of_one_method_has_the_wilson_interval():
    answers = np.r_[np.ones(210), np.zeros(90)]
    estimate = bootstrap(answers, None, _rng())
    assert (estimate.low, estimate.high) == wilson(210, 300)
    assert (estimate.value, estimate.seeds, estimate.items) == (0.7, 1, 300)


def test_bootstrap_of_many_items_is_the_normal_interval_of_paired_differences():
    rng = _rng(1)
    a, b = (rng.random((2, 1, 2_000)) < [[[0.7]], [[0.6]]]).astype(float)
    estimate = bootstrap(a, b, _rng(2))
    half = 1.959964 * (a - b).std(ddof=1) / np.sqrt(a.size)
    assert estimate.value == pytest.approx((a - b).mean(), abs=1e-12)
    # Quantiles of 4,000 resamples wander by about 2.5 % of the half-width (density of the normal at 1.96).
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.08 * half)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.08 * half)


def test_bootstrap_of_many_unlike_seeds_is_the_t_interval_over_seeds():
    # With answers that depend on the seed alone, items add nothing, and the interval is that of 40 numbers.
    per_seed = np.repeat([0.0, 1.0, 1.0, 1.0], 10)
    matrix = np.repeat(per_seed[:, None], 500, axis=1)
    estimate, by_t = bootstrap(matrix, None, _rng(3)), mean_over_seeds(per_seed)
    # Skewed by so few distinct values, hence looser than the normal case.
    assert estimate.high - estimate.low == pytest.approx(by_t.high - by_t.low, rel=0.1)


def test_pairing_makes_the_interval_narrower_where_items_are_hard_for_both():
    rng = _rng(4)
    hard = rng.random(300)
    a, b = ((hard + 0.1 * rng.normal(size=(3, 300)) < rate).astype(float) for rate in (0.75, 0.7))
    paired = bootstrap(a, b, _rng(5))
    shuffled = bootstrap(a, b[:, rng.permutation(300)], _rng(5))
    assert paired.high - paired.low < 0.7 * (shuffled.high - shuffled.low)


def test_items_are_resampled_even_if_every_seed_agrees():
    row = np.r_[np.ones(210), np.zeros(90)]
    estimate = bootstrap(np.stack([row] * 10), None, _rng(6))
    low, high = wilson(210, 300)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.01)


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_discordant_item_is_not_proof_of_no_difference(seeds: int):
    same = np.tile(np.r_[np.ones(100), np.zeros(200)], (seeds, 1))
    estimate = bootstrap(same, same, _rng(7))
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((-0.01264, 0.0, 0.01264), abs=1e-4)
    assert bootstrap(np.ones((3, 100)), None, _rng(8)).low == pytest.approx(wilson(100, 100)[0])
    assert bootstrap(np.ones((3, 100)), None, _rng(8)).high == 1.0


def test_unequal_numbers_of_seeds_are_resampled_apart():
    rng = _rng(9)
    estimate = bootstrap(rng.random((5, 50)) < 0.8, rng.random((1, 50)) < 0.4, _rng(10))
    assert estimate.seeds == 5 and estimate.low < estimate.value < estimate.high


def test_two_methods_must_have_answered_the_same_items():
    with pytest.raises(ValueError, match="same items"):
        bootstrap(np.ones((1, 3)), np.ones((1, 4)), _rng())


def test_no_items_give_no_number():
    assert np.isnan(bootstrap(np.ones((2, 0)), None, _rng()).value)


def test_the_generator_decides_and_nothing_else():
    matrix = (_rng(11).random((3, 80)) < 0.5).astype(float)
    before = np.random.get_state()[1].copy()
    assert bootstrap(matrix, None, _rng(12)) == bootstrap(matrix, None, _rng(12))
    assert bootstrap(matrix, None, _rng(12)) != bootstrap(matrix, None, _rng(13))
    assert (np.random.get_state()[1] == before).all()


def test_ten_seeds_of_300_items_take_well_under_a_second():
    rng = _rng(14)
    a, b = rng.random((10, 300)) < 0.7, rng.random((10, 300)) < 0.6
    start = time.process_time()  # not the clock on the wall: other work on the machine is no fault of the bootstrap
    bootstrap(a, b, rng)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.0), (3, 0.5), (5, 0.5), (10, 0.5)])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds: int, seed_sd: float):
    # Answers from a logistic model with a seed effect, an item effect and chance; the truth is the mean over both effects.
    grid = _rng(15).normal(size=(2, 1500))
    rate = lambda seed, item: 1 / (1 + np.exp(-(0.8 + seed_sd * seed + 1.5 * item)))  # noqa: E731 - one formula, used twice
    truth = rate(grid[0][:, None], grid[1][None]).mean()
    rng, hits, worlds = _rng(16), 0, 200
    for _ in range(worlds):
        chance = rate(rng.normal(size=(seeds, 1)), rng.normal(size=(1, 150)))
        estimate = bootstrap(rng.random(chance.shape) < chance, None, rng, resamples=400)
        hits += estimate.low <= truth <= estimate.high
    # 200 worlds at 95 % have a standard error of 1.5 points, so 90 % is more than three below. One seed's interval speaks of
    # that seed, which is all there is when seed_sd is 0. Over-coverage is expected: both resamplings carry the chance part.
    assert hits / worlds >= 0.90


def test_paired_differences_cover_zero_where_the_methods_are_alike():
    rng, hits, worlds = _rng(17), 0, 200
    for _ in range(worlds):
        item = 1.5 * rng.normal(size=(1, 150))
        a, b = (rng.random((3, 150)) < 1 / (1 + np.exp(-(0.8 + 0.4 * rng.normal(size=(3, 1)) + item))) for _ in range(2))
        estimate = bootstrap(a, b, rng, resamples=400)
        hits += estimate.low <= 0 <= estimate.high
    assert hits / worlds >= 0.90


def test_mean_over_seeds_is_the_t_interval():
    estimate = mean_over_seeds([0.40, 0.42, 0.44])
    # t(2) = 4.3027, sd 0.02, 3 seeds.
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.42, 0.42 - 0.04968, 0.42 + 0.04968), abs=1e-5)
    assert np.isnan(mean_over_seeds([0.4]).low) and mean_over_seeds([0.4]).value == 0.4
    assert np.isnan(mean_over_seeds([]).value)


def test_seed_spread_keeps_seeds_and_items_apart():
    tables = synthetic_tables.headline(seeds=4)
    spread = seed_spread(tables).set_index(["task", "method"])
    runs = tables["runs"]
    mine = runs[(runs["task"] == "word_problems") & (runs["method"] == "grpo")]["accuracy"]
    row = spread.loc[("word_problems", "grpo")]
    assert (row["seeds"], row["items"]) == (4, 300)
    assert row["seed_sd"] == pytest.approx(mine.std(ddof=1))
    items = tables["items"][tables["items"]["run_id"].isin(runs["run_id"][mine.index])].groupby("item_id")["correct"].mean()
    half = stats.t.ppf(0.975, 299) * items.std(ddof=1) / np.sqrt(300)
    assert (row["items_low"], row["items_high"]) == pytest.approx((items.mean() - half, items.mean() + half))
    base = spread.loc[("word_problems", "base")]
    assert (base["items_low"], base["items_high"]) == wilson(round(base["mean"] * 300), 300)
    assert np.isnan(spread.loc[("word_problems", "base"), "seed_sd"])
    assert seed_spread({}).empty


def test_paired_tests_count_discordant_items_seed_by_seed():
    tables = synthetic_tables.headline(seeds=2, items=60)
    tests = paired_tests(tables)
    assert len(tests) == 2 * 6 * 2  # tasks, pairs of methods, seeds (the one base run is paired with each)
    row = tests[(tests["task"] == "word_problems") & (tests["a"] == "base") & (tests["b"] == "grpo") & (tests["seed"] == 1)].iloc[0]
    wide = tables["items"].pivot(index="item_id", columns="run_id", values="correct")
    base = wide[synthetic_tables.run_id("nano", "word_problems", "base", 0)].dropna()
    grpo = wide[synthetic_tables.run_id("nano", "word_problems", "grpo", 1)].dropna()
    assert (row["only_a"], row["only_b"]) == (((base == 1) & (grpo == 0)).sum(), ((base == 0) & (grpo == 1)).sum())
    assert (tests["p_holm"] >= tests["p"]).all()


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five():
    few, many = (detectable_differences(synthetic_tables.headline(seeds=n)).set_index(["task", "method"]) for n in (3, 10))
    assert list(few.index) == [(t, m) for t in ("multiplication", "word_problems") for m in ("s_grpo", "t_spmo")]
    half = (few["high"] - few["low"]) / 2
    # A normal estimate with the true value at `detectable` has an interval of this half-width wholly above 0 in 80 %.
    z = _rng(18).normal(size=20_000)
    for name, row in few.iterrows():
        found = row["detectable"] + z * half[name] / 1.959964 - half[name] > 0
        assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert (many["detectable"] < few["detectable"]).all(), "more seeds show smaller differences"
    assert set(few["seeds"]) == {3} and set(few["items"]) == {300}
    assert detectable_differences({}).empty


def test_the_best_rate_is_judged_on_the_seeds_that_all_rates_share():
    def runs(*points: tuple[float, int, float]) -> pd.DataFrame:
        return pd.DataFrame(points, columns=["learning_rate", "seed", "validation_accuracy"])

    nan = float("nan")
    assert best_rate(runs((1e-3, 0, 0.8), (3e-3, 0, 0.7), (3e-3, 1, 0.99))) == 1e-3
    assert best_rate(runs((1e-3, 0, 0.8), (3e-3, 0, 0.7), (1e-3, 1, 0.5), (3e-3, 1, 0.9))) == 3e-3
    assert best_rate(runs((3e-3, 0, 0.8), (1e-3, 0, 0.8))) == 1e-3, "the lower of equals"
    assert best_rate(runs((1e-3, 0, nan), (3e-3, 0, 0.1))) == 3e-3, "without a number a rate cannot be chosen"
    assert best_rate(runs((1e-3, 0, nan), (3e-3, 0, nan))) == 1e-3
    assert best_rate(runs((1e-3, 0, 0.6), (3e-3, 1, 0.7))) == 3e-3, "no common seed: all count"


def _verdict_rows(**rows: tuple[float, float, float]) -> pd.DataFrame:
    frame = pd.DataFrame([(claim, *numbers, "supported") for claim, numbers in rows.items()])
    return frame.set_axis(["claim", "value", "low", "high", "verdict"], axis=1)


def test_compare_tables_by_overlap():
    nan = float("nan")
    committed = _verdict_rows(A=(70, 65, 75), B=(70, 65, 75), C=(70, 65, 75), D=(30, nan, nan), E=(30, nan, nan), F=(1, 0, 2))
    mine = _verdict_rows(A=(60, 55, 66), B=(50, 45, 64), C=(74, nan, nan), D=(31, nan, nan), E=(39, nan, nan), G=(1, 0, 2))
    result = compare_tables({"verdicts": mine}, committed).set_index("claim")["agreement"]
    assert result.to_dict() == {
        "A": "agree", "B": "disagree", "C": "agree", "D": "agree", "E": "disagree", "F": "missing", "G": "not compared",
    }  # fmt: skip
    assert compare_tables({}, {}).empty


def test_compare_tables_names_what_is_wrong_with_a_file():
    good = _verdict_rows(A=(1, 0, 2))
    with pytest.raises(UserError, match="your verdicts.csv has no column high"):
        compare_tables(good.drop(columns="high"), good)
    with pytest.raises(UserError, match="claim A twice"):
        compare_tables(good, pd.concat([good, good]))

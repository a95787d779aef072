"""Intervals and exact tests against numbers worked out elsewhere, and the bootstrap against the worlds it claims to cover."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from replication.randomness import numpy_stream
from replication.statistics import (
    bootstrap,
    design_effect,
    holm,
    mean_over_items,
    mean_over_seeds,
    wilson,
)  # fmt: skip


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


def test_holm_by_hand_keeps_order_and_leaves_out_what_was_not_tested():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, float("nan"), 0.01]) == pytest.approx([0.04, float("nan"), 0.02], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


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


def test_a_policy_without_seeds_stands_beside_every_seed_of_the_other():
    rng = _rng(9)
    estimate = bootstrap(rng.random((5, 50)) < 0.8, rng.random((1, 50)) < 0.4, _rng(10))
    assert estimate.seeds == 5 and estimate.low < estimate.value < estimate.high


def test_two_methods_must_have_answered_the_same_items_under_the_same_seeds():
    with pytest.raises(ValueError, match="same items"):
        bootstrap(np.ones((1, 3)), np.ones((1, 4)), _rng())
    with pytest.raises(ValueError, match="same seeds"):
        bootstrap(np.ones((2, 3)), np.ones((3, 3)), _rng())


def test_no_items_give_no_number():
    assert np.isnan(bootstrap(np.ones((2, 0)), None, _rng()).value)


def test_the_generator_decides_and_nothing_else():
    matrix = (_rng(11).random((3, 80)) < 0.5).astype(float)
    before = np.random.get_state()[1].copy()
    # As texts, since NaN equals nothing: from Python 3.13 on, dataclasses are compared field by field.
    assert repr(bootstrap(matrix, None, _rng(12))) == repr(bootstrap(matrix, None, _rng(12)))
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


# Templates ---------------------------------------------------------------------------------------------------------------


def _by_hand(values: np.ndarray, templates: list[str]) -> tuple[float, float, float]:
    """V_T, V_I and s² / N of the docstrings, in loops."""
    n, mean = len(values), sum(values) / len(values)
    names = sorted(set(templates))
    total = within = 0.0
    for name in names:
        own = [value for value, template in zip(values, templates, strict=True) if template == name]
        total += (sum(own) - len(own) * mean) ** 2
        if len(own) > 1:
            within += len(own) / (len(own) - 1) * sum((value - sum(own) / len(own)) ** 2 for value in own)
    plain = sum((value - mean) ** 2 for value in values) / (n - 1) / n
    return len(names) / (len(names) - 1) * total / n**2, within / n**2, plain


@pytest.mark.parametrize("sizes", [[4] * 6, [1, 2, 3, 9, 1, 5], [1] * 8 + [2]])
def test_the_variance_over_templates_and_items_is_that_of_the_formulas(sizes: list[int]):
    rng = _rng(30)
    templates = [f"t{t}" for t, size in enumerate(sizes) for _ in range(size)]
    values = rng.random(len(templates)) + np.repeat(rng.normal(size=len(sizes)), sizes)
    by_templates, by_items, plain = _by_hand(values, templates)
    larger = max(by_templates, by_items)
    assert design_effect(values, templates) == pytest.approx(larger / plain, rel=1e-12)
    parts = [(max(by_templates - by_items, 0), len(sizes) - 1), (by_items, len(values) - len(sizes))]
    df = larger**2 / sum(v**2 / f for v, f in parts)
    found = mean_over_items(values, templates)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, df) * np.sqrt(larger), rel=1e-12)
    # The resamples of one policy have that variance; 4,000 of them know it to about 3 % (its own standard error).
    estimate = bootstrap(0.2 + 0.1 * values, np.zeros((1, len(values))), _rng(31), templates=templates)
    half = 0.1 * stats.t.ppf(0.975, df) * np.sqrt(larger)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.25), "skewed by few templates, hence looser"
    assert estimate.design_effect == pytest.approx(larger / plain, rel=1e-12)


def test_many_templates_of_alike_items_give_the_t_interval_of_their_means():
    means = _rng(32).random(200)
    values, templates = np.repeat(means, 5), np.repeat(np.arange(200), 5)
    by_t = mean_over_seeds(means)
    found = mean_over_items(values, templates)
    assert (found.low, found.high) == pytest.approx((by_t.low, by_t.high), rel=1e-12)
    estimate = bootstrap(values, np.zeros((1, 1000)), _rng(33), templates=templates)
    assert (estimate.low, estimate.high) == pytest.approx((by_t.low, by_t.high), abs=0.08 * (by_t.high - by_t.low) / 2)
    assert design_effect(values, templates) == pytest.approx(5, rel=0.01), "1 + (5 - 1) · 1"


@pytest.mark.parametrize("templates", [None, ["same"] * 60])
def test_without_templates_the_items_are_resampled_alone(templates):
    matrix = (_rng(34).random((3, 60)) < 0.6).astype(float)
    assert repr(bootstrap(matrix, None, _rng(35), templates=templates)) == repr(bootstrap(matrix, None, _rng(35)))
    assert np.isnan(bootstrap(matrix, None, _rng(35), templates=templates).design_effect)
    assert mean_over_items(matrix[0], templates).high == pytest.approx(mean_over_seeds(matrix[0]).high, rel=1e-12)


def test_a_template_for_each_item_is_no_template():
    matrix = (_rng(36).random((3, 200)) < 0.6).astype(float)
    apart, plain = bootstrap(matrix, None, _rng(37), templates=range(200)), bootstrap(matrix, None, _rng(37))
    assert apart.design_effect == pytest.approx(1.0, rel=1e-12)
    assert apart.high - apart.low == pytest.approx(plain.high - plain.low, rel=0.06)


def test_templates_that_agree_all_over_count_as_so_many_items():
    """300 items right in every run were taken as 300 questions, though they were 23."""
    templates = np.repeat(np.arange(20), 10)
    assert bootstrap(np.ones((3, 200)), None, _rng(38), templates=templates).low == pytest.approx(wilson(20, 20)[0])
    same = bootstrap(np.ones((3, 200)), np.ones((3, 200)), _rng(38), templates=templates)
    assert same.high == pytest.approx(wilson(0, 20)[1]) and same.equal_within == same.high


def _world(rng: np.random.Generator, seeds: int, templates: int, of_each: int, icc: float, seed_sd: float = 0.3) -> np.ndarray:
    """Answers, seeds × items, with a template, a seed and a chance part; a share ``icc`` is the template's. The mean is 0.5."""
    spread = np.sqrt(icc / (1 - icc)) if icc else 0.0
    of_template = spread * rng.normal(size=(1, templates)).repeat(of_each, axis=1)
    noise = rng.normal(size=(seeds, templates * of_each))
    return (of_template + noise + seed_sd * rng.normal(size=(seeds, 1)) < 0).astype(float)


@pytest.mark.parametrize(("templates", "of_each", "icc"), [(25, 12, 0.7), (25, 12, 0.2), (100, 3, 0.7), (60, 4, 0.0)])
def test_intervals_cover_the_truth_where_the_items_of_a_template_agree(templates: int, of_each: int, icc: float):
    """With outcomes that agree within a template the seed × item interval was up to twice too narrow."""
    rng, worlds = _rng(39), 200
    names = np.repeat(np.arange(templates), of_each)
    hits, plain, width, plain_width = 0, 0, 0.0, 0.0
    for _ in range(worlds):
        answers = _world(rng, 3, templates, of_each, icc)
        estimate = bootstrap(answers, None, rng, templates=names, resamples=400)
        naive = bootstrap(answers, None, rng, resamples=400)
        hits += estimate.low <= 0.5 <= estimate.high
        plain += naive.low <= 0.5 <= naive.high
        width, plain_width = width + estimate.high - estimate.low, plain_width + naive.high - naive.low
    assert hits / worlds >= 0.90, "200 worlds at 95 %: 90 % is three standard errors below"
    if icc == 0.7 and of_each == 12:
        assert plain / worlds < 0.85
    if icc == 0.0:
        assert width / plain_width == pytest.approx(1.0, abs=0.05), "what templates do not share costs no width"


def test_alike_methods_that_part_by_template_are_rarely_told_apart():
    """One method right where the other is wrong, a whole template at a time: items alone told them apart in most worlds."""
    rng, found, plain, worlds = _rng(40), 0, 0, 50
    names = np.repeat(np.arange(25), 12)
    for _ in range(worlds):
        a, b = (_world(rng, 10, 25, 12, 0.7, seed_sd=0.1) for _ in range(2))
        found += bootstrap(a, b, rng, templates=names, resamples=400).p < 0.05
        plain += bootstrap(a, b, rng, resamples=400).p < 0.05
    assert found / worlds <= 0.10 < 0.3 < plain / worlds


def test_the_design_effect_is_that_of_the_intraclass_correlation():
    """1 + (m − 1) · ICC (Kish 1965), with the ICC that a one-way analysis of variance estimates."""
    templates, values = np.repeat(np.arange(80), 6), _world(_rng(41), 1, 80, 6, 0.5)[0]
    means = values.reshape(80, 6).mean(axis=1)
    between, within = 6 * means.var(ddof=1), values.reshape(80, 6).var(axis=1, ddof=1).mean()
    icc = (between - within) / (between + 5 * within)
    assert design_effect(values, templates) == pytest.approx(1 + 5 * icc, rel=0.02), "exact as the templates grow in number"
    assert np.isnan(design_effect(np.ones(6), templates[:6]))


def test_the_order_of_items_and_the_names_of_templates_do_not_matter():
    rng = _rng(42)
    answers, names = _world(rng, 3, 30, 5, 0.5), np.repeat(np.arange(30), 5)
    order = rng.permutation(150)
    one = bootstrap(answers, None, _rng(43), templates=[f"x{name}" for name in names])
    other = bootstrap(answers[:, order], None, _rng(43), templates=names[order])
    assert one.design_effect == pytest.approx(other.design_effect, rel=1e-12) and one.value == pytest.approx(other.value)
    assert one.low == pytest.approx(other.low, abs=0.01) and one.high == pytest.approx(other.high, abs=0.01)


def test_equal_within_is_the_far_end_of_the_interval():
    estimate = bootstrap(np.tile(np.r_[np.ones(80), np.zeros(20)], (3, 1)), np.full((1, 100), 0.75), _rng(44))
    assert estimate.equal_within == max(-estimate.low, estimate.high)
    assert estimate.scaled(100).equal_within == pytest.approx(100 * estimate.equal_within, rel=1e-12)


def test_the_smallest_p_value_follows_from_the_number_of_resamples():
    a, b = np.ones((3, 50)), (_rng(45).random((3, 50)) < 0.2).astype(float)
    p = bootstrap(a, b, _rng(46)).p
    assert p == 2 / 4001

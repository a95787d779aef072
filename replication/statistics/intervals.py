"""Intervals and exact tests on arrays: no tables, no claims, no files.

Greedy answers form a matrix, seeds × test items, of 0 and 1. Both axes are samples: another seed trains another policy, and
another test set asks other questions. The seed × item bootstrap resamples both; methods answer the same items, and mostly
run under the same seeds, so a difference between two methods is taken pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A point value and its 95 % interval; ``low`` and ``high`` are NaN where nothing was sampled to make one from.

    ``p``: two-sided p-value of no difference at all, for a difference (see ``bootstrap``); NaN for anything else.
    """

    value: float
    low: float
    high: float
    seeds: int
    items: int
    p: float = float("nan")

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit, for example 100 for percent."""
        return replace(self, value=self.value * factor, low=self.low * factor, high=self.high * factor)


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); n = 0 gives (NaN, NaN), since nothing was observed."""
    if n == 0:
        return float("nan"), float("nan")
    interval = stats.binomtest(int(correct), int(n)).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: p-value of the discordant pairs under a fair coin.

    p = P(|X − m/2| ≥ |only_a − m/2|), X binomial(m, 1/2), m = only_a + only_b. No discordant pair gives 1.
    """
    discordant = only_a + only_b
    return float(stats.binomtest(int(only_a), int(discordant), 0.5).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979), in the order given; NaN stays NaN and does not count in the family.

    Sorted p(1) ≤ … ≤ p(m): adjusted p(j) = max over i ≤ j of min(1, (m − i + 1) · p(i)).
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    present = np.flatnonzero(~np.isnan(p))
    order = present[np.argsort(p[present], kind="stable")]
    steps = (len(order) - np.arange(len(order))) * p[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def detectable_gap(rate: float, n: int, power: float = 0.8, level: float = LEVEL) -> float:
    """Smallest difference of two unpaired proportions near ``rate``, n items each, that a test finds with this power.

    (z(level) + z(power)) · sqrt(2 · rate · (1 − rate) / n), the normal approximation; 10.5 points at 70 % and n = 300.
    """
    z = stats.norm.ppf(0.5 + level / 2) + stats.norm.ppf(power)
    return float(z * np.sqrt(2 * rate * (1 - rate) / n))


def bootstrap(
    a: ArrayLike, b: ArrayLike | None, rng: np.random.Generator, *, paired_seeds: bool = True, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of ``a``, or of ``a`` minus ``b``, with a 95 % seed × item bootstrap interval.

    ``a``, ``b``: seeds × items, 0 or 1; column i is the same item in both, and with ``paired_seeds`` (and equally many rows)
    row s is the same seed. Items are always resampled jointly, seeds jointly if paired, otherwise on their own. One row
    means that seeds are not resampled at all and the interval speaks for that one seed (or for a method without chance).

    Plain percentile bootstraps are too narrow for few seeds (3 seeds that really differ: 80 % coverage instead of 95 %), so
    deviations of the seed weights are multiplied by sqrt(S / (S − 1)), which makes the variance unbiased, and the quantiles
    are stretched around the point by t(df) / z with Satterthwaite's degrees of freedom from the two variance components.
    One seed of one method has Wilson's interval, which needs no resampling. Where every resample agrees (all right, all
    wrong, no discordant item) the interval is Wilson's at that count too, since n equal answers do not prove that the next
    one is equal. Clipped to what is possible: [0, 1] or [−1, 1].

    The p-value of a difference is that of the same stretched resamples: twice the share of them on the other side of 0, each
    side with one more (so never under 2 / (resamples + 1)). It is under 0.05 where the interval leaves 0 out.
    """
    a = np.atleast_2d(np.asarray(a, dtype=np.float64))
    parts = [(a, 1.0)]
    if b is not None:
        b = np.atleast_2d(np.asarray(b, dtype=np.float64))
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"a has {a.shape[1]} items and b {b.shape[1]}: give both methods the same items")
        paired = paired_seeds and a.shape[0] == b.shape[0]
        parts = [(a - b, 1.0)] if paired else [(a, 1.0), (b, -1.0)]
    items = a.shape[1]
    seeds = max(matrix.shape[0] for matrix, _ in parts)
    if items == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), seeds, 0)

    if b is None and seeds == 1:
        return Estimate(float(a.mean()), *wilson(round(a.sum()), items), 1, items)

    weight_items = _counts(rng, resamples, items) / items
    draws = np.zeros(resamples)
    item_means = np.zeros(items)
    components: list[tuple[float, int]] = []
    for matrix, sign in parts:
        rows = matrix.shape[0]
        weight_seeds = np.full((resamples, rows), 1 / rows)
        if rows > 1:
            weight_seeds += np.sqrt(rows / (rows - 1)) * (_counts(rng, resamples, rows) - 1) / rows
            components.append((float(matrix.mean(axis=1).var(ddof=1)) / rows, rows - 1))
        draws += sign * np.einsum("bs,si,bi->b", weight_seeds, matrix, weight_items, optimize=True)
        item_means += sign * matrix.mean(axis=0)
    value = float(item_means.mean())
    if np.ptp(draws) < 1e-12:
        low, high = _no_spread(value, items, difference=b is not None)
        p = 1.0
    else:
        if items > 1:
            components.append((float(item_means.var(ddof=1)) / items, items - 1))
        stretched = value + _stretch(components) * (draws - value)
        low, high = np.quantile(stretched, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
        beyond = min(np.sum(stretched <= 0), np.sum(stretched >= 0))
        p = min(1.0, 2 * (int(beyond) + 1) / (resamples + 1))
    if b is None:
        return Estimate(value, max(float(low), 0.0), min(float(high), 1.0), seeds, items)
    return Estimate(value, max(float(low), -1.0), min(float(high), 1.0), seeds, items, p)


def mean_over_seeds(values: ArrayLike) -> Estimate:
    """Mean of one number per seed with its t interval: for what is not counted item by item (kept fraction, KL to base).

    mean ± t(S − 1) · sd / sqrt(S). One seed has no interval: ``low`` and ``high`` are NaN. NaN values must be left out before.
    """
    values = np.asarray(values, dtype=np.float64)
    nan = float("nan")
    if len(values) < 2:
        return Estimate(float(values[0]) if len(values) else nan, nan, nan, len(values), 0)
    half = stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = values.mean()
    return Estimate(float(mean), float(mean - half), float(mean + half), len(values), 0)


def _counts(rng: np.random.Generator, resamples: int, n: int) -> np.ndarray:
    """How often each of n was drawn in n draws with replacement, a row per resample; several times faster than a multinomial."""
    draws = rng.integers(0, n, size=(resamples, n))
    draws += n * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * n).reshape(resamples, n)


def _stretch(components: Sequence[tuple[float, int]]) -> float:
    """t(df) / z, Satterthwaite's df = (sum v)² / sum(v² / f) for variance components v with f degrees of freedom each."""
    total = sum(v for v, _ in components)
    if total <= 0:
        return 1.0
    df = total**2 / sum(v**2 / f for v, f in components)
    return float(stats.t.ppf(0.5 + LEVEL / 2, df) / stats.norm.ppf(0.5 + LEVEL / 2))


def _no_spread(value: float, items: int, difference: bool) -> tuple[float, float]:
    """Interval where every resample gave the same number: Wilson at 0 or n of n, or at no discordant item of n."""
    if not difference and value in (0.0, 1.0):
        return wilson(round(value * items), items)
    margin = wilson(0, items)[1]
    return value - margin, value + margin

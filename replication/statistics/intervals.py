"""Intervals and exact tests on arrays: no tables, no claims, no files.

Greedy answers form a matrix, seeds × test items, of 0 and 1. Both axes are samples: another seed trains another policy, and
another test set asks other questions. Questions of one template are answered alike, so the templates are sampled, and the items
within them. The bootstrap resamples seeds, then templates, then items within a template. Two methods answer the same items under
the same seeds, so a difference is taken pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95
#: How often a detectable difference is to be found.
POWER = 0.8
RESAMPLES = 4000
#: The smallest p-value that so many resamples can give.
P_FLOOR = 2 / (RESAMPLES + 1)


@dataclass(frozen=True)
class Estimate:
    """A point value and its 95 % interval; ``low`` and ``high`` are NaN where nothing was sampled to make one from.

    Attributes:
        p: two-sided p-value of no difference at all, for a difference (see ``bootstrap``); NaN for anything else.
        design_effect: see ``design_effect``; NaN where templates are not known.
    """

    value: float
    low: float
    high: float
    seeds: int
    items: int
    p: float = np.nan
    design_effect: float = np.nan

    @property
    def equal_within(self) -> float:
        """The smallest d for which the whole interval of a difference lies within ±d: two methods are equal within d.

        Two one-sided tests at 2.5 % each (Schuirmann 1987). NaN without an interval.
        """
        return max(abs(self.low), abs(self.high))

    def columns(self, name: str) -> dict[str, float]:
        """Value and interval as three columns of a table: ``name``, ``name_low``, ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit, for example 100 for percent."""
        return replace(self, value=self.value * factor, low=self.low * factor, high=self.high * factor)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); n = 0 gives (NaN, NaN), since nothing was observed."""
    if n == 0:
        return np.nan, np.nan
    interval = stats.binomtest(int(correct), int(n)).proportion_ci(confidence_level=LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


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


def bootstrap(
    a: ArrayLike,
    b: ArrayLike | None,
    rng: np.random.Generator,
    *,
    templates: Sequence[Any] | None = None,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of ``a``, or of ``a`` minus ``b``, with a 95 % bootstrap interval over seeds, templates and items within a template.

    value* = value + Σ_s Σ_i u_s w_i (x_si − value), with u_s and w_i from how often each seed, template and item was drawn with
    replacement. Plain counts give too narrow an interval for few seeds or templates, and count the noise within a template twice,
    since the mean of a resampled template holds that of its items (Davison and Hinkley 1997, section 3.8). So the deviations of
    the counts from 1 are scaled until the variance of each level is its unbiased estimate (our choice): seeds by sqrt(S / (S − 1)),
    items within a template of n by sqrt(n / (n − 1)), templates by what makes the variance over items and templates the greater of
    the two in ``_over_items``. The quantiles are stretched around the value by t(df) / z, with Satterthwaite's df of the variances.

    Where every resample agrees (all right, all wrong, no discordant item) the interval is Wilson's at that count of templates (of
    items, where templates are not known): n equal answers do not prove that the next is equal. One seed of one method without
    templates has Wilson's interval too. Clipped to what is possible: [0, 1] or [−1, 1].

    The p-value of a difference is that of the same stretched resamples: twice the share of them on the other side of 0, each
    side with one more, so never under 2 / (resamples + 1). It is under 0.05 where the interval leaves 0 out.

    Args:
        a, b: seeds × items, 0 or 1, computed in float64. Column i is the same item in both and row s the same seed; a single row
            stands beside every row of the other. One row: seeds are not resampled, the interval speaks for that policy alone.
        rng: every draw comes from it.
        templates: of each item. None, or one for all: items count as independent.

    Raises:
        ValueError: a and b differ in items, or in seeds where both have several.
    """
    answers = np.atleast_2d(np.asarray(a, dtype=np.float64))
    if b is not None:
        other = np.atleast_2d(np.asarray(b, dtype=np.float64))
        if answers.shape[1] != other.shape[1]:
            raise ValueError(f"a has {answers.shape[1]} items and b {other.shape[1]}: give both methods the same items")
        if 1 not in (len(answers), len(other)) and len(answers) != len(other):
            raise ValueError(f"a has {len(answers)} seeds and b {len(other)}: give both methods the same seeds")
        answers = answers - other
    seeds, items = answers.shape
    if items == 0:
        return Estimate(np.nan, np.nan, np.nan, seeds, 0)
    groups = _groups(templates, items)
    known = bool(groups.max() > 0)
    effect = design_effect(answers.mean(axis=0), groups) if known else np.nan
    value = float(answers.mean())
    if b is None and seeds == 1 and not known:
        return Estimate(value, *wilson(round(answers.sum()), items), 1, items)

    components = _over_items(answers.mean(axis=0), groups)
    weight_items = _item_weights(rng, resamples, groups, components)
    weight_seeds = np.full((resamples, seeds), 1 / seeds)
    if seeds > 1:
        weight_seeds += np.sqrt(seeds / (seeds - 1)) * (_counts(rng, resamples, np.array([seeds])) - 1) / seeds
        components = [(float(answers.mean(axis=1).var(ddof=1)) / seeds, seeds - 1), *components]
    draws = value + np.einsum("bs,si,bi->b", weight_seeds, answers - value, weight_items, optimize=True)
    if np.ptp(draws) < 1e-12:
        low, high = _no_spread(value, int(groups.max()) + 1 if known else items, difference=b is not None)
        p = 1.0
    else:
        stretched = value + _t(components) / stats.norm.ppf(0.5 + LEVEL / 2) * (draws - value)
        low, high = np.quantile(stretched, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
        beyond = min(np.sum(stretched <= 0), np.sum(stretched >= 0))
        p = min(1.0, 2 * (int(beyond) + 1) / (resamples + 1))
    least = 0.0 if b is None else -1.0
    p = p if b is not None else np.nan
    return Estimate(value, max(float(low), least), min(float(high), 1.0), seeds, items, p, effect)


def design_effect(values: ArrayLike, templates: Sequence[Any]) -> float:
    """How many times larger the variance of a mean over items is because items come in templates; items / this are independent.

    The greater of the two variances in ``_over_items``, divided by s² / n, that of n independent items. About 1 + (m − 1) · ICC
    for templates of m items each (Kish 1965). NaN where all values are equal or there is one item.

    Args:
        values: one number per item, for example its mean over seeds.
        templates: of each item.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return np.nan
    return sum(v for v, _ in _over_items(values, _groups(templates, len(values)))) / (float(values.var(ddof=1)) / len(values))


def mean_over_items(values: ArrayLike, templates: Sequence[Any] | None = None) -> Estimate:
    """Mean of one number per item with its t interval over templates and items (see ``_over_items``); seeds count as fixed.

    mean ± t(df) · sqrt(variance), df by Satterthwaite. Without variance ``low`` and ``high`` are NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    components = _over_items(values, _groups(templates, len(values)))
    half = float(_t(components) * np.sqrt(sum(v for v, _ in components))) or np.nan
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half, 1, len(values))


def mean_over_seeds(values: ArrayLike) -> Estimate:
    """Mean of one number per seed with its t interval: for what is not counted item by item (kept fraction, KL to base).

    mean ± t(S − 1) · sd / sqrt(S). One seed has no interval: ``low`` and ``high`` are NaN. NaN values must be left out before.
    """
    values = np.asarray(values, dtype=np.float64)
    nan = np.nan
    if len(values) < 2:
        return Estimate(float(values[0]) if len(values) else nan, nan, nan, len(values), 0)
    half = stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = values.mean()
    return Estimate(float(mean), float(mean - half), float(mean + half), len(values), 0)


def _groups(templates: Sequence[Any] | None, items: int) -> np.ndarray:
    """Templates numbered from 0 on, one number per item; all 0 where they are not known."""
    if templates is None:
        return np.zeros(items, dtype=np.int64)
    return np.unique(np.asarray(templates, dtype=str), return_inverse=True)[1]


def _over_items(values: np.ndarray, groups: np.ndarray) -> list[tuple[float, int]]:
    """Variance of the mean of one number per item, as components (variance, degrees of freedom): templates, items within them.

    Two unbiased estimates: V_T = T / (T − 1) · Σ_t (Σ_i x_ti − n_t x̄)² / N², which holds the noise within templates too, and
    V_I = Σ_t n_t / (n_t − 1) · Σ_i (x_ti − x̄_t)² / N², that noise alone. The components are max(V_T − V_I, 0) and V_I, so that
    templates which differ less than chance allows make no interval narrower. One template: s² / N alone.
    """
    sizes = np.bincount(groups)
    deviations = values - values.mean()
    sums = np.bincount(groups, deviations)
    squares = np.bincount(groups, (deviations - (sums / sizes)[groups]) ** 2)
    count, several = len(sizes), sizes > 1
    within = float((squares[several] * sizes[several] / (sizes[several] - 1)).sum()) / len(values) ** 2
    components = [(within, len(values) - count)] if several.any() else []
    if count > 1:
        total = float(count / (count - 1) * (sums**2).sum()) / len(values) ** 2
        components.insert(0, (max(total - within, 0.0), count - 1))
    return components


def _item_weights(
    rng: np.random.Generator, resamples: int, groups: np.ndarray, components: Sequence[tuple[float, int]]
) -> np.ndarray:
    """Resamples × items: what each item counts for, divided by the number of items, once templates and items were drawn."""
    sizes = np.bincount(groups)
    order = np.argsort(groups, kind="stable")
    weights = np.ones((resamples, len(groups)))
    if len(sizes) > 1:
        whole = sum(v for v, _ in components)
        scale = np.sqrt(len(sizes) / (len(sizes) - 1) * (components[0][0] / whole if whole else 0.0))
        weights += scale * (_counts(rng, resamples, np.array([len(sizes)])) - 1)[:, groups]
    several = sizes > 1
    if several.any():
        scale = np.sqrt(np.where(several, sizes / np.maximum(sizes - 1, 1), 0.0))
        weights[:, order] += scale[groups[order]] * (_counts(rng, resamples, sizes) - 1)
    return weights / len(groups)


def _counts(rng: np.random.Generator, resamples: int, sizes: np.ndarray) -> np.ndarray:
    """How often each of n was drawn in n draws with replacement, for each n of ``sizes`` apart, side by side: resamples × Σ n.

    Several times faster than a multinomial.
    """
    total, first = int(sizes.sum()), np.repeat(np.cumsum(sizes) - sizes, sizes)
    draws = first + (rng.random((resamples, total)) * np.repeat(sizes, sizes)).astype(np.int64)
    draws += total * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * total).reshape(resamples, total)


def _t(components: Sequence[tuple[float, int]]) -> float:
    """The t quantile with Satterthwaite's df = (sum v)² / sum(v² / f) for variances v with f degrees of freedom each."""
    total = sum(v for v, _ in components)
    df = total**2 / sum(v**2 / f for v, f in components) if total > 0 else np.inf
    return float(stats.t.ppf(0.5 + LEVEL / 2, df))


def _no_spread(value: float, n: int, difference: bool) -> tuple[float, float]:
    """Interval where every resample gave the same number: Wilson at 0 or n of n, or at nothing discordant of n."""
    if not difference and value in (0.0, 1.0):
        return wilson(round(value * n), n)
    margin = wilson(0, n)[1]
    return value - margin, value + margin

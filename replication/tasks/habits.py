"""Habits: how the chance of a careful solution hangs on surface features that have nothing to do with the problem.

They stand for the spurious habits of a real model, which solves one problem and not its twin under other names. The log-odds of a
feature's values are evenly spaced, in an order shuffled once for all, and those of several features add up: so a base that has
learned them is neither right nor wrong on a whole template.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from random import Random


def habit(feature: str, values: Iterable[object], spread: float) -> dict[object, float]:
    """Log-odds from -spread to spread for the values of a feature, evenly spaced, in an order that ``feature`` decides."""
    shuffled = list(values)
    Random(f"habit:{feature}").shuffle(shuffled)
    return {value: spread * (2 * place / (len(shuffled) - 1) - 1) for place, value in enumerate(shuffled)}


def chance(bias: float, habits: Mapping[str, Mapping[object, float]], features: Mapping[str, object]) -> float:
    """The chance of a careful solution: its log-odds are ``bias`` plus those of each feature."""
    log_odds = bias + sum(habits[name][features[name]] for name in habits)
    return 1 / (1 + math.exp(-log_odds))

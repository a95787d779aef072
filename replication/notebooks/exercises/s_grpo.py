"""The exercises of 02_s_grpo."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from replication.algorithms import SGRPO, TokenCredit
from replication.notebooks.exercises.check import Credits, exercise, is_far
from replication.notebooks.toy_group import TOY, keep_probabilities
from replication.randomness import stream


@exercise
def third_position(answer: float) -> str | None:
    """The chance that position 3 is kept under P = 0.5, cutoff 1, cap 2."""
    if is_far(answer, keep_probabilities(SGRPO(1, 0.5, 2), 4)[3], 0.0005):
        return "the cap leaves room for one random token: position 3 must take it, and none of the positions before it"
    return None


@exercise
def a_rule_of_forty_percent(answer: SGRPO) -> str | None:
    """A rule that keeps about 40 % of answers of 39 tokens, about half of the kept ones after the cutoff."""
    chance = keep_probabilities(answer, 39)
    share, after = chance.mean(), chance[answer.cutoff :].sum() / max(chance.sum(), 1e-9)
    if abs(share - 0.4) > 0.02:
        return f"it keeps {100 * share:.0f} %, not about 40 %"
    if abs(after - 0.5) > 0.06:
        return f"{100 * after:.0f} % of the tokens it keeps are after the cutoff, not about half"
    return None


@exercise
def who_loses(answer: Sequence[int]) -> str | None:
    """Which toy answers (1 to 4) lose influence under the denominator "completion", cutoff 2, P = 0.3, cap 4, draw 0."""
    sums = []
    for denominator in ("kept", "completion"):
        credit = SGRPO(2, 0.3, 4, denominator=denominator).assign(TOY.tokens, TOY.rewards, stream(0, "walkthrough", 0))
        sums.append(torch.zeros(4).index_add_(0, credit.completion, credit.weight))
    losing = {index + 1 for index in range(4) if sums[1][index] < sums[0][index] - 1e-6}
    if set(answer) != losing:
        return f"{len(losing)} of the four lose; sum the weights of each answer under both denominators"
    return None


@exercise
def same_direction(answer: SGRPO) -> str | None:
    """A rule that drops tokens, whose mean gradient over all draws points exactly along GRPO's."""
    if answer.keep_probability in (0.0, 1.0):
        return "this rule draws nothing: choose a keep probability between 0 and 1"
    if answer.max_kept_tokens is not None:
        return "an answer can be longer than the cap allows: its last tokens then have a smaller mean weight than its first ones"
    # The last length reaches past the cutoff: on shorter answers alone a rule with a high cutoff drops nothing.
    factors = np.concatenate([_mean_factors(answer, length) for length in (1, 2, 6, answer.cutoff + 40)])
    if np.ptp(factors) > 1e-9:
        return (
            f"over all draws a token's mean weight is between {factors.min():.4g} and {factors.max():.4g} of its weight in GRPO, "
            "depending on its position and on the length of the answer: it must be the same everywhere"
        )
    return None


@exercise
def unbiased(answer: Callable[..., TokenCredit]) -> str | None:
    """(rule, completions, rewards, generator) -> TokenCredit, whose weights average to exactly GRPO's, also with cutoff and cap."""
    lengths, times, rule = (2, 6), 4000, SGRPO(2, 0.3, 4, denominator="completion")
    one = rule.assign(TOY.tokens, TOY.rewards, stream(0, "exercise"))
    own = answer(rule, TOY.tokens, TOY.rewards, stream(0, "exercise"))
    if len(own) != len(one):
        return f"{len(own)} tokens are credited where the rule keeps {len(one)}: change only the weights"
    if not all(torch.equal(getattr(own, name), getattr(one, name)) for name in ("completion", "position", "advantage")):
        return "a row has another place or another advantage than under the rule: change only the weights"
    mean = _mean_weights(lambda tokens, rewards, chance: answer(rule, tokens, rewards, chance), lengths, times)
    for length in lengths:
        off = (mean[length] * length - 1).abs()
        if off.max() > 0.15:
            return (
                f"at position {int(off.argmax())} of answers of {length} tokens the mean weight is "
                f"{(mean[length] * length)[off.argmax()].item():.2f} of GRPO's"
            )
    return None


def _mean_factors(rule: SGRPO, length: int) -> np.ndarray:
    """For each position of an answer: its mean weight over all draws of a rule without a cap, divided by its weight in GRPO."""
    if rule.denominator == "completion":
        return keep_probabilities(rule, length)
    early, chance = min(rule.cutoff, length), rule.keep_probability

    def mean_inverse(certain: int, others: int) -> float:
        drawn = np.arange(others + 1)
        return float((stats.binom.pmf(drawn, others, chance) / (certain + drawn)).sum())

    factors = np.full(length, length * chance * mean_inverse(early + 1, length - early - 1))  # one late token is itself kept
    factors[:early] = length * mean_inverse(early, length - early) if early else 0.0
    return factors


def _mean_weights(assign: Credits, lengths: Sequence[int], times: int) -> dict[int, Tensor]:
    """For answers of each length: the mean over draws of a position's weight, times the group's size."""
    sums = {}
    for length in lengths:
        tokens = [list(range(length))] * times
        credit = assign(tokens, torch.arange(times) % 2.0, stream(0, "exercise", length))
        # With every token kept, each of the draws adds a weight of 1 / (times · length).
        sums[length] = torch.zeros(length, dtype=torch.float64).index_add_(0, credit.position, credit.weight.double())
    return sums

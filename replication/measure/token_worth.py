"""Which of the generated tokens decided, and how much of a credit falls on them. Two judges that know nothing of any method:

- the form: ``tasks.decisive_positions`` names the tokens with which the solvers choose operands and operator;
- the policy's own value: V(p) is the chance of a right answer after prefix p, and V(p, v) - V(p) is what token v was truly
  worth. Both are means over an audit sample of completions.

A decisive token whose true worth is under ``CONSEQUENCE`` either way decided nothing (the second digit of a number already
chosen, a choice that all samples make). Worth is unknown where fewer than ``AUDITED`` audit samples begin with the prefix or the
token, and where it is no more than two standard errors of the audit from 0 and could yet be of consequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replication.algorithms import Trie, build_trie
from replication.groups import Group
from replication.tasks import Problem, decisive_positions

#: A token is of consequence if it moves the chance of a right answer by this much.
CONSEQUENCE = 0.05
#: How many audit samples must begin with a prefix for its value to count as known.
AUDITED = 30
#: The quantities that a credit adds up to per group, and of what the table gives them as shares.
SUMS = ("credit", "decisive", "right", "wrong", "nothing", "unknown", "consequence")


@dataclass(frozen=True)
class Truth:
    """What is known about one problem under one policy.

    Attributes:
        value: prefix (token ids) -> (audit samples that begin with it, share of them that are right).
        decisive: completion -> its decisive positions, filled when first asked for.
    """

    problem: Problem
    value: Mapping[tuple[int, ...], tuple[int, float]]
    tokenizer: Any
    decisive: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def worth(self, prefix: tuple[int, ...]) -> float:
        """V(prefix) - V(prefix without its last token); NaN if the audit does not tell it well enough.

        Of the n samples before the token, m take it and are right at rate a, the others at rate b: the worth is
        (1 - m/n)(a - b), and its standard error (1 - m/n) sqrt(var(a) / m + var(b) / (n - m)), rates smoothed by one
        success and one failure, so that equal answers are not certainty.
        """
        (m, a), (n, whole) = self.value.get(prefix, (0, 0.0)), self.value.get(prefix[:-1], (0, 0.0))
        if min(m, n) < AUDITED:
            return float("nan")
        worth, others = a - whole, n - m
        if not others:
            return worth  # no sample did otherwise: 0
        right = ((m * a, m), (n * whole - m * a, others))
        smooth = [((count + 1) / (size + 2), size) for count, size in right]
        error = others / n * math.sqrt(sum(rate * (1 - rate) / size for rate, size in smooth))
        return float("nan") if abs(worth) <= 2 * error and abs(worth) + 2 * error >= CONSEQUENCE else worth

    def positions(self, completion: Sequence[int]) -> list[int]:
        key = tuple(completion)
        if key not in self.decisive:
            self.decisive[key] = decisive_positions(self.problem, list(completion), self.tokenizer)
        return self.decisive[key]


def audited(group: Group, tokenizer: Any) -> Truth:
    """The truth from a large group: the share of right completions after every prefix that occurs in it."""
    value: dict[tuple[int, ...], list[float]] = {}
    for tokens, reward in zip(group.completions, group.rewards.tolist(), strict=True):
        for length in range(len(tokens) + 1):
            entry = value.setdefault(tuple(tokens[:length]), [0, 0.0])
            entry[0] += 1
            entry[1] += reward
    return Truth(group.problem, {prefix: (int(n), total / n) for prefix, (n, total) in value.items()}, tokenizer)


def judge(completions: Sequence[Sequence[int]], truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """For every generated token, completion by completion: whether it is decisive (T,), and what it was worth (T,), NaN unknown.

    A transition that several completions share is decisive for all of them if it is for one.
    """
    trie: Trie = build_trie(completions)
    decisive, worth = np.zeros(len(trie), dtype=bool), np.full(len(trie), np.nan)
    start = 0
    for tokens in completions:
        path = trie.path[start : start + len(tokens)]
        decisive[path[truth.positions(tokens)]] = True
        for length, node in enumerate(path, start=1):
            if np.isnan(worth[node]):
                worth[node] = truth.worth(tuple(tokens[:length]))
        start += len(tokens)
    return decisive[trie.path], worth[trie.path]


def credit_sums(credit: np.ndarray, decisive: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """How much |weight * advantage| falls where; (7,) in the order of ``SUMS``.

    credit: all of it. decisive: on decisive tokens, and of that right, wrong (its sign is that of the token's worth, or the
    other), nothing (the token's worth is under CONSEQUENCE) and unknown. consequence: on any token of consequence.

    Args:
        credit, decisive, worth: (T,) as of ``flat_credit`` and ``judge``.
    """
    size = np.abs(credit)
    consequence = np.abs(np.nan_to_num(worth)) >= CONSEQUENCE
    right = decisive & consequence & (np.sign(credit) == np.sign(worth))
    wrong = decisive & consequence & ~right
    unknown = decisive & np.isnan(worth)
    nothing = decisive & ~consequence & ~unknown
    kinds = (np.ones_like(decisive), decisive, right, wrong, nothing, unknown, consequence)
    return np.array([size[kind].sum() for kind in kinds])

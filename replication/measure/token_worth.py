"""Which of the generated tokens are decisive, and what a token of one group was worth.

- Decisive is a matter of form: ``tasks.decisive_positions`` names the tokens with which the solvers choose operands and operator.
  Nothing in it depends on a reward or a method.
- Worth is the policy's own: V(p) is the chance of a right answer after prefix p, and V(p, v) - V(p) is what token v was worth, both
  means over an audit sample of completions. T-SPMO's advantage estimates the same difference, so worth is shown beside one group
  and judges no method.

Worth is unknown where fewer than ``AUDITED`` audit samples begin with the prefix or the token, and where it is no more than two
standard errors of the audit from 0 and could yet be ``CONSEQUENCE``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from replication.algorithms import build_trie
from replication.groups import Group
from replication.tasks import Problem, decisive_positions

#: A token that changes the chance of a right answer by less has no consequence.
CONSEQUENCE = 0.05
#: How many audit samples must begin with a prefix for its value to count as known.
AUDITED = 30


#: What is known about one problem under one policy: prefix (token ids) -> (audit samples that begin with it, share of them right).
Truth = Mapping[tuple[int, ...], tuple[int, float]]


def worth(truth: Truth, prefix: tuple[int, ...]) -> float:
    """V(prefix) - V(prefix without its last token); NaN if the audit does not tell it well enough.

    Of the n samples before the token, m take it and are right at rate a, the others at rate b: the worth is
    (1 - m/n)(a - b), and its standard error (1 - m/n) sqrt(var(a) / m + var(b) / (n - m)), rates smoothed by one
    success and one failure, so that equal answers are not certainty.
    """
    (m, a), (n, whole) = truth.get(prefix, (0, 0.0)), truth.get(prefix[:-1], (0, 0.0))
    if min(m, n) < AUDITED:
        return float("nan")
    difference, others = a - whole, n - m
    if not others:
        return difference  # no sample did otherwise: 0
    right = ((m * a, m), (n * whole - m * a, others))
    smooth = [((count + 1) / (size + 2), size) for count, size in right]
    error = others / n * math.sqrt(sum(rate * (1 - rate) / size for rate, size in smooth))
    return float("nan") if abs(difference) <= 2 * error and abs(difference) + 2 * error >= CONSEQUENCE else difference


def audited(group: Group) -> Truth:
    """The truth from a large group: the share of right completions after every prefix that occurs in it."""
    value: dict[tuple[int, ...], list[float]] = {}
    for tokens, reward in zip(group.completions, group.rewards.tolist(), strict=True):
        for length in range(len(tokens) + 1):
            entry = value.setdefault(tuple(tokens[:length]), [0, 0.0])
            entry[0] += 1
            entry[1] += reward
    return {prefix: (int(n), total / n) for prefix, (n, total) in value.items()}


def decisive_tokens(completions: Sequence[Sequence[int]], problem: Problem, tokenizer: Any) -> np.ndarray:
    """Whether each generated token is decisive, completion by completion: (T,) bool.

    A transition that several completions share is decisive for all of them if it is for one.
    """
    trie = build_trie(completions)
    decisive = np.zeros(len(trie), dtype=bool)
    start = 0
    for tokens in completions:
        path = trie.path[start : start + len(tokens)]
        decisive[path[decisive_positions(problem, list(tokens), tokenizer)]] = True
        start += len(tokens)
    return decisive[trie.path]


def token_worths(completions: Sequence[Sequence[int]], truth: Truth) -> np.ndarray:
    """What each generated token was worth, completion by completion: (T,), NaN unknown."""
    return np.array([worth(truth, tuple(tokens[:length])) for tokens in completions for length in range(1, len(tokens) + 1)])

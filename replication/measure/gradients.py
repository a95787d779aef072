"""How much of a method's gradient is signal: statistics over many redraws of the groups of the same problems.

For problem p and redraw k let g(p, k) be the gradient of the surrogate of its group. The gradient of an update is the mean over
its B problems, so everything about an update follows from each problem's mean gradient and its variance between redraws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replication.algorithms import TokenCredit, every_token
from replication.groups import Group, credit_of
from replication.models import Policy
from replication.randomness import stream
from replication.scoring import token_log_probs

#: Steps that no training reaches: the streams of the redraws and the audit are not those of any run.
FIRST_STEP = 10**9


def credits_of(rules: Mapping[tuple[str, str], Any], group: Group, seed: int, redraw: int) -> list[TokenCredit]:
    """The credit of one group by every rule, each with a stream of its own."""
    step = FIRST_STEP + redraw
    return [credit_of(rule, group, stream(seed, "selection", step, group.problem.id, *name)) for name, rule in rules.items()]


def places_of(credit: TokenCredit, lengths: Sequence[int]) -> np.ndarray:
    """The places of the credited tokens among all generated tokens of the group, completion by completion."""
    return np.cumsum([0, *lengths])[credit.completion.numpy()] + credit.position.numpy()


def flat_credit(credit: TokenCredit, lengths: Sequence[int]) -> np.ndarray:
    """weight * advantage of every generated token, completion by completion: (T,) float64, 0 for tokens without credit."""
    value = credit.weight.double().numpy() * credit.advantage.double().numpy()
    flat = np.bincount(places_of(credit, lengths), weights=value, minlength=sum(lengths))
    return flat.astype(np.float64)  # without rows they would be integers


def surrogate_gradients(policy: Policy, group: Group, coefficients_MT: np.ndarray, *, strategy: str, temperature: float) -> Tensor:
    """The gradients of M surrogates of one group, from one forward pass.

    Formula: g(m) = sum over tokens of coefficients[m, t] * grad log pi(t), the gradient of sum(weight * advantage * ratio).

    Args:
        coefficients_MT: (M, T), a row per surrogate as ``flat_credit`` gives it.

    Returns:
        (M, D) float64 over the trainable parameters in the order of their names.
    """
    parameters = list(policy.trainable.values())
    log_probs = token_log_probs(
        policy.model,
        [group.prompt],
        [group.completions],
        [every_token(group.completions)],
        strategy=strategy,
        temperature=temperature,
    )
    gradients = []
    for row in torch.from_numpy(coefficients_MT).to(log_probs):
        parts = torch.autograd.grad(log_probs, parameters, row, retain_graph=True)
        gradients.append(torch.cat([part.flatten() for part in parts]).double().cpu())
    return torch.stack(gradients)


class Redraws:
    """What is kept of one problem's gradients over its redraws; a tied group counts as a gradient of zero.

    Attributes, for M methods of which the first is full-token GRPO:
        total: (M, D) sum of the gradients.
        squares: (M,) sum of |g|^2.
        with_first: (M,) sum of <g, g of the first method>.
        decisive: (M,) sum of <gradient of the decisive tokens alone, g>; 0 for methods of which it was not given.
    """

    def __init__(self, methods: int, size: int) -> None:
        self.count = 0
        self.total = torch.zeros((methods, size), dtype=torch.float64)
        self.squares = np.zeros(methods)
        self.with_first = np.zeros(methods)
        self.decisive = np.zeros(methods)

    def add(self, gradients: Tensor | None, decisive: Tensor | None = None) -> None:
        """One redraw: (M, D) gradients, and of the first methods those of decisive tokens alone; None for a tied group."""
        self.count += 1
        if gradients is None:
            return
        self.total += gradients
        self.squares += gradients.square().sum(1).numpy()
        self.with_first += (gradients @ gradients[0]).numpy()
        if decisive is not None:
            self.decisive[: len(decisive)] += (gradients[: len(decisive)] * decisive).sum(1).numpy()

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    def variance(self) -> np.ndarray:
        """(M,) unbiased sum over all parameters of the variance between redraws."""
        return (self.squares - self.count * self.mean.square().sum(1).numpy()) / (self.count - 1)

    def covariance(self) -> np.ndarray:
        """(M,) the same between each method and the first: they see the same completions."""
        return (self.with_first - self.count * (self.mean @ self.mean[0]).numpy()) / (self.count - 1)


def batch_product(gram: np.ndarray, within: np.ndarray, redraws: int, batch: int, weights: np.ndarray) -> np.ndarray:
    """Expected product of the true gradients of two methods in an update of ``batch`` of these problems.

    Formula: mean over p of (M_pp - C_p / K) / B + (1 - 1/B) * mean over p != q of M_pq, where M_pq is the product of the mean
    gradients and C_p their covariance between redraws: a mean of K redraws multiplied with itself carries C / K of noise.

    Args:
        gram: (P, P) products of the mean gradients of the problems.
        within: (P,) covariance of each problem between redraws.
        redraws: K.
        batch: B, problems per update.
        weights: (R, P) how often each problem counts; different copies of one problem are no pair.

    Returns:
        (R,). May be negative where noise is all there is, since the estimate is unbiased; NaN for a resample of one problem alone.
    """
    diagonal = np.diag(gram)
    own = weights @ (diagonal - within / redraws) / weights.sum(1)
    if batch == 1:
        return own
    pairs = np.einsum("rp,pq,rq->r", weights, gram, weights, optimize=True) - weights**2 @ diagonal
    with np.errstate(divide="ignore", invalid="ignore"):
        return own / batch + (1 - 1 / batch) * pairs / (weights.sum(1) ** 2 - (weights**2).sum(1))


def update_snr(gram: np.ndarray, within: np.ndarray, redraws: int, batch: int, weights: np.ndarray) -> np.ndarray:
    """Signal-to-noise ratio of the gradient of an update: |mean g|^2 / mean |g - mean g|^2 over redraws of its groups.

    Numerator as in ``batch_product``, so without the noise that a mean of few redraws keeps; denominator mean(within) / B.
    The problems are fixed: noise comes from sampling completions and selecting tokens. The mean of n independent updates has n
    times the ratio, so the ratio per token says how well tokens are used.

    Source: our own definition. Example: gradients 3 and 1 of one problem have mean 2 and variance 2:
        >>> update_snr(np.array([[4.0]]), np.array([2.0]), 2, 1, np.ones((1, 1))).tolist()
        [1.5]
    """
    noise = weights @ within / weights.sum(1) / batch
    with np.errstate(divide="ignore", invalid="ignore"):
        return batch_product(gram, within, redraws, batch, weights) / noise

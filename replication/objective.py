"""One surrogate for all methods, with KL and L2 as terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from replication.algorithms import TokenCredit


def surrogate_loss(
    log_probs: Tensor,
    credits: Sequence[TokenCredit],
    *,
    groups: int | None = None,
    reference_log_probs: Tensor | None = None,
    beta: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch of groups: minus the mean over its groups of their surrogates.

    Formula: loss = -1/B * sum over groups, sum over their rows of weight * (ratio * advantage - beta * KL), with
    ratio = pi / stop_gradient(pi), whose value is 1 and whose gradient is that of log pi, and
    KL = exp(ref - log pi) - (ref - log pi) - 1 (estimator k3).
    Source: second-hand descriptions of the method section of arXiv 2504.20834; that all B groups count, tied ones too, and the
    KL estimator are our reconstruction. As a loss on policy, the gradient of k3 is in expectation that of KL(ref || pi), not of
    KL(pi || ref) that its value estimates.

    Args:
        log_probs: (sum N,) log-probs of the credited tokens, in the order of ``credits``; carries the graph.
        credits: one TokenCredit for each group.
        groups: B, if ``credits`` are only a part of the batch (gradient accumulation); default ``len(credits)``.
        reference_log_probs: (sum N,) the same tokens under the reference; needed when beta > 0.
        beta: weight of the KL term.

    Returns:
        The loss (scalar, dtype of ``log_probs``; exactly 0 without rows) and diagnostics: "surrogate" and "kl", both already
        divided by B.

    Raises:
        ValueError: shapes do not fit, or beta > 0 without a reference.
    """
    rows = sum(len(credit) for credit in credits)
    if log_probs.shape != (rows,):
        raise ValueError(f"log_probs have shape {tuple(log_probs.shape)}, expected ({rows},): one for each credited token")
    groups = len(credits) if groups is None else groups
    if not rows:
        return log_probs.sum(), {"surrogate": 0.0, "kl": 0.0}
    weight = torch.cat([credit.weight for credit in credits]).to(log_probs)
    advantage = torch.cat([credit.advantage for credit in credits]).to(log_probs)
    ratio = torch.exp(log_probs - log_probs.detach())
    surrogate = (weight * advantage * ratio).sum() / groups
    kl = torch.zeros_like(surrogate)
    if beta > 0:
        if reference_log_probs is None or reference_log_probs.shape != log_probs.shape:
            raise ValueError("beta > 0 needs reference_log_probs of the same shape as log_probs")
        kl = (weight * k3(log_probs, reference_log_probs)).sum() / groups
    loss = beta * kl - surrogate
    return loss, {"surrogate": surrogate.item(), "kl": kl.item()}


def k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Estimator k3 of KL(pi || ref) from tokens sampled from pi, elementwise; never negative, 0 where the two agree."""
    difference = reference_log_probs - log_probs
    return torch.expm1(difference) - difference  # exp(d) - d - 1 would round a KL under 1e-7 to noise of either sign


def l2_penalty(parameters: Iterable[Tensor], initial: Iterable[Tensor] | None = None) -> Tensor:
    """Sum of the squares of the adapter's parameters, or of their differences from ``initial`` (full fine-tuning).

    Source: our reconstruction of the lambda * ||theta_LoRA||^2 of T-SPMO's objective (arXiv 2504.20834).
    """
    if initial is not None:
        parameters = (now - start for now, start in zip(parameters, initial, strict=True))
    return sum(parameter.square().sum() for parameter in parameters)

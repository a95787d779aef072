"""What an update costs, counted rather than timed: tokens through the model, positions through the output layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from replication.algorithms import TokenCredit
from replication.packing import pack_groups


@dataclass(frozen=True)
class ScoringCost:
    """Tokens of one update: through the transformer, through the output layer, and in the loss."""

    forwarded: int
    scored: int
    in_loss: int


def scoring_cost(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    credits: Sequence[TokenCredit],
    strategy: str,
) -> ScoringCost:
    """The cost of ``token_log_probs`` with the same arguments, padding not counted."""
    in_loss = sum(len(credit) for credit in credits)
    if strategy == "packed":
        rows = pack_groups(prompts, completions, credits)
        return ScoringCost(sum(map(len, rows)), sum(len(np.unique(row.source)) for row in rows), in_loss)
    tokens = sum(
        len(group) * len(prompt) + sum(map(len, group))
        for prompt, group, credit in zip(prompts, completions, credits, strict=True)
        if len(credit)
    )
    return ScoringCost(tokens, tokens, in_loss)

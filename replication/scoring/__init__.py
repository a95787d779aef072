"""Log-probs of the credited tokens.

In: a causal LM, prompts, completions and the credit of each group. Out: one differentiable log-prob for each credited token.
Packed scoring computes each distinct prefix of a group once; dense scoring is the plain reference. Start with ``log_probs``.
"""

from __future__ import annotations

from replication.scoring.log_probs import (
    gathered_log_softmax,
    micro_batches,
    prefix_states,
    score,
    token_log_probs,
)
from replication.scoring.model import unwrapped, upcast, why_not_packable
from replication.scoring.packing import pack_groups

__all__ = [
    "gathered_log_softmax",
    "micro_batches",
    "pack_groups",
    "prefix_states",
    "score",
    "token_log_probs",
    "unwrapped",
    "upcast",
    "why_not_packable",
]

"""FLOPs of one token of a model, counted by PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from replication.config import ExperimentConfig
from replication.models import Policy, load_policy
from replication.tasks import Problem


def flops_per_token(policy: Policy, tokens: Sequence[int]) -> tuple[float, float]:
    """FLOPs of a token of one sequence: forward alone, and forward and backward to the trainable parameters.

    A multiplication and an addition count as two. Only matrix products are counted. The counter cannot see fused attention, so
    attention is computed step by step here.
    """
    policy.model.set_attn_implementation("eager")
    ids, found = torch.tensor([list(tokens)], device=next(policy.model.parameters()).device), []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            logits = policy.model(input_ids=ids, use_cache=False).logits
            if backward:
                logits.logsumexp(-1).sum().backward()
        found.append(counter.get_total_flops() / ids.shape[1])
    policy.model.zero_grad(set_to_none=True)
    return found[0], found[1]


def flops_rows(config: ExperimentConfig, problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Rows of credit.csv (method "generated"): flops_sampled_token and flops_updated_token, on prompts as long as these are."""
    policy = load_policy(config)
    tokens = max((policy.encode(problem.prompt) for problem in problems), key=len)
    row = {"profile": config.profile, "task": config.task, "asides": config.asides, "method": "generated"}
    row |= {"selector": "generated", "unit": "FLOP", "n": len(tokens), "seed": config.seed}
    names = ("flops_sampled_token", "flops_updated_token")
    return [row | {"quantity": name, "value": value} for name, value in zip(names, flops_per_token(policy, tokens), strict=True)]

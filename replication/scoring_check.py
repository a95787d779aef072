"""Whether tokens are scored under the distribution that they were sampled from, compared once a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from replication.algorithms import every_token
from replication.config import ExperimentConfig
from replication.errors import UserError
from replication.groups import Group
from replication.models import Policy
from replication.scoring import micro_batches, score

#: Most that two ways to compute one log-prob may differ, in nats: at any token in float32, on average in 16 bits, where single
#: tokens differ by rounding alone.
LIMIT_FLOAT32 = 1e-3
LIMIT_16_BITS = 0.05


@torch.no_grad()
def require_sampled_equals_scored(policy: Policy, config: ExperimentConfig, groups: Sequence[Group]) -> None:
    """Compare the log-probs noted while ``groups`` were sampled with those of the same tokens as training scores them.

    Sampling goes token by token with a cache and pads prompts on the left, scoring sees whole rows. A model whose positions or
    rotary embeddings depend on the layout of a row gives each its own numbers, and the policy gradient is then of another policy.
    In 16 bits the dense path is compared, one completion at a time, since packing rounds otherwise.

    Args:
        policy: as it was when the groups were sampled.
        groups: of the first step, replays included.

    Raises:
        UserError: the log-probs differ by over LIMIT_FLOAT32 at a token, or in 16 bits by over LIMIT_16_BITS on average.
    """
    exact = policy.dtype == "float32"
    if exact:
        rows = [(group.prompt, group.completions) for group in groups]
    else:
        rows = [(group.prompt, [tokens]) for group in groups for tokens in group.completions]
    prompts, completions = map(list, zip(*rows, strict=True))
    credits = [every_token(group) for group in completions]
    scored = torch.cat([
        score(
            policy.model,
            *([column[i] for i in part] for column in (prompts, completions, credits)),
            strategy=config.scoring if exact else "dense",
            temperature=config.temperature,
            token_budget=config.token_budget,
        ).log_probs.cpu()
        for part in micro_batches(prompts, completions, credits, config.token_budget)
    ])  # fmt: skip
    tokens = [token for group in groups for sample in group.samples for token in sample.tokens]
    sampled = torch.tensor([value for group in groups for sample in group.samples for value in sample.log_probs])
    difference = (sampled - scored).abs()
    if exact and difference.max() > LIMIT_FLOAT32:
        over = f"over {LIMIT_FLOAT32}"
    elif not exact and difference.mean() > LIMIT_16_BITS:
        over = f"on average by {difference.mean():.3g}, over {LIMIT_16_BITS}"
    else:
        return
    worst = int(difference.argmax())
    raise UserError(
        f"sampling and scoring disagree about this model by {over} nats: token {policy.tokenizer.decode([tokens[worst]])!r} was "
        f"sampled at log-prob {sampled[worst]:.4f} and is scored at {scored[worst]:.4f} (its positions or rotary embeddings may "
        "depend on the layout of a row): choose another model"
    )

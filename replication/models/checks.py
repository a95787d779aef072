"""Checks of a model before a run begins: finite weights, sizes that fit, and a cache that sampling can work with."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from replication.errors import UserError, first_line

if TYPE_CHECKING:
    from replication.config import ExperimentConfig
    from replication.models.load import Policy
    from replication.tasks import Task

#: Most nats by which sampling and one plain pass may differ (mean over the vocabulary, weighted by probability).
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.25, torch.bfloat16: 0.25}


def check_finite(model: nn.Module) -> None:
    """Raise ValueError if a weight is NaN or infinite, as in a damaged file, or beyond the range of float16."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            advice = ", maybe beyond the range of float16: set dtype=float32" if parameter.dtype == torch.float16 else ""
            raise ValueError(f"its weight {name} has values that are not finite{advice}")


@torch.no_grad()
def check_decoding(model: nn.Module) -> None:
    """Raise unless the model can be sampled from as rollouts do it, with the log-probs of one plain pass.

    Two prompts of unlike lengths are prefilled in one batch, padded on the left; rows of the cache are repeated and reordered; one
    token is added. Any architecture that does this right is supported, whatever its layers are: attention, state space, both.

    Raises:
        UserError: it fails, its logits are not finite, or they differ from those of a pass without cache and padding by more than
            TOLERANCE.
    """
    from transformers import DynamicCache

    name, device = model.config.model_type, model.device
    prompts = [[1, 2, 3, 4], [3, 5]]  # small ids, which every vocabulary has
    try:
        cache = DynamicCache(config=model.config)
        tokens = torch.tensor([[1, 2, 3, 4], [0, 0, 3, 5]], device=device)
        mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        rows = torch.tensor([1, 0, 1], device=device)
        cache.reorder_cache(rows)
        sampled = model(
            input_ids=torch.tensor([[2], [5], [6]], device=device),
            attention_mask=torch.cat([mask[rows], mask.new_ones((3, 1))], 1),
            position_ids=torch.tensor([[2], [4], [2]], device=device),
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        sequences = [[*prompts[1], 2], [*prompts[0], 5], [*prompts[1], 6]]
        plain = [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1] for ids in sequences]
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # the GPU's fault, not the model's
        raise
    except Exception as error:  # each architecture that lacks something fails in a way of its own
        raise UserError(
            f"cannot sample from a model of type {name!r} ({first_line(error, with_type=True)}): it needs a cache of transformers "
            "whose rows can be reordered, position ids and an attention mask; choose another model"
        ) from error
    expected_RV, found_RV = (logits.double().log_softmax(-1) for logits in (torch.stack(plain), sampled))
    weighted_RV = expected_RV.exp() * (expected_RV - found_RV).abs()
    gap = weighted_RV.masked_fill(expected_RV == -math.inf, 0.0).sum(-1).max().item()  # some families rule tokens out by -inf
    if not gap <= TOLERANCE[model.dtype]:
        dtype = str(model.dtype).removeprefix("torch.")
        if not math.isfinite(gap):
            raise UserError(f"the logits of a model of type {name!r} are not finite in {dtype}: set dtype=float32 or another model")
        raise UserError(
            f"sampling from this model of type {name!r} with a cache and padding gives log-probs {gap:.2g} nats from those of a "
            f"plain pass (at most {TOLERANCE[model.dtype]:g} in {dtype}): choose another model"
        )


def check_sizes(policy: Policy, config: ExperimentConfig, task: Task) -> None:
    """Raise unless the task's prompts fit the model: their ids the embedding, prompt and completion the position table.

    A tokenizer may have more ids than the embedding has rows (Gemma 3's has one more) as long as no prompt uses them. Prompts are
    encoded only where the cheap bound of two tokens a byte leaves a doubt.

    Raises:
        UserError: naming both sizes.
    """
    model = policy.model
    rows = model.get_input_embeddings().weight.shape[0]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    room = config.max_new_tokens or task.max_new_tokens
    if config.replay_successes or config.replay_failures:
        room *= 2  # a replay samples up to the limit after a prefix of up to the limit
    all_in_rows = max(policy.tokenizer.get_vocab().values()) < rows
    for problem in itertools.chain(task.train, task.validation, task.test, task.held_out):
        if all_in_rows and 2 * len(problem.prompt.encode()) + room <= positions:
            continue
        ids = policy.encode(problem.prompt)
        if max(ids, default=0) >= rows:
            raise UserError(
                f"the tokenizer gives id {max(ids)}, but the model's embedding has {rows} rows: they do not belong together "
                "(was a token added without resizing the model?)"
            )
        if len(ids) + room > positions:
            raise UserError(
                f"a prompt of {len(ids)} tokens and {room} generated ones are more than the {positions} positions of the model: "
                f"lower max_new_tokens ({config.max_new_tokens or task.max_new_tokens}), or choose another model or template"
            )

"""Sampling groups of completions: each prompt is prefilled once, its cache repeated for the group, finished rows dropped.

Completions are drawn from exactly the distribution that is scored, softmax(logits / temperature): no top-k, no top-p, no
penalties, and the model's own generation_config is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from replication.errors import Diverged
from replication.scoring import unwrapped, upcast

#: Rows are dropped once this share of those still carried has finished: dropping copies the cache.
DROP_SHARE = 0.25


@dataclass(frozen=True)
class Completion:
    """One completion: generated tokens (EOS included, no padding), their log-probs, the entropy where each was drawn."""

    tokens: list[int]
    log_probs: list[float]
    entropies: list[float]
    truncated: bool


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    generators: Sequence[torch.Generator] | None = None,
    stop: Callable[[Tensor], Tensor] | None = None,
) -> list[list[Completion]]:
    """Sample ``group_size`` completions for each prompt.

    A token is drawn by inverting the cumulative distribution at a uniform number that belongs to (prompt, completion, position).
    So what one completion draws depends neither on the other prompts of the batch nor on which rows have finished.

    Args:
        model: a causal LM of transformers, with or without a PEFT adapter.
        prompts: B non-empty lists of token ids.
        group_size: G.
        max_new_tokens: a completion that reaches it without an end is marked truncated.
        temperature: over 0, or 0 for greedy decoding (the most probable token; ties go to the smallest id).
        eos_token_ids: every id that ends a completion; the id itself belongs to the completion.
        pad_token_id: what fills shorter prompts on the left.
        generators: one for each prompt, needed when temperature > 0; each gives G * max_new_tokens numbers.
        stop: given the generated ids so far (rows, t), which rows end there (a task's stop strings).

    Returns:
        For each prompt its G completions.

    Raises:
        ValueError: an empty prompt, or sampling without a generator for each prompt.
        Diverged: the model's logits are NaN.
    """
    _check(prompts, temperature, generators)
    causal_lm = unwrapped(model)
    device = next(causal_lm.parameters()).device
    rows = len(prompts) * group_size
    tokens_RT = torch.full((rows, max_new_tokens), pad_token_id, device=device)
    log_probs_RT = torch.zeros((rows, max_new_tokens), device=device)
    entropies_RT = torch.zeros((rows, max_new_tokens), device=device)
    lengths_R = torch.full((rows,), max_new_tokens, device=device)
    ended_R = torch.zeros(rows, dtype=torch.bool, device=device)
    eos = torch.tensor(list(eos_token_ids), device=device)
    if temperature > 0:
        draws_RT = torch.cat([torch.rand((group_size, max_new_tokens), generator=g, dtype=torch.float64) for g in generators])
        draws_RT = draws_RT.to(device)

    logits, cache, mask = _prefill(causal_lm, prompts, pad_token_id)
    cache.batch_repeat_interleave(group_size)
    logits, mask = logits.repeat_interleave(group_size, 0), mask.repeat_interleave(group_size, 0)
    prompt_lengths = mask.sum(1)
    row = torch.arange(rows, device=device)  # which completion each carried row belongs to

    for t in range(max_new_tokens):
        log_p = torch.log_softmax(upcast(logits) / (temperature or 1.0), -1)
        if torch.isnan(log_p).any():
            raise Diverged(f"the model's logits are not finite at generated token {t}")
        p = log_p.exp()
        if temperature:
            cdf = p.double().cumsum(-1)
            token = torch.searchsorted(cdf, (draws_RT[row, t] * cdf[:, -1]).unsqueeze(1), right=True).squeeze(1)
        else:
            token = log_p.argmax(-1)
        tokens_RT[row, t] = token
        log_probs_RT[row, t] = log_p.gather(1, token.unsqueeze(1)).squeeze(1).float()
        entropies_RT[row, t] = -torch.where(p > 0, p * log_p, 0.0).sum(-1).float()
        done = torch.isin(token, eos)
        if stop is not None:
            done |= stop(tokens_RT[row, : t + 1])
        newly = done & ~ended_R[row]
        lengths_R[row[newly]] = t + 1
        ended_R[row[newly]] = True
        active = ~ended_R[row]
        left = int(active.sum())
        if not left or t + 1 == max_new_tokens:
            break
        if left <= (1 - DROP_SHARE) * len(row):
            keep = torch.nonzero(active).squeeze(1)
            cache.batch_select_indices(keep)
            row, token, mask, prompt_lengths = row[keep], token[keep], mask[keep], prompt_lengths[keep]
        mask = torch.cat([mask, mask.new_ones((len(row), 1))], 1)
        logits = causal_lm(
            input_ids=token.unsqueeze(1),
            attention_mask=mask,
            position_ids=(prompt_lengths + t).unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]

    return _split_groups(tokens_RT, log_probs_RT, entropies_RT, lengths_R, ended_R, group_size)


def _check(prompts, temperature: float, generators) -> None:
    if any(not len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty: the first token has nothing to be predicted from")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, not {temperature}")
    if temperature and (generators is None or len(generators) != len(prompts)):
        raise ValueError(f"sampling needs one generator for each of the {len(prompts)} prompts")


def _prefill(causal_lm: nn.Module, prompts, pad_token_id: int) -> tuple[Tensor, DynamicCache, Tensor]:
    """Logits after each prompt (B, V), the cache, and the mask (B, P); shorter prompts are padded on the left."""
    device = next(causal_lm.parameters()).device
    length = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), length), pad_token_id)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        tokens[index, length - len(prompt) :] = torch.tensor(list(prompt))
        mask[index, length - len(prompt) :] = 1
    tokens, mask = tokens.to(device), mask.to(device)
    cache = DynamicCache(config=causal_lm.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = causal_lm(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits[:, -1]
    return logits, cache, mask


def _split_groups(tokens_RT, log_probs_RT, entropies_RT, lengths_R, ended_R, group_size: int) -> list[list[Completion]]:
    samples = [
        Completion(tokens[:length], log_probs[:length], entropies[:length], not ended)
        for tokens, log_probs, entropies, length, ended in zip(
            tokens_RT.tolist(), log_probs_RT.tolist(), entropies_RT.tolist(), lengths_R.tolist(), ended_R.tolist(), strict=True
        )
    ]
    return [samples[start : start + group_size] for start in range(0, len(samples), group_size)]

"""Sampling groups of completions: each prompt is prefilled once, and each distinct prefix of a group is computed once.

Completions are drawn from exactly the distribution that is scored, softmax(logits / temperature): no top-k, no top-p, no
penalties, and the model's own generation_config is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from replication.errors import Diverged
from replication.rollout.rows import FixedRows, SharedRows
from replication.scoring import unwrapped, upcast
from replication.signals import raise_if_stopped


@dataclass(frozen=True)
class Completion:
    """One completion: generated tokens (EOS included, no padding), their log-probs, the entropy where each was drawn."""

    tokens: list[int]
    log_probs: list[float]
    entropies: list[float]
    truncated: bool
    stopped: bool = False  # ended by a stop string, not by EOS: a cut that is not truncation either


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
    compiled: bool = False,
) -> list[list[Completion]]:
    """Sample ``group_size`` completions for each prompt.

    A token is drawn by inverting the cumulative distribution at a uniform number that belongs to (prompt, completion, position).
    So what one completion draws depends neither on the other prompts of the batch nor on which completions have finished.

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
        compiled: compile the passes of the model (``rows``); the numbers change by rounding alone.

    Returns:
        For each prompt its G completions.

    Raises:
        ValueError: an empty prompt, or sampling without a generator for each prompt.
        Diverged: the model's logits are NaN.
        UserError: ``compiled``, and the model cannot be.
        Stopped: a signal came; the completions so far are lost.
    """
    _check(prompts, temperature, generators)
    causal_lm = unwrapped(model)
    completions = len(prompts) * group_size
    # The host keeps these and all bookkeeping. It waits for the device when the tokens drawn arrive, and in eager mode when
    # transformers asks whether the mask is all ones.
    tokens_CT = torch.full((completions, max_new_tokens), pad_token_id)
    log_probs_CT = torch.zeros((completions, max_new_tokens))
    entropies_CT = torch.zeros((completions, max_new_tokens))
    lengths_C = torch.full((completions,), max_new_tokens)
    ended_C = torch.zeros(completions, dtype=torch.bool)
    stopped_C = torch.zeros_like(ended_C)
    eos = torch.tensor(list(eos_token_ids))
    if temperature > 0:
        draws_CT = torch.cat([torch.rand((group_size, max_new_tokens), generator=g, dtype=torch.float64) for g in generators])

    if compiled:
        rows: SharedRows | FixedRows = FixedRows(causal_lm, prompts, group_size, pad_token_id, max_new_tokens)
    else:
        rows = SharedRows(causal_lm, prompts, group_size, pad_token_id)
    active_A = torch.arange(completions)  # completions that have not ended
    row_A = rows.row_C  # the row each of them stands at

    for t in range(max_new_tokens):
        raise_if_stopped()
        draws_A = draws_CT[active_A, t] if temperature else None
        token_A, log_p_A, entropy_A = _draw(upcast(rows.logits_RV), row_A, draws_A, temperature)
        if torch.isnan(log_p_A).any():
            raise Diverged(f"the model's logits are not finite at generated token {t}")
        tokens_CT[active_A, t] = token_A
        log_probs_CT[active_A, t] = log_p_A.float()
        entropies_CT[active_A, t] = entropy_A.float()
        done_A = torch.isin(token_A, eos)
        if stop is not None:
            stopped_A = stop(tokens_CT[active_A, : t + 1]) & ~done_A
            stopped_C[active_A[stopped_A]] = True
            done_A |= stopped_A
        ended_C[active_A[done_A]] = True
        lengths_C[active_A[done_A]] = t + 1
        active_A, row_A, token_A = active_A[~done_A], row_A[~done_A], token_A[~done_A]
        if not len(active_A) or t + 1 == max_new_tokens:
            break
        row_A = rows.extend(row_A, token_A)

    return _split_groups(tokens_CT, log_probs_CT, entropies_CT, lengths_C, ended_C, stopped_C, group_size)


def _check(prompts, temperature: float, generators) -> None:
    if any(not len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty: the first token has nothing to be predicted from")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, not {temperature}")
    if temperature and (generators is None or len(generators) != len(prompts)):
        raise ValueError(f"sampling needs one generator for each of the {len(prompts)} prompts")


def _draw(logits_RV: Tensor, row_A: Tensor, draws_A: Tensor | None, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """For each completion (A,), on the host: the token drawn at its row, its log-prob, the row's entropy. NaN where logits are."""
    device = logits_RV.device
    row_A = row_A.to(device, non_blocking=True)
    log_p_RV = torch.log_softmax(logits_RV / (temperature or 1.0), -1)
    p_RV = log_p_RV.exp()
    entropy_R = -torch.where(p_RV > 0, p_RV * log_p_RV, 0.0).sum(-1)
    if draws_A is None:
        token_A = log_p_RV.argmax(-1)[row_A]
    else:
        cdf_AV = p_RV.double().cumsum(-1)[row_A]
        draws_A1 = (draws_A.to(device, non_blocking=True) * cdf_AV[:, -1]).unsqueeze(1)
        # The clamp is for a row of NaN, which has no place for the number.
        token_A = torch.searchsorted(cdf_AV, draws_A1, right=True).squeeze(1).clamp(max=log_p_RV.shape[-1] - 1)
    # One transfer for the three: float64 holds every token id and every float32 exactly.
    token, log_p, entropy = torch.stack([token_A.double(), log_p_RV[row_A, token_A].double(), entropy_R[row_A].double()]).cpu()
    return token.long(), log_p, entropy


def _split_groups(tokens_CT, log_probs_CT, entropies_CT, lengths_C, ended_C, stopped_C, group_size: int) -> list[list[Completion]]:
    columns = (tokens_CT, log_probs_CT, entropies_CT, lengths_C, ended_C, stopped_C)
    samples = [
        Completion(tokens[:length], log_probs[:length], entropies[:length], not ended, stopped)
        for tokens, log_probs, entropies, length, ended, stopped in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return [samples[start : start + group_size] for start in range(0, len(samples), group_size)]

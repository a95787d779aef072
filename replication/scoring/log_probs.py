"""Log-probs of the credited tokens: a dense reference, and a packed engine whose cost follows what is credited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from replication.algorithms import TokenCredit
from replication.scoring.model import device_of, result_dtype, unwrapped, upcast, warn_once, why_not_packable
from replication.scoring.packing import additive_mask, batch_rows, collate, pack_groups

#: The output layer runs in chunks of positions, so that no tensor of logits is larger than this.
MAX_LOGIT_BYTES = 64 * 2**20
#: Tokens that go through the model at a time, where the caller sets no other budget.
TOKEN_BUDGET = 16384


class Scores(NamedTuple):
    """Log-probs of the credited tokens, and what computing them took.

    Attributes:
        log_probs: (sum N,) in the order of the credits.
        tokens_forwarded: tokens that went through the trunk, padding aside.
        tokens_scored: positions at which the output layer was computed.
    """

    log_probs: Tensor
    tokens_forwarded: int
    tokens_scored: int


def token_log_probs(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    credits: Sequence[TokenCredit],
    *,
    strategy: Literal["packed", "dense"] = "packed",
    temperature: float = 1.0,
) -> Tensor:
    """log pi(token | prompt, tokens before it) of every credited token, under softmax(logits / temperature).

    Equivalent to ``log_softmax(model(prompt + completion).logits / temperature)`` gathered at the credited tokens, one completion
    at a time. "dense" does that in a padded batch for each group. "packed" computes each distinct prefix once and only those
    that a credited token needs, and the output layer only where a credited token is predicted.

    Args:
        model: a causal LM of transformers, with or without a PEFT adapter, without dropout.
        prompts: B prompts, each a non-empty list of token ids.
        completions: for each prompt its G completions, without padding.
        credits: for each group the tokens to score.
        strategy: "packed" falls back to "dense", with one warning, for a model where packing could be wrong.
        temperature: as in sampling, over 0.

    Returns:
        (sum N,) in the order of the credits; float32, or float64 if the model is; differentiable; empty if nothing is credited.

    Raises:
        ValueError: the three lists differ in length, a prompt is empty, or a credit points outside its completion.
    """
    return score(model, prompts, completions, credits, strategy=strategy, temperature=temperature).log_probs


def score(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    credits: Sequence[TokenCredit],
    *,
    strategy: Literal["packed", "dense"] = "packed",
    temperature: float = 1.0,
    token_budget: int = TOKEN_BUDGET,
) -> Scores:
    """``token_log_probs`` with the count of tokens that it computed.

    ``token_budget`` bounds a packed batch: a row holds at most a quarter of it (its mask is quadratic in its length), a padded
    batch of rows at most half. It bounds memory and does not change the result.
    """
    _check(prompts, completions, credits, temperature)
    if strategy not in ("packed", "dense"):
        raise ValueError(f'strategy must be "packed" or "dense", not {strategy!r}')
    rows = sum(len(credit) for credit in credits)
    if not rows:
        nothing = torch.zeros(0, dtype=result_dtype(model), device=device_of(model), requires_grad=torch.is_grad_enabled())
        return Scores(nothing, 0, 0)
    if strategy == "packed":
        reason = why_not_packable(model)
        if reason is None:
            return _packed(model, prompts, completions, credits, temperature, token_budget)
        warn_once(model, reason)
    return _dense(model, prompts, completions, credits, temperature)


def prefix_states(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    credits: Sequence[TokenCredit],
    *,
    strategy: Literal["packed", "dense"] = "packed",
    token_budget: int = TOKEN_BUDGET,
) -> tuple[Tensor, int]:
    """The last hidden state of what stands before each credited token, and how many tokens went through the trunk for them.

    Arguments and errors are those of ``score``; the output layer is not computed. Returns ((sum N, width), tokens), in the order
    of the credits, in the model's dtype, differentiable.
    """
    _check(prompts, completions, credits, temperature=1.0)
    if strategy == "packed" and why_not_packable(model) is None:
        passes = list(_packed_passes(model, prompts, completions, credits, token_budget))
        order = torch.argsort(torch.cat([made.output for made in passes])).to(device_of(model))
        states = torch.cat([made.hidden_U[made.which_N.to(made.hidden_U.device)] for made in passes])
        return states[order], sum(made.tokens for made in passes)
    parts, forwarded = [], 0
    for prompt, group, credit in zip(prompts, completions, credits, strict=True):
        if len(credit):
            tokens_GL, mask_GL = _padded(prompt, group, device_of(model))
            hidden = unwrapped(model).base_model(input_ids=tokens_GL, attention_mask=mask_GL, use_cache=False).last_hidden_state
            parts.append(hidden[credit.completion.to(hidden.device), credit.position.to(hidden.device) + len(prompt) - 1])
            forwarded += sum(len(prompt) + len(tokens) for tokens in group)
    return torch.cat(parts), forwarded


class _Pass(NamedTuple):
    """One batch of rows through the trunk: the distinct hidden states (U, width) that predict a credited token; of each token
    which of them, its id, and its place in the order of the credits; and the tokens that went in, padding aside.
    """

    hidden_U: Tensor
    which_N: Tensor
    target_N: Tensor
    output: Tensor
    tokens: int


def _packed_passes(model, prompts, completions, credits, token_budget: int) -> Iterator[_Pass]:
    causal_lm = unwrapped(model)
    device = device_of(model)
    rows = pack_groups(prompts, completions, credits, token_budget // 4, width=causal_lm.config.hidden_size)
    for batch in batch_rows(rows, token_budget // 2):
        tokens, positions = collate(batch, device)
        mask = additive_mask(batch, device, causal_lm.dtype)
        hidden = causal_lm.base_model(
            input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        length = tokens.shape[1]
        source = torch.cat([torch.from_numpy(row.source) + index * length for index, row in enumerate(batch)])
        target = torch.cat([torch.from_numpy(row.target) for row in batch])
        output = torch.cat([torch.from_numpy(row.output) for row in batch])
        distinct, which = torch.unique(source, return_inverse=True)
        yield _Pass(hidden.flatten(0, 1)[distinct.to(device)], which, target, output, sum(map(len, batch)))


def _packed(model, prompts, completions, credits, temperature: float, token_budget: int) -> Scores:
    parts, outputs = [], []
    forwarded = scored = 0
    for made in _packed_passes(model, prompts, completions, credits, token_budget):
        parts.append(gathered_log_softmax(unwrapped(model), made.hidden_U, made.which_N, made.target_N, temperature))
        forwarded += made.tokens
        scored += len(made.hidden_U)
        outputs.append(made.output)
    order = torch.argsort(torch.cat(outputs)).to(parts[0].device)
    return Scores(torch.cat(parts)[order], forwarded, scored)


def gathered_log_softmax(causal_lm, hidden_U: Tensor, which_N: Tensor, target_N: Tensor, temperature: float) -> Tensor:
    """Log-probs (N,) of ``target_N``, each predicted from row ``which_N`` of ``hidden_U``; the output layer runs in chunks."""
    head = causal_lm.get_output_embeddings()
    which_N, target_N = which_N.to(hidden_U.device), target_N.to(hidden_U.device)

    def chunk_log_probs(hidden: Tensor, which: Tensor, target: Tensor) -> Tensor:
        logits = upcast(head(hidden)) / temperature
        return logits[which, target] - torch.logsumexp(logits, dim=-1)[which]

    positions = chunk_positions(causal_lm)
    if len(hidden_U) <= positions:
        return chunk_log_probs(hidden_U, which_N, target_N)
    result = hidden_U.new_zeros(len(which_N), dtype=result_dtype(causal_lm))
    for start in range(0, len(hidden_U), positions):
        inside = torch.nonzero((which_N >= start) & (which_N < start + positions)).squeeze(1)
        # Recomputed in the backward pass: otherwise autograd would keep the logits of all chunks.
        part = checkpoint(
            chunk_log_probs,
            hidden_U[start : start + positions],
            which_N[inside] - start,
            target_N[inside],
            use_reentrant=False,
            preserve_rng_state=False,
        )
        result = result.index_put((inside,), part)
    return result


def chunk_positions(causal_lm: nn.Module) -> int:
    """At how many positions the output layer runs at a time."""
    return max(1, MAX_LOGIT_BYTES // (causal_lm.config.get_text_config().vocab_size * 4))


def _dense(model, prompts, completions, credits, temperature: float) -> Scores:
    """The reference: every token of every completion of a group that has credit goes through the model, prompts repeated."""
    parts = []
    forwarded = 0
    device = device_of(model)
    for prompt, group, credit in zip(prompts, completions, credits, strict=True):
        if not len(credit):
            continue
        tokens_GL, mask_GL = _padded(prompt, group, device)
        forwarded += int(sum(len(prompt) + len(tokens) for tokens in group))
        logits = model(input_ids=tokens_GL, attention_mask=mask_GL, use_cache=False).logits
        log_probs = torch.log_softmax(upcast(logits) / temperature, dim=-1)
        completion, column = credit.completion.to(device), credit.position.to(device) + len(prompt)
        parts.append(log_probs[completion, column - 1, tokens_GL[completion, column]])
    return Scores(torch.cat(parts), forwarded, forwarded)


def _padded(prompt, group, device: torch.device) -> tuple[Tensor, Tensor]:
    """The prompt with each completion (G, L), padded on the right, and the mask of what is no padding."""
    length = len(prompt) + max(len(tokens) for tokens in group)
    tokens_GL = torch.zeros((len(group), length), dtype=torch.long)
    mask_GL = torch.zeros((len(group), length), dtype=torch.long)
    for index, tokens in enumerate(group):
        sequence = torch.tensor([*prompt, *tokens])
        tokens_GL[index, : len(sequence)] = sequence
        mask_GL[index, : len(sequence)] = 1
    return tokens_GL.to(device), mask_GL.to(device)


def micro_batches(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    credits: Sequence[TokenCredit],
    max_tokens: int,
) -> Iterator[list[int]]:
    """Indices of groups with credit, in parts whose generated tokens and prompts together stay under ``max_tokens`` if they can.

    Each part is scored and differentiated before the next, so this bounds memory; the gradient is the sum and does not change.
    """
    part: list[int] = []
    size = 0
    for index, credit in enumerate(credits):
        if not len(credit):
            continue
        tokens = len(prompts[index]) + sum(len(tokens) for tokens in completions[index])
        if part and size + tokens > max_tokens:
            yield part
            part, size = [], 0
        part.append(index)
        size += tokens
    if part:
        yield part


def _check(prompts, completions, credits, temperature: float) -> None:
    if not len(prompts) == len(completions) == len(credits):
        raise ValueError(
            f"{len(prompts)} prompts, {len(completions)} groups of completions, {len(credits)} credits: need as many of each"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be over 0, not {temperature}")
    for index, (prompt, group, credit) in enumerate(zip(prompts, completions, credits, strict=True)):
        if not len(prompt):
            raise ValueError(f"prompt {index} is empty: the first token has nothing to be predicted from")
        credit.require_inside(group)

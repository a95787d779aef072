"""The passes of the model while a batch is sampled: the rows of its batch, their cache, and the logits behind each row.

``SharedRows`` computes each distinct prefix once; its shapes change with every token, so every kernel is launched from Python.
``FixedRows`` computes a row for each completion in shapes that do not change, so that torch.compile can make a pass one piece, on a
GPU a CUDA graph. What they compute differs by rounding alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CompileConfig, DynamicCache, StaticCache

from replication.errors import UserError, first_line, is_out_of_memory
from replication.scoring import why_not_packable

#: The length of a fixed cache is rounded up to a multiple of this: each new shape is compiled anew.
LENGTH_STEP = 64


class SharedRows:
    """A row for each distinct prefix: completions of a group share one until they part, and rows that have ended leave.

    Args:
        causal_lm: without its PEFT wrapper.
        prompts: B non-empty lists of token ids.
        group_size: G completions for each prompt.
        pad_token_id: what fills shorter prompts on the left.

    Attributes:
        row_C: the row that each of the B * G completions stands at, on the host.
        logits_RV: logits behind each row.
    """

    def __init__(self, causal_lm: nn.Module, prompts: Sequence[Sequence[int]], group_size: int, pad_token_id: int) -> None:
        self.causal_lm = causal_lm
        self.row_C = torch.arange(len(prompts) * group_size) // group_size
        self.cache = DynamicCache(config=causal_lm.config)
        self.logits_RV, self.mask = _prefill(causal_lm, self.cache, prompts, pad_token_id)
        self.next_R = self.mask.sum(1)  # the position of each row's next token

    def extend(self, row_A: Tensor, token_A: Tensor) -> Tensor:
        """Put a token behind the row of each completion that goes on; the rows where they stand then."""
        rows, vocabulary = self.logits_RV.shape
        device = self.mask.device
        prefix_R, row_A = torch.unique(row_A * vocabulary + token_A, return_inverse=True)
        parent_R, token_R = prefix_R // vocabulary, prefix_R % vocabulary
        if not torch.equal(parent_R, torch.arange(rows)):
            parents = parent_R.to(device, non_blocking=True)
            self.cache.reorder_cache(parents)
            self.mask, self.next_R = self.mask[parents], self.next_R[parents]
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(parent_R), 1))], 1)
        self.logits_RV = self.causal_lm(
            input_ids=token_R.unsqueeze(1).to(device, non_blocking=True),
            attention_mask=self.mask,
            position_ids=self.next_R.unsqueeze(1),
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.next_R = self.next_R + 1
        return row_A


class FixedRows:
    """A row for each completion, ended or not, in a cache that holds the longest answers from the start.

    A recorded CUDA graph reads and writes at one address. So the cache of a model is kept for its next batch, and replaced only by
    one with more rows or longer ones. Smaller batches fill it up with copies of a prompt.

    Args, attributes: as of ``SharedRows``.

    Raises:
        UserError: fixed shapes were not checked for this model, or it cannot be compiled here.
    """

    def __init__(
        self, causal_lm: nn.Module, prompts: Sequence[Sequence[int]], group_size: int, pad_token_id: int, max_new_tokens: int
    ) -> None:
        self.row_C = torch.arange(len(prompts) * group_size)
        rows, length, self.cache = _fixed_cache(causal_lm, len(self.row_C), max(map(len, prompts)) + max_new_tokens)
        filled = [prompt for prompt in prompts for _ in range(group_size)]
        filled += filled[-1:] * (rows - len(filled))
        self.next_place = length - max_new_tokens
        self.logits_RV, mask = _prefill(causal_lm, self.cache, filled, pad_token_id, self.next_place)
        self.next_R = mask.sum(1)
        self.mask = torch.cat([mask, mask.new_zeros((rows, max_new_tokens))], 1)
        self.token_R = torch.full((rows, 1), pad_token_id)
        self.compiled = causal_lm.get_compiled_call(CompileConfig(dynamic=False))

    def extend(self, row_A: Tensor, token_A: Tensor) -> Tensor:
        """Put a token behind the row of each completion that goes on, which keeps its row. What the other rows get is not read."""
        self.token_R[row_A, 0] = token_A
        self.mask[:, self.next_place] = 1
        torch.compiler.cudagraph_mark_step_begin()  # the next pass may write where the logits of this one lie
        try:
            self.logits_RV = self.compiled(
                input_ids=self.token_R.to(self.mask.device, non_blocking=True),
                attention_mask=self.mask,
                position_ids=self.next_R.unsqueeze(1),
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]
        except Exception as error:  # a missing C compiler, an old GPU: each fails in a way of its own
            if is_out_of_memory(error):
                raise
            reason = first_line(error, with_type=True)
            raise UserError(f"this model cannot be compiled here ({reason}): set compile_sampling=false") from error
        self.next_place += 1
        self.next_R = self.next_R + 1
        return row_A


def _prefill(
    causal_lm: nn.Module, cache, prompts: Sequence[Sequence[int]], pad_token_id: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits after each prompt (B, V), and the mask (B, length); prompts shorter than ``length`` are padded on the left."""
    device = next(causal_lm.parameters()).device
    length = length or max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), length), pad_token_id)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        tokens[index, length - len(prompt) :] = torch.tensor(list(prompt))
        mask[index, length - len(prompt) :] = 1
    tokens, mask = tokens.to(device), mask.to(device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = causal_lm(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits[:, -1]
    return logits, mask


#: The cache of a model, with its rows and their length.
_kept: weakref.WeakKeyDictionary[nn.Module, tuple[int, int, StaticCache]] = weakref.WeakKeyDictionary()


def _fixed_cache(causal_lm: nn.Module, rows: int, length: int) -> tuple[int, int, StaticCache]:
    """An empty cache of at least so many rows of at least that length: its rows, their length, itself."""
    had_rows, had_length, cache = _kept.get(causal_lm, (0, 0, None))
    if rows <= had_rows and length <= had_length:
        cache.reset()
        return had_rows, had_length, cache
    # Layers with a window have masks of their own, and a graph for each place in it.
    if reason := why_not_packable(causal_lm):
        raise UserError(f"sampling cannot be compiled for this model ({reason}): set compile_sampling=false")
    if cache is None:
        torch.compiler.reset()  # torch compiles a function a few times only, and every model counts
    rows, length = max(rows, had_rows), max(-(-length // LENGTH_STEP) * LENGTH_STEP, had_length)
    _kept[causal_lm] = rows, length, StaticCache(config=causal_lm.config, max_cache_len=length)
    return _kept[causal_lm]

"""How a group becomes one row of tokens: its prompt, then each needed node of its completions' trie once.

The log-prob of token v after prefix p needs the hidden state of p's last token and of nothing that comes after it. So of the
trie only the nodes above a credited token are laid out; an ancestor mask lets each of them see the prompt and its own prefix,
and its position is its depth, so that the model computes for it exactly what it would compute for the completion alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from replication.algorithms import TokenCredit, Trie, build_trie

#: A group with more tokens than this is split into several rows (its mask is quadratic in the row's length).
MAX_ROW_TOKENS = 4096
#: How many keys a token may attend to, for each unit of the model's width, before attention costs it as much as all its linear
#: layers. From timings on a CPU at widths 128 and 512.
SPLIT_GAIN = 6
#: Below this many nodes attention costs next to nothing, and a row is not split to save it.
SMALL_ROW = 128
#: Rows are batched, shorter ones padded, as long as the padded batch stays below this.
MAX_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class PackedRow:
    """One row: a prompt and the trie nodes below it, and where in it the credited tokens are predicted.

    Attributes:
        prompt: token ids of the prompt.
        trie: the nodes after it.
        source: (n,) index in the row whose hidden state predicts the credited token.
        target: (n,) the credited token.
        output: (n,) index of that token in the result.
    """

    prompt: Sequence[int]
    trie: Trie
    source: np.ndarray
    target: np.ndarray
    output: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt) + len(self.trie)


def pack_groups(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    credits: Sequence[TokenCredit],
    max_row_tokens: int = MAX_ROW_TOKENS,
    *,
    width: int | None = None,
) -> list[PackedRow]:
    """The rows of a batch of groups; groups without credit have none.

    ``width`` is the model's hidden size: with it, groups that share little are split into rows of the cheapest length.
    """
    rows: list[PackedRow] = []
    first = 0
    for prompt, group, credit in zip(prompts, completions, credits, strict=True):
        if len(credit):
            rows += _pack_group(prompt, group, credit, first, _room(len(prompt), max_row_tokens, width))
        first += len(credit)
    return rows


def _pack_group(
    prompt: Sequence[int], group: Sequence[Sequence[int]], credit: TokenCredit, first: int, room: int
) -> list[PackedRow]:
    completion, position = credit.completion.numpy(), credit.position.numpy()
    # The last credited token of a completion is predicted, never read: a prefix of ``needed`` tokens goes into the model.
    needed = np.full(len(group), -1)
    np.maximum.at(needed, completion, position)
    members = np.flatnonzero(needed >= 0)
    output = first + np.arange(len(credit))
    rows = []
    for chosen in _split(group, needed, members, room):
        trie = build_trie([group[i][: needed[i]] for i in chosen])
        path_start = np.zeros(len(group), dtype=np.int64)
        path_start[chosen] = np.cumsum(needed[chosen]) - needed[chosen]
        mine = np.isin(completion, chosen)
        who, where = completion[mine], position[mine]
        # Position 0 is predicted by the prompt's last token, position t by the node that token t - 1 reaches.
        node = np.full(len(who), -1)
        later = where > 0
        node[later] = trie.path[path_start[who[later]] + where[later] - 1]
        target = np.array([group[i][t] for i, t in zip(who, where, strict=True)], dtype=np.int64)
        rows.append(PackedRow(prompt, trie, len(prompt) + node, target, output[mine]))
    return rows


def _room(prompt: int, max_row_tokens: int, width: int | None) -> int:
    """How many nodes a row may hold beside its prompt.

    N nodes in k rows cost k prompts in linear layers, and k (prompt + N / k)^2 in attention; the sum is least where a row
    holds sqrt(prompt^2 + c * width * prompt) nodes. So long prompts and wide models make long rows.
    """
    room = max_row_tokens - prompt
    return room if width is None else min(room, max(SMALL_ROW, math.isqrt(prompt**2 + SPLIT_GAIN * width * prompt)))


def _split(group: Sequence[Sequence[int]], needed: np.ndarray, members: np.ndarray, room: int) -> list[np.ndarray]:
    """The credited completions of a group, in as few and as even parts as the room in a row asks for."""
    if needed[members].sum() <= room:
        return [members]
    # Neighbours in lexicographic order share the longest prefixes, so cutting there repeats the fewest nodes.
    order = sorted(members.tolist(), key=lambda i: list(group[i][: needed[i]]))
    fresh = [int(needed[order[0]])]
    for i, j in zip(order, order[1:], strict=False):
        fresh.append(int(needed[j]) - _shared(group[i][: needed[i]], group[j][: needed[j]]))
    share = sum(fresh) / max(1, math.ceil(sum(fresh) / max(room, 1)))
    parts: list[list[int]] = [[]]
    nodes = 0
    for i, new in zip(order, fresh, strict=True):
        if parts[-1] and (nodes >= share or nodes + new > room):
            parts.append([])
            nodes, new = 0, int(needed[i])
        parts[-1].append(i)
        nodes += new
    return [np.sort(np.array(part)) for part in parts]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


def batch_rows(rows: Sequence[PackedRow], max_batch_tokens: int = MAX_BATCH_TOKENS) -> list[list[PackedRow]]:
    """Rows of similar length together, so that padding stays small and no padded batch is over the limit (unless one row is)."""
    batches: list[list[PackedRow]] = []
    for row in sorted(rows, key=len, reverse=True):
        if batches and len(batches[-1][0]) * (len(batches[-1]) + 1) <= max_batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def ancestor_mask(row: PackedRow) -> np.ndarray:
    """(L, L) bool, True where the query (first axis) may see the key: itself, the prompt before it, its own prefix."""
    prompt, nodes = len(row.prompt), len(row.trie)
    mask = np.zeros((prompt + nodes, prompt + nodes), dtype=bool)
    mask[:prompt, :prompt] = np.tri(prompt, dtype=bool)
    mask[prompt:, :prompt] = True
    for node, parent in enumerate(row.trie.parent.tolist(), start=prompt):
        if parent >= 0:
            mask[node] = mask[prompt + parent]
        mask[node, node] = True
    return mask


def collate(rows: Sequence[PackedRow], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (B, L), position ids (B, L) and the additive mask (B, 1, L, L) of a batch of rows, padded on the right."""
    length = max(len(row) for row in rows)
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    allowed = np.zeros((len(rows), 1, length, length), dtype=bool)
    allowed[:, 0, np.arange(length), np.arange(length)] = True  # padding sees itself: a row without a key would be NaN
    for index, row in enumerate(rows):
        size, prompt = len(row), len(row.prompt)
        tokens[index, :size] = np.concatenate([np.asarray(row.prompt, dtype=np.int64), row.trie.token])
        positions[index, :size] = np.concatenate([np.arange(prompt), prompt - 1 + row.trie.depth])
        allowed[index, 0, :size, :size] = ancestor_mask(row)
    blocked = torch.from_numpy(~allowed).to(device)
    mask = torch.zeros(blocked.shape, dtype=dtype, device=device).masked_fill_(blocked, torch.finfo(dtype).min)
    return torch.from_numpy(tokens).to(device), torch.from_numpy(positions).to(device), mask

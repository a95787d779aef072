"""How a group becomes one row of tokens: its prompt, then each needed node of its completions' trie once.

The log-prob of token v after prefix p needs the hidden state of p's last token and of nothing that comes after it. So of the
trie only the nodes above a credited token are laid out; an ancestor mask lets each of them see the prompt and its own prefix,
and its position is its depth, so that the model computes for it exactly what it would compute for the completion alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from replication.algorithms import TokenCredit, Trie, build_trie

#: A group with more tokens than this is split into several rows (its mask is quadratic in the row's length).
MAX_ROW_TOKENS = 4096
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
) -> list[PackedRow]:
    """The rows of a batch of groups; groups without credit have none."""
    rows: list[PackedRow] = []
    first = 0
    for prompt, group, credit in zip(prompts, completions, credits, strict=True):
        if len(credit):
            rows += _pack_group(prompt, group, credit, first, max_row_tokens)
        first += len(credit)
    return rows


def _pack_group(
    prompt: Sequence[int], group: Sequence[Sequence[int]], credit: TokenCredit, first: int, max_row_tokens: int
) -> list[PackedRow]:
    completion, position = credit.completion.numpy(), credit.position.numpy()
    # The last credited token of a completion is predicted, never read: a prefix of ``needed`` tokens goes into the model.
    needed = np.full(len(group), -1)
    np.maximum.at(needed, completion, position)
    members = np.flatnonzero(needed >= 0)
    output = first + np.arange(len(credit))
    rows = []
    for chosen in _split(prompt, group, needed, members, max_row_tokens):
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


def _split(prompt, group, needed, members, max_row_tokens: int) -> list[np.ndarray]:
    """The credited completions of a group, in as few parts as the limit on a row asks for."""
    room = max_row_tokens - len(prompt)
    if needed[members].sum() <= room:
        return [members]
    # Neighbours in lexicographic order share the longest prefixes, so cutting there repeats the fewest nodes.
    order = sorted(members, key=lambda i: list(group[i][: needed[i]]))
    parts: list[list[int]] = [[]]
    nodes: set[tuple[int, ...]] = set()
    for i in order:
        prefixes = {tuple(group[i][:depth]) for depth in range(1, needed[i] + 1)}
        if parts[-1] and len(nodes | prefixes) > room:
            parts.append([])
            nodes = set()
        parts[-1].append(i)
        nodes |= prefixes
    return [np.sort(np.array(part)) for part in parts]


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

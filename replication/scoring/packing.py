"""How a group becomes one row of tokens: its prompt, then each needed node of its completions' trie once.

The log-prob of token v after prefix p needs the hidden state of p's last token and of nothing that comes after it. So a row holds
only the trie's nodes above a credited token. A mask lets each node see the prompt and its own prefix, and its position is its
depth: the model computes for it exactly what it would compute for the completion alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from replication.algorithms import TokenCredit, build_trie

#: How many keys a token may attend to, for each unit of the model's width, before attention costs it as much as all its linear
#: layers. From timings on a CPU at widths 128 and 512.
SPLIT_GAIN = 6
#: Below this many nodes attention costs next to nothing, and a row is not split to save it.
SMALL_ROW = 128


@dataclass(frozen=True)
class PackedRow:
    """One row: a prompt and the trie nodes below it, or several such one behind the other, and where the credit is predicted.

    Attributes:
        token: (L,) token ids, each node right behind what is below its parent's earlier children (depth-first).
        parent: (L,) index of the token before it, -1 for the first of a prompt.
        position: (L,) how many tokens stand before it in its own sequence.
        source: (n,) index in the row whose hidden state predicts the credited token.
        target: (n,) the credited token.
        output: (n,) index of that token in the result.
    """

    token: np.ndarray
    parent: np.ndarray
    position: np.ndarray
    source: np.ndarray
    target: np.ndarray
    output: np.ndarray

    def __len__(self) -> int:
        return len(self.token)


def pack_groups(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    credits: Sequence[TokenCredit],
    max_row_tokens: int,
    *,
    width: int | None = None,
) -> list[PackedRow]:
    """The rows of a batch of groups; groups without credit have none, one with more than ``max_row_tokens`` has several.

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
        size = len(prompt)  # a first token's parent is -1 in the trie: the prompt's last token in the row
        rows.append(
            PackedRow(
                token=np.concatenate([np.asarray(prompt, dtype=np.int64), trie.token]),
                parent=np.concatenate([np.arange(-1, size - 1), size + trie.parent]),
                position=np.concatenate([np.arange(size), size - 1 + trie.depth]),
                source=size + node,
                target=target,
                output=output[mine],
            )
        )
    return rows


def _room(prompt: int, max_row_tokens: int, width: int | None) -> int:
    """How many nodes a row may hold beside its prompt.

    N nodes in k rows cost k prompts in linear layers, and k (prompt + N / k)^2 in attention; the sum is least where a row
    holds sqrt(prompt^2 + c * width * prompt) nodes. So long prompts and wide models make long rows.
    """
    room = max_row_tokens - prompt
    return room if width is None else min(room, max(SMALL_ROW, math.isqrt(prompt**2 + SPLIT_GAIN * width * prompt)))


def _split(group: Sequence[Sequence[int]], needed: np.ndarray, members: np.ndarray, room: int) -> list[np.ndarray]:
    """The credited completions of a group, in as few and as even parts as the room in a row asks for.

    In lexicographic order: neighbours then share the longest prefixes, so cutting between them repeats the fewest nodes, and
    the nodes of a trie built in this order are numbered depth-first.
    """
    order = sorted(members.tolist(), key=lambda i: list(group[i][: needed[i]]))
    fresh = [int(needed[order[0]])]  # the nodes that each adds to those before it
    for i, j in zip(order, order[1:], strict=False):
        fresh.append(int(needed[j]) - _shared(group[i][: needed[i]], group[j][: needed[j]]))
    share = sum(fresh) / max(1, math.ceil(sum(fresh) / max(room, 1)))
    parts: list[list[int]] = [[]]
    nodes = 0
    for i, new in zip(order, fresh, strict=True):
        if parts[-1] and new and (nodes >= share or nodes + new > room):
            parts.append([])
            nodes, new = 0, int(needed[i])
        parts[-1].append(i)
        nodes += new
    return [np.array(part) for part in parts]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


def batch_rows(rows: Sequence[PackedRow], max_batch_tokens: int) -> list[list[PackedRow]]:
    """Batches of rows, the longest first in each; short rows stand one behind the other where the longest would pad them.

    No padded batch is over the limit, unless one row is.
    """
    batches: list[list[list[PackedRow]]] = []
    for row in sorted(rows, key=len, reverse=True):
        if batches:
            bins = batches[-1]
            length = sum(map(len, bins[0]))
            fits = next((joined for joined in bins if sum(map(len, joined)) + len(row) <= length), None)
            if fits is not None:
                fits.append(row)
                continue
            if length * (len(bins) + 1) <= max_batch_tokens:
                bins.append([row])
                continue
        batches.append([[row]])
    return [[_joined(parts) for parts in bins] for bins in batches]


def _joined(rows: Sequence[PackedRow]) -> PackedRow:
    """Rows one behind the other; none sees another."""
    starts = np.cumsum([0, *map(len, rows[:-1])])
    return PackedRow(
        token=np.concatenate([row.token for row in rows]),
        parent=np.concatenate([np.where(row.parent < 0, -1, row.parent + at) for row, at in zip(rows, starts, strict=True)]),
        position=np.concatenate([row.position for row in rows]),
        source=np.concatenate([row.source + at for row, at in zip(rows, starts, strict=True)]),
        target=np.concatenate([row.target for row in rows]),
        output=np.concatenate([row.output for row in rows]),
    )


def subtree_end(parent: np.ndarray) -> np.ndarray:
    """(L,) for each token the index behind its last descendant. In depth-first order its descendants stand directly behind it."""
    end = np.arange(1, len(parent) + 1)
    for child in range(len(parent) - 1, -1, -1):
        if parent[child] >= 0:
            end[parent[child]] = max(end[parent[child]], end[child])
    return end


def collate(rows: Sequence[PackedRow], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and position ids (B, L) of a batch of rows, padded on the right."""
    length = max(len(row) for row in rows)
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row.token
        positions[index, : len(row)] = row.position
    return torch.from_numpy(tokens).to(device), torch.from_numpy(positions).to(device)


def additive_mask(rows: Sequence[PackedRow], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(B, 1, L, L): 0 where a token may see another, else the least number of the dtype; for sdpa and eager attention."""
    length = max(len(row) for row in rows)
    ends = np.tile(np.arange(1, length + 1), (len(rows), 1))  # padding sees itself: a row without a key would be NaN
    for index, row in enumerate(rows):
        ends[index, : len(row)] = subtree_end(row.parent)
    # L numbers a row go to the device and not L x L, which a GPU would wait for.
    place, end = torch.arange(length, device=device), torch.from_numpy(ends).to(device)
    allowed = (place[None, None, :] <= place[None, :, None]) & (place[None, :, None] < end[:, None, :])
    mask = torch.zeros((len(rows), 1, length, length), dtype=dtype, device=device)
    return mask.masked_fill_(~allowed[:, None], torch.finfo(dtype).min)


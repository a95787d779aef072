"""The prefix trie of a group: T-SPMO credits its branches, packed scoring computes each of its nodes once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trie:
    """All distinct non-empty prefixes of a group's completions. The root (the prompt) is -1 and has no entry.

    Nodes are numbered in the order in which the completions, read one after the other, first reach them, so a parent always
    has a smaller number than its children.

    Attributes:
        parent: (nodes,) int64, -1 for a first token.
        token: (nodes,) int64, the last token of the prefix.
        depth: (nodes,) int64, the number of tokens of the prefix.
        path: (T,) int64, for every token of every completion, one after the other, the node that it reaches.
    """

    parent: np.ndarray
    token: np.ndarray
    depth: np.ndarray
    path: np.ndarray

    def __len__(self) -> int:
        return len(self.parent)


def build_trie(completions: Sequence[Sequence[int]]) -> Trie:
    """The trie of ``completions`` (lists of token ids), in time linear in the number of tokens.

    Example:
        >>> trie = build_trie([[7, 8], [7, 9]])
        >>> trie.token.tolist(), trie.parent.tolist(), trie.path.tolist()
        ([7, 8, 9], [-1, 0, 0], [0, 1, 0, 2])
    """
    children: dict[tuple[int, int], int] = {}
    parent: list[int] = []
    token: list[int] = []
    depth: list[int] = []
    path: list[int] = []
    for completion in completions:
        node = -1
        for level, symbol in enumerate(completion, start=1):
            child = children.setdefault((node, symbol), len(parent))
            if child == len(parent):
                parent.append(node)
                token.append(symbol)
                depth.append(level)
            node = child
            path.append(node)
    return Trie(*(np.array(column, dtype=np.int64) for column in (parent, token, depth, path)))

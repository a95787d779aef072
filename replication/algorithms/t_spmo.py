"""T-SPMO (Lee & Tong): credit for the transitions of the group's prefix trie at which completions part.

Departures from GRPO, marked at their lines below:
    [1] the advantage belongs to a transition (prefix, next token), not to a completion, and is not normalised;
    [2] every distinct transition counts once, however many completions share it;
    [3] completions that were restarted from a forced prefix (replay) count only where they are samples of the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from replication.algorithms.credit import TokenCredit, check_group, flat_positions, is_tied
from replication.algorithms.trie import build_trie

#: Below this an advantage is rounding: rewards like 0.1 do not subtract to exact zero.
ZERO_ADVANTAGE = 1e-9


@dataclass(frozen=True)
class TSPMO:
    """Credit each distinct transition with how much it raises the mean reward.

    Formula: A(v | p) = mean R of the completions that begin with p then v - mean R of those that begin with p,
    J = 1/G * sum over distinct transitions of ratio(v | p) * A(v | p).
    Source: A and the sum over distinct transitions from second-hand descriptions of the method section of arXiv 2504.20834;
    the factor 1/G and replay are our reconstruction.

    Args:
        denominator: "group" gives weight 1 / G (G counts the originals, not the replays), "transitions" 1 / (number of rows).

    Raises:
        ValueError: for an unknown denominator.
    """

    denominator: Literal["group", "transitions"] = "group"
    #: Facts about a group that ``assign`` takes as further keyword arguments.
    needs: ClassVar[tuple[str, ...]] = ("replay_starts",)

    def __post_init__(self) -> None:
        if self.denominator not in ("group", "transitions"):
            raise ValueError(f'denominator must be "group" or "transitions", not {self.denominator!r}')

    def assign(
        self,
        completions: Sequence[Sequence[int]],
        rewards: Tensor,
        generator: torch.Generator | None = None,
        *,
        replay_starts: Sequence[int] | None = None,
    ) -> TokenCredit:
        """The credit of one group.

        Args:
            completions: G lists of generated token ids, EOS included, no padding; replays after the originals.
            rewards: (G,) finite numbers.
            generator: unused, nothing is drawn.
            replay_starts: for each completion the number of its first tokens that were forced; 0 for an original. A replay
                counts only in means of prefixes at least that long, and only its tokens after the start are transitions.

        Returns:
            One row for each distinct transition whose |advantage| is over 1e-9, at the first completion that generated it,
            in the order of (completion, position); none if all rewards tie.

        Example:
            >>> credit = TSPMO().assign([[1, 2], [1, 3]], torch.tensor([1.0, 0.0]))
            >>> credit.position.tolist(), credit.advantage.tolist(), credit.weight.tolist()
            ([1, 1], [0.5, -0.5], [0.5, 0.5])
        """
        values = check_group(completions, rewards)
        starts = _check_starts(completions, replay_starts)
        if is_tied(values):
            return TokenCredit.empty()
        trie = build_trie(completions)
        completion, position, _ = flat_positions(completions)

        # Mean reward of the completions that begin with each prefix. The token at position t completes a prefix of t + 1 tokens,
        # and a replay is a sample of the policy only given prefixes at least as long as its start. [3]
        sampled = position + 1 >= starts[completion]
        count = np.bincount(trie.path[sampled], minlength=len(trie))
        total = np.bincount(trie.path[sampled], weights=values[completion[sampled]], minlength=len(trie))
        mean = total / np.maximum(count, 1)
        prefix_mean = np.where(trie.parent >= 0, mean[trie.parent], values[starts == 0].mean())
        advantage = mean - prefix_mean  # [1]

        generated = np.flatnonzero(position >= starts[completion])
        _, first = np.unique(trie.path[generated], return_index=True)  # [2]
        rows = np.sort(generated[first])
        rows = rows[np.abs(advantage[trie.path[rows]]) > ZERO_ADVANTAGE]
        divisor = int((starts == 0).sum()) if self.denominator == "group" else max(len(rows), 1)
        return TokenCredit.from_arrays(
            completion[rows], position[rows], advantage[trie.path[rows]], np.full(len(rows), 1.0 / divisor)
        )


def _check_starts(completions: Sequence[Sequence[int]], replay_starts: Sequence[int] | None) -> np.ndarray:
    if replay_starts is None:
        return np.zeros(len(completions), dtype=np.int64)
    starts = np.array(replay_starts, dtype=np.int64)
    if starts.shape != (len(completions),):
        raise ValueError(f"replay_starts has {starts.size} entries for {len(completions)} completions")
    if (starts < 0).any() or (starts > [len(tokens) for tokens in completions]).any():
        raise ValueError("replay_starts must lie between 0 and the length of each completion")
    if not (starts == 0).any():
        raise ValueError("a group needs at least one original completion (replay start 0)")
    return starts

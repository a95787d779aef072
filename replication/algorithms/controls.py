"""Controls: GRPO on other tokens than S-GRPO's rule picks, and T-SPMO's credit without its sparsity.

Departures from GRPO, marked at their lines below:
    [1] of each completion only a share of its tokens is credited;
    [2] with "unbiased" a kept token's weight is divided by its chance to be kept, so the gradient is that of GRPO on average;
    [3] where completions part, T-SPMO's advantage of the transition is added to the completion's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from replication.algorithms.credit import (
    TokenCredit,
    check_group,
    check_normalisation,
    flat_positions,
    group_advantages,
    is_tied,
)
from replication.algorithms.trie import build_trie

#: Those that draw, then those that rank the tokens of a completion.
DRAWING = ("random", "unbiased", "prefix_cut")
SELECTORS = (*DRAWING, "earliest", "latest", "entropy", "low_entropy")


@dataclass(frozen=True)
class SelectedGRPO:
    """Credit a share of each completion's tokens, chosen by another rule than S-GRPO's.

    Formula: as S-GRPO's, J = 1/G * sum_i 1/|T_i| * sum_{t in T_i} ratio(i, t) * A_i, with another T_i:

    - random: ceil(share * |y(i)|) tokens, uniformly;
    - unbiased: each token with probability share, independently, with weight 1 / (G * |y(i)| * share) (arXiv 2603.06619);
    - prefix_cut: the tokens before a random cut. The cut's place over |y(i)| is uniform with mean share, over the widest range
      within 0 and 1 (the idea of arXiv 2603.06619; the range is our reconstruction);
    - earliest, latest: the first, the last ceil(share * |y(i)|) tokens;
    - entropy, low_entropy: those of highest, lowest entropy. Highest is the idea of arXiv 2506.01939 and lowest its control;
      there the rank is over the batch, here within the completion, so that every completion keeps the same share.

    Source: our own controls.

    Args:
        selector: one of these.
        share: over 0, up to 1; 1 is exactly GRPO.
        ddof, eps: as in GRPO.
        denominator: as in S-GRPO; "unbiased" has its own.

    Raises:
        ValueError: for values outside these.
    """

    selector: Literal["random", "unbiased", "prefix_cut", "earliest", "latest", "entropy", "low_entropy"]
    share: float
    ddof: int = 1
    eps: float = 1e-4
    denominator: Literal["kept", "completion"] = "kept"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("entropies",) if self.selector in ("entropy", "low_entropy") else ()

    def __post_init__(self) -> None:
        check_normalisation(self.ddof, self.eps)
        if self.selector not in SELECTORS:
            raise ValueError(f"selector must be one of {', '.join(SELECTORS)}, not {self.selector!r}")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"the share of tokens must be over 0 and at most 1, not {self.share}")
        if self.denominator not in ("kept", "completion"):
            raise ValueError(f'denominator must be "kept" or "completion", not {self.denominator!r}')

    def assign(
        self,
        completions: Sequence[Sequence[int]],
        rewards: Tensor,
        generator: torch.Generator | None = None,
        *,
        entropies: Sequence[Sequence[float]] | None = None,
    ) -> TokenCredit:
        """The credit of one group.

        Args:
            completions: G lists of generated token ids, EOS included, no padding.
            rewards: (G,) finite numbers.
            generator: needed by the selectors that draw.
            entropies: needed by "entropy" and "low_entropy": one number for each generated token, in nats.

        Returns:
            The selected rows in the order of (completion, position); none if the rewards tie.
        """
        values = check_group(completions, rewards)
        if self.selector in DRAWING and generator is None:
            raise ValueError(f"selector {self.selector} draws which tokens to keep: pass a torch.Generator")
        if self.needs and (entropies is None or [*map(len, entropies)] != [*map(len, completions)]):
            raise ValueError("selection by entropy needs entropies: one number for each generated token")
        if is_tied(values):
            return TokenCredit.empty()
        advantages = group_advantages(values, ddof=self.ddof, eps=self.eps)
        completion, position, lengths = flat_positions(completions)
        kept = np.flatnonzero(self._kept_mask(completion, position, lengths, generator, entropies))  # [1]
        completion, position = completion[kept], position[kept]
        if self.selector == "unbiased":
            divisor = lengths * self.share  # [2]
        else:
            divisor = np.bincount(completion, minlength=len(completions)) if self.denominator == "kept" else lengths
        weight = 1.0 / (len(completions) * divisor[completion])
        return TokenCredit.from_arrays(completion, position, advantages[completion], weight)

    def _kept_mask(self, completion, position, lengths, generator, entropies) -> np.ndarray:
        def draws(size: int) -> np.ndarray:
            return torch.rand(size, generator=generator, dtype=torch.float64).numpy()

        if self.selector == "unbiased":
            return draws(len(position)) < self.share
        share = self.share
        if self.selector == "prefix_cut":
            low, high = max(0.0, 2 * self.share - 1), min(1.0, 2 * self.share)
            share = low + (high - low) * draws(len(lengths))
        counts = np.ceil(np.round(share * lengths, 9)).astype(np.int64)
        if self.selector == "random":
            score = draws(len(position))
        elif self.needs:
            sign = -1 if self.selector == "entropy" else 1
            score = sign * np.concatenate([np.asarray(row, dtype=np.float64) for row in entropies])
        else:
            score = -position if self.selector == "latest" else position
        order = np.lexsort((position, score, completion))  # within each completion, first in rank first
        mask = np.zeros(len(position), dtype=bool)
        mask[order[position < counts[completion]]] = True  # flat arrays are completion-major: rank equals position
        return mask


@dataclass(frozen=True)
class BranchGRPO:
    """GRPO on every token, with T-SPMO's advantage added where completions part: tree credit without sparsity.

    Formula: A(i, t) = (R_i - mean R + A(v | p)) / (std R + eps), where v is token t of completion i and p what stands before it;
    A(v | p) is T-SPMO's, and 0 where the completions that begin with p all go on with v.
    Source: the idea of arXiv 2509.18314; that the sum is normalised as a whole is our reconstruction.

    Args:
        ddof, eps: as in GRPO.

    Raises:
        ValueError: for a ddof or eps that no standard deviation has.
    """

    ddof: int = 1
    eps: float = 1e-4

    def __post_init__(self) -> None:
        check_normalisation(self.ddof, self.eps)

    def assign(
        self, completions: Sequence[Sequence[int]], rewards: Tensor, generator: torch.Generator | None = None
    ) -> TokenCredit:
        """The credit of one group: a row for each generated token with weight 1 / (G * |y(i)|); none if the rewards tie.

        Args:
            completions: G lists of generated token ids, EOS included, no padding.
            rewards: (G,) finite numbers.
            generator: unused, nothing is drawn.
        """
        values = check_group(completions, rewards)
        if is_tied(values):
            return TokenCredit.empty()
        completion, position, lengths = flat_positions(completions)
        trie = build_trie(completions)
        mean = np.bincount(trie.path, weights=values[completion]) / np.bincount(trie.path)
        before = np.where(trie.parent >= 0, mean[trie.parent], values.mean())
        scale = values.std(ddof=self.ddof) + self.eps
        branch = (mean - before)[trie.path] / scale  # [3]
        advantage = group_advantages(values, ddof=self.ddof, eps=self.eps)[completion] + branch
        return TokenCredit.from_arrays(completion, position, advantage, 1.0 / (len(completions) * lengths[completion]))

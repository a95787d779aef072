"""GRPO on a fixed share of each completion's tokens, by which tokens: the controls for S-GRPO's rule.

Departure from GRPO, marked at its line below:
    [1] of each completion only the share of its tokens that the selector ranks first is credited.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

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

SELECTORS = ("random", "earliest", "latest", "entropy")


@dataclass(frozen=True)
class SelectedGRPO:
    """Credit ceil(share * |y(i)|) tokens of each completion: random ones, the first, the last, or those of highest entropy.

    Formula: as S-GRPO's, J = 1/G * sum_i 1/|T_i| * sum_{t in T_i} ratio(i, t) * A_i, with another T_i.
    Source: our own control. Crediting the tokens of highest entropy is the idea of arXiv 2506.01939, which ranks over the batch;
    here the rank is within the completion, so that every completion keeps the same share.

    Args:
        selector: "random", "earliest", "latest" or "entropy" (of the distribution that the token was drawn from).
        share: over 0, up to 1; 1 is exactly GRPO.
        ddof, eps: as in GRPO.
        denominator: as in S-GRPO.

    Raises:
        ValueError: for values outside these.
    """

    selector: Literal["random", "earliest", "latest", "entropy"]
    share: float
    ddof: int = 1
    eps: float = 1e-4
    denominator: Literal["kept", "completion"] = "kept"
    needs: ClassVar[tuple[str, ...]] = ("entropies",)

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
            generator: needed by "random".
            entropies: needed by "entropy": one number for each generated token.

        Returns:
            The selected rows in the order of (completion, position); none if the rewards tie.
        """
        values = check_group(completions, rewards)
        if self.selector == "random" and generator is None:
            raise ValueError("random selection draws which tokens to keep: pass a torch.Generator")
        if self.selector == "entropy" and (entropies is None or [*map(len, entropies)] != [*map(len, completions)]):
            raise ValueError("selection by entropy needs entropies: one number for each generated token")
        if is_tied(values):
            return TokenCredit.empty()
        advantages = group_advantages(values, ddof=self.ddof, eps=self.eps)
        completion, position = flat_positions(completions)
        lengths = np.array([len(tokens) for tokens in completions], dtype=np.int64)
        counts = np.array([math.ceil(round(self.share * length, 9)) for length in lengths], dtype=np.int64)

        if self.selector == "random":
            score = torch.rand(len(position), generator=generator, dtype=torch.float64).numpy()
        elif self.selector == "entropy":
            score = -np.concatenate([np.asarray(row, dtype=np.float64) for row in entropies])
        else:
            score = position if self.selector == "earliest" else -position
        order = np.lexsort((position, score, completion))  # within each completion, first in rank first
        kept = np.sort(order[position < counts[completion]])  # [1] flat arrays are completion-major: rank equals position
        completion, position = completion[kept], position[kept]
        divisor = counts if self.denominator == "kept" else lengths
        weight = 1.0 / (len(completions) * divisor[completion])
        return TokenCredit.from_arrays(completion, position, advantages[completion], weight)

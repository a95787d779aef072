"""S-GRPO (stochastic, Lee & Tong): GRPO on a random part of the tokens.

Departure from GRPO, marked at its line below:
    [1] only the tokens that the sampling rule lets in are credited.
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


@dataclass(frozen=True)
class SGRPO:
    """Credit the first ``cutoff`` tokens, and each later one with probability ``keep_probability``, up to ``max_kept_tokens``.

    Formula: J = 1/G * sum_i 1/|T_i| * sum_{t in T_i} ratio(i, t) * A_i, where T_i holds t if t < alpha, or, for t >= alpha,
    independently with probability P as long as |T_i| < k.
    Source: second-hand descriptions of the method section of arXiv 2504.20834; the denominator |y(i)| is our reconstruction.
    With keep_probability 1 and max_kept_tokens None it is exactly GRPO.

    Args:
        cutoff: alpha, at least 0.
        keep_probability: P, from 0 to 1.
        max_kept_tokens: k, at least the cutoff (early tokens are always kept), or None for no limit. The cap keeps the first
            k tokens that the rule lets in.
        ddof, eps: as in GRPO.
        denominator: "kept" gives weight 1 / (G * |T_i|), "completion" 1 / (G * |y(i)|). Under AdamW a common factor on the
            loss cancels; what the choice changes is the relative weight of completions.

    Raises:
        ValueError: for values outside the ranges above.
    """

    cutoff: int
    keep_probability: float
    max_kept_tokens: int | None
    ddof: int = 1
    eps: float = 1e-4
    denominator: Literal["kept", "completion"] = "kept"

    def __post_init__(self) -> None:
        check_normalisation(self.ddof, self.eps)
        if self.cutoff < 0:
            raise ValueError(f"cutoff must be 0 or more, not {self.cutoff}")
        if not 0.0 <= self.keep_probability <= 1.0:
            raise ValueError(f"keep_probability must lie between 0 and 1, not {self.keep_probability}")
        if self.max_kept_tokens is not None and self.cutoff > self.max_kept_tokens:
            raise ValueError(
                f"cutoff {self.cutoff} is over max_kept_tokens {self.max_kept_tokens}: early tokens are always kept, "
                "so lower the cutoff or raise the limit"
            )
        if self.denominator not in ("kept", "completion"):
            raise ValueError(f'denominator must be "kept" or "completion", not {self.denominator!r}')

    def assign(
        self, completions: Sequence[Sequence[int]], rewards: Tensor, generator: torch.Generator | None = None
    ) -> TokenCredit:
        """The credit of one group.

        Args:
            completions: G lists of generated token ids, EOS included, no padding.
            rewards: (G,) finite numbers.
            generator: source of the sampling rule's draws; one uniform number for each generated token, in order.

        Returns:
            One row for each kept token, completion by completion; none if the rewards tie. A completion with an empty T_i
            adds no row, and G stays the size of the group.

        Raises:
            ValueError: without a generator, or for rewards that do not fit the completions.
        """
        values = check_group(completions, rewards)
        if generator is None:
            raise ValueError("S-GRPO draws which tokens to keep: pass a torch.Generator")
        if is_tied(values):
            return TokenCredit.empty()
        advantages = group_advantages(values, ddof=self.ddof, eps=self.eps)
        completion, position, lengths = flat_positions(completions)
        kept = self._kept_mask(completion, position, generator)  # [1]
        completion, position = completion[kept], position[kept]
        kept_count = np.bincount(completion, minlength=len(completions))
        divisor = kept_count if self.denominator == "kept" else lengths
        weight = 1.0 / (len(completions) * divisor[completion])
        return TokenCredit.from_arrays(completion, position, advantages[completion], weight)

    def _kept_mask(self, completion: np.ndarray, position: np.ndarray, generator: torch.Generator) -> np.ndarray:
        # One draw for every token, needed or not: how many are consumed depends on the lengths alone.
        draws = torch.rand(len(position), generator=generator, dtype=torch.float64, device=generator.device).cpu().numpy()
        let_in = (position < self.cutoff) | (draws < self.keep_probability)
        if self.max_kept_tokens is None or not len(let_in):
            return let_in
        # Number let in before each token within its own completion: the running count minus the count at the completion's start.
        before = np.cumsum(let_in) - let_in
        starts = np.flatnonzero(position == 0)
        before -= before[starts][np.searchsorted(completion[starts], completion)]
        return let_in & (before < self.max_kept_tokens)

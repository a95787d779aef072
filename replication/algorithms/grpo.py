"""Full-token GRPO, the baseline: every generated token is credited with its completion's advantage."""

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
class GRPO:
    """Credit every token of completion i with A_i = (R_i - mean R) / (std R + eps).

    Formula: J = 1/G * sum_i 1/|y(i)| * sum_t ratio(i, t) * A_i.
    Source: second-hand descriptions of the method section of arXiv 2504.20834. The denominators are our reconstruction.

    Args:
        ddof: 1 (default) or 0, see ``group_advantages``.
        eps: added to the standard deviation.
        denominator: "completion" gives weight 1 / (G * |y(i)|); "group_tokens" gives 1 / (all tokens of the group), so that long
            completions weigh more (the token mean of arXiv 2503.14476).

    Raises:
        ValueError: for an unknown denominator, ddof or eps.
    """

    ddof: int = 1
    eps: float = 1e-4
    denominator: Literal["completion", "group_tokens"] = "completion"

    def __post_init__(self) -> None:
        check_normalisation(self.ddof, self.eps)
        if self.denominator not in ("completion", "group_tokens"):
            raise ValueError(f'denominator must be "completion" or "group_tokens", not {self.denominator!r}')

    def assign(
        self, completions: Sequence[Sequence[int]], rewards: Tensor, generator: torch.Generator | None = None
    ) -> TokenCredit:
        """The credit of one group.

        Args:
            completions: G lists of generated token ids, EOS included, no padding.
            rewards: (G,) finite numbers.
            generator: unused, nothing is drawn.

        Returns:
            One row for each generated token, completion by completion; none if the rewards tie (so also for G = 1).

        Example:
            >>> credit = GRPO(eps=0.0).assign([[5, 6], [7]], torch.tensor([1.0, 0.0]))
            >>> credit.advantage
            tensor([ 0.7071,  0.7071, -0.7071])
            >>> credit.weight
            tensor([0.2500, 0.2500, 0.5000])
        """
        values = check_group(completions, rewards)
        if is_tied(values):
            return TokenCredit.empty()
        advantages = group_advantages(values, ddof=self.ddof, eps=self.eps)
        completion, position, lengths = flat_positions(completions)
        if self.denominator == "completion":
            weight = 1.0 / (len(completions) * lengths[completion])
        else:
            weight = np.full(len(completion), 1.0 / max(len(completion), 1))
        return TokenCredit.from_arrays(completion, position, advantages[completion], weight)

"""PPO with a critic: every generated token is credited with its generalised advantage, reward to go minus the critic's value.

Departures from GRPO, marked at their lines below:
    [1] the baseline is the critic's value of the prefix, not the mean reward of the group, so a tied group still gives rows;
    [2] the advantage is not normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from replication.algorithms.credit import TokenCredit, check_group, flat_positions


@dataclass(frozen=True)
class PPO:
    """Credit token t of completion i with its generalised advantage estimate A(i, t).

    Formula: J = 1/G * sum_i 1/|y(i)| * sum_t ratio(i, t) * A(i, t), with
    A(i, t) = sum_{l >= 0} (gamma * lam)^l * delta(i, t + l) and delta(i, t) = r(i, t) + gamma * V(i, t + 1) - V(i, t).
    V(i, t) is the critic's value of the prompt and the tokens before t. The value behind the last token is 0; the reward R_i comes
    with the last token, r is 0 at the others.
    Source: arXiv 1506.02438v6, equations 11 to 16 (the advantage); arXiv 1707.06347v2 (PPO). That advantages are not normalised
    is our reconstruction: a constant factor cancels under AdamW, and the credit stays a function of the group alone.

    PPO's clip is missing on purpose. With one on-policy optimizer step for each batch the ratio is exactly 1, and a ratio of 1 is
    never clipped. What is left of PPO here is its critic.

    Args:
        gamma: discount of a token, from 0 to 1.
        lam: lambda, 0 to 1; default 1. At 1 (with gamma 1) the advantage is the final reward minus the value. Below 1 an untrained
            critic replaces part of the reward.
        denominator: as in GRPO.

    Raises:
        ValueError: for values outside these.
    """

    gamma: float = 1.0
    lam: float = 1.0
    denominator: Literal["completion", "group_tokens"] = "completion"
    needs: ClassVar[tuple[str, ...]] = ("values",)

    def __post_init__(self) -> None:
        for name in ("gamma", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.denominator not in ("completion", "group_tokens"):
            raise ValueError(f'denominator must be "completion" or "group_tokens", not {self.denominator!r}')

    def assign(
        self,
        completions: Sequence[Sequence[int]],
        rewards: Tensor,
        generator: torch.Generator | None = None,
        values: Sequence[Sequence[float]] | None = None,
    ) -> TokenCredit:
        """The credit of one group.

        Args:
            completions: G lists of generated token ids, EOS included, no padding.
            rewards: (G,) finite numbers.
            generator: unused, nothing is drawn.
            values: needed; one number for each generated token, in units of the reward: the value of what stands before it.

        Returns:
            One row for each generated token, completion by completion, also if the rewards tie. An empty completion has no token
            that its reward could come with: it gives no row, and G stays the size of the group.

        Raises:
            ValueError: without values, or for rewards or values that do not fit the completions.

        Example:
            >>> credit = PPO(lam=1.0).assign([[5, 6], [7]], torch.tensor([1.0, 1.0]), values=[[0.5, 0.75], [0.25]])
            >>> credit.advantage
            tensor([0.5000, 0.2500, 0.7500])
            >>> credit.weight
            tensor([0.2500, 0.2500, 0.5000])
        """
        advantages = self._advantages(completions, rewards, values)
        completion, position, lengths = flat_positions(completions)
        if self.denominator == "completion":
            weight = 1.0 / (len(completions) * lengths[completion])
        else:
            weight = np.full(len(completion), 1.0 / max(len(completion), 1))
        return TokenCredit.from_arrays(completion, position, np.concatenate(advantages), weight)  # [2]

    def targets(
        self, completions: Sequence[Sequence[int]], rewards: Tensor, values: Sequence[Sequence[float]]
    ) -> list[list[float]]:
        """What the critic should have said: advantage plus value, one number for each generated token (the return TD(lambda)).

        Arguments and errors are those of ``assign``. With lam = gamma = 1 every target is the completion's reward.
        """
        advantages = self._advantages(completions, rewards, values)
        return [(own + np.asarray(value, dtype=np.float64)).tolist() for own, value in zip(advantages, values, strict=True)]

    def _advantages(self, completions, rewards, values) -> list[np.ndarray]:
        """For each completion its (|y(i)|,) advantages in float64."""
        own_rewards = check_group(completions, rewards)
        if values is None or [*map(len, values)] != [*map(len, completions)]:
            raise ValueError("PPO needs values: one number for each generated token, from a critic")
        found = []
        for reward, value in zip(own_rewards, values, strict=True):  # [1]
            advantage = np.zeros(len(value))
            later, following = 0.0, 0.0  # the advantage and the value one token later; behind the last token both are 0
            for t in reversed(range(len(value))):
                earned = reward if t == len(value) - 1 else 0.0
                delta = earned + self.gamma * following - value[t]
                later = advantage[t] = delta + self.gamma * self.lam * later
                following = value[t]
            found.append(advantage)
        return found

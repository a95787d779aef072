"""Token credit: the one thing in which the methods differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenCredit:
    """Which tokens of one group are credited, with what advantage and what weight.

    Four tensors of one length N. The surrogate of the group is ``sum(weight * advantage * ratio)``, and the surrogate of a batch
    is the mean over its groups, those without credit counted.

    Attributes:
        completion: (N,) long, index of the completion in the group.
        position: (N,) long, position in that completion; 0 is the first generated token.
        advantage: (N,) float32.
        weight: (N,) float32, the share of the group's surrogate that the row carries.
    """

    completion: Tensor
    position: Tensor
    advantage: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        rows = self.completion.shape[0]
        for name in ("completion", "position", "advantage", "weight"):
            tensor = getattr(self, name)
            if tensor.ndim != 1 or tensor.shape[0] != rows:
                raise ValueError(f"TokenCredit.{name} has shape {tuple(tensor.shape)}, expected ({rows},) like the other three")

    def __len__(self) -> int:
        return self.completion.shape[0]

    def require_inside(self, completions: Sequence[Sequence[int]]) -> None:
        """Raise ValueError if a row names a completion or a position that the group does not have."""
        if not len(self):
            return
        lengths = torch.tensor([len(tokens) for tokens in completions])
        if self.completion.min() < 0 or self.completion.max() >= len(completions):
            raise ValueError(f"the credit names a completion outside the group's {len(completions)}")
        if self.position.min() < 0 or (self.position >= lengths[self.completion]).any():
            raise ValueError("the credit names a position outside its completion")

    def require_usable(self, completions: Sequence[Sequence[int]]) -> None:
        """Raise ValueError for what the loss would not notice: a wrong dtype, no finite number, a place outside or listed twice."""
        for name in ("completion", "position", "advantage", "weight"):
            tensor = getattr(self, name)
            number = name in ("advantage", "weight")
            if not (tensor.is_floating_point() if number else tensor.dtype in (torch.int64, torch.int32)):
                wanted = torch.float32 if number else torch.int64
                raise ValueError(f"the credit's {name} is {tensor.dtype}: it must be {wanted}")
            if tensor.device.type != "cpu":
                raise ValueError(f"the credit's {name} is on {tensor.device}: it must be on the CPU")
            if number and not (finite := tensor.float().isfinite()).all():
                row = int(finite.int().argmin())
                raise ValueError(f"the credit's {name} is {tensor[row].item()} in row {row}: it must be a finite number")
        self.require_inside(completions)
        if len(self):
            longest = max(map(len, completions))
            count = torch.bincount(self.completion * longest + self.position)
            if count.max() > 1:
                completion, position = divmod(int(count.argmax()), longest)
                raise ValueError(f"the credit lists position {position} of completion {completion} {count.max()} times, not once")

    @classmethod
    def from_arrays(cls, completion, position, advantage, weight) -> TokenCredit:
        """From numpy arrays; advantage and weight are rounded to float32 here and nowhere earlier."""
        return cls(
            completion=torch.from_numpy(np.array(completion, dtype=np.int64)),
            position=torch.from_numpy(np.array(position, dtype=np.int64)),
            advantage=torch.from_numpy(np.array(advantage, dtype=np.float32)),
            weight=torch.from_numpy(np.array(weight, dtype=np.float32)),
        )

    @classmethod
    def empty(cls) -> TokenCredit:
        """No credit at all, as for a tied group."""
        return cls.from_arrays([], [], [], [])


def check_group(completions: Sequence[Sequence[int]], rewards: Tensor) -> np.ndarray:
    """The rewards as a float64 array of shape (G,), after the checks that every method needs.

    Raises:
        ValueError: rewards are not one finite number for each completion, or the group is empty.
    """
    values = torch.as_tensor(rewards).detach().to("cpu", torch.float64).numpy()
    if values.shape != (len(completions),):
        raise ValueError(f"rewards have shape {values.shape}, expected ({len(completions)},): one for each completion")
    if not len(completions):
        raise ValueError("a group needs at least one completion")
    if not np.isfinite(values).all():
        raise ValueError(f"rewards must be finite numbers, not {values.tolist()}")
    return values


def is_tied(rewards: np.ndarray) -> bool:
    """Whether all rewards of the group are the same number, so that it can teach nothing."""
    return bool(rewards.max() == rewards.min())


def group_advantages(rewards: np.ndarray, *, ddof: int, eps: float) -> np.ndarray:
    """GRPO's advantages, A_i = (R_i - mean R) / (std R + eps).

    Source: second-hand descriptions of the method section of arXiv 2504.20834; ddof and eps are our reconstruction, since
    public implementations differ in both (ddof 0 or 1; eps 1e-4 or 1e-8).

    Args:
        rewards: (G,) float64, not tied.
        ddof: 1 divides the variance by G - 1, 0 by G. The choice rescales all advantages by sqrt(G / (G - 1)).
        eps: keeps the quotient finite.

    Returns:
        (G,) float64.
    """
    return (rewards - rewards.mean()) / (rewards.std(ddof=ddof) + eps)


def check_normalisation(ddof: int, eps: float) -> None:
    """Raise ValueError for a ddof or an eps that no definition of the standard deviation knows."""
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, not {ddof!r}")
    if not eps >= 0:
        raise ValueError(f"eps must be 0 or more, not {eps!r}")


def flat_positions(completions: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(completion, position) of every generated token, completion by completion, two (T,) arrays; and the (G,) lengths."""
    lengths = np.array([len(tokens) for tokens in completions], dtype=np.int64)
    completion = np.repeat(np.arange(len(completions)), lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return completion, np.arange(lengths.sum()) - starts, lengths


def every_token(completions: Sequence[Sequence[int]]) -> TokenCredit:
    """All tokens with advantage 1 and weight 1 over their number: to score a group rather than to learn from it."""
    completion, position, _ = flat_positions(completions)
    ones = np.ones(len(completion))
    return TokenCredit.from_arrays(completion, position, ones, ones / max(len(completion), 1))

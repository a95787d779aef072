"""Groups of answers that are shown token by token, and the toy group of four answers that is followed by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from replication.algorithms import SGRPO, TokenCredit
from replication.objective import surrogate_loss

if TYPE_CHECKING:
    from replication.groups import Group
    from replication.models import Policy


@dataclass(frozen=True)
class ShownGroup:
    """A group of answers with the text of each token.

    Attributes:
        question: the prompt.
        pieces: for each answer the texts of its tokens.
        tokens: the same as ids.
        rewards: (G,) float.
    """

    question: str
    pieces: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    rewards: Tensor

    @property
    def size(self) -> int:
        """Generated tokens of the whole group."""
        return sum(map(len, self.tokens))

    @classmethod
    def of(cls, policy: Policy, group: Group) -> ShownGroup:
        """A sampled group; line breaks and ends of sequence are made visible."""

        def text(token: int) -> str:
            if token in policy.eos_token_ids:
                return "<eos>"
            return policy.tokenizer.decode([token]).replace("\n", "↵") or "?"

        pieces = tuple(tuple(map(text, tokens)) for tokens in group.completions)
        question = policy.decode(group.prompt)
        return cls(question, pieces, tuple(map(tuple, group.completions)), group.rewards)


@dataclass(frozen=True)
class Toy(ShownGroup):
    """The group of four answers that is followed by hand, over a vocabulary small enough for a table.

    The toy policy is a table of logits: one row for each symbol that can stand before (row 0: nothing, the answer begins), one
    column for each symbol that can follow.
    """

    vocabulary: tuple[str, ...] = ()

    def places(self, credit: TokenCredit) -> tuple[Tensor, Tensor]:
        """(row, column) in the table of logits of every credited token."""
        rows, columns = [], []
        for completion, position in zip(credit.completion.tolist(), credit.position.tolist(), strict=True):
            tokens = self.tokens[completion]
            rows.append(tokens[position - 1] + 1 if position else 0)
            columns.append(tokens[position])
        return torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)


def _toy() -> Toy:
    answers = ("9 - 4 = 5 .", "9 + 4 = 13 .", "9 - 4 = 6 .", "5 .")
    pieces = tuple(tuple(answer.split()) for answer in answers)
    vocabulary = ("9", "4", "5", "6", "13", "+", "-", "=", ".")
    tokens = tuple(tuple(vocabulary.index(piece) for piece in answer) for answer in pieces)
    question = "Ann has 9 shells. Sam has 4 fewer. How many has Sam?"
    return Toy(question, pieces, tokens, torch.tensor([1.0, 0.0, 0.0, 1.0]), vocabulary)


#: Four answers: right, wrong operator, wrong result, right at once.
TOY = _toy()


def toy_gradient(credit: TokenCredit) -> Tensor:
    """Minus the gradient of the loss at the toy policy's table of logits, all of them 0: what a step raises and lowers, (10, 9)."""
    logits = torch.zeros(len(TOY.vocabulary) + 1, len(TOY.vocabulary), requires_grad=True)
    if not len(credit):
        return torch.zeros_like(logits)
    loss, _ = surrogate_loss(torch.log_softmax(logits, dim=-1)[TOY.places(credit)], [credit])
    loss.backward()
    return -logits.grad


def keep_probabilities(rule: SGRPO, length: int) -> np.ndarray:
    """Chance of each position of an answer of ``length`` tokens to enter the loss under S-GRPO's rule.

    Formula: 1 for t < alpha; otherwise P · Pr(Binomial(t - alpha, P) < k - alpha), the chance of being let in before the cap k.

    Returns:
        (length,) float64.
    """
    position = np.arange(length)
    later = position - rule.cutoff
    chance = np.where(later < 0, 1.0, rule.keep_probability)
    if rule.max_kept_tokens is None:
        return chance
    room = rule.max_kept_tokens - rule.cutoff
    return np.where(later < 0, 1.0, chance * stats.binom.cdf(room - 1, np.maximum(later, 0), rule.keep_probability))

"""A rule that somebody else wrote: it gets copies, and what it returns is checked at every call."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from replication.algorithms import TokenCredit
from replication.errors import Stopped, UserError
from replication.user_code import reason


class OwnRule:
    """A rule under the name that its errors give. It may change its arguments in place: they are copies.

    Args:
        name: what the user gave, for messages, e.g. "method mine:FirstHalf".
        rule: an object with ``assign``, and with ``targets`` if it needs values.
        module: the module whose file holds it, to find the line that raised.
    """

    def __init__(self, name: str, rule: Any, module: str) -> None:
        self.needs: tuple[str, ...] = tuple(getattr(rule, "needs", ()))
        self._name, self._rule, self._module = name, rule, module

    def assign(
        self, completions: Sequence[Sequence[int]], rewards: Tensor, generator: torch.Generator | None = None, **needs: Any
    ) -> TokenCredit:
        """The rule's credit of one group; UserError if the rule raises, or returns what cannot be learned from."""
        with self._explained(completions):
            credit = self._rule.assign(_copies(completions), rewards.clone(), generator, **copy.deepcopy(needs))
            if not isinstance(credit, TokenCredit):
                raise TypeError(f"assign returned a {type(credit).__name__}, not a TokenCredit")
            # Values that are not finite are no fault of the rule: the critic diverged, and the loop ends the run for that.
            if all(map(math.isfinite, itertools.chain(*needs.get("values", ())))):
                credit.require_usable(completions)
        return credit

    def targets(self, completions: Sequence[Sequence[int]], rewards: Tensor, values: Sequence[Sequence[float]]) -> Any:
        """The rule's targets for its critic; UserError if the rule raises, or if they are not one for each generated token."""
        with self._explained(completions):
            targets = self._rule.targets(_copies(completions), rewards.clone(), _copies(values))
            if [*map(len, targets)] != [*map(len, completions)]:
                raise ValueError("targets did not return one number for each generated token")
        return targets

    @contextmanager
    def _explained(self, completions: Sequence[Sequence[int]]) -> Iterator[None]:
        try:
            yield
        except (UserError, Stopped):
            raise
        except Exception as error:
            lengths = [*map(len, completions)]
            group = f"{len(lengths)} completions of {min(lengths)} to {max(lengths)} tokens"
            raise UserError(f"{self._name} fails on {group} ({reason(self._module, error)})") from error


def _copies(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(row) for row in rows]

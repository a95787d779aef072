"""Find and describe a reader's own function or object, named package.module:name, and check what it returns.

Python imports the module as any other: from the working directory, from PYTHONPATH, or as an installed package.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import itertools
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from replication.algorithms import TokenCredit
from replication.errors import Stopped, UserError

#: sha256 of each module's file as this process imported it.
_imported: dict[str, str] = {}


def is_import_path(text: str) -> bool:
    """Whether a name stands for a reader's own object and not for one of the package."""
    return ":" in text


def load(text: str, what: str) -> Any:
    """The object that ``text`` names; a module whose file has changed since is imported again.

    Args:
        text: package.module:name.
        what: the option that it was given for, for messages.

    Raises:
        UserError: the text has another form, the module cannot be imported, or it has no such name.
    """
    module, colon, name = text.partition(":")
    if module.endswith(".py") or not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UserError(f"{what} {text!r} is not of the form package.module:name, without .py")
    found = _module(module, f"{what} {text}")
    if not hasattr(found, name):
        raise UserError(f"{what} {text}: the module {module} ({_path(found)}) has no {name}")
    return getattr(found, name)


def _module(name: str, where: str) -> ModuleType:
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        module = importlib.import_module(name)
        found = _sha256(module)
        if _imported.setdefault(name, found) != found:
            module = importlib.reload(module)
            _imported[name] = found
    except Exception as error:  # a module runs its author's code when it is imported, and raises what it likes
        reason = " ".join(str(error).split())
        advice = ": start where it lies, or set PYTHONPATH" if isinstance(error, ModuleNotFoundError) else ""
        raise UserError(f"{where}: cannot import {name} ({type(error).__name__}: {reason}){advice}") from None
    return module


def _path(module: ModuleType) -> str | None:
    return getattr(module, "__file__", None)


def _sha256(module: ModuleType) -> str:
    path = _path(module)
    return hashlib.sha256(Path(path).read_bytes() if path else b"").hexdigest()


def describe(text: str, what: str) -> dict[str, str | None]:
    """Name, file, sha256 of the file and signature of an own object. Modules that the file imports are not covered."""
    found = load(text, what)
    module = importlib.import_module(text.partition(":")[0])
    try:
        signature = str(inspect.signature(getattr(found, "assign", found)))
    except (TypeError, ValueError):  # of a function written in C
        signature = None
    return {"name": text, "file": _path(module), "sha256": _sha256(module), "signature": signature}


def load_rule(text: str) -> Any:
    """A credit rule of one's own: a class is instantiated without arguments, any other object is used as it is.

    Raises:
        UserError: it cannot be found or made, or has no ``assign``.
    """
    found = load(text, "method")
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:
            raise UserError(f"method {text}: {text.partition(':')[2]}() raises {type(error).__name__}: {error}") from None
    if not callable(getattr(found, "assign", None)):
        raise UserError(f"method {text} has no assign(completions, rewards, generator): docs/extending.md shows one")
    return found


def load_reward(text: str) -> Callable[[str, Any], float]:
    """A reward of one's own, (text of a completion, problem) -> a number from 0 to 1, which is checked at every call.

    Raises:
        UserError: it cannot be found or called; or later, it raised, or returned something else.
    """
    function = load(text, "reward")
    if not callable(function):
        raise UserError(f"reward {text} is a {type(function).__name__}, not a function of (text, problem)")

    def reward(completion: str, problem: Any) -> float:
        try:
            value = function(completion, problem)
        except (UserError, Stopped):
            raise
        except Exception as error:
            where = f"the text {completion!r} of problem {problem.id}"
            raise UserError(f"reward {text} fails on {where} ({reason(text.partition(':')[0], error)})") from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            raise UserError(f"reward {text} returned {value!r} for problem {problem.id}: it must return a number from 0 to 1")
        return number

    return reward


def reason(module: str, error: Exception) -> str:
    """Why an own object of a module failed: the error, and the line of the module's file if the error came from there."""
    file = getattr(sys.modules.get(module), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f", line {lines[-1]} of {Path(file).name}" if file and lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


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

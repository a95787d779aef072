"""The predictions of docs/nano-lab.md held against the tables: a row for each that can be computed."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
import pandas as pd

from replication.names import HEADLINE, METHOD_LABELS, RESULTS
from replication.report import LEVEL, interval, learning_table, number
from replication.statistics import (
    NEAR,
    Estimate,
    Tables,
    accuracy,
    at_equal_accuracy,
    difference,
    mean_over_seeds,
    per_seed,
    runs_of,
    table,
)
from replication.tables import read_tables

_SHORT = {"none": "word_problems none", "before": "word_problems before", "after": "word_problems after"}


@dataclass(frozen=True)
class Rule:
    """``measure`` of a method in a setting lies from ``low`` to ``high``; against another (setting, method), the difference."""

    setting: str
    method: str
    measure: str
    low: float
    high: float
    other: tuple[str, str] | None = None
    #: About where a method levels off: open while a curve of either side still rises.
    level: bool = False


def _full(setting: str) -> tuple[str, str]:
    return setting, "grpo"


RULES = (
    Rule("none", "grpo", "accuracy", 90, inf, level=True),
    *(Rule("none", method, "accuracy", -3, 3, _full("none"), level=True) for method in ("s_grpo", "t_spmo")),
    *(Rule("none", "t_spmo", "tokens in the loss", -inf, 0, ("none", method)) for method in ("grpo", "s_grpo")),
    Rule("before", "grpo", "accuracy", -3, 3, _full("none"), level=True),
    Rule("before", "s_grpo", "accuracy", -20, -5, _full("before")),
    Rule("before", "t_spmo", "accuracy", -inf, 10, ("before", "base")),
    Rule("after", "grpo", "accuracy", -3, 3, _full("none"), level=True),
    Rule("after", "grpo", "steps to equal accuracy", 0, inf, _full("none")),
    Rule("after", "s_grpo", "accuracy", 0, inf, _full("after")),
    Rule("after", "t_spmo", "accuracy", 0, inf, _full("after")),
    Rule("after", "t_spmo", "accuracy", -3, 3, _full("after"), level=True),
    Rule("multiplication", "grpo", "accuracy", 75, 85, level=True),
    *(Rule("multiplication", method, "accuracy", -3, 3, _full("multiplication"), level=True) for method in ("s_grpo", "t_spmo")),
    Rule("multiplication", "s_grpo", "steps to equal accuracy", 0, inf, _full("multiplication")),
    Rule("after", "t_spmo", "highest rate that works (log ratio)", 0, inf, _full("after")),
    Rule("after", "t_spmo", "drift at equal accuracy (log ratio)", -inf, 0, _full("after")),
    Rule("none", "t_spmo", "drift at equal accuracy (log ratio)", 0, inf, _full("none")),
    *(Rule(setting, "grpo", "accuracy", 20, inf, (setting, "base")) for setting in _SHORT),
)


def measured(tables: Tables, rule: Rule) -> Estimate | None:
    """The measure with its interval, accuracies in percent or points; None where it was not run."""
    runs = runs_of(tables, HEADLINE, "nano")
    places = [(rule.setting, rule.method), *([rule.other] if rule.other else [])]
    sides = [runs[(runs["setting"] == _SHORT.get(place, place)) & (runs["method"] == method)] for place, method in places]
    if rule.measure.startswith("highest rate"):
        return _rates(tables, rule)
    if any(side.empty for side in sides):
        return None
    if rule.measure == "accuracy":
        if rule.other is None:
            return accuracy(tables, sides[0]).scaled(100)
        found = difference(tables, *sides)
        if found is None:  # the items of two conditions are not the same: seeds in pairs
            found = mean_over_seeds((per_seed(sides[0], "accuracy") - per_seed(sides[1], "accuracy")).dropna())
        return found.scaled(100) if found.seeds else None
    if rule.measure == "tokens in the loss":
        values = [per_seed(side, "tokens_in_loss") for side in sides]
    else:
        reached = at_equal_accuracy(tables, pd.concat(sides)).set_index("run_id")
        sides = [reached.loc[reached.index.isin(side["run_id"])].set_index("seed") for side in sides]
        values = [np.log(side["kl"].astype(float)) if "drift" in rule.measure else side["step"].astype(float) for side in sides]
    found = mean_over_seeds((values[0] - values[1]).dropna())
    return found if found.seeds else None


def _rates(tables: Tables, rule: Rule) -> Estimate | None:
    """Log ratio of the highest rates within ``NEAR`` of the best on validation, by seed; None until both grids are run."""
    runs = table(tables, "runs")
    runs = runs[runs["ablation"] == "learning_rate"]
    highest = []
    for place, method in ((rule.setting, rule.method), rule.other or ("", "")):
        own = runs[(runs["setting"] == _SHORT.get(place, place)) & (runs["method"] == method)]
        if own.empty or own["status"].eq("pending").any():
            return None
        works = own["validation_accuracy"] >= own.groupby("seed")["validation_accuracy"].transform("max") - NEAR
        highest.append(np.log(own[works].groupby("seed")["learning_rate"].max()))
    return mean_over_seeds((highest[0] - highest[1]).dropna())


def verdict(rule: Rule, found: Estimate | None, rising: set[tuple[str, str]]) -> str:
    """Held or not where the whole interval is inside or outside; of a level only where the curves have levelled off."""
    if found is None:
        return "not run"
    if rule.measure == "tokens in the loss":
        return "by design"
    sides = {(rule.setting, rule.method), *([rule.other] if rule.other else [])}
    if rule.level and any((_SHORT.get(place, place), method) in rising for place, method in sides):
        return "open (still rising)"
    if rule.low <= found.low and found.high <= rule.high and not found.low == found.high == 0:
        return "held"
    return "did not hold" if found.high < rule.low or found.low > rule.high or found.low == found.high == 0 else "open"


def predictions() -> str:
    """The rows as a table in Markdown."""
    tables = read_tables(RESULTS / "nano")
    curves = learning_table(tables, "nano")
    still = curves[curves["rise_in_last_third"] >= LEVEL]
    rising = set(zip(still["setting"], still["method"], strict=True))
    lines = ["| prediction | measured [95 % interval] | seeds | held? |", "|---|---|---|---|"]
    for rule in RULES:
        found = measured(tables, rule)
        ours = interval(found.value, found.low, found.high) if found else ""
        if found and found.low == found.high:
            ours = f"{number(found.value)} in every seed"
        lines.append(f"| {_words(rule)} | {ours} | {found.seeds or '' if found else ''} | {verdict(rule, found, rising)} |")
    return "\n".join(lines)


def _words(rule: Rule) -> str:
    ends = {(True, False): f"at most {rule.high:g}", (False, True): f"at least {rule.low:g}"}
    bound = ends.get((rule.low == -inf, rule.high == inf), f"{rule.low:g} to {rule.high:g}")
    against = ""
    if rule.other:
        bound = {(-inf, 0): "lower", (0, inf): "higher"}.get((rule.low, rule.high), bound)
        place, method = rule.other
        against = f" minus {METHOD_LABELS[method]}" + ("" if place == rule.setting else f" (`{place}`)")
    return f"`{rule.setting}`, {METHOD_LABELS[rule.method]}{against}: {'level' if rule.level else rule.measure} {bound}"

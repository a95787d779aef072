"""Predictions against made-up tables whose outcome is known."""

from __future__ import annotations

from math import inf

import pytest
import synthetic_tables as synthetic

from replication.statistics import Estimate
from tools.predictions import RULES, Rule, measured, verdict


@pytest.mark.parametrize("low, high, expected", [(6, 9, "held"), (1, 4, "did not hold"), (4, 9, "open"), (11, 12, "did not hold")])
def test_the_whole_interval_decides(low, high, expected):
    rule = Rule("none", "grpo", "accuracy", 5, 10)
    assert verdict(rule, Estimate(low, low, high, 5, 0), set()) == expected
    assert verdict(rule, None, set()) == "not run"


def test_a_level_is_open_while_either_side_rises():
    rule = Rule("none", "t_spmo", "accuracy", -3, 3, ("none", "grpo"), level=True)
    found = Estimate(0, -1, 1, 5, 0)
    assert verdict(rule, found, set()) == "held"
    assert verdict(rule, found, {("word_problems none", "grpo")}) == "open (still rising)"


def test_accuracies_are_those_of_the_tables_and_what_was_not_run_stays_so():
    tables = synthetic.headline(seeds=4, asides=("before",), items=400)
    behind = Rule("before", "s_grpo", "accuracy", -20, -5, ("before", "grpo"))
    found = measured(tables, behind)
    assert found.value == pytest.approx(-12, abs=3) and verdict(behind, found, set()) == "held"
    gain = Rule("before", "t_spmo", "accuracy", 30, inf, ("before", "base"))
    assert verdict(gain, measured(tables, gain), set()) == "did not hold"
    assert all(measured(tables, rule) is None for rule in RULES if rule.setting in ("none", "after"))

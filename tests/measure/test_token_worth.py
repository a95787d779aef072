"""Credit against the truth: what a token was worth, by counting; where credit falls, by hand; and what the table makes of it."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_runs import tiny_config

from replication.algorithms import GRPO, TSPMO
from replication.errors import UserError
from replication.measure import credit as credit_module
from replication.measure.credit import _Measured, credit_table
from replication.measure.gradients import Redraws, flat_credit
from replication.measure.token_worth import AUDITED, SUMS, Truth, audited, credit_sums, judge


def group_of(completions: list[list[int]], rewards: list[float]) -> SimpleNamespace:
    return SimpleNamespace(problem=None, completions=completions, rewards=torch.tensor(rewards))


def truth_of(completions: list[list[int]], rewards: list[float], decisive: dict[tuple[int, ...], list[int]]) -> Truth:
    known = audited(group_of(completions, rewards), None)
    return Truth(None, known.value, None, decisive)


# What a token was worth ----------------------------------------------------------------------------------------------------


def test_the_value_of_a_prefix_is_the_share_of_right_completions_that_begin_with_it():
    dice = random.Random(0)
    completions = [[dice.randrange(3) for _ in range(dice.randrange(5))] for _ in range(200)]
    rewards = [float(dice.randrange(2)) for _ in completions]
    value = audited(group_of(completions, rewards), None).value
    for prefix in {tuple(tokens[:length]) for tokens in completions for length in range(5)}:
        those = [r for tokens, r in zip(completions, rewards, strict=True) if tuple(tokens[: len(prefix)]) == prefix]
        assert value[prefix] == (len(those), pytest.approx(sum(those) / len(those)))


def test_worth_is_a_difference_of_values_and_unknown_where_the_audit_is_small():
    completions = [[1, 2]] * AUDITED + [[1, 3]] * AUDITED + [[4, 5]] * (AUDITED - 1)
    truth = audited(group_of(completions, [1.0] * AUDITED + [0.0] * (2 * AUDITED - 1)), None)
    assert truth.worth((1, 2)) == 0.5 and truth.worth((1, 3)) == -0.5
    assert truth.worth((1,)) == pytest.approx(0.5 - AUDITED / (3 * AUDITED - 1))
    assert np.isnan(truth.worth((4,))) and np.isnan(truth.worth((4, 5))) and np.isnan(truth.worth((9,)))


def test_a_worth_that_chance_explains_is_unknown_and_one_that_is_surely_small_is_nothing():
    """30 samples know a chance to 9 points: a token worth nothing passed for one of consequence more often than not."""
    rng = np.random.default_rng(0)
    named = {"known": 0, "unknown": 0}
    for _ in range(200):  # both tokens are right half of the time
        right = rng.random(2 * AUDITED) < 0.5
        worth = audited(group_of([[1, 2], [1, 3]] * AUDITED, right.astype(float).tolist()), None).worth((1, 2))
        named["unknown" if np.isnan(worth) else "known"] += 1
    assert named["known"] <= 0.08 * 200
    many = audited(group_of([[1, 2], [1, 3]] * 4000, [0.0, 0.0, 1.0, 1.0] * 2000), None)
    assert many.worth((1, 2)) == 0.0


def test_a_transition_that_completions_share_is_decisive_for_all_of_them():
    completions = [[1, 2, 3], [1, 2, 4], [1, 5]]
    truth = truth_of(completions * AUDITED, [1.0, 0.0, 0.0] * AUDITED, {(1, 2, 3): [1], (1, 2, 4): [2], (1, 5): []})
    decisive, worth = judge(completions, truth)
    assert decisive.tolist() == [False, True, False, False, True, True, False, False]
    assert worth == pytest.approx([0, 1 / 2 - 1 / 3, 1 / 2, 0, 1 / 2 - 1 / 3, -1 / 2, 0, -1 / 3])


# Where credit falls --------------------------------------------------------------------------------------------------------


def test_credit_sums_by_hand():
    nan = float("nan")
    credit = np.array([1.0, -2.0, 3.0, -4.0, 5.0, 0.0, 7.0])
    decisive = np.array([True, True, True, True, False, True, False])
    worth = np.array([0.5, 0.5, nan, 0.01, -0.9, 0.3, 0.0])
    named = dict(zip(SUMS, credit_sums(credit, decisive, worth).tolist(), strict=True))
    # Right: 1. Wrong: -2 where the token helped. Nothing: -4 (worth too little). Unknown: 3. 5 is of consequence, not decisive.
    assert named == {"credit": 22, "decisive": 10, "right": 1, "wrong": 2, "nothing": 4, "unknown": 3, "consequence": 8}


def test_credit_sums_add_up_whatever_comes_in():
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = rng.integers(0, 30)
        worth = np.where(rng.random(size) < 0.2, np.nan, rng.normal(0, 0.1, size))
        credit, decisive = rng.normal(size=size), rng.random(size) < 0.3
        sums = dict(zip(SUMS, credit_sums(credit, decisive, worth), strict=True))
        assert sums["credit"] == pytest.approx(np.abs(credit).sum())
        assert sums["decisive"] == pytest.approx(sum(sums[kind] for kind in ("right", "wrong", "nothing", "unknown")))
        assert sums["right"] + sums["wrong"] <= sums["consequence"] + 1e-12 <= sums["credit"] + 2e-12


def test_where_one_branch_decides_everything_t_spmo_credits_it_alone_and_grpo_a_token_in_three():
    completions, rewards = [[1, 2, 3], [1, 4, 3]] * AUDITED, [1.0, 0.0] * AUDITED
    truth = truth_of(completions, rewards, {(1, 2, 3): [1], (1, 4, 3): [1]})
    share = {}
    for method in (GRPO(), TSPMO()):
        credit = method.assign(completions, torch.tensor(rewards), torch.Generator())
        sums = credit_sums(flat_credit(credit, [3] * len(completions)), *judge(completions, truth))
        share[type(method)] = sums[SUMS.index("right")] / sums[SUMS.index("credit")]
    assert share[TSPMO] == 1.0 and share[GRPO] == pytest.approx(1 / 3)


# The table -----------------------------------------------------------------------------------------------------------------


def measured(rng: np.random.Generator, problems: int, redraws: int, size: int = 3) -> _Measured:
    """One rule whose quantities have known expectations: 40 % of its credit is right, its gradients are normal."""
    whole = rng.gamma(4.0, size=problems)
    right = whole * rng.beta(4.0, 6.0, size=problems)
    credit = np.zeros((problems, 1, len(SUMS)))
    for kind, amount in (("credit", whole), ("decisive", right), ("right", right), ("consequence", right)):
        credit[:, 0, SUMS.index(kind)] = amount
    kept = []
    for mean in rng.normal(1.0, 1.0, size=(problems, size)):
        draws = rng.normal(mean, 2.0, size=(redraws, size))
        one = Redraws(1, size)
        one.count, one.total = redraws, torch.from_numpy(draws.sum(0, keepdims=True))
        one.squares = one.with_first = np.array([np.square(draws).sum()])
        kept.append(one)
    tokens = np.stack([np.full(problems, 100.0), np.full(problems, 25.0)], axis=1)
    return _Measured(credit, tokens, np.full((problems, 1), 50.0), kept, [])


def by_quantity(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows).set_index("quantity")


def test_the_table_is_ratios_of_sums_and_of_an_update(tmp_path):
    found = measured(np.random.default_rng(0), problems=6, redraws=5)
    config = tiny_config(tmp_path, prompts_per_step=4)
    table = by_quantity(credit_table(found, [("grpo", "all")], config))
    whole, decisive, right = found.credit[:, 0, :3].sum(0)
    assert table.loc["credit_right", "value"] == pytest.approx(100 * right / whole)
    assert table.loc["credit_decisive", "value"] == pytest.approx(100 * decisive / whole)
    assert table.loc["sign_right", "value"] == 100 and table.loc["tokens_decisive", "value"] == 25
    assert table.loc["tokens_in_loss", "value"] == pytest.approx(4 * 50 / 5)
    assert table.loc["cosine_with_grpo", "value"] == pytest.approx(1.0)
    assert table.loc["snr_per_1000_tokens", "value"] == pytest.approx(1000 * table.loc["snr_update", "value"] / 40)


def test_intervals_of_the_table_cover_the_truth_by_simulation(monkeypatch, tmp_path):
    """300 tables of 70 problems each. A percentile bootstrap of a ratio is a little narrow; under 90 % would be a bug."""
    monkeypatch.setattr(credit_module, "RESAMPLES", 300)
    config = tiny_config(tmp_path, prompts_per_step=8)
    # Means 1 with variance 1 in 3 dimensions, noise variance 4: see ``measured``.
    true = {"credit_right": 40.0, "snr_update": ((3 + 3) / 8 + (1 - 1 / 8) * 3) / (3 * 4 / 8)}
    inside = dict.fromkeys(true, 0)
    for number in range(300):
        found = measured(np.random.default_rng(number), problems=70, redraws=16)
        table = by_quantity(credit_table(found, [("grpo", "all")], config.model_copy(update={"seed": number})))
        for name, value in true.items():
            inside[name] += table.loc[name, "low"] <= value <= table.loc[name, "high"]
    assert all(0.90 <= count / 300 <= 0.99 for count in inside.values()), inside


# A real run ----------------------------------------------------------------------------------------------------------------


def test_diagnose_on_the_shipped_base_is_the_same_twice_and_agrees_with_what_the_methods_are():
    size = {"problems": 2, "redraws": 2, "audit": 128, "prompts_per_step": 2}
    tables, took = credit_module.diagnose("smoke", **size)
    credit = tables["credit"].set_index(["method", "quantity"])["value"]
    assert took["problems"] == 2 and set(tables["credit"]["policy"]) == {"base"}
    assert credit["grpo", "kept_fraction"] == 100 > credit["s_grpo", "kept_fraction"].max() > 0
    assert credit["t_spmo", "kept_fraction"] < 30
    assert credit["grpo", "cosine_with_grpo"] == pytest.approx(1.0)
    shown = tables["worked_example"]
    assert set(shown["method"]) == {"grpo", "s_grpo", "t_spmo"} and set(shown["correct"]) == {0, 1}
    again, _ = credit_module.diagnose("smoke", **size)
    assert all(tables[name].equals(again[name]) for name in tables)


@pytest.mark.parametrize("bad", [{"redraws": 1}, {"problems": 1, "prompts_per_step": 2}])
def test_too_few_for_a_variance_is_refused(bad):
    with pytest.raises(UserError, match="redraws must be 2 or more and problems"):
        credit_module.diagnose("smoke", **({"problems": 2, "redraws": 2} | bad))

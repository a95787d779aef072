"""Decisive tokens and what a token was worth, by counting; what the table makes of both; and a real measurement."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_runs import tiny_config

from replication.errors import UserError
from replication.measure import credit as credit_module
from replication.measure import token_worth
from replication.measure.credit import _Measured, credit_table
from replication.measure.gradients import Redraws
from replication.measure.token_worth import AUDITED, audited, token_worths, worth


def group_of(completions: list[list[int]], rewards: list[float]) -> SimpleNamespace:
    return SimpleNamespace(problem=None, completions=completions, rewards=torch.tensor(rewards))


# What a token was worth ----------------------------------------------------------------------------------------------------


def test_the_value_of_a_prefix_is_the_share_of_right_completions_that_begin_with_it():
    dice = random.Random(0)
    completions = [[dice.randrange(3) for _ in range(dice.randrange(5))] for _ in range(200)]
    rewards = [float(dice.randrange(2)) for _ in completions]
    value = audited(group_of(completions, rewards))
    for prefix in {tuple(tokens[:length]) for tokens in completions for length in range(5)}:
        those = [r for tokens, r in zip(completions, rewards, strict=True) if tuple(tokens[: len(prefix)]) == prefix]
        assert value[prefix] == (len(those), pytest.approx(sum(those) / len(those)))


def test_worth_is_a_difference_of_values_and_unknown_where_the_audit_is_small():
    completions = [[1, 2]] * AUDITED + [[1, 3]] * AUDITED + [[4, 5]] * (AUDITED - 1)
    truth = audited(group_of(completions, [1.0] * AUDITED + [0.0] * (2 * AUDITED - 1)))
    assert worth(truth, (1, 2)) == 0.5 and worth(truth, (1, 3)) == -0.5
    assert worth(truth, (1,)) == pytest.approx(0.5 - AUDITED / (3 * AUDITED - 1))
    assert np.isnan(worth(truth, (4,))) and np.isnan(worth(truth, (4, 5))) and np.isnan(worth(truth, (9,)))


def test_a_worth_that_chance_explains_is_unknown_and_one_that_is_surely_small_is_nothing():
    """30 samples know a chance to 9 points: a token worth nothing passed for one of consequence more often than not."""
    rng = np.random.default_rng(0)
    named = {"known": 0, "unknown": 0}
    for _ in range(200):  # both tokens are right half of the time
        right = rng.random(2 * AUDITED) < 0.5
        truth = audited(group_of([[1, 2], [1, 3]] * AUDITED, right.astype(float).tolist()))
        named["unknown" if np.isnan(worth(truth, (1, 2))) else "known"] += 1
    assert named["known"] <= 0.08 * 200
    many = audited(group_of([[1, 2], [1, 3]] * 4000, [0.0, 0.0, 1.0, 1.0] * 2000))
    assert worth(many, (1, 2)) == 0.0


def test_every_generated_token_has_the_worth_of_its_prefix():
    completions, rewards = [[1, 2, 3], [1, 2, 4], [1, 5]], [1.0, 0.0, 0.0]
    worths = token_worths(completions, audited(group_of(completions * AUDITED, rewards * AUDITED)))
    assert worths == pytest.approx([0, 1 / 2 - 1 / 3, 1 / 2, 0, 1 / 2 - 1 / 3, -1 / 2, 0, -1 / 3])


def test_a_transition_that_completions_share_is_decisive_for_all_of_them(monkeypatch):
    named = {(1, 2, 3): [1], (1, 2, 4): [2], (1, 5): []}
    monkeypatch.setattr(token_worth, "decisive_positions", lambda problem, tokens, tokenizer: named[tuple(tokens)])
    decisive = token_worth.decisive_tokens([[1, 2, 3], [1, 2, 4], [1, 5]], None, None)
    assert decisive.tolist() == [False, True, False, False, True, True, False, False]


# The table -----------------------------------------------------------------------------------------------------------------


def measured(rng: np.random.Generator, problems: int, redraws: int, size: int = 3) -> _Measured:
    """One rule whose quantities have known expectations: 40 % of its credit is on decisive tokens, its gradients are normal."""
    whole = rng.gamma(4.0, size=problems)
    credit = np.stack([whole, whole * rng.beta(4.0, 6.0, size=problems)], axis=1)[:, None]
    kept = []
    for mean in rng.normal(1.0, 1.0, size=(problems, size)):
        draws = rng.normal(mean, 2.0, size=(redraws, size))
        one = Redraws(1, size)
        one.count, one.total = redraws, torch.from_numpy(draws.sum(0, keepdims=True))
        one.squares = one.with_first = np.array([np.square(draws).sum()])
        one.decisive = 0.75 * one.squares
        kept.append(one)
    tokens, in_loss = np.tile([100.0, 25.0, 40.0], (problems, 1)), np.tile([50.0, 10.0], (problems, 1, 1))
    return _Measured(credit, tokens, in_loss, kept)


def by_quantity(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows).set_index("quantity")


def test_the_table_is_ratios_of_sums_and_of_an_update(tmp_path):
    found = measured(np.random.default_rng(0), problems=6, redraws=5)
    config = tiny_config(tmp_path, prompts_per_step=4)
    table = by_quantity(credit_table(found, [("grpo", "all")], config))
    whole, decisive = found.credit[:, 0].sum(0)
    assert table.loc["credit_decisive", "value"] == pytest.approx(100 * decisive / whole)
    assert table.loc["gradient_decisive", "value"] == pytest.approx(75) and table.loc["tokens_decisive", "value"] == 25
    assert table.loc["kept_fraction", "value"] == 50 and table.loc["distinct_transitions_in_loss", "value"] == 25
    assert table.loc["tokens_in_loss", "value"] == pytest.approx(4 * 50 / 5)
    assert table.loc["cosine_with_grpo", "value"] == pytest.approx(1.0)
    assert table.loc["snr_per_1000_tokens", "value"] == pytest.approx(1000 * table.loc["snr_update", "value"] / 40)


def test_intervals_of_the_table_cover_the_truth_by_simulation(monkeypatch, tmp_path):
    """300 tables of 70 problems each. A percentile bootstrap of a ratio is a little narrow; under 90 % would be a bug."""
    monkeypatch.setattr(credit_module, "RESAMPLES", 300)
    config = tiny_config(tmp_path, prompts_per_step=8)
    # Means 1 with variance 1 in 3 dimensions, noise variance 4: see ``measured``.
    true = {"credit_decisive": 40.0, "snr_update": ((3 + 3) / 8 + (1 - 1 / 8) * 3) / (3 * 4 / 8)}
    inside = dict.fromkeys(true, 0)
    for number in range(300):
        found = measured(np.random.default_rng(number), problems=70, redraws=16)
        table = by_quantity(credit_table(found, [("grpo", "all")], config.model_copy(update={"seed": number})))
        for name, value in true.items():
            inside[name] += table.loc[name, "low"] <= value <= table.loc[name, "high"]
    assert all(0.90 <= count / 300 <= 0.99 for count in inside.values()), inside


# A real run ----------------------------------------------------------------------------------------------------------------


def test_diagnose_on_the_shipped_base_is_the_same_twice_and_agrees_with_what_the_methods_are():
    size = {"problems": 2, "redraws": 2, "audit": 128, "prompts_per_step": 2, "asides": "after"}
    tables, took = credit_module.diagnose("smoke", **size)
    credit = tables["credit"].set_index(["method", "quantity"])["value"]
    assert took["problems"] == 2
    assert set(tables["credit"]["asides"]) == {"after"}
    for kept in ("kept_fraction", "distinct_transitions_in_loss"):
        assert credit["grpo", kept] == 100 > credit["s_grpo", kept].max() > 0
        assert 0 < credit["t_spmo", kept] < 30
    assert credit["t_spmo", "kept_fraction"] <= credit["t_spmo", "distinct_transitions_in_loss"], "it keeps each at most once"
    assert credit["grpo", "cosine_with_grpo"] == pytest.approx(1.0)
    shown = tables["worked_example"]
    assert set(shown["method"]) == {"grpo", "s_grpo", "t_spmo"} and set(shown["correct"]) == {0, 1}
    again, _ = credit_module.diagnose("smoke", **size)
    assert all(tables[name].equals(again[name]) for name in tables)


def test_diagnose_measures_the_methods_in_every_setting_whose_grammar_is_known(monkeypatch):
    seen = []

    def noted(policy, config, task, problems, rules, redraws):
        seen.append((config.task, config.asides, {method for method, _ in rules}, len(rules)))
        return measured(np.random.default_rng(0), len(problems), redraws)

    monkeypatch.setattr(credit_module, "measure", noted)
    monkeypatch.setattr(credit_module, "credit_table", lambda *_, **__: [])
    monkeypatch.setattr(credit_module, "worked_example", lambda *_: [])
    credit_module.diagnose("smoke", problems=4)
    word_problems = [("word_problems", asides) for asides in ("none", "before", "after")]
    assert sorted(setting[:2] for setting in seen if setting[1]) == sorted(word_problems)
    assert [setting[0] for setting in seen if not setting[1]] == ["multiplication"]
    assert all(methods == {"grpo", "s_grpo", "t_spmo"} for _, _, methods, _ in seen)
    assert [rules > 3 for *_, rules in seen] == [True, False, False, False], "controls in the first alone"
    with pytest.raises(UserError, match="svamp"):
        credit_module.diagnose("smoke", task="svamp")


@pytest.mark.parametrize("bad", [{"redraws": 1}, {"problems": 1, "prompts_per_step": 2}])
def test_too_few_for_a_variance_is_refused(bad):
    with pytest.raises(UserError, match="redraws must be 2 or more and problems"):
        credit_module.diagnose("smoke", **({"problems": 2, "redraws": 2} | bad))

"""PPO: generalised advantages against a double loop, their two ends in lambda, targets, and what every method promises."""

from __future__ import annotations

import copy
import inspect
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import QUICK, assert_rows_equal, groups, ppo_advantages, ppo_rows, rows_of

from replication.algorithms import PPO

COMPLETIONS = [[7, 8, 9, 2], [7, 8, 2], [], [7, 2]]
REWARDS = torch.tensor([1.0, 0.0, 1.0, 0.25])
VALUES = [[0.5, 0.25, -0.5, 2.0], [0.1, 0.2, 0.3], [], [0.7, 0.9]]


@st.composite
def valued_groups(draw: st.DrawFn):
    completions, rewards = draw(groups())
    values = [[draw(st.floats(-2, 2)) for _ in completion] for completion in completions]
    return completions, rewards, values


def test_the_arguments_and_their_defaults_are_the_contract():
    assert [*inspect.signature(PPO).parameters] == ["gamma", "lam", "denominator"]
    assert (PPO().gamma, PPO().denominator) == (1.0, "completion")
    parameters = list(inspect.signature(PPO.assign).parameters.values())
    assert [parameter.name for parameter in parameters[1:]] == ["completions", "rewards", "generator", "values"]
    assert all(parameter.default is None for parameter in parameters[3:])


@QUICK
@given(
    group=valued_groups(),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    denominator=st.sampled_from(["completion", "group_tokens"]),
)
def test_against_the_sums_written_out(group, gamma, lam, denominator):
    completions, rewards, values = group
    method = PPO(gamma, lam, denominator)
    rows = rows_of(method.assign(completions, rewards, values=values))
    expected = ppo_rows(completions, rewards.double().tolist(), values, gamma, lam, denominator)
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    for got, want in zip(rows, expected, strict=True):
        # Values near 2 leave 1e-15 of noise where they cancel; float32 keeps 2^-24 of the rest.
        assert got[2:] == pytest.approx(want[2:], rel=1.2e-7, abs=1e-13)
    advantages = ppo_advantages(completions, rewards.double().tolist(), values, gamma, lam)
    for target, advantage, value in zip(method.targets(completions, rewards, values), advantages, values, strict=True):
        assert target == pytest.approx([a + v for a, v in zip(advantage, value, strict=True)], abs=1e-12)


def test_lambda_1_is_the_discounted_reward_to_go_minus_the_value():
    for gamma in (1.0, 0.5):
        rows = rows_of(PPO(gamma, lam=1.0).assign(COMPLETIONS, REWARDS, values=VALUES))
        for i, t, advantage, _ in rows:
            to_go = gamma ** (len(COMPLETIONS[i]) - 1 - t) * REWARDS[i].item()
            assert advantage == pytest.approx(to_go - VALUES[i][t], rel=1e-6)


def test_lambda_0_is_one_step_of_temporal_difference():
    rows = rows_of(PPO(0.5, lam=0.0).assign(COMPLETIONS, REWARDS, values=VALUES))
    for i, t, advantage, _ in rows:
        last = t == len(COMPLETIONS[i]) - 1
        expected = (REWARDS[i].item() if last else 0.5 * VALUES[i][t + 1]) - VALUES[i][t]
        assert advantage == pytest.approx(expected, rel=1e-6)


def test_without_discount_and_with_lambda_1_every_target_is_the_reward():
    targets = PPO(1.0, 1.0).targets(COMPLETIONS, REWARDS, VALUES)
    for target, tokens, reward in zip(targets, COMPLETIONS, REWARDS.tolist(), strict=True):
        assert target == pytest.approx([reward] * len(tokens), abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_a_critic_that_knows_leaves_no_advantage(lam):
    values = [[reward] * len(tokens) for tokens, reward in zip(COMPLETIONS, REWARDS.tolist(), strict=True)]
    assert torch.equal(PPO(lam=lam).assign(COMPLETIONS, REWARDS, values=values).advantage, torch.zeros(9))


def test_only_the_deltas_behind_a_token_reach_it():
    """Were the recursion not started anew for each completion, one's reward would reach the others."""
    changed = REWARDS.clone()
    changed[1] = 5.0
    here, there = (PPO().assign(COMPLETIONS, rewards, values=VALUES) for rewards in (REWARDS, changed))
    assert torch.equal(here.advantage != there.advantage, here.completion == 1)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_a_tied_group_and_a_group_of_one_give_a_row_for_each_token(reward):
    for completions, values in ((COMPLETIONS, VALUES), (COMPLETIONS[:1], VALUES[:1])):
        rewards = [reward] * len(completions)
        rows = rows_of(PPO(lam=0.5).assign(completions, torch.tensor(rewards, dtype=torch.float64), values=values))
        assert_rows_equal(rows, ppo_rows(completions, rewards, values, 1.0, 0.5))
        assert len(rows) == sum(map(len, completions))


@pytest.mark.parametrize("completions", [[[]], [[], []]])
def test_a_group_of_empty_completions_gives_nothing(completions):
    credit = PPO().assign(completions, torch.arange(len(completions)).float(), values=[[] for _ in completions])
    assert len(credit) == 0 and credit.advantage.dtype == torch.float32 and credit.position.dtype == torch.long


@pytest.mark.parametrize("values", [None, [], VALUES[:3], [*VALUES[:3], [0.5]], [*VALUES[:3], [0.5, 0.5, 0.5]]], ids=str)
def test_values_that_are_missing_or_do_not_fit_are_refused(values):
    with pytest.raises(ValueError, match="PPO needs values: one number for each generated token"):
        PPO().assign(COMPLETIONS, REWARDS, values=values)


@pytest.mark.parametrize("rewards", [torch.ones(3), torch.ones(4, 1), torch.tensor([1.0, 0.0, float("nan"), 0.0])], ids=str)
def test_rewards_that_do_not_fit_are_refused(rewards):
    with pytest.raises(ValueError, match="rewards"):
        PPO().assign(COMPLETIONS, rewards, values=VALUES)


@pytest.mark.parametrize("change", [{"gamma": 1.1}, {"lam": -0.1}, {"lam": float("nan")}, {"denominator": "kept"}], ids=str)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        PPO(**change)


def test_numbers_are_computed_in_float64():
    """1e8 and 1e8 + 1 are one number in float32; their difference must survive until the very end."""
    values = [[value + 1e8 for value in row] for row in VALUES]
    shifted = PPO(lam=1.0).assign(COMPLETIONS, REWARDS.double() + 1e8, values=values)
    torch.testing.assert_close(shifted.advantage, PPO(lam=1.0).assign(COMPLETIONS, REWARDS, values=VALUES).advantage)


def test_inputs_the_generator_and_the_global_random_state_stay_as_they_are():
    inputs = (COMPLETIONS, REWARDS, VALUES)
    given_, generator = copy.deepcopy(inputs), torch.Generator().manual_seed(3)
    before = generator.get_state(), torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = rows_of(PPO().assign(given_[0], given_[1], generator, values=given_[2]))
    PPO().targets(*given_)
    assert given_[0] == COMPLETIONS and torch.equal(given_[1], REWARDS) and given_[2] == VALUES
    assert torch.equal(before[0], generator.get_state()) and torch.equal(before[1], torch.random.get_rng_state())
    assert np.array_equal(before[2], np.random.get_state()[1]) and before[3] == random.getstate()
    assert rows_of(PPO().assign(*inputs[:2], values=VALUES)) == first

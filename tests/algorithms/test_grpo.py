"""Full-token GRPO: A = (R - mean R) / (std R + eps), every token of every completion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import QUICK, assert_rows_equal, groups, grpo_rows, rows_of

from replication.algorithms import GRPO


def test_hand_worked_group_of_four():
    """Rewards 1, 0, 0, 1: mean 1/2, squared deviations 4 · 1/4 = 1, std = sqrt(1/3) = 0.5773503 (ddof 1).

    A = ±0.5 / (0.5773503 + 0.0001) = ±0.8658755. Lengths 2, 1, 4, 2 and G = 4: weights 1/8, 1/4, 1/16, 1/8.
    """
    credit = GRPO().assign([[5, 2], [2], [6, 6, 6, 2], [5, 2]], torch.tensor([1.0, 0.0, 0.0, 1.0]))
    a = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert a == pytest.approx(0.8658755, abs=1e-7)
    expected = [(0, 0, a, 1 / 8), (0, 1, a, 1 / 8), (1, 0, -a, 1 / 4)]
    expected += [(2, t, -a, 1 / 16) for t in range(4)]
    expected += [(3, 0, a, 1 / 8), (3, 1, a, 1 / 8)]
    assert_rows_equal(rows_of(credit), expected)


def test_hand_worked_population_deviation_and_group_tokens():
    """Rewards 3, 0, 0: mean 1, squared deviations 4 + 1 + 1 = 6, std = sqrt(6/3) = sqrt 2 (ddof 0).

    With eps = 0, A = 2/sqrt 2 = sqrt 2 and -1/sqrt 2. Lengths 1, 2, 3: every token weighs 1/6.
    """
    method = GRPO(ddof=0, eps=0.0, denominator="group_tokens")
    credit = method.assign([[1], [1, 2], [3, 4, 5]], torch.tensor([3.0, 0.0, 0.0]))
    places = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    root = math.sqrt(2)
    assert_rows_equal(rows_of(credit), [(i, t, root if i == 0 else -1 / root, 1 / 6) for i, t in places])


def test_ddof_rescales_by_the_bessel_factor():
    """G = 2, rewards 1 and 0: std 1/sqrt 2 with ddof 1, 1/2 with ddof 0, so A = 0.7071068 and A = 1."""
    group = [[1], [2]], torch.tensor([1.0, 0.0])
    assert GRPO(ddof=1, eps=0.0).assign(*group).advantage.tolist() == pytest.approx([0.70710678, -0.70710678])
    assert GRPO(ddof=0, eps=0.0).assign(*group).advantage.tolist() == pytest.approx([1.0, -1.0])


def test_a_reward_equal_to_the_mean_keeps_its_rows_with_advantage_zero():
    """Rewards 0, 1/2, 1: only T-SPMO leaves zeros out; GRPO's token count must not depend on them."""
    rows = rows_of(GRPO().assign([[1], [1, 2], [3]], torch.tensor([0.0, 0.5, 1.0])))
    assert [row[:2] for row in rows] == [(0, 0), (1, 0), (1, 1), (2, 0)]
    assert rows[1][2] == rows[2][2] == 0.0


def test_end_of_sequence_is_a_token_like_any_other():
    """A completion that is only EOS has one row, and EOS counts in |y_i|."""
    rows = rows_of(GRPO().assign([[2], [7, 2]], torch.tensor([1.0, 0.0])))
    assert [(i, t, weight) for i, t, _, weight in rows] == [(0, 0, 0.5), (1, 0, 0.25), (1, 1, 0.25)]


@QUICK
@given(
    group=groups(),
    ddof=st.sampled_from([0, 1]),
    eps=st.sampled_from([1e-8, 1e-4, 0.1]),
    denominator=st.sampled_from(["completion", "group_tokens"]),
)
def test_against_the_oracle(group, ddof, eps, denominator):
    completions, rewards = group
    credit = GRPO(ddof=ddof, eps=eps, denominator=denominator).assign(completions, rewards)
    assert_rows_equal(rows_of(credit), grpo_rows(completions, rewards.tolist(), ddof, eps, denominator))


@QUICK
@given(group=groups(min_size=2), data=st.data())
def test_permuting_the_group_permutes_the_rows(group, data):
    completions, rewards = group
    order = data.draw(st.permutations(range(len(completions))))
    rows = rows_of(GRPO().assign(completions, rewards))
    shuffled = rows_of(GRPO().assign([completions[i] for i in order], rewards[list(order)]))
    assert_rows_equal(sorted((order[i], t, a, w) for i, t, a, w in shuffled), rows)


@QUICK
@given(group=groups(min_size=2))
def test_weights_of_a_group_sum_to_the_share_of_completions_with_tokens(group):
    completions, rewards = group
    credit = GRPO().assign(completions, rewards)
    if len(credit.weight):
        share = sum(bool(completion) for completion in completions) / len(completions)
        assert credit.weight.double().sum().item() == pytest.approx(share, rel=1e-6)


def test_duplicate_completions_keep_their_own_rows():
    """Four times the same answer is four samples: 4 · 2 rows, unlike T-SPMO, which counts transitions."""
    credit = GRPO().assign([[5, 2]] * 4 + [[6, 2]], torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    assert len(credit.completion) == 10


@pytest.mark.parametrize("arguments", [{"ddof": 2}, {"ddof": -1}, {"eps": -1.0}, {"eps": float("nan")}])
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ValueError):
        GRPO(**arguments)

"""The controls: other tokens than S-GRPO's rule picks, and T-SPMO's credit without its sparsity."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import QUICK, assert_rows_equal, groups, grpo_rows, rows_of, s_grpo_rows, t_spmo_rows
from scipy import stats

from replication.algorithms import GRPO, SELECTORS, BranchGRPO, SelectedGRPO


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept_positions(credit, size: int) -> list[list[int]]:
    kept = defaultdict(list)
    for completion, position in zip(credit.completion.tolist(), credit.position.tolist(), strict=True):
        kept[completion].append(position)
    return [kept[index] for index in range(size)]


def test_hand_worked_controls():
    """A share of 0.4 of 5, 2 and 1 tokens is ceil(2), ceil(0.8) and ceil(0.4): 2, 1 and 1 of them, G = 3, weights 1/6, 1/3, 1/3."""
    group = [[4, 5, 6, 7, 2], [4, 2], [2]], torch.tensor([1.0, 0.0, 0.0])
    entropies = [[0.1, 0.9, 0.3, 0.8, 0.2], [0.5, 0.7], [0.0]]
    expected = {"earliest": [[0, 1], [0], [0]], "latest": [[3, 4], [1], [0]], "entropy": [[1, 3], [1], [0]]}
    expected["low_entropy"] = [[0, 4], [0], [0]]
    for selector, kept in expected.items():
        credit = SelectedGRPO(selector, 0.4).assign(*group, entropies=entropies)
        assert_rows_equal(rows_of(credit), s_grpo_rows(group[0], [1.0, 0.0, 0.0], kept))
        by_length = SelectedGRPO(selector, 0.4, denominator="completion").assign(*group, entropies=entropies)
        assert_rows_equal(rows_of(by_length), s_grpo_rows(group[0], [1.0, 0.0, 0.0], kept, denominator="completion"))


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("denominator", ["kept", "completion"])
@QUICK
@given(group=groups())
def test_a_control_that_keeps_everything_is_grpo(selector, denominator, group):
    completions, rewards = group
    method = SelectedGRPO(selector, 1.0, denominator=denominator)
    entropies = [[0.0] * len(completion) for completion in completions]
    assert rows_of(method.assign(completions, rewards, draws(), entropies=entropies)) == rows_of(
        GRPO().assign(completions, rewards)
    )


def test_random_control_keeps_every_pair_equally_often():
    """Two of five: ten sets, each with probability 1/10; drawn for each completion anew."""
    rewards = (torch.arange(4000) % 2).float()
    credit = SelectedGRPO("random", 0.4).assign([[1] * 5] * 4000, rewards, draws(7))
    counts = Counter(tuple(positions) for positions in kept_positions(credit, 4000))
    assert len(counts) == 10 and stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_controls_refuse_what_they_cannot_do():
    group = [[1, 2], [1]], torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match="(?i)generator"):
        SelectedGRPO("random", 0.5).assign(*group)
    for entropies in (None, [[0.1, 0.2]], [[0.1], [0.2]]):
        with pytest.raises(ValueError, match="entropies"):
            SelectedGRPO("entropy", 0.5).assign(*group, entropies=entropies)
    for arguments in (("last", 0.5), ("latest", 0.0), ("latest", 1.1), ("latest", float("nan"))):
        with pytest.raises(ValueError):
            SelectedGRPO(*arguments)


def test_the_unbiased_control_has_the_gradient_of_grpo_on_average():
    """Each token is kept with probability p and weighs 1/p as much: the mean of weight x kept is GRPO's weight."""
    completions, rewards = [[5, 6, 7, 2], [5, 2]], torch.tensor([1.0, 0.0])
    generator, total, count = draws(3), np.zeros(6), 20_000
    for _ in range(count):
        credit = SelectedGRPO("unbiased", 0.3).assign(completions, rewards, generator)
        np.add.at(total, credit.completion.numpy() * 4 + credit.position.numpy(), credit.weight.double().numpy())
    weight = GRPO().assign(completions, rewards).weight.double().numpy()
    error = weight * np.sqrt(0.7 / 0.3 / count)
    assert (np.abs(total / count - weight) < 4 * error).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_prefix_cut_keeps_a_prefix_whose_mean_share_is_the_asked_one(share):
    length, size = 200, 2000
    rewards = (torch.arange(size) % 2).float()
    kept = kept_positions(SelectedGRPO("prefix_cut", share).assign([[1] * length] * size, rewards, draws(5)), size)
    assert all(positions == list(range(len(positions))) and positions for positions in kept)
    shares = np.array([len(positions) / length for positions in kept])
    width = min(1.0, 2 * share) - max(0.0, 2 * share - 1)
    assert abs(shares.mean() - share) < 4 * width / np.sqrt(12 * size) + 1 / length
    assert stats.kstest((shares - max(0.0, 2 * share - 1)) / width, "uniform").statistic < 0.05


@QUICK
@given(group=groups())
def test_branch_credit_is_grpos_plus_t_spmos_over_the_same_deviation(group):
    completions, rewards = group
    credit = BranchGRPO().assign(completions, rewards)
    full = {row[:2]: row for row in grpo_rows(completions, rewards.tolist())}
    assert set(full) == {row[:2] for row in rows_of(credit)}
    if not full:
        return
    added = {}
    for completion, position, advantage, _ in t_spmo_rows(completions, rewards.tolist()):
        added[tuple(completions[completion][: position + 1])] = advantage
    deviation = float(np.std(rewards.double().numpy(), ddof=1)) + 1e-4
    for completion, position, advantage, weight in rows_of(credit):
        branch = added.get(tuple(completions[completion][: position + 1]), 0.0) / deviation
        assert advantage == pytest.approx(full[completion, position][2] + branch, abs=1e-5)
        assert weight == pytest.approx(full[completion, position][3], rel=1e-6)

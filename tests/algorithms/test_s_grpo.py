"""S-GRPO (stochastic, Lee & Tong): early tokens always, later ones with probability P, at most k of them."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import QUICK, assert_rows_equal, groups, grpo_rows, rows_of, s_grpo_distribution, s_grpo_rows
from scipy import stats

from replication.algorithms import GRPO, SGRPO


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept_positions(credit, size: int) -> list[list[int]]:
    kept: list[list[int]] = [[] for _ in range(size)]
    for i, t, _, _ in rows_of(credit):
        kept[i].append(t)
    return kept


def sample(method: SGRPO, length: int, size: int, seed: int) -> list[tuple[int, ...]]:
    """The kept positions of `size` completions of one length, in one group with two different rewards."""
    rewards = torch.arange(size) % 2
    credit = method.assign([[1] * length] * size, rewards.float(), draws(seed))
    return [tuple(positions) for positions in kept_positions(credit, size)]


def test_hand_worked_group_without_chance():
    """alpha = 2 and P = 0: T_i is the first two tokens, or fewer where the completion ends before.

    Rewards 1, 0, 0: mean 1/3, squared deviations 4/9 + 1/9 + 1/9 = 2/3, std = sqrt(1/3) = 0.5773503 (ddof 1);
    A = (2/3)/0.5774503 = 1.1544988 and -(1/3)/0.5774503 = -0.5772494. |T_i| = 2, 1, 2 and G = 3: weights 1/6, 1/3, 1/6.
    With the other denominator |y_i| = 3, 1, 2: weights 1/9, 1/3, 1/6.
    """
    completions, rewards = [[5, 6, 2], [2], [5, 2]], torch.tensor([1.0, 0.0, 0.0])
    a, b = (2 / 3) / (math.sqrt(1 / 3) + 1e-4), -(1 / 3) / (math.sqrt(1 / 3) + 1e-4)
    kept = SGRPO(cutoff=2, keep_probability=0.0, max_kept_tokens=None).assign(completions, rewards, draws())
    expected = [(0, 0, a, 1 / 6), (0, 1, a, 1 / 6), (1, 0, b, 1 / 3), (2, 0, b, 1 / 6), (2, 1, b, 1 / 6)]
    assert_rows_equal(rows_of(kept), expected)
    method = SGRPO(cutoff=2, keep_probability=0.0, max_kept_tokens=None, denominator="completion")
    expected = [(0, 0, a, 1 / 9), (0, 1, a, 1 / 9), (1, 0, b, 1 / 3), (2, 0, b, 1 / 6), (2, 1, b, 1 / 6)]
    assert_rows_equal(rows_of(method.assign(completions, rewards, draws())), expected)


def test_the_cap_keeps_the_first_tokens_that_the_rule_lets_in():
    """alpha = 1, P = 1, k = 3: positions 0, 1, 2 of every completion, however long."""
    method = SGRPO(cutoff=1, keep_probability=1.0, max_kept_tokens=3)
    credit = method.assign([[1] * 9, [1, 2], [4] * 4], torch.tensor([1.0, 0.0, 0.0]), draws())
    assert kept_positions(credit, 3) == [[0, 1, 2], [0, 1], [0, 1, 2]]
    assert [row[3] for row in rows_of(credit)] == pytest.approx([1 / 9] * 3 + [1 / 6] * 2 + [1 / 9] * 3)


@pytest.mark.parametrize("cutoff", [0, 3, 100])
@pytest.mark.parametrize("denominator", ["kept", "completion"])
@QUICK
@given(group=groups(), ddof=st.sampled_from([0, 1]))
def test_everything_kept_is_grpo(cutoff, denominator, group, ddof):
    """P = 1 and no cap; with cutoff 100 no position is even late. Bitwise, for both denominators."""
    completions, rewards = group
    method = SGRPO(cutoff=cutoff, keep_probability=1.0, max_kept_tokens=None, ddof=ddof, denominator=denominator)
    credit = method.assign(completions, rewards, draws())
    assert rows_of(credit) == rows_of(GRPO(ddof=ddof).assign(completions, rewards))
    assert_rows_equal(rows_of(credit), grpo_rows(completions, rewards.tolist(), ddof))


@pytest.mark.parametrize("denominator", ["kept", "completion"])
@QUICK
@given(group=groups(), cutoff=st.integers(0, 3), extra=st.integers(0, 3) | st.none(), seed=st.integers(0, 10**6))
def test_against_the_oracle(denominator, group, cutoff, extra, seed):
    """Which T_i came out is chance, tested below; that it is a possible one, and its numbers, are not."""
    completions, rewards = group
    cap = None if extra is None else cutoff + extra
    method = SGRPO(cutoff=cutoff, keep_probability=0.4, max_kept_tokens=cap, eps=1e-3, denominator=denominator)
    credit = method.assign(completions, rewards, draws(seed))
    kept = kept_positions(credit, len(completions))
    if len(credit.completion):
        for completion, positions in zip(completions, kept, strict=True):
            assert tuple(positions) in s_grpo_distribution(len(completion), cutoff, 0.4, cap)
    expected = s_grpo_rows(completions, rewards.tolist(), kept, 1, 1e-3, denominator)
    assert_rows_equal(rows_of(credit), expected)


@pytest.mark.parametrize(
    ("cutoff", "keep_probability", "cap"),
    [(0, 0.5, None), (2, 0.3, None), (2, 0.3, 3), (1, 0.7, 3), (0, 0.25, 1), (3, 0.5, 3), (0, 0.5, 0), (7, 0.5, 9)],
)
def test_kept_sets_follow_the_exact_distribution_of_the_rule(cutoff, keep_probability, cap):
    """6,000 completions of 6 tokens against the probability of every set, summed over all 2^6 throws of the coins.

    This one test sees a wrong P, coins that hang together, a cap that keeps the last or random ones, and early tokens
    left out. Fixed seed; a right implementation fails at one seed in a thousand.
    """
    method = SGRPO(cutoff=cutoff, keep_probability=keep_probability, max_kept_tokens=cap)
    counts = Counter(sample(method, length=6, size=6000, seed=11))
    chances = s_grpo_distribution(6, cutoff, keep_probability, cap)
    assert set(counts) <= set(chances), "a set that the rule cannot give"
    if len(chances) > 1:
        observed = [counts[kept] for kept in chances]
        expected = [6000 * chance for chance in chances.values()]
        assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_every_late_position_is_kept_with_the_same_probability():
    """Binomial test at each of 40 positions; 0.05/40 of them may fail by chance, so the bound is under that."""
    size, length, cutoff = 1500, 40, 4
    kept = sample(SGRPO(cutoff=cutoff, keep_probability=0.3, max_kept_tokens=None), length, size, seed=2)
    for t in range(length):
        count = sum(t in positions for positions in kept)
        if t < cutoff:
            assert count == size
        else:
            assert stats.binomtest(count, size, 0.3).pvalue > 1e-3, f"position {t} was kept {count} times of {size}"


def test_completions_of_a_group_are_drawn_independently():
    """A coin shared by the completions of a group, or by neighbouring positions, would show in a 2 x 2 table."""
    kept = sample(SGRPO(cutoff=0, keep_probability=0.5, max_kept_tokens=None), length=8, size=3000, seed=3)
    coins = torch.tensor([[t in positions for t in range(8)] for positions in kept])
    for first, second in ((coins[:-1:2], coins[1::2]), (coins[:, :-1], coins[:, 1:]), (coins[:1500], coins[1500:])):
        table = [[int((first == a).logical_and(second == b).sum()) for b in (True, False)] for a in (True, False)]
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_duplicate_completions_are_drawn_each_for_itself():
    """The same tokens twice are two samples: their kept sets differ as often as any two."""
    kept = sample(SGRPO(cutoff=0, keep_probability=0.5, max_kept_tokens=None), length=10, size=50, seed=0)
    assert len(set(kept)) > 40


def test_permuting_the_group_changes_nothing_in_distribution():
    """The one long completion, moved from first to last, keeps its four late tokens with the probability it had."""
    method = SGRPO(cutoff=1, keep_probability=0.3, max_kept_tokens=None)
    group, rewards = [[1, 2, 3, 4, 2], [2], [1, 2]], torch.tensor([1.0, 0.0, 0.0])
    for order in ([0, 1, 2], [2, 1, 0]):
        late = 0
        for seed in range(400):
            credit = method.assign([group[i] for i in order], rewards[order], draws(seed))
            late += int((credit.completion == order.index(0)).sum()) - 1
        assert stats.binomtest(late, 1600, 0.3).pvalue > 1e-3


def test_same_seed_same_draws_other_seed_others():
    method = SGRPO(cutoff=2, keep_probability=0.4, max_kept_tokens=None)
    group = [[1] * 30] * 4, torch.tensor([1.0, 0.0, 0.0, 1.0])
    one, same, other = (rows_of(method.assign(*group, draws(seed))) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_the_generator_moves_on_so_that_the_next_group_draws_anew():
    method = SGRPO(cutoff=0, keep_probability=0.5, max_kept_tokens=None)
    generator = draws(4)
    group = [[1] * 30] * 2, torch.tensor([1.0, 0.0])
    assert rows_of(method.assign(*group, generator)) != rows_of(method.assign(*group, generator))


@pytest.mark.parametrize("rewards", [[1.0, 0.0], [1.0, 1.0]], ids=["untied", "tied"])
def test_without_a_generator_it_raises(rewards):
    """Falling back on the global state would be a draw that no seed names. A tie today is no excuse tomorrow."""
    method = SGRPO(cutoff=1, keep_probability=0.5, max_kept_tokens=None)
    with pytest.raises(ValueError, match="(?i)generator"):
        method.assign([[1, 2, 3], [1, 2]], torch.tensor(rewards))


def test_nothing_kept_adds_nothing_and_the_group_size_stays():
    """alpha = 0 and P = 0 keep nothing at all; alpha = 0 and k = 1 leave some T_i empty, and G stays 4."""
    group = [[1, 2, 3], [1, 2], [4], [5]], torch.tensor([1.0, 0.0, 0.0, 1.0])
    nothing = SGRPO(cutoff=0, keep_probability=0.0, max_kept_tokens=None).assign(*group, draws())
    assert nothing.completion.shape == nothing.weight.shape == (0,)
    for seed in range(20):
        credit = SGRPO(cutoff=0, keep_probability=0.5, max_kept_tokens=1).assign(*group, draws(seed))
        assert all(weight == 0.25 for weight in credit.weight.tolist())


@pytest.mark.parametrize("keep_probability", [-0.1, 1.1, 2, float("nan"), float("inf")])
def test_a_keep_probability_outside_zero_to_one_is_refused(keep_probability):
    with pytest.raises(ValueError, match="keep_probability"):
        SGRPO(cutoff=1, keep_probability=keep_probability, max_kept_tokens=None)


def test_a_cutoff_over_the_cap_contradicts_always_kept():
    with pytest.raises(ValueError, match="cutoff"):
        SGRPO(cutoff=5, keep_probability=0.5, max_kept_tokens=4)
    SGRPO(cutoff=5, keep_probability=0.5, max_kept_tokens=5)


@pytest.mark.parametrize(
    "arguments",
    [{"cutoff": -1}, {"max_kept_tokens": -1, "cutoff": 0}, {"denominator": "group_tokens"}, {"ddof": 2}, {"eps": -1e-4}],
)
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ValueError):
        SGRPO(**{"cutoff": 1, "keep_probability": 0.5, "max_kept_tokens": None, **arguments})

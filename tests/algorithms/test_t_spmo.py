"""T-SPMO: every distinct transition of the prefix trie once, A(v | p) = mean reward behind p, v - mean behind p."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    QUICK,
    assert_rows_equal,
    groups,
    replayed_groups,
    rows_of,
    t_spmo_rows,
    transition_map,
)

from replication.algorithms import TSPMO


def test_hand_worked_group_of_four():
    """a b EOS -> 1, a c EOS -> 0, a b d EOS -> 0, e EOS -> 1, with tokens a=5 b=6 c=7 d=8 e=9 EOS=2; G = 4.

    Means: root 2/4; a 1/3; e 1; ab 1/2; ac 0; ab EOS 1; abd 0; everything deeper as its prefix.
    A(a) = 1/3 - 1/2 = -1/6     A(e) = 1 - 1/2 = 1/2        A(b|a) = 1/2 - 1/3 = 1/6      A(c|a) = 0 - 1/3 = -1/3
    A(EOS|ab) = 1 - 1/2 = 1/2   A(d|ab) = 0 - 1/2 = -1/2    A(EOS|ac) = A(EOS|abd) = A(EOS|e) = 0, left out.
    """
    completions = [[5, 6, 2], [5, 7, 2], [5, 6, 8, 2], [9, 2]]
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    expected = [(0, 0, -1 / 6), (0, 1, 1 / 6), (0, 2, 1 / 2), (1, 1, -1 / 3), (2, 2, -1 / 2), (3, 0, 1 / 2)]
    by_group = rows_of(TSPMO().assign(completions, rewards))
    assert_rows_equal(by_group, [(*row, 1 / 4) for row in expected])
    by_transitions = rows_of(TSPMO(denominator="transitions").assign(completions, rewards))
    assert_rows_equal(by_transitions, [(*row, 1 / 6) for row in expected])


def test_one_completion_a_prefix_of_another():
    """[a b] was cut at the limit (reward 0), [a b EOS] was not (reward 1), [a] ended at once (reward 0); G = 3.

    Means: root 1/3, a 1/3, ab 1/2, ab EOS 1. A completion that ends at p still counts behind p, and its end is no
    transition: A(a) = 0 is left out, A(b|a) = 1/2 - 1/3 = 1/6, A(EOS|ab) = 1 - 1/2 = 1/2.
    """
    credit = TSPMO().assign([[5, 6], [5, 6, 2], [5]], torch.tensor([0.0, 1.0, 0.0]))
    assert_rows_equal(rows_of(credit), [(0, 1, 1 / 6, 1 / 3), (1, 2, 1 / 2, 1 / 3)])


def test_end_of_sequence_is_a_transition():
    """[EOS] -> 1 and [a EOS] -> 0: root 1/2, so A(EOS) = 1/2 and A(a) = -1/2."""
    credit = TSPMO().assign([[2], [5, 2]], torch.tensor([1.0, 0.0]))
    assert_rows_equal(rows_of(credit), [(0, 0, 0.5, 0.5), (1, 0, -0.5, 0.5)])


def test_duplicate_completions_with_different_rewards():
    """The same text judged 1 and 0 (it can be cut or not): every mean along it is 1/2, nothing is left to learn."""
    assert len(TSPMO().assign([[5, 6, 2], [5, 6, 2]], torch.tensor([1.0, 0.0])).completion) == 0


def test_duplicates_weigh_in_the_means_but_a_transition_counts_once():
    """Three times a -> 1, once b -> 0: root 3/4, A(a) = 1/4, A(b) = -3/4, one row each, at the first holder."""
    credit = TSPMO().assign([[5], [5], [6], [5]], torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert_rows_equal(rows_of(credit), [(0, 0, 0.25, 0.25), (2, 0, -0.75, 0.25)])


def test_an_empty_completion_counts_behind_the_empty_prefix():
    """[] -> 1, [a] -> 0: root 1/2, so A(a) = -1/2, with G = 2."""
    assert_rows_equal(rows_of(TSPMO().assign([[], [5]], torch.tensor([1.0, 0.0]))), [(1, 0, -0.5, 0.5)])


def test_nothing_is_updated_where_completions_have_parted_for_good():
    """This is where "under 5 %" comes from: 2 rows of 40 tokens."""
    credit = TSPMO().assign([[5] * 20, [6] * 20], torch.tensor([1.0, 0.0]))
    assert [row[:2] for row in rows_of(credit)] == [(0, 0), (1, 0)]


def test_means_that_are_equal_but_for_rounding_are_left_out():
    """0.1, 0.3 behind a and 0.2, 0.2 behind b: all means 0.2, but (0.1 + 0.3)/2 and (0.1 + 0.3 + 0.2 + 0.2)/4 in
    floating point are not; A near 3e-17 would be a row, and with 1/transitions it would thin out the others."""
    rewards = torch.tensor([0.1, 0.3, 0.2, 0.2], dtype=torch.float64)
    completions = [[5, 2], [5, 6, 2], [6, 2], [6, 3, 2]]
    rows = rows_of(TSPMO(denominator="transitions").assign(completions, rewards))
    # A(EOS|a) = 0.1 - 0.2 and A(6|a) = 0.3 - 0.2; the two behind b are level.
    assert_rows_equal(rows, [(0, 1, -0.1, 0.5), (1, 1, 0.1, 0.5)])
    three = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    assert [row[0] for row in rows_of(TSPMO().assign([[5], [6], [7]], three))] == [0, 2]


def test_the_threshold_is_one_billionth():
    """Rewards x and 0 on two tokens: A = ±x/2."""
    for gap, rows in ((1.9e-9, 0), (2.1e-9, 2)):
        credit = TSPMO().assign([[5], [6]], torch.tensor([gap, 0.0], dtype=torch.float64))
        assert len(credit.completion) == rows


@pytest.mark.parametrize("denominator", ["group", "transitions"])
@QUICK
@given(group=groups())
def test_against_the_oracle(denominator, group):
    completions, rewards = group
    credit = TSPMO(denominator=denominator).assign(completions, rewards)
    assert_rows_equal(rows_of(credit), t_spmo_rows(completions, rewards.tolist(), denominator))


@pytest.mark.parametrize("denominator", ["group", "transitions"])
@QUICK
@given(group=replayed_groups())
def test_against_the_oracle_with_replays(denominator, group):
    completions, rewards, starts = group
    credit = TSPMO(denominator=denominator).assign(completions, rewards, replay_starts=starts)
    assert_rows_equal(rows_of(credit), t_spmo_rows(completions, rewards.tolist(), denominator, starts))


@QUICK
@given(group=groups(min_size=2), data=st.data())
def test_permuting_the_group_leaves_the_map_as_it_is(group, data):
    """Rewards rounded to quarters, whose sums are exact in any order: the very same numbers, not close ones."""
    completions, rewards = group
    rewards = (rewards * 4).round() / 4
    order = data.draw(st.permutations(range(len(completions))))
    shuffled = [completions[i] for i in order]
    before = transition_map(completions, rows_of(TSPMO().assign(completions, rewards)))
    after = transition_map(shuffled, rows_of(TSPMO().assign(shuffled, rewards[list(order)])))
    assert before == after


@QUICK
@given(group=groups(min_size=2))
def test_each_row_stands_at_the_first_completion_that_holds_it(group):
    completions, rewards = group
    for i, t, _, _ in rows_of(TSPMO().assign(completions, rewards)):
        assert not any(completions[j][: t + 1] == completions[i][: t + 1] for j in range(i))


@QUICK
@given(group=groups(min_size=2))
def test_renaming_the_tokens_changes_nothing(group):
    """A token is a name: ids in other order, negative or huge give the same places and numbers."""
    completions, rewards = group
    renamed = [[{0: 151_935, 1: 7, 2: 0}[token] for token in completion] for completion in completions]
    assert rows_of(TSPMO().assign(renamed, rewards)) == rows_of(TSPMO().assign(completions, rewards))


@QUICK
@given(group=groups(min_size=2))
def test_advantages_of_the_choices_at_a_prefix_balance(group):
    """Where no completion ends at p, the A(v | p), each times the completions behind it, sum to zero."""
    completions, rewards = group
    mapping = transition_map(completions, rows_of(TSPMO().assign(completions, rewards)))
    for prefix in {key[:-1] for key in mapping}:
        behind = [tuple(c) for c in completions if tuple(c[: len(prefix)]) == prefix]
        if prefix not in behind:
            total = sum(mapping.get(completion[: len(prefix) + 1], 0.0) for completion in behind)
            assert total == pytest.approx(0.0, abs=1e-6)


def test_a_very_long_completion_does_not_meet_the_recursion_limit():
    deep = [5] * 5000
    credit = TSPMO().assign([deep, [*deep[:-1], 6]], torch.tensor([1.0, 0.0]))
    assert [row[:3] for row in rows_of(credit)] == [(0, 4999, 0.5), (1, 4999, -0.5)]


# ---------------------------------------------------------------------------------------------------------- replay


def test_hand_worked_replay():
    """Originals a b c -> 1, a b d -> 0, e -> 0; one replay forced along "a b" (start 2) drew d -> 1. G stays 3.

    The replay is no sample of what follows the root or "a", so it counts behind prefixes of two tokens or more:
    root (1+0+0)/3 = 1/3; a (1+0)/2 = 1/2; e 0; ab (1+0+1)/3 = 2/3; abc 1; abd (0+1)/2 = 1/2.
    A(a) = 1/2 - 1/3 = 1/6;  A(e) = -1/3;  A(b|a) = 2/3 - 1/2 = 1/6;  A(c|ab) = 1/3;  A(d|ab) = 1/2 - 2/3 = -1/6.
    """
    completions = [[5, 6, 7], [5, 6, 8], [9], [5, 6, 8]]
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    credit = TSPMO().assign(completions, rewards, replay_starts=[0, 0, 0, 2])
    expected = [(0, 0, 1 / 6), (0, 1, 1 / 6), (0, 2, 1 / 3), (1, 2, -1 / 6), (2, 0, -1 / 3)]
    assert_rows_equal(rows_of(credit), [(*row, 1 / 3) for row in expected])
    # Without its start the replay would pass for a fourth sample of the policy.
    naive = TSPMO().assign(completions, rewards)
    assert rows_of(naive)[0][2] == pytest.approx(2 / 3 - 1 / 2)


def test_a_replay_opens_transitions_of_its_own():
    """a b -> 1 and c -> 0, replayed from "a" (start 1): a d EOS -> 0.

    root 1/2; a (1+0)/2 = 1/2; c 0; ab 1; ad 0. A(a) = 0 is left out, A(c) = -1/2, A(b|a) = 1/2, A(d|a) = -1/2 at the
    replay, A(EOS|ad) = 0. Forced tokens are never rows of the replay: its row stands at position 1.
    """
    credit = TSPMO().assign([[5, 6], [7], [5, 8, 2]], torch.tensor([1.0, 0.0, 0.0]), replay_starts=[0, 0, 1])
    assert_rows_equal(rows_of(credit), [(0, 1, 0.5, 0.5), (1, 0, -0.5, 0.5), (2, 1, -0.5, 0.5)])


@QUICK
@given(group=groups())
def test_no_replays_is_the_default(group):
    completions, rewards = group
    expected = rows_of(TSPMO().assign(completions, rewards))
    assert rows_of(TSPMO().assign(completions, rewards, replay_starts=None)) == expected
    assert rows_of(TSPMO().assign(completions, rewards, replay_starts=[0] * len(completions))) == expected


@QUICK
@given(group=replayed_groups())
def test_replays_leave_shallower_prefixes_alone(group):
    """Transitions that end before the earliest start are those of the originals, number for number."""
    completions, rewards, starts = group
    originals = [i for i, start in enumerate(starts) if start == 0]
    first = min((start for start in starts if start), default=10**9)
    alone = rows_of(TSPMO().assign([completions[i] for i in originals], rewards[originals]))
    together = rows_of(TSPMO().assign(completions, rewards, replay_starts=starts))
    assert [row for row in together if row[1] + 1 < first] == [row for row in alone if row[1] + 1 < first]


@pytest.mark.parametrize("starts", [[0, 0], [0, 0, 0, 0], [0, 0, -1], [0, 0, 4]])
def test_impossible_replay_starts_are_refused(starts):
    """A list of another length, a negative start, a start behind the completion's end."""
    with pytest.raises(ValueError):
        TSPMO().assign([[5, 6], [5, 7], [5, 6, 8]], torch.tensor([1.0, 0.0, 1.0]), replay_starts=starts)

"""What every method promises: the shape of a TokenCredit, ties, bad input, and no side effects."""

from __future__ import annotations

import contextlib
import inspect
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import QUICK, groups, rows_of

from replication.algorithms import GRPO, SGRPO, TSPMO, SelectedGRPO, TokenCredit
from replication.errors import Stopped, UserError
from replication.user_code import OwnRule

METHODS = {
    "grpo": GRPO(),
    "grpo_group_tokens": GRPO(denominator="group_tokens"),
    "s_grpo": SGRPO(cutoff=1, keep_probability=0.5, max_kept_tokens=3),
    "s_grpo_completion": SGRPO(cutoff=0, keep_probability=0.5, max_kept_tokens=None, denominator="completion"),
    "random": SelectedGRPO("random", 0.4),
    "earliest": SelectedGRPO("earliest", 0.4),
    "latest": SelectedGRPO("latest", 0.4, denominator="completion"),
    "t_spmo": TSPMO(),
    "t_spmo_transitions": TSPMO(denominator="transitions"),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())

COMPLETIONS = [[7, 8, 9, 2], [7, 8, 2], [7, 5, 5, 5, 2], [7, 8, 9, 2]]
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0])


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_arguments_and_their_defaults_are_the_contract():
    def defaults(method: type) -> dict:
        return {
            name: parameter.default
            for name, parameter in inspect.signature(method).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }

    assert defaults(GRPO) == {"ddof": 1, "eps": 1e-4, "denominator": "completion"}
    assert defaults(TSPMO) == {"denominator": "group"}
    s_grpo = defaults(SGRPO)
    assert (s_grpo["ddof"], s_grpo["eps"], s_grpo["denominator"]) == (1, 1e-4, "kept")
    for method in (GRPO, SGRPO, TSPMO):
        parameters = list(inspect.signature(method.assign).parameters.values())
        assert [parameter.name for parameter in parameters[1:4]] == ["completions", "rewards", "generator"]
        # Whatever else a selector needs has the default None, so that the shared loop can leave it out.
        assert all(parameter.default is None for parameter in parameters[3:])


@every_method
def test_credit_is_four_flat_tensors_of_one_length(method):
    credit = method.assign(COMPLETIONS, REWARDS, draws())
    columns = (credit.completion, credit.position, credit.advantage, credit.weight)
    assert [column.dtype for column in columns] == [torch.long, torch.long, torch.float32, torch.float32]
    assert all(column.shape == credit.completion.shape and column.dim() == 1 for column in columns)
    assert not any(column.requires_grad for column in columns)
    assert len(credit.completion) > 0
    for i, t, _, weight in rows_of(credit):
        assert 0 <= i < len(COMPLETIONS) and 0 <= t < len(COMPLETIONS[i])
        assert weight > 0


@every_method
@QUICK
@given(group=groups())
def test_no_row_is_listed_twice_and_none_points_outside(method, group):
    completions, rewards = group
    rows = rows_of(method.assign(completions, rewards, draws()))
    places = [row[:2] for row in rows]
    assert len(set(places)) == len(places)
    assert all(0 <= i < len(completions) and 0 <= t < len(completions[i]) for i, t in places)
    assert all(np.isfinite(row[2]) and np.isfinite(row[3]) and row[3] > 0 for row in rows)


@pytest.mark.parametrize(
    ("completion", "position", "inside"),
    [([0, 1], [2, 1], True), ([], [], True), ([2], [0], False), ([-1], [0], False), ([1], [2], False), ([0], [-1], False)],
)
def test_credit_knows_whether_it_points_into_a_group(completion, position, inside):
    credit = TokenCredit.from_arrays(completion, position, [1.0] * len(completion), [1.0] * len(completion))
    with contextlib.nullcontext() if inside else pytest.raises(ValueError, match="outside"):
        credit.require_inside([[7, 8, 9], [7, 8]])


GOOD = TokenCredit.from_arrays([0, 1], [2, 1], [1.0, -1.0], [0.5, 0.5])
#: What a rule returned, and what is said of it.
UNUSABLE = {
    "nothing": (None, "assign returned a NoneType, not a TokenCredit"),
    "rows": ([(0, 2, 1.0, 0.5)], "assign returned a list, not a TokenCredit"),
    "an advantage that is no number": (
        replace(GOOD, advantage=torch.tensor([1.0, torch.nan])),
        "the credit's advantage is nan in row 1: it must be a finite number",
    ),
    "an infinite weight": (replace(GOOD, weight=torch.tensor([-torch.inf, 1.0])), "the credit's weight is -inf in row 0"),
    "a weight too large for float32": (
        replace(GOOD, weight=torch.tensor([1e300, 1.0], dtype=torch.float64)), "the credit's weight is 1e+300 in row 0"
    ),
    "positions with a fraction": (
        replace(GOOD, position=torch.tensor([2.0, 1.5])), "the credit's position is torch.float32: it must be torch.int64"
    ),
    "a mask": (replace(GOOD, completion=torch.tensor([False, True])), "the credit's completion is torch.bool"),
    "integer advantages": (
        replace(GOOD, advantage=torch.tensor([1, -1])), "the credit's advantage is torch.int64: it must be torch.float32"
    ),
    "another device": (replace(GOOD, weight=torch.ones(2, device="meta")), "the credit's weight is on meta: it must be on the CPU"),
    "a place outside": (replace(GOOD, position=torch.tensor([2, 2])), "the credit names a position outside its completion"),
    "a row twice": (
        TokenCredit(*(torch.cat([getattr(GOOD, name)] * 2) for name in ("completion", "position", "advantage", "weight"))),
        "the credit lists position 2 of completion 0 2 times, not once",
    ),
}


class Fixed:
    """A rule that gives the same answer whatever it is asked."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def assign(self, completions, rewards, generator=None, **needs):
        return self.answer


@pytest.mark.parametrize(("answer", "said"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_what_an_own_rule_returns_is_refused_by_name_if_it_cannot_be_learned_from(answer, said):
    """Such credit ended as "diverged: lower the learning rate", in a traceback of the scoring, or as a run with status done."""
    with pytest.raises(UserError) as error:
        OwnRule("method mine:rule", Fixed(answer), __name__).assign([[7, 8, 9], [7, 8]], torch.tensor([1.0, 0.0]))
    message = str(error.value)
    assert message.startswith("method mine:rule fails on 2 completions of 2 to 3 tokens (") and said in message
    assert "\n" not in message


@pytest.mark.parametrize("answer", [GOOD, TokenCredit.empty(), replace(GOOD, completion=torch.tensor([0, 1], dtype=torch.int32))])
def test_a_good_answer_of_an_own_rule_is_passed_on_as_it_is(answer):
    assert OwnRule("method mine:rule", Fixed(answer), __name__).assign([[7, 8, 9], [7, 8]], torch.zeros(2)) is answer


@pytest.mark.parametrize("error", [UserError("set this differently"), Stopped(15)])
def test_a_stop_is_no_fault_of_a_rule(error):
    class Raises:
        def assign(self, completions, rewards, generator=None):
            raise error

    with pytest.raises(type(error)) as caught:
        OwnRule("method mine:rule", Raises(), __name__).assign([[7]], torch.zeros(1))
    assert caught.value is error


def test_a_critic_that_diverged_is_no_fault_of_the_rule_that_uses_its_values():
    """The loop ends such a run as diverged, with a summary, as it does with PPO."""
    answer = replace(GOOD, advantage=torch.full((2,), torch.nan))
    rule = OwnRule("method mine:rule", Fixed(answer), __name__)
    assert rule.assign([[7, 8, 9], [7, 8]], torch.zeros(2), values=[[0.5] * 3, [torch.nan] * 2]) is answer


def test_an_own_rule_may_change_what_it_is_given():
    """``rewards -= rewards.mean()`` in a rule changed the rewards that metrics.jsonl reports, without a word."""

    class Careless:
        needs = ("values", "replay_starts")

        def assign(self, completions, rewards, generator=None, *, values, replay_starts):
            rewards -= rewards.mean()
            completions[0].append(1)
            completions.pop()
            values[0][0] = 9.0
            replay_starts.clear()
            return GOOD

        def targets(self, completions, rewards, values):
            rewards.zero_()
            values[1].sort()
            completions.reverse()
            return [[1.0], [1.0, 1.0, 1.0]]

    rule = OwnRule("method mine:rule", Careless(), __name__)
    completions, rewards, values, starts = [[7, 8, 9], [7]], torch.tensor([1.0, 0.0]), [[0.5, 0.25, 0.0], [0.5]], [0, 0]
    with pytest.raises(UserError, match="outside its completion"):  # of the completions as they are, not as the rule left them
        rule.assign(completions, rewards, values=values, replay_starts=starts)
    with pytest.raises(UserError, match="one number for each generated token"):
        rule.targets(completions, rewards, values)
    assert (completions, rewards.tolist(), values, starts) == ([[7, 8, 9], [7]], [1.0, 0.0], [[0.5, 0.25, 0.0], [0.5]], [0, 0])


@every_method
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -3.0])
@pytest.mark.parametrize("completions", [COMPLETIONS, [[1, 2]], [[]], [[], []], [[3], [3], [3]]])
def test_equal_rewards_give_nothing(method, reward, completions):
    """Three times 0.1 has a mean that is not 0.1: a tie is max = min, never a small standard deviation."""
    credit = method.assign(completions, torch.full((len(completions),), reward, dtype=torch.float64), draws())
    assert credit.completion.shape == credit.position.shape == credit.advantage.shape == credit.weight.shape == (0,)
    assert credit.completion.dtype == credit.position.dtype == torch.long
    assert credit.advantage.dtype == credit.weight.dtype == torch.float32


@every_method
def test_a_group_of_one_ties_with_itself(method):
    """With ddof = 1 the standard deviation of one reward is 0/0: nothing may become NaN."""
    assert len(method.assign([[1, 2, 3]], torch.tensor([1.0]), draws()).completion) == 0


@every_method
def test_empty_completions_count_in_the_group_but_have_no_rows(method):
    credit = method.assign([[], [4, 5], [4, 6], []], torch.tensor([0.0, 1.0, 0.0, 0.0]), draws())
    assert set(credit.completion.tolist()) <= {1, 2}
    assert torch.isfinite(credit.advantage).all() and torch.isfinite(credit.weight).all()


@every_method
def test_a_group_of_empty_completions_gives_nothing_even_when_rewards_differ(method):
    assert len(method.assign([[], []], torch.tensor([0.0, 1.0]), draws()).completion) == 0


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rewards_that_are_not_finite_are_refused(method, bad):
    with pytest.raises(ValueError, match="finite"):
        method.assign(COMPLETIONS, torch.tensor([1.0, 0.0, bad, 0.0]), draws())
    # A tie of infinities is no tie.
    with pytest.raises(ValueError, match="finite"):
        method.assign(COMPLETIONS, torch.full((4,), bad), draws())


@every_method
@pytest.mark.parametrize("rewards", [torch.ones(3), torch.ones(5), torch.ones(0)])
def test_a_wrong_number_of_rewards_is_refused_naming_both_numbers(method, rewards):
    with pytest.raises(ValueError) as caught:
        method.assign(COMPLETIONS, rewards, draws())
    assert "4" in str(caught.value) and str(len(rewards)) in str(caught.value)


@every_method
@pytest.mark.parametrize("rewards", [torch.ones(4, 1), torch.ones(1, 4), torch.tensor(1.0)])
def test_rewards_of_another_shape_are_refused(method, rewards):
    with pytest.raises(ValueError):
        method.assign(COMPLETIONS, rewards, draws())


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_rewards_of_any_dtype_give_the_same_float32_numbers(method, dtype):
    expected = method.assign(COMPLETIONS, REWARDS, draws())
    credit = method.assign(COMPLETIONS, REWARDS.to(dtype), draws())
    assert torch.equal(credit.advantage, expected.advantage) and torch.equal(credit.weight, expected.weight)
    assert credit.advantage.dtype == torch.float32


@every_method
def test_numbers_are_computed_in_float64(method):
    """Rewards 1e8 and 1e8 + 1 are one number in float32; their difference must survive until the very end."""
    offset = method.assign(COMPLETIONS, REWARDS.double() + 1e8, draws())
    assert torch.equal(offset.completion, method.assign(COMPLETIONS, REWARDS, draws()).completion)
    torch.testing.assert_close(offset.advantage, method.assign(COMPLETIONS, REWARDS, draws()).advantage)


@every_method
def test_inputs_and_the_global_random_state_stay_as_they_are(method):
    completions = [list(completion) for completion in COMPLETIONS]
    rewards = REWARDS.clone()
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    method.assign(completions, rewards, draws())
    assert completions == COMPLETIONS and torch.equal(rewards, REWARDS)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1]) and before[2] == random.getstate()


@every_method
def test_methods_keep_no_state_between_calls(method):
    first = method.assign(COMPLETIONS, REWARDS, draws(5))
    method.assign([[1], [2]], torch.tensor([0.0, 1.0]), draws(6))
    assert rows_of(method.assign(COMPLETIONS, REWARDS, draws(5))) == rows_of(first)


@pytest.mark.parametrize("method", [GRPO(), TSPMO()], ids=["grpo", "t_spmo"])
def test_a_rule_that_does_not_draw_needs_no_generator_and_leaves_it_alone(method):
    generator = draws(3)
    before = generator.get_state()
    with_generator = method.assign(COMPLETIONS, REWARDS, generator)
    assert torch.equal(before, generator.get_state())
    assert rows_of(with_generator) == rows_of(method.assign(COMPLETIONS, REWARDS))


@pytest.mark.parametrize("method", [GRPO, TSPMO], ids=["grpo", "t_spmo"])
def test_an_unknown_denominator_is_refused(method):
    with pytest.raises(ValueError, match="denominator"):
        method(denominator="kept_tokens")

"""The exercises of 01_grpo_under_lora."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from replication.algorithms import GRPO
from replication.notebooks.exercises.check import Credits, exercise, groups, is_far
from replication.notebooks.toy_group import TOY, toy_gradient


@exercise
def one_more_right(answer: float) -> str | None:
    """The advantage of the second answer once the third is right as well."""
    credit = GRPO().assign(TOY.tokens, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    if is_far(answer, credit.advantage[credit.completion == 1][0].item()):
        return "three of four are right, so the mean is 3/4; divide by the root of (the squared deviations' sum / 3)"
    return None


@exercise
def other_ddof(answer: float) -> str | None:
    """The factor by which all advantages grow under ddof=0."""
    without, more = (GRPO(ddof=ddof, eps=0.0).assign(TOY.tokens, TOY.rewards).advantage[0].item() for ddof in (1, 0))
    if not is_far(answer, without / more):
        return "that is the factor the other way round"
    return "compare the standard deviations: one divides by G - 1, one by G" if is_far(answer, more / without) else None


@exercise
def long_answer(answer: Sequence[float]) -> str | None:
    """The weight of a token of the fourth answer at ten tokens, under both denominators."""
    tokens = [*TOY.tokens[:3], tuple(range(10))]
    for given, denominator in zip(answer, ("completion", "group_tokens"), strict=True):
        credit = GRPO(denominator=denominator).assign(tokens, TOY.rewards)
        if is_far(given, credit.weight[credit.completion == 3][0].item(), 0.0005):
            return f'the weight under "{denominator}" is different: count what it divides by'
    return None


@exercise
def silent_start(answer: Sequence[float]) -> str | None:
    """Four rewards, not all equal, under which GRPO does not move the first token's row at all."""
    rewards = torch.tensor([float(reward) for reward in answer])
    if rewards.shape != (4,):
        return "give four rewards, one for each answer"
    credit = GRPO().assign(TOY.tokens, rewards)
    if not len(credit):
        return "these rewards tie, so nothing is moved anywhere: find four that differ"
    row = toy_gradient(credit)[0]
    if row.abs().max() > 1e-6:
        return f"the row of the start still moves, by up to {row.abs().max().item():.3f}: three answers begin with 9 and one with 5"
    return None


@exercise
def undivided(answer: Credits) -> str | None:
    """A method (completions, rewards) -> TokenCredit: GRPO with A = R - mean R, not divided by the standard deviation."""
    for completions, rewards in groups(20):
        full, own = GRPO().assign(completions, rewards), answer(completions, rewards)
        if len(own) != len(full):
            return f"{len(own)} tokens are credited instead of {len(full)} (rewards {rewards.tolist()})"
        if not len(full):
            continue
        if not torch.allclose(own.weight, full.weight):
            return "the weights should stay those of GRPO"
        if not torch.allclose(own.advantage, (rewards - rewards.mean())[full.completion], atol=1e-6):
            return f"for the rewards {rewards.tolist()} the advantages are not R - mean R"
    return None

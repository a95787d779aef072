"""Slow, plain oracles: nested loops over Python floats, written from the formulas and from nothing else.

Nothing here imports the package. A row of credit is a tuple (completion, position, advantage, weight); an oracle returns
the rows of one group sorted by completion and position.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

Row = tuple[int, int, float, float]

# Derandomized: the same examples on every machine and every day.
QUICK = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


# ---------------------------------------------------------------------------------------------------------- credit


def group_advantages(rewards: Sequence[float], ddof: int, eps: float) -> list[float] | None:
    """(R_i - mean R) / (std R + eps); None for a tied group."""
    if max(rewards) == min(rewards):
        return None
    mean = math.fsum(rewards) / len(rewards)
    variance = math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - ddof)
    return [(reward - mean) / (math.sqrt(variance) + eps) for reward in rewards]


def grpo_rows(
    completions: list[list[int]],
    rewards: Sequence[float],
    ddof: int = 1,
    eps: float = 1e-4,
    denominator: str = "completion",
) -> list[Row]:
    """Every token, with 1/(G |y_i|) or with one over the tokens of the whole group."""
    advantages = group_advantages(rewards, ddof, eps)
    if advantages is None:
        return []
    everything = sum(len(completion) for completion in completions)
    rows = []
    for i in range(len(completions)):
        for t in range(len(completions[i])):
            weight = {"completion": 1 / (len(completions) * len(completions[i])), "group_tokens": 1 / everything}
            rows.append((i, t, advantages[i], weight[denominator]))
    return rows


def s_grpo_rows(
    completions: list[list[int]],
    rewards: Sequence[float],
    kept: list[list[int]],
    ddof: int = 1,
    eps: float = 1e-4,
    denominator: str = "kept",
) -> list[Row]:
    """The rows of S-GRPO once the kept positions T_i of every completion are known: 1/(G |T_i|) or 1/(G |y_i|)."""
    advantages = group_advantages(rewards, ddof, eps)
    if advantages is None:
        return []
    rows = []
    for i in range(len(completions)):
        for t in sorted(kept[i]):
            tokens = {"kept": len(kept[i]), "completion": len(completions[i])}[denominator]
            rows.append((i, t, advantages[i], 1 / (len(completions) * tokens)))
    return rows


def s_grpo_kept(length: int, cutoff: int, cap: int | None, coins: Sequence[bool]) -> tuple[int, ...]:
    """T_i for given coins, one for each position: early ones always, later ones by their coin while |T_i| < k."""
    kept: list[int] = []
    for t in range(length):
        # `cap` cannot bind early: alpha > k is refused.
        if t < cutoff or (coins[t] and (cap is None or len(kept) < cap)):
            kept.append(t)
    return tuple(kept)


def s_grpo_distribution(length: int, cutoff: int, keep_probability: float, cap: int | None) -> dict[tuple[int, ...], float]:
    """The exact probability of every possible T_i, by going through all 2^length throws of the coins."""
    chances: dict[tuple[int, ...], float] = {}
    for coins in itertools.product((False, True), repeat=length):
        chance = 1.0
        for coin in coins:
            chance *= keep_probability if coin else 1 - keep_probability
        kept = s_grpo_kept(length, cutoff, cap, coins)
        chances[kept] = chances.get(kept, 0.0) + chance
    return {kept: chance for kept, chance in chances.items() if chance > 0}


def t_spmo_rows(
    completions: list[list[int]],
    rewards: Sequence[float],
    denominator: str = "group",
    replay_starts: Sequence[int] | None = None,
) -> list[Row]:
    """Every distinct transition (p, v) once, A = mean reward behind p + v - mean reward behind p, zeros left out.

    A completion counts behind a prefix q if it begins with q and no part of it after q was forced: len(q) >= its start.
    """
    starts = list(replay_starts) if replay_starts is not None else [0] * len(completions)

    def mean_behind(prefix: list[int]) -> float:
        behind = [
            rewards[j] for j in range(len(completions)) if completions[j][: len(prefix)] == prefix and len(prefix) >= starts[j]
        ]
        return math.fsum(behind) / len(behind)

    seen: set[tuple[int, ...]] = set()
    found = []
    for i in range(len(completions)):
        for t in range(starts[i], len(completions[i])):
            whole = completions[i][: t + 1]
            if tuple(whole) in seen:
                continue
            seen.add(tuple(whole))
            advantage = mean_behind(whole) - mean_behind(whole[:-1])
            if abs(advantage) > 1e-9:
                found.append((i, t, advantage))
    originals = sum(start == 0 for start in starts)
    weight = 1 / originals if denominator == "group" else 1 / max(len(found), 1)
    return [(i, t, advantage, weight) for i, t, advantage in found]


def ppo_advantages(
    completions: list[list[int]], rewards: Sequence[float], values: list[list[float]], gamma: float, lam: float
) -> list[list[float]]:
    """The sum over all later deltas for every token, each written out: r + gamma V(next) - V, nothing behind the end."""

    def delta(i: int, t: int) -> float:
        last = t == len(completions[i]) - 1
        return (rewards[i] if last else 0.0) + gamma * (0.0 if last else values[i][t + 1]) - values[i][t]

    return [
        [math.fsum((gamma * lam) ** (u - t) * delta(i, u) for u in range(t, len(completion))) for t in range(len(completion))]
        for i, completion in enumerate(completions)
    ]


def ppo_rows(
    completions: list[list[int]],
    rewards: Sequence[float],
    values: list[list[float]],
    gamma: float,
    lam: float,
    denominator: str = "completion",
) -> list[Row]:
    """Every token, tied or not, with the weights of GRPO."""
    advantages = ppo_advantages(completions, rewards, values, gamma, lam)
    everything = sum(map(len, completions))
    rows = []
    for i, completion in enumerate(completions):
        for t in range(len(completion)):
            weight = {"completion": 1 / (len(completions) * len(completion)), "group_tokens": 1 / everything}
            rows.append((i, t, advantages[i][t], weight[denominator]))
    return rows


def transition_map(completions: list[list[int]], rows: list[Row]) -> dict[tuple[int, ...], float]:
    """What a T-SPMO credit says, free of the order of the group: prefix with its next token -> advantage."""
    mapping = {}
    for i, t, advantage, _ in rows:
        key = tuple(completions[i][: t + 1])
        assert key not in mapping, f"transition {key} is listed twice"
        mapping[key] = advantage
    return mapping


def rows_of(credit) -> list[Row]:
    """The rows of a TokenCredit, sorted by completion and position."""
    columns = (credit.completion, credit.position, credit.advantage, credit.weight)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def assert_rows_equal(actual: list[Row], expected: list[Row]) -> None:
    """The same places exactly, the same numbers up to the rounding of float32 (relative 2^-24, doubled)."""
    assert [row[:2] for row in actual] == [row[:2] for row in sorted(expected)]
    for got, want in zip(actual, sorted(expected), strict=True):
        for a, b in zip(got[2:], want[2:], strict=True):
            # A difference of two means near 1 carries 1e-16 of noise, far under what float32 keeps of 1e-9.
            assert math.isclose(a, b, rel_tol=1.2e-7, abs_tol=1e-15), (got, want)


# ------------------------------------------------------------------------------------------------------- objective


def k3(log_prob: float, reference: float) -> float:
    """The k3 estimate of the divergence at one token: exp(r) - r - 1 with r = log pi_ref - log pi."""
    difference = reference - log_prob
    return math.exp(difference) - difference - 1


def surrogate(
    groups: list[list[Row]], log_probs: Sequence[float], references: Sequence[float] | None = None, beta: float = 0.0
) -> float:
    """-(1/B) sum over the groups, then over their rows, of w (A · 1 - beta · k3); B counts every group."""
    total, at = 0.0, 0
    for rows in groups:
        for _, _, advantage, weight in rows:
            penalty = beta * k3(log_probs[at], references[at]) if references is not None else 0.0
            total += weight * (advantage - penalty)
            at += 1
    return -total / len(groups)


# --------------------------------------------------------------------------------------------------------- scoring


def naive_log_probs(
    model, prompts: list[list[int]], completions: list[list[list[int]]], credits: list, temperature: float = 1.0
) -> torch.Tensor:
    """log pi(token | prompt, tokens before it), one plain forward pass of the unpadded sequence for every row."""
    values = []
    for prompt, group, credit in zip(prompts, completions, credits, strict=True):
        for i, t in zip(credit.completion.tolist(), credit.position.tolist(), strict=True):
            context = torch.tensor([prompt + group[i][:t]])
            logits = model(input_ids=context, use_cache=False).logits[0, -1]
            values.append(torch.log_softmax(logits / temperature, dim=-1)[group[i][t]])
    return torch.stack(values) if values else torch.zeros(0, dtype=next(model.parameters()).dtype)


# ---------------------------------------------------------------------------------------------------------- groups

# Few different tokens, so that completions share prefixes, repeat one another and end inside one another.
_completion = st.lists(st.integers(0, 2), max_size=6)
_reward = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0, -2.0])


@st.composite
def groups(draw: st.DrawFn, min_size: int = 1, max_size: int = 6) -> tuple[list[list[int]], torch.Tensor]:
    """A random group: completions, some of them empty or equal, and their rewards in float32."""
    completions = draw(st.lists(_completion, min_size=min_size, max_size=max_size))
    rewards = draw(st.lists(_reward, min_size=len(completions), max_size=len(completions)))
    return completions, torch.tensor(rewards)


@st.composite
def replayed_groups(draw: st.DrawFn) -> tuple[list[list[int]], torch.Tensor, list[int]]:
    """A random group with replays behind the originals, each forced along the beginning of one of those before it."""
    completions, rewards = draw(groups(min_size=2))
    starts = [0] * len(completions)
    extra = []
    for _ in range(draw(st.integers(0, 4))):
        source = draw(st.sampled_from(completions))
        if not source:
            continue
        start = draw(st.integers(1, len(source)))
        completions = [*completions, source[:start] + draw(_completion)]
        starts.append(start)
        extra.append(draw(_reward))
    return completions, torch.cat([rewards, torch.tensor(extra)]), starts

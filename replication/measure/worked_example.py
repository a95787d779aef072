"""One group token by token: the credit that each method gives, beside what the token was worth under the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from replication.algorithms import build_trie
from replication.config import ExperimentConfig
from replication.groups import sample_groups
from replication.measure.gradients import FIRST_STEP, credits_of, flat_credit, places_of
from replication.measure.token_worth import audited, decisive_tokens, token_worths
from replication.models import Policy
from replication.tasks import Problem, Task

#: Audit samples of the problem of the worked example, from which the policy's own value of every prefix is counted.
AUDIT = 1024


def worked_example(
    policy: Policy,
    config: ExperimentConfig,
    task: Task,
    problems: Sequence[Problem],
    rules: Mapping[tuple[str, str], Any],
    audit: int,
) -> list[dict[str, Any]]:
    """Credit of one group's first right and first wrong completion. Of the first redraw, the group nearest to half right.

    A rule that credits a transition once (T-SPMO) has its credit shown at every completion that takes it. Empty if all groups tie.
    """
    groups = sample_groups(policy, config, task, problems, FIRST_STEP)
    group = min(groups, key=lambda group: abs(float(group.rewards.mean()) - 0.5))
    if group.is_tied:
        return []
    large = config.model_copy(update={"group_size": audit, "token_budget": max(config.token_budget, audit * 128)})
    (known,) = sample_groups(policy, large, task, [group.problem], FIRST_STEP - 1)
    worth = token_worths(group.completions, audited(known))
    decisive = decisive_tokens(group.completions, group.problem, policy.tokenizer)
    credits = dict(zip(rules, credits_of(rules, group, config.seed, 0), strict=True))
    lengths = [len(tokens) for tokens in group.completions]
    starts = np.cumsum([0, *lengths])
    path = build_trie(group.completions).path
    rewards = group.rewards.tolist()
    chosen = [rewards.index(max(rewards)), rewards.index(min(rewards))]
    rows = []
    for (method, selector), credit in credits.items():
        value = flat_credit(credit, lengths)
        credited = np.zeros(starts[-1], dtype=bool)
        credited[places_of(credit, lengths)] = True
        if method == "t_spmo":
            credited, value = np.isin(path, path[credited]), np.bincount(path, weights=value)[path]
        for completion in chosen:
            for position, token in enumerate(group.completions[completion]):
                place = starts[completion] + position
                rows.append(
                    {
                        "profile": config.profile,
                        "task": config.task,
                        "asides": config.asides,
                        "item_id": group.problem.id,
                        "prompt": group.problem.prompt,
                        "group_size": len(rewards),
                        "right_in_group": int(sum(rewards)),
                        "completion": completion,
                        "correct": int(rewards[completion]),
                        "position": position,
                        "token": policy.tokenizer.decode([token]),
                        "decisive": int(decisive[place]),
                        "worth": worth[place],
                        "method": method,
                        "selector": selector,
                        "credit": value[place] if credited[place] else None,
                    }
                )
    return rows

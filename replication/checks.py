"""What is checked once, before a run trains: a reader's own reward and rule, and that training scores what was sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

import torch

from replication.algorithms import every_token
from replication.config import ExperimentConfig
from replication.errors import UserError
from replication.groups import Group, credit_of
from replication.models import Policy
from replication.randomness import stream
from replication.rollout import Completion
from replication.scoring import micro_batches, score
from replication.tasks import Problem, Task
from replication.user_code import OwnRule

#: Most that two ways to compute one log-prob may differ, in nats: at any token in float32, on average in 16 bits, where single
#: tokens differ by rounding alone.
LIMIT_FLOAT32 = 1e-3
LIMIT_16_BITS = 0.05


def check_enough(config: ExperimentConfig, task: Task) -> None:
    """Raise UserError if the task has fewer training problems than a step takes."""
    if config.steps and config.prompts_per_step > len(task.train):
        raise UserError(
            f"prompts_per_step={config.prompts_per_step}, but the training split of {config.task} holds {len(task.train)}: "
            f"set prompts_per_step to at most {len(task.train)}"
        )


def check_reward(reward: Callable[[str, Any], float], problems: Iterable[Any]) -> None:
    """Call a reader's own reward on some texts for some problems; it raises UserError, as at every later call."""
    for problem in problems:
        answer = f"{problem.answer:f}" if isinstance(problem.answer, Decimal) else problem.answer
        for completion in ("", f" {answer}", f" The answer is {answer}."):
            reward(completion, problem)


def try_rule(name: str, rule: OwnRule, problem: Problem, size: int) -> None:
    """Call a reader's own rule on ``size`` short completions, with rewards that differ and with equal ones.

    Raises:
        UserError: the rule raises it, as at every later call, or its needs are none that the loop knows.
    """
    tokens = [[[5, 6, 7], [5, 6, 8], [5, 9], [5, 6, 7, 3]][i % 4] for i in range(size)]
    samples = [Completion(row, [-0.5] * len(row), [0.5] * len(row), truncated=False) for row in tokens]
    for rewards in (torch.tensor([float(i % 4 in (0, 3)) for i in range(size)]), torch.zeros(size)):
        values = [[0.5] * len(row) for row in tokens]
        group = Group(problem, [4], samples, [""] * size, rewards, [0] * size, values)
        try:
            credit_of(rule, group, stream(0, "selection", 0, problem.id))
        except AttributeError as error:  # its needs name what a group does not have
            raise UserError(f"method {name} cannot get all that it needs ({error})") from None
        if "values" in rule.needs:
            rule.targets(tokens, rewards, values)


@torch.no_grad()
def require_sampled_equals_scored(policy: Policy, config: ExperimentConfig, groups: Sequence[Group]) -> None:
    """Compare the log-probs that sampling noted for ``groups`` with those that training computes for the same tokens.

    Sampling goes token by token with a cache and pads prompts on the left; scoring sees whole rows. The two disagree for a model
    whose positions or rotary embeddings depend on the layout of a row, and the policy gradient is then that of another policy.
    In 16 bits the dense path is compared, one completion at a time, since packing rounds differently.

    Args:
        policy: as it was when the groups were sampled.
        groups: of the first step, replays included.

    Raises:
        UserError: the log-probs differ by over LIMIT_FLOAT32 at a token, or in 16 bits by over LIMIT_16_BITS on average.
    """
    exact = policy.dtype == "float32"
    if exact:
        rows = [(group.prompt, group.completions) for group in groups]
    else:
        rows = [(group.prompt, [tokens]) for group in groups for tokens in group.completions]
    prompts, completions = map(list, zip(*rows, strict=True))
    credits = [every_token(group) for group in completions]
    scored = torch.cat([
        score(
            policy.model,
            *([column[i] for i in part] for column in (prompts, completions, credits)),
            strategy=config.scoring if exact else "dense",
            temperature=config.temperature,
            token_budget=config.token_budget,
        ).log_probs.cpu()
        for part in micro_batches(prompts, completions, credits, config.token_budget)
    ])  # fmt: skip
    tokens = [token for group in groups for sample in group.samples for token in sample.tokens]
    sampled = torch.tensor([value for group in groups for sample in group.samples for value in sample.log_probs])
    difference = (sampled - scored).abs()
    if exact and difference.max() > LIMIT_FLOAT32:
        over = f"over {LIMIT_FLOAT32}"
    elif not exact and difference.mean() > LIMIT_16_BITS:
        over = f"on average by {difference.mean():.3g}, over {LIMIT_16_BITS}"
    else:
        return
    worst = int(difference.argmax())
    raise UserError(
        f"sampling and scoring disagree about this model by {over} nats: token {policy.tokenizer.decode([tokens[worst]])!r} was "
        f"sampled at log-prob {sampled[worst]:.4f} and is scored at {scored[worst]:.4f} (its positions or rotary embeddings may "
        "depend on the layout of a row): choose another model"
    )

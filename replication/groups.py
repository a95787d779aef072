"""From problems to groups: prompts, sampled completions, rewards, replays from a prefix, and a method's credit of a group."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import StopStringCriteria

from replication.algorithms import TokenCredit
from replication.config import ExperimentConfig
from replication.models import Policy
from replication.randomness import numpy_stream, stream
from replication.rollout import Completion, generate
from replication.tasks import Problem, Task, is_right

#: A completion with at least this reward counts as a success when replays are chosen.
SUCCESS = 0.5


@dataclass(frozen=True)
class Group:
    """One problem, its completions and their rewards; replays (restarts from a forced prefix) stand after the originals.

    ``values`` are a critic's, one for each generated token; None without a critic.
    """

    problem: Problem
    prompt: list[int]
    samples: list[Completion]
    texts: list[str]
    rewards: Tensor
    replay_starts: list[int]
    values: list[list[float]] | None = None

    @property
    def completions(self) -> list[list[int]]:
        return [sample.tokens for sample in self.samples]

    @property
    def entropies(self) -> list[list[float]]:
        return [sample.entropies for sample in self.samples]

    @property
    def originals(self) -> list[Completion]:
        """The samples without the replays."""
        return [sample for sample, start in zip(self.samples, self.replay_starts, strict=True) if not start]

    @property
    def is_tied(self) -> bool:
        return bool(self.rewards.max() == self.rewards.min())

    @property
    def generated_tokens(self) -> int:
        """Tokens drawn from the policy; a replay's forced prefix is not."""
        return sum(len(sample.tokens) for sample in self.samples) - sum(self.replay_starts)


def training_batch(config: ExperimentConfig, task: Task, step: int) -> list[Problem]:
    """The problems of a step: the training split in a new order each epoch, a function of (seed, step) alone."""
    size = len(task.train)
    first = step * config.prompts_per_step
    places = range(first, first + config.prompts_per_step)
    return [task.train[_epoch_order(config.seed, size, place // size)[place % size]] for place in places]


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, size: int, epoch: int) -> list[int]:
    return numpy_stream(seed, "data", epoch).permutation(size).tolist()


def credit_of(method: Any, group: Group, generator: torch.Generator) -> TokenCredit:
    """The credit that a method gives to a group. The method's ``needs`` name the further facts of the group that it takes."""
    needs = {name: getattr(group, name) for name in getattr(method, "needs", ())}
    return method.assign(group.completions, group.rewards, generator, **needs)


def trained_problems(config: ExperimentConfig, task: Task) -> list[Problem]:
    """The problems that a whole run trains on, each once, in the order of their first step."""
    size = len(task.train)
    seen = min(size, config.steps * config.prompts_per_step)
    return [task.train[place] for place in _epoch_order(config.seed, size, 0)[:seen]]


def reward(text: str, truncated: bool, problem: Problem) -> float:
    """1.0 if the completion ended by itself and states the answer, else 0.0 (our reconstruction of exact match)."""
    return float(not truncated and is_right(text, problem.answer))


def reward_under(task: Task, text: str, truncated: bool, problem: Problem) -> float:
    """``reward``, or what the task's own reward says; a truncated completion gets 0.0 under both."""
    if task.reward is None:
        return reward(text, truncated, problem)
    return 0.0 if truncated else task.reward(text, problem)


def sample_groups(policy: Policy, config: ExperimentConfig, task: Task, problems: Sequence[Problem], step: int) -> list[Group]:
    """One group for each problem, a function of (policy, config, step) alone: each has its own stream of random numbers."""
    prompts = [policy.encode(problem.prompt) for problem in problems]
    generators = [stream(config.seed, "rollout", step, problem.id) for problem in problems]
    samples = sample_in_chunks(
        policy, config, task, prompts, group_size=config.group_size, temperature=config.temperature, generators=generators
    )
    groups = []
    for problem, prompt, group in zip(problems, prompts, samples, strict=True):
        texts = [policy.decode(sample.tokens) for sample in group]
        rewards = torch.tensor([reward_under(task, text, s.truncated, problem) for text, s in zip(texts, group, strict=True)])
        groups.append(Group(problem, prompt, group, texts, rewards, [0] * len(group)))
    if config.replay_successes or config.replay_failures:
        groups = [_with_replays(policy, config, task, group, step) for group in groups]
    return groups


def sample_in_chunks(
    policy: Policy,
    config: ExperimentConfig,
    task: Task,
    prompts,
    *,
    group_size: int,
    temperature: float,
    generators,
    continues: bool = False,
) -> list[list[Completion]]:
    """``generate`` for as many prompts at a time as the sample budget holds, with the task's limit and stop strings.

    continues: the prompts end inside an answer, so that a stop string may come at once.
    """
    limit = config.max_new_tokens or task.max_new_tokens
    longest = max(map(len, prompts), default=0)
    chunk = max(1, (config.sample_budget or config.token_budget) // ((longest + limit) * group_size))
    result: list[list[Completion]] = []
    for start in range(0, len(prompts), chunk):
        result += generate(
            policy.model,
            prompts[start : start + chunk],
            group_size=group_size,
            max_new_tokens=limit,
            temperature=temperature,
            eos_token_ids=policy.eos_token_ids,
            pad_token_id=policy.pad_token_id,
            generators=generators[start : start + chunk] if generators else None,
            stop=stop_criterion(policy, task, continues=continues),
            compiled=config.compile_sampling,
        )
    return result


def stopped_share(task: Task, samples: Sequence[Completion], name: str = "stopped") -> dict[str, float]:
    """Share of completions that a stop string ended, neither EOS nor the limit; no entry for a task without stop strings."""
    return {name: sum(sample.stopped for sample in samples) / max(len(samples), 1)} if task.stop_strings else {}


@functools.lru_cache(maxsize=4)
def _matcher(tokenizer: Any, stop_strings: tuple[str, ...]) -> StopStringCriteria:
    """Seconds of work for a large vocabulary. transformers' own cache misses: it depends on the order of ``get_vocab()``."""
    return StopStringCriteria(tokenizer, list(stop_strings))


def stop_criterion(policy: Policy, task: Task, *, continues: bool = False):
    """What ends a completion besides EOS, or None: a function of the generated ids (rows, t) that gives (rows,) bool.

    A stop string ends an answer only after other text, or one that a model writes first would leave an empty answer. With
    ``continues`` the prompt holds that text already. A stop string that is a token of its own (the end of a chat turn) ends an
    empty answer too, as EOS does.
    """
    if not task.stop_strings:
        return None
    criterion = _matcher(policy.tokenizer, task.stop_strings)
    own_tokens = policy.tokenizer.get_added_vocab()

    def ends_an_answer(tokens: Tensor) -> bool:
        text = policy.tokenizer.decode(tokens.tolist())
        found = [stop for stop in task.stop_strings if stop in text]
        return any(stop in own_tokens or text.rpartition(stop)[0].strip() for stop in found)

    def stop(tokens: Tensor) -> Tensor:
        matched = criterion(tokens, None)
        if not continues:
            for row in matched.nonzero().flatten().tolist():
                matched[row] = ends_an_answer(tokens[row])
        return matched

    return stop


def _with_replays(policy: Policy, config: ExperimentConfig, task: Task, group: Group, step: int) -> Group:
    """The group plus new completions restarted at random positions inside some of its own (our reconstruction of replay)."""
    if group.is_tied:
        return group
    chance = numpy_stream(config.seed, "replay", step, group.problem.id)
    limit = config.max_new_tokens or task.max_new_tokens
    chosen: list[int] = []
    for wanted, success in ((config.replay_successes or 0, True), (config.replay_failures or 0, False)):
        pool = [i for i, s in enumerate(group.samples) if len(s.tokens) > 1 and (group.rewards[i].item() >= SUCCESS) == success]
        if pool:
            chosen += chance.choice(pool, size=wanted).tolist()
    if not chosen:
        return group
    starts = [int(chance.integers(1, len(group.samples[i].tokens))) for i in chosen]
    forced = [group.samples[i].tokens[:start] for i, start in zip(chosen, starts, strict=True)]
    generators = [stream(config.seed, "replay", step, group.problem.id, index) for index in range(len(chosen))]
    prompts = [group.prompt + prefix for prefix in forced]
    how = {"group_size": 1, "temperature": config.temperature, "generators": generators, "continues": True}
    fresh = sample_in_chunks(policy, config, task, prompts, **how)
    samples, texts, rewards = [], [], []
    for prefix, source, (new,) in zip(forced, chosen, fresh, strict=True):
        room = limit - len(prefix)
        old = group.samples[source]
        samples.append(
            Completion(
                tokens=prefix + new.tokens[:room],
                log_probs=old.log_probs[: len(prefix)] + new.log_probs[:room],
                entropies=old.entropies[: len(prefix)] + new.entropies[:room],
                truncated=new.truncated or len(new.tokens) > room,
                stopped=new.stopped and len(new.tokens) <= room,
            )
        )
        texts.append(policy.decode(samples[-1].tokens))
        rewards.append(reward_under(task, texts[-1], samples[-1].truncated, group.problem))
    return replace(
        group,
        samples=group.samples + samples,
        texts=group.texts + texts,
        rewards=torch.cat([group.rewards, torch.tensor(rewards)]),
        replay_starts=group.replay_starts + starts,
    )

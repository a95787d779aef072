"""What is measured of a policy: accuracy per item, KL to the base on samples of the policy, and the metrics of a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from replication.algorithms import TokenCredit, every_token
from replication.config import ExperimentConfig
from replication.groups import Group, reward_under, sample_in_chunks, stopped_share, trained_problems
from replication.models import Policy
from replication.objective import k3
from replication.randomness import stream
from replication.rollout import Completion
from replication.runs import RunDirectory
from replication.scoring import score
from replication.signals import raise_if_stopped
from replication.tasks import Problem, Task, read_answer

#: Completions that a validation writes into samples.jsonl.
SAMPLES_PER_VALIDATION = 4


@dataclass(frozen=True)
class ItemResult:
    """The result of one completion of one item. A truncated completion counts as wrong.

    ``correct`` is None under a reader's own reward, which knows more than right and wrong.
    """

    problem: Problem
    prompt: list[int]
    sample: Completion
    text: str
    reward: float
    correct: bool | None

    @property
    def parsed(self) -> bool:
        return read_answer(self.text, self.problem.answer) is not None


def evaluate(
    policy: Policy, config: ExperimentConfig, task: Task, problems: Sequence[Problem], *, sampled: int = 0
) -> list[ItemResult]:
    """Answer each item once. ``sampled=0`` decodes greedily; ``sampled=k`` draws the k-th random completion, at the training
    temperature (stream "evaluation", by draw and item).

    Raises:
        Stopped: a signal came; there is nothing of an evaluation to save, which is done again from its start.
    """
    results = []
    for start in range(0, len(problems), config.eval_batch_size):
        raise_if_stopped()
        batch = problems[start : start + config.eval_batch_size]
        prompts = [policy.encode(problem.prompt) for problem in batch]
        completions = sample_in_chunks(
            policy,
            config,
            task,
            prompts,
            group_size=1,
            temperature=config.temperature if sampled else 0.0,
            generators=[stream(config.seed, "evaluation", sampled, problem.id) for problem in batch] if sampled else None,
        )
        for problem, prompt, (sample,) in zip(batch, prompts, completions, strict=True):
            text = policy.decode(sample.tokens)
            value = reward_under(task, text, sample.truncated, problem)
            results.append(ItemResult(problem, prompt, sample, text, value, bool(value) if task.reward is None else None))
    return results


def validate(policy: Policy, config: ExperimentConfig, task: Task, record: RunDirectory, step: int) -> None:
    """Log greedy and sampled accuracy on the validation split after ``step`` steps, the KL to the base on the sampled
    completions, and a few greedy completions to read.

    With ``extra_splits`` "always" also greedy accuracy on items that the run trains on and on held-out templates.
    """
    started = time.perf_counter()
    problems = task.validation[: config.eval_items]
    greedy = evaluate(policy, config, task, problems)
    sampled = evaluate(policy, config, task, problems, sampled=1)
    extra = _extra_splits(config, task) if config.extra_splits == "always" else {}
    record.append_metrics(
        {
            "step": step,
            "validation_accuracy": accuracy(greedy),
            "validation_sampled_accuracy": accuracy(sampled),
            "validation_kl_to_base": kl_to_base(policy, config, [(result.prompt, [result.sample]) for result in sampled]),
            "validation_truncated": sum(result.sample.truncated for result in greedy) / max(len(greedy), 1),
            **stopped_share(task, [result.sample for result in greedy], "validation_stopped"),
            **{f"validation_{name}_accuracy": accuracy(evaluate(policy, config, task, items)) for name, items in extra.items()},
        }
    )
    record.append_samples(
        {
            "step": step,
            "item_id": result.problem.id,
            "prompt": result.problem.prompt,
            "completion": result.text,
            "answer": str(result.problem.answer),
            "correct": result.correct,
            **({} if task.reward is None else {"reward": result.reward}),
        }
        for result in greedy[:SAMPLES_PER_VALIDATION]
    )
    record.append_timings({"step": step, "evaluation_s": time.perf_counter() - started})


def _extra_splits(config: ExperimentConfig, task: Task) -> dict[str, Sequence[Problem]]:
    trained = trained_problems(config, task) or task.train
    return {"held_out": task.held_out[: config.eval_items], "train": trained[: config.eval_items]}


def accuracy(results: Sequence[ItemResult]) -> float | None:
    """Share of right items, under a reward of one's own the mean reward; None without items."""
    return sum(result.reward for result in results) / len(results) if results else None


def kl_to_base(policy: Policy, config: ExperimentConfig, groups: Sequence[tuple[list[int], list[Completion]]]) -> float | None:
    """KL(pi || base) per token, estimated (k3) on tokens sampled from the policy.

    Args:
        groups: (prompt, completions) of each.

    Returns:
        The mean over all their tokens in nats, or None without tokens.
    """
    prompts = [prompt for prompt, _ in groups]
    completions = [[sample.tokens for sample in samples] for _, samples in groups]
    credits = [every_token(group) for group in completions]
    if not sum(map(len, credits)):
        return None
    sampled = torch.tensor([value for _, samples in groups for sample in samples for value in sample.log_probs])
    with policy.reference() as base:
        how = {"strategy": config.scoring, "temperature": config.temperature, "token_budget": config.token_budget}
        reference = score(base, prompts, completions, credits, **how).log_probs
    return k3(sampled, reference.to(sampled)).mean().item()


def step_metrics(
    policy: Policy, config: ExperimentConfig, task: Task, groups: Sequence[Group], credits: Sequence[TokenCredit]
) -> dict[str, float | int | None]:
    """The metrics of one step's rollouts and credits.

    reward: mean over the originals (replays aside). tied_groups: share of groups whose rewards are all equal. kept_fraction:
    credited over generated tokens in the groups that can teach; None if none can. A group can teach if its rewards differ or if the
    method credits it all the same. kept_share_all: the same over all groups.
    entropy: mean over generated tokens, in nats. kl_to_base: k3 on all tokens of the step's first group, a cheap and noisy
    estimate, in nats. truncated: share of completions cut at the length limit. stopped: share that a stop string ended, for a
    task that has stop strings.
    """
    originals = [sample for group in groups for sample in group.originals]
    rewards = [group.rewards[[i for i, start in enumerate(group.replay_starts) if not start]] for group in groups]
    entropies = [entropy for sample in originals for entropy in sample.entropies]
    generated = sum(group.generated_tokens for group in groups)
    taught = [group for group, credit in zip(groups, credits, strict=True) if len(credit) or not group.is_tied]
    untied = sum(group.generated_tokens for group in taught)
    in_loss = sum(len(credit) for credit in credits)
    return {
        "reward": torch.cat(rewards).mean().item(),
        "tied_groups": sum(group.is_tied for group in groups) / len(groups),
        "kept_fraction": in_loss / untied if untied else None,
        "kept_share_all": in_loss / generated,
        "entropy": sum(entropies) / len(entropies),
        "kl_to_base": kl_to_base(policy, config, [(groups[0].prompt, groups[0].originals)]),
        "truncated": sum(sample.truncated for sample in originals) / len(originals),
        **stopped_share(task, originals),
        "tokens_generated": generated,
        "tokens_untied": untied,
        "tokens_in_loss": in_loss,
    }


def final_evaluation(policy: Policy, config: ExperimentConfig, task: Task) -> tuple[dict[str, float | int | None], list[dict]]:
    """Everything that a finished run reports, once: summary fields and one row for each greedy item.

    Greedy accuracy on test and validation items; on the test items also that of those whose story no training item shares (None
    where the task does not say), and ``kl_samples`` sampled completions each, which give sampled accuracy, entropy and KL to the
    base. Unless ``extra_splits`` is "never", also greedy accuracy on items that the run trained on (of a base: the first
    training items), held-out templates, the task that was not trained and the same task with longer numbers; None without.
    """
    splits = {"test": task.test[: config.test_items], "validation": task.validation[: config.eval_items]}
    if config.extra_splits != "never":
        splits |= _extra_splits(config, task)
    side = config.side_tasks()
    greedy = {name: evaluate(policy, config, task, problems) for name, problems in splits.items()}
    sampled = [evaluate(policy, config, task, splits["test"], sampled=draw) for draw in range(1, config.kl_samples + 1)]
    sampled = [result for results in sampled for result in results]
    tokens = [entropy for result in sampled for entropy in result.sample.entropies]
    summary = {
        "accuracy": accuracy(greedy["test"]),
        "accuracy_new_stories": accuracy([r for r in greedy["test"] if r.problem.meta.get("story_in_train") is False]),
        "sampled_accuracy": accuracy(sampled),
        "validation_accuracy": accuracy(greedy["validation"]),
        "held_out_accuracy": accuracy(greedy.get("held_out", ())),
        "train_accuracy": accuracy(greedy.get("train", ())),
        "other_task_accuracy": _test_accuracy(policy, config, side.get("other_task")),
        "longer_numbers_accuracy": _test_accuracy(policy, config, side.get("longer_numbers")),
        "n_items": len(greedy["test"]),
        "entropy": sum(tokens) / len(tokens) if tokens else None,
        "kl_to_base": kl_to_base(policy, config, [(result.prompt, [result.sample]) for result in sampled]),
    }
    rows = [
        {
            "split": split,
            "item_id": result.problem.id,
            "template": result.problem.meta.get("template"),
            "correct": None if result.correct is None else int(result.correct),
            "reward": result.reward,
            "truncated": int(result.sample.truncated),
            "parsed": int(result.parsed),
        }
        for split, results in greedy.items()
        for result in results
    ]
    return summary, rows


def _test_accuracy(policy: Policy, config: ExperimentConfig, task: Task | None) -> float | None:
    """Greedy accuracy on a task that was not trained; None if there is none."""
    return None if task is None else accuracy(evaluate(policy, config, task, task.test[: config.eval_items]))

"""The training loop: one run from its config to its summary, the same for every method.

Strictly on-policy: one optimizer step for each batch of rollouts, so the importance ratio is 1 and only the gradient is clipped.
The method enters at one call, ``credit_of`` in ``learn``; nothing else knows a method by name. Start reading at ``_train``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from replication.algorithms import TokenCredit
from replication.base_files import base_fingerprint
from replication.checks import check_enough, check_reward, require_sampled_equals_scored, try_rule
from replication.config import ExperimentConfig, run_command
from replication.console import say
from replication.errors import Diverged, Stopped, UserError
from replication.evaluate import final_evaluation, step_metrics, validate
from replication.groups import Group, credit_of, sample_groups, training_batch
from replication.models import Policy, check_sizes, load_policy, model_card
from replication.objective import l2_penalty, surrogate_loss
from replication.randomness import stream
from replication.runs import RunDirectory, RunSummary, forget_peak_memory, peak_memory, run_totals
from replication.scoring import micro_batches, score
from replication.signals import raise_if_stopped
from replication.tasks import Task
from replication.training_state import TrainingState
from replication.user_code import is_import_path


def run(config: ExperimentConfig, run_dir: str | Path) -> RunSummary:
    """Train and evaluate one run in ``run_dir``: start it, resume it, or leave it alone if it is finished.

    Args:
        config: everything that decides the outcome.
        run_dir: the run's folder; made if missing.

    Returns:
        The run's summary, also in summary.json. Its status is "diverged" if a loss, a gradient or a logit was not finite; the
        run is then evaluated with the parameters of its last validation.

    Raises:
        UserError: bad config, model or folder.
        Stopped: a signal came; a checkpoint of the last whole step is saved.
        Diverged: the logits of the base itself are not finite.
    """
    task = config.load_task()
    check_enough(config, task)
    if config.reward is not None:
        check_reward(task.reward, (*task.train[:3], *task.test[:3]))
    if is_import_path(config.method):
        try_rule(config.method, config.build_method(), task.train[0], config.group_size)
    with RunDirectory.open(run_dir, config) as record:
        if record.summary is not None:
            return record.summary
        torch.set_num_threads(config.threads)
        forget_peak_memory()
        record.write_manifest(
            model=config.model,
            command=run_command(config, run_dir),
            base_sha256=base_fingerprint(config.model, config.revision),
            task_version=task.version,
            seed=config.seed,
            **config.user_code(),
        )
        policy = load_policy(config)
        _note_model(record, config, policy)
        for tested in (task, *config.side_tasks().values()):
            check_sizes(policy, config, tested)
        status, reason = "done", None
        state = TrainingState.of_run(config, policy)
        try:
            if policy.trainable:
                _train(config, record, task, state)
            final = _evaluate(config, record, task, policy)
        except Diverged as error:
            if not state.validated:  # the base itself gives no numbers: there is nothing to go back to
                raise
            status, reason = "diverged", str(error)
            state.go_back_to_validated()
            final = _evaluate(config, record, task, policy)
        outcome = {"status": status, "reason": reason, **run_totals(record.path / "metrics.jsonl"), **final}
        if policy.trainable:
            record.write_adapter(policy.model, model_card(config, record.manifest, outcome))
        return record.finish(outcome)


def _evaluate(config: ExperimentConfig, record: RunDirectory, task: Task, policy: Policy) -> dict[str, float | int | None]:
    """The final evaluation: its items and seconds go to the run's folder, its summary is returned."""
    started = time.perf_counter()
    final, items = final_evaluation(policy, config, task)
    record.append_timings({"step": config.steps, "evaluation_s": time.perf_counter() - started, **peak_memory()})
    record.write_items(items)
    return final


def _train(config: ExperimentConfig, record: RunDirectory, task: Task, state: TrainingState) -> None:
    method, policy = config.build_method(), state.trained
    first, tensors = record.load_checkpoint() or (0, None)
    if tensors is not None:
        state.restore(tensors)
    # Lengths of the run's growing files after the last whole step: a resumed run cuts them back to it.
    lengths = record.lengths()
    step = first
    name = f"{config.task} {config.method}"
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, disable=None if sys.stderr else True, desc=name)
    try:
        for step in bar:
            lengths = record.lengths()
            if step % config.checkpoint_every == 0 and step > first:
                record.save_checkpoint(step, state.tensors(), lengths)
            if step % config.eval_every == 0:
                validate(policy, config, task, record, step)
                state.note_validated()

            # Sample: one group for each problem, from exactly the distribution that is scored below.
            started = time.perf_counter()
            groups = sample_groups(policy, config, task, training_batch(config, task, step), step)
            rollout_s = time.perf_counter() - started
            if step == first:
                require_sampled_equals_scored(policy, config, groups)

            # Learn: credit, score, differentiate, step.
            update = learn(config, method, state, groups, step)
            if update.overflow and not state.sixteen_bits:
                loss = update.metrics["loss"]
                raise Diverged(f"loss {loss} or its gradient is not finite at step {step + 1}: lower the learning rate")
            if update.overflow:
                say(f"step {step + 1} is skipped: its gradient is not finite in {policy.dtype}")

            # Record.
            row = {"step": step + 1, **update.metrics, **step_metrics(policy, config, task, groups, update.credits)}
            record.append_metrics(row | ({"overflow": int(update.overflow)} if state.sixteen_bits else {}))
            times = {"rollout_s": rollout_s, "score_s": update.score_s, "update_s": update.update_s}
            record.append_timings({"step": step + 1, **times, "step_s": time.perf_counter() - started, **peak_memory()})
            bar.set_postfix(reward=f"{row['reward']:.2f}", refresh=False)
    except Stopped:
        # Nothing of the step that was stopped has changed the parameters: it is done again on resume.
        record.save_checkpoint(step, state.tensors(), lengths)
        raise
    record.save_checkpoint(config.steps, state.tensors(), record.lengths())


@dataclass(frozen=True)
class Update:
    """What one optimizer step did.

    Attributes:
        credits: of each group.
        overflow: no step was taken, since the loss or its gradient is not finite.
        metrics: what the run records of it (docs/metrics.md).
        score_s: seconds to credit, score and differentiate.
        update_s: seconds to move the parameters.
    """

    credits: list[TokenCredit]
    overflow: bool
    metrics: dict[str, float | int | None]
    score_s: float
    update_s: float


def learn(config: ExperimentConfig, method: Any, state: TrainingState, groups: Sequence[Group], step: int) -> Update:
    """One optimizer step on sampled groups. ``step`` counts from 0 and decides warm-up and random choices."""
    started = time.perf_counter()
    state.zero_grad()

    # Judge, under a method that needs values: the critic gives each prefix its value, and gets its own gradient.
    critic_row, judged = {}, 0
    if state.critic is not None:
        groups, critic_row, judged = state.critic.trained.judge(groups, method.targets, state.critic.scaler.scale)

    # Credit: the only place where the methods differ.
    draws = [stream(config.seed, "selection", step, group.problem.id) for group in groups]
    credits = [credit_of(method, group, generator) for group, generator in zip(groups, draws, strict=True)]

    # Score and differentiate, a part of the groups at a time; the gradient is the sum over the parts.
    loss, forwarded, scored = backward(config, state.trained, groups, credits, state.scaler.scale)
    differentiated = time.perf_counter()

    # Step, unless no group taught anything: momentum alone would still move the weights.
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    learns = any(len(credit) for credit in credits)
    norm = state.step(loss, warm, config.max_grad_norm) if learns else None
    if state.critic is not None:
        state.critic.step(critic_row["value_loss"], warm, config.max_grad_norm)
    metrics = {"loss": loss, "grad_norm": norm, "clipped": int((norm or 0.0) > config.max_grad_norm), "skipped": int(norm is None)}
    metrics |= {"learning_rate": state.learning_rate * warm, **critic_row}
    metrics |= {"tokens_forwarded": forwarded + judged, "tokens_scored": scored}
    update_s = time.perf_counter() - differentiated
    return Update(credits, learns and norm is None, metrics, differentiated - started, update_s)


def backward(
    config: ExperimentConfig,
    policy: Policy,
    groups: Sequence[Group],
    credits: Sequence[TokenCredit],
    scaled: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> tuple[float, int, int]:
    """Accumulate the gradient of the batch's loss, or of ``scaled`` of it.

    Returns:
        The loss itself, and the tokens that the trunk and the head computed.
    """
    prompts = [group.prompt for group in groups]
    completions = [group.completions for group in groups]
    how = {"strategy": config.scoring, "temperature": config.temperature, "token_budget": config.token_budget}
    total, forwarded, scored = 0.0, 0, 0
    # transformers recomputes activations in train mode only, and a model in train mode then ignores the cache of a rollout.
    policy.model.train(config.activation_checkpointing)
    for part in micro_batches(prompts, completions, credits, config.token_budget):
        raise_if_stopped()
        batch = [[column[i] for i in part] for column in (prompts, completions, credits)]
        scores = score(policy.model, *batch, **how)
        reference = None
        if config.beta > 0:
            with policy.reference() as base:
                reference = score(base, *batch, **how).log_probs
        loss, _ = surrogate_loss(scores.log_probs, batch[2], groups=len(groups), reference_log_probs=reference, beta=config.beta)
        scaled(loss).backward()
        total += loss.item()
        forwarded += scores.tokens_forwarded
        scored += scores.tokens_scored
    policy.model.eval()
    if config.l2 > 0 and any(len(credit) for credit in credits):
        penalty = config.l2 * l2_penalty(policy.trainable.values(), policy.initial)
        scaled(penalty).backward()
        total += penalty.item()
    return total, forwarded, scored


def _note_model(record: RunDirectory, config: ExperimentConfig, policy: Policy) -> None:
    """Write the model's Hub commit and its dtype into the manifest; a run that started with others is refused."""
    before = record.manifest.get("model_commit")
    if before not in (None, policy.commit):
        raise UserError(
            f"{record.path} started on commit {before} of {config.model}, which is now at {policy.commit}: "
            f"set revision={before}, or choose another folder"
        )
    before = record.manifest.get("dtype")
    if before not in (None, policy.dtype):
        raise UserError(
            f"{record.path} started in {before}, and dtype={config.dtype} is {policy.dtype} here: resume it where it started, "
            "or choose another folder"
        )
    record.write_manifest(model_commit=policy.commit, dtype=policy.dtype)

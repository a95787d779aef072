"""The training loop: one run from its config to its summary, the same for every method.

Strictly on-policy: one optimizer step for each batch of rollouts, so that the importance ratio is 1 and nothing is clipped
but the gradient. The method enters at one call, ``method.assign``; everything else knows no method by name.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from replication import evaluate as evaluation
from replication import parallel
from replication.algorithms import TokenCredit
from replication.base_files import base_fingerprint
from replication.config import ExperimentConfig
from replication.errors import Diverged, Stopped, UserError
from replication.groups import Group, sample_groups
from replication.ledger import rollout_cost, scoring_cost
from replication.memory import forget_peak_memory, peak_memory
from replication.models.card import write_card
from replication.models.checks import check_sizes
from replication.models.load import Policy, load_policy
from replication.objective import l2_penalty, surrogate_loss
from replication.randomness import numpy_stream, stream
from replication.records import RunDirectory
from replication.run_summary import RunSummary
from replication.scoring import micro_batches, token_log_probs
from replication.signals import stop_requested
from replication.tasks import Problem, Task

log = logging.getLogger("replication")

SAMPLES_PER_EVALUATION = 4


def run(config: ExperimentConfig, run_dir: str | Path, *, progress: bool | None = None) -> RunSummary:
    """Train and evaluate one run into ``run_dir``, or go on with it, or leave it alone if it is finished.

    Args:
        config: everything that decides the outcome.
        run_dir: the run's folder; made if missing.
        progress: show a progress bar; default: if stderr is a terminal.

    Returns:
        The run's summary, also in summary.json. Its status is "diverged" if a loss, a gradient or the model's logits stopped
        being finite; the run is then evaluated with the parameters of its last validation.

    Raises:
        UserError: bad config, model or folder.
        Stopped: a signal came, to any step or evaluation; a checkpoint of the last whole step is saved.
        Diverged: the logits of the base itself are not finite.
    """
    parallel.start(config.device)
    with parallel.own_folder(run_dir) as folder, RunDirectory.open(folder, config) as record:
        if (summary := parallel.from_first(record.summary)) is not None:
            return summary
        torch.set_num_threads(config.threads)
        forget_peak_memory()
        task = config.load_task()
        record.write_manifest(
            command=config.command(run_dir),
            base_sha256=base_fingerprint(config.model, config.revision),
            task_version=task.version,
            seed=config.seed,
            processes=parallel.processes(),
        )
        policy = load_policy(config)
        if (before := record.manifest.get("model_commit")) not in (None, policy.commit):
            raise UserError(
                f"{run_dir} was begun on commit {before} of {config.model}, which now stands at {policy.commit}: "
                f"set revision={before}, or choose another folder"
            )
        for tested in (task, config.other_task(), config.longer_task()):
            if tested is not None:
                check_sizes(policy, config, tested)
        dtype = str(policy.model.dtype).removeprefix("torch.")
        if (before := record.manifest.get("dtype")) not in (None, dtype):
            raise UserError(
                f"{run_dir} was begun in {before}, and dtype={config.dtype} is {dtype} here: go on where it was begun, "
                "or choose another folder"
            )
        record.write_manifest(model_commit=policy.commit, dtype=dtype)
        status, reason = "done", None
        finite: dict[str, Tensor] = {}  # the parameters at the last validation, which showed that they work
        try:
            if policy.trainable:
                _train(config, record, task, policy, finite, progress)
            started = time.perf_counter()
            final, items = evaluation.final_evaluation(policy, config, task)
        except Diverged as error:
            if not finite:  # the base itself gives no numbers: there is nothing to go back to
                raise
            status, reason = "diverged", str(error)
            with torch.no_grad():
                for name, value in finite.items():
                    policy.trainable[name].copy_(value)
            started = time.perf_counter()
            final, items = evaluation.final_evaluation(policy, config, task)
        record.append_timings({"step": config.steps, "evaluation_s": time.perf_counter() - started, **peak_memory()})
        record.write_items(items)
        totals = _totals(folder / "metrics.jsonl")
        outcome = {"status": status, "reason": reason, **totals, **final}
        if policy.trainable:
            record.write_adapter(policy.model)
            write_card(folder / "adapter", config, record.manifest, outcome)
        return record.finish(outcome)


def _train(
    config: ExperimentConfig,
    record: RunDirectory,
    task: Task,
    policy: Policy,
    finite: dict[str, Tensor],
    progress: bool | None,
) -> None:
    method = config.build_method()
    optimizer = torch.optim.AdamW(policy.trainable.values(), lr=config.learning_rate, weight_decay=0.0)
    # Without loss scaling the gradients of single tokens would be below the least number of float16.
    sixteen_bits = policy.model.dtype in (torch.float16, torch.bfloat16)
    scaler = torch.amp.GradScaler(policy.model.device.type, enabled=policy.model.dtype == torch.float16)
    first, unvalidated = _restore(parallel.from_first(record.load_checkpoint()), policy, optimizer, scaler, finite)
    if unvalidated:
        _validate(config, record, task, policy, finite, first)
    show = parallel.is_first() and (sys.stderr.isatty() if progress is None else progress)
    steps = range(first, config.steps)
    bar = tqdm(steps, initial=first, total=config.steps, disable=not show, desc=f"{config.task} {config.method}")

    for step in bar:
        clock = [time.perf_counter()]

        # Sample: one group for each problem, from exactly the distribution that is scored below.
        batch = training_batch(config, task, step)
        groups = parallel.share(lambda part, step=step: sample_groups(policy, config, task, part, step), batch)
        clock.append(time.perf_counter())

        # Credit: the only place where the methods differ.
        credits = [
            method.assign(
                group.completions,
                group.rewards,
                stream(config.seed, "selection", step, group.problem.id),
                **_extras(method, group),
            )
            for group in groups
        ]

        # Score and differentiate, a part of the groups at a time; the gradient is the sum over the parts.
        optimizer.zero_grad(set_to_none=True)
        loss = _backward(config, policy, groups, credits, scaler)
        clock.append(time.perf_counter())

        # Step, unless no group taught anything: momentum alone would still move the weights.
        learns = any(len(credit) for credit in credits)
        norm, overflow = 0.0, False
        learning_rate = config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))
        if learns:
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(list(policy.trainable.values()), config.max_grad_norm).item()
            overflow = not math.isfinite(loss) or not math.isfinite(norm)
            if overflow and not sixteen_bits:
                raise Diverged(f"loss {loss} or gradient norm {norm} is not finite at step {step + 1}: lower the learning rate")
            if overflow:
                log.warning("step %d is skipped: its gradient is not finite in %s", step + 1, policy.model.dtype)
            else:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                optimizer.step()
            scaler.update()
        clock.append(time.perf_counter())

        # Record.
        moved = learns and not overflow
        row = {"step": step + 1, "loss": loss, "grad_norm": norm if moved else None}
        row |= {"clipped": int(moved and norm > config.max_grad_norm), "skipped": int(not moved)}
        row |= {"overflow": int(overflow)} if sixteen_bits else {}
        row |= {"learning_rate": learning_rate, **_group_metrics(config, policy, groups, credits)}
        record.append_metrics(row)
        record.append_timings({"step": step + 1, **_durations(clock), **peak_memory()})
        bar.set_postfix(reward=f"{row['reward']:.2f}", refresh=False)
        due = (step + 1) % config.eval_every == 0 and step + 1 < config.steps
        signum = parallel.first_given(stop_requested())
        if signum or due or (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            _save(record, step + 1, policy, optimizer, scaler, finite, unvalidated=due)
        if signum:
            raise Stopped(signum)
        if due:
            _validate(config, record, task, policy, finite, step + 1)


def _backward(
    config: ExperimentConfig,
    policy: Policy,
    groups: Sequence[Group],
    credits: Sequence[TokenCredit],
    scaler: torch.amp.GradScaler,
) -> float:
    """Accumulate the gradient of the batch's loss, times the scale of the scaler; returns the loss without it."""
    own, own_credits = parallel.mine(groups), parallel.mine(credits)
    prompts = [group.prompt for group in own]
    completions = [group.completions for group in own]
    how = {"strategy": config.scoring, "temperature": config.temperature}
    total = 0.0
    # transformers recomputes activations in train mode only, and a model in train mode then ignores the cache of a rollout.
    policy.model.train(config.activation_checkpointing)
    for part in micro_batches(prompts, completions, own_credits, config.scoring_tokens):
        batch = [[column[i] for i in part] for column in (prompts, completions, own_credits)]
        log_probs = token_log_probs(policy.model, *batch, **how)
        reference = None
        if config.beta > 0:
            with policy.reference() as base:
                reference = token_log_probs(base, *batch, **how)
        loss, _ = surrogate_loss(log_probs, batch[2], groups=len(groups), reference_log_probs=reference, beta=config.beta)
        scaler.scale(loss).backward()
        total += loss.item()
    policy.model.eval()
    total = parallel.sum_gradients(policy.trainable.values(), total)
    if config.l2 > 0 and any(len(credit) for credit in credits):
        penalty = config.l2 * l2_penalty(policy.trainable.values(), policy.initial)
        scaler.scale(penalty).backward()
        total += penalty.item()
    return total


def _extras(method: Any, group: Group) -> dict[str, Any]:
    """The further facts about a group that a method names in ``needs`` (entropies, replay starts)."""
    return {name: getattr(group, name) for name in getattr(method, "needs", ())}


def _group_metrics(
    config: ExperimentConfig, policy: Policy, groups: Sequence[Group], credits: Sequence[TokenCredit]
) -> dict[str, float | int | None]:
    """What a step's rollouts and credits were like.

    kept_fraction: credited over generated tokens of the groups that do not tie; None if all tie. kept_share_all: over all
    groups. kl_to_base: k3 on all tokens of the step's first group, a cheap and noisy estimate. entropy: mean over generated
    tokens, in nats. tokens_forwarded, tokens_scored: in the update. predicted_flops: of rollout and update; predicted_bytes: the
    most that an update holds above what is held before it. Both as the ledger counts them.
    """
    originals = [sample for group in groups for sample, start in zip(group.samples, group.replay_starts, strict=True) if not start]
    rewards = [group.rewards[[i for i, start in enumerate(group.replay_starts) if not start]] for group in groups]
    entropies = [entropy for sample in originals for entropy in sample.entropies]
    generated = sum(group.generated_tokens for group in groups)
    untied = sum(group.generated_tokens for group in groups if not group.is_tied)
    in_loss = sum(len(credit) for credit in credits)
    prompts, completions = [group.prompt for group in groups], [group.completions for group in groups]
    parts = [
        scoring_cost(*([column[i] for i in part] for column in (prompts, completions, credits)), config.scoring, policy.model)
        for part in micro_batches(prompts, completions, credits, config.scoring_tokens)
    ]
    sampling = rollout_cost(policy.model, prompts, completions, config.rollout_rows)
    return {
        "reward": torch.cat(rewards).mean().item(),
        "tied_groups": sum(group.is_tied for group in groups) / len(groups),
        "kept_fraction": in_loss / untied if untied else None,
        "kept_share_all": in_loss / generated,
        "entropy": sum(entropies) / len(entropies),
        "kl_to_base": evaluation.group_kl(policy, config, groups[0]),
        "truncated": sum(sample.truncated for sample in originals) / len(originals),
        "tokens_generated": generated,
        "tokens_untied": untied,
        "tokens_forwarded": sum(part.forwarded for part in parts),
        "tokens_scored": sum(part.scored for part in parts),
        "tokens_in_loss": in_loss,
        "predicted_flops": sampling.flops + sum(part.flops for part in parts),
        "predicted_bytes": max((part.bytes for part in parts), default=0),
    }


def _validate(
    config: ExperimentConfig, record: RunDirectory, task: Task, policy: Policy, finite: dict[str, Tensor], step: int
) -> None:
    """Greedy and sampled accuracy on the validation split, and a few completions to read; notes the parameters as finite."""
    started = time.perf_counter()
    problems = task.validation[: config.eval_items]
    greedy = evaluation.evaluate(policy, config, task, problems)
    sampled = evaluation.evaluate(policy, config, task, problems, sampled=True)
    record.append_metrics(
        {
            "step": step,
            "validation_accuracy": evaluation.accuracy(greedy),
            "validation_sampled_accuracy": evaluation.accuracy(sampled),
            "validation_truncated": sum(result.sample.truncated for result in greedy) / max(len(greedy), 1),
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
        }
        for result in greedy[:SAMPLES_PER_EVALUATION]
    )
    record.append_timings({"step": step, "evaluation_s": time.perf_counter() - started})
    finite.update({name: parameter.detach().to("cpu", copy=True) for name, parameter in policy.trainable.items()})


def training_batch(config: ExperimentConfig, task: Task, step: int) -> list[Problem]:
    """The problems of a step: the training split in a new order each epoch, a function of (seed, step) alone."""
    size = len(task.train)
    first = step * config.prompts_per_step
    return [
        task.train[_epoch_order(config.seed, size, place // size)[place % size]]
        for place in range(first, first + config.prompts_per_step)
    ]


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, size: int, epoch: int) -> list[int]:
    return numpy_stream(seed, "data", epoch).permutation(size).tolist()


def _save(
    record: RunDirectory,
    step: int,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    finite: Mapping[str, Tensor],
    *,
    unvalidated: bool,
) -> None:
    """Save a checkpoint; ``unvalidated`` if this step is still to be validated, which whoever sends a signal may not wait for."""
    if not parallel.is_first():
        return
    tensors = {f"finite/{name}": value for name, value in finite.items()}
    for name, parameter in policy.trainable.items():
        tensors[f"parameter/{name}"] = parameter
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value
    record.save_checkpoint(step, tensors, {"unvalidated": unvalidated, "scaler": scaler.state_dict()})


def _restore(
    found: tuple[int, dict[str, Tensor], dict] | None,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    finite: dict[str, Tensor],
) -> tuple[int, bool]:
    """Put a checkpoint back; returns the steps done, and whether they are still to be validated.

    Random streams need no state: they are functions of (seed, step).
    """
    if found is None:
        return 0, True
    step, tensors, state = found
    scaler.load_state_dict(state.get("scaler", {}))
    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            finite[name] = tensors[f"finite/{name}"]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (saved := tensors.get(f"optimizer/{key}/{name}")) is not None:
                    # AdamW counts steps on the CPU; its moments live where the parameter does.
                    optimizer.state[parameter][key] = saved if key == "step" else saved.to(parameter.device)
    return step, state.get("unvalidated", False)  # earlier versions saved after the validation, and did not say so


def _totals(path: Path) -> dict[str, float | int | None]:
    """Sums over the steps of a run, read back from its metrics so that a resumed run counts the whole."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if "reward" in row]
    total = {name: sum(row[name] for row in rows) for name in ("tokens_generated", "tokens_untied", "tokens_in_loss")}
    return {
        "steps_done": len(rows),
        "tokens_generated": total["tokens_generated"],
        "tokens_in_loss": total["tokens_in_loss"],
        "tokens_forwarded": sum(row["tokens_forwarded"] for row in rows),
        "predicted_flops": sum(row["predicted_flops"] for row in rows),
        "kept_fraction": total["tokens_in_loss"] / total["tokens_untied"] if total["tokens_untied"] else None,
        "kept_share_all": total["tokens_in_loss"] / total["tokens_generated"] if total["tokens_generated"] else None,
        "clipped_share": sum(row["clipped"] for row in rows) / len(rows) if rows else None,
        "skipped_steps": sum(row["skipped"] for row in rows),
    }


def _durations(clock: Sequence[float]) -> dict[str, float]:
    names = ("rollout_s", "score_s", "update_s")
    parts = {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}
    return {**parts, "step_s": time.perf_counter() - clock[0]}

"""Credit against the truth: which tokens each method credits, where it is known which tokens decided.

Groups are sampled for the same problems many times (redraws), every method credits the same groups, and the result is judged by
what ``token_worth`` knows of them from an audit sample, drawn apart so that no method is at an advantage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from replication.algorithms import SELECTORS, TokenCredit, build_trie
from replication.base_files import base_fingerprint
from replication.config import ExperimentConfig, load_profile
from replication.errors import UserError
from replication.groups import Group, sample_groups
from replication.measure.flops import flops_rows
from replication.measure.gradients import Redraws, batch_product, flat_credit, surrogate_gradients, update_snr
from replication.measure.token_worth import SUMS, Truth, audited, credit_sums, judge
from replication.models import Policy, load_policy
from replication.names import TRAINED
from replication.randomness import numpy_stream, stream
from replication.tables import KINDS, frame
from replication.tasks import Problem, Task

#: Audit samples of a problem, from which the policy's own value of every prefix is counted.
AUDIT = 1024
PROBLEMS, REDRAWS, RESAMPLES = 70, 16, 2000
SHARE = 0.4
#: Steps that no training reaches: the streams of the redraws and the audit are not those of any run.
_FIRST_STEP = 10**9


def contenders(profile: str, task: str) -> dict[tuple[str, str], Any]:
    """(method, selector) -> credit rule: the three methods as the profile sets them, and the controls at a share of SHARE."""
    configs = [load_profile(profile, task=task, method=method) for method in TRAINED]
    configs += [load_profile(profile, task=task, method="s_grpo", selector=name, token_share=SHARE) for name in SELECTORS]
    return {(config.method, config.selector): config.build_method() for config in configs}


def assign(rules: Mapping[tuple[str, str], Any], group: Group, seed: int, redraw: int) -> list[TokenCredit]:
    """The credit of one group by every rule, each with its own stream."""
    return [
        rule.assign(
            group.completions,
            group.rewards,
            stream(seed, "selection", _FIRST_STEP + redraw, group.problem.id, *name),
            **{fact: getattr(group, fact) for fact in getattr(rule, "needs", ())},
        )
        for name, rule in rules.items()
    ]


@dataclass
class _Measured:
    """Per problem: sums over redraws of credit (P, M, 7), of generated and decisive tokens (P, 2), tokens in the loss (P, M)."""

    credit: np.ndarray
    tokens: np.ndarray
    in_loss: np.ndarray
    redraws: list[Redraws]
    example: list[dict[str, Any]]


def measure(
    policy: Policy, config: ExperimentConfig, task: Task, problems: Sequence[Problem], *, redraws: int, audit: int
) -> _Measured:
    """Sample the groups of ``problems`` again and again, credit and differentiate each by every rule.

    Args:
        config: of a trained method; gives group size, temperature, seed and how to score.
    """
    rules = contenders(config.profile, config.task)
    large = config.model_copy(update={"group_size": audit, "token_budget": max(config.token_budget, 8 * audit * 128)})
    truths = [audited(group, policy.tokenizer) for group in sample_groups(policy, large, task, problems, _FIRST_STEP - 1)]
    size = sum(parameter.numel() for parameter in policy.trainable.values())
    measured = _Measured(
        np.zeros((len(problems), len(rules), len(SUMS))),
        np.zeros((len(problems), 2)),
        np.zeros((len(problems), len(rules))),
        [Redraws(len(rules), size) for _ in problems],
        [],
    )
    shown = _instructive(truths)
    how = {"strategy": config.scoring, "temperature": config.temperature}
    for redraw in range(redraws):
        for place, group in enumerate(sample_groups(policy, config, task, problems, _FIRST_STEP + redraw)):
            if group.is_tied:
                measured.redraws[place].add(None)
                continue
            lengths = [len(tokens) for tokens in group.completions]
            decisive, worth = judge(group.completions, truths[place])
            credits = assign(rules, group, config.seed, redraw)
            flat = np.stack([flat_credit(credit, lengths) for credit in credits])
            measured.credit[place] += [credit_sums(row, decisive, worth) for row in flat]
            measured.tokens[place] += len(decisive), decisive.sum()
            measured.in_loss[place] += [len(credit) for credit in credits]
            gradients = surrogate_gradients(policy, group, np.concatenate([flat, flat * decisive]), **how)
            measured.redraws[place].add(gradients[: len(rules)], gradients[len(rules) :])
            if place == shown and not measured.example:
                measured.example = _example(config, policy, group, dict(zip(rules, credits, strict=True)), decisive, worth)
    return measured


def _instructive(truths: Sequence[Truth]) -> int:
    """The problem that the policy gets right most nearly half of the time."""
    return int(np.argmin([abs(truth.value[()][1] - 0.5) for truth in truths]))


def credit_table(
    measured: _Measured, rules: Sequence[tuple[str, str]], config: ExperimentConfig, *, policy: str = "base"
) -> list[dict[str, Any]]:
    """The rows of credit.csv: every quantity of every method with its 95 % percentile bootstrap interval over problems.

    Shares are ratios of sums over problems and redraws (tied groups have neither credit nor gradient). In percent of the
    method's whole |weight * advantage|: credit_decisive, its parts credit_right, credit_wrong, credit_nothing and credit_unknown,
    and credit_consequence (see ``credit_sums``); sign_right = right / (right + wrong); gradient_decisive = <g of the decisive
    rows, g> / |g|^2 per group, which can lie outside 0 to 100 %. tokens_decisive (method "generated"): share of generated tokens.
    snr_update, snr_per_1000_tokens and tokens_in_loss: of an update of ``prompts_per_step`` problems, see ``update_snr``.
    cosine_with_grpo: between the true gradients of an update, corrected for noise, so that it can stray over 1 by chance.
    """
    problems, redraws = len(measured.credit), measured.redraws[0].count
    rng = numpy_stream(config.seed, "bootstrap", "diagnostics", config.task, policy)
    weights = np.concatenate([np.ones((1, problems)), rng.multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES)])
    rows: list[dict[str, Any]] = []

    def add(name: tuple[str, str], quantity: str, unit: str, draws: np.ndarray) -> None:
        finite = draws[1:][np.isfinite(draws[1:])]
        low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
        row = {"profile": config.profile, "task": config.task, "asides": config.asides, "policy": policy}
        row |= {"method": name[0], "selector": name[1]}
        row |= {"quantity": quantity, "unit": unit, "value": draws[0], "low": low, "high": high}
        rows.append(row | {"n": problems, "redraws": redraws, "seed": config.seed})

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return 100 * (weights @ part) / (weights @ whole)

    add(("generated", "generated"), "tokens_decisive", "%", share(measured.tokens[:, 1], measured.tokens[:, 0]))
    means = torch.stack([problem.mean for problem in measured.redraws])  # (P, M, D)
    variance = np.stack([problem.variance() for problem in measured.redraws])  # (P, M)
    covariance = np.stack([problem.covariance() for problem in measured.redraws])
    squares = np.stack([problem.squares for problem in measured.redraws])
    decisive = np.stack([problem.decisive for problem in measured.redraws])
    estimate = {"redraws": redraws, "batch": config.prompts_per_step, "weights": weights}
    own = []
    for place, name in enumerate(rules):
        whole, on_decisive, right, wrong, nothing, unknown, consequence = measured.credit[:, place].T
        for quantity, part in (
            ("credit_decisive", on_decisive), ("credit_right", right), ("credit_wrong", wrong), ("credit_nothing", nothing),
            ("credit_unknown", unknown), ("credit_consequence", consequence),
        ):  # fmt: skip
            add(name, quantity, "%", share(part, whole))
        add(name, "sign_right", "%", share(right, right + wrong))
        add(name, "gradient_decisive", "%", share(decisive[:, place], squares[:, place]))
        gram = (means[:, place] @ means[:, place].T).numpy()
        with_first = (means[:, place] @ means[:, 0].T).numpy()
        snr = update_snr(gram, variance[:, place], **estimate)
        tokens = config.prompts_per_step * (weights @ measured.in_loss[:, place]) / weights.sum(1) / redraws
        add(name, "kept_fraction", "%", share(measured.in_loss[:, place], measured.tokens[:, 0]))
        add(name, "tokens_in_loss", "tokens per update", tokens)
        add(name, "snr_update", "ratio", snr)
        add(name, "snr_per_1000_tokens", "ratio per 1000 tokens", 1000 * snr / tokens)
        own.append(batch_product(gram, variance[:, place], **estimate))
        product = batch_product(_off_symmetric(with_first), covariance[:, place], **estimate)
        with np.errstate(invalid="ignore"):
            add(name, "cosine_with_grpo", "ratio", product / np.sqrt(own[place] * own[0]))
    return rows


def _off_symmetric(products: np.ndarray) -> np.ndarray:
    """Products of two methods' mean gradients as a symmetric matrix: only their sum over both orders is ever used."""
    return (products + products.T) / 2


def _example(
    config: ExperimentConfig,
    policy: Policy,
    group: Group,
    credits: Mapping[tuple[str, str], TokenCredit],
    decisive: np.ndarray,
    worth: np.ndarray,
) -> list[dict[str, Any]]:
    """The group's first right and first wrong completion, token by token, with each method's credit.

    A rule that credits a transition once (T-SPMO) has its credit shown at every completion that takes it.
    """
    lengths = [len(tokens) for tokens in group.completions]
    starts = np.cumsum([0, *lengths])
    path = build_trie(group.completions).path
    rewards = group.rewards.tolist()
    chosen = [rewards.index(max(rewards)), rewards.index(min(rewards))]
    rows = []
    for (method, selector), credit in credits.items():
        value = flat_credit(credit, lengths)
        credited = np.zeros(starts[-1], dtype=bool)
        credited[starts[credit.completion.numpy()] + credit.position.numpy()] = True
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


def diagnose(
    profile: str,
    *,
    task: str = "word_problems",
    problems: int = PROBLEMS,
    redraws: int = REDRAWS,
    audit: int = AUDIT,
    run_dirs: Sequence[Path] = (),
    **overrides: Any,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables ``credit`` and ``worked_example``, for the base and for the adapters of finished runs, and what they took.

    The table credit also has the FLOPs of one token of the base (see ``flops_rows``). The problems are the first of the
    validation split; all chance comes from named streams of the profile's seed.

    Raises:
        UserError: too few problems or redraws for a variance, or a run directory without a fitting adapter.
    """
    config = load_profile(profile, task=task, method="grpo", **overrides)
    if redraws < 2 or problems < config.prompts_per_step:
        raise UserError(f"redraws must be 2 or more and problems {config.prompts_per_step} or more (an update's)")
    saved = {run_dir: _config_of(run_dir, config) for run_dir in run_dirs}  # before the base is measured for a minute
    torch.set_num_threads(config.threads)
    started = time.perf_counter()
    chosen = config.load_task().validation[:problems]
    rules = list(contenders(profile, task))
    rows, example = [], []
    for run_dir in (None, *run_dirs):
        policy = load_policy(config) if run_dir is None else _trained(saved[run_dir], run_dir)
        measured = measure(policy, config, config.load_task(), chosen, redraws=redraws, audit=audit)
        if run_dir is None:
            rows += flops_rows(config, chosen)
        rows += credit_table(measured, rules, config, policy="base" if run_dir is None else Path(run_dir).name)
        example = example or measured.example
    tables = {
        "credit": frame(rows, KINDS["credit"], ["task", "policy"]),
        "worked_example": frame(example, KINDS["worked_example"], ["task"]),
    }
    return tables, {"seconds": round(time.perf_counter() - started, 1), "problems": len(chosen), "redraws": redraws, "audit": audit}


def _config_of(run_dir: Path, config: ExperimentConfig) -> ExperimentConfig:
    """The config of a finished run whose adapter is whole and is one of this model, for this task."""
    from replication.runs import check_files, read_json, read_summary

    if read_summary(run_dir) is None:
        raise UserError(f"there is no finished run in {run_dir}: name another run")
    saved = ExperimentConfig(**read_json(Path(run_dir) / "config.json", "a config"))
    same_base = base_fingerprint(saved.model, saved.revision) == base_fingerprint(config.model, config.revision)
    if not saved.lora_rank or saved.task != config.task or not same_base:
        raise UserError(f"{run_dir} holds no adapter of {config.model} for {config.task}: name another run")
    check_files(run_dir, ["adapter/adapter_model.safetensors"])
    return saved


def _trained(saved: ExperimentConfig, run_dir: Path) -> Policy:
    """The policy at the end of a finished run."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from replication.runs import explained

    policy = load_policy(saved)
    file = Path(run_dir) / "adapter" / "adapter_model.safetensors"
    with explained(file):
        set_peft_model_state_dict(policy.model, load_file(file))
    return policy

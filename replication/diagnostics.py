"""Credit against the truth: which tokens each method credits, where it is known which tokens decided.

Groups are sampled for the same problems many times (redraws), every method credits the same groups, and the result is judged by

- the form: ``tasks.decisive_positions`` names the tokens with which the solvers choose operands and operator;
- the policy's own value: V(p) is the chance of a right answer after prefix p, and V(p, v) - V(p) is what token v was truly
  worth. Both are means over an audit sample, drawn apart from the groups that are judged, so that no method is at an advantage.

A decisive token whose true worth is under ``CONSEQUENCE`` either way decided nothing (the second digit of a number already
chosen, a choice that all samples make); a prefix with fewer than ``AUDITED`` audit samples has no known worth.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from replication.ablations import TRAINED
from replication.algorithms import SELECTORS, TokenCredit, Trie, build_trie
from replication.config import ExperimentConfig, load_profile
from replication.errors import UserError
from replication.gradients import Redraws, batch_product, flat_credit, surrogate_gradients, update_snr
from replication.groups import Group, sample_groups
from replication.models.load import Policy, load_policy
from replication.randomness import numpy_stream, stream
from replication.table_files import KINDS, frame
from replication.tasks import Problem, Task, decisive_positions

#: A token is of consequence if it moves the chance of a right answer by this much.
CONSEQUENCE = 0.05
#: Audit samples of a problem, and how many of them must begin with a prefix for its value to count as known.
AUDIT, AUDITED = 1024, 30
PROBLEMS, REDRAWS, RESAMPLES = 70, 16, 2000
SHARE = 0.4
#: Steps that no training reaches: the streams of the redraws and the audit are not those of any run.
_FIRST_STEP = 10**9
#: The quantities that a credit adds up to per group, and of what the table gives them as shares.
_SUMS = ("credit", "decisive", "right", "wrong", "nothing", "consequence")


@dataclass(frozen=True)
class Truth:
    """What is known about one problem under one policy.

    Attributes:
        value: prefix (token ids) -> (audit samples that begin with it, share of them that are right).
        decisive: completion -> its decisive positions, filled when first asked for.
    """

    problem: Problem
    value: Mapping[tuple[int, ...], tuple[int, float]]
    tokenizer: Any
    decisive: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def worth(self, prefix: tuple[int, ...]) -> float:
        """V(prefix) - V(prefix without its last token); NaN if either is not known well enough."""
        after, before = self.value.get(prefix, (0, 0.0)), self.value.get(prefix[:-1], (0, 0.0))
        # The prefix before must be known well; the one after may be rare only because the policy seldom goes there.
        return after[1] - before[1] if min(after[0], before[0]) >= AUDITED else float("nan")

    def positions(self, completion: Sequence[int]) -> list[int]:
        key = tuple(completion)
        if key not in self.decisive:
            self.decisive[key] = decisive_positions(self.problem, list(completion), self.tokenizer)
        return self.decisive[key]


def audited(group: Group, tokenizer: Any) -> Truth:
    """The truth from a large group: the share of right completions after every prefix that occurs in it."""
    value: dict[tuple[int, ...], list[float]] = {}
    for tokens, reward in zip(group.completions, group.rewards.tolist(), strict=True):
        for length in range(len(tokens) + 1):
            entry = value.setdefault(tuple(tokens[:length]), [0, 0.0])
            entry[0] += 1
            entry[1] += reward
    return Truth(group.problem, {prefix: (int(n), total / n) for prefix, (n, total) in value.items()}, tokenizer)


def judge(completions: Sequence[Sequence[int]], truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """For every generated token, completion by completion: whether it is decisive (T,), and what it was worth (T,), NaN unknown.

    A transition that several completions share is decisive for all of them if it is for one.
    """
    trie: Trie = build_trie(completions)
    decisive, worth = np.zeros(len(trie), dtype=bool), np.full(len(trie), np.nan)
    start = 0
    for tokens in completions:
        path = trie.path[start : start + len(tokens)]
        decisive[path[truth.positions(tokens)]] = True
        for length, node in enumerate(path, start=1):
            if np.isnan(worth[node]):
                worth[node] = truth.worth(tuple(tokens[:length]))
        start += len(tokens)
    return decisive[trie.path], worth[trie.path]


def credit_sums(credit: np.ndarray, decisive: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """How much |weight * advantage| falls where; (6,) in the order of ``_SUMS``.

    credit: all of it. decisive: on decisive tokens, and of that right, wrong (its sign is that of the token's worth, or the
    other) and nothing (the token's worth is under CONSEQUENCE or unknown). consequence: on any token of consequence.

    Args:
        credit, decisive, worth: (T,) as of ``flat_credit`` and ``judge``.
    """
    size = np.abs(credit)
    consequence = np.abs(np.nan_to_num(worth)) >= CONSEQUENCE
    right = decisive & consequence & (np.sign(credit) == np.sign(worth))
    wrong = decisive & consequence & ~right
    kinds = (np.ones_like(decisive), decisive, right, wrong, decisive & ~consequence, consequence)
    return np.array([size[kind].sum() for kind in kinds])


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
    """Per problem: sums over redraws of credit (P, M, 6), of generated and decisive tokens (P, 2), tokens in the loss (P, M)."""

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
    large = config.model_copy(update={"group_size": audit, "rollout_rows": max(config.rollout_rows, 8 * audit)})
    truths = [audited(group, policy.tokenizer) for group in sample_groups(policy, large, task, problems, _FIRST_STEP - 1)]
    size = sum(parameter.numel() for parameter in policy.trainable.values())
    measured = _Measured(
        np.zeros((len(problems), len(rules), len(_SUMS))),
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
    method's whole |weight * advantage|: credit_decisive, its parts credit_right, credit_wrong and credit_nothing, and
    credit_consequence (see ``credit_sums``); sign_right = right / (right + wrong); gradient_decisive = <g of the decisive rows, g>
    / |g|^2 per group, which can lie outside 0 to 100 %. tokens_decisive (method "generated"): share of generated tokens.
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
        row = {"profile": config.profile, "task": config.task, "policy": policy, "method": name[0], "selector": name[1]}
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
        whole, on_decisive, right, wrong, nothing, consequence = measured.credit[:, place].T
        for quantity, part in (
            ("credit_decisive", on_decisive), ("credit_right", right), ("credit_wrong", wrong), ("credit_nothing", nothing),
            ("credit_consequence", consequence),
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

    The problems are the first of the validation split; all chance comes from named streams of the profile's seed.

    Raises:
        UserError: too few problems or redraws for a variance, or a run directory without a fitting adapter.
    """
    config = load_profile(profile, task=task, method="grpo", **overrides)
    if redraws < 2 or problems < config.prompts_per_step:
        raise UserError(f"redraws must be 2 or more and problems {config.prompts_per_step} or more (an update's)")
    torch.set_num_threads(config.threads)
    started = time.perf_counter()
    chosen = config.load_task().validation[:problems]
    rules = list(contenders(profile, task))
    rows, example = [], []
    for run_dir in (None, *run_dirs):
        policy = load_policy(config) if run_dir is None else _trained(config, run_dir)
        measured = measure(policy, config, config.load_task(), chosen, redraws=redraws, audit=audit)
        rows += credit_table(measured, rules, config, policy="base" if run_dir is None else Path(run_dir).name)
        example = example or measured.example
    tables = {
        "credit": frame(rows, KINDS["credit"], ["task", "policy"]),
        "worked_example": frame(example, KINDS["worked_example"], ["task"]),
    }
    return tables, {"seconds": round(time.perf_counter() - started, 1), "problems": len(chosen), "redraws": redraws, "audit": audit}


def _trained(config: ExperimentConfig, run_dir: Path) -> Policy:
    """The policy at the end of a finished run."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from replication.files import explained, read_json

    saved = ExperimentConfig(**read_json(Path(run_dir) / "config.json", "a config"))
    if not saved.lora_rank or (saved.task, saved.model) != (config.task, config.model):
        raise UserError(f"{run_dir} holds no adapter of {config.model} for {config.task}: name another run")
    policy = load_policy(saved)
    file = Path(run_dir) / "adapter" / "adapter_model.safetensors"
    with explained(file):
        set_peft_model_state_dict(policy.model, load_file(file))
    return policy

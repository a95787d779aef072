"""How much gradient and credit fall on the tokens that determine the answer, for tasks where these tokens are known.

Groups are sampled for the same problems again and again (redraws), and every method credits the same groups. The methods are
compared in every setting, the controls only in the first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from replication.algorithms import SELECTORS, build_trie
from replication.config import ExperimentConfig, load_profile
from replication.errors import UserError
from replication.groups import sample_groups
from replication.measure.flops import flops_rows
from replication.measure.gradients import (
    FIRST_STEP,
    Redraws,
    batch_product,
    credits_of,
    flat_credit,
    places_of,
    surrogate_gradients,
    update_snr,
)
from replication.measure.token_worth import decisive_tokens
from replication.measure.worked_example import AUDIT, worked_example
from replication.models import Policy, load_policy
from replication.names import TRAINED
from replication.randomness import numpy_stream
from replication.tables import KINDS, frame
from replication.tasks import Problem, Task

#: Where the grammar tells which tokens decide. The first setting has the controls and the worked example.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"task": "word_problems", "asides": "after"},
    {"task": "word_problems", "asides": "none"},
    {"task": "word_problems", "asides": "before"},
    {"task": "multiplication", "asides": None},
)
PROBLEMS, REDRAWS, RESAMPLES = 32, 4, 2000
SHARE = 0.4


def contenders(profile: str, setting: Mapping[str, Any], *, controls: bool) -> dict[tuple[str, str], Any]:
    """(method, selector) -> credit rule: the three methods as the profile sets them, then the controls at a share of SHARE."""
    configs = [load_profile(profile, method=method, **setting) for method in TRAINED]
    if controls:
        own = {"method": "s_grpo", "token_share": SHARE}
        configs += [load_profile(profile, selector=name, **own, **setting) for name in SELECTORS]
    return {(config.method, config.selector): config.build_method() for config in configs}


@dataclass
class _Measured:
    """Sums over redraws, of P problems and M rules, without the tied groups.

    Attributes:
        credit: (P, M, 2) |weight * advantage| of all tokens and of the decisive ones.
        tokens: (P, 3) generated tokens, decisive ones, distinct transitions.
        in_loss: (P, M, 2) rows of the loss, distinct transitions among them.
    """

    credit: np.ndarray
    tokens: np.ndarray
    in_loss: np.ndarray
    redraws: list[Redraws]


def measure(
    policy: Policy,
    config: ExperimentConfig,
    task: Task,
    problems: Sequence[Problem],
    rules: Mapping[tuple[str, str], Any],
    redraws: int,
) -> _Measured:
    """Sample the groups of ``problems`` again and again, credit and differentiate each by every rule.

    Args:
        config: of a trained method; gives group size, temperature, seed and how to score.
        rules: the three methods first: of these alone the gradient of the decisive tokens is taken.
    """
    size = sum(parameter.numel() for parameter in policy.trainable.values())
    measured = _Measured(
        np.zeros((len(problems), len(rules), 2)),
        np.zeros((len(problems), 3)),
        np.zeros((len(problems), len(rules), 2)),
        [Redraws(len(rules), size) for _ in problems],
    )
    how = {"strategy": config.scoring, "temperature": config.temperature}
    for redraw in range(redraws):
        for place, group in enumerate(sample_groups(policy, config, task, problems, FIRST_STEP + redraw)):
            if group.is_tied:
                measured.redraws[place].add(None)
                continue
            lengths = [len(tokens) for tokens in group.completions]
            path = build_trie(group.completions).path
            decisive = decisive_tokens(group.completions, group.problem, policy.tokenizer)
            credits = credits_of(rules, group, config.seed, redraw)
            flat = np.stack([flat_credit(credit, lengths) for credit in credits])
            measured.credit[place] += np.stack([np.abs(flat).sum(1), np.abs(flat[:, decisive]).sum(1)], axis=1)
            measured.tokens[place] += len(path), decisive.sum(), path.max() + 1
            kept = [np.unique(path[places_of(credit, lengths)]) for credit in credits]
            measured.in_loss[place] += [[len(credit), len(nodes)] for credit, nodes in zip(credits, kept, strict=True)]
            compared = flat[: len(TRAINED)] * decisive
            gradients = surrogate_gradients(policy, group, np.concatenate([flat, compared]), **how)
            measured.redraws[place].add(gradients[: len(rules)], gradients[len(rules) :])
    return measured


def credit_table(measured: _Measured, rules: Sequence[tuple[str, str]], config: ExperimentConfig) -> list[dict[str, Any]]:
    """The rows of credit.csv: every quantity of every method with its 95 % percentile bootstrap interval over problems.

    Shares are ratios of sums over problems and redraws (tied groups have neither credit nor gradient), in percent.
    Of the methods: gradient_decisive = <g of the decisive tokens, g> / |g|^2, which can lie outside 0 to 100 %; credit_decisive =
    the decisive tokens' part of |weight * advantage|. Of all rules: kept_fraction = tokens in the loss / generated tokens, and
    distinct_transitions_in_loss = those transitions of the group's trie that are in the loss / all of them.
    tokens_decisive (method "generated"): share of generated tokens.
    snr_update, snr_per_1000_tokens and tokens_in_loss: of an update of ``prompts_per_step`` problems, see ``update_snr``.
    cosine_with_grpo: between the true gradients of an update, corrected for noise, so that it can stray over 1 by chance.
    """
    problems, redraws = len(measured.credit), measured.redraws[0].count
    rng = numpy_stream(config.seed, "bootstrap", "diagnostics", config.task, config.asides or "", "base")
    weights = np.concatenate([np.ones((1, problems)), rng.multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES)])
    rows: list[dict[str, Any]] = []

    def add(name: tuple[str, str], quantity: str, unit: str, draws: np.ndarray) -> None:
        finite = draws[1:][np.isfinite(draws[1:])]
        low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
        row = {"profile": config.profile, "task": config.task, "asides": config.asides}
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
        if place < len(TRAINED):
            add(name, "gradient_decisive", "%", share(decisive[:, place], squares[:, place]))
            add(name, "credit_decisive", "%", share(measured.credit[:, place, 1], measured.credit[:, place, 0]))
        gram = (means[:, place] @ means[:, place].T).numpy()
        with_first = (means[:, place] @ means[:, 0].T).numpy()
        snr = update_snr(gram, variance[:, place], **estimate)
        tokens = config.prompts_per_step * (weights @ measured.in_loss[:, place, 0]) / weights.sum(1) / redraws
        add(name, "kept_fraction", "%", share(measured.in_loss[:, place, 0], measured.tokens[:, 0]))
        add(name, "distinct_transitions_in_loss", "%", share(measured.in_loss[:, place, 1], measured.tokens[:, 2]))
        add(name, "tokens_in_loss", "tokens per update", tokens)
        add(name, "snr_update", "ratio", snr)
        add(name, "snr_per_1000_tokens", "ratio per 1000 tokens", 1000 * snr / tokens)
        own.append(batch_product(gram, variance[:, place], **estimate))
        # Made symmetric: only the sum over both orders of two problems is used.
        product = batch_product((with_first + with_first.T) / 2, covariance[:, place], **estimate)
        with np.errstate(invalid="ignore"):
            add(name, "cosine_with_grpo", "ratio", product / np.sqrt(own[place] * own[0]))
    return rows


def diagnose(
    profile: str,
    *,
    task: str | None = None,
    asides: str | None = None,
    problems: int = PROBLEMS,
    redraws: int = REDRAWS,
    audit: int = AUDIT,
    **overrides: Any,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables ``credit`` and ``worked_example``, for the base in every setting.

    The table credit also has the FLOPs of one token of the base (see ``flops_rows``). The problems are the first of the
    validation split; all chance comes from named streams of the profile's seed.

    Args:
        task, asides: only the settings that have these; by default all of SETTINGS.

    Returns:
        The tables, and what they took.

    Raises:
        UserError: no such setting, or too few problems or redraws for a variance.
    """
    settings = [s for s in SETTINGS if task in (None, s["task"]) and asides in (None, s["asides"])]
    if not settings:
        raise UserError(f"task {task} with asides {asides} has no tokens that are known to decide")
    configs = [load_profile(profile, method="grpo", **setting, **overrides) for setting in settings]
    first = configs[0]
    if redraws < 2 or problems < first.prompts_per_step:
        raise UserError(f"redraws must be 2 or more and problems {first.prompts_per_step} or more (an update's)")
    torch.set_num_threads(first.threads)
    started = time.perf_counter()
    rows, example = [], []
    for setting, config in zip(settings, configs, strict=True):
        generated = config.load_task()
        chosen = generated.validation[:problems]
        rules = contenders(profile, setting, controls=config is first)
        policy = load_policy(config)
        rows += credit_table(measure(policy, config, generated, chosen, rules, redraws), list(rules), config)
        if config is first:
            rows += flops_rows(config, chosen)
            methods = contenders(profile, setting, controls=False)
            example = worked_example(policy, config, generated, chosen, methods, audit)
    tables = {
        "credit": frame(rows, KINDS["credit"], ["task", "asides"]),
        "worked_example": frame(example, KINDS["worked_example"], ["task"]),
    }
    return tables, {"seconds": round(time.perf_counter() - started, 1), "problems": problems, "redraws": redraws, "audit": audit}

"""What a training step logs, and the totals of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from replication.algorithms import TokenCredit
from replication.config import ExperimentConfig
from replication.evaluate import group_kl
from replication.groups import Group, stopped_share
from replication.models import Policy
from replication.tasks import Task


def step_metrics(
    policy: Policy, config: ExperimentConfig, task: Task, groups: Sequence[Group], credits: Sequence[TokenCredit]
) -> dict[str, float | int | None]:
    """The metrics of one step's rollouts and credits.

    reward: mean over the originals (replays aside). tied_groups: share of groups whose rewards are all equal. kept_fraction:
    credited over generated tokens of the groups that can teach, which are those that do not tie, and under a method that credits
    tied groups too all of them; None if none can. kept_share_all: the same over all groups.
    entropy: mean over generated tokens, in nats. kl_to_base: k3 on all tokens of the step's first group, a cheap and noisy
    estimate, in nats. truncated: share of completions cut at the length limit. stopped: share that a stop string ended, for a
    task that has stop strings.
    """
    originals = [sample for group in groups for sample, start in zip(group.samples, group.replay_starts, strict=True) if not start]
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
        "kl_to_base": group_kl(policy, config, groups[0]),
        "truncated": sum(sample.truncated for sample in originals) / len(originals),
        **stopped_share(task, originals),
        "tokens_generated": generated,
        "tokens_untied": untied,
        "tokens_in_loss": in_loss,
    }


def run_totals(path: Path) -> dict[str, float | int | None]:
    """Sums over the steps of a run, read back from its metrics.jsonl, so that a resumed run counts all its steps."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if "reward" in row]
    names = ("tokens_generated", "tokens_untied", "tokens_in_loss", "tokens_forwarded")
    total = {name: sum(row[name] for row in rows) for name in names}
    untied = total.pop("tokens_untied")
    return {
        "steps_done": len(rows),
        **total,
        "kept_fraction": total["tokens_in_loss"] / untied if untied else None,
        "kept_share_all": total["tokens_in_loss"] / total["tokens_generated"] if total["tokens_generated"] else None,
        "clipped_share": sum(row["clipped"] for row in rows) / len(rows) if rows else None,
        "skipped_steps": sum(row["skipped"] for row in rows),
    }

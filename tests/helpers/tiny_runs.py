"""Whole runs in a second: a random Qwen2 folder with the tokenizer of the nano base, short configs, rewards that do not tie.

A random model answers nothing right, so all its groups tie and nothing is learned. ``noisy_rewards`` gives each completion a
reward that depends on its text alone: groups part, gradients flow, and every run of a test still sees the same rewards.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from replication import groups
from replication.config import ExperimentConfig, load_profile
from replication.nano.corpus import train_tokenizer
from replication.tasks import Problem

#: For processes that tests start.
HELPERS = Path(__file__).parent

#: Every way to train, full fine-tuning (rank 0) and replays included.
TRAINED: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo"},
    "s_grpo": {"method": "s_grpo", "cutoff": 1, "keep_probability": 0.5, "max_kept_tokens": 4},
    "s_grpo_entropy": {"method": "s_grpo", "selector": "entropy", "token_share": 0.4},
    "t_spmo": {"method": "t_spmo"},
    "t_spmo_replay": {"method": "t_spmo", "replay_successes": 2, "replay_failures": 1},
    "ppo": {"method": "ppo", "critic_learning_rate": 2e-2},
    "full": {"method": "grpo", "lora_rank": 0, "learning_rate": 1e-3},
}

_tokenizer = functools.cache(train_tokenizer)


def tiny_tokenizer() -> Qwen2Tokenizer:
    return _tokenizer()


def make_base(folder: Path, **changes: Any) -> Path:
    """Save a random Qwen2 (tied embeddings) with the nano tokenizer in ``folder``.

    A twelfth of the vocabulary ends a completion, so that lengths differ; the weights are wide enough for completions of
    one prompt to share prefixes.
    """
    tokenizer = tiny_tokenizer()
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,  # so many that every prompt fits unread: to encode them all takes longer than such a run
        "initializer_range": 0.6,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": [tokenizer.eos_token_id, *range(12, len(tokenizer), 12)],
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**(values | changes)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_config(base: Path | str, kind: str = "grpo", **changes: Any) -> ExperimentConfig:
    """A config of a few steps; ``kind`` is a key of TRAINED or "base"."""
    values: dict[str, Any] = {
        "model": str(base),
        "steps": 4,
        "prompts_per_step": 3,
        "group_size": 6,
        "max_new_tokens": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "eval_every": 2,
        "eval_items": 4,
        "test_items": 5,
        "eval_batch_size": 4,
        "checkpoint_every": 3,
    }
    values |= {"method": "base", "steps": 0} if kind == "base" else TRAINED[kind]
    return load_profile("smoke", **({"task": "multiplication"} | values | changes))


def noisy_reward(text: str, truncated: bool, problem: Problem) -> float:
    """0 or 1 by the text alone, truncated or not."""
    return float(hashlib.sha256(f"{problem.id} {text}".encode()).digest()[0] & 1)


def noisy_rewards(patch: pytest.MonkeyPatch) -> None:
    """Let training and evaluation judge by ``noisy_reward``."""
    patch.setattr(groups, "reward", noisy_reward)


def lines(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def steps(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that belong to optimizer steps."""
    return [line for line in lines(run_dir) if "reward" in line]


def outcome(run_dir: Path) -> dict[str, bytes]:
    """Everything in a finished run that must not vary between two runs of one command."""
    names = ["metrics.jsonl", "items.csv", "summary.json", "samples.jsonl"]
    weights = sorted(path.relative_to(run_dir).as_posix() for path in run_dir.glob("adapter/*.safetensors"))
    return {name: (run_dir / name).read_bytes() for name in [*names, *weights] if (run_dir / name).exists()}

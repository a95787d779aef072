"""A run whose tokens are scored under another distribution than they were sampled from ends before its first update."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_runs import make_base, steps, tiny_config, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, Qwen2Model

from replication.checks import require_sampled_equals_scored
from replication.errors import UserError
from replication.groups import sample_groups
from replication.models import load_policy
from replication.tasks import get_task
from replication.train import run

TASK = get_task("word_problems")
SMALL = {"task": "word_problems", "steps": 1, "eval_items": 1, "test_items": 1}


@pytest.fixture(scope="module")
def absolute(tmp_path_factory) -> Path:
    """A random GPT-2: its positions are absolute, so that padding on the left moves them."""
    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), tiny_tokenizer()
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    size = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**size, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ignore_positions(patch: pytest.MonkeyPatch, model: type = Qwen2Model) -> None:
    """A decoder that counts positions by column, as some do, whatever it is told."""
    forward = model.forward
    patch.setattr(model, "forward", lambda self, *args, position_ids=None, **named: forward(self, *args, **named))


def refused(folder, break_it=lambda: None, **changes) -> float:
    """By how much the two log-probs in the message differ, for a model that breaks after it was loaded."""
    config = tiny_config(folder, **(SMALL | changes))
    policy = load_policy(config)
    break_it()
    groups = sample_groups(policy, config, TASK, TASK.train[:8], 0)
    with pytest.raises(UserError, match="sampling and scoring disagree") as error:
        require_sampled_equals_scored(policy, config, groups)
    assert "\n" not in str(error.value)
    sampled, scored = re.search(r"log-prob (\S+) and is scored at (\S+) ", str(error.value)).groups()
    return abs(float(sampled) - float(scored))


def test_a_model_that_ignores_positions_is_refused(random_base, absolute, monkeypatch):
    """Relative positions go wrong in packed rows; absolute ones where a prompt is padded while it is sampled from."""
    assert refused(random_base, lambda: ignore_positions(monkeypatch)) > 1e-3
    broken = {"scoring": "dense", "lora_targets": ("c_attn",)}
    assert refused(absolute, lambda: ignore_positions(monkeypatch, GPT2Model), **broken) > 1e-3


@pytest.mark.filterwarnings("ignore:scoring this model densely")
def test_a_rotary_embedding_that_depends_on_the_length_of_the_row_is_refused(tmp_path):
    """Past the original range each cached key was rotated for another length than the whole row is."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    assert refused(make_base(tmp_path / "base", rope_parameters=rope, max_position_embeddings=16)) > 1e-3


def test_in_16_bits_it_is_refused_too(absolute, monkeypatch):
    refused(absolute, lambda: ignore_positions(monkeypatch, GPT2Model), dtype="bfloat16", lora_targets=("c_attn",))


def test_a_run_compares_before_its_first_update(random_base, tmp_path, monkeypatch):
    monkeypatch.setattr("replication.checks.LIMIT_FLOAT32", -1.0)
    with pytest.raises(UserError, match="sampling and scoring disagree"):
        run(tiny_config(random_base, **SMALL), tmp_path / "run")
    assert not steps(tmp_path / "run")


@pytest.mark.parametrize(("shift", "dtype", "fine"), [
    (9e-4, "float32", True), (1.1e-3, "float32", False), (4.0, "bfloat16", True), (60.0, "bfloat16", False),
])  # fmt: skip
def test_the_limits(random_base, shift, dtype, fine):
    """One token of several hundred is off: in float32 it decides, in 16 bits the average does."""
    config = tiny_config(random_base, dtype=dtype, group_size=16)
    policy = load_policy(config)
    groups = sample_groups(policy, config, TASK, TASK.train[:3], 0)
    size = sum(len(sample.tokens) for group in groups for sample in group.samples)
    assert 150 < size < 400
    groups[1].samples[2].log_probs[0] += shift
    if fine:
        return require_sampled_equals_scored(policy, config, groups)
    with pytest.raises(UserError, match="sampling and scoring disagree"):
        require_sampled_equals_scored(policy, config, groups)


@pytest.mark.parametrize("kind", ["grpo", "t_spmo_replay", "full"])
def test_the_comparison_leaves_no_trace(random_base, kind, monkeypatch):
    config = tiny_config(random_base, kind, temperature=0.7)
    policy = load_policy(config)
    groups = sample_groups(policy, config, TASK, TASK.train[:2], 0)
    state = torch.get_rng_state()
    require_sampled_equals_scored(policy, config, groups)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in policy.trainable.values())

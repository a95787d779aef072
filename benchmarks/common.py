"""What the benchmarks share: random models, synthetic groups, one update as the training loop does it, clocks and memory."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from replication import train
from replication.algorithms import TokenCredit
from replication.config import ExperimentConfig, load_profile
from replication.groups import Group, credit_of
from replication.models import Policy
from replication.names import SCHEMA_VERSION, TRAINED
from replication.randomness import numpy_stream, stream
from replication.rollout import Completion
from replication.runs import atomic_write, forget_peak_memory, manifest, now, peak_memory, to_json
from replication.scoring import score
from replication.tasks import Problem
from replication.training_state import TrainingState

METHODS = TRAINED
#: S-GRPO where completions are longer than the nano task's: 40 % of the tokens whatever their length, so no cap.
SPARSE = {"cutoff": 4, "keep_probability": 0.4, "max_kept_tokens": None}
#: TRL's GRPOTrainer on the same work; needs the extra ``bench``.
TRL = "trl"
#: TRL's trainer with this project's credit and packed scoring.
IN_TRL = "packed in trl"


def nano_config(method: str, **overrides: Any) -> ExperimentConfig:
    """The nano profile's run of a method on word problems."""
    return load_profile("nano", task="word_problems", method=method, **overrides)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ models and groups


def random_policy(
    *,
    vocabulary: int,
    width: int,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int | None = None,
    rank: int = 8,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Policy:
    """A Qwen2 with random weights and an adapter on q and v, both halves random so that no gradient is zero by chance."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=intermediate or 3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 2,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = Qwen2ForCausalLM(config).to(device, dtype)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    trainable = {name: parameter for name, parameter in sorted(model.named_parameters()) if parameter.requires_grad}
    for parameter in trainable.values():
        parameter.data = torch.nn.init.normal_(parameter.data.float(), std=0.02, generator=None)
    return Policy(model.eval(), None, trainable, None, (vocabulary - 1,), vocabulary - 2)


def synthetic_groups(
    *,
    vocabulary: int,
    prompts: int,
    group_size: int,
    prompt_length: int,
    completion_length: int,
    common: float = 0.9,
) -> list[Group]:
    """Groups whose completions share prefixes as sampled ones do, and whose rewards never tie.

    Each token is the one that the group has in common with probability ``common``, else any other; so two completions part
    after 1 / (1 - common^2) tokens on average (0.9: about 5), and for good.
    """
    chance = numpy_stream(0, "benchmark")
    groups = []
    for index in range(prompts):
        prompt = chance.integers(1, vocabulary - 2, prompt_length).tolist()
        shared = chance.integers(1, vocabulary - 2, completion_length)
        own = chance.integers(1, vocabulary - 2, (group_size, completion_length))
        tokens = np.where(chance.random((group_size, completion_length)) < common, shared, own)
        rewards = np.zeros(group_size)
        rewards[chance.permutation(group_size)[: max(1, group_size // 2)]] = 1.0
        groups.append(make_group(Problem(f"synthetic-{index}", "", Decimal(0)), prompt, tokens.tolist(), rewards))
    return groups


def make_group(problem: Problem, prompt: list[int], completions: list[list[int]], rewards: Any) -> Group:
    samples = [Completion(tokens, [], [], False) for tokens in completions]
    return Group(problem, prompt, samples, [""] * len(samples), torch.as_tensor(rewards, dtype=torch.float32), [0] * len(samples))


# ------------------------------------------------------------------------------------------------------------- work


def credits_of(config: ExperimentConfig, groups: Sequence[Group]) -> list[TokenCredit]:
    method = config.build_method()
    return [credit_of(method, group, stream(config.seed, "selection", 0, group.problem.id)) for group in groups]


def update_of(config: ExperimentConfig, policy: Policy) -> Callable[[Sequence[Group]], train.Update]:
    """What the training loop does between a rollout and its record, as a function of the groups: step 0, again and again."""
    method, state = config.build_method(), TrainingState.of_run(config, policy)
    return lambda groups: train.learn(config, method, state, groups, 0)


def tokens_forwarded(policy: Policy, config: ExperimentConfig, groups: Sequence[Group], credits: Sequence[TokenCredit]) -> int:
    """Tokens that go through the trunk in one update."""
    with torch.no_grad():
        batch = [group.prompt for group in groups], [group.completions for group in groups], credits
        return score(policy.model, *batch, strategy=config.scoring).tokens_forwarded


def untied(groups: Sequence[Group]) -> list[Group]:
    """The same completions with rewards of which half are 1, so that no group may be left out."""
    result = []
    for group in groups:
        size = len(group.samples)
        rewards = np.arange(size) % 2 == 0
        result.append(make_group(group.problem, group.prompt, group.completions, rewards))
    return result


# --------------------------------------------------------------------------------------------------- clocks and bytes


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most resident memory during ``work`` above what was held before it, on Linux.

    The kernel's own high-water mark is reset first, so nothing between two samples can be missed.
    """
    forget_peak_memory()
    before = peak_memory()["peak_rss_bytes"]
    work()
    return peak_memory()["peak_rss_bytes"] - before


# ------------------------------------------------------------------------------------------------------------ tables


def write_table(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as ``name``.csv with the schema version first; %.6g, missing is empty."""
    table = pd.DataFrame(rows)
    table.insert(0, "schema_version", SCHEMA_VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return table


def write_manifest(folder: Path, part: str, **facts: Any) -> None:
    """Record hardware, versions and facts of one part of the benchmarks beside its tables."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content[part] = {**_about(), "made": now(), **facts}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, to_json(content, indent=2) + "\n")


@functools.cache
def _about() -> dict[str, Any]:
    """Taken once: later parts run the same code, whatever is committed meanwhile."""
    about = manifest()
    for package in ("trl", "accelerate"):
        try:
            about["packages"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            about["packages"][package] = None
    # Threads that spin while they wait are slow on a busy machine, so it matters how they wait.
    about["environment"] = {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME") if name in os.environ}
    return about

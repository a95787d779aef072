"""The whole way on real weights, SmolLM2-135M-Instruct in a GGUF file: `make test-real` fetches them.

Random weights of a tiny model hide what these have: 30 layers, a pad token that is the EOS token, a BOS token that begins every
chat turn, a chat template with a system prompt of its own, and text that means something.
"""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fetch
import pytest
import torch
from peft import PeftModel
from tiny_runs import noisy_rewards, outcome, steps
from transformers import AutoModelForCausalLM

from replication import signals, train
from replication.__main__ import main
from replication.algorithms import every_token
from replication.config import ExperimentConfig, load_profile
from replication.errors import Stopped
from replication.groups import Group, sample_groups
from replication.models import Policy, load_base, load_policy
from replication.models import load as load_module
from replication.models.checks import check_decoding
from replication.names import METHODS, RESULTS
from replication.randomness import stream
from replication.rollout import generate
from replication.scoring import token_log_probs

pytestmark = pytest.mark.real

FILE = RESULTS / "local" / "smollm2" / fetch.NAME
END_OF_TURN = "<|im_end|>"
#: Of unlike lengths, so that prompts are padded; the base ends its answer to the last two within 24 tokens.
QUESTIONS = (
    "Tom has 12 apples and gives 5 of them to Ann. How many apples does Tom have now?",
    "What is the capital of France?",
    "Is the sky blue? Answer yes or no.",
)


def config(method: str = "s_grpo", **changes: Any) -> ExperimentConfig:
    values = {"model": str(FILE), "prompt_template": "chat", "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 12}
    values |= {"eval_items": 1, "test_items": 2, "eval_batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-3}
    return load_profile("smoke", task="multiplication", method=method, **(values | {"steps": int(method != "base")} | changes))


@pytest.fixture(scope="module", autouse=True)
def base() -> Iterator[tuple[torch.nn.Module, Any]]:
    """The file read once, as ``load_base`` reads it; every load after that is a copy."""
    assert FILE.exists() and fetch.sha256_of(FILE) == fetch.SHA256, f"{FILE} is missing or damaged: run make test-real"
    model, tokenizer = load_base(str(FILE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_module, "load_base", lambda path, revision, dtype: (copy.deepcopy(model).to(dtype), tokenizer))
        yield model, tokenizer


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Under an adapter whose B is not 0, as after some steps: at 0 it would hide the gradient of A."""
    policy = load_policy(config())
    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=stream(0, "test", name))
    return policy


@pytest.fixture(scope="module")
def groups(policy: Policy) -> list[Group]:
    task = config().load_task()
    return sample_groups(policy, config(max_new_tokens=24), task, task.train[:2], 0)


@dataclass
class Scored:
    """Log-probs of all tokens, and the gradient of a weighted sum of them by adapter parameter."""

    log_probs: torch.Tensor
    gradient: dict[str, torch.Tensor]


def scored(policy: Policy, groups: list[Group], log_probs: Callable[[], torch.Tensor]) -> Scored:
    for parameter in policy.trainable.values():
        parameter.grad = None
    values = log_probs()
    weights = torch.randn(len(values), generator=stream(0, "test", "weights")) / len(values)
    (values * weights).sum().backward()
    return Scored(values.detach(), {name: parameter.grad.clone() for name, parameter in policy.trainable.items()})


def by_transformers(policy: Policy, groups: list[Group]) -> torch.Tensor:
    """One completion at a time through the model, no padding, no sharing."""
    parts = []
    for group in groups:
        for tokens in group.completions:
            logits = policy.model(torch.tensor([group.prompt + tokens])).logits[0, len(group.prompt) - 1 : -1]
            parts.append(torch.log_softmax(logits.float(), -1)[torch.arange(len(tokens)), torch.tensor(tokens)])
    return torch.cat(parts)


@pytest.fixture(scope="module")
def all_scored(policy: Policy, groups: list[Group]) -> dict[str, Scored]:
    prompts, completions = [group.prompt for group in groups], [group.completions for group in groups]
    credits = [every_token(group) for group in completions]

    def ours(strategy: str) -> Callable[[], torch.Tensor]:
        return lambda: token_log_probs(policy.model, prompts, completions, credits, strategy=strategy)

    return {
        "packed": scored(policy, groups, ours("packed")),
        "dense": scored(policy, groups, ours("dense")),
        "transformers": scored(policy, groups, lambda: by_transformers(policy, groups)),
    }


@pytest.mark.parametrize("way", ["packed", "dense"])
def test_log_probs_and_lora_gradients_are_those_of_plain_transformers(all_scored, way):
    expected, found = all_scored["transformers"], all_scored[way]
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=0, atol=2e-4)
    for name, gradient in expected.gradient.items():
        assert gradient.norm() > 0, name
        assert (found.gradient[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_what_was_sampled_is_what_is_scored(groups, all_scored):
    sampled = torch.tensor([value for group in groups for sample in group.samples for value in sample.log_probs])
    torch.testing.assert_close(sampled, all_scored["transformers"].log_probs, rtol=0, atol=2e-4)


def chat(policy: Policy, question: str) -> list[int]:
    turn = [{"role": "user", "content": question}]
    return policy.encode(policy.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def greedy(policy: Policy, prompts: list[list[int]], limit: int):
    ends = {"eos_token_ids": policy.eos_token_ids, "pad_token_id": policy.pad_token_id}
    return [group[0] for group in generate(policy.model, prompts, group_size=1, max_new_tokens=limit, temperature=0.0, **ends)]


def test_greedy_is_generate_and_an_answer_keeps_its_eos_though_the_pad_is_the_same_id():
    """Prompts of unlike lengths in one batch, padded with the id that also ends an answer."""
    policy = load_policy(config("base"))
    assert policy.pad_token_id in policy.eos_token_ids
    prompts = [chat(policy, question) for question in QUESTIONS]
    assert len(set(map(len, prompts))) > 1
    found = greedy(policy, prompts, 24)
    for prompt, sample in zip(prompts, found, strict=True):
        with torch.no_grad():
            whole = policy.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0].tolist()
        assert sample.tokens == whole[len(prompt) :]
        assert sample.truncated == (sample.tokens[-1] not in policy.eos_token_ids)
    ended = [sample for sample in found if not sample.truncated]
    assert len(ended) >= 2
    for sample in ended:
        assert sum(token in policy.eos_token_ids for token in sample.tokens) == 1
        assert END_OF_TURN not in policy.decode(sample.tokens) and policy.decode(sample.tokens).strip()


def test_the_chat_template_is_the_models_own(policy):
    task = config().load_task()
    prompt, bare = task.train[0].prompt, config(prompt_template=None).load_task().train[0].prompt
    question = prompt.split("<|im_start|>user\n")[1].split(END_OF_TURN)[0]
    assert bare == f"Question: {question}\nAnswer:"
    assert prompt.startswith("<|im_start|>system\n") and prompt.endswith("<|im_start|>assistant\n")
    assert task.stop_strings == (END_OF_TURN,)
    ids = policy.encode(prompt)
    (start,) = policy.tokenizer.convert_tokens_to_ids(["<|im_start|>"])
    assert ids.count(start) == 3 and ids[0] == start, "each mark is one token, and the first is not doubled"
    assert policy.tokenizer.decode(ids) == prompt


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_model_can_be_sampled_from_in_16_bits(base, dtype):
    check_decoding(copy.deepcopy(base[0]).to(dtype))


@dataclass
class Run:
    folder: Path
    policy: Policy


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a method, made at the first call; that of S-GRPO has two steps."""
    parent, made = tmp_path_factory.mktemp("runs"), {}

    def get(method: str) -> Run:
        if method not in made:
            policies = []
            with pytest.MonkeyPatch.context() as patch:
                noisy_rewards(patch)
                patch.setattr(train, "load_policy", lambda config: policies.append(load_policy(config)) or policies[0])
                train.run(config(method, **({"steps": 2} if method == "s_grpo" else {})), parent / method)
            made[method] = Run(parent / method, policies[0])
        return made[method]

    return get


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method(runs, method):
    run = runs(method)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["status"] == "done" and summary["n_items"] == 2
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["base_sha256"] == fetch.SHA256
    if method == "base":
        return
    for row in steps(run.folder):
        assert row["grad_norm"] > 0 and row["skipped"] == 0 and row["tokens_in_loss"] > 0
    start = load_policy(config(method)).trainable
    assert all(not torch.equal(run.policy.trainable[name], value) for name, value in start.items() if "lora_B" in name)


def test_a_stopped_run_is_resumed_with_the_same_bytes(runs, tmp_path, monkeypatch):
    noisy_rewards(monkeypatch)
    batch = train.training_batch

    def stopping(config, task, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(config, task, step)

    with monkeypatch.context() as patch, signals.handled(), pytest.raises(Stopped):
        patch.setattr(train, "training_batch", stopping)
        train.run(config(steps=2), tmp_path / "run")
    assert len(steps(tmp_path / "run")) < 2 and not (tmp_path / "run/summary.json").exists()
    train.run(config(steps=2), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(runs("s_grpo").folder)


def test_plain_peft_gives_the_trained_policy_unmerged_and_merged(runs, policy):
    run = runs("s_grpo")
    ids = torch.tensor([chat(policy, QUESTIONS[0])])
    plain = AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name)
    with torch.no_grad():
        expected = run.policy.model(ids).logits.log_softmax(-1)
        untrained = plain(ids).logits.log_softmax(-1)
        loaded = PeftModel.from_pretrained(plain, run.folder / "adapter").eval()
        unmerged = loaded(ids).logits.log_softmax(-1)
        merged = loaded.merge_and_unload()(ids).logits.log_softmax(-1)
    assert (expected - untrained).abs().max() > 1e-3, "an adapter that changes nothing would pass for any other"
    torch.testing.assert_close(unmerged, expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(merged, expected, rtol=0, atol=2e-3)
    card = (run.folder / "adapter/README.md").read_text()
    assert fetch.SHA256 in card and f"gguf_file={fetch.NAME!r}" in card


def test_the_command_line_on_the_file_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(load_module, "load_base", load_base)  # reads the file, no copy
    words = ["run", "--profile", "smoke", "--task", "multiplication", "--method", "base", "--seed", "0"]
    words += ["--out", str(tmp_path / "run")]
    settings = {"model": FILE, "prompt_template": "chat", "max_new_tokens": 8, "eval_items": 1, "test_items": 1}
    assert main(words + [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "done"

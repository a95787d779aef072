"""What only a GPU can show, run by `make test-gpu`. With TEST_DEVICE=cpu the same tests go through the CPU in float32.

The model is a random Qwen2 of four layers: nothing is downloaded. float32 adds up in another order; bfloat16 has 8 bits of
mantissa and float16 11, so that log-probs differ by up to tenths between two kernels.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_runs import TRAINED, make_base, noisy_rewards, steps, tiny_config
from transformers import AutoModelForCausalLM

from replication import signals, train
from replication.algorithms import every_token
from replication.checks import require_sampled_equals_scored
from replication.config import ExperimentConfig
from replication.errors import Stopped
from replication.evaluate import evaluate
from replication.groups import sample_groups
from replication.models import load_policy
from replication.scoring import token_log_probs
from replication.sweep import warm_up

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
DTYPES = ["float32"] if DEVICE == "cpu" else ["float32", "bfloat16", "float16"]
#: Nats by which the log-prob of a token may differ: mean, and largest.
TOLERANCE = {"float32": (1e-4, 1e-3), "bfloat16": (0.1, 1.0), "float16": (0.02, 0.2)}

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Without a GPU nothing was tested: every test was skipped, and the status was that of success."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.exit("torch sees no GPU (docs/your-gpu.md: which torch a GPU needs); TEST_DEVICE=cpu runs the same on a CPU", 2)


@pytest.fixture(autouse=True)
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy_rewards(monkeypatch)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "initializer_range": 0.1}
    return make_base(tmp_path_factory.mktemp("gpu") / "model", **shape)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def config_of(base: Path, kind: str, dtype: str, **changes) -> ExperimentConfig:
    return tiny_config(base, kind, device=DEVICE, dtype=dtype, **({"max_new_tokens": 24} | changes))


def near(found: torch.Tensor, expected: torch.Tensor, dtype: str) -> None:
    gap = (found.detach().double().cpu() - expected.detach().double().cpu()).abs()
    mean, most = TOLERANCE[dtype]
    assert gap.mean() <= mean and gap.max() <= most, f"mean {gap.mean():.2g}, largest {gap.max():.2g} nats"


def sampled(base: Path, dtype: str, **changes):
    config = config_of(base, "grpo", dtype, **changes)
    policy, task = load_policy(config), config.load_task()
    with torch.no_grad():  # an adapter that changes the policy: the half that starts at zero would hide it
        for name, parameter in policy.trainable.items():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.05, 0.05, parameter.numel()).reshape(parameter.shape))
    return config, policy, sample_groups(policy, config, task, task.train[:3], 0)


def test_packed_dense_and_transformers_give_the_log_probs_that_were_sampled(base, dtype):
    _, policy, groups = sampled(base, dtype)
    completions = [group.completions for group in groups]
    credits = [every_token(group) for group in completions]
    prompts = [group.prompt for group in groups]
    plain = []
    with torch.no_grad():
        for group in groups:
            for tokens in group.completions:
                ids = torch.tensor([[*group.prompt, *tokens]], device=policy.model.device)
                logits = policy.model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1].float()
                plain.append(logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)])
    expected = torch.cat(plain)
    for strategy in ("packed", "dense"):
        found = token_log_probs(policy.model, prompts, completions, credits, strategy=strategy)
        assert found.dtype == torch.float32
        near(found, expected, dtype)
    near(torch.tensor([value for group in groups for sample in group.samples for value in sample.log_probs]), expected, dtype)


def test_compiled_sampling_draws_from_what_is_scored(base, dtype):
    """Of the second batch too, which finds the first one's cache and CUDA graph, and after the adapter has moved.

    Where torch cannot record a graph it goes on without one and only counts it.
    """
    torch._dynamo.utils.counters.clear()
    config, policy, groups = sampled(base, dtype, compile_sampling=True)
    if dtype == "float32":  # in 16 bits the sums of two kernels part after a few tokens
        _, _, eager = sampled(base, dtype)
        assert [group.completions for group in groups] == [group.completions for group in eager]
    require_sampled_equals_scored(policy, config, groups)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.mul_(-1.5)
    task = config.load_task()
    require_sampled_equals_scored(policy, config, sample_groups(policy, config, task, task.train[3:6], 1))
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == 1 and not counted["graph_break"]
    if DEVICE == "cuda":
        assert counted["inductor"]["cudagraph_skips"] == 0 < counted["inductor"]["cudagraph_recorded_non_static_inputs"]


def test_the_gradients_of_packed_and_dense_point_the_same_way(base, dtype):
    config, policy, groups = sampled(base, dtype)
    credits = [config.build_method().assign(group.completions, group.rewards) for group in groups]
    assert sum(map(len, credits)) > 0
    found = {}
    for strategy in ("packed", "dense"):
        state = train.TrainingState(policy, config.learning_rate)
        state.optimizer.zero_grad()
        train.backward(config.model_copy(update={"scoring": strategy}), policy, groups, credits, state.scaler.scale)
        state.scaler.unscale_(state.optimizer)
        found[strategy] = torch.cat([parameter.grad.flatten().cpu() for parameter in policy.trainable.values()])
    cosine = torch.nn.functional.cosine_similarity(found["packed"], found["dense"], dim=0)
    assert cosine > (0.9999 if dtype == "float32" else 0.95)


def test_a_bound_on_memory_changes_the_gradient_by_rounding_alone(base, dtype):
    found = []
    for changes in ({}, {"token_budget": 128}, {"activation_checkpointing": True}):
        _, _, groups = sampled(base, dtype)
        config = config_of(base, "grpo", dtype, **changes)
        policy = load_policy(config)
        credits = [config.build_method().assign(group.completions, group.rewards) for group in groups]
        train.backward(config, policy, groups, credits)
        found.append(torch.cat([parameter.grad.flatten().cpu() for parameter in policy.trainable.values()]))
    for other in found[1:]:
        assert torch.nn.functional.cosine_similarity(found[0], other, dim=0) > (0.9999 if dtype == "float32" else 0.95)


def test_greedy_decoding_is_that_of_transformers(base):
    """In float32: in 16 bits two tokens often tie."""
    config = config_of(base, "base", "float32")
    policy, task = load_policy(config), config.load_task()
    results = evaluate(policy, config, task, task.test[:6])
    for result in results:
        ids = torch.tensor([result.prompt], device=policy.model.device)
        how = {"max_new_tokens": config.max_new_tokens, "do_sample": False, "eos_token_id": list(policy.eos_token_ids)}
        whole = policy.model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=policy.pad_token_id, **how)
        assert whole[0, len(result.prompt) :].tolist() == result.sample.tokens


@pytest.mark.parametrize("kind", TRAINED)
def test_every_method_trains_and_writes_its_adapter(base, kind, dtype, tmp_path):
    if dtype == "float16" and kind == "full":
        pytest.skip("full fine-tuning in float16 is refused")
    assert train.run(config_of(base, kind, dtype), tmp_path / "run").status == "done"
    rows = steps(tmp_path / "run")
    assert len(rows) == 4 and any(row["grad_norm"] for row in rows)
    if DEVICE == "cuda":
        times = [json.loads(line) for line in (tmp_path / "run/timings.jsonl").read_text().splitlines()]
        assert all(row["peak_gpu_bytes"] > 0 for row in times if "step_s" in row)


def test_plain_peft_reads_the_adapter(base, dtype, tmp_path, monkeypatch):
    policies = []
    monkeypatch.setattr(train, "load_policy", lambda config: policies.append(load_policy(config)) or policies[0])
    train.run(config_of(base, "grpo", dtype), tmp_path / "run")
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(DEVICE)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "run/adapter").eval()
    with torch.no_grad():
        found, expected = (model(ids.to(DEVICE)).logits.float().log_softmax(-1) for model in (loaded, policies[0].model))
    near(found, expected, dtype)


def test_a_stopped_run_goes_on_and_ends(base, dtype, tmp_path, monkeypatch):
    """That it ends with the same bytes is promised on a CPU alone: a GPU may add up in another order."""
    config, batch = config_of(base, "s_grpo", dtype), train.training_batch

    def stopping(config, task, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(config, task, step)

    with monkeypatch.context() as patch, signals.handled(), pytest.raises(Stopped):
        patch.setattr(train, "training_batch", stopping)
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run/summary.json").exists()
    assert train.run(config, tmp_path / "run").status == "done"
    assert [row["step"] for row in steps(tmp_path / "run")] == [1, 2, 3, 4]


def test_no_step_of_a_run_holds_more_than_what_was_measured_before(base, dtype, tmp_path):
    """The measured steps have the longest answers, all of them credited."""
    config = config_of(base, "grpo", dtype)
    measured: list[dict] = []
    warm_up._steps(config, lambda kind, value=None: measured.append(value) if kind == "step" else None)
    assert len(measured) == warm_up.STEPS and all(step["seconds"] > 0 for step in measured)
    train.run(config, tmp_path / "run")
    name = "peak_gpu_bytes" if DEVICE == "cuda" else "peak_rss_bytes"
    rows = [json.loads(line) for line in (tmp_path / "run/timings.jsonl").read_text().splitlines()]
    held = max(row[name] for row in rows if "step_s" in row)
    # The allocator of a process that did other work before has fragments left.
    assert held <= 1.1 * max(step["peak_bytes"] for step in measured)

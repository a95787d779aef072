"""The dtype of the frozen weights: chosen by what the device computes fast, said once, and safe in 16 bits."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import noisy_rewards, outcome, steps, tiny_config

from replication import signals, train
from replication.algorithms import every_token
from replication.errors import Stopped, UserError
from replication.groups import sample_groups
from replication.models import load, load_policy
from replication.models.load import resolve_dtype
from replication.scoring import token_log_probs

SIXTEEN = ["bfloat16", "float16"]


@pytest.fixture(autouse=True)
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy_rewards(monkeypatch)


@pytest.mark.parametrize(
    ("native", "capability", "chosen"),
    [
        (True, (9, 0), torch.bfloat16),
        (True, (8, 0), torch.bfloat16),
        (False, (7, 5), torch.float16),  # T4
        (False, (7, 0), torch.float16),  # V100
        (False, (6, 1), torch.float32),  # GTX 1080: 1/64 of its speed in float16
    ],
)
def test_auto_takes_what_the_gpu_computes_fast_and_says_which(monkeypatch, capsys, native, capability, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_dtype("auto", torch.device("cuda")) == chosen
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(chosen).removeprefix("torch.") in line
    for name in ("float32", *SIXTEEN):
        assert resolve_dtype(name, torch.device("cuda")) == getattr(torch, name)
    assert not capsys.readouterr().err


def test_auto_on_a_cpu_is_float32_to_the_byte(random_base, tmp_path):
    train.run(tiny_config(random_base, dtype="auto"), tmp_path / "auto")
    train.run(tiny_config(random_base), tmp_path / "plain")
    auto, plain = outcome(tmp_path / "auto"), outcome(tmp_path / "plain")
    assert auto.pop("summary.json") != plain.pop("summary.json")  # another config has another run id
    assert auto == plain
    assert json.loads((tmp_path / "auto/manifest.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_run_in_16_bits_keeps_adapter_and_log_probs_in_float32(random_base, tmp_path, dtype):
    config = tiny_config(random_base, dtype=dtype)
    assert train.run(config, tmp_path / "run").status == "done"
    assert all(row["grad_norm"] > 0 and row["overflow"] == row["skipped"] == 0 for row in steps(tmp_path / "run"))
    assert {value.dtype for value in load_file(tmp_path / "run/adapter/adapter_model.safetensors").values()} == {torch.float32}
    policy, task = load_policy(config), config.load_task()
    groups = sample_groups(policy, config, task, task.train[:2], 0)
    completions = [group.completions for group in groups]
    for strategy in ("packed", "dense"):
        credits = [every_token(group) for group in completions]
        found = token_log_probs(policy.model, [group.prompt for group in groups], completions, credits, strategy=strategy)
        assert found.dtype == torch.float32


def test_the_gradient_in_float16_is_near_that_in_float32(random_base):
    """The gradients of single tokens are below its least number, unless the loss is scaled up before."""

    def gradient(dtype: str) -> torch.Tensor:
        config = tiny_config(random_base, dtype=dtype)
        state = train.TrainingState(load_policy(config), config.learning_rate)
        with torch.no_grad():
            for name, parameter in state.trained.trainable.items():
                if "lora_B" in name:
                    parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).reshape(parameter.shape))
        # The loss of so small a part of a batch is that of one token among thousands.
        train.backward(config, state.trained, groups, credits, lambda loss: state.scaler.scale(loss * 1e-4))
        state.scaler.unscale_(state.optimizer)
        return torch.cat([parameter.grad.flatten() for parameter in state.trained.trainable.values()])

    config = tiny_config(random_base)
    task, method = config.load_task(), config.build_method()
    groups = sample_groups(load_policy(config), config, task, task.train[:3], 0)
    credits = [method.assign(group.completions, group.rewards) for group in groups]
    expected, found = gradient("float32"), gradient("float16")
    assert expected.norm() > 0 and (found - expected).norm() < 0.1 * expected.norm()


def poisoned_at(monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """The loss of one step gets a gradient that is not finite."""
    surrogate, batch, now = train.surrogate_loss, train.training_batch, []

    def loss(*args, **kwargs):
        value, diagnostics = surrogate(*args, **kwargs)
        return (value + torch.sqrt(value * 0) if now[-1] == when else value), diagnostics

    monkeypatch.setattr(train, "surrogate_loss", loss)
    monkeypatch.setattr(train, "training_batch", lambda config, task, step: now.append(step) or batch(config, task, step))


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_step_whose_gradient_is_not_finite_is_skipped_and_logged(random_base, tmp_path, monkeypatch, capsys, dtype):
    config = tiny_config(random_base, dtype=dtype, steps=4)
    with monkeypatch.context() as patch:
        poisoned_at(patch, 2)
        summary = train.run(config, tmp_path / "run")
    assert summary.status == "done" and summary.skipped_steps == 1
    assert [(row["overflow"], row["skipped"], row["grad_norm"] is None) for row in steps(tmp_path / "run")] == [
        (0, 0, False), (0, 0, False), (1, 1, True), (0, 0, False),
    ]  # fmt: skip
    assert f"step 3 is skipped: its gradient is not finite in {dtype}" in capsys.readouterr().err
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "run/adapter/adapter_model.safetensors").values())


def test_the_scale_of_the_loss_belongs_to_the_checkpoint(random_base, tmp_path, monkeypatch):
    """It is halved by a step that overflows; a resumed run that began at the first scale again would give other bits."""
    config = tiny_config(random_base, dtype="float16", steps=4, checkpoint_every=100)
    scales = []
    scale = torch.amp.GradScaler.scale
    monkeypatch.setattr(torch.amp.GradScaler, "scale", lambda self, loss: scales.append(self.get_scale()) or scale(self, loss))
    poisoned_at(monkeypatch, 1)
    train.run(config, tmp_path / "whole")
    whole, scales[:] = sorted(set(scales), reverse=True), []
    assert len(whole) == 2 and whole[0] == 2 * whole[1]
    batch = train.training_batch

    def stopping(config, task, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(config, task, step)

    with monkeypatch.context() as patch, signals.handled(), pytest.raises(Stopped):
        patch.setattr(train, "training_batch", stopping)
        train.run(config, tmp_path / "run")
    scales.clear()
    train.run(config, tmp_path / "run")
    assert set(scales) == {whole[1]} and outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_full_fine_tuning_in_float16_is_refused(random_base):
    with pytest.raises(UserError, match="lora_rank=0 .* set dtype=float32 or bfloat16"):
        load_policy(tiny_config(random_base, "full", dtype="float16"))


def test_a_run_is_not_resumed_in_another_dtype(random_base, tmp_path, monkeypatch):
    """With dtype=auto the other half of a run would be computed in what another machine prefers."""
    config = tiny_config(random_base, dtype="auto")
    batch = train.training_batch

    def stopping(config, task, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return batch(config, task, step)

    with monkeypatch.context() as patch, signals.handled(), pytest.raises(Stopped):
        patch.setattr(train, "training_batch", stopping)
        train.run(config, tmp_path / "run")
    monkeypatch.setattr(load, "resolve_dtype", lambda name, device: torch.bfloat16)
    with pytest.raises(UserError, match="started in float32, and dtype=auto is bfloat16 here"):
        train.run(config, tmp_path / "run")

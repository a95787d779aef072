"""Whole runs on a device other than the host's, where every tensor that was left behind is an error."""

from __future__ import annotations

import signal

import pytest
import torch
from peft.tuners.lora import LoraLayer
from second_device import second_device
from tiny_runs import noisy_rewards, steps, tiny_config

from replication import train
from replication.errors import Stopped
from replication.groups import sample_groups
from replication.models import load

#: Between them every part of a run: each way to score and sample, scaled losses, the critic, replays, full fine-tuning.
CASES = {
    "grpo": {"compile_sampling": True, "activation_checkpointing": True, "dtype": "bfloat16"},
    "t_spmo_replay": {"beta": 0.1, "l2": 0.01},
    "ppo": {"scoring": "dense", "dtype": "float16"},
    "full": {"l2": 0.1},
}


def moved_by_peft(layer: LoraLayer, adapter: str, device: torch.device | None = None) -> None:
    """As PEFT does it on every device but the one whose name is borrowed here."""
    for part in (layer.lora_A, layer.lora_B):
        part[adapter].to(layer.get_base_layer().weight.device)


@pytest.mark.parametrize("kind", CASES)
def test_no_tensor_of_a_run_is_left_on_the_host(kind, random_base, tmp_path, monkeypatch):
    """From the first validation to the adapter's files, with a stop after the first step and a resume."""
    noisy_rewards(monkeypatch)
    monkeypatch.setattr(LoraLayer, "_move_adapter_to_device_of_base_layer", moved_by_peft)
    small = {"steps": 2, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 5, "eval_items": 2, "test_items": 2}
    config = tiny_config(random_base, kind, **small, **{"dtype": "float32"} | CASES[kind])

    def stopped(policy, config, task, problems, step):
        if step == 1:
            raise Stopped(signal.SIGTERM)
        return sample_groups(policy, config, task, problems, step)

    with second_device() as device, torch.compiler.set_stance("force_eager"):
        monkeypatch.setattr(load, "resolve_device", lambda name: device)
        with monkeypatch.context() as first, pytest.raises(Stopped):
            first.setattr(train, "sample_groups", stopped)
            train.run(config, tmp_path / "run")
        assert train.run(config, tmp_path / "run").status == "done"
    assert [row["step"] for row in steps(tmp_path / "run") if row["grad_norm"] > 0] == [1, 2]

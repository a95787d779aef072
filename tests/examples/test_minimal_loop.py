"""The example is the training loop of the package without what a long run needs: both give the same numbers."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tiny_runs import noisy_rewards, steps, tiny_config

from replication import train
from replication.models import load_policy
from replication.names import ROOT

SPEC = importlib.util.spec_from_file_location("minimal_loop", ROOT / "examples" / "minimal_loop.py")
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)


@pytest.mark.parametrize("kind", ["grpo", "s_grpo", "t_spmo"])
def test_the_example_takes_the_steps_of_a_run(random_base, tmp_path, monkeypatch, kind):
    noisy_rewards(monkeypatch)
    config = tiny_config(random_base, kind, warmup_steps=0)
    train.run(config, tmp_path / "run")
    policy = load_policy(config)
    rows = list(example.train(policy, config, config.steps))
    recorded = steps(tmp_path / "run")
    assert [row["reward"] for row in rows] == [row["reward"] for row in recorded]
    for name, key in (("loss", "loss"), ("grad_norm", "grad_norm"), ("credited", "kept_share_all")):
        assert [row[name] for row in rows] == pytest.approx([row[key] for row in recorded], abs=1e-6)

    from safetensors.torch import load_file

    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    own = {name.replace(".default", ""): value.detach() for name, value in policy.trainable.items()}
    assert adapter.keys() == own.keys() and any(value.any() for name, value in own.items() if "lora_B" in name)
    assert all(torch.allclose(adapter[name], own[name], atol=1e-6) for name in own)


def test_the_command_prints_the_accuracy_before_and_after_and_a_line_for_each_step(capsys):
    example.main(["--profile", "smoke", "--method", "t_spmo", "--steps", "2"])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["before", "step 1", "step 2", "after"]
    assert "of 8 validation problems" in printed[0] and "credited" in printed[1]

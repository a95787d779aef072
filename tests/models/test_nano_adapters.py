"""The committed adapters of the nano lab: plain PEFT loads them, and with them the base answers better."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel

from replication.config import load_profile, run_command
from replication.evaluate import evaluate
from replication.models import load_policy
from replication.names import DATA, ROOT

ADAPTERS = DATA / "nano-adapters"
METHODS = ("s_grpo", "t_spmo")


@pytest.fixture(scope="module")
def before() -> list[tuple[str, bool]]:
    return answers()


def answers(adapter: Path | None = None) -> list[tuple[str, bool]]:
    """Greedy answers to 64 validation problems: the text and whether it is right."""
    config = load_profile("nano", task="word_problems", method="base")
    policy, task = load_policy(config), config.load_task()
    if adapter is not None:
        policy = replace(policy, model=PeftModel.from_pretrained(policy.model, adapter).eval())
    return [(result.text, bool(result.correct)) for result in evaluate(policy, config, task, task.validation[:64])]


@pytest.mark.parametrize("method", METHODS)
def test_with_its_adapter_the_base_answers_otherwise_and_better(method, before):
    after = answers(ADAPTERS / method)
    assert any(old != new for (old, _), (new, _) in zip(before, after, strict=True))
    assert sum(right for _, right in after) > sum(right for _, right in before)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_that_of_the_run_on_its_card(method):
    folder = ADAPTERS / method
    assert {path.name for path in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    config = load_profile("nano", task="word_problems", method=method, seed=0)
    adapter = json.loads((folder / "adapter_config.json").read_text())
    base = ROOT / adapter["base_model_name_or_path"]
    assert (base / "model.safetensors").exists() and adapter["base_model_name_or_path"] == "data/nano-base"
    assert (adapter["r"], adapter["lora_alpha"], set(adapter["target_modules"])) == (
        config.lora_rank, config.lora_alpha, set(config.lora_targets)
    )  # fmt: skip
    card = (folder / "README.md").read_text()
    assert config.run_id in card and run_command(config, f"results/local/nano/{method}") in card


@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_are_those_that_the_data_page_names(method):
    page = (DATA / "README.md").read_text()
    (noted,) = re.findall(rf"`{method}/adapter_model.safetensors` sha256 `([0-9a-f]{{64}})`", page)
    data = (ADAPTERS / method / "adapter_model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == noted and len(data) < 100_000

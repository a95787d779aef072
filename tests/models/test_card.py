"""A trained adapter as others get it: plain PEFT loads it, it does what the trained policy did, and its card says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from tiny_runs import noisy_rewards, tiny_config
from transformers import AutoModelForCausalLM

from replication import train
from replication.config import load_profile
from replication.models.card import base_name, model_card
from replication.models.load import Policy, load_policy

TOKENS = torch.arange(4, 24).reshape(2, 10)


def log_probs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(TOKENS).logits.float(), -1)


@pytest.fixture(scope="module")
def trained(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Policy]:
    """A run's folder, and the policy in memory that it was trained with."""
    policies = []
    folder = tmp_path_factory.mktemp("card") / "run"
    with pytest.MonkeyPatch.context() as patch:
        noisy_rewards(patch)
        patch.setattr(train, "load_policy", lambda config: policies.append(load_policy(config)) or policies[0])
        train.run(tiny_config(random_base, "s_grpo", lora_layers=(1,), lora_targets=("q_proj", "down_proj")), folder)
    return folder, policies[0]


def test_plain_peft_gives_the_log_probs_of_the_policy_that_was_trained(trained, random_base):
    folder, policy = trained
    expected = log_probs(policy.model)
    base = AutoModelForCausalLM.from_pretrained(random_base)
    untrained = log_probs(base)
    assert (expected - untrained).abs().max() > 1e-2, "an adapter that changes nothing would pass for any other"
    loaded = PeftModel.from_pretrained(base, folder / "adapter").eval()
    torch.testing.assert_close(log_probs(loaded), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_probs(loaded.merge_and_unload()), expected, rtol=0, atol=1e-4)  # one sum in float32 more


def test_the_adapter_names_its_base(trained, random_base):
    folder, policy = trained
    assert json.loads((folder / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(random_base)
    found = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
    torch.testing.assert_close(log_probs(found), log_probs(policy.model), rtol=0, atol=1e-6)
    assert base_name(load_profile("nano", task="word_problems", method="grpo")) == "data/nano-base"


def test_the_card_has_the_facts_of_manifest_and_summary(trained, random_base):
    folder, _ = trained
    _, header, text = (folder / "adapter/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == str(random_base) and yaml.safe_load(header)["library_name"] == "peft"
    manifest = json.loads((folder / "manifest.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    for fact in ("base_sha256", "task_version", "run_id", "commit", "command"):
        assert str(manifest[fact]) in text
    assert f"| optimizer steps | {summary['steps_done']} of 4 |" in text
    assert f"| test accuracy (greedy) | {summary['accuracy']:.3f} on {summary['n_items']} items |" in text
    assert "None" not in text and "commit of the base" not in text, "what is not known is left out"


def test_the_card_of_a_hub_model_has_its_commit_and_revision():
    config = load_profile("paper", task="multiplication", method="t_spmo", model="some/model", revision="v1", lora_rank=0)
    text = model_card(config, {"model_commit": "abc123", "base_sha256": "some/model@v1"}, {"accuracy": None, "steps_done": 2})
    assert "| commit of the base | abc123 |" in text and "| revision asked for | v1 |" in text
    assert "library_name: transformers" in text and "accuracy" not in text and "sha256" not in text


def test_the_card_says_under_which_condition_the_task_was_trained():
    words = load_profile("nano", task="word_problems", method="grpo", asides="before")
    products = load_profile("nano", task="multiplication", method="grpo", digits=3)
    assert "| asides | before |" in model_card(words, {}, {}) and "digits" not in model_card(words, {}, {})
    assert "| digits | 3 |" in model_card(products, {}, {}) and "asides" not in model_card(products, {}, {})

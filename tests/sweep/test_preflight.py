"""What a plan needs: one message names everything missing before anything long starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_config

from replication.config import ExperimentConfig, load_profile
from replication.errors import UserError
from replication.names import ROOT
from replication.sweep import check_needs, preflight


def paper(model: str, **changes):
    return load_profile("paper", task="multiplication", method="grpo", model=model, **changes)


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("target", ["small", "paper"])
def test_with_nothing_at_hand_make_ends_with_one_message_that_names_everything(target, tmp_path):
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PROFILE", "OUT", "VENV", "MODEL", "SVAMP")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment |= {"HF_HOME": str(tmp_path / "no-cache"), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "venv/.installed").touch()  # newer than pyproject.toml, so that nothing is installed
    words = ["make", target, f"VENV={tmp_path / 'venv'}", f"OUT={tmp_path / 'out'}"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not (tmp_path / "out/runs").exists()
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    for part in ("SVAMP data", "SVAMP=", "model weights and tokenizer", "MODEL=", "GPU: torch sees none"):
        assert part in line


def test_a_plan_on_the_shipped_base_asks_for_nothing(monkeypatch):
    monkeypatch.setattr(preflight, "_files_of", lambda *_: pytest.fail("looked"))
    check_needs([load_profile("nano", task="word_problems", method="grpo")])


def test_a_finished_run_needs_nothing(random_base, tmp_path, no_gpu):
    config = tiny_config(random_base, device="cuda")
    folder = tmp_path / config.run_id
    folder.mkdir()
    with pytest.raises(UserError, match="GPU"):
        check_needs([config], tmp_path)
    (folder / "summary.json").write_text(f'{{"run_id": "{config.run_id}", "status": "done"}}')
    check_needs([config], tmp_path)


def test_a_model_that_no_claim_counts_is_told_before_and_not_refused(random_base):
    told = preflight.uncounted_claims([paper("Qwen/Qwen2-1.5B"), paper("/data/weights")])
    assert "/data/weights" in told and "C1 to " in told
    assert preflight.uncounted_claims([paper("Qwen/Qwen2-1.5B")]) is None
    assert preflight.uncounted_claims([load_profile("nano", task="word_problems", method="grpo")]) is None
    assert "N1 to " in preflight.uncounted_claims([load_profile("nano", task="word_problems", method="grpo", model="/data/other")])
    small = load_profile("small", method="grpo")
    assert preflight.uncounted_claims([small]) is None
    assert "S1 to S7" in preflight.uncounted_claims([small.model_copy(update={"model": "/data/other"})])
    assert preflight.uncounted_claims([load_profile("smoke", model="/data/other")]) is None  # no claim is of that scale
    check_needs([paper(str(random_base), device="cpu")])


def test_device_decides_and_not_the_profile(random_base, no_gpu):
    with pytest.raises(UserError, match="GPU: torch sees none"):
        check_needs([tiny_config(random_base, device="cuda")])
    check_needs([tiny_config(random_base, device="auto")])  # small enough for a CPU
    check_needs([paper(str(random_base), device="cpu")])


def test_a_gpu_that_this_torch_cannot_use_is_told_apart_from_none(random_base, no_gpu, monkeypatch):
    """With a driver too old for the build of torch it said that there was no GPU."""
    monkeypatch.setattr(preflight.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(UserError, match=r"GPU: this torch \(.*\) sees none, although nvidia-smi is here"):
        check_needs([tiny_config(random_base, device="cuda")])


def test_the_gpu_of_this_machine_decides_nothing_for_a_cluster(random_base, no_gpu):
    """A sweep started on a head node without a GPU was once refused, whatever the cluster's nodes had."""
    config = tiny_config(random_base, device="cuda")
    check_needs([config], here=False)
    with pytest.raises(UserError, match="there is no folder"):  # data and model are the same everywhere
        check_needs([config.model_copy(update={"model": "/none"})], here=False)


def test_a_model_that_is_not_there_is_asked_for_once(monkeypatch):
    """A plan of twelve runs asked the Hub twelve times, each with its own timeout."""
    asked = []

    def missing(self):
        asked.append(self)
        raise UserError("no tokenizer")

    monkeypatch.setattr(ExperimentConfig, "run_id", property(missing))
    configs = [load_profile("small", method="grpo", seed=seed) for seed in range(12)]
    assert preflight.unfinished(configs, Path("runs")) == configs and len(asked) == 1


def test_a_folder_says_what_it_lacks(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config = tiny_config("x").model_copy(update={"model": str(tmp_path)})
    with pytest.raises(UserError, match=r"no \*\.safetensors weights and no tokenizer"):
        check_needs([config])
    with pytest.raises(UserError, match="there is no folder"):
        check_needs([config.model_copy(update={"model": str(tmp_path / "none")})])


def test_problems_too_few_for_a_step_are_told_before_anything_starts(tmp_path):
    """A sweep on three problems trained 2 of 20 runs and told of the others one by one."""
    rows = [{"prompt": f"{split}?", "answer": 1, "split": split} for split in ("train", "validation", "test")]
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = [load_profile("smoke", task="jsonl", method=method, data=str(path)) for method in ("base", "grpo", "t_spmo")]
    check_needs(configs[:1])
    with pytest.raises(UserError, match=r"\(1\) prompts_per_step=\d, but the training split of jsonl holds 1: .* at most 1$"):
        check_needs(configs)

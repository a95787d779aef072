"""What is looked at before anything long: one message names everything missing, and memory is predicted from shapes alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from tiny_runs import tiny_config

from replication import forecast
from replication.config import load_profile
from replication.errors import UserError
from replication.sweep import preflight

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30


@pytest.fixture(scope="module")
def qwen2_shape() -> str:
    """The sizes of Qwen2-1.5B without its weights: enough to predict with."""
    return str(ROOT / "data" / "qwen2-1.5b-shape")


def paper(model: str, **changes):
    return load_profile("paper", task="multiplication", method="grpo", model=model, **changes)


def test_with_nothing_at_hand_one_message_names_everything_within_seconds(tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "no-cache"), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    words = ["-m", "replication", "sweep", "--profile", "paper", "--out", str(tmp_path / "out")]
    started = time.monotonic()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert time.monotonic() - started < 30
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out/runs").exists()
    (line,) = done.stderr.splitlines()
    for part in ("SVAMP data", "SVAMP=", "model weights and tokenizer", "MODEL=", "GPU: torch sees none"):
        assert part in line


def test_a_plan_on_the_shipped_base_asks_for_nothing(monkeypatch):
    monkeypatch.setattr(preflight, "_model_problem", lambda config: pytest.fail("looked"))
    preflight.require([load_profile("nano", task="word_problems", method="grpo")])


def test_a_model_that_no_claim_counts_is_told_before_and_not_refused(random_base):
    uncounted = preflight.announce_uncounted
    expected = "MODEL=/data/weights is not named Qwen2-1.5B: claims C1 to C9 will stay not run"
    assert uncounted([paper("Qwen/Qwen2-1.5B"), paper("/data/weights")]) == expected
    assert uncounted([paper("Qwen/Qwen2-1.5B"), paper("/data/Qwen2-1.5B")]) is None
    assert uncounted([load_profile("nano", task="word_problems", method="grpo")]) is None
    other = load_profile("nano", task="word_problems", method="grpo", model="/data/other")
    assert uncounted([other]) == "MODEL=/data/other is not named nano: claims N1 to N9m will stay not run"
    assert uncounted([load_profile("smoke", model="/data/other")]) is None  # no claim is of that scale
    preflight.require([paper(str(random_base), device="cpu")])


def test_device_decides_and_not_the_profile(random_base, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="GPU: torch sees none"):
        preflight.require([tiny_config(random_base, device="cuda")])
    preflight.require([tiny_config(random_base, device="auto")])  # small enough for a CPU
    preflight.require([load_profile("paper", task="multiplication", method="grpo", model=str(random_base), device="cpu")])


def test_the_gpu_of_this_machine_decides_nothing_for_a_cluster(random_base, monkeypatch):
    """A sweep started on a head node without a GPU was once refused, whatever the cluster's nodes had."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny_config(random_base, device="cuda")
    preflight.require([config], here=False)
    assert preflight.gpu_problem([config], "the cluster has none").startswith("GPU: the cluster has none, and device=cuda was")
    with pytest.raises(UserError, match="there is no folder"):  # data and model are the same everywhere
        preflight.require([config.model_copy(update={"model": "/none"})], here=False)


def test_what_a_gpu_has_and_not_what_is_free_on_it_is_compared(qwen2_shape, monkeypatch):
    """A second sweep on a GPU that the first was training on was once refused as too large."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIB, 24 * GIB))
    for total, fits in ((24 * GIB, True), (8 * GIB, False)):
        has = types.SimpleNamespace(total_memory=total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number, has=has: has)
        assert (preflight._memory_problems([paper(qwen2_shape)]) == []) == fits


def test_a_folder_says_what_it_lacks(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config = tiny_config("x").model_copy(update={"model": str(tmp_path)})
    with pytest.raises(UserError, match=r"no \*\.safetensors weights and no tokenizer"):
        preflight.require([config])
    with pytest.raises(UserError, match="there is no folder"):
        preflight.require([config.model_copy(update={"model": str(tmp_path / "none")})])


def test_the_paper_profile_is_predicted_to_fit_24_gb(qwen2_shape):
    peak = forecast.predicted_peak(paper(qwen2_shape))
    assert 2.8 * GIB < peak.resident < 3.2 * GIB  # 1.54 billion weights in bfloat16, and the adapter's state
    assert peak.total < 20 * GIB
    assert preflight.memory_problem(paper(qwen2_shape), 24 * GIB) is None


def test_what_does_not_fit_names_settings_that_do(qwen2_shape):
    config = paper(qwen2_shape, scoring_tokens=16384)
    problem = preflight.memory_problem(config, 16 * GIB)
    assert "SET='scoring_tokens=4096'" in problem
    assert preflight.memory_problem(config.model_copy(update={"scoring_tokens": 4096}), 16 * GIB) is None
    assert "activation_checkpointing=true" in preflight.memory_problem(paper(qwen2_shape, max_new_tokens=1000), 16 * GIB)
    assert "no setting makes it fit" in preflight.memory_problem(config, 2 * GIB)


def test_hours_are_steps_and_evaluated_items():
    config = load_profile("paper", task="multiplication", method="grpo", steps=100, eval_every=50, eval_items=10, test_items=20)
    hours = forecast.predicted_hours([config], {"multiplication": (36.0, 3.6)})
    assert hours == pytest.approx((100 * 36.0 + (2 * 3 * 10 + 2 * 20 + 2 * 10) * 3.6) / 3600)


def test_warm_up_steps_run_without_a_shell(monkeypatch, tmp_path):
    """A folder's name may hold blanks, quotes and what a shell would run."""
    strange = tmp_path / "a 'model' $(touch hacked); x"
    seen = []

    def timed(words, **options):
        assert not options.get("shell")
        seen.extend(words)
        run = Path(words[words.index("--out") + 1])
        run.mkdir()
        rows = [{"step": 0, "evaluation_s": 8.0}, *({"step": step, "step_s": 9.0 / step} for step in (1, 2, 3))]
        (run / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(forecast.subprocess, "run", timed)
    config = tiny_config("base").model_copy(update={"model": str(strange)})
    assert forecast.timed_steps(config) == (pytest.approx((4.5 + 3.0) / 2), pytest.approx(8.0 / 8))
    assert seen[:4] == [sys.executable, "-m", "replication", "run"] and f"model={json.dumps(str(strange))}" in seen


def test_warm_up_steps_that_fail_say_why(tmp_path):
    config = tiny_config("base").model_copy(update={"model": str(tmp_path / "no model")})
    with pytest.raises(UserError, match="timed warm-up steps failed: error: .*no model"):
        forecast.timed_steps(config)


@pytest.mark.slow
def test_warm_up_steps_are_timed(random_base):
    step_s, item_s = forecast.timed_steps(tiny_config(random_base))
    assert 0 < item_s < step_s < 60

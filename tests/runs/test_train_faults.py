"""Runs that are stopped, killed or diverge: what was saved is enough to go on byte for byte, and nothing ends in silence."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import TRAINED, make_base, noisy_rewards, outcome, steps, tiny_config

from replication import evaluate, groups, signals, train
from replication.errors import Stopped, UserError
from replication.groups import training_batch
from replication.models import load
from replication.runs import check_files
from replication.train import run


@pytest.fixture(autouse=True)
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy_rewards(monkeypatch)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act) -> None:
    """Call ``act`` once, when the loop begins ``step`` (from 0)."""

    def batch(config, task, now: int):
        if now == step:
            monkeypatch.setattr(train, "training_batch", training_batch)
            act()
        return training_batch(config, task, now)

    monkeypatch.setattr(train, "training_batch", batch)


def adapter(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", TRAINED)
def test_stopped_by_a_signal_and_resumed_is_the_same_run(random_base, tmp_path, monkeypatch, kind):
    config = tiny_config(random_base, kind)
    run(config, tmp_path / "whole")
    for number, step in ((signal.SIGTERM, 1), (signal.SIGINT, 3)):  # between two checkpoints, and in the last step
        at_step(monkeypatch, step, lambda number=number: os.kill(os.getpid(), number))
        with signals.handled(), pytest.raises(Stopped) as stopped:
            run(config, tmp_path / "stopped")
        assert stopped.value.signum == number
        assert [row["step"] for row in steps(tmp_path / "stopped")] == list(range(1, step + 1)), "its step is done again"
        assert not (tmp_path / "stopped" / "summary.json").exists()
    run(config, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    assert not (tmp_path / "stopped" / "checkpoints").exists()


def test_a_signal_within_an_evaluation_stops_it_and_costs_no_step(random_base, tmp_path, monkeypatch):
    """A step was saved only after its validation: whoever did not get the time for that lost all since the checkpoint before."""
    config = tiny_config(random_base, "grpo", checkpoint_every=100)
    run(config, tmp_path / "whole")
    sample, trained, batches = evaluate.sample_in_chunks, [], []

    def asked(*given, **how):
        batches.append(1)
        if len(batches) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(*given, **how)

    monkeypatch.setattr(evaluate, "sample_in_chunks", asked)
    noted = lambda config, task, step: trained.append(step) or training_batch(config, task, step)  # noqa: E731
    monkeypatch.setattr(train, "training_batch", noted)
    # Greedy and sampled are a batch each: the third is in the validation after step 2. That one comes first when the run goes on,
    # and the third is then in the evaluation at the end.
    for at, steps_trained in ((3, [0, 1]), (3, [2, 3]), (None, [])):
        trained.clear()
        batches.clear()
        with signals.handled(), pytest.raises(Stopped) if at else contextlib.nullcontext():
            run(config, tmp_path / "stopped")
        assert trained == steps_trained
        assert at is None or len(batches) == at, "no further batch was begun"
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["s_grpo", "full"])
@pytest.mark.parametrize("step", [0, 2, 3])
def test_killed_within_a_step_goes_on_from_its_last_checkpoint(random_base, tmp_path, monkeypatch, kind, step):
    config = tiny_config(random_base, kind, checkpoint_every=2)
    run(config, tmp_path / "whole")

    def die() -> None:
        raise KeyboardInterrupt

    at_step(monkeypatch, step, die)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "killed")
    run(config, tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_killed_while_evaluating_at_the_end(random_base, tmp_path, monkeypatch):
    config = tiny_config(random_base, "t_spmo")
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "final_evaluation", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(config, tmp_path / "killed")
    run(config, tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_folder_of_another_config_is_refused(random_base, tmp_path):
    run(tiny_config(random_base, "base"), tmp_path / "run")
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        run(tiny_config(random_base, "base", seed=1), tmp_path / "run")


def nan_loss(loss: torch.Tensor) -> torch.Tensor:
    return loss * torch.nan


def nan_gradient(loss: torch.Tensor) -> torch.Tensor:
    return loss + torch.sqrt(loss * 0)  # adds 0, with the gradient 0 * infinity


@pytest.mark.parametrize("poison", [nan_loss, nan_gradient])
def test_a_step_that_is_not_finite_ends_the_run_at_its_last_validation(random_base, tmp_path, monkeypatch, poison):
    surrogate, calls = train.surrogate_loss, iter(range(100))

    def poisoned(*args, **kwargs):
        loss, diagnostics = surrogate(*args, **kwargs)
        return (poison(loss) if next(calls) == 3 else loss), diagnostics

    with monkeypatch.context() as patch:
        patch.setattr(train, "surrogate_loss", poisoned)
        summary = run(tiny_config(random_base, "s_grpo", steps=6), tmp_path / "run")
    assert summary.status == "diverged" and "not finite at step 4: lower the learning rate" in summary.reason
    assert summary.steps_done == 3 and [row["step"] for row in steps(tmp_path / "run")] == [1, 2, 3]
    # The last validation was after step 2: what is saved and evaluated is the run of two steps.
    two = run(tiny_config(random_base, "s_grpo", steps=2), tmp_path / "two")
    there = adapter(tmp_path / "two")
    assert all(torch.equal(value, there[name]) for name, value in adapter(tmp_path / "run").items())
    assert (tmp_path / "run" / "items.csv").read_bytes() == (tmp_path / "two" / "items.csv").read_bytes()
    assert (summary.accuracy, summary.kl_to_base) == (two.accuracy, two.kl_to_base)
    # It is finished: another start leaves it alone.
    assert run(tiny_config(random_base, "s_grpo", steps=6), tmp_path / "run") == summary


def test_a_diverged_run_that_was_stopped_before_is_the_same(random_base, tmp_path, monkeypatch):
    """The parameters of the last validation belong to the checkpoint: a resumed run cannot validate in the past."""
    config = tiny_config(random_base, "grpo", steps=6, eval_every=2, checkpoint_every=100)
    surrogate = train.surrogate_loss
    now = []

    def poisoned(*args, **kwargs):
        loss, diagnostics = surrogate(*args, **kwargs)
        return (nan_loss(loss) if now[-1] == 3 else loss), diagnostics

    monkeypatch.setattr(train, "surrogate_loss", poisoned)
    noted = lambda config, task, step: now.append(step) or training_batch(config, task, step)  # noqa: E731
    monkeypatch.setattr(train, "training_batch", noted)
    whole = run(config, tmp_path / "whole")

    def stopping(config, task, step: int):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return noted(config, task, step)

    with monkeypatch.context() as patch, signals.handled(), pytest.raises(Stopped):
        patch.setattr(train, "training_batch", stopping)
        run(config, tmp_path / "stopped")
    assert run(config, tmp_path / "stopped") == whole and whole.status == "diverged"
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(("kind", "count"), [("full", 1), ("full", 3), ("grpo", 3)])
def test_an_absurd_learning_rate_diverges_and_says_so(random_base, tmp_path, kind, count):
    """With one step it is the evaluation at the end that first meets the ruined weights, after a loop that saw nothing wrong."""
    config = tiny_config(random_base, kind, steps=count, warmup_steps=0, learning_rate=1e30)
    summary = run(config, tmp_path / "run")
    assert summary.status == "diverged" and "not finite" in summary.reason
    base = run(tiny_config(random_base, "base"), tmp_path / "base")
    assert summary.n_items == 5 and summary.accuracy == base.accuracy and summary.kl_to_base == pytest.approx(0, abs=1e-9)
    (saved,) = (tmp_path / "run" / "adapter").glob("*.safetensors")
    assert all(torch.isfinite(value).all() for value in load_file(saved).values())
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.parametrize("factor", [torch.nan, 1e38])
def test_a_base_that_is_not_finite_from_the_start_is_refused(tmp_path, factor):
    """Weights with a NaN in them, or finite ones whose logits are not, gave a traceback in the middle of the first rollout."""
    base = make_base(tmp_path / "ruined")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= factor
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    for kind in ("base", "grpo"):
        with pytest.raises(UserError, match="not finite"):
            run(tiny_config(base, kind), tmp_path / kind)
        assert not (tmp_path / kind / "summary.json").exists() and not (tmp_path / kind / "metrics.jsonl").exists()


# Numbers and weights that nobody can train with ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grpo", "s_grpo", "t_spmo"])
def test_a_reward_that_is_nan_stops_the_run_and_names_it(random_base, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(groups, "reward", lambda text, cut, problem: float("nan"))
    with pytest.raises(ValueError, match="rewards must be finite numbers, not"):
        run(tiny_config(random_base, kind), tmp_path / "run")
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize("kind", ["grpo", "s_grpo", "t_spmo"])
def test_a_task_whose_rewards_always_tie_teaches_nothing_and_says_so(random_base, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(groups, "reward", lambda text, cut, problem: 1.0)
    summary = run(tiny_config(random_base, kind), tmp_path / "run")
    assert summary.status == "done" and summary.skipped_steps == summary.steps_done == 4
    assert summary.tokens_in_loss == 0 and summary.kept_fraction is None and summary.kl_to_base == pytest.approx(0, abs=1e-9)


def test_weights_that_are_a_pickle_are_never_opened(random_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(random_base, base)
    (base / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, base / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors weights"):
        run(tiny_config(base, "base"), tmp_path / "run")


def test_a_run_started_on_other_weights_of_the_same_name_is_refused(random_base, tmp_path, monkeypatch):
    """A branch of the Hub moved between two starts: half the run would have been trained on each commit's weights."""
    config = tiny_config(random_base, "grpo")
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(load.Policy, "commit", property(lambda policy: "a" * 40))
    with signals.handled(), pytest.raises(Stopped):
        run(config, tmp_path / "run")
    monkeypatch.setattr(load.Policy, "commit", property(lambda policy: "b" * 40))
    with pytest.raises(UserError, match=f"set revision={'a' * 40}"):
        run(config, tmp_path / "run")


def test_more_prompts_a_step_than_there_are_problems_is_refused_with_the_limit(random_base, tmp_path):
    """It was accepted, and each step took the same problems several times."""
    count = len(tiny_config(random_base, "grpo").load_task().train)
    with pytest.raises(UserError, match=f"at most {count}"):
        run(tiny_config(random_base, "grpo", prompts_per_step=count + 1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="threads: .* 256"):
        tiny_config(random_base, "grpo", threads=1000)


def test_weights_that_are_not_as_their_run_left_them_are_named_by_who_reads_them(random_base, tmp_path):
    """A number changed in the adapter went unseen: only the files that tables are made from had a checksum."""
    config, folder = tiny_config(random_base, "grpo", steps=1), tmp_path / "run"
    run(config, folder)
    name = "adapter/adapter_model.safetensors"
    check_files(folder, [name])
    assert json.loads((folder / "manifest.json").read_text())["model"] == config.model
    weights = load_file(folder / name)
    next(iter(weights.values()))[0, 0] += 1.0
    save_file(weights, folder / name)
    with pytest.raises(UserError, match="has changed"):
        check_files(folder, [name])
    check_files(folder)  # what tables are made from is whole, and they may be made

"""The loop on a tiny model: what moves and what must not, equal bytes for equal configs, skipped steps, terms of the loss."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_runs import HELPERS, TRAINED, lines, noisy_reward, noisy_rewards, outcome, steps, tiny_config
from transformers import AutoModelForCausalLM

from replication import groups, train
from replication.evaluate import accuracy, evaluate
from replication.groups import training_batch
from replication.models.load import Policy, load_policy
from replication.names import METHODS
from replication.randomness import stream
from replication.runs import RunDirectory
from replication.train import run


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy_rewards(monkeypatch)


@pytest.fixture(scope="module")
def trained(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Policy]]:
    """One finished run of every kind under noisy rewards: its folder, and the policy in memory that it trained."""
    folder, policies = tmp_path_factory.mktemp("runs"), []
    with pytest.MonkeyPatch.context() as patch:
        noisy_rewards(patch)
        patch.setattr(train, "load_policy", lambda config: policies.append(load_policy(config)) or policies[-1])
        for kind in TRAINED:
            run(tiny_config(random_base, kind), folder / kind)
    return {kind: (folder / kind, policy) for kind, policy in zip(TRAINED, policies, strict=True)}


@pytest.fixture(scope="module")
def finished(trained: dict[str, tuple[Path, Policy]]) -> dict[str, Path]:
    return {kind: folder for kind, (folder, _) in trained.items()}


def saved_steps(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """Copies of all that each checkpoint holds, by its step."""
    seen: dict[int, dict[str, torch.Tensor]] = {}
    save = RunDirectory.save_checkpoint

    def keeping(self: RunDirectory, step: int, tensors, state) -> None:
        seen[step] = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        save(self, step, tensors, state)

    monkeypatch.setattr(RunDirectory, "save_checkpoint", keeping)
    return seen


@pytest.mark.parametrize("kind", [kind for kind in TRAINED if kind != "full"])
def test_adapters_move_and_the_base_stays_bitwise(trained, random_base, kind):
    _, policy = trained[kind]
    # B starts at 0 and takes a gradient through A at once; A needs a B that is not 0, so the second step moves it too.
    assert len(policy.trainable) == 8 and all("lora_" in name for name in policy.trainable)
    start = load_policy(tiny_config(random_base, kind)).trainable
    assert all(not torch.equal(policy.trainable[name], start[name]) for name in start)
    base = AutoModelForCausalLM.from_pretrained(random_base)
    now = policy.model.unload()
    assert now.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(now.state_dict()[name], value) for name, value in base.state_dict().items())
    assert now.get_output_embeddings().weight is now.get_input_embeddings().weight


def test_full_fine_tuning_moves_everything_and_keeps_the_copy(trained, random_base):
    folder, policy = trained["full"]
    base = dict(AutoModelForCausalLM.from_pretrained(random_base).named_parameters())
    assert policy.trainable.keys() == base.keys()
    assert all(not torch.equal(policy.trainable[name], value) for name, value in base.items())
    assert all(torch.equal(start, base[name]) for name, start in zip(policy.trainable, policy.initial, strict=True))
    saved = AutoModelForCausalLM.from_pretrained(folder / "adapter")
    assert all(torch.equal(value, policy.trainable[name]) for name, value in saved.named_parameters())


@pytest.mark.parametrize("kind", ["s_grpo", "ppo", "full"])
def test_the_same_config_gives_the_same_bytes(finished, random_base, tmp_path, noisy, kind):
    torch.manual_seed(17)  # whatever the global generator did before
    run(tiny_config(random_base, kind), tmp_path / "again")
    state = torch.random.get_rng_state()
    assert outcome(tmp_path / "again") == outcome(finished[kind])
    torch.manual_seed(17)
    assert torch.equal(state, torch.random.get_rng_state()), "a run must not touch the global generator"


def test_another_seed_gives_another_run(finished, random_base, tmp_path, noisy):
    run(tiny_config(random_base, "grpo", seed=1), tmp_path / "run")
    assert [row["loss"] for row in steps(tmp_path / "run")] != [row["loss"] for row in steps(finished["grpo"])]


def test_another_process_gives_the_same_bytes(finished, random_base, tmp_path):
    program = f"""
        import pytest, tiny_runs
        from replication.train import run
        tiny_runs.noisy_rewards(pytest.MonkeyPatch())
        config = tiny_runs.tiny_config({str(random_base)!r}, "s_grpo")
        print(run(config, {str(tmp_path / "run")!r}).run_id)
    """
    environment = os.environ | {"PYTHONPATH": str(HELPERS), "PYTHONHASHSEED": "5"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == tiny_config(random_base, "s_grpo").run_id
    assert outcome(tmp_path / "run") == outcome(finished["s_grpo"])


def test_a_finished_run_is_left_alone(finished, random_base, monkeypatch):
    monkeypatch.setattr(train, "load_policy", lambda config: pytest.fail("a finished run was begun again"))
    folder = finished["grpo"]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    summary = run(tiny_config(random_base, "grpo"), folder)
    assert summary.model_dump() == json.loads((folder / "summary.json").read_text())
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()} == before


def test_what_a_run_records(finished, random_base):
    for kind, folder in finished.items():
        config = tiny_config(random_base, kind)
        rows = steps(folder)
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        validations = [row for row in lines(folder) if "validation_accuracy" in row]
        assert [row["step"] for row in validations] == [0, 2]
        fresh, trained = (row["validation_kl_to_base"] for row in validations)
        assert 0 <= fresh < 1e-9 < trained, "a fresh adapter is the base"
        assert [row["learning_rate"] for row in rows] == [config.learning_rate * share for share in (0.5, 1, 1, 1)]
        for row in rows:
            assert row["tokens_in_loss"] <= row["tokens_untied"] <= row["tokens_generated"]
            assert row["kept_fraction"] == row["tokens_in_loss"] / row["tokens_untied"]
            assert row["kept_share_all"] == row["tokens_in_loss"] / row["tokens_generated"]
            assert row["clipped"] == int(row["grad_norm"] > config.max_grad_norm) and 0 <= row["reward"] <= 1
            varying = {name for name in row if name.endswith("_s") or "bytes" in name}
            assert not varying, "measured seconds and bytes vary between runs"
        summary = json.loads((folder / "summary.json").read_text())
        for name in ("tokens_generated", "tokens_in_loss", "tokens_forwarded"):
            assert summary[name] == sum(row[name] for row in rows)
        assert summary["kept_fraction"] == summary["tokens_in_loss"] / sum(row["tokens_untied"] for row in rows)
        assert summary["status"] == "done" and summary["reason"] is None and summary["steps_done"] == 4
        assert {row["step"] for row in lines(folder, "samples.jsonl")} == {0, 2}
        timings = [row for row in lines(folder, "timings.jsonl") if "step_s" in row]
        assert all(row["step_s"] >= row["rollout_s"] + row["score_s"] + row["update_s"] - 1e-9 for row in timings)
    assert steps(finished["grpo"])[0]["kept_fraction"] == 1.0
    shares = {kind: json.loads((folder / "summary.json").read_text())["kept_fraction"] for kind, folder in finished.items()}
    assert shares["t_spmo"] < shares["s_grpo"] < shares["grpo"] == 1.0


def test_trained_items_and_held_out_templates_can_be_evaluated_at_every_validation(random_base, tmp_path, noisy):
    """How the gap of trained and test items grows is seen over the steps; the items are those of the run's end."""
    config = tiny_config(random_base, task="word_problems", extra_splits="always")
    run(config, tmp_path / "run")
    rows = [row for row in lines(tmp_path / "run") if "validation_accuracy" in row]
    policy, task = load_policy(config), config.load_task()
    trained = [problem for step in range(config.steps) for problem in training_batch(config, task, step)][: config.eval_items]
    for name, problems in {"train": trained, "held_out": task.held_out[: config.eval_items]}.items():
        assert all(f"validation_{name}_accuracy" in row for row in rows)
        assert rows[0][f"validation_{name}_accuracy"] == accuracy(evaluate(policy, config, task, problems)), "at step 0 the base"
    usual = tiny_config(random_base, task="word_problems", steps=1)
    run(usual, tmp_path / "usual")
    assert not any("held_out" in name for row in lines(tmp_path / "usual") for name in row)


def test_at_the_first_step_the_policy_is_the_base(finished):
    for folder in finished.values():
        first, *_, last = steps(folder)
        assert 0 <= first["kl_to_base"] < 1e-9 < last["kl_to_base"]  # two float32 passes over the same weights


def test_the_base_is_evaluated_and_not_trained(random_base, tmp_path):
    summary = run(tiny_config(random_base, "base"), tmp_path / "run")
    assert summary.status == "done" and summary.steps_done == 0 and summary.n_items == 5
    assert summary.kl_to_base == pytest.approx(0, abs=1e-9) and summary.kept_fraction is None and summary.tokens_generated == 0
    assert not (tmp_path / "run" / "adapter").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, {"scoring": "dense"}) for kind in ("s_grpo", "ppo", "full")),
        *((kind, {"token_budget": 64}) for kind in ("s_grpo", "ppo")),
    ],
    ids=str,
)
def test_how_it_is_computed_does_not_change_what_comes_out(finished, random_base, tmp_path, noisy, kind, change):
    run(tiny_config(random_base, kind, **change), tmp_path / "run")
    for here, there in zip(steps(tmp_path / "run"), steps(finished[kind]), strict=True):
        for name in ("reward", "tokens_generated", "tokens_in_loss", "truncated"):
            assert here[name] == there[name]
        # Adam's first step is a sign: a gradient of a few 1e-9 may differ in it, and so may the steps that follow.
        for name in ("loss", "grad_norm", "entropy", "kl_to_base"):
            assert here[name] == pytest.approx(there[name], rel=2e-3, abs=1e-5), name


def test_recomputing_activations_changes_nothing(finished, random_base, tmp_path, noisy):
    """transformers drops the cache of a model that recomputes in train mode: rollouts would go on from nothing."""
    run(tiny_config(random_base, "grpo", activation_checkpointing=True), tmp_path / "run")
    for here, there in zip(steps(tmp_path / "run"), steps(finished["grpo"]), strict=True):
        assert here["reward"] == there["reward"] and here["tokens_generated"] == there["tokens_generated"]
        assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=1e-3)


def test_a_step_whose_groups_all_tie_moves_neither_weights_nor_optimizer(random_base, tmp_path, monkeypatch):
    config = tiny_config(random_base, "grpo", checkpoint_every=1, l2=0.1)
    tied = {problem.id for problem in training_batch(config, config.load_task(), 2)}
    monkeypatch.setattr(
        groups, "reward", lambda text, cut, problem: 1.0 if problem.id in tied else noisy_reward(text, cut, problem)
    )
    saved = saved_steps(monkeypatch)
    summary = run(config, tmp_path / "run")
    third = steps(tmp_path / "run")[2]
    assert third["skipped"] == 1 and third["tied_groups"] == 1 and third["reward"] == 1 and summary.skipped_steps == 1
    assert third["kept_fraction"] is None and third["kept_share_all"] == 0 and third["grad_norm"] is None and third["loss"] == 0
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in saved[2])
    moving = [name for name in saved[2] if not name.startswith("finite/")]
    assert all(torch.equal(saved[3][name], saved[2][name]) for name in moving)
    assert all(not torch.equal(saved[4][name], saved[2][name]) for name in moving)


def test_groups_that_tie_still_teach_ppo_and_its_critic(random_base, tmp_path, monkeypatch):
    """Its baseline is the critic's, which does not know yet that every answer is right."""
    monkeypatch.setattr(groups, "reward", lambda *_: 1.0)
    saved = saved_steps(monkeypatch)
    summary = run(tiny_config(random_base, "ppo", checkpoint_every=1), tmp_path / "run")
    rows = steps(tmp_path / "run")
    assert all(row["tied_groups"] == 1 and row["skipped"] == 0 and row["kept_fraction"] == 1 for row in rows)
    assert all(row["tokens_in_loss"] == row["tokens_untied"] == row["tokens_generated"] for row in rows)
    assert summary.kept_fraction == 1 and summary.skipped_steps == 0
    moving = [name for name in saved[2] if name.startswith(("parameter/", "critic/parameter/"))]
    assert any(name.startswith("critic/") for name in moving)
    assert all(not torch.equal(saved[4][name], saved[2][name]) for name in moving)
    assert rows[0]["value_loss"] == 1 and rows[-1]["value_loss"] < 0.9, "at first every value is 0"
    assert {row["explained_variance"] for row in rows} == {None}


def test_a_critic_is_recorded_and_leaves_no_trace_in_the_adapter(finished, random_base):
    from peft import PeftModel

    for kind, folder in finished.items():
        has = [{"value_loss", "explained_variance"} & row.keys() for row in steps(folder)]
        assert all(len(found) == (2 if kind == "ppo" else 0) for found in has)
    ppo, grpo = finished["ppo"], finished["grpo"]
    first = steps(ppo)[0]
    assert first["explained_variance"] == 0, "at first every value is 0"
    # The critic reads what the policy reads: its pass costs as many tokens again.
    assert first["tokens_forwarded"] == 2 * steps(grpo)[0]["tokens_forwarded"]
    files = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("adapter/**/*")) for folder in (ppo, grpo)]
    assert files[0] == files[1]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(random_base), ppo / "adapter")
    assert list(plain.peft_config) == ["default"] and not any("critic" in name for name, _ in plain.named_parameters())


@pytest.mark.parametrize("kind", ["s_grpo", "full"])
def test_kl_holds_the_policy_near_its_reference(random_base, tmp_path, noisy, kind):
    more = {"steps": 12, "warmup_steps": 0, "max_grad_norm": 100.0}
    for beta in (0.0, 20.0):
        run(tiny_config(random_base, kind, beta=beta, **more), tmp_path / str(beta))
    free, held = steps(tmp_path / "0.0"), steps(tmp_path / "20.0")
    # On the reference itself the term and its gradient are 0: Adam takes the same first step, then the two part.
    assert held[0]["loss"] == pytest.approx(free[0]["loss"], abs=1e-6)
    assert held[0]["grad_norm"] == pytest.approx(free[0]["grad_norm"], rel=1e-4)
    assert held[1]["loss"] > free[1]["loss"] + 1e-6
    drift = [sum(row["kl_to_base"] for row in rows[-6:]) for rows in (free, held)]
    assert drift[1] < 0.6 * drift[0]  # measured: 0.28 and 0.33 of it; each step's KL is a noisy estimate on one group


@pytest.mark.parametrize("kind", ["s_grpo", "full"])
def test_l2_is_on_the_adapter_or_on_the_difference_from_the_base(finished, random_base, tmp_path, noisy, kind):
    config = tiny_config(random_base, kind, l2=0.01)
    start = load_policy(config)
    run(config, tmp_path / "run")
    squares = sum(value.double().square().sum().item() for value in start.trainable.values()) if kind == "s_grpo" else 0.0
    here, there = steps(tmp_path / "run"), steps(finished[kind])
    assert here[0]["loss"] - there[0]["loss"] == pytest.approx(0.01 * squares, rel=1e-4, abs=1e-7)
    assert here[1]["loss"] > there[1]["loss"]


def test_selection_draws_from_a_stream_of_its_own_for_each_step_and_problem(random_base, tmp_path, monkeypatch):
    """Were the step not part of it, a problem that comes again would keep the same positions in every epoch."""
    drawn: list[tuple] = []
    monkeypatch.setattr(train, "stream", lambda *keys: drawn.append(keys) or stream(*keys))
    config = tiny_config(random_base, "s_grpo", seed=3)
    run(config, tmp_path / "run")
    task = config.load_task()
    expected = [(3, "selection", step, p.id) for step in range(4) for p in training_batch(config, task, step)]
    assert drawn == expected and len(set(drawn)) == 12


def test_training_batches_go_through_the_whole_split_each_epoch(random_base):
    config = tiny_config(random_base, "grpo", prompts_per_step=300)
    task = config.load_task()
    per_epoch = len(task.train) / 300
    seen = [problem.id for step in range(round(3 * per_epoch)) for problem in training_batch(config, task, step)]
    first, second = seen[: len(task.train)], seen[len(task.train) : 2 * len(task.train)]
    assert sorted(first) == sorted(second) == sorted(problem.id for problem in task.train) and first != second
    other = tiny_config(random_base, "t_spmo", prompts_per_step=300)
    assert training_batch(other, task, 5) == training_batch(config, task, 5), "the method must not change the data"


def test_the_loop_knows_no_method_by_name() -> None:
    """Which tokens get credit is asked for in one place; everything else is shared by all methods."""
    source = inspect.getsource(train)
    words = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    words |= {name.id for name in ast.walk(ast.parse(source)) if isinstance(name, ast.Name)}
    assert not words & ({*METHODS, "GRPO", "SGRPO", "TSPMO", "PPO"} - {"base"})  # which is also the name of the base's folder
    assert source.count("credit_of(") == 1

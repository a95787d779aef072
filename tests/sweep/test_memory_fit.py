"""What fits a machine is measured before the first run: out of memory, too slow, failed, kept; and once on a real tiny model."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from tiny_runs import tiny_config

from replication import train
from replication.config import ExperimentConfig, load_profile
from replication.errors import UserError
from replication.sweep import memory_fit as fit
from replication.sweep import run_plan, warm_up
from replication.sweep.memory_fit import Attempt, Fit, choices, find, fitting, heaviest, in_child, is_demanding, sentences

STEP = {"seconds": 2.0, "peak_bytes": 5_000_000_000, "total_bytes": 8_000_000_000, "device": "a GPU"}


def small(**changes) -> ExperimentConfig:
    return load_profile("small", method="grpo", device="cpu", **changes)


class Machine:
    """Stands in for the child process: memory runs out over ``holds`` tokens, or always without activation checkpointing."""

    def __init__(self, holds: int, needs_checkpointing: bool = False, seconds: float = 10.0) -> None:
        self.holds, self.needs_checkpointing, self.seconds = holds, needs_checkpointing, seconds
        self.tried: list[tuple[int, bool]] = []

    def __call__(self, config: ExperimentConfig, seconds: float) -> Attempt:
        self.tried.append((config.token_budget, config.activation_checkpointing))
        fits = config.token_budget <= self.holds and (config.activation_checkpointing or not self.needs_checkpointing)
        return Attempt("done" if fits else "memory", [{**STEP, "seconds": 9.0}, STEP, STEP] if fits else [], self.seconds)


def test_the_tokens_at_a_time_are_halved_until_they_fit():
    machine = Machine(holds=3000)
    found = find(small(), machine)
    assert machine.tried == [(8192, False), (4096, False), (2048, False)]
    assert found.settings == {"token_budget": 2048, "sample_budget": 16384, "activation_checkpointing": False}
    assert found.step_s == 2.0, "the first step also warms up"


def test_activation_checkpointing_comes_last():
    machine = Machine(holds=1500, needs_checkpointing=True)
    assert find(small(), machine).settings == {"token_budget": 1024, "sample_budget": 8192, "activation_checkpointing": True}
    assert machine.tried == [(8192, False), (4096, False), (2048, False), (1024, False), (1024, True)]
    assert list(choices(small(token_budget=1024, activation_checkpointing=True))) == [
        {"token_budget": 1024, "sample_budget": 65536, "activation_checkpointing": True}
    ]


def test_what_fits_nowhere_is_one_line_that_says_what_to_change(capsys):
    with pytest.raises(UserError, match=r"out of memory whatever was set.* lower group_size \(8\)") as error:
        find(small(), Machine(holds=0))
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err.count("out of memory with token_budget=") == 5
    with pytest.raises(UserError, match="every setting that 300 s allowed"):
        find(small(), Machine(holds=0, seconds=200.0))


def test_a_step_that_fails_for_another_reason_is_not_tried_again():
    tried = []
    with pytest.raises(UserError, match="no run was started: RuntimeError: no kernel image"):
        find(small(), lambda config, seconds: tried.append(config) or Attempt("RuntimeError: no kernel image", [], 1.0))
    assert len(tried) == 1


def test_too_slow_to_measure_is_said_with_a_lower_bound():
    found = find(small(), lambda config, seconds: Attempt("time", [], seconds))
    assert found.steps == 0 and found.step_s == fit.LIMIT and found.settings["token_budget"] == 8192
    first, second = sentences(found, [small()], 1)
    assert "more than the 300 s" in first and "more than" in second and "at most" not in second


def test_hours_are_those_of_the_longest_answers_and_shared_by_the_processes():
    found = find(small(), Machine(holds=9000))
    config = small(eval_items=1, test_items=1, steps=1800, eval_every=2000)  # 1800 steps of 2 s are an hour
    _, alone = sentences(found, [config], 1)
    _, shared = sentences(found, [config, config.model_copy(update={"seed": 1})], 2)
    assert "at most about 1.0 h" in alone and "2 runs in 2 processes on the CPU, 1 thread each: at most about 1.0 h" in shared
    (said, _) = sentences(found, [config], 1)
    assert "64 answers" in said and "2.0 s" in said and "5.0 of 8.0 GB" in said and "token_budget=8192" in said


def test_on_a_cpu_no_more_processes_than_memory_holds(monkeypatch):
    monkeypatch.setattr(fit, "cores", lambda: 16)
    found = find(small(), Machine(holds=9000))
    assert found.workers == 1  # 5 of 8 GB each
    assert Fit(**{**vars(found), "peak_bytes": 1_000_000_000}).workers == 8
    assert Fit(**{**vars(found), "gpus": 2}).workers == 2


def test_only_large_models_that_are_trained_are_measured(random_base, tmp_path):
    assert is_demanding(small()) and not is_demanding(load_profile("small", method="base"))
    assert not is_demanding(load_profile("nano", method="grpo")) and not is_demanding(tiny_config(random_base))
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(2**24))
    assert is_demanding(tiny_config(file))


def test_the_heaviest_run_is_measured():
    configs = [load_profile("small", method=method, lora_rank=rank) for method in ("t_spmo", "grpo") for rank in (16, 4)]
    assert heaviest(configs) == load_profile("small", method="grpo")
    assert heaviest([*configs, load_profile("small", method="s_grpo", lora_rank=0)]).lora_rank == 0
    assert heaviest([*configs, load_profile("small", method="s_grpo", max_new_tokens=201)]).max_new_tokens == 201


def test_what_was_measured_is_kept_until_the_step_is_another(tmp_path):
    asked = []

    def measure(config: ExperimentConfig) -> Fit:
        asked.append(config)
        return find(config, Machine(holds=4096))

    runs = tmp_path / "out" / "runs"
    first = fitting([small()], runs, measure=measure)
    assert fitting([small(seed=1, learning_rate=1e-5)], runs, measure=measure) == first and len(asked) == 1
    fitting([small(group_size=4)], runs, measure=measure)
    (tmp_path / "out" / fit.FILE).write_text("[1]")
    assert fitting([small()], runs, measure=measure) == first and len(asked) == 3
    assert json.loads((tmp_path / "out" / fit.FILE).read_text())["settings"]["token_budget"] == 4096


# A real process ----------------------------------------------------------------------------------------------------------


def _runs_out(config, report) -> None:
    report("step", STEP)
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def _is_killed(config, report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuses(config, report) -> None:
    raise UserError("set this differently")


def _never_ends(config, report) -> None:
    report("loaded")
    report("step", STEP)
    time.sleep(1000)


@pytest.mark.parametrize(
    ("warm_up", "outcome", "steps"),
    [(_runs_out, "memory", 1), (_is_killed, "memory", 0), (_refuses, "set this differently", 0), (_never_ends, "time", 1)],
)
def test_how_a_child_ends(warm_up, outcome, steps):
    made = in_child(small(), 2.0, warm_up)
    assert (made.outcome, len(made.steps)) == (outcome, steps)


def test_a_real_model_is_measured_and_its_runs_take_what_fits(random_base, tmp_path, monkeypatch, capfd):
    """Nothing ends an answer of the random model early, all tokens are credited, and the runs are those of the plan."""
    from replication.ablations import PlannedRun

    monkeypatch.setattr(fit, "DEMANDING", 0)
    monkeypatch.setattr(fit, "choices", lambda config: iter([{"token_budget": 128, "activation_checkpointing": True}]))
    configs = [tiny_config(random_base, kind) for kind in ("base", "grpo")]
    runs = tmp_path / "out" / "runs"
    assert run_plan([PlannedRun("full_vs_sparse", config) for config in configs], runs, workers=1).ok
    said = capfd.readouterr().err
    assert "a step of 18 answers" in said and "2 runs in 1 process on the CPU" in said
    kept = json.loads((tmp_path / "out" / fit.FILE).read_text())
    assert kept["steps"] == 3 and 0 < kept["peak_bytes"] < kept["total_bytes"] and kept["step_s"] > 0
    for config in configs:
        used = json.loads((runs / config.run_id / "config.json").read_text())
        assert used["token_budget"] == 128 and used["activation_checkpointing"]


def test_a_first_step_has_the_longest_answers(random_base):
    lengths: list[int] = []
    from replication import groups

    sample = groups.sample_in_chunks

    def watched(*args, **kwargs):
        made = sample(*args, **kwargs)
        lengths.extend(len(completion.tokens) for group in made for completion in group)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "sample_in_chunks", watched)
        steps: list[dict] = []
        config = tiny_config(random_base)
        warm_up._steps(config, lambda kind, value=None: steps.append(value))
    assert len(steps) == 1 + fit.STEPS and set(lengths) == {config.max_new_tokens}


def test_a_part_of_a_measured_step_is_as_full_as_any_part_of_a_run(random_base, monkeypatch):
    """Groups of equal size leave a part of the budget empty, and groups of a run fill it: they held more than was measured."""
    held: list[int] = []
    score = train.score

    def watched(model, prompts, completions, credits, **how):
        held.append(sum(map(len, prompts)) + sum(len(tokens) for group in completions for tokens in group))
        return score(model, prompts, completions, credits, **how)

    monkeypatch.setattr(train, "score", watched)
    config = tiny_config(random_base, "grpo", token_budget=100)
    warm_up._steps(config, lambda kind, value=None: None)
    assert max(held) >= 100

"""The benchmarks run: what needs no TRL, at tiny shapes; and their figures and text come from tables alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import bench_gpu, bench_in_trl, bench_memory, bench_runs, common, figures, text, trl_side
from replication.names import RESULTS
from replication.scoring.log_probs import token_log_probs


def test_the_gpu_benchmark_at_a_tiny_shape(tmp_path: Path):
    """Each way to score, each method, and a rollout: the whole code path, on the CPU."""
    assert bench_gpu.main(["--shape", "tiny", "--device", "cpu", "--repetitions", "1", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert table.columns[0] == "schema_version" and (table["status"] == "done").all()
    updates = table[table["part"] == "update"]
    assert set(zip(updates["way"], updates["method"], strict=True)) == {(w, m) for w in bench_gpu.WAYS for m in common.METHODS}
    assert json.loads((tmp_path / "manifest.json").read_text())["gpu"]["device"] == "cpu"
    said = text.summary(figures.read_tables(tmp_path), {})
    assert said.count("\n| 4 | update |") == len(updates) and "On a GPU: not run" not in said


def test_what_ran_out_of_memory_on_the_gpu_is_said():
    """The table of the GPU was shown nowhere: once it was there, "not run" went and nothing came."""
    shared = {"shape": "qwen2-1.5b", "device": "X", "dtype": "bfloat16", "prompt_length": 100, "completion_length": 300}
    shared |= {"group_size": 16, "part": "update", "method": "grpo"}
    fits = {"way": "packed", "status": "done", "seconds": 2.0, "seconds_q1": 1.5, "seconds_q3": 2.5, "peak_bytes": 12e6}
    said = text.summary({"gpu": pd.DataFrame([{**shared, **fits}, {**shared, "way": "plain", "status": "out of memory"}])}, {})
    assert "| 16 | update | packed | grpo | 2.000 (1.500 to 2.500) | 12 |" in said
    assert "| 16 | update | plain | grpo | out of memory |  |" in said


def test_the_three_ways_to_score_give_the_same_numbers():
    policy = common.random_policy(vocabulary=64, width=32, layers=2)
    groups = common.synthetic_groups(vocabulary=64, prompts=2, group_size=4, prompt_length=5, completion_length=9)
    arguments = [g.prompt for g in groups], [g.completions for g in groups], common.credits_of(common.nano_config("grpo"), groups)
    with torch.no_grad():
        plain, packed = (token_log_probs(policy.model, *arguments, strategy=name) for name in ("dense", "packed"))
        chunked = bench_gpu.chunked_log_probs(policy.model, *arguments)
    torch.testing.assert_close(chunked, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-5)


def test_synthetic_groups_never_tie_and_share_prefixes_as_said():
    groups = common.synthetic_groups(vocabulary=500, prompts=3, group_size=8, prompt_length=4, completion_length=40, common=0.95)
    assert not any(group.is_tied for group in groups)
    assert [len(group.prompt) for group in groups] == [4, 4, 4]
    depths = []
    for group in groups:
        for one, other in zip(group.completions, group.completions[1:], strict=False):
            depths.append(next((t for t, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), 40))
    assert 4 < sum(depths) / len(depths) < 20  # 1 / (1 - 0.95^2) is 10


@pytest.mark.parametrize("method", common.METHODS)
def test_an_update_moves_the_adapter(method: str):
    policy = common.random_policy(vocabulary=64, width=32, layers=2)
    before = {name: parameter.detach().clone() for name, parameter in policy.trainable.items()}
    config = common.nano_config(method)
    groups = common.synthetic_groups(vocabulary=64, prompts=2, group_size=4, prompt_length=5, completion_length=9)
    common.update_of(config, policy)(groups)
    assert any(not torch.equal(before[name], parameter) for name, parameter in policy.trainable.items())


def test_peak_memory_is_seen():
    def take_64_megabytes() -> None:
        torch.ones(2**24)

    assert 55e6 < common.peak_bytes(take_64_megabytes) < 100e6


def test_memory_is_a_share_of_trls_better_setting(tmp_path: Path, monkeypatch):
    peaks = iter([1000, 800, 400, 800, 200, 100, 80])
    monkeypatch.setattr(trl_side, "require_trl", lambda: None)
    monkeypatch.setattr(bench_memory, "in_own_process", lambda *_: {"peak_bytes": next(peaks), "tokens_in_loss": 9})
    table = bench_memory.main(tmp_path, quick=True)
    assert table["share_of_trl_at_its_best"].tolist() == [1.25, 1.0, 0.5, 1.0, 0.25, 0.125, 0.1]
    assert table["met"].tolist() == [None, None, None, True, True, True, None]


def test_short_runs_are_scaled_to_the_length_of_the_profiles(tmp_path: Path, monkeypatch):
    """150 steps; validations before the first and after the 20th, 40th, ... 140th, and the final evaluation."""
    measured = {"rollout_s": 0.2, "score_s": 0.1, "update_s": 0.01, "step_s": 0.4, "validation_s": 2.0, "final_evaluation_s": 5.0}
    monkeypatch.setattr(bench_runs, "short_run", lambda *_, **__: measured)
    table = bench_runs.main(tmp_path, quick=True)
    assert len(table) == 6 and (table["train_s"] == 60.0).all()
    assert (table["run_s"] == 60.0 + 8 * 2.0 + 5.0).all()


def test_a_short_run_takes_its_seconds_from_the_run_itself():
    row = bench_runs.short_run("t_spmo", "dense", steps=1, prompts_per_step=1, group_size=4, eval_items=1, test_items=1)
    assert row["step_s"] > row["rollout_s"] + row["score_s"] > 0 and row["validation_s"] > 0 and row["final_evaluation_s"] > 0


def test_the_text_of_whole_runs_takes_medians():
    """Three repetitions of which one was disturbed; the ratio is that of the medians."""
    rows = [
        {"method": "grpo", "scoring": scoring, "score_s": 1.0, "train_s": train, "evaluation_s": 20.0, "run_s": train + 20}
        | {"default_steps": 75}
        for scoring, trains in (("dense", (180, 180, 900)), ("packed", (20, 30, 30)))
        for train in trains
    ]
    header, _, line = text.whole_runs({"dense_vs_packed": pd.DataFrame(rows)})
    assert "training, 75 steps" in header
    assert line == "| GRPO | 1.00 → 1.00 | 180 → 30 | 200 → 50 | 4.0 | 60 | 3 |"


def test_figures_and_text_say_that_nothing_was_measured(tmp_path: Path):
    figures.write_all(tmp_path)
    expected = {f"{name}.{suffix}" for name in figures.FIGURES for suffix in ("png", "svg")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == expected
    assert "not run" in (tmp_path / "summary.md").read_text()


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed (the extra bench)")
@pytest.mark.parametrize(("implementation", "method"), [(common.TRL, "grpo"), (common.IN_TRL, "t_spmo")])
def test_a_turn_of_trls_loop(implementation: str, method: str):
    """The seconds of one step by its parts, and what went through the model: TRL forwards its padding too."""
    sizes = {"prompts_per_step": 2, "group_size": 4}
    (row,) = bench_in_trl.turn(implementation, method, steps=2, warm_up=1, threads=1, **sizes)
    assert row["step"] == 2 and row["tokens_generated"] > 0
    assert row["step_s"] > row["rollout_s"] > 0 and row["update_s"] > 0
    assert (row["tokens_forwarded"] > row["tokens_generated"]) == (implementation == common.TRL)


def test_the_text_of_trls_loop_takes_medians_and_says_what_was_not_measured():
    rows = [
        {"implementation": name, "method": method, "rollout_s": 1.0, "update_s": update, "step_s": 1.0 + update}
        | {"tied_groups": 0.5, "tokens_forwarded": tokens}
        for name, method, tokens in ((common.TRL, "grpo", 6016), (common.IN_TRL, "t_spmo", 90))
        for update in (0.1, 0.2, 9.0)
    ]
    peaks = pd.DataFrame([{"implementation": common.TRL, "method": "grpo", "peak_bytes": 12e6}])
    said = text.summary({"in_trl": pd.DataFrame(rows), "in_trl_memory": peaks}, {})
    assert "| GRPOTrainer | grpo | 1.000 | 0.200 | 1.200 | 6016 | 12 |" in said
    assert "| TokenCreditTrainer | t_spmo | 1.000 | 0.200 | 1.200 | 90 | not run |" in said
    assert "medians of 3 steps, 50 % tied groups" in said


COMMITTED = RESULTS / "bench"


@pytest.mark.skipif(not (COMMITTED / "ratios.csv").exists(), reason="no committed benchmark")
def test_the_committed_summary_is_what_the_committed_tables_say():
    tables = figures.read_tables(COMMITTED)
    manifest = json.loads((COMMITTED / "manifest.json").read_text())
    assert text.summary(tables, manifest) == (COMMITTED / "summary.md").read_text()


def test_the_growth_names_the_ends_and_the_worst_point(tmp_path: Path):
    """Group size 4, 8, 16: TRL takes 1, 2, 4 s; GRPO loses at 8 alone, T-SPMO always takes 0.1 s."""
    rows = []
    for value, trl, grpo in ((4, 1.0, 0.5), (8, 2.0, 2.5), (16, 4.0, 1.0)):
        measured = {("trl", "grpo"): trl, ("packed", "grpo"): grpo, ("packed", "s_grpo"): grpo, ("packed", "t_spmo"): 0.1}
        rows += [
            {"grows": "group_size", "value": value, "implementation": name, "method": method, "seconds": seconds}
            for (name, method), seconds in measured.items()
        ]
    said = text.summary({"scaling": pd.DataFrame(rows)}, {})
    assert "| group size | 4 | 16 | 2.0 to 4.0 | 2.0 to 4.0 | 10.0 to 40.0 |" in said
    assert "At group size 8, S-GRPO is slower than TRL (0.8 times its speed). Lowest" in said
    assert "Lowest speeds of the others, as a multiple of TRL's: T-SPMO 10.0 (group size 4)." in said
    # What a stopped run did not reach has an empty panel.
    figures.scaling({"scaling": pd.DataFrame(rows)}).savefig(tmp_path / "partial.png")

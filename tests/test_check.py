"""`make check`: one claim's runs are trained, and its interval stands beside the committed one."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from replication import ablations, commands
from replication.__main__ import main
from replication.ablations import PlannedRun, plan
from replication.names import CLAIMS, NEW_SEED, RESULTS
from replication.runs import RunDirectory
from replication.statistics import VERDICTS, load_claims
from replication.sweep import SweepResult
from replication.tables import read_tables

NANO = {claim.id: claim for claim in load_claims(CLAIMS) if claim.scale == "nano"}
TINY = {"steps": 2, "prompts_per_step": 1, "group_size": 4, "max_new_tokens": 24, "eval_items": 4, "test_items": 24,
        "kl_samples": 1, "extra_splits": "never"}  # fmt: skip
#: Made-up accuracies, and the kept shares and drifts that go with them.
MADE_UP = {"base": (0.4, None, 0.0), "grpo": (0.6, 1.0, 0.3), "s_grpo": (0.8, 0.4, 0.2), "t_spmo": (0.7, 0.01, 0.1)}


def check(claim: str, out: Path, *more: str) -> int:
    return main(["check", claim, "--out", str(out), *more])


def row(shown: str, name: str) -> str:
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == [name]]
    return line


def correct(run: Path) -> dict[str, int]:
    with (run / "items.csv").open() as file:
        return {line["item_id"]: int(line["correct"]) for line in csv.DictReader(file) if line["split"] == "test"}


def trained_in(out: Path) -> list[tuple[str, Path]]:
    """Method and folder of each run in a results folder."""
    return [(json.loads(path.read_text())["method"], path.parent) for path in (out / "runs").glob("*/config.json")]


def finish(planned: Sequence[PlannedRun], runs_dir: Path, **_) -> SweepResult:
    """In place of training: every run has ended, with made-up answers."""
    runs = {run.config.run_id: run.config for run in planned}
    for run_id, config in runs.items():
        accuracy, kept, drift = MADE_UP[config.method]
        with RunDirectory.open(runs_dir / run_id, config) as record:
            for step in (0, 20) if config.steps else ():
                reached = accuracy if step else 0.4
                drifted = drift * (1 + config.seed % 7 / 10) if step else 0.0
                record.append_metrics({"step": step, "validation_accuracy": reached, "validation_kl_to_base": drifted})
            right = [n < 20 * accuracy for n in range(20)]
            record.write_items(
                {"split": "test", "item_id": f"i{n}", "correct": ok, "reward": float(ok), "truncated": 0}
                for n, ok in enumerate(right)
            )
            outcome = {"accuracy": accuracy, "train_accuracy": accuracy, "kept_fraction": kept, "kl_to_base": drift}
            record.finish({"status": "done", "steps_done": config.steps, **outcome})
    return SweepResult(list(runs), list(runs))


def test_the_runs_are_trained_and_judged_beside_the_committed_ones(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # the committed tables are found from anywhere
    words = ["--seeds", "1", "--workers", "1", *(word for name, value in TINY.items() for word in ("--set", f"{name}={value}"))]
    assert check("N4", tmp_path, *words) == 0
    shown = capfd.readouterr().out
    runs = dict(trained_in(tmp_path))
    base, grpo = correct(runs["base"]), correct(runs["grpo"])
    assert len(trained_in(tmp_path)) == 2 and set(base) == set(grpo) and len(base) == TINY["test_items"]
    value, low, high = map(float, row(shown, "here").split()[1:4])
    assert value == pytest.approx(100 * (sum(grpo.values()) - sum(base.values())) / len(base), abs=0.01) and low <= value <= high
    committed = read_tables(RESULTS / "nano")["verdicts"].set_index("claim").loc["N4"]
    assert row(shown, "committed").split()[1:4] == [f"{committed[name]:.2f}" for name in ("value", "low", "high")]
    assert all(any(verdict in row(shown, name) for verdict in VERDICTS) for name in ("here", "committed"))


def test_a_failed_run_is_named_and_ends_with_1(tmp_path, monkeypatch, capsys):
    def run_plan(planned: Sequence[PlannedRun], runs_dir: Path, **_) -> SweepResult:
        done = finish([run for run in planned if run.config.method == "base"], runs_dir)
        return SweepResult([run.config.run_id for run in planned], done.done, [], {planned[-1].config.run_id: "killed by SIGKILL"})

    monkeypatch.setattr("replication.sweep.run_plan", run_plan)
    assert check("N4", tmp_path, "--seeds", "1") == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"failed: {tmp_path / 'runs'}/") and err.endswith(": killed by SIGKILL\n") and err.count("\n") == 1
    assert row(out, "here").split() == ["here", "points", "not", "run"] and row(out, "committed")


def test_an_unknown_claim_is_one_line(tmp_path, capsys):
    assert check("N99", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: unknown claim 'N99': choose one of C1, ") and err.count("\n") == 1 and not out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NANO)
def test_the_runs_of_a_claim_are_enough_for_its_verdict(name, tmp_path, monkeypatch, capsys):
    claim = NANO[name]
    trained: list[PlannedRun] = []

    def run_plan(planned: Sequence[PlannedRun], runs_dir: Path, **_) -> SweepResult:
        trained.extend(planned)
        return finish(planned, runs_dir)

    monkeypatch.setattr("replication.sweep.run_plan", run_plan)
    monkeypatch.setattr(commands, "RESULTS", tmp_path / "nowhere")  # to read the committed ones a dozen times takes long
    assert check(name, tmp_path, "--seeds", "2") == 0
    assert "not run" not in row(capsys.readouterr().out, "here")
    methods = {run.config.method for run in trained}
    assert set(claim.methods) <= methods <= {*claim.methods, "base"}
    seeds = {run.config.seed for run in trained if run.config.method != "base"}
    assert len(seeds) == (2 if set(claim.methods) - {"base"} else 0)


def with_cells(patch: pytest.MonkeyPatch, *cells: dict[str, float]) -> None:
    """Let the full plan of nano run these cells of the regimes with new seeds, and no others."""
    profile = copy.deepcopy(ablations.profile_plan("nano"))
    rates = dict.fromkeys(("grpo", "s_grpo", "t_spmo"), 1e-3)
    profile["full"]["regimes"]["confirm"] = [{"cell": cell, "learning_rate": rates} for cell in cells]
    patch.setattr(ablations, "profile_plan", lambda name: profile)


def test_a_cell_is_checked_by_its_new_seeds_alone(tmp_path, monkeypatch, capsys):
    """The whole screening was planned too, and none of its runs counts for the verdict."""
    with_cells(monkeypatch, {"group_size": 4})
    monkeypatch.setattr("replication.sweep.run_plan", finish)
    assert check("N10", tmp_path) == 0
    trained = [folder.name for method, folder in trained_in(tmp_path) if method != "base"]
    assert len(trained) == 9 and "not run" not in row(capsys.readouterr().out, "here")
    planned = {run.config.run_id: run.config for run in plan("nano", ["regimes"], variant="full")}
    assert all(NEW_SEED <= planned[run_id].seed < NEW_SEED + 3 for run_id in trained)


def test_a_claim_without_runs_is_one_line(tmp_path, monkeypatch, capsys):
    with_cells(monkeypatch)
    assert check("N10", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "nothing to check: N10 rests on runs of GRPO, S-GRPO, T-SPMO" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_committed_tables_the_claim_is_judged_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("replication.sweep.run_plan", finish)
    monkeypatch.setattr(commands, "RESULTS", tmp_path / "nowhere")
    assert check("N4", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert err == f"there are no committed tables in {tmp_path / 'nowhere/nano'}: nothing to compare with\n"
    assert "not run" in row(out, "committed") and "not run" not in row(out, "here")


def test_damaged_committed_tables_are_one_line_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano/runs.csv").write_text("cut o")
    monkeypatch.setattr(commands, "RESULTS", tmp_path)
    assert check("N4", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "runs.csv is garbled" in err and err.count("\n") == 1 and not (tmp_path / "out").exists()

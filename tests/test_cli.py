"""The command line: exit statuses, one line for what a user can fix."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from stand_ins import StandIn, plan, train

from replication import commands
from replication.__main__ import main
from replication.config import parse_settings
from replication.errors import UserError
from replication.runs import read_failure, read_summary
from replication.tables import read_tables, write_tables

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command ``run`` with a stand-in for the training function; gives its status."""

    def status(out: Path, *more: str, fault: str = "none") -> int:
        stand_in = lambda config, out: train(StandIn(seed=config.seed, steps=config.steps, fault=fault), out)  # noqa: E731
        monkeypatch.setattr("replication.train.run", stand_in)
        words = ["run", "--profile", "smoke", "--task", "word_problems", "--method", "grpo", "--seed", "1", *more]
        return main([*words, "--out", str(out)])

    return status


def test_a_run_that_is_done_is_0_and_left_alone_afterwards(run, tmp_path, capsys):
    assert run(tmp_path / "run") == 0
    assert " done, accuracy 0.500 on 4 test items" in capsys.readouterr().out
    before = (tmp_path / "run/summary.json").stat().st_mtime_ns
    assert run(tmp_path / "run") == 0
    assert (tmp_path / "run/summary.json").stat().st_mtime_ns == before
    capsys.readouterr()
    assert run(tmp_path / "run", "--set", "steps=9") == 2
    err = capsys.readouterr().err
    assert "holds a run of another config (steps is" in err and err.count("\n") == 1


@pytest.mark.parametrize(("fault", "status"), [("raises", 1), ("diverges", 1), ("user", 2)])
def test_a_run_that_fails(run, tmp_path, capsys, fault, status):
    assert run(tmp_path / "run", fault=fault) == status
    out, err = capsys.readouterr()
    if fault == "raises":
        assert "Traceback" in err and "fault that was asked for" in read_failure(tmp_path / "run")["reason"]
    if fault == "diverges":
        assert "diverged" in out and read_summary(tmp_path / "run").status == "diverged"
    if fault == "user":
        assert err == "error: set this differently\n"


BAD = {
    "a profile said twice": (["notebooks", "--set", "profile=nano"], "--set profile: use the option --profile"),
    "a folder said twice": (["notebooks", "--set", "results_dir=x"], "--set results_dir: use the option --out"),
    "no command": ([], "COMMAND"),
    "unknown command": (["trian"], "invalid choice: 'trian'"),
    "unknown option": (["sweep", "--worker", "2"], "unrecognized arguments: --worker"),
    "missing option": (["run", "--profile", "smoke"], "required: --task, --method, --seed, --out"),
    "seed is no number": (["run", "--seed", "one"], "--seed: invalid int value: 'one'"),
    "unknown profile": (["sweep", "--profile", "mega", "--list"], "unknown profile 'mega': choose one of smoke, nano, small"),
    "unknown ablation": (["sweep", "--list", "--ablation", "x"], "unknown ablation 'x': choose one of full_vs_sparse"),
    "unknown plan": (["sweep", "--list", "--plan", "x"], "unknown plan 'x': choose default or full"),
    "no seeds": (["sweep", "--list", "--seeds", "0"], "seeds must be 1 or more, not 0"),
    "unknown task": (["run", "TASK=poems"], "unknown task 'poems': choose one of"),
    "unknown method": (["run", "METHOD=sarsa"], "unknown method 'sarsa': choose one of"),
    "negative seed": (["run", "SEED=-1"], "seed: Input should be greater than or equal to 0 (is -1)"),
    "unknown field": (["run", "--set", "learning_rat=1"], "learning_rat is not a setting (did you mean learning_rate?)"),
    "field of an option": (["run", "--set", "seed=1"], "--set seed: use the option --seed"),
    "no value": (["run", "--set", "steps"], "--set 'steps' is not FIELD=VALUE"),
    "no number": (["run", "--set", "steps=many"], "steps: Input should be a valid integer"),
    "rank -1": (["run", "--set", "lora_rank=-1"], "lora_rank: Input should be greater than or equal to 0 (is -1)"),
    "no YAML": (["run", "--set", "steps=[1"], "--set steps: while parsing"),
    "code is text": (["run", "--set", "steps=__import__('os').getpid()"], "steps: Input should be a valid integer"),
    "a tag of Python": (["run", "--set", "lora_targets=!!python/object/apply:os.getpid []"], "could not determine a constructor"),
    "keep probability 2": (["run", "METHOD=s_grpo", "--set", "keep_probability=2"], "keep_probability: Input should be less"),
    "nothing there": (["report", "--out", "/nonexistent-results"], "no tables in /nonexistent-results"),
    "no tables": (["figures", "--out", "/nonexistent-results"], "no tables in /nonexistent-results"),
    "a setting that is an option": (["diagnose", "--set", "task=multiplication"], "--set task: diagnose measures every method"),
    "no truth there": (["diagnose", "--task", "svamp"], "--task: invalid choice: 'svamp'"),
    "a path for a notebook": (["notebooks", "../notebooks/00_overview"], "a name without folder and suffix"),
    "threads nobody has": (["run", "--set", "threads=1000"], "threads: Input should be less than or equal to 256"),
    "unknown notebook": (["notebooks", "77_nothing", "--no-train"], "there is no notebook 77_nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_usage_is_2_with_one_line_that_says_what_to_change(case, capsys, tmp_path):
    words, message = BAD[case]
    if words[:1] == ["run"] and "--seed" not in words and "--profile" not in words:
        chosen = {"TASK": "word_problems", "METHOD": "grpo", "SEED": "0"}
        chosen |= dict(word.split("=") for word in words if word.split("=")[0].isupper())
        rest = [word for word in words[1:] if not word.split("=")[0].isupper()]
        words = ["run", "--profile", "smoke", "--task", chosen["TASK"], "--method", chosen["METHOD"], f"--seed={chosen['SEED']}"]
        words += [*rest, "--out", str(tmp_path / "run")]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and err.startswith("error: ") and not out
    assert not (tmp_path / "run").exists()


def test_help_is_quick_and_names_every_command():
    began = time.monotonic()
    words = [sys.executable, "-X", "importtime", "-m", "replication", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and time.monotonic() - began < 5
    assert not {"torch", "pandas", "pydantic", "numpy"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    for command in ("run", "sweep", "report", "figures", "notebooks", "verify", "check", "publish", "base", "prompts", "diagnose"):
        assert f"    {command}" in done.stdout
        assert callable(getattr(commands, command))


def test_settings_are_read_as_yaml():
    found = parse_settings(["a=1", "b=1e-3", "c=[x, y]", "d=null", 'e="1"', "f=p=q", "a=2"])
    assert found == {"a": 2, "b": 0.001, "c": ["x", "y"], "d": None, "e": "1", "f": "p=q"}
    with pytest.raises(UserError):
        parse_settings(["a=" + "[" * 100_000])


def test_the_listed_plan_is_a_command_per_run(capsys):
    assert main(["sweep", "--profile", "nano", "--list", "--seeds", "1"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert all(line.startswith("python -m replication run --profile nano") for line in lines) and f"{len(lines)} runs" in err
    assert len({line.partition("--out ")[2] for line in lines}) == len(lines)


def test_a_listed_run_whose_folder_is_not_known_is_a_comment(capsys):
    """109 runs of one list went to one folder, RUN_ID, where the data were missing; the status was 0."""
    assert main(["sweep", "--profile", "paper", "--list", "--seeds", "1", "--svamp", "/data/SVAMP.json"]) == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert all(line.startswith("# python -m replication run --profile paper") for line in lines if "RUN_ID" in line)
    assert all(("svamp_source" in line) == ("--task svamp" in line) for line in lines)
    assert f"{len(lines)} runs" in err and "cannot read SVAMP from /data/SVAMP.json" in err.splitlines()[-1]


def test_a_sweep_ends_with_1_and_lists_what_is_missing(tmp_path, monkeypatch, capsys):
    configs = [StandIn(seed=0), StandIn(seed=1, fault="raises")]
    planned = plan(*configs)

    def run_plan(runs, folder, **_):
        from replication.sweep import SweepResult

        train(configs[0], folder / configs[0].run_id)
        return SweepResult([config.run_id for config in configs], [configs[0].run_id], [], {configs[1].run_id: "killed"})

    monkeypatch.setattr(commands, "_plan", lambda options, names=None: planned)
    monkeypatch.setattr("replication.sweep.run_plan", run_plan)
    words = ["sweep", "--profile", "smoke", "--out", str(tmp_path)]
    assert main(words) == 1
    err = capsys.readouterr().err
    missing = f"missing: {tmp_path / 'runs' / configs[1].run_id}: killed"
    assert missing in err and "1 of 2 runs finished" in err
    tables = read_tables(tmp_path)
    assert tables["runs"]["status"].tolist() == ["done", "pending"] and "verdicts" in tables
    assert json.loads((tmp_path / "manifest.json").read_text())["plan"]["plan"] == "default"

    def refused(*_) -> None:
        raise UserError("a file of another run is damaged")

    monkeypatch.setattr("replication.report.rebuild_tables", refused)
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines() == [missing, "error: a file of another run is damaged"]


@pytest.mark.parametrize("plan", ["x", ["x"], {"plan": 1}, {"set": [5]}, {"seeds": "2"}, {"plan": "default", "sedes": 1}])
def test_a_manifest_whose_plan_is_nonsense_is_one_line(tmp_path, capsys, plan):
    """It was a TypeError with its traceback."""
    (tmp_path / "out/runs").mkdir(parents=True)
    write_tables({}, tmp_path / "out", {"plan": plan})
    assert main(["report", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "does not say of which plan the tables are" in err


def test_verify_says_claim_by_claim_and_ends_with_1_on_disagreement(tmp_path, capsys):
    row = {"claim": "N1", "paper_value": None, "value": 70.0, "low": 65.0, "high": 75.0, "verdict": "supported"}
    write_tables({"verdicts": pd.DataFrame([row])}, tmp_path / "mine", {})
    write_tables({"verdicts": pd.DataFrame([row | {"value": 72.0, "low": 66.0, "high": 76.0}])}, tmp_path / "near", {})
    write_tables({"verdicts": pd.DataFrame([row | {"value": 90.0, "low": 85.0, "high": 95.0}])}, tmp_path / "far", {})
    write_tables({"verdicts": pd.DataFrame([row, row | {"claim": "N9g"}])}, tmp_path / "more", {})
    write_tables({"verdicts": pd.DataFrame([row | {"claim": "N9g"}])}, tmp_path / "other", {})
    words = ["verify", "--out", str(tmp_path / "mine"), "--committed"]
    assert main([*words, str(tmp_path / "near")]) == 0
    assert "1 agree, 0 disagree" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "far")]) == 1
    assert "0 agree, 1 disagree" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "more")]) == 0, "`make all` plans fewer runs than the committed tables hold"
    assert "no runs for N9g" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "other")]) == 1, "nothing agrees"

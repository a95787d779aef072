"""Processes of the command line: signals, readers that leave, full disks, streams that were never open cost no work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny_runs import HELPERS

from replication.names import ROOT
from replication.runs import read_summary

#: The real command line with a stand-in for the training function; ``BODY`` is what it does besides.
FAKE = f"""
    import sys, time, types
    sys.path.insert(0, {str(HELPERS)!r})
    from stand_ins import StandIn, train

    def run(config, out):
        BODY
        return train(StandIn(seed=config.seed, steps=4, seconds_per_step=SECONDS), out)

    sys.modules["replication.train"] = types.SimpleNamespace(run=run)
    from replication.__main__ import main
    sys.exit(main())
"""
#: Writes more than any buffer holds to both streams, as a loading bar and a report do.
LOUD = 'for _ in range(3000): print("x" * 50); print("x" * 50, file=sys.stderr)'


def words(out: Path, body: str = LOUD, seconds: float = 0.0) -> list[str]:
    code = textwrap.dedent(FAKE).replace("BODY", body).replace("SECONDS", str(seconds))
    options = ["run", "--profile", "smoke", "--task", "word_problems", "--method", "grpo", "--seed", "1", "--out", str(out)]
    return [sys.executable, "-c", code, *options]


def shell(redirections: str, command: list[str]) -> subprocess.CompletedProcess:
    """Run a command under redirections of a shell; the status is its own, also before a pipe."""
    words = ["bash", "-o", "pipefail", "-c", f'"$@" {redirections}', "bash", *command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("redirections", ["<&- >&- 2>&-", "2>/dev/full", "2>&1 | true"])
def test_a_run_is_done_whatever_becomes_of_its_streams(tmp_path, redirections):
    """It ended with "cannot load the model: Broken pipe", or with a traceback and status 1 after all was done."""
    done = shell(redirections, words(tmp_path / "run"))
    assert done.returncode == 0 and "Traceback" not in done.stderr and "rror" not in done.stderr
    assert read_summary(tmp_path / "run").status == "done"
    # Nothing that was printed went into a file that got the number of a closed stream.
    assert "xxx" not in "".join(path.read_text() for path in (tmp_path / "run").iterdir())


def test_output_that_a_full_disk_did_not_take_is_told_after_the_work(tmp_path):
    done = shell(">/dev/full", words(tmp_path / "run"))
    assert done.returncode == 1 and "stdout: No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert read_summary(tmp_path / "run").status == "done"


def test_a_real_run_loads_its_model_and_trains_without_readers(random_base, tmp_path):
    settings = [f"model={random_base}", "steps=1", "prompts_per_step=2", "group_size=2", "max_new_tokens=4", "eval_items=2"]
    options = [word for setting in [*settings, "test_items=2"] for word in ("--set", setting)]
    command = [sys.executable, "-m", "replication", "run", "--profile", "smoke", "--task", "multiplication", "--method", "grpo"]
    done = shell("2>&1 | true", [*command, "--seed", "1", *options, "--out", str(tmp_path / "run")])
    assert done.returncode == 0 and read_summary(tmp_path / "run").status == "done"


def test_prompts_are_measured_without_streams(random_base, tmp_path):
    settings = [f"model={random_base}", "max_new_tokens=8", "eval_items=2"]
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "replication", "prompts", "--profile", "smoke", "--task", "multiplication", *options]
    assert shell(">&- 2>&-", [*command, "--out", str(tmp_path / "out")]).returncode == 0 and (tmp_path / "out/prompts.csv").exists()


def test_a_signal_saves_and_the_next_start_goes_on(tmp_path):
    def started() -> subprocess.Popen:
        command = words(tmp_path / "run", "pass", seconds=0.5)
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for done, signum in enumerate((signal.SIGINT, signal.SIGTERM)):
        process = started()
        assert f"from step {done} " in process.stdout.readline()
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signum and "work so far is saved" in err and "Traceback" not in err
        assert read_summary(tmp_path / "run") is None
    process = started()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "from step 2 " in out
    assert [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)])
def test_a_second_signal_ends_a_run_at_once(tmp_path, first, second):
    """A run with an absurd number of prompts a step was still at work 38 minutes after two SIGTERMs."""
    body = "signal_came = __import__('replication.signals').signals.stop_requested; print('at work', flush=True)\n"
    body += "    while True: time.sleep(0.1); signal_came() and print('noted', flush=True)"
    code = ["env", "--default-signal=HUP", *words(tmp_path / "run", body)]  # the tests may run under nohup, which is passed on
    process = subprocess.Popen(code, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    process.send_signal(first)
    assert process.stdout.readline() == "noted\n"
    process.send_signal(second)
    assert process.wait(10) == -second
    assert process.communicate()[1] == ""


def test_help_without_docstrings():
    """The description of the command line was read from a docstring, which python -OO leaves out."""
    done = subprocess.run([sys.executable, "-OO", "-m", "replication", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "sweep" in done.stdout

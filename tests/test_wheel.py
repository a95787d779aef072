"""A wheel, installed into an environment of its own without the repository around it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from tiny_runs import make_base

from replication.names import ROOT


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The python of an environment that has the wheel, and a folder far from the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "replication", source / "replication", ignore=shutil.ignore_patterns("__pycache__"))
    # The packages that this Python has are used; the index is not asked for anything.
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
    done = run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, source, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    venv.create(folder / "env", with_pip=False)
    python = folder / "env/bin/python"
    site = next((folder / "env/lib").glob("python*/site-packages"))
    # Behind its own packages this environment sees those that the tests run with, but not the project's own folder.
    (site / "shared.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    wheel = next(folder.glob("*.whl"))
    done = run(sys.executable, "-m", "pip", "install", *offline[:2], "--quiet", "--target", site, wheel, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "work").mkdir()
    return python, folder / "work"


@pytest.mark.slow
def test_the_readmes_example_runs_from_a_wheel(installed):
    python, folder = installed
    (source,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    done = run(python, "-c", "import replication; print(replication.__file__)\n" + source, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    where, *rows = done.stdout.splitlines()
    assert str(folder.parent / "env") in where and len(rows) == 4


@pytest.mark.slow
def test_a_stranger_trains_and_reports_on_own_problems_from_a_wheel(installed):
    python, folder = installed
    make_base(folder / "base")
    lines = [json.dumps({"prompt": f"Question: What is {n}+1?\nAnswer:", "answer": n + 1}) + "\n" for n in range(60)]
    (folder / "problems.jsonl").write_text("".join(lines))
    words = [python, "-m", "replication", "sweep", "--profile", "smoke", "--ablation", "full_vs_sparse", "--data", "problems.jsonl"]
    words += ["--set", "model=base", "--set", "max_new_tokens=8", "--out", "results", "--workers", "1"]
    done = run(*words, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(python, "-m", "replication", "report", "--profile", "smoke", "--out", "results", cwd=folder)
    assert done.returncode == 0 and (folder / "results/report.html").exists(), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["notebooks", "--profile", "smoke"],
        ["run", "--profile", "smoke", "--task", "word_problems", "--method", "grpo", "--seed", "0", "--out", "run"],
    ],
    ids=["notebooks", "run"],
)
def test_what_needs_the_repository_says_so_in_one_line(installed, words):
    python, folder = installed
    done = run(python, "-m", "replication", *words, cwd=folder)
    assert done.returncode == 2 and "in the repository, not in an installed package" in done.stderr
    assert done.stderr.count("\n") == 1

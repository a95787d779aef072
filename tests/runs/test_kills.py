"""SIGKILL at random points of a run, also while a checkpoint is written: resumed, it is the same run byte for byte."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"
POINTS = 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "s_grpo", "t_spmo"])
def test_killed_at_random_points_and_resumed_is_the_same_run(random_base, tmp_path, kind):
    """12 points for each method, 36 in all: see killed_runs.py."""
    words = [sys.executable, str(HELPERS / "killed_runs.py"), str(random_base), str(tmp_path), kind, str(POINTS)]
    env = os.environ | {"PYTHONPATH": f"{HELPERS}{os.pathsep}{HELPERS.parents[1]}"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == POINTS
    assert sum(bool(re.search(r"\((write|fsync|replace) checkpoints/\.?step-", line)) for line in lines) >= POINTS // 4, lines

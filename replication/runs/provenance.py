"""Where a result comes from: commit, packages and machine, written beside every run and table."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from replication.names import ROOT

#: Packages that can change a number of a run.
PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy", "scipy", "pandas", "pydantic", "tokenizers")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def _in_own_repository() -> bool:
    # A copy of the project, or an installed one, may lie inside a repository of something else.
    top = _git("rev-parse", "--show-toplevel")
    return top is not None and Path(top).resolve() == ROOT


@functools.cache
def commit() -> str | None:
    """The commit of the project's working tree, or None outside its own git repository."""
    return _git("rev-parse", "HEAD") if _in_own_repository() else None


@functools.cache
def dirty() -> bool | None:
    """Whether the tree differs from its commit, or None outside git. Results do not count: runs write them."""
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)results") if _in_own_repository() else None
    return None if changes is None else bool(changes)


def now() -> str:
    """The time in UTC, to the second. It is recorded; nothing depends on it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@functools.cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # not imported for this: that takes seconds
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _command() -> str:
    name, package = Path(sys.argv[0]).name, Path(sys.argv[0]).parent.name
    return shlex.join([*(["python", "-m", package] if name == "__main__.py" else [name]), *sys.argv[1:]])


def manifest() -> dict[str, Any]:
    """Commit and dirty flag, package versions, python, cpu, cores, memory, gpu, and the command of this process."""
    return {
        "commit": commit(),
        "dirty": dirty(),
        "command": _command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpu(),
    }

"""Where a result comes from: commit, packages, machine and command, written beside every run and table."""

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

#: Those that can change a number; the notebooks' packages are pinned in pyproject.toml like them.
PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy", "scipy", "pandas", "pydantic", "tokenizers")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def commit() -> str | None:
    """The commit of the working tree, or None outside git."""
    return _git("rev-parse", "HEAD")


@functools.cache
def dirty() -> bool | None:
    """Whether the tree differs from its commit; results are what runs write, so they do not count. None outside git."""
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)results")
    return None if changes is None else bool(changes)


def now() -> str:
    """The time in UTC, to the second; recorded only, nothing is ever decided by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@functools.cache
def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # never imported for this: it takes seconds
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(0)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _packages() -> dict[str, str | None]:
    return {name: _version(name) for name in PACKAGES}


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
        "packages": dict(_packages()),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpu(),
    }

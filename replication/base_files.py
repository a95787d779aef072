"""The files of a base model: a folder, one GGUF file, or a name on the Hub; and the checksum that stands for them."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replication.errors import UserError
from replication.names import NANO_BASE


def is_gguf(model: str) -> bool:
    """Whether a model is given as one GGUF file (weights, config and tokenizer in one, often quantised)."""
    return Path(model).suffix.lower() == ".gguf"


def is_local(model: str) -> bool:
    """Whether the model lies on this disk, so that its bytes identify it and its path does not."""
    return is_gguf(model) or Path(model).is_dir()


def check_gguf(path: str) -> None:
    """Raise unless ``path`` is a GGUF file and the package that reads it is installed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not begin as a GGUF file does.
        ImportError: the package is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file (broken download?)")
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("a GGUF file needs the package gguf: pip install '.[gguf]'")


@contextmanager
def readable(model: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The name and the keywords with which ``from_pretrained`` reads a model, inside the block.

    A GGUF file is shown to it alone in a temporary folder: beside a GGUF file transformers also reads tokenizer_config.json and
    generation_config.json, which may belong to another model and are not part of the checksum.
    """
    if not is_gguf(model):
        yield model, {}
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").symlink_to(Path(model).resolve())
        yield folder, {"gguf_file": "model.gguf"}


def base_fingerprint(model: str, revision: str | None = None) -> str:
    """The text that stands for the base model in a run id.

    Returns:
        For a folder the sha256 over names and bytes of its weights, config and tokenizer; for a GGUF file the sha256 of the file;
        for a model on the Hub name@revision.

    Raises:
        UserError: the shipped base is missing, a folder has no weights, or a file cannot be read.
    """
    folder = NANO_BASE if model == "nano" else Path(model)
    try:
        if is_gguf(model):
            return _checksum((folder,), _stamps(folder))
        if not folder.is_dir():
            if model == "nano":
                raise UserError(f"the shipped base is missing: {folder} (it is in the repository, not in an installed package)")
            return f"{model}@{revision or 'main'}"
        # Older tokenizers lie in vocab.json and merges.txt, or in *.model.
        own = ("config.json", "vocab.json", "merges.txt")
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md")
        files = [p for p in files if p.name in own or "token" in p.name or p.suffix in (".safetensors", ".model")]
        if not any(path.suffix == ".safetensors" for path in files):
            raise UserError(f"no *.safetensors weights in {folder}: point MODEL at a folder that from_pretrained can read")
        return _checksum(tuple(files), _stamps(*files))
    except OSError as error:
        raise UserError(f"cannot read the model: {error.filename}: {error.strerror}; set another model, or its rights") from None


def _stamps(*files: Path) -> tuple[tuple[int, int], ...]:
    return tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files)


@functools.lru_cache(maxsize=8)
def _checksum(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    """The sha256 over the files; a changed file has another stamp, so it is read again."""
    digest = hashlib.sha256()
    for path in files:
        if not is_gguf(path.name):
            digest.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()

"""Writing and reading whole files: an atomic write leaves the old file or the new one, and every error says what to change."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replication.errors import UserError


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn an OSError into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; correct that or choose another folder, then start again: "
            "nothing that was saved is lost"
        ) from error


def make_folder(path: Path) -> None:
    """``mkdir -p``.

    Raises:
        UserError: the folder cannot be made.
    """
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data`` in one step: after a kill or a power cut the old file is there, or the new one.

    The bytes go to a new name beside the file, reach the disk, and are renamed; then the folder with the new name reaches it.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old file is as it was.
    """
    path = Path(path)
    data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    # A random name: processes of two machines that share a disk may have the same number.
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained(path):
        try:
            with open(fresh, "xb", buffering=0) as file:
                _write_all(file.fileno(), data)
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        sync(path.parent)


def append(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of a file.

    Raises:
        UserError: it cannot be written, or only in part.
    """
    with explained(path), open(path, "ab", buffering=0) as file:
        _write_all(file.fileno(), data)


def _write_all(descriptor: int, data: bytes) -> None:
    # A disk that fills up takes a part first; the next call then raises the error that says so.
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync(path: Path) -> None:
    """Wait until the disk has the bytes of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed ``atomic_write`` left behind; only the holder of the folder's lock may do this."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The value as JSON gives it back, with None for floats that are not finite; scalars of numpy and torch are numbers."""
    return json.loads(json.dumps(value, default=lambda scalar: scalar.item()), parse_constant=lambda _: None)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON, the same text for the same value."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it cannot be read or is not JSON.
    """
    with explained(path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what} (cut off or edited: {error}); move it away and start again") from None

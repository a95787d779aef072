"""Writing files so that nothing existing is ever lost: whole or not at all, locked, with errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replication.errors import UserError

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a folder that can be written to",
    errno.EPERM: "choose a folder that can be written to",
    errno.ENOTDIR: "a file stands where a folder should be: move it away or choose another folder",
    errno.EEXIST: "a file stands where a folder should be: move it away or choose another folder",
    errno.EISDIR: "a folder stands where a file should be: move it away or choose another folder",
    errno.EMFILE: "raise the limit on open files",
}


class Locked(UserError):
    """Another process holds this run directory."""


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn an OSError into a UserError that names the path and what to do about it."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "mend it or choose another folder")
        raise UserError(f"{path}: {error.strerror or error}; {advice}, then start again: nothing that was saved is lost") from error


def make_folder(path: Path) -> None:
    """``mkdir -p`` with an explained error; the names of new folders are on the disk afterwards."""
    with explained(path):
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in new:
            with contextlib.suppress(PermissionError):  # a folder above that may be entered, not read
                sync_folder(folder.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; a short write (a disk that fills up) is followed by the error that explains it."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data`` as one step: a reader, and a machine that loses power, sees the old file or the new one.

    The bytes go to a new name beside the file, are synced to the disk and renamed; then the folder is synced, so that the new
    name itself is on the disk.

    Raises:
        UserError: if the disk is full or the folder cannot be written; the old file is then as it was.
    """
    path = Path(path)
    with explained(path):
        fresh = stage(path, data)
        try:
            os.replace(fresh, path)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        sync_folder(path.parent)


def stage(path: Path, data: bytes | str) -> Path:
    """Write ``data`` to a new name beside ``path`` and onto the disk, ready to be renamed; nothing is left if that fails."""
    if isinstance(data, str):
        data = data.encode("utf-8", "backslashreplace")
    # Of chance, not of the process: two machines on one disk have processes of one number. What is there, a link too, stays.
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    return fresh


def sync_folder(path: Path) -> None:
    """Make new, renamed and removed names of a folder durable; of a file, its bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed ``atomic_write`` left behind; only for a holder of the folder's lock."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


class Lock:
    """An exclusive lock on a file, let go by ``release`` or by the death of the process, never left behind.

    The file itself stays: removing it would let two processes lock two files of one name.

    Args:
        path: the file, made if missing.
        wait: until whoever holds it lets go, rather than raise Locked.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        self._descriptor: int | None = None
        with explained(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                self.release()
                raise Locked(f"{path.parent} is in use by another process: wait for it, or choose another folder") from None
            except BaseException:
                self.release()
                raise

    def hold(self) -> None:
        """Raise Locked if the lock was lost to another process: a network disk forgets the locks of a machine it lost sight of."""
        with explained(self.path):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(f"{self.path.parent} was taken over by another process: it goes on there") from None

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def finite(value: Any) -> Any:
    """The same value with floats that are not finite replaced by None, in depth: JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):  # a scalar of numpy or torch
        return finite(value.item())
    return value


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON, the same text for the same value."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: if it cannot be read or is cut off.
    """
    with explained(path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what} (cut off or edited: {error}); move it away and start again") from None

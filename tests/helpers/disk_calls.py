"""The calls that change the disk, one by one: noted, made to fail, or made the last that a process does."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

CALLS = ("write", "fsync", "replace", "truncate", "unlink", "mkdir", "rmdir")
#: Those that a full disk refuses.
GROWING = ("write", "fsync", "replace", "mkdir")


def interfere(
    folder: Path,
    number: int | None,
    act: Callable[[], Any],
    *,
    names: tuple[str, ...] = CALLS,
    setattr: Callable[[Any, str, Any], Any] = setattr,
) -> list[str]:
    """Note each call that changes something at or under ``folder``, as "name path"; at the ``number``-th (from 0) ``act`` first.

    If that call is a write, half of its bytes reach the file before. The path is relative to the folder; that of a rename is
    the new name.
    """
    seen: list[str] = []
    folder = folder.resolve()
    for name in names:
        original = getattr(os, name)

        def called(*arguments, _name=name, _original=original, **named):
            path = _path(arguments[1 if _name == "replace" else 0])
            if path == folder or folder in path.parents:
                seen.append(f"{_name} {path.relative_to(folder)}")
                if len(seen) - 1 == number:
                    if _name == "write":
                        _original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                    act()
            return _original(*arguments, **named)

        setattr(os, name, called)
    return seen


def _path(what: Any) -> Path:
    if isinstance(what, int):
        return Path(os.readlink(f"/proc/self/fd/{what}"))
    return Path(os.path.abspath(what))


def disk_full() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(act: Callable[[], Any]) -> int:
    """The status of a child that calls ``act``: 0, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

"""The exceptions that the command line turns into an exit status, and an error in one line."""

from __future__ import annotations


def first_line(error: BaseException, *, with_type: bool = False) -> str:
    """The first line of an error's text, after its type's name if wanted; that name alone where there is no text."""
    name, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return name
    return f"{name}: {lines[0]}" if with_type else lines[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch.OutOfMemoryError on a GPU, on a CPU a plain RuntimeError of torch."""
    signs = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)


class UserError(ValueError):
    """An error that the user can fix: printed as one line, exit status 2."""


class Diverged(RuntimeError):
    """A loss or gradient was not finite: the run ends with status ``diverged``, exit status 1."""


class Stopped(RuntimeError):
    """A signal asked the process to stop and the work so far is saved: exit status 128 + ``signum`` (129, 130 or 143)."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}, the work so far is saved")
        self.signum = signum

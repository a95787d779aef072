"""The exceptions that the command line turns into an exit status."""

from __future__ import annotations


class UserError(ValueError):
    """An error that the user can fix: printed as one line, exit status 2."""


class Diverged(RuntimeError):
    """A loss or gradient was not finite: the run ends with status ``diverged``, exit status 1."""


class Stopped(RuntimeError):
    """A signal asked the process to stop and the work so far is saved: exit status 128 + ``signum`` (130 or 143)."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}, the work so far is saved")
        self.signum = signum

    def __reduce__(self) -> tuple[type[Stopped], tuple[int]]:
        return type(self), (self.signum,)

"""The two exceptions that the command line turns into an exit status."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: printed as one line, exit status 2."""


class Diverged(RuntimeError):
    """A loss or gradient was not finite: the run ends with status ``diverged``, exit status 1."""

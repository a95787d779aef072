"""An error of a library in one line."""

from __future__ import annotations

import pytest

from replication.errors import first_line


@pytest.mark.parametrize(
    ("error", "line", "typed"),
    [
        (ValueError("one\ntwo"), "one", "ValueError: one"),
        (ValueError("\n  one\ntwo"), "one", "ValueError: one"),
        (ValueError(), "ValueError", "ValueError"),
        (ConnectionError(" \n"), "ConnectionError", "ConnectionError"),
    ],
    ids=repr,
)
def test_the_first_line_of_an_error_also_without_a_text(error, line, typed):
    """An error without a text from PEFT or Ray ended in an IndexError, which hid it."""
    assert (first_line(error), first_line(error, with_type=True)) == (line, typed)

"""Numbers as the sentences of figures and report write them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def percent(value: float, low: float, high: float) -> str:
    """A percentage with its interval; without one if there is none."""
    return f"{value:.1f} %" if pd.isna(low) else f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def points(value: float, low: float, high: float) -> str:
    """A difference in percentage points with its interval; without one if there is none."""
    return f"{value:+.1f} points" + ("" if pd.isna(low) else f" [{low:+.1f}, {high:+.1f}]")


def digits(value: float) -> str:
    """As many digits as a small share needs: two."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def plural(count: float, word: str) -> str:
    """The word, with an s unless it is one."""
    return word if count == 1 else f"{word}s"


def listing(parts: Sequence[str]) -> str:
    """Parts in a row, the last after "and"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]

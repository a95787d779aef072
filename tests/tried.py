"""What fuzzing and soaking tried, noted as rows of a table: the README states the sums of the committed one, results/safety."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from replication.manifest import ROOT, commit, dirty, now

PATH = ROOT / "results" / "local" / "tried.csv"
COLUMNS = ("schema_version", "made", "commit", "dirty", "what", "name", "count", "failed", "seconds")


def note(what: str, counts: dict[str, int], *, failed: int, seconds: float, path: Path = PATH) -> None:
    """Append a row for each count: of ``what`` (fuzz, soak), how many of ``name`` were tried in how many seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        shared: list[Any] = [1, now(), commit(), str(dirty()).lower(), what]
        writer.writerows([*shared, name, count, failed, round(seconds)] for name, count in counts.items())

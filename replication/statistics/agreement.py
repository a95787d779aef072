"""Whether a reader's verdicts and the committed ones agree, for `make verify`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from replication.errors import UserError


def compare_tables(mine: Mapping[str, Any] | pd.DataFrame, committed: Mapping[str, Any] | pd.DataFrame) -> pd.DataFrame:
    """Claim by claim, whether a reader's numbers and the committed ones agree within their intervals.

    Both arguments are a verdicts frame, or tables that hold one under ``verdicts``. Two intervals agree if they overlap, a
    value without an interval if it lies in the other's, two bare values if they are within 10 % of the committed one (memory:
    allocators differ). ``missing``: you did not measure what the committed tables have; ``not compared``: they have nothing.

    Returns:
        Columns claim, agreement (agree, disagree, missing, not compared), mine, mine_low, mine_high, committed, committed_low,
        committed_high, verdict_mine, verdict_committed; claims in the committed order, then those only the reader has.
    """
    left, right = _verdict_frame(mine, "your"), _verdict_frame(committed, "the committed")
    order = [*right.index, *(claim for claim in left.index if claim not in right.index)]
    rows = []
    for claim in order:
        a = left.loc[claim] if claim in left.index else None
        b = right.loc[claim] if claim in right.index else None
        row: dict[str, Any] = {"claim": claim, "agreement": _agreement(a, b)}
        for side, source in (("mine", a), ("committed", b)):
            for suffix, column in (("", "value"), ("_low", "low"), ("_high", "high")):
                row[side + suffix] = float("nan") if source is None else float(source[column])
        row["verdict_mine"] = "not run" if a is None else a["verdict"]
        row["verdict_committed"] = "not run" if b is None else b["verdict"]
        rows.append(row)
    numbers = ["mine", "mine_low", "mine_high", "committed", "committed_low", "committed_high"]
    return pd.DataFrame(rows, columns=["claim", "agreement", *numbers, "verdict_mine", "verdict_committed"])


def _verdict_frame(source: Mapping[str, Any] | pd.DataFrame, whose: str) -> pd.DataFrame:
    frame = source if isinstance(source, pd.DataFrame) else source.get("verdicts")
    columns = ["claim", "value", "low", "high", "verdict"]
    if frame is None or len(frame) == 0:
        return pd.DataFrame(columns=columns).set_index("claim")
    for column in columns:
        if column not in frame.columns:
            raise UserError(f"{whose} verdicts.csv has no column {column}: rebuild it with `make report`")
    frame = frame[columns].copy()
    for column in ("value", "low", "high"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce")
    if frame["claim"].duplicated().any():
        raise UserError(f"{whose} verdicts.csv has claim {frame['claim'][frame['claim'].duplicated()].iloc[0]} twice")
    return frame.set_index("claim")


def _agreement(a: pd.Series | None, b: pd.Series | None) -> str:
    if b is None or np.isnan(b["value"]):
        return "not compared"
    if a is None or np.isnan(a["value"]):
        return "missing"
    bare_a, bare_b = np.isnan(a["low"]), np.isnan(b["low"])
    if bare_a and bare_b:
        near = abs(a["value"] - b["value"]) <= 0.1 * abs(b["value"])
    else:
        low_a, high_a = (a["value"], a["value"]) if bare_a else (a["low"], a["high"])
        low_b, high_b = (b["value"], b["value"]) if bare_b else (b["low"], b["high"])
        near = low_a <= high_b and low_b <= high_a
    return "agree" if near else "disagree"

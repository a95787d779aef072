"""Whether a reader's verdicts and the committed ones agree, for `make verify`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from replication.statistics.accuracies import Tables


def compare_tables(mine: Tables, committed: Tables) -> pd.DataFrame:
    """Claim by claim, whether a reader's verdicts and the committed ones agree within their intervals.

    Two intervals agree if they overlap, a value without an interval if it lies in the other's, two bare values if they are within
    10 % of the committed one (memory: allocators differ). ``missing``: you did not measure what the committed tables have;
    ``not compared``: they have nothing.

    Returns:
        Columns claim, agreement (agree, disagree, missing, not compared), mine, mine_low, mine_high, committed, committed_low,
        committed_high, verdict_mine, verdict_committed; claims in the committed order, then those only the reader has.
    """
    sides = [_numbers_and_verdict(tables) for tables in (mine, committed)]
    claims = sides[1].index.union(sides[0].index, sort=False)
    a, b = (side.reindex(claims) for side in sides)
    near = (a["value"] - b["value"]).abs() <= 0.1 * b["value"].abs()
    a_low, a_high, b_low, b_high = (side[end].fillna(side["value"]) for side in (a, b) for end in ("low", "high"))
    agree = near.where(a["low"].isna() & b["low"].isna(), (a_low <= b_high) & (b_low <= a_high))
    kinds = [b["value"].isna(), a["value"].isna(), agree]
    table = pd.DataFrame({"claim": claims, "agreement": np.select(kinds, ["not compared", "missing", "agree"], "disagree")})
    for name, side in (("mine", a), ("committed", b)):
        table[[name, f"{name}_low", f"{name}_high"]] = side[["value", "low", "high"]].to_numpy()
    verdicts = {f"verdict_{name}": side["verdict"].fillna("not run").to_numpy() for name, side in (("mine", a), ("committed", b))}
    return table.assign(**verdicts)


def _numbers_and_verdict(tables: Tables) -> pd.DataFrame:
    columns = ["claim", "value", "low", "high", "verdict"]
    frame = tables.get("verdicts", pd.DataFrame(columns=columns))[columns].set_index("claim")
    return frame.astype({"value": float, "low": float, "high": float})

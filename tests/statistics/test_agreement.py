"""A reader's verdicts beside the committed ones."""

from __future__ import annotations

import pandas as pd

from replication.statistics import compare_tables


def _verdict_rows(**rows: tuple[float, float, float]) -> pd.DataFrame:
    frame = pd.DataFrame([(claim, *numbers, "supported") for claim, numbers in rows.items()])
    return frame.set_axis(["claim", "value", "low", "high", "verdict"], axis=1)


def test_compare_tables_by_overlap():
    nan = float("nan")
    committed = _verdict_rows(A=(70, 65, 75), B=(70, 65, 75), C=(70, 65, 75), D=(30, nan, nan), E=(30, nan, nan), F=(1, 0, 2))
    mine = _verdict_rows(A=(60, 55, 66), B=(50, 45, 64), C=(74, nan, nan), D=(31, nan, nan), E=(39, nan, nan), G=(1, 0, 2))
    result = compare_tables({"verdicts": mine}, {"verdicts": committed}).set_index("claim")["agreement"]
    assert result.to_dict() == {
        "A": "agree", "B": "disagree", "C": "agree", "D": "agree", "E": "disagree", "F": "missing", "G": "not compared",
    }  # fmt: skip
    assert compare_tables({}, {}).empty

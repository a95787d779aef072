"""The figure of the regimes: its margins are those of the claim, and no two kinds of seeds are drawn over each other."""

from __future__ import annotations

import pandas as pd
from matplotlib.colors import to_hex

from replication.names import CLAIMS
from replication.report import EXHIBITS
from replication.report.regimes import FAILS_UNDER, WORKS_ABOVE
from replication.statistics import load_claims


def test_the_margins_are_those_of_the_claim():
    (claim,) = [claim for claim in load_claims(CLAIMS) if claim.measure == "failing_cell"]
    assert (claim.fails_under, claim.threshold) == (FAILS_UNDER, WORKS_ABOVE)


def test_screening_and_new_seeds_of_a_cell_are_drawn_side_by_side():
    """New-seed S-GRPO stood on the same line as GRPO's screening."""
    kinds = [("grpo", "screening"), ("grpo", "new"), ("s_grpo", "new"), ("t_spmo", "new")]
    ends = {"learning_rate": 0.002, "gain": 10.0, "gain_low": 5.0, "gain_high": 15.0}
    table = pd.DataFrame([{"cell": "1 × 4", "method": method, "seeds_are": kind} | ends for method, kind in kinds])
    axis = EXHIBITS["regimes"].draw({}, "nano", table).axes[0]
    markers = [line for line in axis.lines if len(line.get_xdata()) == 1]
    places = sorted(line.get_ydata()[0] for line in markers)
    assert len(markers) == 4 and min(b - a for a, b in zip(places, places[1:], strict=False)) > 0.1
    assert [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in markers] == [True, False, False, False]

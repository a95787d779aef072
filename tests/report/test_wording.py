"""How numbers become texts."""

from __future__ import annotations

import pytest

from replication.report.wording import interval, p_text


@pytest.mark.parametrize(("value", "low", "high"), [(float("nan"), -0.6, 0.1), (float("nan"),) * 3])
def test_a_number_that_is_not_defined_is_an_empty_cell(value, low, high):
    """A cosine between noisy gradients may have no estimate and yet resamples with one: the report could not be built."""
    assert interval(value, low, high) == ""
    assert interval(0.5, float("nan"), float("nan")) == "0.5"


def test_a_p_value_says_where_it_is_only_an_upper_bound():
    """It was printed as p = 0.0005, which is no more than the number of resamples."""
    assert p_text(2 / 4001, at_floor=True) == "≤ 0.0005" and p_text(0.0213, at_floor=False) == "0.021"
    assert p_text(float("nan"), at_floor=False) == ""

"""How numbers become texts."""

from __future__ import annotations

import pytest

from replication.report.wording import interval


@pytest.mark.parametrize(("value", "low", "high"), [(float("nan"), -0.6, 0.1), (float("nan"),) * 3])
def test_a_number_that_is_not_defined_is_an_empty_cell(value, low, high):
    """A cosine between noisy gradients may have no estimate and yet resamples with one: the report could not be built."""
    assert interval(value, low, high) == ""
    assert interval(0.5, float("nan"), float("nan")) == "0.5"

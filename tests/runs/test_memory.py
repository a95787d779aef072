"""The recorded peak memory is that of this run alone."""

from __future__ import annotations

import sys

import pytest

from replication.runs import forget_peak_memory, peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_a_run_does_not_get_the_peak_of_the_run_before_it():
    """A worker that trained a large model and then a small one recorded the large one's peak for both.

    The last of many small blocks stays: below it, glibc keeps what is freed.
    """
    kept = []

    def peak_of(blocks: int) -> int:
        forget_peak_memory()
        held = [bytes(10_000) for _ in range(blocks)]
        kept.append(held[-1])
        del held
        return peak_memory()["peak_rss_bytes"]

    small = peak_of(100)
    assert peak_of(20_000) > small + 150e6
    assert peak_of(100) < small + 50e6

"""Valleys of interval distributions against their definition, and limits in whole samples."""

from __future__ import annotations

import numpy as np
import pytest
from burst_data import (
    RATE_HZ,
    make_trains,
    naive_histogram,
    naive_smooth,
    naive_threshold_ms,
    per_train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from toptune.features.interval_valley import (
    EDGES_MS,
    count_intervals,
    count_some,
    find_valley,
    smooth,
    whole_samples,
)
from toptune.params import BurstCriteria

C = BurstCriteria()

counts_of_70 = arrays.arrays(
    np.float64, 70, elements=st.sampled_from((0.0, 0.0, 0.0, 1.0, 2.0, 5.0, 20.0))
)


@settings(deadline=None, max_examples=150)
@given(counts_of_70)
def test_valleys_lie_between_peaks_that_the_void_parameter_parts(
    counts: NDArray[np.float64],
) -> None:
    smoothed = smooth(counts[None])[0]
    np.testing.assert_allclose(smoothed, naive_smooth(counts), atol=2e-9)
    valley = find_valley(smoothed, C)
    threshold_ms, peak = naive_threshold_ms(counts, C)
    assert valley.threshold_ms == pytest.approx(threshold_ms, nan_ok=True)
    assert valley.has_short_peak == peak


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from((0, 1, 2, 10, 11, 99, 100, 4095, 4096, 4097, 10**6)), max_size=30),
    st.sampled_from((RATE_HZ, 10_000, 25_000)),
)
def test_intervals_are_counted_in_tenths_of_decades(steps: list[int], rate_hz: int) -> None:
    expected = naive_histogram(steps, rate_hz)
    np.testing.assert_array_equal(count_some(np.array(steps, dtype=np.int64), rate_hz), expected)
    train = np.concatenate([[0], np.cumsum(steps)]).astype(int).tolist()
    cut, _ = per_train(make_trains([train, []], max(train) + 1, rate_hz))
    np.testing.assert_array_equal(count_intervals(cut), [expected, np.zeros(70)])


def test_edges_that_people_know_are_exact() -> None:
    assert EDGES_MS[[0, 10, 20, 30, 40, 70]].tolist() == [0.1, 1, 10, 100, 1000, 1e6]


@pytest.mark.parametrize(
    ("milliseconds", "rate_hz", "samples"),
    [(100, 10_000, 1000), (0.3, 10_000, 3), (12.589, 10_000, 125), (50, 12_500.5, 625)],
)
def test_times_are_truncated_to_whole_samples(
    milliseconds: float, rate_hz: float, samples: int
) -> None:
    assert whole_samples(milliseconds, rate_hz) == samples

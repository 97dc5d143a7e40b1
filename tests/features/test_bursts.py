"""Bursts of electrodes and of the network against their definitions written out."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from burst_data import (
    RATE_HZ,
    Train,
    make_trains,
    naive_histogram,
    naive_log_isi,
    naive_max_interval,
    naive_network_bursts,
    naive_smooth,
    naive_threshold_ms,
    per_train,
    spike_trains,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from toptune.features.bursts import (
    EDGES_MS,
    Bursts,
    NetworkBursts,
    count_intervals,
    count_some,
    find_valley,
    log_isi_bursts,
    log_isi_thresholds,
    max_interval_bursts,
    network_bursts,
    smooth,
)
from toptune.features.electrodes import whole_samples
from toptune.params import BurstCriteria
from toptune.recordings.trains import SpikeTrains

C = BurstCriteria()


def listed(bursts: Bursts, bounds: list[int]) -> list[list[tuple[int, int]]]:
    """Bursts of each train, counted from its first spike."""
    found: list[list[tuple[int, int]]] = [[] for _ in bounds[1:]]
    for first, last in zip(bursts.first.tolist(), bursts.last.tolist(), strict=True):
        train = max(k for k in range(len(bounds) - 1) if bounds[k] <= first)
        found[train].append((first - bounds[train], last - bounds[train]))
    return found


@settings(deadline=None, max_examples=150)
@given(
    spike_trains(), st.sampled_from((C, BurstCriteria(min_spikes=2, between_ms=0, duration_ms=0)))
)
def test_max_interval_finds_merges_and_removes(
    trains: SpikeTrains, criteria: BurstCriteria
) -> None:
    cut, plain = per_train(trains)
    found = listed(max_interval_bursts(cut, criteria), cut.bounds.tolist())
    assert found == [naive_max_interval(train, criteria, RATE_HZ) for train in plain]


@settings(deadline=None, max_examples=150)
@given(spike_trains())
def test_log_isi_finds_each_electrodes_threshold_and_its_runs(trains: SpikeTrains) -> None:
    cut, plain = per_train(trains)
    n = cut.n_electrodes
    thresholds = log_isi_thresholds(cut, C)
    for electrode in range(n):
        intervals = [b - a for train in plain[electrode::n] for a, b in pairwise(train)]
        counts = naive_histogram(intervals, RATE_HZ)
        valley, peak = naive_threshold_ms(counts, C)
        if counts.sum() < 3:
            valley, peak = math.nan, False
        assert thresholds.found[electrode] == pytest.approx(valley, nan_ok=True)
        used = math.nan if not peak else C.cutoff_ms if math.isnan(valley) else valley
        assert thresholds.used[electrode] == pytest.approx(used, nan_ok=True)
    found = listed(log_isi_bursts(cut, C, thresholds.used), cut.bounds.tolist())
    assert found == [
        naive_log_isi(train, thresholds.used[k % n], C, RATE_HZ) for k, train in enumerate(plain)
    ]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from((1, 50, 99, 100, 150, 151, 400, 900)), max_size=40),
    st.sampled_from((50.0, 100.0, 150.0, 501.2)),
)
def test_a_threshold_above_the_cutoff_extends_cores(steps: list[int], threshold_ms: float) -> None:
    train = np.concatenate([[0], np.cumsum(steps)]).astype(int).tolist()
    cut, _ = per_train(make_trains([train], max(train) + 1))
    bursts = log_isi_bursts(cut, C, np.array([threshold_ms]))
    pairs = list(zip(bursts.first.tolist(), bursts.last.tolist(), strict=True))
    assert pairs == naive_log_isi(train, threshold_ms, C, RATE_HZ)


def test_bursts_of_a_train_made_by_hand() -> None:
    # Five spikes 10 ms apart, a tail 150 ms later, and a pair that is no burst.
    train = [1000, 1010, 1020, 1030, 1040, 1190, 5000, 5010]
    cut, _ = per_train(make_trains([train], 10_000))
    bursts = max_interval_bursts(cut, C)
    assert (bursts.first.tolist(), bursts.last.tolist()) == ([0], [5])
    assert bursts.n_spikes.tolist() == [6]
    # logISI by the cut-off of 100 ms: the tail is not part of it.
    bursts = log_isi_bursts(cut, C, np.array([100.0]))
    assert (bursts.first.tolist(), bursts.last.tolist()) == ([0], [4])


def test_two_scales_of_intervals_are_parted_between_them() -> None:
    rng = np.random.default_rng(5)
    train: list[int] = []
    for start in range(0, 600_000, 10_000):
        train += (start + np.cumsum(rng.integers(30, 80, 20))).tolist()
    # 10 kHz: intervals of 3 to 8 ms inside bursts, nearly a second between them.
    cut, _ = per_train(make_trains([train], 600_000, 10_000))
    found = log_isi_thresholds(cut, C).found[0]
    assert 8 < found < 900
    bursts = log_isi_bursts(cut, C, np.array([found]))
    assert len(bursts.first) == 60
    assert set(bursts.n_spikes.tolist()) == {20}


def test_a_clock_slower_than_the_cutoff_does_not_burst() -> None:
    cut, _ = per_train(make_trains([list(range(0, 60_000, 500))], 60_000))
    thresholds = log_isi_thresholds(cut, C)
    assert np.isnan(thresholds.used).all()
    assert not len(log_isi_bursts(cut, C, thresholds.used).first)


def test_no_burst_crosses_a_gap() -> None:
    train = list(range(900, 1100, 20))
    whole, _ = per_train(make_trains([train], 5_000))
    parted, _ = per_train(make_trains([train], [1_000, 4_000]))
    assert len(max_interval_bursts(whole, C).first) == 1
    assert max_interval_bursts(parted, C).n_spikes.tolist() == [5, 5]


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


def found_in(trains: SpikeTrains, criteria: BurstCriteria = C) -> NetworkBursts:
    """With bursts by the cut-off of 100 ms on every electrode."""
    cut, _ = per_train(trains)
    bursts = log_isi_bursts(cut, criteria, np.full(cut.n_electrodes, criteria.cutoff_ms))
    return network_bursts(cut, bursts, criteria)


@settings(deadline=None, max_examples=100)
@given(spike_trains(max_electrodes=5))
def test_burst_events_are_grouped_by_their_own_threshold(trains: SpikeTrains) -> None:
    cut, plain = per_train(trains)
    bursts = [naive_log_isi(train, C.cutoff_ms, C, RATE_HZ) for train in plain]
    expected, intervals = naive_network_bursts(plain, bursts, cut.n_electrodes, C, RATE_HZ)
    found = found_in(trains)
    listed = zip(*(part.tolist() for part in found[:5]), strict=True)
    assert list(listed) == [
        (one.stretch, one.start, one.end, len(one.electrodes), one.n_spikes) for one in expected
    ]
    assert sorted(found.event_interval.tolist()) == sorted(intervals)


def burst(at: int, n: int = 5, step: int = 10) -> Train:
    return list(range(at, at + n * step, step))


def test_a_network_burst_made_by_hand() -> None:
    trains = make_trains(
        [burst(1000) + burst(9000), burst(1020, n=8), burst(1500) + burst(9050), [7]], 20_000
    )
    found = found_in(trains)
    # The third electrode's first burst begins 480 ms late: it is alone.
    assert found.start.tolist() == [1000, 9000]
    assert found.end.tolist() == [1090, 9090]
    assert found.n_electrodes.tolist() == [2, 2]
    assert found.n_spikes.tolist() == [13, 10]
    assert found.event_interval.tolist() == [20, 480, 7500, 50]


@pytest.mark.parametrize(("n_bursting", "n_found"), [(1, 0), (2, 0), (3, 1)])
def test_a_share_of_the_electrodes_is_needed(n_bursting: int, n_found: int) -> None:
    electrodes = [burst(500 + k) for k in range(n_bursting)]
    electrodes += [[9]] * (12 - n_bursting)
    # A fifth of 12 electrodes are 2.4.
    assert len(found_in(make_trains(electrodes, 2_000)).start) == n_found


def test_without_bursts_there_are_none() -> None:
    found = found_in(make_trains([[], [5]], 1_000))
    assert all(not len(part) for part in found)


def test_no_network_burst_crosses_a_gap() -> None:
    electrodes = [burst(900), burst(1000)]
    assert len(found_in(make_trains(electrodes, 3_000)).start) == 1
    assert len(found_in(make_trains(electrodes, [1_000, 2_000])).start) == 0

"""Burst detectors against their definitions written out, and on trains made by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from burst_data import (
    RATE_HZ,
    make_trains,
    naive_histogram,
    naive_log_isi,
    naive_max_interval,
    naive_threshold_ms,
    per_train,
    spike_trains,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from toptune.features.bursts import (
    Bursts,
    log_isi_bursts,
    log_isi_thresholds,
    max_interval_bursts,
)
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

"""Trains by electrode in the pictures' own windows; irregularity and synchrony by formula."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from burst_data import by_electrode, make_trains, naive_sttc, per_train, spike_trains
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.features.electrodes import (
    WindowedTrains,
    interval_variability,
    mean_count_correlation,
    mean_spike_time_tiling,
    whole_recording,
)
from toptune.params import Picture, Windows
from toptune.pictures.drawer import Drawer
from toptune.recordings.trains import SpikeTrains


@settings(deadline=None, max_examples=50)
@given(spike_trains(), st.sampled_from((1000.0, 997.0)))
def test_windows_hold_the_spikes_that_their_bins_hold(trains: SpikeTrains, rate_hz: float) -> None:
    trains = make_trains(by_electrode(trains), [s.n_samples for s in trains.segments], rate_hz)
    windows = Windows(width_s=2.0, stride_s=0.5)
    cut = WindowedTrains(trains, windows)
    drawn = Drawer(trains, windows, Picture(), 8)
    np.testing.assert_array_equal(cut.start_s, drawn.start_s)
    of_window = list(cut)
    assert len(of_window) == len(cut)
    per_bin = rate_hz / 100
    at = 0
    for segment in trains.segments:
        n_bins = math.floor(segment.n_samples / per_bin)
        for first in range(0, n_bins - 200 + 1, 50):
            window = of_window[at]
            at += 1
            for e in range(len(trains.channel_labels)):
                mine = trains.spikes.sample[trains.spikes.channel == e].tolist()
                inside = [
                    s for s in mine
                    if segment.first_sample <= s < segment.first_sample + segment.n_samples
                    and first <= math.floor((s - segment.first_sample) / per_bin) < first + 200
                ]  # fmt: skip
                assert window.sample[window.bounds[e] : window.bounds[e + 1]].tolist() == inside
            assert window.duration_s == pytest.approx(2.0)
            assert window.start[0] == pytest.approx(segment.first_sample + first * per_bin)
    assert at == len(of_window)


@settings(deadline=None, max_examples=30)
@given(spike_trains())
def test_a_whole_recording_keeps_every_spike_in_its_segment(trains: SpikeTrains) -> None:
    cut = whole_recording(trains)
    found = sorted(zip(cut.sample.tolist(), (cut.train % cut.n_electrodes).tolist(), strict=True))
    spikes = trains.spikes
    assert found == sorted(zip(spikes.sample.tolist(), spikes.channel.tolist(), strict=True))
    starts = np.array([s.first_sample for s in trains.segments])
    stretch = cut.train // cut.n_electrodes
    assert (cut.sample >= starts[stretch]).all()
    assert cut.duration_s == pytest.approx(trains.duration_s)
    assert cut.counts.sum() == len(spikes.sample)


def test_electrodes_can_be_left_out() -> None:
    cut = whole_recording(make_trains([[1, 5], [2], [3, 4, 9]], [6, 6]))
    kept = cut.only(np.array([True, False, True]))
    assert kept.n_electrodes == 2
    assert kept.sample.tolist() == [1, 5, 3, 4, 9]
    assert kept.bounds.tolist() == [0, 2, 4, 4, 5]
    none = cut.only(np.zeros(3, dtype=bool))
    assert (none.n_electrodes, none.bounds.tolist(), none.duration_s) == (0, [0], cut.duration_s)


def test_spikes_outside_the_recording_are_refused() -> None:
    with pytest.raises(InputError, match="spike at sample 90 lies outside"):
        whole_recording(make_trains([[3, 90]], 50))


# --- irregularity and synchrony: their formulas, elephant's numbers, and their ends


@settings(deadline=None, max_examples=80)
@given(spike_trains())
def test_variability_follows_its_formulas(trains: SpikeTrains) -> None:
    cut, plain = per_train(trains)
    n = cut.n_electrodes
    found = interval_variability(cut)
    for electrode in range(n):
        intervals, pairs = [], []
        for train in plain[electrode::n]:
            isi = [b - a for a, b in pairwise(train)]
            intervals += isi
            pairs += [(a, b) for a, b in pairwise(isi) if a + b > 0]
        cv = cv2 = lv = np.nan
        if len(intervals) > 1 and sum(intervals) > 0:
            cv = float(np.std(intervals) / np.mean(intervals))
        if pairs:
            cv2 = float(np.mean([2 * abs(a - b) / (a + b) for a, b in pairs]))
            lv = float(np.mean([3 * (a - b) ** 2 / (a + b) ** 2 for a, b in pairs]))
        of_electrode = (found.cv[electrode], found.cv2[electrode], found.lv[electrode])
        assert of_electrode == pytest.approx((cv, cv2, lv), nan_ok=True)


def elephant_trains() -> list[NDArray[np.int64]]:
    """Three bursting trains, 60 s at 10 kHz, that elephant 1.2.1 measured."""
    rng = np.random.default_rng(2024)
    trains = []
    for k in range(3):
        bursts = [
            centre + k * 37 + np.cumsum(rng.integers(30, 400, 12))
            for centre in np.arange(2, 58, 4) * 10_000
        ]
        trains.append(np.unique(np.concatenate([*bursts, rng.integers(0, 600_000, 40)])))
    return trains


def test_elephant_finds_the_same_irregularity() -> None:
    trains = elephant_trains()
    assert [int(t.sum()) for t in trains] == [57461998, 61609668, 59493412]
    cut, _ = per_train(make_trains([t.tolist() for t in trains], 600_000, 10_000))
    found = interval_variability(cut)
    assert found.cv == pytest.approx([2.3690776801079716, 2.438607973402004, 2.519183234707751])
    assert found.cv2 == pytest.approx([0.886400480551478, 0.9219173766243514, 0.8501351183227407])
    assert found.lv == pytest.approx([0.8656268416681627, 0.9189069270273298, 0.8167991521204818])


def test_a_clock_has_none_and_a_poisson_process_has_one() -> None:
    rng = np.random.default_rng(3)
    poisson = np.cumsum(rng.exponential(200, 20_000)).astype(int)
    clock = np.arange(0, poisson[-1], 777)
    cut, _ = per_train(make_trains([clock.tolist(), poisson.tolist()], int(poisson[-1]) + 1))
    found = interval_variability(cut)
    assert (found.cv[0], found.cv2[0], found.lv[0]) == (0, 0, 0)
    assert (found.cv[1], found.cv2[1], found.lv[1]) == pytest.approx((1, 1, 1), abs=0.03)


@settings(deadline=None, max_examples=50)
@given(spike_trains())
def test_synchrony_follows_its_formulas(trains: SpikeTrains) -> None:
    one = make_trains(by_electrode(trains), trains.n_samples)
    cut, plain = per_train(one)
    firing = [train for train in plain if train]
    pairs = [
        naive_sttc(firing[a], firing[b], 50, one.n_samples)
        for a in range(len(firing)) for b in range(a)
    ]  # fmt: skip
    expected = np.mean(pairs) if pairs else math.nan
    assert mean_spike_time_tiling(cut, 50.0) == pytest.approx(expected, nan_ok=True)

    n_bins = one.n_samples // 100
    counts = np.array([np.histogram(t, n_bins, (0, n_bins * 100))[0] for t in plain])
    # NumPy's last bin holds its right edge, too; here it does not.
    counts[:, -1] -= [t.count(n_bins * 100) for t in plain]
    varied = counts[counts.std(axis=1) > 0]
    r = [np.corrcoef(varied[a], varied[b])[0, 1] for a in range(len(varied)) for b in range(a)]
    expected = np.mean(r) if r else math.nan
    assert mean_count_correlation(cut, 100.0) == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_elephant_finds_the_same_synchrony() -> None:
    trains = elephant_trains()
    tiling = (0.7794611317524524, 0.7643158363447387, 0.762913144312305)
    correlation = (0.8445934590435955, 0.8361676270237118, 0.8813521251241089)
    for k, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        pair = [trains[a].tolist(), trains[b].tolist()]
        cut, _ = per_train(make_trains(pair, 600_000, 10_000))
        assert mean_spike_time_tiling(cut, 50.0) == pytest.approx(tiling[k], rel=1e-9)
        assert mean_count_correlation(cut, 100.0) == pytest.approx(correlation[k], rel=1e-9)


def test_a_train_tiles_itself_wholly_and_independent_ones_not() -> None:
    rng = np.random.default_rng(0)
    a, b = (sorted(set(rng.integers(0, 600_000, 600).tolist())) for _ in range(2))
    same, _ = per_train(make_trains([a, a], 600_000))
    assert mean_spike_time_tiling(same, 50.0) == 1
    assert mean_count_correlation(same, 100.0) == pytest.approx(1)
    apart, _ = per_train(make_trains([a, b], 600_000))
    assert mean_spike_time_tiling(apart, 50.0) == pytest.approx(0, abs=0.06)
    assert mean_count_correlation(apart, 100.0) == pytest.approx(0, abs=0.06)


def test_nothing_coincides_across_a_gap() -> None:
    near, _ = per_train(make_trains([[990], [1010]], 2_000))
    parted, _ = per_train(make_trains([[990], [1010]], [1_000, 1_000]))
    assert mean_spike_time_tiling(near, 50.0) > 0.9
    assert mean_spike_time_tiling(parted, 50.0) < 0


def test_fewer_than_two_electrodes_have_no_synchrony() -> None:
    for electrodes in ([], [[1, 2]], [[1, 2], []]):
        cut, _ = per_train(make_trains(electrodes, 1_000))
        assert math.isnan(mean_spike_time_tiling(cut, 50.0))
        assert math.isnan(mean_count_correlation(cut, 100.0))

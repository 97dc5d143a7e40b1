"""Trains in the order of electrodes: the same spikes, in the pictures' own windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from burst_data import by_electrode, make_trains, spike_trains
from hypothesis import given, settings
from hypothesis import strategies as st

from toptune.errors import InputError
from toptune.features.electrodes import WindowedTrains, whole_recording
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

"""Complete windows, their matches and their spikes are those of the whole recording."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.features.electrodes import WindowedTrains
from toptune.features.table import leading_kind, match_windows
from toptune.live.detection import CertainSpikes
from toptune.live.windows import LiveWindows
from toptune.params import Windows
from toptune.pictures.bins import PlacedSpikes
from toptune.recordings.trains import Segment, Spikes, SpikeTrains, sort_spikes
from toptune.recordings.windows import SegmentBins, window_bins, window_starts

LABELS = ("a", "b", "c")
# 220.5 samples a bin, 122.0703125 of them, and a number that no whole bins make whole.
RATES_HZ = (10_000.0, 22_050.0, 12_207.03125, 17_855.5)


class Given(NamedTuple):
    """A window that was given: what is drawn of it."""

    starts_s: tuple[float, ...]
    bins: list[int]  # of its spikes, view after view
    channels: list[int]
    counts: list[int]


def recording(
    seed: int, rate_hz: float, lengths_s: list[float], gaps_s: list[float]
) -> SpikeTrains:
    rng = np.random.default_rng(seed)
    segments, first, start_s = [], 0, 0.0
    for k, length_s in enumerate(lengths_s):
        n = max(1, round(length_s * rate_hz))
        segments.append(Segment(first, n, start_s))
        first, start_s = first + n, start_s + n / rate_hz + gaps_s[k % len(gaps_s)]
    sample = rng.integers(0, first, round(first / rate_hz * 60)).astype(np.int64)
    channel = rng.integers(0, 3, len(sample)).astype(np.int32)
    return SpikeTrains(
        spikes=sort_spikes(sample, channel, np.ones(len(sample), np.float32)),
        channel_labels=LABELS,
        sampling_rate_hz=rate_hz,
        segments=tuple(segments),
        threshold_uv=np.ones(3, np.float32),
    )


def live(trains: SpikeTrains, windows: list[Windows], steps: list[int]) -> list[Given]:
    """Feed a recording in steps of some samples, in turn; take what is given."""
    watched = LiveWindows(windows, LABELS, trains.sampling_rate_hz)
    given: list[Given] = []

    def take() -> None:
        for found in watched.take():
            bins, channels = [], []
            for view, window in enumerate(found):
                ((cut, (row,)),) = watched.cut(view, [window])
                one = placed(cut, windows[view], row)
                bins += one[0]
                channels += one[1]
            counts = watched.histogram(found[watched.lead]).tolist()
            given.append(Given(tuple(w.start_s for w in found), bins, channels, counts))
        watched.forget()

    turn = 0
    for number, segment in enumerate(trains.segments):
        watched.start_stretch(number, segment.start_s)
        at = 0
        while at < segment.n_samples:
            end = min(at + steps[turn % len(steps)], segment.n_samples)
            turn += 1
            sample = trains.spikes.sample - segment.first_sample
            inside = trains.spikes.at((sample >= at) & (sample < end))
            new = inside._replace(sample=inside.sample - segment.first_sample)
            is_last = end == segment.n_samples
            watched.add(CertainSpikes(stretch=number, spikes=new, known_to=end, ended=is_last))
            take()
            at = end
    watched.finish()
    take()
    assert watched.n_samples == trains.n_samples
    assert watched.n_spikes == len(trains.spikes.sample)
    return given


def placed(trains: SpikeTrains, windows: Windows, row: int) -> tuple[list[int], list[int]]:
    """Bins, from the window's first, and channels of a window's spikes."""
    bins = SegmentBins.of(trains, windows.bin_ms)
    first = int(window_bins(window_starts(trains, windows), bins)[row])
    spikes = PlacedSpikes.of(trains, bins)
    inside = spikes.inside(first, windows.width_bins)
    return (spikes.bin[inside] - first).tolist(), spikes.channel[inside].tolist()


def whole(trains: SpikeTrains, windows: list[Windows]) -> list[Given]:
    """Do the same with the whole recording."""
    starts = [window_starts(trains, one).start_s for one in windows]
    widths, strides = [w.width_s for w in windows], [w.stride_s for w in windows]
    matches = match_windows(starts, widths, strides)
    lead = leading_kind(widths)
    given = []
    for rows in zip(*matches, strict=True):
        bins, channels = [], []
        for view, row in enumerate(rows):
            one = placed(trains, windows[view], int(row))
            bins += one[0]
            channels += one[1]
        counts: NDArray[np.int64] = np.bincount(
            placed(trains, windows[lead], int(rows[lead]))[0], minlength=windows[lead].width_bins
        )
        of_views = (starts[k][int(row)] for k, row in enumerate(rows))
        given.append(Given(tuple(float(s) for s in of_views), bins, channels, counts.tolist()))
    return given


views = st.builds(
    lambda width, stride: Windows(width_s=width, stride_s=stride),
    st.sampled_from([0.5, 1.0, 1.2]),
    st.sampled_from([0.1, 0.25, 0.5, 2.0]),
)


@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from(RATES_HZ),
    st.lists(views, min_size=1, max_size=3),
    st.lists(st.sampled_from([0.3, 0.7, 1.21, 2.5, 4.0]), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 0.05, 0.9]), min_size=1, max_size=2),
    st.lists(st.sampled_from([700, 3001, 20_000]), min_size=1, max_size=3),
)
def test_windows_and_their_spikes_are_those_of_the_whole_recording(
    seed: int,
    rate_hz: float,
    windows: list[Windows],
    lengths_s: list[float],
    gaps_s: list[float],
    steps: list[int],
) -> None:
    trains = recording(seed, rate_hz, lengths_s, gaps_s)
    expected = whole(trains, windows)
    got = live(trains, windows, steps)
    assert [one.starts_s for one in got] == [one.starts_s for one in expected]
    assert got == expected


@pytest.mark.parametrize("rate_hz", RATES_HZ[:3])
def test_a_window_cut_out_is_measured_as_in_the_whole(rate_hz: float) -> None:
    windows = Windows(width_s=1.0, stride_s=0.1)
    trains = recording(3, rate_hz, [4.0], [0.0])
    measured = WindowedTrains(trains, windows)
    watched = LiveWindows([windows], LABELS, rate_hz)
    watched.start_stretch(0, 0.0)
    n = trains.n_samples
    watched.add(CertainSpikes(stretch=0, spikes=trains.spikes, known_to=n, ended=True))
    due = [found[0] for found in watched.take()]
    assert len(due) == len(measured)
    for window, one in zip(due, measured, strict=True):
        ((cut, (row,)),) = watched.cut(0, [window])
        alone = WindowedTrains(cut, windows)[row]
        shift = one.start[0] - alone.start[0]
        assert shift == int(shift)
        np.testing.assert_array_equal(alone.sample + int(shift), one.sample)
        np.testing.assert_array_equal(alone.bounds, one.bounds)


def test_spikes_that_no_window_needs_are_let_go() -> None:
    windows = [Windows(width_s=1.0, stride_s=0.5), Windows(width_s=0.5, stride_s=0.5)]
    watched = LiveWindows(windows, LABELS, 1e4)
    watched.start_stretch(0, 0.0)
    held = []
    for k in range(600):
        sample = np.arange(100, dtype=np.int64) * 10 + k * 1000
        new = Spikes(sample, np.zeros(100, np.int32), np.ones(100, np.float32))
        watched.add(CertainSpikes(stretch=0, spikes=new, known_to=(k + 1) * 1000, ended=False))
        list(watched.take())
        watched.forget()
        held.append(sum(len(s._spikes.sample) for s in watched._stretches.values()))
    # 1,000 spikes a second: those of a window and what has come since.
    assert max(held) <= 2_500
    for number in range(1, 50):
        watched.start_stretch(number, 100.0 * number)
        none = Spikes(sample[:0], np.zeros(0, np.int32), np.ones(0, np.float32))
        watched.add(CertainSpikes(stretch=number, spikes=none, known_to=10, ended=True))
        list(watched.take())
        watched.forget()
    assert len(watched._stretches) <= 3

"""Spikes of a recording in the order of its electrodes, of all of it or window by window.

Trains are counted stretch by stretch, since no interval crosses a gap. A window has the same spikes
here as in its picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from toptune.params import Windows
from toptune.recordings.trains import SpikeTrains, check_spikes
from toptune.recordings.windows import SegmentBins, WindowStarts, window_starts

# Products of milliseconds and rates that are whole numbers but for rounding are meant to be whole.
_WHOLE = 1e-9


def whole_samples(milliseconds: float, sampling_rate_hz: float) -> int:
    """Give the most whole samples that are no longer than some milliseconds."""
    return math.floor(milliseconds * sampling_rate_hz / 1000 + _WHOLE)


@dataclass(frozen=True, eq=False, kw_only=True)
class ElectrodeTrains:
    """Spikes of some stretches: the train of stretch s and electrode e is number s x E + e.

    Parameters
    ----------
    sample : (n,) int64
        Train by train, ascending in each.
    bounds : (stretches x E + 1,) int64
        The spikes of train k are ``bounds[k]`` up to ``bounds[k + 1]``.
    n_electrodes
        E, silent ones too.
    sampling_rate_hz
        Samples per second.
    start, length : (stretches,) float64
        Of each stretch, in samples; windows need not begin on a whole sample.
    """

    sample: NDArray[np.int64]
    bounds: NDArray[np.int64]
    n_electrodes: int
    sampling_rate_hz: float
    start: NDArray[np.float64]
    length: NDArray[np.float64]

    @property
    def n_stretches(self) -> int:
        """How many stretches there are."""
        return len(self.start)

    @cached_property
    def duration_s(self) -> float:
        """Of all stretches together."""
        return float(self.length.sum()) / self.sampling_rate_hz

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Spikes of each electrode, (E,), in all stretches."""
        of_trains = np.diff(self.bounds).reshape(self.n_stretches, self.n_electrodes)
        counts: NDArray[np.int64] = of_trains.sum(axis=0)
        return counts

    @cached_property
    def train(self) -> NDArray[np.int64]:
        """Number of the train of each spike, (n,)."""
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))

    def only(self, kept: NDArray[np.bool_]) -> ElectrodeTrains:
        """Leave out the other electrodes; those kept are numbered anew.

        Parameters
        ----------
        kept : (E,) bool
        """
        of_trains = np.tile(kept, self.n_stretches)
        sizes = np.diff(self.bounds)[of_trains]
        return ElectrodeTrains(
            sample=self.sample[of_trains[self.train]],
            bounds=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            n_electrodes=int(kept.sum()),
            sampling_rate_hz=self.sampling_rate_hz,
            start=self.start,
            length=self.length,
        )


class _Sorted:
    """A recording's spikes by segment, electrode and sample."""

    def __init__(self, trains: SpikeTrains) -> None:
        check_spikes(trains)
        self.n_electrodes = len(trains.channel_labels)
        self.sampling_rate_hz = trains.sampling_rate_hz
        self.first = np.array([s.first_sample for s in trains.segments], dtype=np.int64)
        sample = trains.spikes.sample
        self.segment = np.searchsorted(self.first, sample, side="right") - 1
        # Spikes come sorted by sample, so a stable sort by train keeps that order in each.
        train = self.segment * self.n_electrodes + trains.spikes.channel
        order = np.argsort(train, kind="stable")
        self.sample = sample[order].astype(np.int64)
        self.segment = self.segment[order]
        self.train = train[order].astype(np.int64)


def whole_recording(trains: SpikeTrains) -> ElectrodeTrains:
    """Take all of a recording; its stretches are the segments between gaps.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.
    """
    spikes = _Sorted(trains)
    n_trains = len(spikes.first) * spikes.n_electrodes
    return ElectrodeTrains(
        sample=spikes.sample,
        bounds=np.searchsorted(spikes.train, np.arange(n_trains + 1)).astype(np.int64),
        n_electrodes=spikes.n_electrodes,
        sampling_rate_hz=spikes.sampling_rate_hz,
        start=spikes.first.astype(np.float64),
        length=np.array([s.n_samples for s in trains.segments], dtype=np.float64),
    )


class WindowedTrains:
    """The windows of a recording, one after the other.

    Parameters
    ----------
    trains
        The recording's spikes.
    windows
        Width, stride and bin.

    Attributes
    ----------
    start_s : (n_windows,) float64
        Start of each window in seconds since the recording's start.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.
    """

    def __init__(self, trains: SpikeTrains, windows: Windows) -> None:
        self._spikes = _Sorted(trains)
        self._starts: WindowStarts = window_starts(trains, windows)
        self._width_bins = windows.width_bins
        stretches = SegmentBins.of(trains, windows.bin_ms)
        self._per_bin = stretches.per_bin
        self.start_s = self._starts.start_s
        s = self._spikes
        # The very division that places spikes in the pictures' bins.
        spike_bin = np.floor((s.sample - s.first[s.segment]) / self._per_bin).astype(np.int64)
        # More bins than a segment has, so that those of two trains never meet.
        self._span = int(stretches.n_bins.max(initial=0)) + 2
        self._key = s.train * self._span + spike_bin

    def __len__(self) -> int:
        return len(self.start_s)

    def __iter__(self) -> Iterator[ElectrodeTrains]:
        for segment, first_bin in zip(self._starts.segment, self._starts.first_bin, strict=True):
            yield self._window(int(segment), int(first_bin))

    def _window(self, segment: int, first_bin: int) -> ElectrodeTrains:
        s = self._spikes
        train = segment * s.n_electrodes + np.arange(s.n_electrodes)
        edges = train[:, None] * self._span + np.array([first_bin, first_bin + self._width_bins])
        low, high = np.searchsorted(self._key, edges.T)
        bounds = np.concatenate([[0], np.cumsum(high - low)]).astype(np.int64)
        rows = np.arange(bounds[-1]) + np.repeat(low - bounds[:-1], high - low)
        return ElectrodeTrains(
            sample=s.sample[rows],
            bounds=bounds,
            n_electrodes=s.n_electrodes,
            sampling_rate_hz=s.sampling_rate_hz,
            start=np.array([s.first[segment] + first_bin * self._per_bin]),
            length=np.array([self._width_bins * self._per_bin]),
        )

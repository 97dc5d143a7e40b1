"""Spikes by electrode, of a recording or its windows, and the statistics of such trains.

Trains are counted stretch by stretch, since no interval crosses a gap. A window has the same spikes
here as in its picture.

Irregularity, for each electrode three numbers without unit. Intervals never cross a gap.

- CV: SD of the inter-spike intervals (n in the denominator) over their mean; 1 for a Poisson
  process, 0 for a clock. Needs two intervals (Softky & Koch 1993, J. Neurosci. 13:334-350).
- CV2: mean over successive intervals of ``2 |a - b| / (a + b)``: the same locally, so that slow
  changes of rate do not count (Holt et al. 1996, J. Neurophysiol. 75:1806-1814).
- LV: mean over successive intervals of ``3 (a - b)^2 / (a + b)^2`` (Shinomoto, Shima & Tanji 2003,
  Neural Comput. 15:2823-2842).

Synchrony, one number from -1 to 1: the mean over all pairs of electrodes, NaN where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.machine.threads import compiled
from toptune.params import Windows
from toptune.recordings.trains import SpikeTrains, check_spikes
from toptune.recordings.windows import SegmentBins, WindowStarts, window_starts

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

# Products of milliseconds and rates that are whole numbers but for rounding are meant to be whole.
_WHOLE = 1e-9
# A train whose counts vary less than rounding does not vary.
_CONSTANT = 1e-12


def whole_samples(milliseconds: float, sampling_rate_hz: float) -> int:
    """Give the most whole samples that are no longer than some milliseconds."""
    return math.floor(milliseconds * sampling_rate_hz / 1000 + _WHOLE)


@dataclass(frozen=True, eq=False, kw_only=True)
class ElectrodeTrains:
    """Spikes of some stretches: the train of stretch s and electrode e is number s x E + e."""

    sample: Ints  # (n,), train by train, ascending in each
    # (stretches x E + 1,): the spikes of train k are ``bounds[k]`` up to ``bounds[k + 1]``.
    bounds: Ints
    n_electrodes: int  # E, silent ones too
    sampling_rate_hz: float
    # (stretches,), in samples; windows need not begin on a whole sample.
    start: Float64
    length: Float64

    @cached_property
    def duration_s(self) -> float:
        """Of all stretches together."""
        return float(self.length.sum()) / self.sampling_rate_hz

    @cached_property
    def counts(self) -> Ints:
        """Spikes of each electrode, (E,), in all stretches."""
        of_trains = np.diff(self.bounds).reshape(len(self.start), self.n_electrodes)
        counts: Ints = of_trains.sum(axis=0)
        return counts

    @cached_property
    def train(self) -> Ints:
        """Number of the train of each spike, (n,)."""
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))

    def only(self, kept: NDArray[np.bool_]) -> ElectrodeTrains:
        """Leave out the electrodes not in `kept`, (E,); the others are numbered anew."""
        of_trains = np.tile(kept, len(self.start))
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
        self.n_trains = len(self.first) * self.n_electrodes
        sample = trains.spikes.sample
        self.segment = np.searchsorted(self.first, sample, side="right") - 1
        # Spikes come sorted by sample, so a stable sort by train keeps that order in each.
        train = self.segment * self.n_electrodes + trains.spikes.channel
        # NumPy sorts short integers by radix, several times as fast.
        short = train.astype(np.uint16) if self.n_trains <= np.iinfo(np.uint16).max else train
        order = np.argsort(short, kind="stable")
        self.sample = sample[order].astype(np.int64)
        self.segment = self.segment[order]
        self.train = train[order].astype(np.int64)


def whole_recording(trains: SpikeTrains) -> ElectrodeTrains:
    """Take all of a recording; its stretches are the segments between gaps.

    A spike outside the recording or on a channel it does not have is an `InputError`.
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

    `start_s`, (n_windows,) float64, is each one's start in seconds since the recording's. A spike
    outside the recording or on a channel it does not have is an `InputError`.
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
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> ElectrodeTrains:
        # Iterating over an object that has this alone ends here.
        if not 0 <= row < len(self):
            raise IndexError(f"window {row} of {len(self)}")
        s, segment = self._spikes, int(self._starts.segment[row])
        first_bin = int(self._starts.first_bin[row])
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


# --- irregularity


class Variability(NamedTuple):
    """Of each electrode, (E,) float64; NaN where it is not defined."""

    cv: Float64  # NaN with fewer than two intervals, or where all of them are 0
    # NaN without two successive intervals that are not both 0.
    cv2: Float64
    lv: Float64


def interval_variability(trains: ElectrodeTrains) -> Variability:
    """Measure the irregularity of each electrode's spikes."""
    measured = np.full((3, trains.n_electrodes), np.nan)
    _measure(trains.sample, trains.bounds, measured)
    return Variability(*measured)


@compiled()
def _measure(sample: Ints, bounds: Ints, measured: Float64) -> None:
    n_electrodes = measured.shape[1]
    for electrode in range(n_electrodes):
        n, total, n_pairs, shares, squared_shares = 0, 0.0, 0, 0.0, 0.0
        for train in range(electrode, len(bounds) - 1, n_electrodes):
            of_train = sample[bounds[train] : bounds[train + 1]]
            n += max(0, len(of_train) - 1)
            if len(of_train):
                total += of_train[-1] - of_train[0]
            pairs, of_pairs, squares_of_pairs = _pairs(of_train)
            n_pairs += pairs
            shares += of_pairs
            squared_shares += squares_of_pairs
        if n_pairs:
            measured[1, electrode] = 2 * shares / n_pairs
            measured[2, electrode] = 3 * squared_shares / n_pairs
        if n >= 2 and total > 0:
            mean, squares = total / n, 0.0
            for train in range(electrode, len(bounds) - 1, n_electrodes):
                for i in range(bounds[train] + 1, bounds[train + 1]):
                    squares += (sample[i] - sample[i - 1] - mean) ** 2
            measured[0, electrode] = np.sqrt(squares / n) / mean


@compiled()
def _pairs(sample: Ints) -> tuple[int, float, float]:
    """Count successive intervals that are not both 0; add up |a - b| / (a + b), and its square."""
    n, shares, squares = 0, 0.0, 0.0
    for i in range(2, len(sample)):
        both = sample[i] - sample[i - 2]
        if both > 0:
            share = abs(sample[i] - 2 * sample[i - 1] + sample[i - 2]) / both
            n += 1
            shares += share
            squares += share * share
    return n, shares, squares


# --- synchrony


def mean_spike_time_tiling(trains: ElectrodeTrains, coincidence_ms: float) -> float:
    """Average the spike time tiling coefficient of all pairs of electrodes.

    ``STTC = ((Pa - Tb) / (1 - Pa Tb) + (Pb - Ta) / (1 - Pb Ta)) / 2`` with Pa the share of a's
    spikes that lie within the coincidence of one of b's, and Ta the share of the recorded time that
    does so of a's (Cutts & Eglen 2014, J. Neurosci. 34:14288-14303). It does not depend on rates. A
    term whose denominator is 0 counts as 1: both are everywhere. Neither counts across a gap.
    Electrodes without spikes take part in no pair. `coincidence_ms`, the longest time between
    coincident spikes, is truncated to whole samples.
    """
    reach = whole_samples(coincidence_ms, trains.sampling_rate_hz)
    counts = trains.counts
    tiled = np.zeros(trains.n_electrodes)
    met = np.zeros((trains.n_electrodes, trains.n_electrodes), dtype=np.int32)
    _tile(trains.sample, trains.bounds, trains.start, trains.length, float(reach), tiled)
    electrode = trains.train % max(1, trains.n_electrodes)
    ends = trains.bounds[trains.n_electrodes :: max(1, trains.n_electrodes)]
    order = _by_time(trains, ends)
    _meet(trains.sample[order], electrode[order], ends, reach, met)
    firing = counts > 0
    T = (tiled / trains.length.sum())[firing]
    P = (met / np.maximum(counts, 1)[:, None])[np.ix_(firing, firing)]
    term = np.ones_like(P)
    denominator = 1 - P * T
    np.divide(P - T, denominator, out=term, where=denominator > 0)
    return _mean_of_pairs((term + term.T) / 2, np.ones(len(T), dtype=bool))


def mean_count_correlation(trains: ElectrodeTrains, bin_ms: float) -> float:
    """Average Pearson's correlation of the spike counts of all pairs of electrodes.

    Bins are counted from the start of each stretch; what is left at its end is not counted.
    Electrodes whose counts do not vary take part in no pair.
    """
    counts = _binned(trains, bin_ms * trains.sampling_rate_hz / 1000)
    counts -= counts.mean(axis=1, keepdims=True)
    length = np.sqrt(np.einsum("ij,ij->i", counts, counts))
    varied = length > _CONSTANT
    counts /= np.where(varied, length, 1)[:, None]
    return _mean_of_pairs(counts @ counts.T, varied)


def _by_time(trains: ElectrodeTrains, ends: Ints) -> Ints:
    """Order spikes by stretch, then time; ascending runs are what a stable sort merges fastest."""
    begins = np.concatenate([[0], ends[:-1]])
    parts = [
        low + np.argsort(trains.sample[low:high], kind="stable")
        for low, high in zip(begins, ends, strict=True)
    ]
    return np.concatenate(parts)


def _binned(trains: ElectrodeTrains, width: float) -> Float64:
    """Spike counts, (E, bins of all stretches), at least one column."""
    n_bins = np.floor(trains.length / width + 1e-9).astype(np.int64)
    stretch, electrode = np.divmod(trains.train, max(1, trains.n_electrodes))
    at = np.floor((trains.sample - trains.start[stretch]) / width).astype(np.int64)
    inside = at < n_bins[stretch]
    column = at + (np.cumsum(n_bins) - n_bins)[stretch]
    total = max(1, int(n_bins.sum()))
    cell = (electrode * total + column)[inside]
    counts = np.bincount(cell, minlength=trains.n_electrodes * total).astype(np.float64)
    return counts.reshape(trains.n_electrodes, total)


def _mean_of_pairs(matrix: Float64, taking_part: NDArray[np.bool_]) -> float:
    rows, columns = np.triu_indices(len(matrix), 1)
    pairs = taking_part[rows] & taking_part[columns]
    return float(matrix[rows, columns][pairs].mean()) if pairs.any() else math.nan


@compiled()
def _tile(
    sample: Ints, bounds: Ints, start: Float64, length: Float64, reach: float, tiled: Float64
) -> None:
    """Add up the time, in samples, within reach of each electrode's spikes."""
    for train in range(len(bounds) - 1):
        stretch, electrode = divmod(train, len(tiled))
        covered = start[stretch]
        end = start[stretch] + length[stretch]
        for i in range(bounds[train], bounds[train + 1]):
            low, high = max(sample[i] - reach, covered), min(sample[i] + reach, end)
            if high > low:
                tiled[electrode] += high - low
                covered = high


@compiled()
def _meet(sample: Ints, electrode: Ints, ends: Ints, reach: int, met: NDArray[np.int32]) -> None:
    """Count in ``met[a, b]`` the spikes of a within reach of one of b's; spikes by time."""
    near = np.zeros(len(met), dtype=np.int32)
    begin = 0
    for stop in ends:
        near[:] = 0
        low, high = begin, begin
        for i in range(begin, stop):
            while high < stop and sample[high] <= sample[i] + reach:
                near[electrode[high]] += 1
                high += 1
            while sample[low] < sample[i] - reach:
                near[electrode[low]] -= 1
                low += 1
            # All electrodes at once: the processor compares and adds many in one step.
            row = met[electrode[i]]
            for b in range(len(near)):
                row[b] += near[b] > 0
        begin = stop

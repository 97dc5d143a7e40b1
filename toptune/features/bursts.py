"""Bursts of single electrodes, by two methods, and bursts of the network.

MaxInterval (MC_Rack's manual; `BurstCriteria` holds its five numbers) asks how long intervals are.
logISI (Pasquale, Martinoia & Chiappalone 2010, J. Comput. Neurosci. 29:213-229) finds a threshold
of its own for each electrode: the logarithms of intervals have one peak of those inside bursts and
others of longer ones, and the threshold is the valley between the highest peak below the cut-off
and the first following peak from which it is separated by the void parameter,
``1 - valley / sqrt(peak x peak)``. Bursts are runs of intervals up to the threshold; where it lies
above the cut-off, runs that hold a core, a burst by the cut-off alone.

Network bursts follow the same paper: the method is applied to the beginnings of all electrodes'
bursts, the burst events, instead of an electrode's spikes. Where their intervals show no valley the
cut-off is the threshold. At least a given share of the active electrodes, and at least two, take
part in a network burst.

All comparisons are of whole samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.features.electrodes import ElectrodeTrains, Float64, Ints, whole_samples
from toptune.machine.threads import compiled
from toptune.params import BurstCriteria

# Intervals of 0.1 ms to 1000 s, ten bins a decade as in Pasquale et al.; a bin's lower edge stands
# for it. A fixed range, so that smoothing is the same for all trains.
EDGES_MS: Float64 = 10.0 ** (np.arange(71) / 10 - 1)
# Bins in a local regression, and the least distance of two peaks in bins.
_SMOOTHED_OVER = 5
_PEAKS_APART = 2
_DECIMALS = 9

# Intervals, in samples, whose bins are looked up in a list.
_LISTED = 4096
# Fewer intervals have no distribution to speak of.
_MIN_INTERVALS = 3


# --- bursts of single electrodes


class Bursts(NamedTuple):
    """Bursts, by train and time: first and last spikes, (m,) indices into the trains' `sample`."""

    first: Ints
    last: Ints

    @property
    def n_spikes(self) -> Ints:
        """Spikes in each."""
        return self.last - self.first + 1


def max_interval_bursts(trains: ElectrodeTrains, criteria: BurstCriteria) -> Bursts:
    """Find bursts by the MaxInterval method, whose five numbers are in `criteria`.

    A burst starts at the first interval of at most ``start_ms``, and goes on while intervals are at
    most ``end_ms``. Bursts less than ``between_ms`` apart, last spike to first, become one; then
    those shorter than ``duration_ms`` or with fewer than ``min_spikes`` spikes are dropped.
    """
    rate = trains.sampling_rate_hz
    return _found_by(
        _max_interval,
        trains,
        whole_samples(criteria.start_ms, rate),
        whole_samples(criteria.end_ms, rate),
        # At least so long, and at least so far apart, in whole samples.
        -whole_samples(-criteria.between_ms, rate),
        -whole_samples(-criteria.duration_ms, rate),
        criteria.min_spikes,
    )


def log_isi_bursts(
    trains: ElectrodeTrains, criteria: BurstCriteria, threshold_ms: Float64
) -> Bursts:
    """Find bursts by each electrode's own threshold, (E,) float64 from `log_isi_thresholds`.

    Electrodes with NaN have no bursts.
    """
    rate = trains.sampling_rate_hz
    runs = [-1 if math.isnan(t) else whole_samples(t, rate) for t in threshold_ms.tolist()]
    longest, cutoff = np.array(runs, dtype=np.int64), whole_samples(criteria.cutoff_ms, rate)
    return _found_by(_runs, trains, longest, cutoff, criteria.min_spikes)


def _found_by(method: Callable[..., int], trains: ElectrodeTrains, *rule: Any) -> Bursts:
    first, last = np.empty((2, len(trains.sample) // 2), dtype=np.int64)
    n = method(trains.sample, trains.bounds, *rule, first, last)
    return Bursts(first[:n], last[:n])


class Thresholds(NamedTuple):
    """The logISI thresholds of electrodes, (E,) float64, in ms."""

    found: Float64  # valleys in the histograms; NaN where there is none
    # The same, but the cut-off where there is a peak below it and no valley; NaN where there is
    # no such peak: that electrode does not burst.
    used: Float64


def log_isi_thresholds(trains: ElectrodeTrains, criteria: BurstCriteria) -> Thresholds:
    """Find each electrode's threshold between intervals inside and outside bursts."""
    counts = count_intervals(trains)
    found = np.full(trains.n_electrodes, np.nan)
    used = np.full(trains.n_electrodes, np.nan)
    for electrode, row in enumerate(smooth(counts)):
        if counts[electrode].sum() < _MIN_INTERVALS:
            continue
        valley = find_valley(row, criteria)
        found[electrode] = valley.threshold_ms
        if valley.has_short_peak:
            missing = math.isnan(valley.threshold_ms)
            used[electrode] = criteria.cutoff_ms if missing else valley.threshold_ms
    return Thresholds(found, used)


@compiled()
def _max_interval(
    sample: Ints,
    bounds: Ints,
    start: int,
    end: int,
    between: int,
    duration: int,
    min_spikes: int,
    first: Ints,
    last: Ints,
) -> int:
    n = 0
    for train in range(len(bounds) - 1):
        stop = bounds[train + 1]
        i = bounds[train]
        of_train = n
        while i < stop - 1:
            if sample[i + 1] - sample[i] > start:
                i += 1
                continue
            j = i + 1
            while j < stop - 1 and sample[j + 1] - sample[j] <= end:
                j += 1
            if n > of_train and sample[i] - sample[last[n - 1]] < between:
                last[n - 1] = j
            else:
                first[n], last[n] = i, j
                n += 1
            i = j
        kept = of_train
        for burst in range(of_train, n):
            a, b = first[burst], last[burst]
            if b - a + 1 >= min_spikes and sample[b] - sample[a] >= duration:
                first[kept], last[kept] = a, b
                kept += 1
        n = kept
    return n


@compiled()
def _runs(
    sample: Ints,
    bounds: Ints,
    threshold: Ints,
    cutoff: int,
    min_spikes: int,
    first: Ints,
    last: Ints,
) -> int:
    n = 0
    n_electrodes = len(threshold)
    for train in range(len(bounds) - 1):
        longest = threshold[train % n_electrodes]
        if longest < 0:
            continue
        in_core = min(longest, cutoff)
        i = bounds[train]
        while i < bounds[train + 1]:
            j, core, largest_core = i, 1, 1
            while j < bounds[train + 1] - 1 and sample[j + 1] - sample[j] <= longest:
                core = core + 1 if sample[j + 1] - sample[j] <= in_core else 1
                largest_core = max(largest_core, core)
                j += 1
            if largest_core >= min_spikes:
                first[n], last[n] = i, j
                n += 1
            i = j + 1
    return n


# --- bursts of the network


class NetworkBursts(NamedTuple):
    """Network bursts in the order of time, (m,), and the intervals between burst events, (j,)."""

    stretch: Ints  # in which each lies
    start: Ints  # sample of the first burst's first spike
    end: Ints  # sample of the last spike of all its bursts
    n_electrodes: Ints  # that take part
    n_spikes: Ints  # in its bursts
    # Samples between successive burst events of all electrodes, never across a gap.
    event_interval: Ints


def network_bursts(
    trains: ElectrodeTrains, bursts: Bursts, criteria: BurstCriteria
) -> NetworkBursts:
    """Find the network bursts; `trains` are the active electrodes' and `bursts` theirs."""
    stretch, electrode = np.divmod(trains.train[bursts.first], max(1, trains.n_electrodes))
    start, end = trains.sample[bursts.first], trains.sample[bursts.last]
    order = np.lexsort((electrode, start, stretch))
    stretch, electrode, start, end = (a[order] for a in (stretch, electrode, start, end))
    n_spikes = bursts.n_spikes[order]
    interval, same = np.diff(start), np.diff(stretch) == 0
    threshold = _event_threshold(interval[same], trains.sampling_rate_hz, criteria)
    opens = np.ones(len(start), dtype=bool)
    opens[1:] = ~same | (interval > threshold)
    first = np.flatnonzero(opens)
    if not len(first):
        none = np.empty(0, dtype=np.int64)
        return NetworkBursts(none, none, none, none, none, none)
    group = np.cumsum(opens) - 1
    pairs = np.unique(group * trains.n_electrodes + electrode)
    taking_part = np.bincount(pairs // trains.n_electrodes, minlength=len(first))
    needed = max(2, math.ceil(criteria.network_share * trains.n_electrodes - 1e-9))
    kept = taking_part >= needed
    return NetworkBursts(
        stretch=stretch[first][kept],
        start=start[first][kept],
        end=np.maximum.reduceat(end, first)[kept],
        n_electrodes=taking_part[kept].astype(np.int64),
        n_spikes=np.add.reduceat(n_spikes, first)[kept],
        event_interval=interval[same],
    )


def _event_threshold(interval: Ints, sampling_rate_hz: float, criteria: BurstCriteria) -> int:
    """Longest interval, in samples, between burst events of one network burst."""
    counts = count_some(interval, sampling_rate_hz)
    threshold_ms = find_valley(smooth(counts[None])[0], criteria).threshold_ms
    if math.isnan(threshold_ms):
        threshold_ms = criteria.cutoff_ms
    return whole_samples(threshold_ms, sampling_rate_hz)


# --- thresholds in distributions of intervals


class Valley(NamedTuple):
    """Where a histogram of intervals parts short ones from long ones."""

    threshold_ms: float  # NaN where there is none
    has_short_peak: bool  # there is a peak below the cut-off


def count_intervals(trains: ElectrodeTrains) -> Float64:
    """Count each electrode's intervals in the bins between `EDGES_MS`: (E, bins) float64.

    An interval outside their range is not counted.
    """
    counts = np.zeros((trains.n_electrodes, len(EDGES_MS) - 1))
    edges, short_bins = _bins(trains.sampling_rate_hz)
    _count_intervals(trains.sample, trains.bounds, edges, short_bins, counts)
    return counts


def count_some(interval: Ints, sampling_rate_hz: float) -> Float64:
    """Count any intervals, (n,) int64 in samples, in the same bins: (bins,) float64."""
    edges, _ = _bins(sampling_rate_hz)
    at = np.searchsorted(edges, interval, side="right") - 1
    inside = (at >= 0) & (at < len(edges) - 1)
    return np.bincount(at[inside], minlength=len(edges) - 1).astype(np.float64)


def smooth(counts: Float64) -> Float64:
    """Smooth histograms by local linear regression with tri-cube weights (Cleveland 1979).

    Both are (n, bins) float64, of the bins between `EDGES_MS`.
    """
    # Rounded, so that what is equal is equal, and ties do not hang on the order of summation.
    return np.round(counts @ _smoother(counts.shape[1]), _DECIMALS)


def find_valley(smoothed: Float64, criteria: BurstCriteria) -> Valley:
    """Find the threshold in a smoothed histogram, (bins,) float64."""
    valley, has_peak = _valley(smoothed, EDGES_MS[:-1], criteria.cutoff_ms, criteria.void)
    threshold_ms = float(EDGES_MS[valley]) if valley >= 0 else math.nan
    if threshold_ms > criteria.longest_ms:
        threshold_ms = math.nan
    return Valley(threshold_ms, bool(has_peak))


@lru_cache
def _bins(sampling_rate_hz: float) -> tuple[Float64, Ints]:
    """Edges in samples, and the bin of every short interval, which most are; -1 below them."""
    edges = EDGES_MS * sampling_rate_hz / 1000
    return edges, np.searchsorted(edges, np.arange(_LISTED), side="right").astype(np.int64) - 1


@lru_cache
def _smoother(n: int) -> Float64:
    """Matrix S for which ``counts @ S`` is smoothed: the regression's value is linear in counts."""
    S = np.zeros((n, n))
    for at in range(n):
        start = min(max(at - _SMOOTHED_OVER // 2, 0), n - _SMOOTHED_OVER)
        x = np.arange(start, start + _SMOOTHED_OVER) - float(at)
        weights = (1 - (np.abs(x) / np.abs(x).max()) ** 3) ** 3
        design = np.stack([np.ones_like(x), x], axis=1)
        normal = design.T @ (weights[:, None] * design)
        S[start : start + _SMOOTHED_OVER, at] = np.linalg.solve(normal, design.T * weights)[0]
    return S


@compiled()
def _count_intervals(
    sample: Ints, bounds: Ints, edges: Float64, short_bins: Ints, counts: Float64
) -> None:
    n_electrodes = len(counts)
    for train in range(len(bounds) - 1):
        for i in range(bounds[train], bounds[train + 1] - 1):
            interval = sample[i + 1] - sample[i]
            if interval < len(short_bins):
                at = short_bins[interval]
            else:
                at = np.searchsorted(edges, interval, side="right") - 1
            if 0 <= at < counts.shape[1]:
                counts[train % n_electrodes, at] += 1


@compiled()
def _peaks(y: Float64) -> NDArray[np.bool_]:
    """Mark bins above both neighbours, the higher of those too near; of equals the first."""
    n = len(y)
    peak = np.zeros(n, dtype=np.bool_)
    i = 1
    while i < n - 1:
        j = i
        while j < n - 1 and y[j + 1] == y[i]:
            j += 1
        if y[i] > y[i - 1] and j < n - 1 and y[j + 1] < y[i]:
            peak[i] = True
        i = j + 1
    free = peak.copy()
    while free.any():
        best = -1
        for i in range(n):
            if free[i] and (best < 0 or y[i] > y[best]):
                best = i
        for i in range(max(0, best - _PEAKS_APART), min(n, best + _PEAKS_APART + 1)):
            free[i] = False
            peak[i] = i == best
    return peak


@compiled()
def _valley(y: Float64, x: Float64, cutoff: float, void: float) -> tuple[int, bool]:
    """Bin of the valley, -1 where there is none; and whether a peak lies below the cut-off."""
    is_peak = _peaks(y)
    short = -1
    for i in range(len(y)):
        if is_peak[i] and x[i] < cutoff and (short < 0 or y[i] > y[short]):
            short = i
    if short < 0:
        return -1, False
    for i in range(short + 1, len(y)):
        lowest = short + int(y[short:i].argmin())
        if is_peak[i] and 1 - y[lowest] / np.sqrt(y[short] * y[i]) >= void:
            return lowest, True
    return -1, True

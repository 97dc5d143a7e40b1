"""Bursts of single electrodes, by two methods: MaxInterval and logISI.

`ElectrodeTrains` enter with criteria; first and last spikes of bursts leave, as indices into the
trains' spikes, train by train and in the order of time. All comparisons are of whole samples.

logISI (Pasquale, Martinoia & Chiappalone 2010, J. Comput. Neurosci. 29:213-229): an electrode's
own threshold is the valley of its intervals (`toptune.features.interval_valley`). Bursts are runs
of intervals up to it; where it lies above the cut-off, runs that hold a core, a burst by the
cut-off alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.features.electrodes import ElectrodeTrains
from toptune.features.interval_valley import count_intervals, find_valley, smooth, whole_samples
from toptune.machine.compiling import compiled
from toptune.params import BurstCriteria

# Fewer intervals have no distribution to speak of.
_MIN_INTERVALS = 3


class Bursts(NamedTuple):
    """Bursts, by train and time.

    Attributes
    ----------
    first, last : (m,) int64
        Their first and last spikes, indices into `ElectrodeTrains.sample`.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @property
    def n_spikes(self) -> NDArray[np.int64]:
        """Spikes in each."""
        return self.last - self.first + 1


def max_interval_bursts(trains: ElectrodeTrains, criteria: BurstCriteria) -> Bursts:
    """Find bursts by the MaxInterval method, whose five numbers are in `criteria`.

    A burst starts at the first interval of at most ``start_ms``, and goes on while intervals are at
    most ``end_ms``. Bursts less than ``between_ms`` apart, last spike to first, become one; then
    those shorter than ``duration_ms`` or with fewer than ``min_spikes`` spikes are dropped.

    Parameters
    ----------
    trains : ElectrodeTrains
    criteria : BurstCriteria
    """
    rate = trains.sampling_rate_hz
    first, last = (np.empty(len(trains.sample) // 2, dtype=np.int64) for _ in range(2))
    n = _max_interval(
        trains.sample,
        trains.bounds,
        whole_samples(criteria.start_ms, rate),
        whole_samples(criteria.end_ms, rate),
        # At least so long, and at least so far apart, in whole samples.
        -whole_samples(-criteria.between_ms, rate),
        -whole_samples(-criteria.duration_ms, rate),
        criteria.min_spikes,
        first,
        last,
    )
    return Bursts(first[:n], last[:n])


def log_isi_bursts(
    trains: ElectrodeTrains, criteria: BurstCriteria, threshold_ms: NDArray[np.float64]
) -> Bursts:
    """Find bursts by each electrode's own threshold.

    Parameters
    ----------
    trains : ElectrodeTrains
    criteria : BurstCriteria
    threshold_ms : (E,) float64
        From `log_isi_thresholds`; electrodes with NaN have no bursts.
    """
    rate = trains.sampling_rate_hz
    runs = [-1 if math.isnan(t) else whole_samples(t, rate) for t in threshold_ms.tolist()]
    first, last = (np.empty(len(trains.sample) // 2, dtype=np.int64) for _ in range(2))
    n = _runs(
        trains.sample,
        trains.bounds,
        np.array(runs, dtype=np.int64),
        whole_samples(criteria.cutoff_ms, rate),
        criteria.min_spikes,
        first,
        last,
    )
    return Bursts(first[:n], last[:n])


class Thresholds(NamedTuple):
    """The logISI thresholds of electrodes, in ms.

    Attributes
    ----------
    found : (E,) float64
        Valleys in the histograms; NaN where there is none.
    used : (E,) float64
        The same, but the cut-off where there is a peak below it and no valley; NaN where there is
        no such peak: that electrode does not burst.
    """

    found: NDArray[np.float64]
    used: NDArray[np.float64]


def log_isi_thresholds(trains: ElectrodeTrains, criteria: BurstCriteria) -> Thresholds:
    """Find each electrode's threshold between intervals inside and outside bursts.

    Parameters
    ----------
    trains : ElectrodeTrains
    criteria : BurstCriteria
    """
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
    sample: NDArray[np.int64],
    bounds: NDArray[np.int64],
    start: int,
    end: int,
    between: int,
    duration: int,
    min_spikes: int,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
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
    sample: NDArray[np.int64],
    bounds: NDArray[np.int64],
    threshold: NDArray[np.int64],
    cutoff: int,
    min_spikes: int,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
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

"""Bursts of the network: bursts of several electrodes that begin soon after one another.

Bursts of single electrodes enter; network bursts leave, with start and end in samples. The method
is that of Pasquale, Martinoia & Chiappalone 2010, J. Comput. Neurosci. 29:213-229: what logISI does
with an electrode's spikes is done with the beginnings of all electrodes' bursts, the burst events.
Where their intervals show no valley the cut-off is the threshold. A network burst holds a share
of the active electrodes at least, and two.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.features.bursts import Bursts
from toptune.features.electrodes import ElectrodeTrains
from toptune.features.interval_valley import count_some, find_valley, smooth, whole_samples
from toptune.params import BurstCriteria


class NetworkBursts(NamedTuple):
    """Network bursts in the order of time, and the intervals between burst events.

    Attributes
    ----------
    stretch : (m,) int64
        In which each lies.
    start, end : (m,) int64
        Samples of the first burst's first spike and of the last spike of all its bursts.
    n_electrodes : (m,) int64
        That take part.
    n_spikes : (m,) int64
        In its bursts.
    event_interval : (j,) int64
        Samples between successive burst events of all electrodes, never across a gap.
    """

    stretch: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    n_electrodes: NDArray[np.int64]
    n_spikes: NDArray[np.int64]
    event_interval: NDArray[np.int64]


def network_bursts(
    trains: ElectrodeTrains, bursts: Bursts, criteria: BurstCriteria
) -> NetworkBursts:
    """Find the network bursts.

    Parameters
    ----------
    trains : ElectrodeTrains
        Of the active electrodes.
    bursts : Bursts
        Of the same trains.
    criteria : BurstCriteria
    """
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


def _event_threshold(
    interval: NDArray[np.int64], sampling_rate_hz: float, criteria: BurstCriteria
) -> int:
    """Longest interval, in samples, between burst events of one network burst."""
    counts = count_some(interval, sampling_rate_hz)
    threshold_ms = find_valley(smooth(counts[None])[0], criteria).threshold_ms
    if math.isnan(threshold_ms):
        threshold_ms = criteria.cutoff_ms
    return whole_samples(threshold_ms, sampling_rate_hz)

"""How far electrodes fire together: spike time tiling and the correlation of spike counts.

`ElectrodeTrains` enter; one number leaves, -1 to 1, the mean over all pairs of electrodes, NaN
where there is no pair.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from toptune.features.electrodes import ElectrodeTrains
from toptune.features.interval_valley import whole_samples
from toptune.machine.compiling import compiled

# A train whose counts vary less than rounding does not vary.
_CONSTANT = 1e-12


def mean_spike_time_tiling(trains: ElectrodeTrains, coincidence_ms: float) -> float:
    """Average the spike time tiling coefficient of all pairs of electrodes.

    ``STTC = ((Pa - Tb) / (1 - Pa Tb) + (Pb - Ta) / (1 - Pb Ta)) / 2`` with Pa the share of a's
    spikes that lie within the coincidence of one of b's, and Ta the share of the recorded time that
    does so of a's (Cutts & Eglen 2014, J. Neurosci. 34:14288-14303). It does not depend on rates. A
    term whose denominator is 0 counts as 1: both are everywhere. Neither counts across a gap.

    Parameters
    ----------
    trains : ElectrodeTrains
        Electrodes without spikes take part in no pair.
    coincidence_ms : float
        The longest time between coincident spikes, truncated to whole samples.
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

    Parameters
    ----------
    trains : ElectrodeTrains
        Electrodes whose counts do not vary take part in no pair.
    bin_ms : float
    """
    counts = _binned(trains, bin_ms * trains.sampling_rate_hz / 1000)
    counts -= counts.mean(axis=1, keepdims=True)
    length = np.sqrt(np.einsum("ij,ij->i", counts, counts))
    varied = length > _CONSTANT
    counts /= np.where(varied, length, 1)[:, None]
    return _mean_of_pairs(counts @ counts.T, varied)


def _by_time(trains: ElectrodeTrains, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order spikes by stretch, then time; ascending runs are what a stable sort merges fastest."""
    begins = np.concatenate([[0], ends[:-1]])
    parts = [
        low + np.argsort(trains.sample[low:high], kind="stable")
        for low, high in zip(begins, ends, strict=True)
    ]
    return np.concatenate(parts)


def _binned(trains: ElectrodeTrains, width: float) -> NDArray[np.float64]:
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


def _mean_of_pairs(matrix: NDArray[np.float64], taking_part: NDArray[np.bool_]) -> float:
    rows, columns = np.triu_indices(len(matrix), 1)
    pairs = taking_part[rows] & taking_part[columns]
    return float(matrix[rows, columns][pairs].mean()) if pairs.any() else math.nan


@compiled()
def _tile(
    sample: NDArray[np.int64],
    bounds: NDArray[np.int64],
    start: NDArray[np.float64],
    length: NDArray[np.float64],
    reach: float,
    tiled: NDArray[np.float64],
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
def _meet(
    sample: NDArray[np.int64],
    electrode: NDArray[np.int64],
    ends: NDArray[np.int64],
    reach: int,
    met: NDArray[np.int32],
) -> None:
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

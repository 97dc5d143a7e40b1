"""Where a distribution of intervals parts short ones from long ones, on a logarithmic axis.

Intervals enter, in samples; a threshold in ms leaves. This is the core of the logISI method
(Pasquale, Martinoia & Chiappalone 2010, J. Comput. Neurosci. 29:213-229): the logarithms of
intervals have one peak of those inside bursts and others of longer ones. The threshold is the
valley between the highest peak below the cut-off and the first following peak from which it is
separated by the void parameter, ``1 - valley / sqrt(peak x peak)``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.features.electrodes import ElectrodeTrains
from toptune.machine.compiling import compiled
from toptune.params import BurstCriteria

# Intervals of 0.1 ms to 1000 s, ten bins a decade as in Pasquale et al.; a bin's lower edge stands
# for it. A fixed range, so that smoothing is the same for all trains.
EDGES_MS: NDArray[np.float64] = 10.0 ** (np.arange(71) / 10 - 1)
# Bins in a local regression, and the least distance of two peaks in bins.
_SMOOTHED_OVER = 5
_PEAKS_APART = 2
_DECIMALS = 9

# Intervals, in samples, whose bins are looked up in a list.
_LISTED = 4096

# Products of milliseconds and rates that are whole numbers but for rounding are meant to be whole.
_WHOLE = 1e-9


class Valley(NamedTuple):
    """Where a histogram of intervals parts short ones from long ones.

    Attributes
    ----------
    threshold_ms : float
        NaN where there is none.
    has_short_peak : bool
        There is a peak below the cut-off.
    """

    threshold_ms: float
    has_short_peak: bool


def whole_samples(milliseconds: float, sampling_rate_hz: float) -> int:
    """Give the most whole samples that are no longer than some milliseconds."""
    return math.floor(milliseconds * sampling_rate_hz / 1000 + _WHOLE)


def count_intervals(trains: ElectrodeTrains) -> NDArray[np.float64]:
    """Count each electrode's intervals in the bins between `EDGES_MS`: (E, bins) float64.

    An interval outside their range is not counted.
    """
    counts = np.zeros((trains.n_electrodes, len(EDGES_MS) - 1))
    edges, short_bins = _bins(trains.sampling_rate_hz)
    _count_intervals(trains.sample, trains.bounds, edges, short_bins, counts)
    return counts


def count_some(interval: NDArray[np.int64], sampling_rate_hz: float) -> NDArray[np.float64]:
    """Count any intervals, (n,) int64 in samples, in the same bins: (bins,) float64."""
    edges, _ = _bins(sampling_rate_hz)
    at = np.searchsorted(edges, interval, side="right") - 1
    inside = (at >= 0) & (at < len(edges) - 1)
    return np.bincount(at[inside], minlength=len(edges) - 1).astype(np.float64)


def smooth(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth histograms by local linear regression with tri-cube weights (Cleveland 1979).

    Parameters
    ----------
    counts : (n, bins) float64
        Of the bins between `EDGES_MS`.

    Returns
    -------
    (n, bins) float64
    """
    # Rounded, so that what is equal is equal, and ties do not hang on the order of summation.
    return np.round(counts @ _smoother(counts.shape[1]), _DECIMALS)


def find_valley(smoothed: NDArray[np.float64], criteria: BurstCriteria) -> Valley:
    """Find the threshold in a smoothed histogram.

    Parameters
    ----------
    smoothed : (bins,) float64
    criteria : BurstCriteria
    """
    valley, has_peak = _valley(smoothed, EDGES_MS[:-1], criteria.cutoff_ms, criteria.void)
    threshold_ms = float(EDGES_MS[valley]) if valley >= 0 else math.nan
    if threshold_ms > criteria.longest_ms:
        threshold_ms = math.nan
    return Valley(threshold_ms, bool(has_peak))


@lru_cache
def _bins(sampling_rate_hz: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Edges in samples, and the bin of every short interval, which most are; -1 below them."""
    edges = EDGES_MS * sampling_rate_hz / 1000
    return edges, np.searchsorted(edges, np.arange(_LISTED), side="right").astype(np.int64) - 1


@lru_cache
def _smoother(n: int) -> NDArray[np.float64]:
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
    sample: NDArray[np.int64],
    bounds: NDArray[np.int64],
    edges: NDArray[np.float64],
    short_bins: NDArray[np.int64],
    counts: NDArray[np.float64],
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
def _peaks(y: NDArray[np.float64]) -> NDArray[np.bool_]:
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
def _valley(
    y: NDArray[np.float64], x: NDArray[np.float64], cutoff: float, void: float
) -> tuple[int, bool]:
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

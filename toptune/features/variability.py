"""How irregular the spikes of single electrodes are.

`ElectrodeTrains` enter; for each electrode three numbers without unit leave, NaN where an
electrode has too few intervals. Intervals never cross a gap.

- CV: SD of the inter-spike intervals (n in the denominator) over their mean; 1 for a Poisson
  process, 0 for a clock. Needs two intervals (Softky & Koch 1993, J. Neurosci. 13:334-350).
- CV2: mean over successive intervals of ``2 |a - b| / (a + b)``: the same locally, so that slow
  changes of rate do not count (Holt et al. 1996, J. Neurophysiol. 75:1806-1814).
- LV: mean over successive intervals of ``3 (a - b)^2 / (a + b)^2`` (Shinomoto, Shima & Tanji 2003,
  Neural Comput. 15:2823-2842).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.features.electrodes import ElectrodeTrains
from toptune.machine.compiling import compiled


class Variability(NamedTuple):
    """Of each electrode, (E,) float64; NaN where it is not defined.

    Attributes
    ----------
    cv : (E,) float64
        NaN with fewer than two intervals, or where all of them are 0.
    cv2, lv : (E,) float64
        NaN without two successive intervals that are not both 0.
    """

    cv: NDArray[np.float64]
    cv2: NDArray[np.float64]
    lv: NDArray[np.float64]


def interval_variability(trains: ElectrodeTrains) -> Variability:
    """Measure the irregularity of each electrode's spikes.

    Parameters
    ----------
    trains : ElectrodeTrains
    """
    measured = np.full((3, trains.n_electrodes), np.nan)
    _measure(trains.sample, trains.bounds, measured)
    return Variability(*measured)


@compiled()
def _measure(
    sample: NDArray[np.int64], bounds: NDArray[np.int64], measured: NDArray[np.float64]
) -> None:
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
def _pairs(sample: NDArray[np.int64]) -> tuple[int, float, float]:
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

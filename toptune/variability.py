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

from toptune.electrode_trains import ElectrodeTrains


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
    n = trains.n_electrodes
    interval = np.diff(trains.sample).astype(np.float64)
    inside = np.diff(trains.train) == 0
    electrode = trains.train[1:] % max(1, n)
    of_electrode = _Sums(electrode[inside], n)
    mean = of_electrode.mean(interval[inside], at_least=2)
    variance = of_electrode.mean((interval - mean[electrode])[inside] ** 2, at_least=2)
    a, b = interval[:-1], interval[1:]
    pair = inside[:-1] & inside[1:] & (a + b > 0)
    share = np.abs(a - b)[pair] / (a + b)[pair]
    of_pairs = _Sums(electrode[1:][pair], n)
    cv = np.full(n, np.nan)
    np.divide(np.sqrt(variance), mean, out=cv, where=mean > 0)
    return Variability(cv, 2 * of_pairs.mean(share), 3 * of_pairs.mean(share**2))


class _Sums:
    """Means of values by electrode."""

    def __init__(self, electrode: NDArray[np.int64], n: int) -> None:
        self._electrode = electrode
        self._count = np.bincount(electrode, minlength=n)

    def mean(self, values: NDArray[np.float64], at_least: int = 1) -> NDArray[np.float64]:
        """Mean of each electrode's values, NaN where it has fewer than `at_least`."""
        total = np.bincount(self._electrode, weights=values, minlength=len(self._count))
        means = np.full(len(self._count), np.nan)
        np.divide(total, self._count, out=means, where=self._count >= at_least)
        return means

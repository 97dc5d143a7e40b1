"""How often which interval between spikes occurs in a window, over time, as a small matrix.

The interval histogram on a logarithmic axis shows bursts and the pauses between them as two peaks
(Pasquale, Martinoia & Chiappalone 2010, J. Comput. Neurosci. 29:213-229); here one is drawn for
each of many parts of a window.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from toptune.machine.threads import compiled
from toptune.pictures.bins import PlacedSpikes

# These numbers are part of no key: whoever changes one raises the version of the store's format.
N_LENGTHS = 48  # steps of equal ratio from the shortest interval to the longest
N_TIMES = 112  # parts of a window
SHORTEST_S, LONGEST_S = 1e-3, 100.0
FULL = 50  # intervals from which on a cell is black


class IntervalCells:
    """Counts intervals in the windows of a recording; `Drawer` defines the pictures.

    Parameters
    ----------
    placed
        The recording's spikes.
    sampling_rate_hz
    width_bins
        Bins in a window.

    Attributes
    ----------
    shape
        Rows, with the shortest intervals first, and columns.
    """

    shape = (N_LENGTHS, N_TIMES)
    upwards = True  # the first row is drawn at the bottom

    def __init__(self, placed: PlacedSpikes, sampling_rate_hz: float, width_bins: int) -> None:
        self._bin = placed.bin
        self._width_bins = width_bins
        n = len(placed.bin)
        # Of each spike, the step of the interval that it ends, and the bin in which that began.
        self._length = np.zeros(n, np.int64)
        self._begin = np.full(n, -1, np.int64)
        order = np.argsort(placed.channel, kind="stable")  # each electrode's spikes by time
        before, after = order[:-1], order[1:]
        samples = placed.sample[after] - placed.sample[before]
        ends = (placed.channel[before] == placed.channel[after]) & (samples > 0)
        ends &= placed.segment[before] == placed.segment[after]
        after = after[ends]
        self._length[after] = np.searchsorted(
            step_edges_s() * sampling_rate_hz, samples[ends], side="right"
        )
        self._begin[after] = placed.bin[before[ends]]
        # log(1 + n) / log(1 + 50), for every n up to 50.
        self._dark = (np.log1p(np.arange(FULL + 1)) / math.log1p(FULL)).astype(np.float32)

    def darkness(self, window_bin: NDArray[np.int64]) -> NDArray[np.float32]:
        """Give the cells of windows that begin with some bins, (windows, *shape), 1 for black."""
        counts = np.zeros((len(window_bin), *self.shape), np.int32)
        _count(self._bin, self._length, self._begin, window_bin, self._width_bins, counts)
        return self._dark[np.minimum(counts, FULL)]


def step_edges_s() -> NDArray[np.float64]:
    """Where a step of lengths ends and the next begins, (47,), in seconds."""
    ratio = LONGEST_S / SHORTEST_S
    edges: NDArray[np.float64] = SHORTEST_S * ratio ** (np.arange(1, N_LENGTHS) / N_LENGTHS)
    return edges


@compiled()
def _count(
    spike_bin: NDArray[np.int64],
    length: NDArray[np.int64],
    begin: NDArray[np.int64],
    window_bin: NDArray[np.int64],
    width_bins: int,
    counts: NDArray[np.int32],
) -> None:
    """Add the intervals that begin and end in each window."""
    n_times = counts.shape[2]
    for w in range(len(window_bin)):
        first = window_bin[w]
        i = np.searchsorted(spike_bin, first)
        while i < len(spike_bin) and spike_bin[i] < first + width_bins:
            if begin[i] >= first:
                counts[w, length[i], (spike_bin[i] - first) * n_times // width_bins] += 1
            i += 1

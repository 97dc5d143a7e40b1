"""Correlations of all pairs of electrodes in a window, as a matrix in a clustering order."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from toptune.machine.threads import compiled, one_blas_thread
from toptune.params import Windows
from toptune.pictures.bins import PlacedSpikes

# It is part of no key: whoever changes it raises the version of the store's format.
COUNT_MS = 100.0
# Parts of a bin, and of an eigenvalue, that are rounding.
_ROUNDING = 1e-9
# A vector shorter than this part of the one that was projected is rounding.
_VANISHING = 1e-6
# Decimals to which components of an eigenvector differ by more than rounding.
_DECIMALS = 9


class CorrelationCells:
    """Correlates the electrodes in the windows of a recording; `Drawer` defines the pictures.

    Parameters
    ----------
    placed
        The recording's spikes.
    n_electrodes
    windows
    most
        Electrodes that a picture has room for; of more, the most active ones are taken.

    Attributes
    ----------
    shape
        Rows and columns: one for each electrode.
    """

    upwards = False

    def __init__(
        self, placed: PlacedSpikes, n_electrodes: int, windows: Windows, most: int
    ) -> None:
        self._placed = placed
        self._n_electrodes = n_electrodes
        self._width_bins = windows.width_bins
        n_shown = min(n_electrodes, most)
        self.shape = (n_shown, n_shown)
        count_ms = max(COUNT_MS, windows.bin_ms)
        edge = np.arange(windows.width_bins + 1) * windows.bin_ms / count_ms + _ROUNDING
        # In which count each bin of a window is; a rest at the end is in none.
        self._n_counts = int(edge[-1])
        self._count_of = edge[:-1].astype(np.int64)

    def darkness(self, window_bin: NDArray[np.int64]) -> NDArray[np.float32]:
        """Give the cells of windows that begin with some bins, (windows, *shape), 1 for black."""
        cells = np.zeros((len(window_bin), *self.shape), np.float32)
        with one_blas_thread():
            for of_window, first in zip(cells, window_bin.tolist(), strict=True):
                matrix = self._correlations(first)
                of_window[: len(matrix), : len(matrix)] = matrix.clip(0, 1)
        return cells

    def _correlations(self, first_bin: int) -> NDArray[np.float64]:
        """Correlate the electrodes whose counts vary in a window, in the picture's order."""
        if not self._n_counts:
            return np.empty((0, 0))
        spikes, counts = self._counts(first_bin)
        varied = counts.min(axis=1) < counts.max(axis=1)
        roots = np.sqrt(counts[varied], dtype=np.float64)
        roots -= roots.mean(axis=1, keepdims=True)
        roots /= np.sqrt(np.einsum("ij,ij->i", roots, roots))[:, None]
        matrix = roots @ roots.T
        order = clustering_order(matrix, spikes[varied])
        shown: NDArray[np.float64] = matrix[np.ix_(order, order)]
        return shown

    def _counts(self, first_bin: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Count spikes: of each shown electrode, most active first, and of each in every 100 ms."""
        inside = self._placed.inside(first_bin, self._width_bins)
        channel = self._placed.channel[inside]
        spikes = np.bincount(channel, minlength=self._n_electrodes)
        shown = np.argsort(-spikes, kind="stable")[: self.shape[0]]
        row_of = np.full(self._n_electrodes, -1)
        row_of[shown] = np.arange(len(shown))
        counts = np.zeros((len(shown), self._n_counts), np.int32)
        _count(self._placed.bin[inside] - first_bin, row_of[channel], self._count_of, counts)
        return spikes[shown], counts


@compiled()
def _count(
    spike_bin: NDArray[np.int64],
    row: NDArray[np.int64],
    count_of: NDArray[np.int64],
    counts: NDArray[np.int32],
) -> None:
    """Count spikes by row and the count in which their bin is."""
    for i in range(len(spike_bin)):
        column = count_of[spike_bin[i]]
        if row[i] >= 0 and column < counts.shape[1]:
            counts[row[i], column] += 1


def clustering_order(matrix: NDArray[np.float64], spikes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort electrodes by their components in the second leading eigenvector, largest first.

    Parameters
    ----------
    matrix : (n, n)
        Correlations, symmetric, with ones on the diagonal.
    spikes : (n,)
        Of each electrode, descending.

    Returns
    -------
    (n,)
        Of equal components, the electrode that came first stays first.

    Notes
    -----
    The leading eigenvector of a correlation matrix is what electrodes have in common; the second
    tells the two groups apart into which they fall best. An eigenvector may as well be the opposite
    one, and where its eigenvalue occurs more than once, any vector of a plane or larger space. Of
    all these, the one nearest to `spikes` is taken, so that the order does not depend on that in
    the file; where electrodes have activity in common, the group with more spikes comes first.
    Where all of them are at right angles to it, it is the one nearest to the first electrode for
    which that is not so.
    """
    n = len(matrix)
    if n < 3:  # both orders of two give the same matrix
        return np.arange(n)
    space = _second_eigenspace(matrix)
    targets = np.concatenate([spikes[None] / np.linalg.norm(spikes), np.eye(n)])
    nearest = (targets @ space) @ space.T
    component = nearest[np.argmax(np.linalg.norm(nearest, axis=1) > _VANISHING)]
    component = np.round(component / np.abs(component).max(), _DECIMALS)
    order: NDArray[np.int64] = np.argsort(-component, kind="stable")
    return order


def _second_eigenspace(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the eigenvectors of the second largest eigenvalue, (n, 1) but where it is multiple."""
    n = len(matrix)
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[n - 3, n - 1], check_finite=False)
    same = np.abs(values - values[1]) <= n * _ROUNDING
    if same.sum() > 1:  # there may be more of them
        values, vectors = scipy.linalg.eigh(matrix, check_finite=False)
        same = np.abs(values - values[-2]) <= n * _ROUNDING
    space: NDArray[np.float64] = vectors[:, same]
    return space

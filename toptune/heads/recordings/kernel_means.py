"""The kernel between recordings: the mean of the Gaussian kernel over all pairs of their windows.

It is the scalar product of the recordings' mean embeddings (Muandet, Fukumizu, Sriperumbudur &
Schoelkopf 2017, Kernel Mean Embedding of Distributions, Found. Trends Mach. Learn. 10:1-141,
section 3). A window counts as a recording of one window. Kernels of several views are summed with
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.nested import spread_rows
from toptune.heads.rows import Float64, Ints, cut, view_columns

# What a block of windows' kernel with all windows may take.
_BLOCK_BYTES = 2**25


def rows_to_learn_from(recording: Ints, most: int | None) -> Ints:
    """Choose at most so many rows of each recording, evenly spread, one recording after the other.

    `recording`, (n,), numbers that of each row from 0, without a gap.
    """
    rows = spread_rows(recording, len(recording) if most is None else most)
    return rows[np.argsort(recording[rows], kind="stable")]


class Bags(NamedTuple):
    """Windows of recordings, one recording after the other."""

    windows: NDArray[np.floating[Any]]  # (m, d)
    sizes: Ints  # (u,): windows of each recording, 1 or more

    def of_windows(self, X: NDArray[np.floating[Any]], kernels: Sequence[KernelSum]) -> Float64:
        """Evaluate kernels of windows, (n, d), with the recordings: (kernels, n, u).

        All are kernels of the same views.
        """
        return self._evaluate(X, len(kernels), self._views(kernels))

    def ready(self, kernel: KernelSum) -> Callable[[NDArray[np.floating[Any]]], Float64]:
        """Make what evaluates one kernel of few windows at a time, (n, u), prepared once."""
        views = list(self._views([kernel]))
        return lambda X: self._evaluate(X, 1, views)[0]

    def _views(self, kernels: Sequence[KernelSum]) -> Iterator[_View]:
        for view, columns in enumerate(view_columns(kernels[0].view_sizes)):
            asked: dict[float, list[tuple[int, float]]] = {}
            for number, kernel in enumerate(kernels):
                if kernel.weights[view]:
                    by_width = asked.setdefault(kernel.widths[view], [])
                    by_width.append((number, kernel.weights[view]))
            yield _View(columns, asked, _Distances(self.windows[:, columns]))

    def _evaluate(
        self, X: NDArray[np.floating[Any]], n_kernels: int, views: Iterable[_View]
    ) -> Float64:
        found = np.zeros((n_kernels, len(X), len(self.sizes)))
        for columns, asked, distances in views:
            for part, squares in distances.squared(X[:, columns]):
                for width, kernels_of_width in asked.items():
                    means = self._mean(np.exp(squares / (-2 * width**2)))
                    for number, weight in kernels_of_width:
                        found[number, part] += weight * means
        return found

    def _mean(self, values: Float64) -> Float64:
        """Mean of each recording's columns of (b, m) values."""
        starts = np.cumsum(self.sizes) - self.sizes
        means: Float64 = np.add.reduceat(values, starts, axis=1) / self.sizes
        return means


class _Distances:
    """Rows Z, made ready for their distances from any others."""

    def __init__(self, Z: NDArray[np.floating[Any]]) -> None:
        self._z = Z.astype(np.float64)
        self._z_squares = np.einsum("ij,ij->i", self._z, self._z)

    def squared(self, X: NDArray[np.floating[Any]]) -> Iterator[tuple[slice, Float64]]:
        """Squared distances of some rows of X from all of Z, and which rows these are."""
        for part in cut(len(X), _BLOCK_BYTES // (8 * len(self._z))):
            x = X[part].astype(np.float64)
            squares = x @ self._z.T
            squares *= -2
            squares += np.einsum("ij,ij->i", x, x)[:, None]
            squares += self._z_squares
            # Rounding may leave less than nothing.
            yield part, np.maximum(squares, 0, out=squares)


class _View(NamedTuple):
    """A view of some kernels."""

    columns: slice
    asked: dict[float, list[tuple[int, float]]]  # by width: numbers of kernels, and their weights
    distances: _Distances


def mean_of_rows(values: Float64, group: Ints, n_groups: int) -> Float64:
    """Mean of the rows, (n, c), of each group, (n_groups, c); `group`, (n,), numbers them."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=n_groups)
    sums = np.add.reduceat(values[order], np.cumsum(sizes) - sizes, axis=0)
    means: Float64 = sums / sizes[:, None]
    return means

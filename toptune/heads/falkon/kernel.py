"""The Gaussian kernel, summed over views: of rows with each other, and of rows with centres.

Written over the operations of `falkon.arrays`, so that it is evaluated where the algebra is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.heads.falkon.arrays import NUMPY, Array, Arrays, Subset
from toptune.heads.rows import Ints, cut, l2_normalise_views, view_columns

# Where parameters lie that a recording does not have.
UNDEFINED = 0.0
# The kernel of a classifier that has none; FalkonClassifier says where the number comes from.
PLAIN_WIDTH = 0.5

_ROWS_AT_ONCE = 4096


class Gaussian(NamedTuple):
    """A Gaussian that takes part in a sum of kernels."""

    columns: slice  # of the rows
    width: float
    weight: float


@dataclass(frozen=True)
class KernelSum:
    """``K(x, z) = sum over views v of weight_v k_v(x_v, z_v)``, with Gaussians k_v.

    With one scale, 1, ``k_v(x, z) = exp(-|x - z|^2 / (2 width_v^2))``; with several, k_v is the
    mean of the Gaussians of so many times that width. A view is a stretch of columns: one feature
    set of several that are fused. A view of weight 0 is not evaluated.
    """

    # Standard deviation of each view's Gaussian, in the units of the rows
    widths: tuple[float, ...]
    weights: tuple[float, ...]  # 0 or above, not all 0
    view_sizes: tuple[int, ...]  # columns of each view
    scales: tuple[float, ...] = (1.0,)  # of every view

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.weights) == len(self.view_sizes):
            raise InputError(f"widths, weights and view_sizes must be of one length, got {self}")
        if min(self.weights) < 0 or not max(self.weights) > 0:
            raise InputError(f"weights must be 0 or above, and not all 0, got {self.weights}")

    @classmethod
    def single(cls, width: float, n_features: int) -> KernelSum:
        """One Gaussian over all columns."""
        return cls((width,), (1.0,), (n_features,))

    def gaussians(self) -> tuple[Gaussian, ...]:
        """List those whose weight is not 0, view by view."""
        views = zip(view_columns(self.view_sizes), self.widths, self.weights, strict=True)
        return tuple(
            Gaussian(columns, scale * width, weight / len(self.scales))
            for columns, width, weight in views
            if weight
            for scale in self.scales
        )

    def gram(self, X: NDArray[np.floating[Any]], arrays: Arrays = NUMPY) -> Array:
        """Kernel of rows with each other, (n, n).

        In NumPy it is the lower triangle, with zeros above the diagonal, and the only matrix of
        that size in memory, whatever the number of Gaussians; in torch it has both triangles.
        """
        first, *others = self.gaussians()
        K = arrays.gaussian_gram(arrays.scaled(X[:, first.columns], first.width), first.weight)
        for one in others:
            arrays.add_gaussian_gram(K, arrays.scaled(X[:, one.columns], one.width), one.weight)
        return K


class Centres:
    """Centres Z, (m, d), made ready for the kernel of any number of blocks of rows with them."""

    def __init__(
        self, kernel: KernelSum, Z: NDArray[np.floating[Any]], arrays: Arrays = NUMPY
    ) -> None:
        self._arrays = arrays
        self._gaussians = [
            (one, z, arrays.half_squares(z))
            for one in kernel.gaussians()
            for z in [arrays.scaled(Z[:, one.columns], one.width)]
        ]

    def kernel_of(self, X: NDArray[np.floating[Any]]) -> Array:
        """Kernel of rows, (n, d) float, with the centres: (n, m); for a block of rows at a time.

        Beside the result it takes a copy of a view of X, and of several Gaussians a second result.
        """
        arrays, total = self._arrays, None
        for one, z, half_z in self._gaussians:
            x = arrays.scaled(X[:, one.columns], one.width)
            K = arrays.gaussian(x, z, half_z, one.weight)
            if total is None:
                total = K
            else:
                total += K
        return total


class NystromKernel:
    """Rows of ``Z = K(X, C)``: kept where they fit, otherwise evaluated again block by block.

    The values are the same either way, for 2 n m d operations each time. X, (N, d), is never copied
    as a whole: `order`, (n,), and `centre_rows`, (m,), name those of its rows that the rows and the
    columns of Z stand for. Z is kept up to `keep_bytes`, by default `Arrays.kept_bytes`.
    """

    def __init__(
        self,
        X: NDArray[np.floating[Any]],
        order: Ints,
        centre_rows: Ints,
        kernel: KernelSum,
        arrays: Arrays = NUMPY,
        keep_bytes: int | None = None,
    ) -> None:
        self.n_rows, self.n_centres, self.arrays = len(order), len(centre_rows), arrays
        self._X, self._order, self._kernel = X, order, kernel
        # Read once, since rows may have to be read from the disk.
        self._centre_values = X[centre_rows]
        self._centres = Centres(kernel, self._centre_values, arrays)
        self._keep_bytes = arrays.kept_bytes() if keep_bytes is None else keep_bytes
        self._kept: Array | None = None
        if self._fits(self.n_rows):
            kept = arrays.empty(self.n_rows, self.n_centres)
            for part, block in self.blocks():
                kept[part] = block
            self._kept = kept

    @property
    def is_kept(self) -> bool:
        """Whether Z is kept."""
        return self._kept is not None

    def centre_gram(self) -> Array:
        """Evaluate ``B = K(C, C)``, a new matrix; see `KernelSum.gram`."""
        return self._kernel.gram(self._centre_values, self.arrays)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, Array]]:
        """Go through rows start to stop of Z: where each block belongs, and the block."""
        stop = self.n_rows if stop is None else stop
        for first in range(start, stop, self.arrays.block_rows):
            part = slice(first, min(first + self.arrays.block_rows, stop))
            if self._kept is None:
                yield part, self._centres.kernel_of(self._X[self._order[part]])
            else:
                yield part, self._kept[part]

    def at(self, rows: Subset) -> Array:
        """Rows of Z that the models of a batch leave out."""
        if self._kept is not None:
            return rows.take(self._kept)
        return rows.shaped(self._centres.kernel_of(self._X[self._order[rows.places]]))

    def pieces(self, rows: Subset) -> Callable[[], Iterable[tuple[Subset, Array]]]:
        """Make ready the same in pieces, to go through more than once; kept where they fit."""

        def evaluated() -> Iterator[tuple[Subset, Array]]:
            return ((piece, self.at(piece)) for piece in rows.pieces())

        if not self._fits(len(rows.places)):
            return evaluated
        kept = list(evaluated())
        return lambda: kept

    def moments(self, Y: Array) -> Array:
        """Compute ``Z'Y``, (m, k), for Y of shape (n, k)."""
        return sum(self.arrays.transposed_product(block, Y[part]) for part, block in self.blocks())

    def _fits(self, n_rows: int) -> bool:
        return self.arrays.item_bytes * n_rows * self.n_centres <= self._keep_bytes


@dataclass(frozen=True)
class Nearness:
    """How near two rows of features are: a classifier's kernel, after its normalisation."""

    kernel: KernelSum  # its weights sum to 1
    normalise: bool = True  # whether rows are divided by their length first, view by view

    @classmethod
    def plain(cls, view_sizes: Sequence[int]) -> Nearness:
        """Take Gaussians of a fixed width on normalised rows, where a classifier has no kernel."""
        n = len(view_sizes)
        return cls(KernelSum((PLAIN_WIDTH,) * n, (1 / n,) * n, tuple(view_sizes)))

    def largest(
        self,
        features: NDArray[np.float32],
        reference: NDArray[np.float32],
        apart: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    ) -> NDArray[np.float64]:
        """Give the kernel's largest value, (n,), of each row with the reference rows.

        `apart` numbers the rows of both, (n,) and (m,): those of equal numbers are not compared.
        """
        centres = Centres(self.kernel, self._rows(reference))
        largest = np.empty(len(features))
        for part in cut(len(features), _ROWS_AT_ONCE):
            values = centres.kernel_of(self._rows(features[part]))
            if apart is not None:
                values[apart[0][part, None] == apart[1]] = 0
            largest[part] = values.max(axis=1)
        return largest

    def to_rows(
        self, reference: NDArray[np.float32]
    ) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        """Make what gives `largest` of few rows at a time, with the reference made ready once."""
        centres = Centres(self.kernel, self._rows(reference))

        def largest(features: NDArray[np.float32]) -> NDArray[np.float64]:
            values: NDArray[np.float64] = centres.kernel_of(self._rows(features)).max(axis=1)
            return values

        return largest

    def _rows(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalise:
            return np.where(np.isnan(features), UNDEFINED, features).astype(np.float32)
        rows: NDArray[np.float32] = l2_normalise_views(features, self.kernel.view_sizes)
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "widths": list(self.kernel.widths),
            "weights": list(self.kernel.weights),
            "view_sizes": list(self.kernel.view_sizes),
            "scales": list(self.kernel.scales),
            "normalise": self.normalise,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Nearness:
        """Build from what `to_json` gave."""
        names = ("widths", "weights", "view_sizes")
        widths, weights, sizes = (tuple(values[name]) for name in names)
        # Models of before there were several have none.
        scales = tuple(values.get("scales", (1.0,)))
        return cls(KernelSum(widths, weights, sizes, scales), values["normalise"])

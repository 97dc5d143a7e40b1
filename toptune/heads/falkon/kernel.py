"""The Gaussian kernel and the factorisations the Falkon head and its folds are made of.

What enters: rows of features, float32 or float64. What leaves: kernels and factors, always in
float64: with a ridge of 1e-6 x rows, the rounding of a float32 kernel (1e-7 an entry) would reach
the third digit of a score, and a float32 product of rows is no faster where BLAS computes ``X X'``
as the symmetric product it is (0.40 s against 0.48 s for 5024 x 1280 on two cores).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning, blas, lapack

from toptune.errors import InputError, ToptuneError

Float64 = NDArray[np.float64]

# Rows exponentiated at a time: few enough to stay in the cache, and to touch little of the upper
# triangle.
_BLOCK_ROWS = 32
# Rows of a further view's kernel at a time: enough for BLAS, few beside a matrix of n x n.
_PANEL_ROWS = 512
# The jitter is tried at once, then ten times larger, at most this often.
JITTER_TRIES = 8


def l2_normalise(X: NDArray[Any]) -> NDArray[Any]:
    """Divide each row by its own Euclidean length; a row of zeros stays zero.

    Parameters
    ----------
    X : (n, d) float32 or float64

    Returns
    -------
    (n, d) of the same type
    """
    # By the largest value first, so that no square overflows or vanishes.
    largest = np.abs(X).max(axis=1, keepdims=True, initial=0)
    scaled: NDArray[Any] = X / np.where(largest > 0, largest, 1)
    length = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    scaled /= np.where(length > 0, length, 1)
    return scaled


def l2_normalise_views(X: NDArray[Any], view_sizes: Sequence[int] | None = None) -> NDArray[Any]:
    """Divide each row's part in each view by that part's own length; zeros stay zero.

    Parameters
    ----------
    X : (n, d) float32 or float64
        Views side by side.
    view_sizes : sequence of int, optional
        Columns of each view; they sum to d. None: one view.

    Returns
    -------
    (n, d) of the same type
    """
    if view_sizes is None or len(view_sizes) == 1:
        return l2_normalise(X)
    rows = np.empty_like(X)
    for columns in view_columns(view_sizes):
        rows[:, columns] = l2_normalise(X[:, columns])
    return rows


def view_columns(view_sizes: Sequence[int]) -> tuple[slice, ...]:
    """Columns of each view, given how many each has."""
    stops = np.cumsum(view_sizes).tolist()
    return tuple(slice(stop - size, stop) for size, stop in zip(view_sizes, stops, strict=True))


def product(A: Float64, B: Float64) -> Float64:
    """Compute ``A @ B`` of C-order matrices, by SciPy's BLAS.

    NumPy and SciPy each bring a BLAS with threads of its own. The threads of one keep spinning for
    some milliseconds after its last call and slow down the other: products by NumPy between
    factorisations by SciPy made the folds four times slower on two cores. So all is SciPy's.
    """
    # BLAS reads columns first, so what it sees is (A B)' = B' A', without a copy.
    return np.asarray(blas.dgemm(1.0, B.T, A.T)).T


def transposed_product(A: Float64, B: Float64) -> Float64:
    """Compute ``A.T @ B`` of C-order matrices, by SciPy's BLAS; see `product`."""
    return np.asarray(blas.dgemm(1.0, B.T, A.T, trans_b=1)).T


def add_gram_lower(A: Float64, Z: Float64, factor: float = 1.0) -> None:
    """Add ``factor x Z.T @ Z`` to the lower triangle of A, in place; both in C order."""
    blas.dsyrk(factor, Z.T, beta=1.0, c=A.T, overwrite_c=1)


class Centres:
    """Centres made ready for the kernel of any number of blocks of rows with them.

    Parameters
    ----------
    kernel : KernelSum
    Z : (m, d) float
    """

    def __init__(self, kernel: KernelSum, Z: NDArray[np.floating[Any]]) -> None:
        self.kernel = kernel
        self.n = len(Z)
        self._views = [_in_widths(Z[:, view.columns], view.width) for view in kernel.views()]
        self._halves = [_half_squares(z) for z in self._views]

    def kernel_of(self, X: NDArray[np.floating[Any]]) -> Float64:
        """Kernel of rows, (n, d) float, with the centres: (n, m) float64.

        Beside the result, memory is a float64 copy of one view of X, and with several views a
        second matrix of the result's size: call it with a block of rows at a time.
        """
        total: Float64 | None = None
        for view, z, half in zip(self.kernel.views(), self._views, self._halves, strict=True):
            x = _in_widths(X[:, view.columns], view.width)
            K = np.asarray(blas.dgemm(1.0, z.T, x.T, trans_a=1)).T
            half_x = _half_squares(x)
            for start in range(0, len(x), _BLOCK_ROWS):
                part = slice(start, start + _BLOCK_ROWS)
                _exponentiate(K[part], half_x[part], half, view.weight)
            total = K if total is None else np.add(total, K, out=total)
        assert total is not None  # a KernelSum has a view with a weight above 0
        return total


class View(NamedTuple):
    """A view that takes part in a sum of kernels.

    Attributes
    ----------
    columns : slice
        Of the rows.
    width, weight : float
    """

    columns: slice
    width: float
    weight: float


@dataclass(frozen=True)
class KernelSum:
    """``K(x, z) = sum over views v of weight_v exp(-|x_v - z_v|^2 / (2 width_v^2))``.

    A view is a stretch of columns: one feature set of several that are fused. A view of weight 0
    is not evaluated.

    Attributes
    ----------
    widths : tuple of float
        Standard deviation of each view's Gaussian, in the units of the rows.
    weights : tuple of float
        0 or above, not all 0.
    view_sizes : tuple of int
        Columns of each view.
    """

    widths: tuple[float, ...]
    weights: tuple[float, ...]
    view_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.weights) == len(self.view_sizes):
            raise InputError(f"widths, weights and view_sizes must be of one length, got {self}")
        if min(self.weights) < 0 or not max(self.weights) > 0:
            raise InputError(f"weights must be 0 or above, and not all 0, got {self.weights}")

    @classmethod
    def single(cls, width: float, n_features: int) -> KernelSum:
        """One Gaussian over all columns."""
        return cls((width,), (1.0,), (n_features,))

    def views(self) -> tuple[View, ...]:
        """Name the views whose weight is not 0."""
        columns = view_columns(self.view_sizes)
        views = map(View, columns, self.widths, self.weights)
        return tuple(view for view in views if view.weight)

    def gram_lower(self, X: NDArray[np.floating[Any]]) -> Float64:
        """Lower triangle of the kernel of rows with each other, zeros above the diagonal.

        Parameters
        ----------
        X : (n, d) float

        Returns
        -------
        (n, n) float64
            The only matrix of that size in memory, whatever the number of views; its upper half
            is hardly touched.
        """
        first, *others = self.views()
        K = _gram_lower(X[:, first.columns], first.width, first.weight)
        for view in others:
            _add_gaussian_lower(K, X[:, view.columns], view.width, view.weight)
        return K

    def between(self, X: NDArray[np.floating[Any]], Z: NDArray[np.floating[Any]]) -> Float64:
        """Kernel of rows (n, d) with rows (m, d): (n, m) float64; see `Centres`."""
        return Centres(self, Z).kernel_of(X)


def gaussian_kernel(
    X: NDArray[np.floating[Any]], Z: NDArray[np.floating[Any]], width: float
) -> Float64:
    """``exp(-|x - z|^2 / (2 width^2))`` of every row of X with every row of Z.

    Parameters
    ----------
    X : (n, d) float
    Z : (m, d) float
    width : float
        Standard deviation of the Gaussian, in the units of the rows.

    Returns
    -------
    (n, m) float64
    """
    return KernelSum.single(width, X.shape[1]).between(X, Z)


def gaussian_gram_lower(X: NDArray[np.floating[Any]], width: float) -> Float64:
    """Compute the lower triangle of ``gaussian_kernel(X, X, width)``; zeros above the diagonal.

    Memory is one (n, n) float64 matrix, of which the upper half is never touched.
    """
    return _gram_lower(X, width, 1.0)


def _gram_lower(X: NDArray[np.floating[Any]], width: float, weight: float) -> Float64:
    x = _in_widths(X, width)
    half = _half_squares(x)
    K = np.zeros((len(x), len(x)))
    blas.dsyrk(1.0, x.T, trans=1, c=K.T, overwrite_c=1)
    for start in range(0, len(x), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(x))
        block = K[start:stop, :stop]
        _exponentiate(block, half[start:stop], half[:stop], weight)
        block[:, start:] = np.tril(block[:, start:])
    # Rounding leaves the distance of a row to itself near 0; it is 0.
    np.fill_diagonal(K, weight)
    return K


def _add_gaussian_lower(
    K: Float64, X: NDArray[np.floating[Any]], width: float, weight: float
) -> None:
    """Add a view to the lower triangle of K by panels: a second matrix of n x n is not needed."""
    x = _in_widths(X, width)
    half = _half_squares(x)
    for start in range(0, len(x), _PANEL_ROWS):
        stop = min(start + _PANEL_ROWS, len(x))
        panel = np.asarray(blas.dgemm(1.0, x[:stop].T, x[start:stop].T, trans_a=1)).T
        _exponentiate(panel, half[start:stop], half[:stop], weight)
        square = panel[:, start:]
        np.fill_diagonal(square, weight)
        panel[:, start:] = np.tril(square)
        K[start:stop, :stop] += panel


def _in_widths(X: NDArray[np.floating[Any]], width: float) -> Float64:
    scaled = np.array(X, dtype=np.float64, order="C")
    scaled /= width
    return scaled


def _half_squares(x: Float64) -> Float64:
    half: Float64 = 0.5 * np.einsum("ij,ij->i", x, x)
    return half


def _exponentiate(products: Float64, half_x: Float64, half_z: Float64, weight: float) -> None:
    """Turn inner products, in place, into Gaussians times their weight."""
    products -= half_x[:, None]
    products -= half_z
    # Rounding can make a squared distance slightly negative.
    np.minimum(products, 0.0, out=products)
    np.exp(products, out=products)
    if weight != 1:
        products *= weight


class Cholesky(NamedTuple):
    """A factored symmetric matrix.

    Attributes
    ----------
    lower : (n, n) float64, C order
        L of ``L L' = A + jitter I``; what lies above the diagonal is not to be read.
    jitter : float
        What had to be added to the diagonal; 0 where A itself could be factored.
    """

    lower: Float64
    jitter: float

    def solve(self, b: Float64) -> Float64:
        """Solve ``(A + jitter I) x = b`` for b of shape (n, k)."""
        # LAPACK reads columns first: C-order L is Fortran-order L', an upper factor.
        x, _ = lapack.dpotrs(self.lower.T, b, lower=0)
        return np.ascontiguousarray(x)

    def invert_lower(self) -> Float64:
        """Replace L by its inverse, in the same memory, and return it."""
        inverse, _ = lapack.dtrtri(self.lower.T, lower=0, overwrite_c=1)
        return np.asarray(inverse).T


def cholesky(build: Callable[[], Float64], what: str) -> Cholesky:
    """Factor a positive definite matrix, with a stated jitter where rounding makes it indefinite.

    The jitter starts at ``n x machine epsilon x largest diagonal value``, the size of the rounding
    of the factorisation itself, and grows tenfold until the factorisation succeeds. It is
    returned and warned of, never silent.

    Parameters
    ----------
    build : callable
        Returns the matrix, (n, n) float64 in C order, of which the lower triangle is read; it
        is factored in place, and built anew where that fails.
    what : str
        Names the matrix in the warning and the error.

    Raises
    ------
    ToptuneError
        Where even the largest jitter does not help.
    """
    for attempt in range(JITTER_TRIES + 1):
        # A failed attempt's matrix is gone before the next is built.
        factored, jitter = _try_cholesky(build(), attempt)
        if factored is not None:
            break
    else:
        raise ToptuneError(f"{what} is singular even with a jitter of {jitter:.1e}; raise penalty")
    if jitter:
        warn_of_jitter(what, jitter)
    return Cholesky(factored, jitter)


def jitter_of(attempt: int, size: int, largest_diagonal: float) -> float:
    """Give the jitter of an attempt, counted from 0, at a matrix of size x size; see `cholesky`."""
    if attempt == 0:
        return 0.0
    rounding = float(np.finfo(np.float64).eps)
    return float(10.0 ** (attempt - 1)) * size * rounding * largest_diagonal


def warn_of_jitter(what: str, jitter: float) -> None:
    """Say that a matrix was changed; to whoever called what called this."""
    warnings.warn(
        f"{what} is singular in float64; {jitter:.1e} was added to its diagonal "
        "(raise penalty, or lower n_centres or width, to avoid it)",
        LinAlgWarning,
        stacklevel=3,
    )


def _try_cholesky(A: Float64, attempt: int) -> tuple[Float64 | None, float]:
    """Factor in place with the jitter of an attempt; the lower factor, or None, and the jitter."""
    diagonal = np.einsum("ii->i", A)
    jitter = jitter_of(attempt, len(A), float(diagonal.max()))
    if jitter:
        diagonal += jitter
    factor, failed = lapack.dpotrf(A.T, lower=0, overwrite_a=1, clean=0)
    return (None if failed else np.asarray(factor).T), jitter

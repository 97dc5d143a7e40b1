"""The Gaussian kernel and the factorisations the Falkon head and its folds are made of.

What enters: rows of features, float32 or float64. What leaves: kernels and factors, always in
float64: with a ridge of 1e-6 x rows, the rounding of a float32 kernel (1e-7 an entry) would reach
the third digit of a score, and a float32 product of rows is no faster where BLAS computes ``X X'``
as the symmetric product it is (0.40 s against 0.48 s for 5024 x 1280 on two cores).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning, blas, lapack

from toptune.errors import ToptuneError

Float64 = NDArray[np.float64]

# Rows exponentiated at a time: few enough to stay in the cache, and to touch little of the upper
# triangle.
_BLOCK_ROWS = 32
# The jitter is tried at once, then ten times larger, at most this often.
_JITTER_TRIES = 8


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
    x, z = _in_widths(X, width), _in_widths(Z, width)
    K = np.asarray(blas.dgemm(1.0, z.T, x.T, trans_a=1)).T
    _exponentiate(K, _half_squares(x), _half_squares(z))
    return K


def gaussian_gram_lower(X: NDArray[np.floating[Any]], width: float) -> Float64:
    """Compute the lower triangle of ``gaussian_kernel(X, X, width)``; zeros above the diagonal.

    Memory is one (n, n) float64 matrix, of which the upper half is never touched.
    """
    x = _in_widths(X, width)
    half = _half_squares(x)
    K = np.zeros((len(x), len(x)))
    blas.dsyrk(1.0, x.T, trans=1, c=K.T, overwrite_c=1)
    for start in range(0, len(x), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(x))
        block = K[start:stop, :stop]
        _exponentiate(block, half[start:stop], half[:stop])
        block[:, start:] = np.tril(block[:, start:])
    # Rounding leaves the distance of a row to itself near 0; it is 0.
    np.fill_diagonal(K, 1.0)
    return K


def _in_widths(X: NDArray[np.floating[Any]], width: float) -> Float64:
    scaled = np.array(X, dtype=np.float64, order="C")
    scaled /= width
    return scaled


def _half_squares(x: Float64) -> Float64:
    half: Float64 = 0.5 * np.einsum("ij,ij->i", x, x)
    return half


def _exponentiate(products: Float64, half_x: Float64, half_z: Float64) -> None:
    """Turn inner products, in place, into Gaussians."""
    products -= half_x[:, None]
    products -= half_z
    # Rounding can make a squared distance slightly negative.
    np.minimum(products, 0.0, out=products)
    np.exp(products, out=products)


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
    jitter = 0.0
    for attempt in range(_JITTER_TRIES + 1):
        A = build()
        diagonal = np.einsum("ii->i", A)
        if attempt:
            jitter = 10.0 ** (attempt - 1) * len(A) * np.finfo(np.float64).eps * diagonal.max()
            diagonal += jitter
        factor, failed = lapack.dpotrf(A.T, lower=0, overwrite_a=1, clean=0)
        if not failed:
            break
    else:
        raise ToptuneError(f"{what} is singular even with a jitter of {jitter:.1e}; raise penalty")
    if jitter:
        warnings.warn(
            f"{what} is singular in float64; {jitter:.1e} was added to its diagonal "
            "(raise penalty, or lower n_centres or width, to avoid it)",
            LinAlgWarning,
            stacklevel=2,
        )
    return Cholesky(np.asarray(factor).T, float(jitter))

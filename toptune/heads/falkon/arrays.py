"""The operations that kernels, models and folds are written over, once for NumPy and torch.

`Arrays` computes on the CPU, in NumPy and SciPy's BLAS and LAPACK; `falkon.torch_arrays` has the
same operations on a GPU.

Everything is float64: with a ridge of 1e-6 x rows, the rounding of a float32 kernel (1e-7 of each
value) would reach the third digit of a score, and a float32 product of rows is no faster where BLAS
computes ``X X'`` as the symmetric product it is (0.40 s against 0.48 s for 5024 x 1280 on two
cores). Of symmetric matrices only the lower triangle is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning, blas, lapack

from toptune.errors import ToptuneError
from toptune.heads.rows import Float64, Ints, cut
from toptune.machine.device import available_memory
from toptune.machine.threads import in_threads, thread_pool

#: An array of the library that computes: NumPy's, or a tensor on its device.
Array: TypeAlias = Any
#: Rows or centres that each model of a batch is about: `Stretches`, or their like in torch.
Subset: TypeAlias = Any

# The jitter is tried at once, then ten times larger, at most this often.
JITTER_TRIES = 8

# Rows exponentiated at a time: few enough to stay in the cache, and to touch little of the upper
# triangle.
_CACHED_ROWS = 32
# Rows of a further view's kernel at a time: enough for BLAS, few beside a matrix of n x n.
_PANEL_ROWS = 512
# Models whose matrices take so much are solved before their scores are brought to their places.
_BATCH_BYTES = 2**26
# A kernel of rows and centres is kept where it fits this share of the free memory, and evaluated
# again, block by block, where it does not.
_KEPT_SHARE = 0.25


class Arrays:
    """NumPy, with SciPy's BLAS and LAPACK.

    NumPy and SciPy each bring a BLAS with threads of its own. The threads of one keep spinning for
    some milliseconds after its last call and slow down the other: products by NumPy between
    factorisations by SciPy made the folds four times slower on two cores. So all is SciPy's. BLAS
    reads columns first: of a C-order matrix it sees the transpose, without a copy.
    """

    xp: Any = np  # ``numpy`` or ``torch``, for what both name alike
    device: Any = "cpu"
    # Rows of a kernel at a time: few beside a matrix, and enough for a fast product.
    block_rows = 1024
    item_bytes = 8
    one_by_one = True  # whether a batch has one model

    # --- to and from the device

    def asarray(self, values: NDArray[Any]) -> Array:
        """Bring values to the device, in the precision of the algebra and in C order."""
        return np.ascontiguousarray(values, np.float64)

    def scaled(self, X: NDArray[Any], width: float) -> Array:
        """Bring rows to the device, in units of a width; a new array."""
        rows = np.array(X, dtype=np.float64, order="C")
        rows /= width
        return rows

    def as_is(self, values: NDArray[Any]) -> Array:
        """Bring values to the device in their own type: indices, for example."""
        return values

    def to_host(self, values: Array) -> Float64:
        """Bring values into main memory as float64, in C order."""
        return np.ascontiguousarray(values, np.float64)

    def empty(self, *shape: int) -> Array:
        """Make an array that is to be filled."""
        return np.empty(shape)

    def free_bytes(self) -> int:
        """Bytes that the device can still give."""
        return available_memory()

    def kept_bytes(self) -> int:
        """Size up to which a kernel is kept, right now."""
        return int(_KEPT_SHARE * self.free_bytes())

    def says_when_full(self) -> AbstractContextManager[None]:
        """Turn a GPU's lack of memory into one line with the ways out."""
        return nullcontext()

    def each(self, work: Callable[..., Array], items: Iterable[Any]) -> list[Array]:
        """Do `work` on every item; on the CPU in threads."""
        with thread_pool() as pool:
            return in_threads(pool, work, items)

    # --- products

    def product(self, A: Array, B: Array) -> Array:
        """Compute ``A @ B``."""
        return np.asarray(blas.dgemm(1.0, B.T, A.T)).T

    def transposed_product(self, A: Array, B: Array) -> Array:
        """Compute ``A.T @ B``."""
        return np.asarray(blas.dgemm(1.0, B.T, A.T, trans_b=1)).T

    def add_gram(self, A: Array, Z: Array, factor: float = 1.0) -> None:
        """Add ``factor x Z.T @ Z`` to the lower triangle of A, in place."""
        blas.dsyrk(factor, Z.T, beta=1.0, c=A.T, overwrite_c=1)

    def add_scaled(self, A: Array, B: Array, factor: float) -> None:
        """Add ``factor x B`` to A, in place; by rows, so that no further matrix is made."""
        for row in range(len(A)):
            A[row] += factor * B[row]

    # --- Gaussians of rows in units of their width

    def half_squares(self, x: Array) -> Array:
        """Half the squared length of each row."""
        return 0.5 * np.einsum("ij,ij->i", x, x)

    def gaussian(self, x: Array, z: Array, half_z: Array, weight: float) -> Array:
        """``weight exp(-|x - z|^2 / 2)`` of rows x with rows z, given half the squares of z."""
        K = np.asarray(blas.dgemm(1.0, z.T, x.T, trans_a=1)).T
        half_x = self.half_squares(x)
        for part in cut(len(x), _CACHED_ROWS):
            _exponentiate(K[part], half_x[part], half_z, weight)
        return K

    def gaussian_gram(self, x: Array, weight: float) -> Array:
        """Give the same of rows with each other; above the diagonal zeros, hardly touched."""
        half = self.half_squares(x)
        K = np.zeros((len(x), len(x)))
        blas.dsyrk(1.0, x.T, trans=1, c=K.T, overwrite_c=1)
        for start in range(0, len(x), _CACHED_ROWS):
            stop = min(start + _CACHED_ROWS, len(x))
            block = K[start:stop, :stop]
            _exponentiate(block, half[start:stop], half[:stop], weight)
            block[:, start:] = np.tril(block[:, start:])
        # Rounding leaves the distance of a row to itself near 0; it is 0.
        np.fill_diagonal(K, weight)
        return K

    def add_gaussian_gram(self, K: Array, x: Array, weight: float) -> None:
        """Add the same to K; by panels, so that no second matrix of n x n is made."""
        half = self.half_squares(x)
        for start in range(0, len(x), _PANEL_ROWS):
            stop = min(start + _PANEL_ROWS, len(x))
            panel = np.asarray(blas.dgemm(1.0, x[:stop].T, x[start:stop].T, trans_a=1)).T
            _exponentiate(panel, half[start:stop], half[:stop], weight)
            square = panel[:, start:]
            np.fill_diagonal(square, weight)
            panel[:, start:] = np.tril(square)
            K[start:stop, :stop] += panel

    # --- factorisations

    def diagonal(self, A: Array) -> Array:
        """Give the diagonal as a view that can be written to."""
        return np.einsum("ii->i", A)

    def cholesky(self, build: Callable[[], Array], what: str) -> Any:
        """Factor a positive definite matrix, with a stated jitter where rounding spoils it.

        The jitter starts at ``n x machine epsilon x largest diagonal value``, the size of the
        rounding of the factorisation itself, and grows tenfold until the factorisation succeeds.
        It is returned and warned of, never silent; a `ToptuneError` where the largest fails too.
        The matrix, (n, n), that `build` gives is factored in place, and built anew where that
        fails; `what` names it in messages. Returns a `Cholesky`, or its like in torch.
        """
        jitter = 0.0
        for attempt in range(JITTER_TRIES + 1):
            A = build()
            diagonal = self.diagonal(A)
            # Not asked for before it is needed: on a GPU that waits for all that was launched.
            jitter = jitter_of(attempt, len(A), float(diagonal.max()) if attempt else 0.0)
            if jitter:
                diagonal += jitter
            factor = self._factor(A, jitter)
            if factor is not None:
                if jitter:
                    warn_of_jitter(what, jitter)
                return factor
            # Gone before the next is built.
            del A, diagonal
        raise singular(what, jitter)

    def _factor(self, A: Array, jitter: float) -> Any | None:
        """Factor in place; None where the matrix is not positive definite."""
        lower, failed = lapack.dpotrf(A.T, lower=0, overwrite_a=1, clean=0)
        return None if failed else Cholesky(np.asarray(lower).T, jitter)

    def inverse(self, factor: Any, groups_at_once: int) -> Any:
        """Invert a factored matrix in the factor's memory; gives ``times(Y)``, ``principal(rows)``.

        With one group at once, only blocks of one stretch of rows will be asked for.
        """
        inverse, _ = lapack.dtrtri(factor.lower.T, lower=0, overwrite_c=1)
        if groups_at_once == 1:
            return _InverseAsFactors(self, np.asarray(inverse).T)
        # Q = L^-T L^-1; what LAPACK sees is the upper factor U = L^-T, and Q = U U'.
        inverse, _ = lapack.dlauum(inverse, lower=0, overwrite_c=1)
        return _Inverse(np.asarray(inverse).T)

    # --- batches of models

    def rows(self, spans: Sequence[Sequence[slice]]) -> Subset:
        """Describe the rows that each model of a batch leaves out, in ascending stretches."""
        (only,) = spans
        return Stretches(tuple(only), only[-1].stop, self.block_rows)

    def all_but(self, n: int, spans: Sequence[Sequence[slice]]) -> Subset:
        """Describe which of n centres each model keeps, given those it leaves out."""
        (only,) = spans
        edges = [0, *(edge for span in only for edge in (span.start, span.stop)), n]
        kept = tuple(slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True))
        return Stretches(kept, n, self.block_rows)

    def factor_each(
        self,
        subset: Subset,  # noqa: ARG002  # of use where models are padded
        build: Callable[[], Array],
        names: Sequence[str],
    ) -> Any:
        """Factor matrices of a batch, of a subset of rows, each with a jitter; see `cholesky`."""
        (name,) = names
        return self.cholesky(build, name)

    def batches(self, n: int, size: int, n_bytes: int) -> Iterator[slice]:  # noqa: ARG002  # see torch
        """Cut n models into batches that fit the memory, given the largest matrix's rows and bytes.

        The bytes include all that is made beside it.
        """
        return cut(n, _BATCH_BYTES // n_bytes)


NUMPY = Arrays()


def jitter_of(attempt: int, size: int, largest_diagonal: float) -> float:
    """Give the jitter of an attempt, counted from 0; see `Arrays.cholesky`."""
    if attempt == 0:
        return 0.0
    rounding = float(np.finfo(np.float64).eps)
    return float(10.0 ** (attempt - 1)) * size * rounding * largest_diagonal


def warn_of_jitter(what: str, jitter: float) -> None:
    """Say that a matrix was changed; to whoever called what called this."""
    warnings.warn(
        f"{what} is singular in float64; {jitter:.1e} was added to its diagonal "
        "(raise `penalty`, or lower `n_centres` or `width`, to avoid it)",
        LinAlgWarning,
        stacklevel=3,
    )


def singular(what: str, jitter: float) -> ToptuneError:
    """Make the error of a matrix that no jitter helps."""
    return ToptuneError(f"{what} is singular even with a jitter of {jitter:.1e}; raise `penalty`")


class Cholesky(NamedTuple):
    """A matrix factored by LAPACK."""

    # (n, n) float64, C order: L of ``L L' = A + jitter I``; what lies above the diagonal is not to
    # be read
    lower: Float64
    jitter: float  # what had to be added to the diagonal; 0 where A itself could be factored

    def solve(self, right: Float64) -> Float64:
        """Solve ``(A + jitter I) x = right`` for (n, c)."""
        # LAPACK reads columns first: C-order L is Fortran-order L', an upper factor.
        x, _ = lapack.dpotrs(self.lower.T, right, lower=0)
        return np.ascontiguousarray(x)


@dataclass(frozen=True)
class Stretches:
    """Rows or centres of a batch of one model, in stretches: faster to copy than by index."""

    spans: tuple[slice, ...]  # ascending
    n: int  # length of the axis, as far as it is known
    block_rows: int

    @property
    def places(self) -> Ints:
        """Where they lie on the axis."""
        return np.concatenate([np.arange(span.start, span.stop) for span in self.spans])

    def take(self, values: NDArray[Any]) -> NDArray[Any]:
        """Take rows of (n, c) values; a view of a single stretch."""
        if len(self.spans) == 1:
            return values[self.spans[0]]
        return np.concatenate([values[span] for span in self.spans])

    def shaped(self, values: Float64) -> Float64:
        """Arrange the values of `places`, (p, c), as `take` does."""
        return values

    def columns(self, values: Float64) -> Float64:
        """Take columns of (r, n) values."""
        return np.concatenate([values[:, span] for span in self.spans], axis=1)

    def principal(self, A: Float64) -> Float64:
        """Take rows and columns of a symmetric (n, n) matrix, as a new matrix."""
        ends = self._ends()
        taken = np.empty((ends[-1], ends[-1]))
        for i, a in enumerate(self.spans):
            # Blocks above the diagonal are left empty.
            for j, b in enumerate(self.spans[: i + 1]):
                taken[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = A[a, b]
        return taken

    def restored(self, values: Float64) -> Float64:
        """Undo `take`: rows that were not taken are 0."""
        whole = np.zeros((self.n, values.shape[1]))
        for span, (start, stop) in zip(self.spans, pairwise(self._ends()), strict=True):
            whole[span] = values[start:stop]
        return whole

    def flat(self, values: Float64) -> Float64:
        """Put what was taken for all models below each other, without padding."""
        return values

    def pieces(self) -> Iterator[Stretches]:
        """Cut into rows whose kernel is evaluated at once."""
        for span in self.spans:
            for start in range(span.start, span.stop, self.block_rows):
                stop = min(start + self.block_rows, span.stop)
                yield Stretches((slice(start, stop),), self.n, self.block_rows)

    def _ends(self) -> list[int]:
        return [0, *accumulate(span.stop - span.start for span in self.spans)]


class _Inverse(NamedTuple):
    """The lower triangle of Q, (n, n) in C order."""

    lower: Float64

    def times(self, Y: Float64) -> Float64:
        # dsymm reads one triangle alone: C-order lower is Fortran-order upper.
        return np.ascontiguousarray(blas.dsymm(1.0, self.lower.T, Y, lower=0))

    def principal(self, rows: Stretches) -> Float64:
        return rows.principal(self.lower)


class _InverseAsFactors(NamedTuple):
    """``Q = L^-T L^-1``, kept as ``L^-1``: only blocks of one stretch of rows are formed.

    That saves a third of the n^3 operations that all of Q takes: 32 folds of 5,024 rows take 1.17 s
    instead of 1.52 s on two cores.
    """

    arrays: Arrays
    lower: Float64

    def times(self, Y: Float64) -> Array:
        return self.arrays.transposed_product(self.lower, self.arrays.product(self.lower, Y))

    def principal(self, rows: Stretches) -> Float64:
        (span,) = rows.spans
        # Above them the columns of a lower triangle are zero.
        columns = np.ascontiguousarray(self.lower[span.start :, span])
        block = np.zeros((columns.shape[1], columns.shape[1]))
        self.arrays.add_gram(block, columns)
        return block


def _exponentiate(products: Float64, half_x: Float64, half_z: Float64, weight: float) -> None:
    """Turn inner products, in place, into Gaussians times their weight."""
    products -= half_x[:, None]
    products -= half_z
    # Rounding can make a squared distance slightly negative.
    np.minimum(products, 0.0, out=products)
    np.exp(products, out=products)
    if weight != 1:
        products *= weight

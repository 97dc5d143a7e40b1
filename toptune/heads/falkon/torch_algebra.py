"""Factorisations in float64 on a torch device, one large matrix or many small ones at once.

What enters: symmetric positive definite matrices, both triangles. What leaves: their Cholesky
factors, and what had to be added to a diagonal, by the rule of `falkon.kernel.cholesky`.

On a GPU what costs is asking: a launch takes some ten microseconds, and looking at a value waits
for all that was launched. So small matrices are padded to one size and factored together, and
whether all went well is looked at once a batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toptune.errors import ToptuneError
from toptune.heads.falkon.kernel import JITTER_TRIES, Float64, jitter_of, warn_of_jitter
from toptune.heads.falkon.torch_kernel import free_bytes

# Matrices up to this size are factored together; a larger one keeps a GPU busy by itself, and
# cuSOLVER's batched factorisation is made for small ones.
BATCHED_UP_TO = 1024
# Share of the free memory that the matrices of one batch may take, and the most they take.
_BATCH_SHARE = 0.125
_BATCH_BYTES = 2**31

# cuBLAS and cuSOLVER ask for memory of their own, and say so in their own way.
_NO_ROOM = re.compile(r"STATUS_ALLOC_FAILED|out of memory")


class Factor(NamedTuple):
    """A factored matrix.

    Attributes
    ----------
    lower : (n, n) float64
    jitter : float
    """

    lower: Tensor
    jitter: float


class Factors(NamedTuple):
    """Matrices factored together.

    Attributes
    ----------
    lower : (b, s, s) float64
        Their rows and columns that are absent are those of the identity.
    jitter : (b,) float64
    """

    lower: Tensor
    jitter: Float64

    def solve(self, right: Tensor) -> Tensor:
        """Solve for right-hand sides (b, s, c); rows that are absent must be 0, and stay it."""
        halfway = torch.linalg.solve_triangular(self.lower, right, upper=False)
        solved: Tensor = torch.linalg.solve_triangular(self.lower.mT, halfway, upper=True)
        return solved


def to_device(values: NDArray[np.floating], device: torch.device) -> Tensor:
    """Bring values to a device as float64."""
    return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float64, device=device)


def to_host(values: Tensor) -> Float64:
    """Bring float64 values into main memory, in C order."""
    return np.ascontiguousarray(values.cpu().numpy(), np.float64)


def factor(build: Callable[[], Tensor], what: str) -> Factor:
    """Factor one matrix, with a stated jitter where rounding makes it indefinite.

    Parameters
    ----------
    build : callable
        Returns the matrix, (n, n) float64; called again where it has to be jittered.
    what : str
        Names the matrix in the warning and the error.

    Raises
    ------
    ToptuneError
        Where even the largest jitter does not help.
    """
    jitter = 0.0
    for attempt in range(JITTER_TRIES + 1):
        A = build()
        diagonal = A.diagonal()
        jitter = jitter_of(attempt, len(A), float(diagonal.max()) if attempt else 0.0)
        diagonal.add_(jitter)
        lower, failed = torch.linalg.cholesky_ex(A)
        del A, diagonal
        if not failed.item():
            if jitter:
                warn_of_jitter(what, jitter)
            return Factor(lower, jitter)
    raise _singular(what, jitter)


def factor_together(A: Tensor, absent: Tensor, names: Sequence[str]) -> Factors:
    """Factor many matrices of different sizes, padded to one, each with a jitter of its own.

    Parameters
    ----------
    A : (b, s, s) float64
        0 in rows and columns that are absent. Overwritten.
    absent : (b, s) bool
        Rows that a matrix does not have.
    names : sequence of str
        What each is called in a warning or an error.

    Raises
    ------
    ToptuneError
        Where even the largest jitter does not help one of them.
    """
    diagonal = A.diagonal(dim1=1, dim2=2)
    largest = diagonal.amax(dim=1)
    diagonal.add_(absent)
    lower, failed = torch.linalg.cholesky_ex(A)
    jitter = np.zeros(len(A))
    # The one look at the device.
    for number in np.flatnonzero(failed.cpu().numpy()).tolist():
        found = _jittered(A[number], absent[number], float(largest[number]), names[number])
        lower[number], jitter[number] = found
    return Factors(lower, jitter)


def _jittered(A: Tensor, absent: Tensor, largest: float, what: str) -> Factor:
    present = ~absent
    size = int(present.sum())
    jitter = 0.0
    for attempt in range(1, JITTER_TRIES + 1):
        jitter = jitter_of(attempt, size, largest)
        lower, failed = torch.linalg.cholesky_ex(A + torch.diag(present * jitter))
        if not failed.item():
            warn_of_jitter(what, jitter)
            return Factor(lower, jitter)
    raise _singular(what, jitter)


def _singular(what: str, jitter: float) -> ToptuneError:
    return ToptuneError(f"{what} is singular even with a jitter of {jitter:.1e}; raise penalty")


def batches(n: int, size: int, device: torch.device, n_bytes: int) -> Iterator[slice]:
    """Cut n matrices into batches that fit the device's free memory.

    Parameters
    ----------
    n : int
    size : int
        Rows of the largest.
    device : torch.device
    n_bytes : int
        What one of them takes, all that is made beside it included.
    """
    room = min(_BATCH_BYTES, int(_BATCH_SHARE * free_bytes(device)))
    together = max(1, room // n_bytes) if size <= BATCHED_UP_TO else 1
    for start in range(0, n, together):
        yield slice(start, min(start + together, n))


@contextmanager
def says_when_full(device: torch.device) -> Iterator[None]:
    """Turn a device's lack of memory into one line with the ways out.

    Raises
    ------
    ToptuneError
        In place of what torch, cuBLAS or cuSOLVER raise.
    """
    try:
        yield
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError)
        if not full and (device.type != "cuda" or not _NO_ROOM.search(str(error))):
            raise
        raise ToptuneError(
            f"the matrices of the Falkon head do not fit into the memory of {device} "
            f"({free_bytes(device) / 2**30:.1f} GiB free): take fewer centres with n_centres "
            "(--n-centres), or compute on the processor (--device cpu)"
        ) from error

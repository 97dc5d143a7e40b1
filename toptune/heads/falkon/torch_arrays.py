"""The operations of `falkon.arrays` on a torch device.

On a GPU every launch takes some ten microseconds, and reading a value waits for everything that was
launched before. So the models of a batch are padded to one size, factored and solved together, and
it is read once for each batch whether all factorisations succeeded. Symmetric matrices have both
triangles. The same code runs on torch's own CPU device, which is how it is tested.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toptune.errors import ToptuneError
from toptune.heads.falkon.arrays import (
    JITTER_TRIES,
    Arrays,
    Subset,
    jitter_of,
    singular,
    warn_of_jitter,
)
from toptune.heads.rows import Float64, Ints, cut
from toptune.machine.device import free_bytes

# Matrices up to this size are factored together; a larger one keeps a GPU busy by itself, and
# cuSOLVER's batched factorisation is made for small ones.
BATCHED_UP_TO = 1024
# Share of the free memory that the matrices of one batch may take, and the most they take.
_BATCH_SHARE = 0.125
_BATCH_BYTES = 2**31

# cuBLAS and cuSOLVER ask for memory of their own, and say so in their own way.
_NO_ROOM = re.compile(r"STATUS_ALLOC_FAILED|out of memory")


class TorchCholesky(NamedTuple):
    """A factored matrix."""

    lower: Tensor  # (n, n)
    jitter: float

    def solve(self, right: Tensor) -> Tensor:
        """Solve for right-hand sides (n, c)."""
        return torch.cholesky_solve(right, self.lower)


class TorchFactors(NamedTuple):
    """Matrices factored together."""

    # (b, s, s): rows and columns that a matrix does not have are those of the identity
    lower: Tensor
    jitter: Float64  # (b,)

    def solve(self, right: Tensor) -> Tensor:
        """Solve for right-hand sides (b, s, c); rows that are absent must be 0, and stay it."""
        halfway = torch.linalg.solve_triangular(self.lower, right, upper=False)
        solved: Tensor = torch.linalg.solve_triangular(self.lower.mT, halfway, upper=True)
        return solved


class TorchArrays(Arrays):
    """Tensors on one device, all of one type: float32 for iterating only.

    Products may be of batches of matrices too.
    """

    xp = torch
    block_rows = 4096
    one_by_one = False

    def __init__(self, device: str | torch.device, dtype: torch.dtype = torch.float64) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.item_bytes = dtype.itemsize

    # --- to and from the device

    def asarray(self, values: NDArray[Any]) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=self.dtype, device=self.device)

    def scaled(self, X: NDArray[Any], width: float) -> Tensor:
        return self.asarray(X) / width

    def as_is(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def to_host(self, values: Tensor) -> Float64:
        return np.ascontiguousarray(values.cpu().numpy(), np.float64)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def free_bytes(self) -> int:
        return free_bytes(self.device)

    @contextmanager
    def says_when_full(self) -> Iterator[None]:
        """See `Arrays`.

        Raises `ToptuneError`: in place of what torch, cuBLAS or cuSOLVER raise.
        """
        try:
            yield
        except RuntimeError as error:
            full = isinstance(error, torch.OutOfMemoryError)
            if not full and (self.device.type != "cuda" or not _NO_ROOM.search(str(error))):
                raise
            raise ToptuneError(
                f"the matrices of the Falkon classifier do not fit into the memory of {self.device}"
                f" ({self.free_bytes() / 2**30:.1f} GiB free): take fewer centres with `n_centres`,"
                ' or compute on the CPU with `device="cpu"`'
            ) from error

    def each(self, work: Callable[..., Tensor], items: Iterable[Any]) -> list[Tensor]:
        # One after the other, since the device works in parallel by itself.
        return [work(item) for item in items]

    def product(self, A: Tensor, B: Tensor) -> Tensor:
        return A @ B

    def transposed_product(self, A: Tensor, B: Tensor) -> Tensor:
        return A.mT @ B

    def add_gram(self, A: Tensor, Z: Tensor, factor: float = 1.0) -> None:
        if A.ndim == 2:
            A.addmm_(Z.mT, Z, alpha=factor)
        else:
            A.baddbmm_(Z.mT, Z, alpha=factor)

    def add_scaled(self, A: Tensor, B: Tensor, factor: float) -> None:
        A.add_(B, alpha=factor)

    def half_squares(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(dim=1)

    def gaussian(self, x: Tensor, z: Tensor, half_z: Tensor, weight: float) -> Tensor:
        block = x @ z.T
        block -= self.half_squares(x)[:, None]
        block -= half_z
        # Rounding can make a squared distance slightly negative.
        return block.clamp_(max=0).exp_().mul_(weight)

    def gaussian_gram(self, x: Tensor, weight: float) -> Tensor:
        # Both triangles. Rounding leaves the distance of a row to itself near 0; it is 0.
        return self.gaussian(x, x, self.half_squares(x), weight).fill_diagonal_(weight)

    def add_gaussian_gram(self, K: Tensor, x: Tensor, weight: float) -> None:
        K += self.gaussian_gram(x, weight)

    def diagonal(self, A: Tensor) -> Tensor:
        return A.diagonal()

    def _factor(self, A: Tensor, jitter: float) -> TorchCholesky | None:
        lower, failed = torch.linalg.cholesky_ex(A)
        return None if failed.item() else TorchCholesky(lower, jitter)

    def inverse(self, factor: Any, groups_at_once: int) -> Any:  # noqa: ARG002  # all is formed, whatever is asked for
        return _Inverse(torch.cholesky_inverse(factor.lower))

    def rows(self, spans: Sequence[Sequence[slice]]) -> Subset:
        # Padded to the longest.
        listed = [np.concatenate([np.arange(s.start, s.stop) for s in only]) for only in spans]
        lengths = np.array([len(rows) for rows in listed])
        absent = np.arange(lengths.max()) >= lengths[:, None]
        places = np.zeros(absent.shape, np.int64)
        places[~absent] = np.concatenate(listed)
        return _Gathered(self, places, absent)

    def all_but(self, n: int, spans: Sequence[Sequence[slice]]) -> Subset:
        # What is left out becomes a row and a column of the identity: that has the same solution,
        # with 0 for what is left out, and needs no gathering.
        absent = np.zeros((len(spans), n), np.bool_)
        for line, only in zip(absent, spans, strict=True):
            for span in only:
                line[span] = True
        return _Masked(self, absent)

    def factor_each(
        self, subset: Subset, build: Callable[[], Tensor], names: Sequence[str]
    ) -> TorchFactors:
        # The device is waited for once.
        A, absent = build(), subset.absent
        diagonal = A.diagonal(dim1=1, dim2=2)
        largest = diagonal.amax(dim=1)
        diagonal.add_(absent)
        lower, failed = torch.linalg.cholesky_ex(A)
        jitter = np.zeros(len(A))
        for number in np.flatnonzero(failed.cpu().numpy()).tolist():
            found = _jittered(A[number], absent[number], float(largest[number]), names[number])
            lower[number], jitter[number] = found
        return TorchFactors(lower, jitter)

    def batches(self, n: int, size: int, n_bytes: int) -> Iterator[slice]:
        room = min(_BATCH_BYTES, int(_BATCH_SHARE * self.free_bytes()))
        return cut(n, room // n_bytes if size <= BATCHED_UP_TO else 1)


def _jittered(A: Tensor, absent: Tensor, largest: float, what: str) -> TorchCholesky:
    """Factor one matrix of a batch again, with what its own size and diagonal ask for."""
    present = ~absent
    size = int(present.sum())
    jitter = 0.0
    for attempt in range(1, JITTER_TRIES + 1):
        jitter = jitter_of(attempt, size, largest)
        lower, failed = torch.linalg.cholesky_ex(A + torch.diag(present * jitter))
        if not failed.item():
            warn_of_jitter(what, jitter)
            return TorchCholesky(lower, jitter)
    raise singular(what, jitter)


class _Inverse(NamedTuple):
    """Q, (n, n)."""

    Q: Tensor

    def times(self, Y: Tensor) -> Tensor:
        return self.Q @ Y

    def principal(self, rows: _Gathered) -> Tensor:
        return rows.principal(self.Q)


@dataclass(frozen=True)
class _Gathered:
    """Rows of a batch of models, padded to the longest, as their `Subset`."""

    arrays: TorchArrays
    padded_places: Ints  # (b, s): 0 where a model has no more rows
    is_absent: NDArray[np.bool_]  # (b, s): where a model has no more rows

    @property
    def places(self) -> Ints:
        return self.padded_places.ravel()

    @cached_property
    def absent(self) -> Tensor:
        return self.arrays.as_is(self.is_absent)

    @cached_property
    def _index(self) -> Tensor:
        return self.arrays.as_is(self.padded_places)

    def take(self, values: Tensor) -> Tensor:
        return values[self._index].masked_fill_(self.absent[:, :, None], 0)

    def shaped(self, values: Tensor) -> Tensor:
        rows = values.view(*self.padded_places.shape, -1)
        return rows.masked_fill_(self.absent[:, :, None], 0)

    def principal(self, A: Tensor) -> Tensor:
        taken = A[self._index[:, :, None], self._index[:, None, :]]
        return taken.masked_fill_(self.absent[:, :, None] | self.absent[:, None, :], 0)

    def flat(self, values: Tensor) -> Tensor:
        rows = values.reshape(-1, values.shape[2])
        present = np.flatnonzero(~self.is_absent)
        # By index: by mask, the device would have to be waited for.
        return rows if len(present) == len(rows) else rows[self.arrays.as_is(present)]

    def pieces(self) -> Iterator[_Gathered]:
        yield self


@dataclass(frozen=True)
class _Masked:
    """Centres that each model keeps, as a `Subset`: what belongs to the others is 0."""

    arrays: TorchArrays
    is_absent: NDArray[np.bool_]  # (b, n): the others

    @cached_property
    def absent(self) -> Tensor:
        return self.arrays.as_is(self.is_absent)

    def take(self, values: Tensor) -> Tensor:
        return values.masked_fill(self.absent[:, :, None], 0)

    def columns(self, values: Tensor) -> Tensor:
        return values.masked_fill(self.absent[:, None, :], 0)

    def principal(self, A: Tensor) -> Tensor:
        # The mask makes the only copy: what is expanded takes no memory.
        expanded = A.expand(len(self.is_absent), -1, -1)
        return expanded.masked_fill(self.absent[:, :, None] | self.absent[:, None, :], 0)

    def restored(self, values: Tensor) -> Tensor:
        return values

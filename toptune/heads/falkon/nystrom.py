"""The kernel of many rows with Nystrom centres, in blocks that bound its memory.

What enters: rows of features, which of them are centres, and a kernel. What leaves: float64 blocks
of Z = K(X, C), and the products ``Z'Z`` and ``Z'Y`` made of them. Z itself, n x m, is kept where it
fits the number of bytes given, and evaluated again where it does not: the same values either way,
for 2 n m d operations a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.heads.falkon.kernel import (
    Centres,
    Float64,
    KernelSum,
    add_gram_lower,
    transposed_product,
)

# Rows of the kernel at a time: with 4,000 centres 32 MB, and still large enough for BLAS.
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class NystromKernel:
    """Rows of ``Z = K(X, C)``.

    Attributes
    ----------
    X : (N, d) float32 or float64
        Never copied as a whole.
    order : (n,) int64
        Rows of X, in the order of Z's.
    centres : Centres
    kept : (n, m) float64 or None
        Z, where it is kept.
    """

    X: NDArray[np.floating[Any]]
    order: NDArray[np.int64]
    centres: Centres
    kept: Float64 | None

    @classmethod
    def of(
        cls,
        X: NDArray[np.floating[Any]],
        order: NDArray[np.int64],
        centre_rows: NDArray[np.int64],
        kernel: KernelSum,
        *,
        keep_bytes: int,
    ) -> NystromKernel:
        """Evaluate Z and keep it, if that takes at most `keep_bytes`.

        Parameters
        ----------
        X : (N, d) float32 or float64
        order : (n,) int64
            Rows of X, in the order of Z's.
        centre_rows : (m,) int64
            Rows of X, in the order of Z's columns.
        kernel : KernelSum
        keep_bytes : int
        """
        return cls(X, order, Centres(kernel, X[centre_rows]), None).keep(keep_bytes)

    def keep(self, keep_bytes: int) -> NystromKernel:
        """Give the same kernel, kept if that takes at most so many bytes."""
        size = (len(self.order), self.centres.n)
        if self.kept is not None or 8 * size[0] * size[1] > keep_bytes:
            return self
        kept = np.empty(size)
        for part, block in self.blocks():
            kept[part] = block
        return replace(self, kept=kept)

    def part(self, start: int, stop: int) -> NystromKernel:
        """Rows start to stop of Z, kept if Z is."""
        kept = None if self.kept is None else self.kept[start:stop]
        return replace(self, order=self.order[start:stop], kept=kept)

    def blocks(self) -> Iterator[tuple[slice, Float64]]:
        """Go through Z: where each block belongs, and the block."""
        for start in range(0, len(self.order), BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, len(self.order)))
            if self.kept is not None:
                yield part, self.kept[part]
            else:
                yield part, self.centres.kernel_of(self.X[self.order[part]])

    def add_gram_lower(self, A: Float64) -> None:
        """Add ``Z'Z`` to the lower triangle of A, (m, m) float64 in C order, in place."""
        for _, block in self.blocks():
            add_gram_lower(A, block)

    def moments(self, Y: Float64) -> Float64:
        """Compute ``Z'Y``, (m, k) float64, for Y of shape (n, k)."""
        total = np.zeros((self.centres.n, Y.shape[1]))
        for part, block in self.blocks():
            total += transposed_product(block, Y[part])
        return total

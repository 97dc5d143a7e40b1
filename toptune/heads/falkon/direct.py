"""One Falkon model by a direct solve: its equations factored by Cholesky in float64.

What enters: rows of features, which of them are centres, targets (n, k), a kernel and a ridge. What
leaves: coefficients of the centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.heads.falkon.kernel import (
    Float64,
    KernelSum,
    add_gram_lower,
    cholesky,
    transposed_product,
)
from toptune.heads.falkon.nystrom import NystromKernel


@dataclass(frozen=True)
class Problem:
    """What there is to solve but for the targets.

    Attributes
    ----------
    X : (n, d) float32 or float64
    centre_rows : (m,) int64 or None
        Which rows are centres, each at most once; None: all.
    kernel : KernelSum
    ridge : float
    """

    X: NDArray[np.floating[Any]]
    centre_rows: NDArray[np.int64] | None
    kernel: KernelSum
    ridge: float

    @property
    def named_centres(self) -> NDArray[np.int64]:
        """Which rows are centres, even where all are."""
        return np.arange(len(self.X)) if self.centre_rows is None else self.centre_rows


class Solution(NamedTuple):
    """What a solver gives.

    Attributes
    ----------
    dual_coef : (m, k) float64
        Of each centre and each column of the targets.
    jitter : float
        What was added to the diagonal of the equations; 0 as a rule.
    n_iterations : int
        0 of a direct solve.
    """

    dual_coef: Float64
    jitter: float
    n_iterations: int


def solve_all_rows(
    X: NDArray[np.floating[Any]], Y: Float64, *, kernel: KernelSum, ridge: float
) -> Solution:
    """Solve ``(K + ridge I) alpha = Y`` with every row as a centre; n x n float64 of memory.

    Parameters
    ----------
    X : (n, d) float32 or float64
    Y : (n, k) float64
    kernel : KernelSum
    ridge : float
    """

    def regularised() -> Float64:
        K = kernel.gram_lower(X)
        np.einsum("ii->i", K)[:] += ridge
        return K

    system = cholesky(regularised, "the kernel matrix")
    return Solution(system.solve(Y), system.jitter, 0)


def solve_nystrom(
    X: NDArray[np.floating[Any]],
    centre_rows: NDArray[np.int64],
    Y: Float64,
    *,
    kernel: KernelSum,
    ridge: float,
) -> Solution:
    """Solve ``(Z'Z + ridge B) alpha = Z'Y``; a few m x m float64 of memory, whatever n.

    Parameters
    ----------
    X : (n, d) float32 or float64
    centre_rows : (m,) int64
        Which rows are centres.
    Y : (n, k) float64
    kernel : KernelSum
    ridge : float
    """
    Z = NystromKernel.of(X, np.arange(len(X)), centre_rows, kernel, keep_bytes=0)
    normal = kernel.gram_lower(X[centre_rows])
    normal *= ridge
    moments = np.zeros((len(centre_rows), Y.shape[1]))
    for part, block in Z.blocks():
        add_gram_lower(normal, block)
        moments += transposed_product(block, Y[part])
    system = cholesky(normal.copy, "the normal equation")
    return Solution(system.solve(moments), system.jitter, 0)

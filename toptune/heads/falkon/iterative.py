"""The iterative Falkon: preconditioned conjugate gradients on Nystrom centres, in torch.

What enters: rows of features, which of them are centres, targets (n, k), a kernel and a ridge. What
leaves: coefficients of the centres, or held-out scores of every row.

The method is that of Rudi, Carratino & Rosasco (2017), FALKON: An Optimal Large Scale Kernel
Method (NeurIPS 30, section 3), as Meanti et al. (2020), Kernel Methods Through the Roof (NeurIPS
33), arrange it. With n rows, m centres, ``Z = K(X, C)``, ``B = K(C, C)`` and
``penalty = ridge / n``, the equations ``(Z'Z + ridge B) alpha = Z'Y`` are solved in beta::

    T = chol(B + eps m I),   A = chol(T T'/m + penalty I),   P = T^-1 A^-1,   alpha = P beta
    P' (Z'Z / n + penalty B) P beta = P' Z'Y / n

``T T'/m`` stands for what ``T^-T Z'Z T^-1 / n`` would be if the centres were all rows, so the
equations in beta are well conditioned, and some tens of products with Z do instead of a
factorisation of ``Z'Z``: n m k operations each instead of n m^2. With ``P' B P`` computed as
``A^-T A^-1``, what is solved has ``B + eps m I`` for B; eps is ten times the rounding of the
type, so the solution is the direct solver's, to the tolerance. Where rounding keeps the
residual above the tolerance, as with centres that nearly coincide, eps is raised hundredfold,
which is returned as a jitter and warned of.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning

from toptune.errors import ToptuneError
from toptune.heads.falkon.closed_form import HeldOutScores, sort_centres
from toptune.heads.falkon.conjugate_gradients import conjugate_gradients
from toptune.heads.falkon.direct import Solution
from toptune.heads.falkon.kernel import Float64, KernelSum
from toptune.heads.falkon.torch_kernel import Iteration, TorchKernel
from toptune.heads.rows import Grouping

# eps, in units of the rounding of the type: the first as a rule, the others where it must be, as
# long as they stay small beside the kernel's own values.
_EPS_FACTORS = (1e1, 1e3, 1e5, 1e7)
_LARGEST_JITTER = 1e-2


class _Fold(NamedTuple):
    """What is learnt from: stretches of Z's rows, and all centres but a stretch."""

    spans: tuple[tuple[int, int], ...]
    left_out: tuple[int, int]
    name: str


class _Equations:
    """The preconditioned equations of some rows and all but one stretch of the centres.

    Parameters
    ----------
    Z : TorchKernel
    fold : _Fold
    ridge : float
    jitter : float
        eps m, what is added to the diagonal of B.

    Raises
    ------
    _SingularError
        Where eps is too small for B to be factored.
    """

    def __init__(self, Z: TorchKernel, fold: _Fold, ridge: float, jitter: float) -> None:
        self._Z, self._fold = Z, fold
        self._n = sum(stop - start for start, stop in fold.spans)
        self._penalty = ridge / self._n
        B = self.without(self.without(Z.centre_kernel).T)
        m = len(B)
        B.diagonal().add_(jitter)
        self._L = _lower_factor(B)
        stand_in = self._L.T @ self._L / m
        stand_in.diagonal().add_(self._penalty)
        self._A = _lower_factor(stand_in)

    def without(self, values: torch.Tensor) -> torch.Tensor:
        """Drop the rows of the centres that are not used."""
        a, b = self._fold.left_out
        return torch.cat([values[:a], values[b:]])

    def padded(self, values: torch.Tensor) -> torch.Tensor:
        """Put zeros where `without` dropped rows."""
        a, b = self._fold.left_out
        return torch.cat([values[:a], values.new_zeros(b - a, values.shape[1]), values[a:]])

    def right_hand_side(self, Y: torch.Tensor) -> torch.Tensor:
        """``P' Z'Y / n`` of targets of all of Z's rows."""
        total = self._Z.centre_kernel.new_zeros(len(self._Z.centre_kernel), Y.shape[1])
        for part, block in self._blocks():
            total += (Y[part].T @ block).T
        return self._precondition_transposed(self.without(total) / self._n)

    def apply(self, beta: torch.Tensor) -> torch.Tensor:
        """``P' (Z'Z / n + penalty B) P beta``."""
        inner = _triangular(self._A.T, beta, upper=True)
        alpha = self.padded(_triangular(self._L.T, inner, upper=True))
        # Rows from the left: BLAS takes four times as long for Z' times a narrow matrix.
        left = alpha.T.contiguous()
        total = torch.zeros_like(left)
        for _, block in self._blocks():
            total += (left @ block.T) @ block
        outer = _triangular(self._L, self.without(total.T) / self._n, upper=False)
        outer += self._penalty * inner
        return _triangular(self._A, outer, upper=False)

    def precondition(self, beta: torch.Tensor) -> torch.Tensor:
        """``P beta``; A and T are the transposes of the lower factors."""
        inner = _triangular(self._A.T, beta, upper=True)
        return _triangular(self._L.T, inner, upper=True)

    def _precondition_transposed(self, values: torch.Tensor) -> torch.Tensor:
        inner = _triangular(self._L, values, upper=False)
        return _triangular(self._A, inner, upper=False)

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for span in self._fold.spans:
            yield from self._Z.blocks(*span)


class _SingularError(Exception):
    """A matrix has no Cholesky factor in its type."""


def _triangular(factor: torch.Tensor, values: torch.Tensor, *, upper: bool) -> torch.Tensor:
    solution: torch.Tensor = torch.linalg.solve_triangular(factor, values, upper=upper)
    return solution


def _lower_factor(matrix: torch.Tensor) -> torch.Tensor:
    lower: torch.Tensor
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed.item():
        raise _SingularError
    return lower


def solve_iteratively(
    X: NDArray[np.floating[Any]],
    centre_rows: NDArray[np.int64],
    Y: Float64,
    *,
    kernel: KernelSum,
    ridge: float,
    iteration: Iteration,
) -> Solution:
    """Solve ``(Z'Z + ridge B) alpha = Z'Y``.

    Parameters
    ----------
    X : (n, d) float32 or float64
    centre_rows : (m,) int64
        Which rows are centres.
    Y : (n, k) float64
    kernel : KernelSum
    ridge : float
    iteration : Iteration

    Raises
    ------
    ToptuneError
        The tolerance is not reached.
    """
    Z = TorchKernel(X, np.arange(len(X)), centre_rows, kernel, iteration)
    return _solve(Z, _Fold(((0, len(X)),), (0, 0), ""), Z.tensor(Y), ridge, iteration).solution()


class _Solved(NamedTuple):
    """Coefficients of all centres (zeros for those left out), on the device."""

    alpha: torch.Tensor
    jitter: float
    n_iterations: int

    def solution(self) -> Solution:
        alpha = self.alpha.cpu().numpy().astype(np.float64)
        return Solution(alpha, self.jitter, self.n_iterations)


def _solve(
    Z: TorchKernel, fold: _Fold, Y: torch.Tensor, ridge: float, iteration: Iteration
) -> _Solved:
    n_iterations, residual = 0, float("inf")
    rounding = torch.finfo(Y.dtype).eps
    for factor in _EPS_FACTORS:
        jitter = factor * rounding * len(Z.centre_kernel) * float(Z.centre_kernel.diagonal().max())
        if factor > _EPS_FACTORS[0] and jitter > _LARGEST_JITTER:
            break
        try:
            equations = _Equations(Z, fold, ridge, jitter)
        except _SingularError:
            continue
        done = conjugate_gradients(
            equations.apply,
            equations.right_hand_side(Y),
            tolerance=iteration.reached,
            max_iterations=iteration.max_iterations,
        )
        n_iterations, residual = n_iterations + done.n_iterations, done.residual
        if residual <= iteration.reached:
            if factor == _EPS_FACTORS[0]:
                jitter = 0.0
            else:
                _warn_of(jitter, fold)
            alpha = equations.padded(equations.precondition(done.x))
            return _Solved(alpha, jitter, n_iterations)
        if done.n_iterations >= iteration.max_iterations:
            break
    raise ToptuneError(
        f"the iterative solver{fold.name} stopped after {n_iterations} iterations at a relative "
        f"residual of {residual:.1e}, not {iteration.reached:.1e}: raise penalty, max_iterations "
        "or tolerance, lower n_centres, use float64, or the direct solver"
    )


def _warn_of(jitter: float, fold: _Fold) -> None:
    warnings.warn(
        f"the centres' kernel{fold.name} is singular to the iterative solver; {jitter:.1e} was "
        "added to its diagonal (raise penalty, or lower n_centres or width, to avoid it)",
        LinAlgWarning,
        stacklevel=4,
    )


@dataclass(frozen=True)
class IterativeFolds:
    """Folds of the iterative solver: one fit each, without the group's rows and centres.

    The ridge is the same in every fold, so the scores are those of
    `toptune.heads.falkon.closed_form.NystromFolds`.

    Attributes
    ----------
    grouping : Grouping
    kernel : TorchKernel
        Rows sorted by group, and centres too.
    centre_bounds : (g + 1,) int64
        Group i holds the centres ``centre_bounds[i]:centre_bounds[i + 1]``.
    ridge : float
    iteration : Iteration
    """

    grouping: Grouping
    kernel: TorchKernel
    centre_bounds: NDArray[np.int64]
    ridge: float
    iteration: Iteration

    @classmethod
    def factor(
        cls,
        X: NDArray[np.floating[Any]],
        grouping: Grouping,
        centre_rows: NDArray[np.int64],
        *,
        kernel: KernelSum,
        ridge: float,
        iteration: Iteration,
    ) -> IterativeFolds:
        """Evaluate the kernel, where it fits into memory.

        Parameters
        ----------
        X : (n, d) float32 or float64
        grouping : Grouping
            Of the n rows.
        centre_rows : (m,) int64
            Which rows are centres, each at most once.
        kernel : KernelSum
        ridge : float
        iteration : Iteration

        Raises
        ------
        InputError
            Where all centres lie in one group, whose fold would have none.
        """
        centres, bounds = sort_centres(grouping, centre_rows)
        Z = TorchKernel(X, grouping.order, centres, kernel, iteration)
        return cls(grouping, Z, bounds, ridge, iteration)

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        """See `toptune.heads.falkon.closed_form.Folds`."""
        targets = self.kernel.tensor(Y[self.grouping.order])
        scores = torch.empty_like(targets)
        jitter = np.zeros(len(self.grouping.groups))
        for i, group in enumerate(self.grouping.groups):
            start, stop = self.grouping.bounds[i : i + 2].tolist()
            a, b = self.centre_bounds[i : i + 2].tolist()
            fold = _Fold(((0, start), (stop, len(targets))), (a, b), f" without group {group!s}")
            solved = _solve(self.kernel, fold, targets, self.ridge, self.iteration)
            for part, block in self.kernel.blocks(start, stop):
                scores[part] = block @ solved.alpha
            jitter[i] = solved.jitter
        restored = self.grouping.restore(scores.cpu().numpy().astype(np.float64))
        return HeldOutScores(restored, jitter)

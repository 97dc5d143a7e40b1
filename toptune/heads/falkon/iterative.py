"""The solvers that iterate, one fit for each fold: our own in torch, and the falkon library's.

Both are preconditioned conjugate gradients on Nystrom centres. The method is that of Rudi,
Carratino & Rosasco (2017), FALKON: An Optimal Large Scale Kernel Method (NeurIPS 30, section 3), as
Meanti et al. (2020), Kernel Methods Through the Roof (NeurIPS 33), arrange it. With n rows, m
centres, ``Z = K(X, C)``, ``B = K(C, C)`` and ``penalty = ridge / n``, our own solves the equations
``(Z'Z + ridge B) alpha = Z'Y`` in beta::

    T = chol(B + eps m I),   A = chol(T T'/m + penalty I),   P = T^-1 A^-1,   alpha = P beta
    P' (Z'Z / n + penalty B) P beta = P' Z'Y / n

``T T'/m`` stands for what ``T^-T Z'Z T^-1 / n`` would be if the centres were all rows, so the
equations in beta are well conditioned, and some tens of products with Z replace the factorisation
of ``Z'Z``: n m k operations each instead of n m^2. With ``P' B P`` computed as ``A^-T A^-1``, what
is solved has ``B + eps m I`` for B; eps is ten times the rounding of the type, so the solution is
the direct solver's, to the tolerance. Where rounding keeps the residual above the tolerance, as
with centres that nearly coincide, eps is raised hundredfold, which is returned as a jitter and
warned of.

The library (Meanti et al. 2020, github.com/FalkonML/falkon) is not on PyPI; docs/falkon.md says how
to install it. Four of its habits are undone here: it takes a penalty per training row, it seeds
the global generators where it is given a seed, it prints to standard output, and below sizes of
its own it computes on the CPU though a GPU was asked for. It does not say whether it has converged.
"""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import LinAlgWarning
from torch import Tensor

from toptune.errors import InputError, ToptuneError
from toptune.heads.falkon.arrays import NUMPY
from toptune.heads.falkon.folds import HeldOutScores, sort_centres
from toptune.heads.falkon.kernel import KernelSum, NystromKernel
from toptune.heads.falkon.solvers import Problem, Solution
from toptune.heads.falkon.torch_arrays import TorchArrays
from toptune.heads.rows import Float64, Grouping, Ints

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
_TOLERANCES = {"float64": 1e-8, "float32": 1e-4}

# eps, in units of the rounding of the type: the first as a rule, the others where it must be, as
# long as they stay small beside the kernel's own values.
_EPS_FACTORS = (1e1, 1e3, 1e5, 1e7)
_LARGEST_JITTER = 1e-2

# A restart that leaves more than this share of the true residual is limited by rounding.
_RESTARTS_REDUCE_TO = 0.5


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """How the equations are iterated on."""

    device: str = "cpu"  # where torch computes, such as ``cpu`` or ``cuda``
    precision: str = "float64"  # ``float64``; or ``float32``, which is faster and halves the memory
    # Of the residual of the preconditioned equations, relative to their right-hand side, in every
    # column of the targets. None: 1e-8 in float64, 1e-4 in float32, whose rounding allows no less.
    tolerance: float | None = None
    max_iterations: int = 500  # of each attempt

    @property
    def reached(self) -> float:
        """The tolerance, as a number."""
        return _TOLERANCES[self.precision] if self.tolerance is None else self.tolerance


class _System(NamedTuple):
    """What all folds share: kernels of rows with centres and of centres, and the ridge."""

    Z: NystromKernel
    B: Tensor
    ridge: float


class _Fold(NamedTuple):
    """What a fold learns from: stretches of Z's rows, and all centres but one stretch."""

    spans: tuple[tuple[int, int], ...]
    left_out: tuple[int, int]
    name: str


class _Equations:
    """The preconditioned equations of some rows and all but one stretch of the centres.

    Raises `_SingularError` where the jitter, eps m, is too small for B to be factored.
    """

    def __init__(self, system: _System, fold: _Fold, jitter: float) -> None:
        self._Z, self._fold = system.Z, fold
        self._n = sum(stop - start for start, stop in fold.spans)
        self._penalty = system.ridge / self._n
        B = self.without(self.without(system.B).T)
        m = len(B)
        B.diagonal().add_(jitter)
        self._L = _lower_factor(B)
        stand_in = self._L.T @ self._L / m
        stand_in.diagonal().add_(self._penalty)
        self._A = _lower_factor(stand_in)

    def without(self, values: Tensor) -> Tensor:
        """Drop the rows of the centres that are not used."""
        a, b = self._fold.left_out
        return torch.cat([values[:a], values[b:]])

    def padded(self, values: Tensor) -> Tensor:
        """Put zeros where `without` dropped rows."""
        a, b = self._fold.left_out
        return torch.cat([values[:a], values.new_zeros(b - a, values.shape[1]), values[a:]])

    def right_hand_side(self, Y: Tensor) -> Tensor:
        """``P' Z'Y / n`` of targets of all of Z's rows."""
        total = Y.new_zeros(self._Z.n_centres, Y.shape[1])
        for part, block in self._blocks():
            total += (Y[part].T @ block).T
        inner = _triangular(self._L, self.without(total) / self._n, upper=False)
        return _triangular(self._A, inner, upper=False)

    def apply(self, beta: Tensor) -> Tensor:
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

    def precondition(self, beta: Tensor) -> Tensor:
        """``P beta``; A and T are the transposes of the lower factors."""
        inner = _triangular(self._A.T, beta, upper=True)
        return _triangular(self._L.T, inner, upper=True)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for span in self._fold.spans:
            yield from self._Z.blocks(*span)


class _SingularError(Exception):
    """A matrix has no Cholesky factor in its type."""


def _triangular(factor: Tensor, values: Tensor, *, upper: bool) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(factor, values, upper=upper)
    return solution


def _lower_factor(matrix: Tensor) -> Tensor:
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed.item():
        raise _SingularError
    return lower


class _Solved(NamedTuple):
    """Coefficients of all centres (zeros for those left out), on the device."""

    alpha: Tensor
    jitter: float
    n_iterations: int


def _solve(system: _System, fold: _Fold, Y: Tensor, iteration: Iteration) -> _Solved:
    n_iterations, residual = 0, float("inf")
    rounding = torch.finfo(Y.dtype).eps
    B = system.B
    for factor in _EPS_FACTORS:
        jitter = factor * rounding * len(B) * float(B.diagonal().max())
        if factor > _EPS_FACTORS[0] and jitter > _LARGEST_JITTER:
            break
        try:
            equations = _Equations(system, fold, jitter)
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
        f"residual of {residual:.1e}, not {iteration.reached:.1e}: raise `penalty`, "
        "`max_iterations` or `tolerance`, lower `n_centres`, or take "
        '`precision="float64"` or `solver="direct"`'
    )


def _warn_of(jitter: float, fold: _Fold) -> None:
    warnings.warn(
        f"the centres' kernel{fold.name} is singular to the iterative solver; {jitter:.1e} was "
        "added to its diagonal (raise `penalty`, or lower `n_centres` or `width`, to avoid it)",
        LinAlgWarning,
        stacklevel=4,
    )


class Iterative:
    """The solver of this module."""

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration
        self._arrays = TorchArrays(iteration.device, PRECISIONS[iteration.precision])

    def solve(self, problem: Problem, Y: Float64) -> Solution:
        n, arrays = len(problem.X), self._arrays
        system = self._system(problem, np.arange(n), problem.named_centres)
        everything = _Fold(((0, n),), (0, 0), "")
        solved = _solve(system, everything, arrays.asarray(Y), self._iteration)
        return Solution(arrays.to_host(solved.alpha), solved.jitter, solved.n_iterations)

    def folds(self, problem: Problem, grouping: Grouping) -> IterativeFolds:
        centres, bounds = sort_centres(grouping, problem.named_centres)
        system = self._system(problem, grouping.order, centres)
        return IterativeFolds(grouping, system, bounds, self._iteration)

    def _system(self, problem: Problem, order: Ints, centres: Ints) -> _System:
        Z = NystromKernel(problem.X, order, centres, problem.kernel, self._arrays)
        return _System(Z, Z.centre_gram(), problem.ridge)


@dataclass(frozen=True)
class IterativeFolds:
    """Folds of the iterative solver: one fit each, without the group's rows and centres.

    The ridge is the same in every fold, so the scores are those of `folds.Nystrom`.
    """

    grouping: Grouping
    system: _System  # rows sorted by group, and centres too
    # (g + 1,): group i holds the centres ``centre_bounds[i]:centre_bounds[i + 1]``
    centre_bounds: Ints
    iteration: Iteration

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        Z, arrays = self.system.Z, self.system.Z.arrays
        targets = arrays.asarray(Y[self.grouping.order])
        scores = torch.empty_like(targets)
        jitter = np.zeros(len(self.grouping.groups))
        for i, group in enumerate(self.grouping.groups):
            start, stop = self.grouping.bounds[i : i + 2].tolist()
            a, b = self.centre_bounds[i : i + 2].tolist()
            fold = _Fold(((0, start), (stop, len(targets))), (a, b), f" without group {group!s}")
            solved = _solve(self.system, fold, targets, self.iteration)
            for part, block in Z.blocks(start, stop):
                scores[part] = block @ solved.alpha
            jitter[i] = solved.jitter
        return HeldOutScores(self.grouping.restore(arrays.to_host(scores)), jitter)


class Iterated(NamedTuple):
    """What the iteration returns."""

    x: Tensor  # (m, k)
    n_iterations: int
    # The true one, relative, of the worst column; above the tolerance where iterations were too few
    # or rounding allows no less
    residual: float


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], b: Tensor, *, tolerance: float, max_iterations: int
) -> Iterated:
    """Solve ``apply(x) = b`` for every column of b, (m, k), at once, each with steps of its own.

    `apply` is symmetric and positive semidefinite, column by column; `tolerance` is relative to the
    length of each column of b. The residual that is updated in every step drifts from the true one
    by rounding. So once it is small enough in all columns, the true residual is computed. If that
    is too large, the iteration restarts from the current x, as long as a restart reduces it.
    """
    length = torch.linalg.vector_norm(b, dim=0)
    # A column of zeros is done at once.
    length = torch.where(length > 0, length, 1.0)
    x, r = torch.zeros_like(b), b.clone()
    n_iterations, residual = 0, float("inf")
    while True:
        p, square = r.clone(), r.square().sum(dim=0)
        # A column that is done stays as it is.
        active = square.sqrt() > tolerance * length
        while n_iterations < max_iterations and bool(active.any()):
            Ap = apply(p)
            step = torch.where(active, square / (p * Ap).sum(dim=0), 0.0)
            x += step * p
            r -= step * Ap
            before, square = square, r.square().sum(dim=0)
            p = r + torch.where(active, square / before, 0.0) * p
            active &= square.sqrt() > tolerance * length
            n_iterations += 1
        r = b - apply(x)
        before_restart, residual = residual, float((r.square().sum(dim=0).sqrt() / length).max())
        done = residual <= tolerance or n_iterations >= max_iterations
        if done or not residual < _RESTARTS_REDUCE_TO * before_restart:
            return Iterated(x, n_iterations, residual)


# --- the falkon library


def load_library() -> Any:
    """Import the falkon library; an InputError where it is not there or not for this torch."""
    try:
        import falkon
    except (ImportError, OSError) as error:
        raise InputError(
            f"the solver 'falkon' needs the falkon library, which cannot be imported ({error}); it "
            'is not on PyPI: docs/falkon.md says how to install it, or take `solver="iterative"`'
        ) from None
    return falkon


class Library:
    """The library as a solver; it takes the tolerance as absolute."""

    def __init__(self, iteration: Iteration) -> None:
        self._falkon, self._iteration = load_library(), iteration

    def solve(self, problem: Problem, Y: Float64) -> Solution:
        falkon, iteration = self._falkon, self._iteration
        columns, width = _only_view(problem.kernel)
        dtype = PRECISIONS[iteration.precision]
        rows = torch.as_tensor(np.ascontiguousarray(problem.X[:, columns]), dtype=dtype)
        centres = rows[torch.from_numpy(problem.named_centres)]
        with _undisturbed():
            model = falkon.Falkon(
                kernel=falkon.kernels.GaussianKernel(sigma=width),
                # The library multiplies it by the number of training rows.
                penalty=problem.ridge / len(rows),
                M=len(centres),
                center_selection=falkon.center_selection.FixedSelector(centers=centres),
                maxiter=iteration.max_iterations,
                seed=None,
                error_every=None,
                options=_options(falkon, iteration),
            )
            model.fit(rows, torch.as_tensor(Y, dtype=dtype))
        alpha = model.alpha_.cpu().numpy().astype(np.float64)
        return Solution(np.ascontiguousarray(alpha), 0.0, 0)

    def folds(self, problem: Problem, grouping: Grouping) -> LibraryFolds:
        return LibraryFolds(self, problem, grouping, *sort_centres(grouping, problem.named_centres))


def _options(falkon: Any, iteration: Iteration) -> Any:
    return falkon.FalkonOptions(
        use_cpu=iteration.device == "cpu",
        keops_active="no",
        cg_tolerance=iteration.reached,
        # On a GPU everything, whatever the size: by default the preconditioner of fewer than
        # 10,000 centres is made on the CPU, and small problems are solved there.
        cpu_preconditioner=False,
        min_cuda_pc_size_32=0,
        min_cuda_pc_size_64=0,
        min_cuda_iter_size_32=0,
        min_cuda_iter_size_64=0,
    )


def _only_view(kernel: KernelSum) -> tuple[slice, float]:
    gaussians = kernel.gaussians()
    if len(kernel.scales) > 1:
        raise InputError(
            f"the solver 'falkon' has one Gaussian, not {len(kernel.scales)}; take `scales=1`, or"
            ' `solver="direct"`'
        )
    if len(gaussians) > 1:
        raise InputError(
            f"the solver 'falkon' has one kernel, not a sum over {len(gaussians)} views; take "
            '`solver="direct"` or `solver="iterative"`'
        )
    return gaussians[0].columns, gaussians[0].width


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put the global generators back, and what is printed onto standard error."""
    numpy_state = np.random.get_state()  # noqa: NPY002  # the library may change this very state
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002  # see above
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


@dataclass(frozen=True)
class LibraryFolds:
    """Folds of the library: one fit each, without the group's rows and centres."""

    solver: Library
    problem: Problem  # its ridge is the same in every fold
    grouping: Grouping
    centre_rows: Ints  # (m,): sorted by group
    # (g + 1,): group i holds the centres ``centre_bounds[i]:centre_bounds[i + 1]``
    centre_bounds: Ints

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        X, kernel = self.problem.X, self.problem.kernel
        scores = np.empty_like(Y)
        n_folds = len(self.grouping.groups)
        for fold in range(n_folds):
            held_out = self.grouping.rows(fold)
            train = np.flatnonzero(self.grouping.codes != fold)
            a, b = self.centre_bounds[fold : fold + 2]
            centres = np.concatenate([self.centre_rows[:a], self.centre_rows[b:]])
            places = np.searchsorted(train, centres)
            of_fold = replace(self.problem, X=X[train], centre_rows=places)
            solution = self.solver.solve(of_fold, Y[train])
            Z = NystromKernel(X, held_out, centres, kernel, keep_bytes=0)
            for part, block in Z.blocks():
                scores[held_out[part]] = NUMPY.product(block, solution.dual_coef)
        return HeldOutScores(scores, np.zeros(n_folds))

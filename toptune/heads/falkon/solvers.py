"""The equations of a Falkon model, and which solver they go to.

The direct solver factors them by Cholesky, in NumPy on the CPU and in torch on a GPU, and has
closed forms for folds; `falkon.iterative` holds the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.heads.falkon.arrays import NUMPY, Array, Arrays
from toptune.heads.falkon.folds import (
    KERNEL_MATRIX,
    AllRows,
    Folds,
    Model,
    Nystrom,
    regularised,
    sort_centres,
)
from toptune.heads.falkon.kernel import KernelSum, NystromKernel
from toptune.heads.rows import Float64, Grouping, Ints, check_device
from toptune.machine.installation import require_networks


@dataclass(frozen=True)
class Problem:
    """The equations of a model, without their right-hand sides."""

    X: Any  # (n, d) float32 or float64; streamed only where some rows are centres
    # (m,) int64 or None: which rows are centres, each at most once; None: all
    centre_rows: Ints | None
    kernel: KernelSum
    ridge: float

    @property
    def named_centres(self) -> Ints:
        """Which rows are centres, even where all are."""
        return np.arange(len(self.X)) if self.centre_rows is None else self.centre_rows


class Solution(NamedTuple):
    """What a solver returns."""

    dual_coef: Float64  # (m, k): of each centre and each column of the targets
    jitter: float  # what was added to the diagonal of the equations; 0 as a rule
    n_iterations: int  # 0 of a direct solve


class Solver(Protocol):
    """Solves for one model, or for all folds."""

    def solve(self, problem: Problem, Y: Float64) -> Solution:
        """Fit all rows to Y, (n, k): solve ``(Z'Z + ridge B) alpha = Z'Y``."""
        ...

    def folds(self, problem: Problem, grouping: Grouping) -> Folds:
        """Prepare the folds that leave out each group, ready for any number of targets.

        Raises `InputError`: where all centres lie in one group, whose fold would have none.
        """
        ...


class Direct:
    """Cholesky factorisations in float64, and closed forms for the folds."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def solve(self, problem: Problem, Y: Float64) -> Solution:
        # With all rows as centres the equations are ``(K + ridge I) alpha = Y``, n x n of memory;
        # otherwise they take a few m x m, whatever n.
        arrays, kernel, ridge = self.arrays, problem.kernel, problem.ridge
        with arrays.says_when_full():
            right = arrays.asarray(Y)
            if problem.centre_rows is None:
                system = arrays.cholesky(
                    lambda: regularised(arrays, kernel.gram(problem.X, arrays), ridge),
                    KERNEL_MATRIX,
                )
            else:
                normal, right = self._normal_equation(problem, problem.centre_rows, right)
                system = arrays.cholesky(
                    lambda: arrays.xp.asarray(normal, copy=True), "the normal equation"
                )
            return Solution(arrays.to_host(system.solve(right)), system.jitter, 0)

    def _normal_equation(self, problem: Problem, centres: Ints, Y: Array) -> tuple[Array, Array]:
        """``Z'Z + ridge B`` and ``Z'Y``; each block of Z is evaluated once."""
        arrays, everything = self.arrays, np.arange(len(problem.X))
        Z = NystromKernel(problem.X, everything, centres, problem.kernel, arrays, keep_bytes=0)
        normal = Z.centre_gram()
        normal *= problem.ridge
        moments = 0
        for part, block in Z.blocks():
            arrays.add_gram(normal, block)
            moments = moments + arrays.transposed_product(block, Y[part])
        return normal, moments

    def folds(self, problem: Problem, grouping: Grouping) -> Model:
        return self.model(problem, grouping, 1)

    def model(
        self,
        problem: Problem,
        grouping: Grouping,
        groups_at_once: int,
        gram: Callable[[], Array] | None = None,
        keep_bytes: int | None = None,
    ) -> Model:
        """Factor a model of all rows, of which so many groups at once can be left out.

        `gram` gives the kernel of all rows, sorted by group, as a new matrix, where it is not to be
        evaluated here; up to `keep_bytes` the kernel with Nystrom centres is kept.
        """
        arrays, kernel, ridge = self.arrays, problem.kernel, problem.ridge
        if problem.centre_rows is None:
            gram = gram or partial(kernel.gram, problem.X[grouping.order], arrays)
            return AllRows(arrays, gram, grouping, ridge, groups_at_once)
        centres, bounds = sort_centres(grouping, problem.centre_rows, groups_at_once)
        with arrays.says_when_full():
            Z = NystromKernel(problem.X, grouping.order, centres, kernel, arrays, keep_bytes)
            return Nystrom(Z, grouping, bounds, ridge)

    def models(
        self, problems: Sequence[Problem], grouping: Grouping, groups_at_once: int
    ) -> Callable[[int], Model]:
        """Give what factors models one after the other, by number, of the same rows and centres."""
        if problems[0].centre_rows is not None:
            return lambda number: self.model(problems[number], grouping, groups_at_once)
        grams = _Grams(problems[0].X[grouping.order], self.arrays)

        def factored(number: int) -> Model:
            kernel = problems[number].kernel
            grams.forget_all_but(kernel)
            return self.model(problems[number], grouping, groups_at_once, lambda: grams.of(kernel))

        return factored


class _Grams:
    """Kernels of all rows, one after the other.

    Kernels of single views are kept from one to the next where they fit into memory: evaluating
    one takes about half as long as inverting their sum (6,661 rows x 1280).
    """

    def __init__(self, X: NDArray[np.floating[Any]], arrays: Arrays) -> None:
        self._X, self._arrays = X, arrays
        self._room = arrays.kept_bytes() // (8 * len(X) ** 2)
        self._kept: dict[tuple[int, float, tuple[float, ...]], Array] = {}

    def forget_all_but(self, kernel: KernelSum) -> None:
        """Drop kernels of other widths."""
        needed = {(number, width, kernel.scales) for number, width in enumerate(kernel.widths)}
        self._kept = {key: gram for key, gram in self._kept.items() if key in needed}

    def of(self, kernel: KernelSum) -> Array:
        """Evaluate a kernel, as a new matrix."""
        if self._room < len(kernel.widths):
            return kernel.gram(self._X, self._arrays)
        (first, weight), *others = (
            (self._single(kernel, number), weight)
            for number, weight in enumerate(kernel.weights)
            if weight
        )
        total = first * weight
        for gram, weight in others:
            self._arrays.add_scaled(total, gram, weight)
        return total

    def _single(self, kernel: KernelSum, number: int) -> Array:
        """Give one view's kernel, with weight 1."""
        key = (number, kernel.widths[number], kernel.scales)
        if key not in self._kept:
            weights = tuple(float(view == number) for view in range(len(kernel.weights)))
            self._kept[key] = replace(kernel, weights=weights).gram(self._X, self._arrays)
        return self._kept[key]


def solver_of(classifier: Any) -> Solver:
    """Build the solver that a classifier names; its parameters follow their rules.

    Raises `InputError`: a device, a precision or centres that do not go with it, or no library.
    """
    name = type(classifier).__name__
    if classifier.solver == "direct":
        return _direct(classifier)
    if classifier.n_centres is None:
        raise InputError(f"{name}: the solver {classifier.solver!r} needs `n_centres`")
    check_device(classifier)
    require_networks(f'`solver="{classifier.solver}"`')
    # Only now, since importing torch takes a second.
    from toptune.heads.falkon.iterative import Iteration, Iterative, Library

    iteration = Iteration(
        device=classifier.device,
        precision=classifier.precision,
        tolerance=classifier.tolerance,
        max_iterations=classifier.max_iterations,
    )
    return Iterative(iteration) if classifier.solver == "iterative" else Library(iteration)


def _direct(classifier: Any) -> Direct:
    """NumPy on the CPU, where it is faster than torch; torch elsewhere."""
    if classifier.precision != "float64":
        raise InputError(
            f"{type(classifier).__name__}: the solver 'direct' computes in float64, not in "
            f'{classifier.precision}; take `solver="iterative"`'
        )
    if classifier.device == "cpu":
        return Direct(NUMPY)
    check_device(classifier)
    from toptune.heads.falkon.torch_arrays import TorchArrays

    return Direct(TorchArrays(classifier.device))

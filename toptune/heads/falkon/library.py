"""The falkon library as a solver, where it is installed.

The library (Meanti et al. 2020, github.com/FalkonML/falkon) is not on PyPI; docs/falkon.md says how
to install it. Four of its habits are undone here: it takes a penalty per training row, it seeds
the global generators where it is given a seed, it prints to standard output, and below sizes of
its own it computes on the CPU though a GPU was asked for. It does not say whether it has converged.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from toptune.errors import InputError
from toptune.heads.falkon.arrays import NUMPY
from toptune.heads.falkon.folds import HeldOutScores, sort_centres
from toptune.heads.falkon.iterative import PRECISIONS, Iteration
from toptune.heads.falkon.kernel import KernelSum, NystromKernel
from toptune.heads.falkon.solvers import Problem, Solution
from toptune.heads.rows import Float64, Grouping, Ints


def load_library() -> Any:
    """Import the falkon library.

    Raises `InputError`: it is not installed, or not for this version of torch.
    """
    try:
        import falkon
    except (ImportError, OSError) as error:
        raise InputError(
            f"the solver 'falkon' needs the falkon library, which cannot be imported ({error}); it "
            'is not on PyPI: docs/falkon.md says how to install it, or take `solver="iterative"`'
        ) from None
    return falkon


class Library:
    """The solver; one fit for each fold.

    `iteration`: its tolerance is, as the library takes it, absolute. Raises `InputError`: it is not
    installed, or not for this version of torch.
    """

    def __init__(self, iteration: Iteration) -> None:
        self._falkon, self._iteration = load_library(), iteration

    def solve(self, problem: Problem, Y: Float64) -> Solution:
        """See `toptune.heads.falkon.solvers.Solver`; by `falkon.Falkon`.

        Raises `InputError`: several views: the library has no sum of kernels.
        """
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
        """See `toptune.heads.falkon.solvers.Solver`."""
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
    views = kernel.views()
    if len(views) > 1:
        raise InputError(
            f"the solver 'falkon' has one kernel, not a sum over {len(views)} views; take "
            '`solver="direct"` or `solver="iterative"`'
        )
    return views[0].columns, views[0].width


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
        """See `toptune.heads.falkon.folds.Folds`."""
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

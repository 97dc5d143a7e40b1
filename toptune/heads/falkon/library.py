"""The falkon library as a solver of the Falkon head, where it is installed.

What enters: rows of features, which of them are centres, targets (n, k), a kernel and a ridge. What
leaves: coefficients of the centres, or held-out scores of every row, one fit a fold.

The library (Meanti et al. 2020, github.com/FalkonML/falkon) is not on PyPI; docs/falkon.md says how
to install it. Four of its habits are undone here: it takes a penalty per training row, it seeds
the global generators where it is given a seed, it prints to standard output, and below sizes of
its own it computes on the CPU though a GPU was asked for. Whether it has converged it does not
say.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.heads.falkon.closed_form import HeldOutScores, sort_centres
from toptune.heads.falkon.direct import Solution
from toptune.heads.falkon.kernel import Float64, KernelSum, product
from toptune.heads.falkon.nystrom import NystromKernel
from toptune.heads.falkon.torch_kernel import PRECISIONS, Iteration
from toptune.heads.rows import Grouping


def load_library() -> Any:
    """Import the falkon library.

    Raises
    ------
    InputError
        It is not installed, or not for this version of torch.
    """
    try:
        import falkon
    except (ImportError, OSError) as error:
        raise InputError(
            f"the solver 'falkon' needs the falkon library, which cannot be imported ({error}); it "
            "is not on PyPI: docs/falkon.md says how to install it, or use the solver 'iterative'"
        ) from None
    return falkon


def solve_by_library(
    X: NDArray[np.floating[Any]],
    centre_rows: NDArray[np.int64],
    Y: Float64,
    *,
    kernel: KernelSum,
    ridge: float,
    iteration: Iteration,
) -> Solution:
    """Solve ``(Z'Z + ridge B) alpha = Z'Y`` by `falkon.Falkon`.

    Parameters
    ----------
    X : (n, d) float32 or float64
    centre_rows : (m,) int64
        Which rows are centres.
    Y : (n, k) float64
    kernel : KernelSum
        Of one view; the library has no sum of kernels.
    ridge : float
    iteration : Iteration
        Its tolerance is, as the library takes it, absolute.

    Raises
    ------
    InputError
        No library, or several views.
    """
    falkon = load_library()
    columns, width = _only_view(kernel)
    dtype = PRECISIONS[iteration.precision]
    rows = torch.as_tensor(np.ascontiguousarray(X[:, columns]), dtype=dtype)
    centres = rows[torch.from_numpy(centre_rows)]
    with _undisturbed():
        model = falkon.Falkon(
            kernel=falkon.kernels.GaussianKernel(sigma=width),
            # The library multiplies it by the number of training rows.
            penalty=ridge / len(X),
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
            f"the solver 'falkon' has one kernel, not a sum over {len(views)} views; use the "
            "solver 'direct' or 'iterative'"
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
    """Folds of the falkon library: one fit each, without the group's rows and centres.

    Attributes
    ----------
    X : (n, d) float32 or float64
    grouping : Grouping
    centre_rows : (m,) int64
        Sorted by group.
    centre_bounds : (g + 1,) int64
        Group i holds the centres ``centre_bounds[i]:centre_bounds[i + 1]``.
    kernel : KernelSum
    ridge : float
        The same in every fold.
    iteration : Iteration
    """

    X: NDArray[np.floating[Any]]
    grouping: Grouping
    centre_rows: NDArray[np.int64]
    centre_bounds: NDArray[np.int64]
    kernel: KernelSum
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
    ) -> LibraryFolds:
        """Prepare the folds; parameters and errors are those of `solve_by_library`.

        Raises
        ------
        InputError
            Also where all centres lie in one group, whose fold would have none.
        """
        centres, bounds = sort_centres(grouping, centre_rows)
        return cls(X, grouping, centres, bounds, kernel, ridge, iteration)

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        """See `toptune.heads.falkon.closed_form.Folds`."""
        scores = np.empty_like(Y)
        n_folds = len(self.grouping.groups)
        for fold in range(n_folds):
            held_out = self.grouping.rows(fold)
            train = np.flatnonzero(self.grouping.codes != fold)
            a, b = self.centre_bounds[fold : fold + 2]
            centres = np.concatenate([self.centre_rows[:a], self.centre_rows[b:]])
            solution = solve_by_library(
                self.X[train],
                np.searchsorted(train, centres),
                Y[train],
                kernel=self.kernel,
                ridge=self.ridge,
                iteration=self.iteration,
            )
            Z = NystromKernel.of(self.X, held_out, centres, self.kernel, keep_bytes=0)
            for part, block in Z.blocks():
                scores[held_out[part]] = product(block, solution.dual_coef)
        return HeldOutScores(scores, np.zeros(n_folds))

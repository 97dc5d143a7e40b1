"""Which solver the Falkon head's equations go to, and what each of them needs.

What enters: a head's `solver`, `device`, `precision`, `tolerance`, `max_iterations` and
`n_centres`. What leaves: something that solves for one model, or for all folds.
"""

from __future__ import annotations

from typing import Any, Protocol

from toptune.errors import InputError
from toptune.heads.falkon.closed_form import AllRowsFolds, Folds, NystromFolds
from toptune.heads.falkon.direct import Problem, Solution, solve_all_rows, solve_nystrom
from toptune.heads.falkon.kernel import Float64
from toptune.heads.rows import Grouping, check_device


class Solver(Protocol):
    """Solves for one model, or for all folds."""

    def solve(self, problem: Problem, Y: Float64) -> Solution:
        """Fit all rows to Y, (n, k)."""
        ...

    def folds(self, problem: Problem, grouping: Grouping) -> Folds:
        """Prepare the folds that leave out each group, ready for any number of targets."""
        ...


class Direct:
    """Cholesky factorisations in float64 on the CPU, and closed forms for the folds."""

    def solve(self, problem: Problem, Y: Float64) -> Solution:
        """See `Solver`."""
        X, kernel, ridge = problem.X, problem.kernel, problem.ridge
        if problem.centre_rows is None:
            return solve_all_rows(X, Y, kernel=kernel, ridge=ridge)
        return solve_nystrom(X, problem.centre_rows, Y, kernel=kernel, ridge=ridge)

    def folds(self, problem: Problem, grouping: Grouping) -> Folds:
        """See `Solver`."""
        X, kernel, ridge = problem.X, problem.kernel, problem.ridge
        if problem.centre_rows is None:
            return AllRowsFolds.factor(X, grouping, kernel=kernel, ridge=ridge)
        return NystromFolds.factor(X, grouping, problem.centre_rows, kernel=kernel, ridge=ridge)


class _Torch:
    """A solver in torch, of this package or of the falkon library; one fit a fold."""

    def __init__(self, head: Any) -> None:
        # Only now, since importing torch takes a second.
        from toptune.heads.falkon.torch_kernel import Iteration

        self._by_library = head.solver == "falkon"
        self._iteration = Iteration(
            device=head.device,
            precision=head.precision,
            tolerance=head.tolerance,
            max_iterations=head.max_iterations,
        )

    def solve(self, problem: Problem, Y: Float64) -> Solution:
        """See `Solver`."""
        from toptune.heads.falkon.iterative import solve_iteratively
        from toptune.heads.falkon.library import solve_by_library

        solve = solve_by_library if self._by_library else solve_iteratively
        return solve(
            problem.X,
            problem.named_centres,
            Y,
            kernel=problem.kernel,
            ridge=problem.ridge,
            iteration=self._iteration,
        )

    def folds(self, problem: Problem, grouping: Grouping) -> Folds:
        """See `Solver`."""
        from toptune.heads.falkon.iterative import IterativeFolds
        from toptune.heads.falkon.library import LibraryFolds

        kind: type[LibraryFolds | IterativeFolds] = (
            LibraryFolds if self._by_library else IterativeFolds
        )
        return kind.factor(
            problem.X,
            grouping,
            problem.named_centres,
            kernel=problem.kernel,
            ridge=problem.ridge,
            iteration=self._iteration,
        )


def solver_of(head: Any) -> Solver:
    """Build the solver that a classifier names; its parameters follow their rules.

    Raises
    ------
    InputError
        An unknown device; a device, a precision or centres that do not go with the solver; or no
        library where it is asked for.
    """
    name = type(head).__name__
    if head.solver == "direct":
        return _direct(head)
    if head.n_centres is None:
        raise InputError(f"{name}: the solver {head.solver!r} needs n_centres")
    check_device(head)
    if head.solver == "falkon":
        from toptune.heads.falkon.library import load_library

        load_library()
    return _Torch(head)


def _direct(head: Any) -> Solver:
    """NumPy's on the CPU, which is faster there than torch; torch's elsewhere."""
    if head.precision != "float64":
        raise InputError(
            f"{type(head).__name__}: the solver 'direct' computes in float64, not in "
            f"{head.precision}; use the solver 'iterative'"
        )
    if head.device == "cpu":
        return Direct()
    check_device(head)
    from toptune.heads.falkon.torch_direct import TorchDirect

    return TorchDirect(head.device)

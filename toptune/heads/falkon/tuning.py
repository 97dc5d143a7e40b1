"""Tuning of the Falkon head inside every fold, and its permutation test, in closed form.

What enters: a head, candidates (values of its constructor), rows, labels, groups and units. What
leaves: nested scores, and what the same procedure says under shuffled labels.

A candidate costs one inversion of n x n (all rows as centres), or one factorisation of centres x
centres a pair of groups (Nystrom); see `toptune.heads.falkon.pairs` and `toptune.heads.nested`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputError
from toptune.heads.falkon.classifier import SHARPNESS, FalkonClassifier
from toptune.heads.falkon.closed_form import NystromFolds, sort_centres
from toptune.heads.falkon.direct import Problem
from toptune.heads.falkon.kernel import Float64, KernelSum
from toptune.heads.falkon.memory import kept_bytes
from toptune.heads.falkon.pairs import AllRowsPairs, NystromPairs, Pairs
from toptune.heads.falkon.solvers import Direct, solver_of
from toptune.heads.nested import Labelling, NestedScores, Shuffled, ThreadedJudge, nest
from toptune.heads.rows import Grouping

# An inner fold leaves out the outer group and one more.
_GROUPS_AT_ONCE = 2

Candidate = Mapping[str, Any]


def tune_falkon(
    head: FalkonClassifier,
    X: Any,
    y: Any,
    grouping: Grouping,
    unit: NDArray[np.int64],
    candidates: Sequence[Candidate],
    *,
    shuffled: NDArray[np.int64] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NestedScores, Shuffled]:
    """Leave each group out once, with the candidate chosen among the other groups.

    Parameters
    ----------
    head : FalkonClassifier
        Not fitted, and not changed; its solver must be ``direct``.
    X : (n, d) float32 or float64
    y : (n,) labels
        One label a unit.
    grouping : Grouping
        Of the n rows; three groups or more.
    unit : (n,) int64
        Device and label of each row, numbered from 0; each lies in one group.
    candidates : sequence of mapping
        Values of the head's constructor. One: nothing is tuned, inner folds serve calibration.
    shuffled : (r, u) int64, optional
        Further labellings: the class of each unit, numbered in the sorted order of y's classes.
    progress : callable, optional
        Told how many candidates are done, and how many there are.

    Returns
    -------
    NestedScores
        Of y.
    Shuffled
        Its first line is of y, the others of `shuffled`.

    Raises
    ------
    InputError
        Another solver than ``direct``, fewer than three groups, no candidate, a value out of
        range in any of them, or Nystrom centres that all lie in two groups, before anything is
        computed.
    """
    if head.solver != "direct" or len(grouping.groups) < 3:
        raise InputError(
            f"tuning inside the folds needs the direct solver and three groups, got {head.solver}"
            f" and {len(grouping.groups)}"
        )
    if not candidates:
        raise InputError("there is no candidate to choose from")
    problems = [_problem(head, candidate, X, y) for candidate in candidates]
    for problem in problems:
        if problem.centre_rows is not None:
            sort_centres(grouping, problem.centre_rows, _GROUPS_AT_ONCE)
    classes, codes = np.unique(np.asarray(y), return_inverse=True)
    observed = np.empty(int(unit.max()) + 1, np.int64)
    observed[unit] = codes
    labels = observed[None] if shuffled is None else np.concatenate([observed[None], shuffled])
    labelling = Labelling(unit, labels, len(classes), SHARPNESS)
    return _nest(head, problems, grouping, labelling, progress)


def _nest(
    head: FalkonClassifier,
    problems: Sequence[Problem],
    grouping: Grouping,
    labelling: Labelling,
    progress: Callable[[int, int], None] | None,
) -> tuple[NestedScores, Shuffled]:
    """Nest where the head computes."""
    solver = solver_of(head)
    if isinstance(solver, Direct):
        factors = _Factors(problems, grouping)
        return nest(factors, len(problems), grouping, labelling, ThreadedJudge, progress)
    # Only now, since importing torch takes a second.
    from toptune.heads.falkon.torch_direct import TorchDirect

    assert isinstance(solver, TorchDirect)  # no other solver has closed forms
    on_device = solver.factors(problems, grouping, _GROUPS_AT_ONCE)
    return nest(on_device, len(problems), grouping, labelling, solver.judge, progress)


def _problem(head: FalkonClassifier, candidate: Candidate, X: Any, y: Any) -> Problem:
    tried: FalkonClassifier = clone(head).set_params(**candidate)
    return tried.problem(X, y)


class _Factors:
    """Factored models of the candidates, one after the other.

    Kernels of single views are kept from one candidate to the next where they fit into memory:
    evaluating one takes about half as long as inverting their sum (6,661 rows x 1280).
    """

    def __init__(self, problems: Sequence[Problem], grouping: Grouping) -> None:
        self._problems = problems
        self._grouping = grouping
        # Candidates differ in kernel and ridge, never in rows.
        self._rows = problems[0].X[grouping.order]
        n = len(self._rows)
        self._room = kept_bytes() // (8 * n * n)
        self._grams: dict[tuple[int, float], Float64] = {}

    def __call__(self, number: int) -> Pairs[NDArray[np.float32]]:
        problem = self._problems[number]
        if problem.centre_rows is not None:
            return NystromPairs(
                NystromFolds.factor(
                    problem.X,
                    self._grouping,
                    problem.centre_rows,
                    kernel=problem.kernel,
                    ridge=problem.ridge,
                    groups_at_once=_GROUPS_AT_ONCE,
                )
            )
        self._forget(problem.kernel)

        def regularised() -> Float64:
            K = self._gram(problem.kernel)
            np.einsum("ii->i", K)[:] += problem.ridge
            return K

        return AllRowsPairs.factor(regularised, self._grouping)

    def _forget(self, kernel: KernelSum) -> None:
        """Drop kernels of other widths than the next candidate's."""
        needed = set(enumerate(kernel.widths))
        self._grams = {key: gram for key, gram in self._grams.items() if key in needed}

    def _gram(self, kernel: KernelSum) -> Float64:
        views = [
            (number, width, weight)
            for number, (width, weight) in enumerate(
                zip(kernel.widths, kernel.weights, strict=True)
            )
            if weight
        ]
        if self._room < len(kernel.widths):
            return kernel.gram_lower(self._rows)
        total: Float64 | None = None
        for number, width, weight in views:
            gram = self._single(kernel, number, width)
            # By rows, so that no second matrix is made.
            if total is None:
                total = gram * weight if weight != 1 else gram.copy()
            else:
                for row in range(len(total)):
                    total[row] += weight * gram[row]
        assert total is not None  # a KernelSum has a view with a weight above 0
        return total

    def _single(self, kernel: KernelSum, number: int, width: float) -> Float64:
        key = (number, width)
        if key not in self._grams:
            weights = tuple(float(view == number) for view in range(len(kernel.weights)))
            one = KernelSum(kernel.widths, weights, kernel.view_sizes)
            self._grams[key] = one.gram_lower(self._rows)
        return self._grams[key]

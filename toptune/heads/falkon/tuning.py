"""Tuning of the Falkon classifier inside every fold, and its permutation test, in closed form.

A candidate costs one inversion of n x n (all rows as centres), or one factorisation of centres x
centres for each pair of groups (Nystrom); see `toptune.heads.falkon.folds` and
`toptune.heads.nested`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputError
from toptune.heads.base import Candidate, StepProgress
from toptune.heads.falkon.classifier import SHARPNESS, FalkonClassifier
from toptune.heads.falkon.folds import sort_centres
from toptune.heads.falkon.solvers import Direct, Problem, solver_of
from toptune.heads.nested import Labelling, NestedScores, Shuffled, nest
from toptune.heads.rows import LabelledRows

# An inner fold leaves out the outer group and one more.
_GROUPS_AT_ONCE = 2


def tune_falkon(
    classifier: FalkonClassifier,
    rows: LabelledRows,
    candidates: Sequence[Candidate],
    *,
    shuffled: NDArray[np.int64] | None = None,
    progress: StepProgress | None = None,
) -> tuple[NestedScores, Shuffled]:
    """Leave each group out once, with the candidate chosen among the other groups.

    Parameters
    ----------
    classifier : FalkonClassifier
        Not fitted, and not changed; its solver must be ``direct``.
    rows : LabelledRows
        Of three groups or more.
    candidates : sequence of mapping
        Values of the constructor. With one nothing is tuned; inner folds serve calibration.
    shuffled : (r, u) int64, optional
        Further labellings: the class of each unit, numbered in the sorted order of the classes.
    progress : callable, optional
        Called with how many candidates are done, and how many there are.

    Returns
    -------
    NestedScores
        Of the observed labels.
    Shuffled
        Its first line is of the observed labels, the others of `shuffled`.

    Raises
    ------
    InputError
        Another solver than ``direct``, fewer than three groups, no candidate, a value out of
        range in any of them, or Nystrom centres that all lie in two groups, before anything is
        computed.
    """
    grouping = rows.grouping
    if classifier.solver != "direct" or len(grouping.groups) < 3:
        raise InputError(
            "tuning inside the folds needs the direct solver and three groups, got"
            f" {classifier.solver} and {len(grouping.groups)}"
        )
    if not candidates:
        raise InputError("there is no candidate to choose from")
    problems = [_problem(classifier, candidate, rows) for candidate in candidates]
    for problem in problems:
        if problem.centre_rows is not None:
            sort_centres(grouping, problem.centre_rows, _GROUPS_AT_ONCE)
    classes, labels = rows.labellings(shuffled)
    labelling = Labelling(rows.unit, labels, len(classes), SHARPNESS)
    solver = solver_of(classifier)
    assert isinstance(solver, Direct)  # no other solver has closed forms
    models = solver.models(problems, grouping, _GROUPS_AT_ONCE)
    return nest(models, len(problems), grouping, labelling, solver.arrays, progress)


def _problem(classifier: FalkonClassifier, candidate: Candidate, rows: LabelledRows) -> Problem:
    tried: FalkonClassifier = clone(classifier).set_params(**candidate)
    return tried.problem(rows.X, rows.y)

"""Leave-one-group-out: every row scored by a classifier that has not seen its group.

How the folds are computed depends on the classifier's type: `FalkonClassifier` has them in closed
form, `MLPClassifier` trains all of them together, each third head as it says (`toptune.heads`), and
any other classifier, subclasses of these included, is fitted anew for every fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputErrors
from toptune.heads.catalogue import head_for
from toptune.heads.nested import HeldOut
from toptune.heads.rows import Float64, Grouping, LabelledRows, group_rows


class Fold(NamedTuple):
    """One fold."""

    group: Any  # what was left out
    # Rows learnt from, and rows left out
    n_train_rows: int
    n_rows: int
    jitter: float  # what a closed form had to add to the diagonal of its matrix; 0 as a rule


@dataclass(frozen=True)
class FoldResults:
    """What leaving out each group gives."""

    classes: NDArray[Any]  # (k,): sorted
    # (n, k): Falkon's scores, an MLP's logits; of another classifier its decision function, or its
    # probabilities where it has none
    scores: Float64
    probabilities: Float64  # (n, k): rows sum to one
    predictions: NDArray[Any]  # (n,) array of classes
    fold: NDArray[np.int64]  # (n,): row of `folds` that left each row out
    folds: tuple[Fold, ...]  # in the groups' sorted order


def leave_one_group_out(head: Any, X: Any, y: Any, groups: Any) -> FoldResults:
    """Score every row by a model trained without its group.

    Parameters
    ----------
    head : classifier
        Not fitted, and not changed but for what scikit-learn notes of the input.
    X : (n, d) float32 or float64
    y : (n,) labels
    groups : (n,) strings or numbers
        What is left out together.

    Returns
    -------
    FoldResults

    Raises
    ------
    InputErrors
        Lengths that differ, fewer than two groups, or a class that lives in one group only: its
        fold could not know it.
    """
    rows = _checked_rows(X, y, groups)
    return fold_results(head_for(head).held_out(clone(head), rows), rows)


def _checked_rows(X: Any, y: Any, groups: Any) -> LabelledRows:
    X, y, groups = np.asarray(X), np.asarray(y), np.asarray(groups)
    if not len(X) == len(y) == len(groups) or y.ndim != 1 or groups.ndim != 1:
        got = f"{len(X)}, {y.shape}, {groups.shape}"
        raise InputErrors([f"features, labels and groups must be of one length, got {got}"])
    grouping = group_rows(groups)
    problems = group_problems(y, grouping)
    if problems:
        raise InputErrors(problems)
    return LabelledRows(X, y, grouping, grouping.codes)


def group_problems(y: NDArray[Any], grouping: Grouping) -> list[str]:
    """Say what stands against leaving out each group; an empty list where nothing does."""
    problems = []
    if len(grouping.groups) < 2:
        problems.append(f"leaving one group out needs two groups, got {len(grouping.groups)}")
    for name in np.unique(y):
        codes = np.unique(grouping.codes[y == name])
        if len(codes) == 1:
            problems.append(
                f"class {name!s} has one group, {grouping.groups[codes[0]]!s}: left out, the class "
                "would be unknown; add a group or merge the class"
            )
    return problems


def fold_results(held_out: HeldOut, rows: LabelledRows) -> FoldResults:
    """Put together what leaving out each group gives."""
    codes = rows.grouping.codes
    sizes = np.bincount(codes)
    folds = tuple(
        Fold(group, int(len(codes) - size), int(size), float(added))
        for group, size, added in zip(
            rows.grouping.groups.tolist(), sizes, held_out.jitter, strict=True
        )
    )
    return FoldResults(
        np.unique(rows.y),
        held_out.scores,
        held_out.probabilities,
        held_out.predictions,
        codes,
        folds,
    )

"""Leave-one-group-out: every row scored by a model that has not seen its group.

What enters: a head (or any scikit-learn classifier), rows of features, labels, and the group of
each row, as a rule its device. What leaves: scores, probabilities and predictions of every row,
in the rows' order.

How the folds are computed depends on the head's type, and on nothing else:

- `FalkonClassifier`: in closed form from one factorisation, exact (`falkon.closed_form`).
  The ridge is penalty x rows of the whole data set in every fold, and Nystrom centres are drawn
  once: a fold does without those of its group.
- `MLPClassifier`: all folds trained together (`toptune.heads.mlp.folds`).
- any other classifier, subclasses of these two included: a clone fitted per fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import clone

from toptune.errors import InputErrors
from toptune.heads.falkon.classifier import FalkonClassifier, probabilities_of
from toptune.heads.falkon.kernel import Float64
from toptune.heads.mlp.classifier import MLPClassifier
from toptune.heads.rows import Grouping, group_rows


class Fold(NamedTuple):
    """One fold.

    Attributes
    ----------
    group : str or number
        What was left out.
    n_train_rows, n_rows : int
        Rows learnt from, and rows left out.
    jitter : float
        What a closed form had to add to the diagonal of its matrix; 0 as a rule.
    """

    group: Any
    n_train_rows: int
    n_rows: int
    jitter: float


@dataclass(frozen=True)
class FoldResults:
    """What leaving out each group gives.

    Attributes
    ----------
    classes : (k,) array
        Sorted.
    scores : (n, k) float64
        Falkon's scores, an MLP's logits; of another classifier its decision function, or its
        probabilities where it has none.
    probabilities : (n, k) float64
        Rows sum to one.
    predictions : (n,) array of classes
    fold : (n,) int64
        Row of `folds` that left each row out.
    folds : tuple of Fold
        In the groups' sorted order.
    """

    classes: NDArray[Any]
    scores: Float64
    probabilities: Float64
    predictions: NDArray[Any]
    fold: NDArray[np.int64]
    folds: tuple[Fold, ...]


class _Scored(NamedTuple):
    scores: Float64
    probabilities: Float64
    predictions: NDArray[Any]
    jitter: Float64


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
    X, y, groups = np.asarray(X), np.asarray(y), np.asarray(groups)
    grouping = _checked_grouping(X, y, groups)
    classes = np.unique(y)
    if type(head) is FalkonClassifier:
        scored = _falkon(clone(head), X, y, grouping, classes)
    elif type(head) is MLPClassifier:
        scored = _mlp(clone(head), X, y, grouping, classes)
    else:
        scored = _refit(head, X, y, grouping, classes)
    return _results(scored, grouping, classes)


def refit_each_fold(head: Any, X: Any, y: Any, groups: Any) -> FoldResults:
    """Do the same by fitting a clone of any classifier per fold, one after the other.

    A `FalkonClassifier` then draws centres, and takes its ridge, from each fold's training rows.
    Parameters, results and errors are those of `leave_one_group_out`.
    """
    X, y, groups = np.asarray(X), np.asarray(y), np.asarray(groups)
    grouping = _checked_grouping(X, y, groups)
    classes = np.unique(y)
    return _results(_refit(head, X, y, grouping, classes), grouping, classes)


def _checked_grouping(X: NDArray[Any], y: NDArray[Any], groups: NDArray[Any]) -> Grouping:
    if not len(X) == len(y) == len(groups) or y.ndim != 1 or groups.ndim != 1:
        raise InputErrors(
            [
                "features, labels and groups must be of one length, got "
                f"{len(X)}, {y.shape}, {groups.shape}"
            ]
        )
    grouping = group_rows(groups)
    problems = group_problems(y, grouping)
    if problems:
        raise InputErrors(problems)
    return grouping


def group_problems(y: NDArray[Any], grouping: Grouping) -> list[str]:
    """Say what stands against leaving out each group; an empty list where nothing does.

    Parameters
    ----------
    y : (n,) labels
    grouping : Grouping
        Of the same rows.
    """
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


def _falkon(
    head: FalkonClassifier,
    X: NDArray[Any],
    y: NDArray[Any],
    grouping: Grouping,
    classes: NDArray[Any],
) -> _Scored:
    folds, Y = head.fold_factors(X, y, grouping)
    held_out = folds.held_out_scores(Y)
    best = held_out.scores.argmax(axis=1)
    return _Scored(
        held_out.scores, probabilities_of(held_out.scores), classes[best], held_out.jitter
    )


def _mlp(
    head: MLPClassifier,
    X: NDArray[Any],
    y: NDArray[Any],
    grouping: Grouping,
    classes: NDArray[Any],
) -> _Scored:
    scores = head.held_out_scores(X, y, grouping)
    best = scores.argmax(axis=1)
    return _Scored(scores, softmax(scores, axis=1), classes[best], np.zeros(len(grouping.groups)))


def _refit(
    head: Any, X: NDArray[Any], y: NDArray[Any], grouping: Grouping, classes: NDArray[Any]
) -> _Scored:
    scores = np.empty((len(y), len(classes)))
    probabilities = np.empty_like(scores)
    predictions = np.empty_like(y)
    jitter = np.zeros(len(grouping.groups))
    for fold in range(len(grouping.groups)):
        train, test = grouping.codes != fold, grouping.rows(fold)
        fitted = clone(head).fit(X[train], y[train])
        scores[test], probabilities[test] = _scores_of(fitted, X[test])
        predictions[test] = fitted.predict(X[test])
        jitter[fold] = getattr(fitted, "jitter_", 0.0)
    return _Scored(scores, probabilities, predictions, jitter)


def _scores_of(fitted: Any, X: NDArray[Any]) -> tuple[Float64, Float64]:
    """Scores and probabilities (n, k) of any classifier.

    One without a decision function is scored by its probabilities, one without probabilities
    gets the softmax of its decision function.
    """
    if not hasattr(fitted, "decision_function"):
        probabilities = fitted.predict_proba(X)
        return probabilities, probabilities
    scores = fitted.decision_function(X)
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], axis=1)
    if hasattr(fitted, "predict_proba"):
        return scores, fitted.predict_proba(X)
    return scores, softmax(scores, axis=1)


def _results(scored: _Scored, grouping: Grouping, classes: NDArray[Any]) -> FoldResults:
    return FoldResults(
        classes,
        scored.scores,
        scored.probabilities,
        scored.predictions,
        grouping.codes,
        _list_folds(grouping, scored.jitter),
    )


def fold_results(
    scores: Float64,
    probabilities: Float64,
    grouping: Grouping,
    classes: NDArray[Any],
    jitter: Float64,
) -> FoldResults:
    """Name the class with the largest score in every row.

    Parameters
    ----------
    scores, probabilities : (n, k) float64
    grouping : Grouping
        Of the n rows.
    classes : (k,) array
        Sorted.
    jitter : (g,) float64
    """
    predictions = classes[scores.argmax(axis=1)]
    return FoldResults(
        classes, scores, probabilities, predictions, grouping.codes, _list_folds(grouping, jitter)
    )


def _list_folds(grouping: Grouping, jitter: Float64) -> tuple[Fold, ...]:
    sizes = np.bincount(grouping.codes)
    return tuple(
        Fold(group, int(len(grouping.codes) - size), int(size), float(added))
        for group, size, added in zip(grouping.groups.tolist(), sizes, jitter, strict=True)
    )

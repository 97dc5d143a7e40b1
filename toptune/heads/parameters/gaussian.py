"""Ridge regression with a Gaussian kernel on standardised columns; all classes weigh the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve
from sklearn.base import clone

from toptune.heads.base import Candidate, Progress
from toptune.heads.falkon.classifier import SHARPNESS
from toptune.heads.falkon.targets import balanced_targets
from toptune.heads.nested import NestedScores, Shuffled, check_tuning, handicaps
from toptune.heads.parameters.head import GAUSSIAN_CANDIDATES, GAUSSIAN_RULES
from toptune.heads.parameters.standardiser import Standardiser
from toptune.heads.rows import Float64, Ints, LabelledRows, RowClassifier, check_shapes
from toptune.heads.unit_maps import Groups, Units, tune_units


class GaussianClassifier(RowClassifier):
    """Kernel ridge regression, with a Gaussian of standardised columns.

    Missing values are filled in by the training rows' medians, columns standardised by their means
    and SDs; columns that do not differ among the training rows have no say. With K the kernel
    ``exp(-|x - z|^2 / d)`` of d columns (the `gamma` that scikit-learn's SVC calls "scale"), it
    solves ``(K + ridge I) alpha = Y``, where Y are the balanced targets of
    `toptune.heads.falkon.targets`.

    Parameters
    ----------
    ridge : float
        What is added to the diagonal of K, whose values are at most 1.

    Attributes
    ----------
    classes_ : (k,) array
    n_features_in_ : int
    standardiser_ : Standardiser
        Its scale is infinite for columns that have no say.
    rows_ : (m, d) float64
        Training rows, standardised.
    dual_coef_ : (m, k) float64
        alpha.
    """

    _head = "parameters"
    _rules = GAUSSIAN_RULES
    _tensors = ("fill", "mean", "scale", "rows", "dual_coef")
    _allow_nan = True
    _sharpness = SHARPNESS

    def __init__(self, ridge: float = 1.0) -> None:
        self.ridge = ridge

    def _train(self, X: NDArray[Any], codes: Ints) -> None:
        self.standardiser_, self.rows_ = _standardised(X)
        targets = balanced_targets(codes, len(self.classes_))
        self.dual_coef_ = _ridge_solve(self.standardiser_, self.rows_, self.ridge, targets)

    def _scores(self, X: NDArray[Any]) -> Float64:
        Z = self.standardiser_.apply(X)
        scores: Float64 = _gaussian(self.standardiser_, Z, self.rows_) @ self.dual_coef_
        return scores

    def _learnt(self) -> tuple[NDArray[Any], ...]:
        return (*self.standardiser_, self.rows_, self.dual_coef_)

    def _restore(self, *learnt: NDArray[Any]) -> int:
        parts = {n: np.asarray(p, np.float64) for n, p in zip(self._tensors, learnt, strict=True)}
        m, d = len(parts["rows"]), parts["mean"].size
        check_shapes(parts, ((d,), (d,), (d,), (m, d), (m, len(self.classes_))))
        *standardiser, self.rows_, self.dual_coef_ = parts.values()
        self.standardiser_ = Standardiser(*standardiser)
        return d


def _standardised(X: NDArray[Any]) -> tuple[Standardiser, Float64]:
    standardiser = Standardiser.of(X, even=np.inf)
    return standardiser, standardiser.apply(X)


def _gaussian(standardiser: Standardiser, A: Float64, B: Float64) -> Float64:
    """Kernel of standardised rows, (m, d) and (n, d), with each other."""
    n_columns = max(1, np.count_nonzero(np.isfinite(standardiser.scale)))
    squares = (A**2).sum(axis=1)[:, None] + (B**2).sum(axis=1) - 2 * A @ B.T
    # Rounding may leave less than nothing.
    kernel: Float64 = np.exp(-squares.clip(min=0) / n_columns)
    return kernel


def _ridge_solve(
    standardiser: Standardiser, rows: Float64, ridge: float, right: Float64
) -> Float64:
    K = _gaussian(standardiser, rows, rows)
    K[np.diag_indices_from(K)] = 1 + ridge
    found: Float64 = solve(K, right, assume_a="pos")
    return found


class _GaussianModel:
    """The regression as `unit_maps.UnitModel`: standardised and solved anew for every fold."""

    def __init__(self, X: NDArray[Any], units: Units, ridge: float) -> None:
        self._X, self._units, self._ridge = X, units, ridge

    def unit_maps(self, left_out: Groups) -> Float64:
        """See `UnitModel`."""
        units = self._units
        of_rows = units.unit[units.rows_of(left_out)]
        averaging = units.of_groups(left_out)[:, None] == of_rows
        maps: Float64 = averaging @ self._maps(left_out) / averaging.sum(axis=1, keepdims=True)
        return maps

    def row_scores(self, left_out: Groups, columns: Float64) -> Float64:
        """See `UnitModel`."""
        return self._maps(left_out) @ columns

    def _maps(self, left_out: Groups) -> Float64:
        """Give maps (m, u) of the rows left out."""
        units = self._units
        is_train = ~np.isin(units.grouping.codes, left_out)
        standardiser, train = _standardised(self._X[is_train])
        rows = standardiser.apply(self._X[units.rows_of(left_out)])
        with_rows = _gaussian(standardiser, train, rows)
        solved = _ridge_solve(standardiser, train, self._ridge, with_rows)
        return solved.T @ np.eye(len(units.group))[units.unit[is_train]]


def tune_gaussian(
    classifier: GaussianClassifier,
    rows: LabelledRows,
    candidates: Sequence[Candidate],
    *,
    shuffled: Ints | None = None,
    progress: Progress | None = None,
) -> tuple[NestedScores, Shuffled]:
    """Leave each group out once, with the ridge chosen among the other groups.

    Another than the recommended one is chosen only where its loss is smaller by its handicap
    (`nested.HANDICAP`). Takes and gives what `Head.nested` does. Raises `InputError`: fewer than
    three groups, no candidate, or one that the classifier cannot take.
    """
    check_tuning(len(rows.grouping.groups), candidates)
    tried = [clone(classifier).set_params(**candidate) for candidate in candidates]
    for one in tried:
        X, _, _ = one.check(rows.X, rows.y)
    units = Units.of(rows, np.bincount(rows.unit).astype(np.int64))
    classes, labels = rows.labellings(shuffled)
    models = [_GaussianModel(X, units, one.ridge) for one in tried]
    is_recommended = [one == GAUSSIAN_CANDIDATES[0] for one in candidates]
    handicap = handicaps(is_recommended, len(units.group))
    return tune_units(models, units, labels, len(classes), SHARPNESS, handicap, progress)

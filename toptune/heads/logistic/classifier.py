"""Regularised logistic regression, for rows of few and meaningful numbers such as burst parameters.

Values that are not defined are NaN. The scores are the log-odds of each class against the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from toptune.errors import InputError
from toptune.heads.logistic.head import RULES
from toptune.heads.rows import Float64, encode_classes
from toptune.heads.rules import check_parameters

_TENSORS = ("fill", "mean", "scale", "coef", "intercept")


class Standardiser(NamedTuple):
    """Fills in what is not defined, and brings columns to mean 0 and SD 1.

    Attributes
    ----------
    fill : (d,) float64
        Medians of the training rows; 0 of a column that none of them has.
    mean, scale : (d,) float64
        Of the filled training rows; scale is their SD, 1 where they do not differ.
    """

    fill: Float64
    mean: Float64
    scale: Float64

    @classmethod
    def of(cls, X: NDArray[np.floating[Any]]) -> Standardiser:
        """Learn from training rows, (n, d)."""
        known = ~np.isnan(X).all(axis=0)
        fill = np.zeros(X.shape[1])
        fill[known] = np.nanmedian(X[:, known].astype(np.float64), axis=0)
        filled = np.where(np.isnan(X), fill, X.astype(np.float64))
        scale = filled.std(axis=0)
        # Equal values have an SD that differs from 0 by rounding.
        even = scale <= 1e-12 * np.abs(filled).max(axis=0, initial=0)
        return cls(fill, filled.mean(axis=0), np.where(even, 1.0, scale))

    def apply(self, X: NDArray[np.floating[Any]]) -> Float64:
        """Give rows, (n, d), filled and standardised."""
        filled = np.where(np.isnan(X), self.fill, X.astype(np.float64))
        return (filled - self.mean) / self.scale


class LogisticClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """One logistic regression a class, against all others, with an L2 penalty.

    Missing values are filled in by the training rows' medians, columns standardised by their means
    and SDs; then scikit-learn's `LogisticRegression` minimises ``C x sum of log-losses + |w|^2/2``
    of each class, the intercept free. One class against the rest, and not one softmax over all:
    folds inside folds and a permutation test take millions of fits, small and fast that way.

    Parameters
    ----------
    C : float
        Inverse of the penalty, as scikit-learn names it: the larger, the closer to the data.

    Attributes
    ----------
    classes_ : (k,) array
    n_features_in_ : int
    standardiser_ : Standardiser
    coef_ : (k, d) float64
        Of standardised columns.
    intercept_ : (k,) float64
    """

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def fit(self, X: Any, y: Any) -> Self:
        """Train.

        Parameters
        ----------
        X : (n, d) float32 or float64
            NaN where a value is not defined.
        y : (n,) labels

        Raises
        ------
        InputError
            C out of range, or fewer than two classes.
        """
        X, classes, codes = self.check(X, y)
        self.classes_ = classes
        self.standardiser_ = Standardiser.of(X)
        Z = self.standardiser_.apply(X)
        # Newton's method ends at the minimum itself; the folds, which are solved by it too, agree.
        solver = LogisticRegression(C=self.C, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        coef, intercept = [], []
        for code in range(len(classes)):
            solver.fit(Z, codes == code)
            coef.append(solver.coef_[0])
            intercept.append(solver.intercept_[0])
        self.coef_ = np.array(coef)
        self.intercept_ = np.array(intercept)
        return self

    def check(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
        """Check parameters, rows and labels.

        Returns
        -------
        X : (n, d) float32 or float64
        classes : (k,) array, sorted
        codes : (n,) int64
            The class of each row.

        Raises
        ------
        InputError
        """
        X, y = validate_data(
            self, X, y, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan"
        )
        check_parameters(self, RULES)
        check_classification_targets(y)
        classes, codes = encode_classes(self, y)
        return X, classes, codes

    def class_scores(self, X: Any) -> Float64:
        """Log-odds of each class against the others, (n, k) float64."""
        check_is_fitted(self)
        X = validate_data(
            self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", reset=False
        )
        scores: Float64 = self.standardiser_.apply(X) @ self.coef_.T + self.intercept_
        return scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Name the class with the largest log-odds, (n,)."""
        best = self.class_scores(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def predict_proba(self, X: Any) -> Float64:
        """Probability of each class against the others, made to sum to one; (n, k) float64."""
        return probabilities_of(self.class_scores(X))

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that NaN is welcome."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """Give what was learnt, for a file without pickle; `from_tensors` is the way back."""
        check_is_fitted(self)
        parts = (*self.standardiser_, self.coef_, self.intercept_)
        return dict(zip(_TENSORS, parts, strict=True))

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, NDArray[Any]], params: dict[str, Any], classes: NDArray[Any]
    ) -> Self:
        """Build the fitted classifier that `to_tensors` was called on.

        Parameters
        ----------
        tensors : dict of str to array
        params : dict
            Of the constructor.
        classes : (k,) array

        Raises
        ------
        InputError
            Where the tensors are not those of this classifier, or do not fit together.
        """
        missing = [name for name in _TENSORS if name not in tensors]
        if missing:
            raise InputError(
                f"this is no model of the classifier parameters: it has no {missing[0]!r}"
            )
        parts = {name: np.asarray(tensors[name], dtype=np.float64) for name in _TENSORS}
        k, d = len(classes), parts["mean"].size
        shapes = dict(zip(_TENSORS, ((d,), (d,), (d,), (k, d), (k,)), strict=True))
        for name, shape in shapes.items():
            if parts[name].shape != shape:
                raise InputError(f"the model's {name} is {parts[name].shape}, expected {shape}")
        made = cls(**params)
        made.classes_ = classes
        made.n_features_in_ = d
        made.standardiser_ = Standardiser(parts["fill"], parts["mean"], parts["scale"])
        made.coef_ = parts["coef"]
        made.intercept_ = parts["intercept"]
        return made


def probabilities_of(scores: Float64) -> Float64:
    """Turn log-odds of each class against the others, (n, k), into probabilities that sum to one.

    Each class's own probability is divided by their sum, as scikit-learn's `OneVsRestClassifier`
    does. The order of the scores is kept.
    """
    # In logarithms, and relative to the largest: far below 0 all of a row's would vanish.
    logs = log_expit(scores)
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    probabilities: Float64 = shares / shares.sum(axis=1, keepdims=True)
    return probabilities

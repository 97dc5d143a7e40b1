"""Regularised logistic regression, for rows of few and meaningful numbers such as burst parameters.

Values that are not defined are NaN. The scores are the log-odds of each class against the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit
from sklearn.linear_model import LogisticRegression

from toptune.heads.parameters.head import LOGISTIC_RULES
from toptune.heads.parameters.standardiser import Standardiser
from toptune.heads.rows import Float64, Ints, RowClassifier, check_shapes


class LogisticClassifier(RowClassifier):
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

    _head = "parameters"
    _rules = LOGISTIC_RULES
    _tensors = ("fill", "mean", "scale", "coef", "intercept")
    _allow_nan = True

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def _train(self, X: NDArray[Any], codes: Ints) -> None:
        self.standardiser_ = Standardiser.of(X)
        Z = self.standardiser_.apply(X)
        # Newton's method ends at the minimum itself; the folds, which are solved by it too, agree.
        solver = LogisticRegression(C=self.C, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        coef, intercept = [], []
        for code in range(len(self.classes_)):
            solver.fit(Z, codes == code)
            coef.append(solver.coef_[0])
            intercept.append(solver.intercept_[0])
        self.coef_ = np.array(coef)
        self.intercept_ = np.array(intercept)

    def _scores(self, X: NDArray[Any]) -> Float64:
        scores: Float64 = self.standardiser_.apply(X) @ self.coef_.T + self.intercept_
        return scores

    @classmethod
    def probabilities_of(cls, scores: Float64) -> Float64:
        """Turn log-odds of each class against the others, (n, k), into probabilities.

        Each class's own probability is divided by their sum, as scikit-learn's
        `OneVsRestClassifier` does. The order of the scores is kept.
        """
        # In logarithms, and relative to the largest: far below 0 all of a row's would vanish.
        logs = log_expit(scores)
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        probabilities: Float64 = shares / shares.sum(axis=1, keepdims=True)
        return probabilities

    def _learnt(self) -> tuple[NDArray[Any], ...]:
        return (*self.standardiser_, self.coef_, self.intercept_)

    def _restore(self, *learnt: NDArray[Any]) -> int:
        parts = {n: np.asarray(p, np.float64) for n, p in zip(self._tensors, learnt, strict=True)}
        k, d = len(self.classes_), parts["mean"].size
        check_shapes(parts, ((d,), (d,), (d,), (k, d), (k,)))
        *standardiser, self.coef_, self.intercept_ = parts.values()
        self.standardiser_ = Standardiser(*standardiser)
        return d

"""Logistic regression: scikit-learn's own checks and pipeline beside it, and the compiled folds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.exceptions import SkipTestWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from toptune.errors import InputError, ToptuneError
from toptune.heads import head_of
from toptune.heads.parameters.logistic import LogisticClassifier
from toptune.heads.parameters.logistic_tuning import log_odds
from toptune.heads.parameters.standardiser import Standardiser


def test_logistic_passes_the_estimator_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(LogisticClassifier())
    assert sum(result["status"] == "passed" for result in results) > 40


def rows_with_gaps(seed: int, n: int = 40, d: int = 12) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of four classes; some values, and one whole column, are not defined."""
    rng = np.random.default_rng(seed)
    y = np.array(list("ABCD"))[rng.integers(0, 4, n)]
    y[:4] = list("ABCD")
    X = rng.standard_normal((n, d)) * 10.0 ** rng.integers(-3, 4, d) + rng.standard_normal(d)
    X[:, 0] += 3.0 * (y == "A")
    X[rng.random(X.shape) < 0.15] = np.nan
    X[:, 5] = np.nan
    X[:, 6] = 0.1
    return X, y


@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
def test_scikit_learns_pipeline_says_the_same(C: float) -> None:
    X, y = rows_with_gaps(0)
    new, _ = rows_with_gaps(1)
    head = LogisticClassifier(C=C).fit(X, y)
    peer = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        OneVsRestClassifier(LogisticRegression(C=C, tol=1e-12, max_iter=20_000)),
    ).fit(X, y)
    np.testing.assert_allclose(
        head.class_scores(new), peer.decision_function(new), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(head.predict_proba(new), peer.predict_proba(new), atol=1e-4)
    np.testing.assert_array_equal(head.predict(new), peer.predict(new))


def test_two_classes_mirror_each_other() -> None:
    X, y = rows_with_gaps(3)
    y = np.where(y == "A", "A", "B")
    head = LogisticClassifier(C=0.5).fit(X, y)
    scores = head.class_scores(X)
    np.testing.assert_allclose(scores[:, 0], -scores[:, 1], atol=1e-8)
    np.testing.assert_allclose(head.predict_proba(X)[:, 0], 1 / (1 + np.exp(-scores[:, 0])))


def test_probabilities_of_far_scores_sum_to_one() -> None:
    scores = np.array([[-900.0, -901.0, -950.0], [900.0, -900.0, 0.0], [0.0, 0.0, 0.0]])
    shares = LogisticClassifier.probabilities_of(scores)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert shares[0, 0] == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-9)
    np.testing.assert_array_equal(shares.argmax(axis=1), scores.argmax(axis=1))


@pytest.mark.parametrize("n", [40, 9])
def test_compiled_fits_are_those_of_the_head(n: int) -> None:
    rng = np.random.default_rng(n)
    X, _ = rows_with_gaps(n, n=n)
    new, _ = rows_with_gaps(7, n=5)
    codes = np.stack([rng.permutation(np.arange(n) % 3) for _ in range(3)])
    C = np.array([0.01, 0.3, 10.0])
    standard = Standardiser.of(X)
    found = log_odds(standard.apply(X), codes, 3, C, standard.apply(new))
    for r, p in np.ndindex(3, 3):
        head = LogisticClassifier(C=float(C[p])).fit(X, codes[r])
        np.testing.assert_allclose(found[r, p], head.class_scores(new), atol=1e-5)


def test_separable_rows_and_a_weak_penalty_still_end() -> None:
    X = np.concatenate([np.linspace(-1, -0.9, 15), np.linspace(0.9, 1, 15)])[:, None]
    codes = (np.arange(30) >= 15).astype(np.int64)[None]
    found = log_odds(X, codes, 2, np.array([1e-3, 1e6]), X)
    head = LogisticClassifier(C=1e6)
    assert (found[0, 1].argmax(axis=1) == codes[0]).all()
    np.testing.assert_array_equal(head.fit(X, codes[0]).predict(X), codes[0])


def test_a_class_without_training_rows_is_told_by_half_a_row() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((10, 3))
    found = log_odds(X, np.zeros((1, 10), np.int64), 2, np.array([0.1, 10.0]), X[:4])
    np.testing.assert_allclose(found[0, :, :, 1], np.log(0.5 / 10.5))
    np.testing.assert_allclose(found[0, :, :, 0], np.log(10.5 / 0.5))


def test_rows_that_are_not_finite_do_not_end_in_silence() -> None:
    with pytest.raises(ToptuneError, match="did not converge"):
        log_odds(
            np.full((4, 2), np.nan), np.array([[0, 1, 0, 1]]), 2, np.array([1.0]), np.ones((1, 2))
        )


@pytest.mark.parametrize("C", [0, -1.0, np.nan, "1"])
def test_a_penalty_out_of_range_is_refused(C: object) -> None:
    X, y = rows_with_gaps(0)
    with pytest.raises(InputError, match=r"LogisticClassifier.C must be above 0"):
        LogisticClassifier(C=C).fit(X, y)  # type: ignore[arg-type]  # what is refused


def test_tensors_bring_the_head_back_or_say_what_is_wrong() -> None:
    X, y = rows_with_gaps(0)
    head = head_of("parameters").make({"C": 0.2}).fit(X, y)
    tensors, classes = head.to_tensors(), np.array(list("ABCD"))
    again = LogisticClassifier.from_tensors(tensors, {"C": 0.2}, classes)
    np.testing.assert_array_equal(again.class_scores(X), head.class_scores(X))
    with pytest.raises(InputError, match="no model of the classifier parameters: it has no 'coef'"):
        LogisticClassifier.from_tensors({"fill": X, "mean": X, "scale": X}, {}, classes)
    with pytest.raises(InputError, match=r"coef is \(4, 12\), expected \(3, 12\)"):
        LogisticClassifier.from_tensors(tensors, {}, classes[:3])

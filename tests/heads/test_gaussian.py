"""The Gaussian kernel on parameters: against scikit-learn, and its folds against refitting."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.exceptions import SkipTestWarning
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from toptune.errors import InputError
from toptune.evaluation.evaluate import Units, evaluate
from toptune.evaluation.permutations import Permutations
from toptune.heads import head_of
from toptune.heads.nested import selection_loss
from toptune.heads.parameters.gaussian import GaussianClassifier, tune_gaussian
from toptune.heads.parameters.head import GAUSSIAN_CANDIDATES, LOGISTIC_CANDIDATES
from toptune.heads.parameters.logistic import LogisticClassifier
from toptune.heads.rows import LabelledRows, group_rows

CANDIDATES = ({"ridge": 0.1}, {"ridge": 2.0}, {"ridge": 0.01})


def rows_of(seed: int, distance: float = 1.5) -> LabelledRows:
    """Nine devices, some with two labels, and one to three recordings of each device and label.

    Some values are not defined, and columns have their own units.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(9), [2, 1, 3, 1, 1, 2, 1, 3, 1])
    code = group % 3
    code[[1, 6]] = (code[[1, 6]] + 1) % 3
    X = rng.standard_normal((len(code), 6)) + distance * np.eye(6)[code]
    X = X * 10.0 ** np.arange(-3, 3) + np.arange(6)
    X[rng.random(X.shape) < 0.1] = np.nan
    _, unit = np.unique(3 * group + code, return_inverse=True)
    return LabelledRows(X, np.array(list("abc"))[code], group_rows(group), unit)


def peer(ridge: float, d: int) -> Any:
    return make_pipeline(
        SimpleImputer(strategy="median"), StandardScaler(),
        KernelRidge(alpha=ridge, kernel="rbf", gamma=1 / d),
    )  # fmt: skip


def refit(ridge: float, rows: LabelledRows, train: Any, test: Any) -> NDArray[np.float64]:
    """Balanced targets by their definition, regressed on by scikit-learn."""
    own = rows.y[train][:, None] == np.unique(rows.y)
    k = own.shape[1]
    shares = np.where(own.any(axis=0), own.mean(axis=0), 1.0)
    fitted = peer(ridge, rows.X.shape[1]).fit(rows.X[train], 2 * (own / (k * shares) - 1 / k))
    return np.asarray(fitted.predict(rows.X[test]))


def test_it_passes_the_estimator_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(GaussianClassifier())
    assert sum(result["status"] == "passed" for result in results) > 40


def test_it_scores_as_scikit_learns_kernel_ridge_does() -> None:
    rows = rows_of(0)
    everything = np.ones(len(rows.y), bool)
    fitted = GaussianClassifier(ridge=0.3).fit(rows.X, rows.y)
    expected = refit(0.3, rows, everything, everything)
    np.testing.assert_allclose(fitted.class_scores(rows.X), expected, atol=1e-9)


def test_columns_that_do_not_differ_in_training_have_no_say() -> None:
    rows = rows_of(1)
    with_more = np.c_[rows.X, np.full(len(rows.X), 7.0), np.full(len(rows.X), np.nan)]
    new = np.c_[rows_of(2).X, np.arange(len(rows.X)), np.ones(len(rows.X))]
    fitted = GaussianClassifier().fit(with_more, rows.y)
    expected = GaussianClassifier().fit(rows.X, rows.y).class_scores(new[:, :6])
    np.testing.assert_allclose(fitted.class_scores(new), expected, atol=1e-12)
    tensors = fitted.to_tensors()
    again = head_of("parameters").read(tensors, {"ridge": 1.0}, fitted.classes_)
    np.testing.assert_array_equal(again.class_scores(new), fitted.class_scores(new))
    with pytest.raises(InputError, match=r"the model's dual_coef is \(15, 3\), expected \(15, 2\)"):
        head_of("parameters").read(tensors, {"ridge": 1.0}, fitted.classes_[:2])


def test_every_fold_is_what_refitting_gives() -> None:
    rows = rows_of(0)
    codes, group = rows.labellings()[1][0], rows.grouping.codes
    n, units = len(rows.y), np.arange(len(codes))

    def loss(scores: NDArray[Any]) -> float:
        means = np.stack([scores[rows.unit == u].mean(axis=0) for u in units])
        return selection_loss(means, codes, units, 2.0)

    nested, told = tune_gaussian(GaussianClassifier(), rows, CANDIDATES)
    plain = np.empty((3, n, 3))
    for g in range(9):
        inner = np.full((3, n, 3), np.nan)
        for p, candidate in enumerate(CANDIDATES):
            ridge = candidate["ridge"]
            plain[p, group == g] = refit(ridge, rows, group != g, group == g)
            for h in set(range(9)) - {g}:
                train = (group != g) & (group != h)
                inner[p, group == h] = refit(ridge, rows, train, group == h)
        losses = [loss(scores) for scores in inner]
        np.testing.assert_allclose(nested.loss[:, g], losses, atol=2e-6)
        chosen = int(np.argmin(losses))
        assert nested.choice[g] == chosen
        np.testing.assert_allclose(nested.scores[group == g], plain[chosen, group == g], atol=1e-8)
        np.testing.assert_allclose(nested.inner_scores[g], inner[chosen], atol=1e-6)
    final_loss = [loss(scores) for scores in plain]
    np.testing.assert_allclose(nested.final_loss, final_loss, atol=2e-6)
    assert nested.final_choice == int(np.argmin(final_loss))
    np.testing.assert_allclose(nested.final_scores, plain[nested.final_choice], atol=1e-8)
    for u in units:
        mean = nested.scores[rows.unit == u].mean(axis=0)
        np.testing.assert_allclose(told.mean_scores[0, u], mean, atol=1e-6)


def test_a_shuffle_is_told_as_if_its_labels_were_observed() -> None:
    rows = rows_of(3)
    classes, labels = rows.labellings()
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(labels[0]) for _ in range(6)])
    _, told = tune_gaussian(GaussianClassifier(), rows, CANDIDATES, shuffled=shuffled)
    for line, codes in enumerate([labels[0], *shuffled]):
        relabelled = rows._replace(y=classes[codes[rows.unit]])
        _, alone = tune_gaussian(GaussianClassifier(), relabelled, CANDIDATES)
        np.testing.assert_allclose(told.mean_scores[line], alone.mean_scores[0], atol=1e-6)
        verdicts = told.mean_scores[line].argmax(axis=1)
        np.testing.assert_array_equal(told.predicted[line], verdicts[rows.unit])


def test_nothing_of_a_left_out_group_touches_its_fold() -> None:
    rows = rows_of(4)
    own = rows.grouping.codes == 2
    X, y = rows.X.copy(), rows.y.copy()
    X[own] = [1e6, np.nan, -3e5, 0.0, 7.0, 1.0]
    y[own] = "b"
    before, _ = tune_gaussian(GaussianClassifier(), rows, CANDIDATES)
    after, _ = tune_gaussian(GaussianClassifier(), rows._replace(X=X, y=y), CANDIDATES)
    assert after.choice[2] == before.choice[2]
    np.testing.assert_allclose(after.loss[:, 2], before.loss[:, 2], atol=1e-6)
    np.testing.assert_array_equal(after.inner_scores[2][~own], before.inner_scores[2][~own])


def test_what_identifies_the_device_and_nothing_else_scores_at_chance() -> None:
    """A tripwire for leaks: any fold that saw its own device would be right every time."""
    group = np.repeat(np.arange(12), 2)
    X = np.eye(12)[group] + 0.1 * np.random.default_rng(0).standard_normal((24, 12))
    n_right = 0
    for seed in range(20):
        codes = np.random.default_rng(seed).permutation(np.arange(12) % 3)
        rows = LabelledRows(X, codes[group], group_rows(group), group)
        _, told = tune_gaussian(GaussianClassifier(), rows, GAUSSIAN_CANDIDATES)
        n_right += int((told.mean_scores[0].argmax(axis=1) == codes).sum())
        assert (GaussianClassifier().fit(X, rows.y).predict(X) == rows.y).all()
    low, high = binom.interval(0.999, 240, 1 / 3)
    assert low <= n_right <= high


# --- the head


def test_the_kernel_decides_the_classifier_and_what_is_tuned() -> None:
    head = head_of("parameters")
    assert isinstance(head.make({}), LogisticClassifier)
    made = head.make({"kernel": "gaussian", "ridge": 0.4})
    assert isinstance(made, GaussianClassifier)
    assert made.ridge == 0.4
    assert head.candidates({}, {}, 1, tune=True) == LOGISTIC_CANDIDATES
    gaussian = {"kernel": "gaussian"}
    assert head.candidates(gaussian, {}, 1, tune=True) == GAUSSIAN_CANDIDATES
    assert GAUSSIAN_CANDIDATES[0] == GaussianClassifier().get_params()
    assert head.candidates(gaussian, {"ridge": (1, 2)}, 1, tune=True) == (
        {"ridge": 1}, {"ridge": 2},
    )  # fmt: skip
    assert head.candidates({**gaussian, "ridge": 0.4}, {}, 1, tune=True) == ({},)
    assert head.candidates({"C": 0.4}, {}, 1, tune=True) == ({},)
    assert head.default_permutations(made, 9) == 1000
    assert head.default_permutations(head.make({}), 9) == 200
    assert head.tables(made, ()) == {}


def test_parameters_of_the_other_kernel_are_refused() -> None:
    head = head_of("parameters")
    with pytest.raises(InputError, match='`ridge` belongs to `kernel="gaussian"`, not to linear'):
        head.make({"ridge": 0.1})
    with pytest.raises(InputError, match='`C` belongs to `kernel="linear"`, not to gaussian'):
        head.make({"kernel": "gaussian", "C": 0.1})
    with pytest.raises(InputError, match='`C` belongs to `kernel="linear"`'):
        head.candidates({"kernel": "gaussian"}, {"C": (1, 2)}, 1, tune=True)
    with pytest.raises(InputError, match="kernel must be linear or gaussian, got 'rbf'"):
        head.check_option("kernel", "rbf")
    with pytest.raises(InputError, match="kernel"):
        head.candidates({}, {"kernel": ("linear", "gaussian")}, 1, tune=True)
    with pytest.raises(InputError, match=r"GaussianClassifier\.ridge must be above 0, got 0"):
        GaussianClassifier(ridge=0).fit(np.eye(4), list("abab"))


def test_evaluating_it_tunes_calibrates_and_tests() -> None:
    rows = rows_of(5, distance=4.0)
    device = np.array([f"d{code}" for code in rows.grouping.codes])
    units = Units.of(device, rows.y)
    _, labels = rows.labellings()
    shuffled = np.random.default_rng(0).permuted(np.tile(labels, (49, 1)), axis=1)
    head = head_of("parameters")
    found = evaluate(
        head, GaussianClassifier(), rows.X, rows.y, device, units, GAUSSIAN_CANDIDATES,
        Permutations(shuffled, 1000, 6, exact=False),
    )  # fmt: skip
    assert found.nested is not None
    assert found.test is not None
    assert found.test.p <= 0.1
    assert found.inverse_temperature is not None
    np.testing.assert_allclose(found.folds.probabilities.sum(axis=1), 1)

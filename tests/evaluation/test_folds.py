"""Leave-one-group-out against refitting every fold."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import refit
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from toptune.errors import InputErrors
from toptune.evaluation.folds import FoldResults, leave_one_group_out
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.mlp.classifier import MLPClassifier

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def labelled(seed: int = 0, k: int = 3) -> tuple[Array, NDArray[np.str_], NDArray[np.str_]]:
    """Nine groups of unequal size in mixed order, three a class."""
    rng = np.random.default_rng(seed)
    device = rng.permutation(np.repeat(np.arange(9), rng.integers(5, 20, size=9)))
    label = device % k
    X = 1.5 * rng.standard_normal((k, 6))[label] + rng.standard_normal((len(device), 6))
    return X, np.array(list("abc"))[label], np.array([f"dev{i}" for i in range(9)])[device]


def assert_consistent(results: FoldResults, y: NDArray[np.str_], groups: NDArray[np.str_]) -> None:
    np.testing.assert_array_equal(results.classes, np.unique(y))
    assert results.scores.shape == results.probabilities.shape == (len(y), len(results.classes))
    np.testing.assert_allclose(results.probabilities.sum(axis=1), 1)
    best = results.classes[results.scores.argmax(axis=1)]
    np.testing.assert_array_equal(results.predictions, best)
    for i, fold in enumerate(results.folds):
        np.testing.assert_array_equal(results.fold == i, groups == fold.group)
        assert fold.n_rows == (groups == fold.group).sum()
        assert fold.n_train_rows == (groups != fold.group).sum()
    assert [fold.group for fold in results.folds] == sorted(set(groups))


@pytest.mark.parametrize("n_centres", [None, 25])
@pytest.mark.parametrize("k", [2, 3])
def test_falkon_folds_are_normalised_refits_with_the_whole_data_sets_ridge(
    n_centres: int | None, k: int
) -> None:
    X, y, groups = labelled(k=k)
    head = FalkonClassifier(
        width=0.7, penalty=1e-3, balanced=False, n_centres=n_centres, random_state=5
    )
    results = leave_one_group_out(head, X, y, groups)
    assert_consistent(results, y, groups)
    assert not hasattr(head, "centres_")
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    Y = np.where(y[:, None] == np.unique(y), 1.0, -1.0)
    codes = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    ridge = 1e-3 * len(X)
    centres = None
    if n_centres is not None:
        drawn = FalkonClassifier(n_centres=25, random_state=5).fit(X, y).centres_
        rows = [int(np.abs(unit - centre).sum(axis=1).argmin()) for centre in drawn]
        centres = np.array(rows)
    expected = refit(unit, Y, codes, centres, KernelSum.single(0.7, X.shape[1]), ridge)
    np.testing.assert_allclose(results.scores, expected, atol=1e-7)


def test_float32_rows_give_the_scores_of_their_values() -> None:
    X, y, groups = labelled()
    X = X.astype(np.float32)
    low = leave_one_group_out(FalkonClassifier(), X, y, groups)
    high = leave_one_group_out(FalkonClassifier(), X.astype(np.float64), y, groups)
    np.testing.assert_allclose(low.scores, high.scores, atol=1e-3)


def test_mlp_folds_are_each_group_left_out() -> None:
    X, y, groups = labelled()
    head = MLPClassifier(epochs=15, learning_rate=0.01, batch_size=10)
    results = leave_one_group_out(head, X, y, groups)
    assert_consistent(results, y, groups)
    assert (results.predictions == y).mean() > 0.8
    # A group's own labels have no say in its scores.
    other = y.copy()
    other[groups == "dev0"] = np.where(y[groups == "dev0"] == "a", "b", "a")
    held_out = leave_one_group_out(head, X, other, groups)
    same = groups == "dev0"
    np.testing.assert_array_equal(held_out.scores[same], results.scores[same])
    assert not np.allclose(held_out.scores[~same], results.scores[~same])


@pytest.mark.parametrize("head", [LogisticRegression(), RidgeClassifier(), KNeighborsClassifier(3)])
@pytest.mark.parametrize("k", [2, 3])
def test_any_other_classifier_is_fitted_per_fold(
    head: LogisticRegression | RidgeClassifier | KNeighborsClassifier, k: int
) -> None:
    X, y, groups = labelled(k=k)
    results = leave_one_group_out(head, X, y, groups)
    assert_consistent(results, y, groups)
    for group in np.unique(groups):
        fitted = type(head)(**head.get_params()).fit(X[groups != group], y[groups != group])
        predictions = fitted.predict(X[groups == group])
        np.testing.assert_array_equal(results.predictions[groups == group], predictions)


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Reversed(FalkonClassifier):
        def predict(self, X: Array) -> NDArray[np.str_]:
            return np.full(len(X), "z")

    X, y, groups = labelled()
    assert set(leave_one_group_out(Reversed(), X, y, groups).predictions) == {"z"}


class Refitted(FalkonClassifier):
    """Of another type, so that it is fitted for every fold."""


def test_refitting_falkon_agrees_with_the_closed_form_when_the_ridge_is_made_equal() -> None:
    X, y, groups = labelled()
    results = leave_one_group_out(FalkonClassifier(penalty=1e-3), X, y, groups)
    refitted = leave_one_group_out(Refitted(penalty=1e-3), X, y, groups)
    assert_consistent(refitted, y, groups)
    for group in np.unique(groups):
        train = groups != group
        same_ridge = FalkonClassifier(penalty=1e-3 * len(X) / train.sum())
        scores = same_ridge.fit(X[train], y[train]).decision_function(X[~train])
        np.testing.assert_allclose(results.scores[~train], scores, atol=1e-8)
        own_ridge = FalkonClassifier(penalty=1e-3).fit(X[train], y[train])
        scores = own_ridge.decision_function(X[~train])
        np.testing.assert_array_equal(refitted.scores[~train], scores)


def test_what_cannot_be_left_out_is_refused_all_at_once() -> None:
    X = np.zeros((4, 2))
    with pytest.raises(InputErrors) as refused:
        leave_one_group_out(FalkonClassifier(), X, ["a", "a", "b", "c"], ["x", "y", "x", "y"])
    assert [line.split(":")[0] for line in refused.value.problems] == [
        "class b has one group, x",
        "class c has one group, y",
    ]
    with pytest.raises(InputErrors, match="needs two groups, got 1"):
        leave_one_group_out(FalkonClassifier(), X, ["a", "a", "b", "b"], ["x"] * 4)
    with pytest.raises(InputErrors, match="must be of one length"):
        leave_one_group_out(FalkonClassifier(), X, ["a", "b"], ["x", "y", "x", "y"])

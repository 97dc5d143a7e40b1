"""Leave-one-group-out against refitting every fold, and against the falkon library's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from needs import shared
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from toptune.heads.falkon.closed_form import AllRowsFolds, NystromFolds

from toptune.errors import InputError, InputErrors
from toptune.evaluation.folds import FoldResults, leave_one_group_out, refit_each_fold
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.mlp.classifier import MLPClassifier
from toptune.heads.rows import group_rows

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def kernel(P: Array, Q: Array, width: float) -> Array:
    distance = ((P[:, None] - Q[None]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-distance / (2 * width**2)))


def gaussian(X: Array, width: float) -> KernelSum:
    return KernelSum.single(width, X.shape[1])


def refit_all_rows(X: Array, Y: Array, groups: Ints, width: float, ridge: float) -> Array:
    scores = np.empty_like(Y)
    for group in np.unique(groups):
        train, test = groups != group, groups == group
        K = kernel(X[train], X[train], width) + ridge * np.eye(train.sum())
        scores[test] = kernel(X[test], X[train], width) @ np.linalg.solve(K, Y[train])
    return scores


def refit_nystrom(
    X: Array, Y: Array, groups: Ints, centres: Ints, width: float, ridge: float
) -> Array:
    """Each fold as the least-squares problem |Z a - Y|^2 + ridge a' B a over its own centres."""
    scores = np.empty_like(Y)
    for group in np.unique(groups):
        train, test = groups != group, groups == group
        C = X[[row for row in centres if groups[row] != group]]
        values, vectors = np.linalg.eigh(kernel(C, C, width))
        root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        system = np.concatenate([kernel(X[train], C, width), np.sqrt(ridge) * root])
        right = np.concatenate([Y[train], np.zeros((len(C), Y.shape[1]))])
        scores[test] = kernel(X[test], C, width) @ np.linalg.lstsq(system, right)[0]
    return scores


@st.composite
def problems(draw: st.DrawFn) -> tuple[Array, Array, Ints]:
    """Rows in unequal groups that are not sorted, with some rows twice; several targets."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    X = rng.standard_normal((len(groups), draw(st.integers(1, 4))))
    if draw(st.booleans()):
        X[rng.integers(len(X))] = X[rng.integers(len(X))]
    Y = rng.choice([-1.0, 1.0], size=(len(groups), draw(st.integers(1, 5))))
    return X, Y, groups


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([0.3, 1.0, 3.0]), st.sampled_from([1e-2, 1.0]))
def test_all_rows_closed_form_is_refitting_each_fold(
    problem: tuple[Array, Array, Ints], width: float, ridge: float
) -> None:
    X, Y, groups = problem
    folds = AllRowsFolds.factor(X, group_rows(groups), kernel=gaussian(X, width), ridge=ridge)
    held_out = folds.held_out_scores(Y)
    expected = refit_all_rows(X, Y, groups, width, ridge)
    np.testing.assert_allclose(held_out.scores, expected, atol=1e-8)
    assert (held_out.jitter == 0).all()
    # Further targets use the same factorisation.
    np.testing.assert_allclose(folds.held_out_scores(-2 * Y).scores, -2 * expected, atol=1e-8)


@settings(max_examples=150, deadline=None)
@given(problems(), st.data())
def test_nystrom_closed_form_is_refitting_each_fold_without_its_centres(
    problem: tuple[Array, Array, Ints], data: st.DataObject
) -> None:
    X, Y, groups = problem
    X = 4 * X
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n_centres = data.draw(st.integers(2, len(X)))
    centres = rng.permutation(len(X))[:n_centres]
    # Where centres nearly coincide, two ways of solving agree to fewer digits than eight.
    assume(np.linalg.cond(kernel(X[centres], X[centres], 0.5)) < 1e6)
    if len(np.unique(groups[centres])) == 1:
        with pytest.raises(InputError, match="all centres lie in group"):
            NystromFolds.factor(X, group_rows(groups), centres, kernel=gaussian(X, 0.5), ridge=0.5)
        return
    folds = NystromFolds.factor(X, group_rows(groups), centres, kernel=gaussian(X, 0.5), ridge=0.5)
    held_out = folds.held_out_scores(Y)
    expected = refit_nystrom(X, Y, groups, centres, 0.5, 0.5)
    np.testing.assert_allclose(held_out.scores, expected, atol=1e-8)


def test_rows_that_occur_twice_in_two_groups_are_handled_exactly() -> None:
    rng = np.random.default_rng(3)
    X = np.repeat(rng.standard_normal((12, 3)), 3, axis=0)
    groups = np.tile([0, 1, 2], 12)
    Y = rng.choice([-1.0, 1.0], size=(36, 2))
    one = gaussian(X, 1.0)
    scores = AllRowsFolds.factor(X, group_rows(groups), kernel=one, ridge=0.1).held_out_scores(Y)
    np.testing.assert_allclose(scores.scores, refit_all_rows(X, Y, groups, 1.0, 0.1), atol=1e-8)
    # Each row is a centre once: left out with its group, its copy is not.
    centres = np.arange(12) * 3 + rng.integers(3, size=12)
    nystrom = NystromFolds.factor(X, group_rows(groups), centres, kernel=one, ridge=0.1)
    np.testing.assert_allclose(
        nystrom.held_out_scores(Y).scores,
        refit_nystrom(X, Y, groups, centres, 1.0, 0.1),
        atol=1e-8,
    )


def test_nystrom_folds_equal_the_falkon_library() -> None:
    with np.load(shared("data", "falkon", "logo_reference.npz")) as reference:
        X, y, groups, centres = (reference[name] for name in ("X", "y", "group", "centres"))
        width, penalty = float(reference["sigma"]), float(reference["penalty"])
        expected = reference["scores"]
    # The library took penalty x 550 training rows.
    folds = NystromFolds.factor(
        X, group_rows(groups), centres, kernel=gaussian(X, width), ridge=penalty * 550
    )
    Y = np.where(y[:, None] == np.arange(4), 1.0, -1.0)
    held_out = folds.held_out_scores(Y)
    np.testing.assert_allclose(held_out.scores, expected, atol=1e-6)
    assert (held_out.jitter == 0).all()


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
    head = FalkonClassifier(width=0.7, penalty=1e-3, n_centres=n_centres, random_state=5)
    results = leave_one_group_out(head, X, y, groups)
    assert_consistent(results, y, groups)
    assert not hasattr(head, "centres_")
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    Y = np.where(y[:, None] == np.unique(y), 1.0, -1.0)
    codes = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    ridge = 1e-3 * len(X)
    if n_centres is None:
        expected = refit_all_rows(unit, Y, codes, 0.7, ridge)
    else:
        drawn = FalkonClassifier(n_centres=25, random_state=5).fit(X, y).centres_
        rows = [int(np.abs(unit - centre).sum(axis=1).argmin()) for centre in drawn]
        expected = refit_nystrom(unit, Y, codes, np.array(rows), 0.7, ridge)
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


def test_refitting_falkon_agrees_with_the_closed_form_when_the_ridge_is_made_equal() -> None:
    X, y, groups = labelled()
    results = leave_one_group_out(FalkonClassifier(penalty=1e-3), X, y, groups)
    refitted = refit_each_fold(FalkonClassifier(penalty=1e-3), X, y, groups)
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

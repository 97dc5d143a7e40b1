"""Tuning of the logistic regression: against refitting, and folds that must learn nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.heads.nested import selection_loss
from toptune.heads.parameters import logistic_tuning
from toptune.heads.parameters.head import LOGISTIC_CANDIDATES
from toptune.heads.parameters.logistic import LogisticClassifier
from toptune.heads.parameters.logistic_tuning import tune_logistic
from toptune.heads.rows import LabelledRows, group_rows

CANDIDATES = ({"C": 1.0}, {"C": 0.03}, {"C": 8.0})


def data(seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Nine groups of three classes with one to three rows each, some values not defined."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(9), [1, 2, 3, 1, 1, 2, 1, 3, 1])
    y = group % 3
    X = rng.standard_normal((len(y), 5)) + 1.2 * np.eye(5)[y]
    X[rng.random(X.shape) < 0.1] = np.nan
    return X, np.array(list("abc"))[y], group


def refit(C: float, X: Any, y: Any, train: NDArray[np.bool_], test: NDArray[np.bool_]) -> Any:
    return LogisticClassifier(C=C).fit(X[train], y[train]).class_scores(X[test])


def rows_of(X: Any, y: Any, group: Any, unit: Any = None) -> LabelledRows:
    return LabelledRows(X, y, group_rows(group), group if unit is None else unit)


def test_every_fold_is_what_refitting_gives() -> None:
    X, y, group = data()
    codes = np.unique(y, return_inverse=True)[1]
    nested, told = tune_logistic(LogisticClassifier(), rows_of(X, y, group), CANDIDATES)
    final = np.empty((3, len(y), 3))
    for g in range(9):
        inner = np.full((3, len(y), 3), np.nan)
        for p, candidate in enumerate(CANDIDATES):
            final[p, group == g] = refit(candidate["C"], X, y, group != g, group == g)
            for h in set(range(9)) - {g}:
                train = (group != g) & (group != h)
                inner[p, group == h] = refit(candidate["C"], X, y, train, group == h)
        losses = [selection_loss(inner[p].astype(np.float32), codes, group) for p in range(3)]
        np.testing.assert_allclose(nested.loss[:, g], losses, rtol=1e-4)
        chosen = int(np.argmin(losses))
        assert nested.choice[g] == chosen
        np.testing.assert_allclose(nested.scores[group == g], final[chosen, group == g], atol=1e-4)
        np.testing.assert_allclose(nested.inner_scores[g], inner[chosen], atol=1e-4)
    final_loss = [selection_loss(scores, codes, group) for scores in final]
    np.testing.assert_allclose(nested.final_loss, final_loss, rtol=1e-4)
    assert nested.final_choice == int(np.argmin(final_loss))
    np.testing.assert_allclose(nested.final_scores, final[nested.final_choice], atol=1e-4)
    np.testing.assert_array_equal(told.predicted[0], nested.scores.argmax(axis=1))
    for unit in range(9):
        mean = nested.scores[group == unit].mean(axis=0)
        np.testing.assert_allclose(told.mean_scores[0, unit], mean, rtol=1e-5)


def test_a_shuffle_is_told_as_if_its_labels_were_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic_tuning, "_MOST_TOGETHER", 2)
    X, y, group = data(1)
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(np.arange(9) % 3) for _ in range(5)])
    seen: list[tuple[int, int]] = []
    _, told = tune_logistic(
        LogisticClassifier(), rows_of(X, y, group), CANDIDATES, shuffled=shuffled,
        progress=lambda _, done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 6), (3, 6), (5, 6), (6, 6)]
    for line, labels in enumerate(shuffled, 1):
        other = np.array(list("abc"))[labels[group]]
        nested, alone = tune_logistic(LogisticClassifier(), rows_of(X, other, group), CANDIDATES)
        np.testing.assert_array_equal(told.predicted[line], nested.scores.argmax(axis=1))
        np.testing.assert_allclose(told.mean_scores[line], alone.mean_scores[0], rtol=1e-5)


def test_the_order_of_candidates_does_not_matter() -> None:
    X, y, group = data(2)
    one, _ = tune_logistic(LogisticClassifier(), rows_of(X, y, group), CANDIDATES)
    order = [2, 0, 1]
    other, _ = tune_logistic(
        LogisticClassifier(), rows_of(X, y, group), [CANDIDATES[k] for k in order]
    )
    np.testing.assert_allclose(other.loss, one.loss[order], rtol=1e-6)
    assert [order[k] for k in other.choice] == one.choice.tolist()
    np.testing.assert_allclose(other.scores, one.scores, atol=1e-6)


def test_nothing_of_a_left_out_group_touches_its_fold() -> None:
    X, y, group = data(3)
    changed, others = X.copy(), y.copy()
    changed[group == 4] = [[1e6, np.nan, -3e5, 0.0, 7.0]]
    others[group == 4] = "c"
    before, _ = tune_logistic(LogisticClassifier(), rows_of(X, y, group), CANDIDATES)
    after, _ = tune_logistic(LogisticClassifier(), rows_of(changed, others, group), CANDIDATES)
    assert after.choice[4] == before.choice[4]
    np.testing.assert_array_equal(after.loss[:, 4], before.loss[:, 4])
    rows = group != 4
    np.testing.assert_array_equal(after.inner_scores[4][rows], before.inner_scores[4][rows])
    # The fold's model is the same: rows it never saw only read differently.
    assert not np.array_equal(after.scores[~rows], before.scores[~rows])


def test_what_identifies_the_device_and_nothing_else_scores_at_chance() -> None:
    """A tripwire for leaks: any fold that saw its own device would be right every time."""
    group = np.repeat(np.arange(24), 3)
    y = np.array(list("abc"))[group % 3]
    X = np.eye(24)[group] + 0.01 * np.random.default_rng(0).standard_normal((72, 24))
    nested, _ = tune_logistic(LogisticClassifier(), rows_of(X, y, group), LOGISTIC_CANDIDATES)
    right = np.array(list("abc"))[nested.scores.argmax(axis=1)] == y
    assert right.mean() <= 0.45
    seen = LogisticClassifier(C=10.0).fit(X, y).predict(X) == y
    assert seen.all()


def test_one_candidate_is_calibrated_but_not_tuned() -> None:
    X, y, group = data(4)
    shuffled = np.array([np.roll(np.arange(9) % 3, 1)])
    nested, told = tune_logistic(
        LogisticClassifier(C=0.5), rows_of(X, y, group), [{}], shuffled=shuffled
    )
    assert not nested.choice.any()
    assert np.isfinite(nested.inner_scores[2][group != 2]).all()
    rows = group == 0
    np.testing.assert_allclose(nested.scores[rows], refit(0.5, X, y, ~rows, rows), atol=1e-5)
    assert told.predicted.shape == (2, len(y))


def test_what_cannot_be_tuned_is_refused() -> None:
    X, y, group = data()
    head = LogisticClassifier()
    with pytest.raises(InputError, match="three groups, got 2"):
        tune_logistic(head, rows_of(X, y, group % 2, group), CANDIDATES)
    with pytest.raises(InputError, match="at least one candidate"):
        tune_logistic(head, rows_of(X, y, group), [])
    with pytest.raises(InputError, match="C must be above 0, got -1"):
        tune_logistic(head, rows_of(X, y, group), [{"C": -1.0}])

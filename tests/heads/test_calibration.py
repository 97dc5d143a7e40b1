"""Temperature scaling against brute force and against temperatures that are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from toptune.errors import ToptuneError
from toptune.heads.calibration import (
    HIGHEST,
    LOWEST,
    calibrate_folds,
    calibrated,
    fit_inverse_temperature,
)


def naive_loss(a: float, scores: Any, codes: Any, unit: Any) -> float:
    """Negative log-likelihood, row by row; every unit counts once."""
    by_unit: dict[int, list[float]] = {}
    for row, code, number in zip(scores, codes, unit, strict=True):
        if not np.isnan(row).any():
            loss = -log_softmax(a * np.asarray(row, np.float64))[code]
            by_unit.setdefault(int(number), []).append(float(loss))
    return float(np.mean([np.mean(losses) for losses in by_unit.values()]))


def bounds_of(scores: NDArray[np.float64]) -> tuple[float, float]:
    spread = float(np.median(scores.max(axis=1) - scores.mean(axis=1)))
    return LOWEST / spread, HIGHEST / spread


def draw(seed: int, n: int = 60, k: int = 3) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, k, n)
    signal = rng.uniform(-0.5, 3) * (codes[:, None] == np.arange(k))
    scores = (rng.normal(size=(n, k)) + signal) * 10 ** rng.uniform(-2, 2)
    return scores, codes, rng.integers(0, 6, n) * 7


@pytest.mark.parametrize("seed", range(40))
def test_the_loss_is_smallest_where_brute_force_finds_it(seed: int) -> None:
    scores, codes, unit = draw(seed)
    a = fit_inverse_temperature(scores, codes, unit)
    low, high = bounds_of(scores)
    grid = np.geomspace(low, high, 100)
    losses = [naive_loss(x, scores, codes, unit) for x in grid]
    best = int(np.argmin(losses))
    found = minimize_scalar(
        lambda log_a: naive_loss(math.exp(log_a), scores, codes, unit),
        bounds=np.log([grid[max(best - 1, 0)], grid[min(best + 1, 99)]]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert low <= a <= high
    assert naive_loss(a, scores, codes, unit) <= found.fun + 1e-12
    # The loss is flat at its minimum: brute force finds the place to half the digits.
    assert a == pytest.approx(math.exp(found.x), rel=1e-5)


@pytest.mark.parametrize("true_a", [0.2, 1.0, 6.0])
def test_a_known_temperature_is_recovered(true_a: float) -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(40_000, 4))
    p = softmax(true_a * scores, axis=1)
    codes = (rng.random((len(p), 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    a = fit_inverse_temperature(scores, codes, np.arange(len(codes)) % 50)
    # Its standard error is 1 / sqrt(information), under 2 % of a here.
    assert a == pytest.approx(true_a, rel=0.06)
    # Then rows that say 0.7 are right seven times in ten.
    stated = calibrated(scores, a).max(axis=1)
    right = scores.argmax(axis=1) == codes
    for level in (0.5, 0.7, 0.9):
        near = np.abs(stated - level) < 0.05
        if near.sum() > 1000:
            assert right[near].mean() == pytest.approx(stated[near].mean(), abs=0.03)


def test_every_unit_counts_once_however_many_windows_it_has() -> None:
    scores, codes, unit = draw(8)
    once = fit_inverse_temperature(scores, codes, unit)
    again = np.concatenate([np.arange(len(codes)), *[np.flatnonzero(unit == 7)] * 9])
    repeated = fit_inverse_temperature(scores[again], codes[again], unit[again])
    assert repeated == pytest.approx(once, rel=1e-6)
    plain = fit_inverse_temperature(scores[again], codes[again], np.arange(len(again)))
    assert plain != pytest.approx(once, rel=1e-3)


def test_rows_without_scores_are_left_out() -> None:
    scores, codes, unit = draw(9)
    more = np.concatenate([scores, np.full((5, 3), np.nan)])
    found = fit_inverse_temperature(more, np.append(codes, [0] * 5), np.append(unit, [99] * 5))
    assert found == fit_inverse_temperature(scores, codes, unit)
    with pytest.raises(ToptuneError, match="no held-out scores"):
        fit_inverse_temperature(more[-5:], codes[:5], unit[:5])
    with pytest.raises(ToptuneError, match="infinite"):
        fit_inverse_temperature(np.array([[0.0, np.inf]]), codes[:1], unit[:1])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 0.5, 40.0]))
def test_no_prediction_changes_and_rows_sum_to_one(seed: int, factor: float) -> None:
    scores, codes, unit = draw(seed, n=30)
    a = fit_inverse_temperature(scores, codes, unit)
    probabilities = calibrated(scores, a)
    assert probabilities.argmax(axis=1).tolist() == scores.argmax(axis=1).tolist()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    # Neither the scores' unit nor what a row's scores have in common is of any moment.
    shifted = factor * scores + np.arange(30)[:, None]
    np.testing.assert_allclose(
        calibrated(shifted, fit_inverse_temperature(shifted, codes, unit)), probabilities, atol=1e-5
    )


def test_scores_that_are_always_right_stop_at_the_upper_bound() -> None:
    codes = np.arange(20) % 2
    scores = np.where(codes[:, None] == np.arange(2), 3.0, 1.0)
    a = fit_inverse_temperature(scores, codes, np.arange(20) // 4)
    assert a == HIGHEST / 1.0
    assert calibrated(scores, a).max() < 1


def test_scores_that_are_always_wrong_or_blind_stop_at_the_lower_bound() -> None:
    codes = np.arange(20) % 2
    wrong = np.where(codes[:, None] == np.arange(2), 1.0, 3.0)
    a = fit_inverse_temperature(wrong, codes, np.arange(20) // 4)
    assert a == LOWEST / 1.0
    np.testing.assert_allclose(calibrated(wrong, a), 0.5, atol=0.01)
    blind = np.tile([3.0, 1.0], (20, 1))
    assert fit_inverse_temperature(blind, codes, np.zeros(20, np.int64)) == LOWEST


def test_one_unit_and_one_row_can_be_fitted() -> None:
    scores, codes, _ = draw(11)
    a = fit_inverse_temperature(scores, codes, np.zeros(len(codes), np.int64))
    direct = minimize_scalar(
        lambda x: naive_loss(x, scores, codes, np.zeros(len(codes))),
        bounds=bounds_of(scores),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert a == pytest.approx(direct.x, rel=1e-4)
    one = np.array([[0.0, 2.0]])
    assert fit_inverse_temperature(one, np.array([1]), np.array([5])) == HIGHEST
    assert fit_inverse_temperature(one, np.array([0]), np.array([5])) == LOWEST


def test_equal_scores_leave_the_temperature_at_one() -> None:
    equal = np.full((6, 3), 0.1, np.float32)
    a = fit_inverse_temperature(equal, np.arange(6) % 3, np.arange(6))
    assert a == 1.0
    np.testing.assert_allclose(calibrated(equal, a), 1 / 3)
    # Rows that say nothing do not move the bounds of those that do.
    some = np.concatenate([equal, [[0.0, 0.0, 3.0]]])
    assert fit_inverse_temperature(some, np.array([0, 1, 2] * 2 + [2]), np.arange(7)) == HIGHEST / 2


def draw_folds(seed: int) -> tuple[Any, Any, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    n, g, k = 80, 5, 3
    group_codes = rng.permutation(np.arange(n) % g)
    codes = (group_codes + rng.integers(0, 2, n)) % k
    unit = group_codes * k + codes
    signal = 1.5 * (codes[:, None] == np.arange(k))
    inner = (rng.normal(size=(g, n, k)) + signal).astype(np.float32)
    inner[group_codes, np.arange(n)] = np.nan
    return inner, codes, unit, group_codes, rng.normal(size=(n, k)) + signal


def test_each_fold_is_calibrated_on_its_training_groups() -> None:
    inner, codes, unit, group_codes, scores = draw_folds(0)
    found = calibrate_folds(inner, codes, unit, group_codes, scores)
    assert found.probabilities.dtype == np.float64
    for group in range(5):
        others = group_codes != group
        a = fit_inverse_temperature(inner[group][others], codes[others], unit[others])
        assert found.inverse_temperature[group] == a
        expected = softmax(a * scores[~others], axis=1)
        np.testing.assert_allclose(found.probabilities[~others], expected, rtol=1e-12)
    assert len(np.unique(found.inverse_temperature)) == 5


@pytest.mark.parametrize("group", range(5))
def test_a_groups_own_labels_and_scores_do_not_touch_its_temperature(group: int) -> None:
    inner, codes, unit, group_codes, scores = draw_folds(1)
    before = calibrate_folds(inner, codes, unit, group_codes, scores)
    own = group_codes == group
    rng = np.random.default_rng(group)
    codes, unit, inner, scores = codes.copy(), unit.copy(), inner.copy(), scores.copy()
    codes[own] = (codes[own] + 1) % 3
    unit[own] = group * 3 + codes[own]
    # Not NaN as they should be: even then they are not looked at.
    inner[group, own] = rng.normal(size=(int(own.sum()), 3)) * 100
    scores[own] = rng.normal(size=(int(own.sum()), 3))
    after = calibrate_folds(inner, codes, unit, group_codes, scores)
    assert after.inverse_temperature[group] == before.inverse_temperature[group]
    np.testing.assert_array_equal(after.probabilities[own].argmax(1), scores[own].argmax(1))
    # The others learn from it, so that the change was one that could be seen.
    others = np.arange(5) != group
    assert np.all(after.inverse_temperature[others] != before.inverse_temperature[others])

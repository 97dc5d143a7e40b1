"""Temperature scaling: calibrated probabilities, fitted on held-out scores only.

From scores of windows by models that have not seen them follows one number a > 0, and probabilities
softmax(a x scores) whose rows sum to one (Guo et al. 2017, On calibration of modern neural
networks, ICML). The order of a row's scores is kept, so no prediction changes. a is the inverse of
what Guo et al. call the temperature: the loss is convex in a, and not in its inverse.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, root_scalar
from scipy.special import softmax

from toptune.errors import ToptuneError

# Bounds of a, in units of one over the scores' own spread (`_spread`). At the lower one, the middle
# row's probabilities are equal within 1 %. At the upper one, its top class is 10 in log-odds above
# the average one (20 above the other of two): more certain than any number of cultures can make it.
LOWEST, HIGHEST = 0.01, 10.0

# Relative to a. The loss is flat at its minimum: this is far below what its value can show.
_PRECISION = 1e-8
# The least that scipy takes: a's own size decides, not an absolute distance.
_NO_DISTANCE = 1e-300


class CalibratedFolds(NamedTuple):
    """Probabilities of held-out rows, each calibrated without its own group."""

    probabilities: NDArray[np.float64]  # (n, k): rows sum to one
    inverse_temperature: NDArray[np.float64]  # (g,): of each fold


def fit_inverse_temperature(
    scores: NDArray[np.floating[Any]], codes: NDArray[np.int64], unit: NDArray[np.int64]
) -> float:
    """Find the a > 0 by which softmax(a x scores) fits the classes best.

    It minimises the mean negative log-likelihood of a unit's rows, averaged over units, so that
    a long recording weighs as much as a short one. The loss is convex in a; its derivative's zero
    is found by Newton's method, or between the bounds where that does not end. Scores that separate
    all classes would send a to infinity, scores that carry no or the wrong information to 0 or
    below: a is kept between `LOWEST` and `HIGHEST`, over the spread of the scores.

    `scores`, (n, k), are of models that have not seen the rows; rows with NaN are left out. `codes`
    and `unit`, (n,), number each row's class, and its device and label. Where all scores of every
    row are equal it is 1: no a changes anything. No row left, or an infinite score, is an error.
    """
    seen = ~np.isnan(scores).any(axis=1)
    if not seen.any():
        raise ToptuneError("there are no held-out scores to calibrate on")
    S = scores[seen].astype(np.float64)
    if not np.isfinite(S).all():
        raise ToptuneError("scores to calibrate on are infinite")
    spread = _spread(S)
    if spread == 0:
        return 1.0
    loss = _Loss(S, codes[seen], unit[seen])
    return _minimum(loss, LOWEST / spread, HIGHEST / spread)


def calibrated(
    scores: NDArray[np.floating[Any]], inverse_temperature: float
) -> NDArray[np.float64]:
    """Probabilities softmax(a x scores), (n, k) float64, with a of `fit_inverse_temperature`."""
    probabilities: NDArray[np.float64] = softmax(
        inverse_temperature * scores.astype(np.float64), axis=1
    )
    return probabilities


def calibrate_folds(
    inner_scores: NDArray[np.float32],
    codes: NDArray[np.int64],
    unit: NDArray[np.int64],
    group_codes: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> CalibratedFolds:
    """Calibrate each fold's held-out scores on its training groups.

    The a of fold g comes from rows of the other groups, scored by models that have seen neither g
    nor the row's own group; nothing of group g, labels or scores, touches it. Inner scores,
    (g, n, k), and held-out scores, (n, k), are those of `NestedScores`.
    """
    n_groups = len(inner_scores)
    probabilities = np.empty(scores.shape)
    inverse_temperature = np.empty(n_groups)
    for group in range(n_groups):
        own = group_codes == group
        a = fit_inverse_temperature(inner_scores[group, ~own], codes[~own], unit[~own])
        inverse_temperature[group] = a
        probabilities[own] = calibrated(scores[own], a)
    return CalibratedFolds(probabilities, inverse_temperature)


def _spread(S: NDArray[np.float64]) -> float:
    """How far the middle row's top score lies above its mean; of rows that are not all equal.

    The median, so that a few wild rows do not move the bounds of all others.
    """
    height = S.max(axis=1) - S.mean(axis=1)
    # Equal scores have a mean that differs from them by rounding.
    uneven = np.ptp(S, axis=1) > 0
    return float(np.median(height[uneven])) if uneven.any() else 0.0


class _Loss:
    """Slope and curvature of the mean negative log-likelihood of softmax(a x scores)."""

    def __init__(
        self, S: NDArray[np.float64], codes: NDArray[np.int64], unit: NDArray[np.int64]
    ) -> None:
        _, rows_unit, sizes = np.unique(unit, return_inverse=True, return_counts=True)
        self.weights = 1.0 / (len(sizes) * sizes[rows_unit])
        self.S = S - S.max(axis=1, keepdims=True)
        self.true = self.S[np.arange(len(S)), codes]

    def slope_and_curvature(self, a: float) -> tuple[float, float]:
        p = np.exp(a * self.S)
        p /= p.sum(axis=1, keepdims=True)
        mean = np.einsum("nk,nk->n", p, self.S)
        spread = self.S - mean[:, None]
        variance = np.einsum("nk,nk,nk->n", p, spread, spread)
        return float(self.weights @ (mean - self.true)), float(self.weights @ variance)


def _minimum(loss: _Loss, low: float, high: float) -> float:
    """Where a convex loss is smallest between two bounds."""
    if loss.slope_and_curvature(low)[0] >= 0:
        return low
    if loss.slope_and_curvature(high)[0] <= 0:
        return high
    start = float(np.sqrt(low * high))
    # Steps may leave the bounds, to where the curvature is 0; then the bounds are searched instead.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = root_scalar(
            loss.slope_and_curvature,
            method="newton",
            fprime=True,
            x0=start,
            xtol=_NO_DISTANCE,
            rtol=_PRECISION,
        )
    if found.converged and low <= found.root <= high:
        return float(found.root)
    return float(brentq(lambda a: loss.slope_and_curvature(a)[0], low, high, xtol=_NO_DISTANCE))

"""How well probabilities are calibrated: reliability, expected calibration error and Brier's score.

Of all errors smaller is better. The expected calibration error lies between 0 and 1, Brier's score
between 0 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

N_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Predicted confidence and accuracy, bin by bin.

    Attributes
    ----------
    edges : (bins + 1,) float64
        Bin i holds confidences above ``edges[i]`` up to and with ``edges[i + 1]``; the first holds
        0 as well.
    count : (bins,) int64
        Predictions in it.
    share : (bins,) float64
        What they weigh; sums to one.
    confidence, accuracy : (bins,) float64
        Their weighted means; NaN in an empty bin.
    """

    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    share: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of accuracy and confidence, each bin by its share.

        Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning, AAAI;
        Guo et al. 2017, On calibration of modern neural networks, ICML. Of few predictions it is
        above 0 by chance alone, however well they are calibrated.
        """
        filled = self.count > 0
        distance = np.abs(self.accuracy - self.confidence)[filled]
        return float(self.share[filled] @ distance)


class CalibrationQuality(NamedTuple):
    """How well a set of probabilities is calibrated.

    Attributes
    ----------
    reliability : Reliability
    brier : float
        Mean squared distance of probabilities and truth, summed over classes (Brier 1950,
        Verification of forecasts expressed in terms of probability, Monthly Weather Review
        78:1-3). A guess of 1 / classes for each gets 1 - 1 / classes.
    """

    reliability: Reliability
    brier: float

    @property
    def error(self) -> float:
        """Expected calibration error."""
        return self.reliability.expected_calibration_error


def calibration_quality(
    label: NDArray[Any],
    prediction: NDArray[Any],
    probabilities: NDArray[np.float64],
    classes: NDArray[Any],
    weights: NDArray[np.float64] | None = None,
) -> CalibrationQuality:
    """Compare probabilities with what was right.

    Parameters
    ----------
    label, prediction : (n,) str
        Confidence is the probability of the predicted class; a majority's need not be the largest.
    probabilities : (n, k) float64
    classes : (k,) str
        Its columns, sorted.
    weights : (n,) float64, optional
        How much each prediction counts; equal where not given.
    """
    confidence = (probabilities * (prediction[:, None] == classes)).sum(axis=1)
    # By hand: scikit-learn's warns of probabilities that were written with six digits.
    squared: NDArray[np.float64] = (probabilities - (label[:, None] == classes)) ** 2
    brier = float(np.average(squared.sum(axis=1), weights=weights))
    return CalibrationQuality(reliability(confidence, label == prediction, weights), brier)


def reliability(
    confidence: NDArray[np.float64],
    right: NDArray[np.bool_],
    weights: NDArray[np.float64] | None = None,
    n_bins: int = N_BINS,
) -> Reliability:
    """Put predictions into equal bins of their confidence.

    Parameters
    ----------
    confidence : (n,) float64
        Probability of the predicted class, 0 to 1.
    right : (n,) bool
    weights : (n,) float64, optional
        How much each counts; equal where not given.
    n_bins : int
        Guo et al. take 15.
    """
    weights = np.full(len(right), 1 / len(right)) if weights is None else weights / weights.sum()
    edges = np.arange(n_bins + 1) / n_bins
    # Probabilities that sum to one may be above it by rounding.
    row = (np.searchsorted(edges, confidence, side="left") - 1).clip(0, n_bins - 1)
    count = np.bincount(row, minlength=n_bins).astype(np.int64)
    share = np.bincount(row, weights, n_bins).astype(np.float64)
    whole = np.where(count > 0, share, np.nan)
    return Reliability(
        edges,
        count,
        share,
        np.bincount(row, weights * confidence, n_bins) / whole,
        np.bincount(row, weights * right, n_bins) / whole,
    )

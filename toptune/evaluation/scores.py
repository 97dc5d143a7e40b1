"""How good the held-out predictions are, per window and per device.

Scores are shares between 0 and 1 and counts. The windows of a device vote for its verdict; where
one device carries several labels, as in a dose series, those of each device and label.

Calibration is judged by reliability, expected calibration error (0 to 1) and Brier's score (0 to
2); of both errors smaller is better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from toptune.errors import InputErrors

# Guo et al. take 15 bins, of thousands of predictions. With 25 devices, 15 bins would show an error
# of 0.19 of probabilities that are right; with five predictions a bin it is 0.13.
N_BINS = 15
_PREDICTIONS_A_BIN = 5
_N_BOOTSTRAPS = 10_000
_BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Reliability:
    """Predicted confidence and accuracy, bin by bin."""

    # (bins + 1,): bin i holds confidences above ``edges[i]`` up to and with ``edges[i + 1]``; the
    # first holds 0 as well
    edges: NDArray[np.float64]
    count: NDArray[np.int64]  # (bins,): predictions in it
    share: NDArray[np.float64]  # (bins,): what they weigh; sums to one
    # (bins,): their weighted means; NaN in an empty bin
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
    """How well a set of probabilities is calibrated."""

    reliability: Reliability
    # Mean squared distance of probabilities and truth, summed over classes (Brier 1950,
    # Verification of forecasts expressed in terms of probability, Monthly Weather Review 78:1-3). A
    # guess of 1 / classes for each gets 1 - 1 / classes.
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
    """Compare probabilities, (n, k), with what was right, each prediction counting by its weight.

    Confidence is the probability of the predicted class; a majority's need not be the largest.
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
    n_bins: int | None = None,
) -> Reliability:
    """Put predictions into bins of their confidence, (n,), which are of equal width.

    None: `N_BINS`, or fewer where there would be less than five predictions for each.
    """
    if n_bins is None:
        n_bins = min(N_BINS, max(1, len(right) // _PREDICTIONS_A_BIN))
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


class HeldOutWindows(NamedTuple):
    """Held-out predictions, one row a window."""

    # Label and prediction: (n,) str
    label: NDArray[Any]
    prediction: NDArray[Any]
    probabilities: NDArray[np.float64]  # (n, k): columns as `classes`
    # (n,) str: where it was recorded, and what was left out together with it
    device: NDArray[Any]
    group: NDArray[Any]
    classes: NDArray[Any]  # (k,) str


class Verdict(NamedTuple):
    """What the windows of one device (and label) say together."""

    device: str
    label: str
    group: str
    n_windows: int
    # The class most windows have; of equals the one with the larger mean probability, of those
    # still equal the first by name
    prediction: str
    votes: NDArray[np.int64]  # (k,): windows per class
    probabilities: NDArray[np.float64]  # (k,): mean over the windows


class GroupScore(NamedTuple):
    """How many windows of a left-out group were right."""

    group: str
    n_windows: int
    n_correct: int

    @property
    def accuracy(self) -> float:
        """Share of its windows that were right."""
        return self.n_correct / self.n_windows


@dataclass(frozen=True)
class Scores:
    """Every score of a leave-one-group-out."""

    classes: tuple[str, ...]
    groups: tuple[GroupScore, ...]
    verdicts: tuple[Verdict, ...]  # sorted by device, then label
    n_devices: int  # fewer than verdicts where devices have several labels
    # Of the groups' accuracies, each group counting once; SD with n - 1 in the denominator
    window_accuracy_mean: float
    window_accuracy_sd: float
    device_accuracy: float  # share of verdicts that are right
    device_accuracy_ci95: tuple[float, float]  # (low, high): `accuracy_interval` of the verdicts
    # Of the verdicts: mean recall and mean F1 over classes
    balanced_accuracy: float
    macro_f1: float
    # The same of windows, all counting once
    window_balanced_accuracy: float
    window_macro_f1: float
    chance: float  # accuracy of always predicting the commonest class: its share of the verdicts
    chance_balanced: float  # balanced accuracy of any constant or blind guess: 1 / classes
    # Expected calibration error: the mean distance of the predicted class's probability from the
    # accuracy at that probability. Every device (and label) counts once, its windows in equal
    # shares, as in calibration. Few devices have an error above 0 however well calibrated.
    window_ece: float
    device_ece: float
    # Brier's score, 0 to 2, counted likewise
    window_brier: float
    device_brier: float
    # What the expected calibration errors were made of
    window_reliability: Reliability
    device_reliability: Reliability
    # (k, k): rows are labels, columns predictions
    window_confusion: NDArray[np.int64]
    device_confusion: NDArray[np.int64]


def score(windows: HeldOutWindows) -> Scores:
    """Score held-out predictions of at least two groups, and every class among the labels."""
    classes = [str(name) for name in windows.classes]
    groups = _group_scores(windows)
    accuracies = [group.accuracy for group in groups]
    verdicts = device_verdicts(windows)
    truth = [verdict.label for verdict in verdicts]
    named = [verdict.prediction for verdict in verdicts]
    right = np.array([a == b for a, b in zip(truth, named, strict=True)])
    of_windows, of_devices = _window_quality(windows), _device_quality(verdicts, windows.classes)
    return Scores(
        classes=tuple(classes),
        groups=groups,
        verdicts=verdicts,
        n_devices=len({verdict.device for verdict in verdicts}),
        window_accuracy_mean=float(np.mean(accuracies)),
        window_accuracy_sd=float(np.std(accuracies, ddof=1)),
        device_accuracy=float(right.mean()),
        device_accuracy_ci95=accuracy_interval(right, [verdict.device for verdict in verdicts]),
        balanced_accuracy=float(balanced_accuracy_score(truth, named)),
        macro_f1=_macro_f1(truth, named, classes),
        window_balanced_accuracy=float(balanced_accuracy_score(windows.label, windows.prediction)),
        window_macro_f1=_macro_f1(windows.label, windows.prediction, classes),
        chance=max(Counter(truth).values()) / len(truth),
        chance_balanced=1 / len(classes),
        window_ece=of_windows.error,
        device_ece=of_devices.error,
        window_brier=of_windows.brier,
        device_brier=of_devices.brier,
        window_reliability=of_windows.reliability,
        device_reliability=of_devices.reliability,
        window_confusion=confusion_matrix(windows.label, windows.prediction, labels=classes),
        device_confusion=confusion_matrix(truth, named, labels=classes),
    )


def accuracy_interval(
    right: NDArray[np.bool_], devices: Sequence[str] | NDArray[Any]
) -> tuple[float, float]:
    """Confidence interval, 95 %, of the share of verdicts that are right.

    Verdicts of different devices are independent, those of one device need not be: a culture that
    is unlike all others may be misclassified with and without the drug.

    - Where each device has one verdict: Wilson's score interval (Wilson 1927, J. Am. Stat. Assoc.
      22:209-212), ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``.
    - Otherwise percentiles 2.5 and 97.5 of a bootstrap over devices (Efron 1979, Ann. Stat. 7:1-26;
      Field & Welsh 2007, J. R. Stat. Soc. B 69:369-390, for clusters): devices are drawn with
      replacement, each with all its verdicts, 10,000 times with a fixed seed. Few devices make
      percentiles too narrow, so the interval also covers Wilson's of the verdicts as if they were
      independent, and it excludes no more than if the verdicts of all devices were right (or all
      wrong), which is what Wilson's interval of that many devices excludes.
    - Where all devices have the same share of right verdicts, a bootstrap says nothing: Wilson's
      interval with as many units as there are devices. It is 0.51 to 1 of 4 devices, all right.

    Parameters
    ----------
    right : (n,) bool
        Of each verdict.
    devices : (n,) str
        The device of each verdict.

    Returns
    -------
    tuple of float
        Lower and upper end, 0 to 1.
    """
    _, device = np.unique(np.asarray(devices), return_inverse=True)
    of_device = np.stack([np.bincount(device, weights=right), np.bincount(device)], axis=1)
    n_right, n_devices, n_verdicts = int(right.sum()), len(of_device), len(right)
    if n_devices == n_verdicts:
        return wilson_interval(n_right / n_verdicts, n_verdicts)
    shares = of_device[:, 0] / of_device[:, 1]
    if np.ptp(shares) == 0:
        return wilson_interval(n_right / n_verdicts, n_devices)
    low, high = _bootstrap_interval(of_device)
    as_independent = wilson_interval(n_right / n_verdicts, n_verdicts)
    all_right, all_wrong = wilson_interval(1.0, n_devices), wilson_interval(0.0, n_devices)
    return min(low, as_independent[0], all_right[0]), max(high, as_independent[1], all_wrong[1])


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval, 95 %, of a share of `n` units; see `accuracy_interval`."""
    z = float(ndtri(0.975))
    middle = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    # Exactly at the ends, whatever rounding did.
    return 0.0 if share == 0 else float(low), 1.0 if share == 1 else float(high)


def _bootstrap_interval(of_device: NDArray[Any]) -> tuple[float, float]:
    """Percentiles of the share of right verdicts; `of_device`, (m, 2): right ones, and all."""
    # Devices with equal numbers are drawn together.
    kinds, n_alike = np.unique(of_device, axis=0, return_counts=True)
    n_devices = len(of_device)
    random = np.random.default_rng(_BOOTSTRAP_SEED)
    drawn = random.multinomial(n_devices, n_alike / n_devices, size=_N_BOOTSTRAPS)
    n_right, n_verdicts = (drawn @ kinds).T
    low, high = np.percentile(n_right / n_verdicts, [2.5, 97.5])
    return float(low), float(high)


def _macro_f1(truth: Any, named: Any, classes: list[str]) -> float:
    # A class that is never predicted has no precision; its F1 is 0.
    return float(f1_score(truth, named, labels=classes, average="macro", zero_division=0))


def _window_quality(windows: HeldOutWindows) -> CalibrationQuality:
    _, device = np.unique(windows.device, return_inverse=True)
    names, label = np.unique(windows.label, return_inverse=True)
    unit = device * len(names) + label
    weights = 1 / np.bincount(unit)[unit]
    return calibration_quality(
        windows.label, windows.prediction, windows.probabilities, windows.classes, weights
    )


def _device_quality(verdicts: tuple[Verdict, ...], classes: NDArray[Any]) -> CalibrationQuality:
    return calibration_quality(
        np.array([verdict.label for verdict in verdicts]),
        np.array([verdict.prediction for verdict in verdicts]),
        np.array([verdict.probabilities for verdict in verdicts]),
        classes,
    )


def _group_scores(windows: HeldOutWindows) -> tuple[GroupScore, ...]:
    names, codes = np.unique(windows.group, return_inverse=True)
    right = windows.label == windows.prediction
    sizes = np.bincount(codes)
    n_correct = np.bincount(codes, weights=right)
    return tuple(
        GroupScore(str(name), int(size), int(correct))
        for name, size, correct in zip(names, sizes, n_correct, strict=True)
    )


def device_verdicts(windows: HeldOutWindows) -> tuple[Verdict, ...]:
    """Let the windows of each device, or of each device and label, vote; sorted by both."""
    pairs = sorted(set(zip(windows.device.tolist(), windows.label.tolist(), strict=True)))
    verdicts = []
    for device, label in pairs:
        rows = np.flatnonzero((windows.device == device) & (windows.label == label))
        votes = (windows.prediction[rows, None] == windows.classes).sum(axis=0)
        probabilities = windows.probabilities[rows].mean(axis=0)
        best = majority(votes, probabilities)
        verdicts.append(
            Verdict(
                str(device),
                str(label),
                str(windows.group[rows[0]]),
                len(rows),
                str(windows.classes[best]),
                votes.astype(np.int64),
                probabilities,
            )
        )
    return tuple(verdicts)


def majority(votes: NDArray[np.integer[Any]], probabilities: NDArray[np.float64]) -> int:
    """Find the class with most votes, (k,); of equals the more probable, then the first."""
    return int(np.where(votes == votes.max(), probabilities, -np.inf).argmax())


def merge_classes(
    labels: Sequence[str] | NDArray[Any], merges: Mapping[str, Sequence[str]]
) -> NDArray[Any]:
    """Give several classes one name, before anything is trained.

    Classifiers never see the old classes: this is another task, not another way to count the
    errors of the old one. Takes and gives (n,) str. Raises `InputErrors` of each class nobody has,
    class that is in two merges, and new name that another class has already.
    """
    values = np.asarray(labels, dtype=str)
    classes = sorted(set(values.tolist()))
    members = [member for group in merges.values() for member in group]
    problems = [
        f"cannot merge class {member!r}: there is no such class; there are {', '.join(classes)}"
        + ("; a name with a comma stands between double quotes" if "," in "".join(classes) else "")
        for member in sorted(set(members) - set(classes))
    ]
    problems += [
        f"class {member!r} is merged more than once"
        for member, count in sorted(Counter(members).items())
        if count > 1
    ]
    problems += [
        f"cannot call merged classes {name!r}: another class has that name"
        for name in merges
        if name in classes and name not in members
    ]
    if problems:
        raise InputErrors(problems)
    new_name = {member: name for name, group in merges.items() for member in group}
    return np.array([new_name.get(label, label) for label in values.tolist()], dtype=str)

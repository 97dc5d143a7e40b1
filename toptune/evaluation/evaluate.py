"""How good a classifier is on devices it has not seen: tuned, calibrated, tested for chance.

Whatever is learnt, chosen or scaled for a fold comes from the other groups. Scores are calibrated
on inner folds where the head computes such: Falkon and the logistic regression always, an MLP
where it is tuned, since inner folds cost a network for each pair of groups. Otherwise probabilities
are the classifier's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputErrors
from toptune.evaluation.folds import FoldResults, fold_results
from toptune.evaluation.permutations import (
    Permutations,
    device_accuracies,
    exchangeable_blocks,
    p_value,
    permuted_labels,
    strata_of_units,
)
from toptune.heads.base import Candidate, Head, Progress
from toptune.heads.calibration import calibrate_folds, fit_inverse_temperature
from toptune.heads.nested import NestedScores, Shuffled
from toptune.heads.refitting import HeldOut, verdicts_of
from toptune.heads.rows import LabelledRows, group_rows


class Units(NamedTuple):
    """What carries one label and gets one verdict: a device and label.

    Attributes
    ----------
    of_row : (n,) int64
        Unit of each row, numbered in the order of devices, then labels.
    device, label : (u,) str
    """

    of_row: NDArray[np.int64]
    device: NDArray[Any]
    label: NDArray[Any]

    @classmethod
    def of(cls, device: NDArray[Any], label: NDArray[Any]) -> Units:
        """Find the pairs of device and label, each (n,), that occur."""
        devices, d = np.unique(device, return_inverse=True)
        labels, c = np.unique(label, return_inverse=True)
        pairs, of_row = np.unique(d * len(labels) + c, return_inverse=True)
        return cls(
            of_row.astype(np.int64), devices[pairs // len(labels)], labels[pairs % len(labels)]
        )


@dataclass(frozen=True)
class PermutationTest:
    """How often the procedure does as well under shuffled labels.

    Attributes
    ----------
    p : float
        ``(1 + shuffles whose device accuracy is at least the observed) / (1 + shuffles)``.
    n : int
        Shuffles.
    exact : bool
        They are all ways in which the labels can fall.
    smallest_p : float
        No p below this could be expected, however good the classifier.
    repeats_tuning : bool
        Candidates were chosen anew under each shuffle; otherwise there was nothing to choose.
    note : str or None
        What a user should know of a test that cannot become significant.
    """

    p: float
    n: int
    exact: bool
    smallest_p: float
    repeats_tuning: bool
    note: str | None


@dataclass(frozen=True)
class Evaluation:
    """What leaving out each group once says of a classifier.

    Attributes
    ----------
    folds : FoldResults
        Probabilities are calibrated where `inverse_temperature` is there.
    candidates : tuple of mapping
        What was chosen from; one where nothing was.
    nested : NestedScores or None
        What was chosen; None without inner folds.
    inverse_temperature : (g,) float64 or None
        By which each fold's scores became probabilities.
    final_inverse_temperature : float or None
        The same for the model of all devices.
    test : PermutationTest or None
    """

    folds: FoldResults
    candidates: tuple[Candidate, ...]
    nested: NestedScores | None = None
    inverse_temperature: NDArray[np.float64] | None = None
    final_inverse_temperature: float | None = None
    test: PermutationTest | None = None

    @property
    def final(self) -> Candidate:
        """What the model of all devices is trained with."""
        return self.candidates[self.nested.final_choice if self.nested else 0]


def shuffles(
    units: Units, n: int, seed: int, strata: NDArray[Any] | None = None
) -> Permutations | None:
    """Shuffle the labels of units; None for no permutations.

    Parameters
    ----------
    units : Units
    n : int
        How many; 0 for none.
    seed : int
    strata : (n_rows,) str, optional
        Within which labels may be shuffled.

    Raises
    ------
    InputError
        Units that cannot be exchanged, or in two strata.
    """
    if n == 0:
        return None
    of_units = None
    if strata is not None:
        of_units = strata_of_units(units.of_row, strata, units.device)
    blocks = exchangeable_blocks(units.device, of_units)
    codes = np.unique(units.label, return_inverse=True)[1].astype(np.int64)
    return permuted_labels(codes, blocks, n, seed)


def evaluate(
    head: Head,
    estimator: Any,
    X: NDArray[np.floating[Any]],
    y: NDArray[Any],
    groups: NDArray[Any],
    units: Units,
    candidates: Sequence[Candidate],
    shuffled: Permutations | None = None,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """Leave each group out once.

    Parameters
    ----------
    head : Head
    estimator : classifier
        The head's, not fitted, and not changed.
    X : (n, d) float32 or float64
    y, groups : (n,) str
    units : Units
        Of the same rows.
    candidates : sequence of mapping
        Values of the estimator's constructor; one where nothing is to be chosen.
    shuffled : Permutations, optional
        From `shuffles`.
    progress : callable, optional
        Told what is going on, how much of it is done, and how much there is.

    Raises
    ------
    InputErrors
        Tuning or permutations that the head or so few groups do not allow.
    """
    rows = LabelledRows(X, y, group_rows(groups), units.of_row)
    n_groups, n_candidates = len(rows.grouping.groups), len(candidates)
    problems = head.problems(estimator, n_groups, n_candidates, permuted=shuffled is not None)
    if problems:
        raise InputErrors(problems)
    if head.nests(estimator, n_groups, n_candidates):
        labels = None if shuffled is None else shuffled.labels
        nested, verdicts = head.nested(estimator, rows, candidates, labels, progress)
        found = _calibrated(nested, rows, candidates)
    else:
        fixed = clone(estimator).set_params(**candidates[0])
        folds = fold_results(head.held_out(clone(fixed), rows), rows)
        verdicts = _shuffled_verdicts(head, fixed, rows, folds, shuffled, progress)
        found = Evaluation(folds, tuple(candidates))
    if shuffled is None or verdicts is None:
        return found
    test = _test(shuffled, verdicts, units, repeats_tuning=n_candidates > 1)
    return replace(found, test=test)


def _shuffled_verdicts(
    head: Head,
    estimator: Any,
    rows: LabelledRows,
    folds: FoldResults,
    shuffled: Permutations | None,
    progress: Progress | None,
) -> Shuffled | None:
    """Train all folds anew with each shuffle's labels."""
    if shuffled is None:
        return None
    scores = [folds.scores]
    labellings = folds.classes[shuffled.labels[:, rows.unit]]
    for of_rows in head.held_out_of_labellings(estimator, rows, labellings):
        scores.append(of_rows)
        if progress is not None:
            progress("shuffles", len(scores) - 1, len(labellings))
    return verdicts_of(scores, rows.unit)


def _test(
    shuffled: Permutations, verdicts: Shuffled, units: Units, *, repeats_tuning: bool
) -> PermutationTest:
    observed = np.unique(units.label, return_inverse=True)[1]
    labels = np.concatenate([observed[None], shuffled.labels])
    scores = verdicts.mean_scores
    accuracies = device_accuracies(
        verdicts.predicted, labels, units.of_row, scores.shape[2], scores
    )
    return PermutationTest(
        p=p_value(float(accuracies[0]), accuracies[1:]),
        n=len(shuffled.labels),
        exact=shuffled.exact,
        smallest_p=shuffled.smallest_p,
        repeats_tuning=repeats_tuning,
        note=shuffled.problem,
    )


def _calibrated(
    nested: NestedScores, rows: LabelledRows, candidates: Sequence[Candidate]
) -> Evaluation:
    classes, codes = np.unique(rows.y, return_inverse=True)
    codes = codes.astype(np.int64)
    calibrated = calibrate_folds(
        nested.inner_scores, codes, rows.unit, rows.grouping.codes, nested.scores
    )
    held_out = HeldOut(
        nested.scores,
        calibrated.probabilities,
        classes[nested.scores.argmax(axis=1)],
        nested.jitter,
    )
    final = fit_inverse_temperature(nested.final_scores, codes, rows.unit)
    return Evaluation(
        fold_results(held_out, rows),
        tuple(candidates),
        nested,
        calibrated.inverse_temperature,
        final,
    )

"""How good a classifier is on devices it has not seen: tuned, calibrated, tested for chance.

Whatever is learnt, chosen or scaled for a fold comes from the other groups. Scores are calibrated
on inner folds where the head computes such: those with closed forms or small fits always, an MLP
where it is tuned, since inner folds cost a network for each pair of groups. Otherwise probabilities
are the classifier's own.
"""

from __future__ import annotations

from collections import Counter
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
from toptune.evaluation.scores import HeldOutWindows, Scores, score
from toptune.evaluation.task import Task
from toptune.features.table import FeatureTable
from toptune.heads.base import Candidate, Head, Progress
from toptune.heads.calibration import calibrate_folds, calibrated, fit_inverse_temperature
from toptune.heads.nested import HeldOut, NestedScores, Shuffled, verdicts_of
from toptune.heads.rows import LabelledRows, group_rows


class Units(NamedTuple):
    """What carries one label and gets one verdict: a device and label."""

    # (n,): unit of each row, numbered in the order of devices, then labels
    of_row: NDArray[np.int64]
    # Device and label: (u,) str
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
    """How often the procedure does as well under shuffled labels."""

    p: float  # ``(1 + shuffles whose device accuracy is at least the observed) / (1 + shuffles)``
    n: int  # shuffles
    exact: bool  # they are all ways in which the labels can fall
    smallest_p: float  # no p below this could be expected, however good the classifier
    # Candidates were chosen anew under each shuffle; otherwise there was nothing to choose
    repeats_tuning: bool
    note: str | None  # what a user should know of a test that cannot become significant


@dataclass(frozen=True)
class Evaluation:
    """What leaving out each group once says of a classifier."""

    folds: FoldResults  # probabilities are calibrated where `inverse_temperature` is there
    candidates: tuple[Candidate, ...]  # what was chosen from; one where nothing was
    nested: NestedScores | None = None  # what was chosen; None without inner folds
    # (g,) float64 or None: by which each fold's scores became probabilities
    inverse_temperature: NDArray[np.float64] | None = None
    final_inverse_temperature: float | None = None  # the same for the model of all devices
    test: PermutationTest | None = None

    @property
    def final(self) -> Candidate:
        """What the model of all devices is trained with."""
        return self.candidates[self.nested.final_choice if self.nested else 0]


def shuffles(
    units: Units, n: int, seed: int, strata: NDArray[Any] | None = None
) -> Permutations | None:
    """Shuffle the labels of units n times, within strata, (n_rows,) str; None for no permutations.

    It is an InputError if units cannot be exchanged, or are in two strata.
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

    The estimator is the head's, not fitted, and is not changed. `X` is (n, d) float32 or float64,
    `y` and `groups` (n,) str, `units` of the same rows. Candidates are values of the estimator's
    constructor, one where nothing is to be chosen. Raises `InputErrors`: tuning or permutations
    that the head or so few groups do not allow.
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
    by_fold = calibrate_folds(
        nested.inner_scores, codes, rows.unit, rows.grouping.codes, nested.scores
    )
    predictions = classes[nested.scores.argmax(axis=1)]
    held_out = HeldOut(nested.scores, by_fold.probabilities, predictions, nested.jitter)
    final = fit_inverse_temperature(nested.final_scores, codes, rows.unit)
    folds = fold_results(held_out, rows)
    return Evaluation(folds, tuple(candidates), nested, by_fold.inverse_temperature, final)


# --- metrics.json


def describe_metrics(
    head: str, task: Task, table: FeatureTable, scores: Scores, found: Evaluation
) -> dict[str, Any]:
    """Put together metrics.json, but for the time."""
    return {
        "head": head,
        "features": [view.name for view in table.views],
        "classes": list(scores.classes),
        "n_groups": len(scores.groups),
        "n_devices": scores.n_devices,
        "n_verdicts": len(scores.verdicts),
        "n_windows": len(task.label),
        "n_windows_without_partner": table.dropped.n_windows,
        "missing_recordings": list(table.provenance.get("missing", [])),
        "provenance_notes": _provenance_notes(table),
        "window_accuracy_mean": scores.window_accuracy_mean,
        "window_accuracy_sd": scores.window_accuracy_sd,
        "device_accuracy": scores.device_accuracy,
        "device_accuracy_ci95": list(scores.device_accuracy_ci95),
        "balanced_accuracy": scores.balanced_accuracy,
        "macro_f1": scores.macro_f1,
        "window_balanced_accuracy": scores.window_balanced_accuracy,
        "window_macro_f1": scores.window_macro_f1,
        "chance": scores.chance,
        "chance_balanced": scores.chance_balanced,
        "window_ece": scores.window_ece,
        "device_ece": scores.device_ece,
        "window_brier": scores.window_brier,
        "device_brier": scores.device_brier,
        "calibrated": found.inverse_temperature is not None,
        "permutation_p": None if found.test is None else found.test.p,
        "permutations": None if found.test is None else _describe_test(found.test),
        "tuning": _describe_tuning(task, found) if len(found.candidates) > 1 else None,
        "warnings": list(task.warnings),
    }


def _provenance_notes(table: FeatureTable) -> list[str]:
    """Lines on what was not the same for all features, each once."""
    made = table.provenance.get("made_with", {}).values()
    return list(dict.fromkeys(note for one in made for note in one["notes"]))


def _describe_test(test: PermutationTest) -> dict[str, Any]:
    chosen = "chosen anew under every shuffle" if test.repeats_tuning else "fixed beforehand"
    return {
        "statistic": "device_accuracy",
        "n": test.n,
        "exact": test.exact,
        "smallest_p": test.smallest_p,
        "parameters": chosen,
        "note": test.note,
    }


def _describe_tuning(task: Task, found: Evaluation) -> dict[str, Any]:
    """Tell what was chosen, and how much better it would look had the choice seen all devices."""
    nested = found.nested
    assert nested is not None  # there were candidates to choose from
    chosen = Counter(nested.choice.tolist()).most_common()
    classes = found.folds.classes
    assert found.final_inverse_temperature is not None  # what was tuned was calibrated, too
    probabilities = calibrated(nested.final_scores, found.final_inverse_temperature)
    predictions = classes[nested.final_scores.argmax(axis=1)]
    leaky = score_task(task, classes, predictions, probabilities)
    return {
        "n_candidates": len(found.candidates),
        "chosen": [{"folds": n, **_plain(found.candidates[i])} for i, n in chosen],
        "final": _plain(found.candidates[nested.final_choice]),
        "had_the_choice_seen_all_devices": {
            "window_accuracy_mean": leaky.window_accuracy_mean,
            "device_accuracy": leaky.device_accuracy,
        },
    }


def score_task(
    task: Task, classes: NDArray[Any], predictions: NDArray[Any], probabilities: NDArray[np.float64]
) -> Scores:
    """Score what was predicted, (n_windows,) and (n_windows, k), for the windows of a task."""
    return score(
        HeldOutWindows(task.label, predictions, probabilities, task.device, task.group, classes)
    )


def _plain(candidate: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in candidate.items()}

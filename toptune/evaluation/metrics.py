"""What metrics.json says of a run: scores, tuning, calibration and the permutation test."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.evaluation.evaluate import Evaluation, PermutationTest
from toptune.evaluation.scores import HeldOutWindows, Scores, score
from toptune.evaluation.task import Task
from toptune.features.table import FeatureTable
from toptune.heads.calibration import calibrated
from toptune.heads.nested import NestedScores


def describe_metrics(
    head: str, task: Task, table: FeatureTable, scores: Scores, found: Evaluation
) -> dict[str, Any]:
    """Put together metrics.json, but for the time.

    Parameters
    ----------
    head : str
    task : Task
    table : FeatureTable
    scores : Scores
    found : Evaluation
    """
    return {
        "head": head,
        "features": [view.name for view in table.views],
        "classes": list(scores.classes),
        "n_groups": len(scores.groups),
        "n_devices": len(scores.verdicts),
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
    return {
        "statistic": "device_accuracy",
        "n": test.n,
        "exact": test.exact,
        "smallest_p": test.smallest_p,
        "parameters": "chosen anew under every shuffle"
        if test.repeats_tuning
        else "fixed beforehand",
        "note": test.note,
    }


def _describe_tuning(task: Task, found: Evaluation) -> dict[str, Any]:
    """Tell what was chosen, and how much better it would look had the choice seen all devices."""
    nested = found.nested
    assert nested is not None  # there were candidates to choose from
    chosen = Counter(nested.choice.tolist()).most_common()
    leaky = _scores_of_all(task, found, nested)
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
    """Score what was predicted for the windows of a task.

    Parameters
    ----------
    task : Task
    classes : (k,) array
    predictions : (n_windows,) array of classes
    probabilities : (n_windows, k) float64
    """
    return score(
        HeldOutWindows(task.label, predictions, probabilities, task.device, task.group, classes)
    )


def _scores_of_all(task: Task, found: Evaluation, nested: NestedScores) -> Scores:
    classes = found.folds.classes
    assert found.final_inverse_temperature is not None  # what was tuned was calibrated, too
    probabilities = calibrated(nested.final_scores, found.final_inverse_temperature)
    predictions = classes[nested.final_scores.argmax(axis=1)]
    return score_task(task, classes, predictions, probabilities)


def _plain(candidate: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in candidate.items()}

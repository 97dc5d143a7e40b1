"""The tables and the picture of a run.

What enters: held-out predictions and scores. What leaves: folds.csv, windows.csv, devices.csv and
confusion.csv (shares between 0 and 1, times in seconds since the recording's start), and
confusion.png.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.confusion_plot import draw_confusion
from toptune.folds import FoldResults
from toptune.run_folder import write_csv
from toptune.scores import Scores


class Task(NamedTuple):
    """Who each window belongs to, (n_windows,) str each; labels are those trained on."""

    recording: NDArray[Any]
    device: NDArray[Any]
    label: NDArray[Any]
    group: NDArray[Any]


def write_tables(
    folder: Path, task: Task, start_s: NDArray[np.float64], folds: FoldResults, scores: Scores
) -> None:
    """Write the four tables of a run.

    Parameters
    ----------
    folder : Path
    task : Task
    start_s : (n_windows,) float64
    folds : FoldResults
        Rows as in `task`.
    scores : Scores
    """
    write_csv(
        folder / "folds.csv",
        ["group", "n_train_windows", "n_windows", "n_correct", "window_accuracy", "jitter"],
        _fold_rows(folds, scores),
    )
    probabilities = [f"probability_{name}" for name in scores.classes]
    write_csv(
        folder / "windows.csv",
        [
            *("recording", "device", "group", "start_s", "label", "prediction", "correct"),
            *probabilities,
        ],
        _window_rows(task, start_s, folds),
    )
    write_csv(
        folder / "devices.csv",
        ["device", "group", "label", "n_windows", "prediction", "correct"]
        + [f"windows_{name}" for name in scores.classes]
        + probabilities,
        _device_rows(scores),
    )
    write_csv(
        folder / "confusion.csv",
        ["unit", "label", "prediction", "count"],
        _confusion_rows(scores),
    )


def write_confusion(folder: Path, scores: Scores) -> None:
    """Write confusion.png: devices and windows side by side."""
    figure = draw_confusion(scores.device_confusion, scores.window_confusion, scores.classes)
    figure.savefig(folder / "confusion.png", dpi=150)


def _fold_rows(folds: FoldResults, scores: Scores) -> Iterator[list[Any]]:
    # Both are in the sorted order of the groups' names.
    for fold, group in zip(folds.folds, scores.groups, strict=True):
        yield [
            group.group,
            fold.n_train_rows,
            group.n_windows,
            group.n_correct,
            group.accuracy,
            fold.jitter,
        ]


def _window_rows(
    task: Task, start_s: NDArray[np.float64], folds: FoldResults
) -> Iterator[list[Any]]:
    for i, prediction in enumerate(folds.predictions.tolist()):
        label = str(task.label[i])
        yield [
            str(task.recording[i]),
            str(task.device[i]),
            str(task.group[i]),
            float(start_s[i]),
            label,
            prediction,
            int(label == prediction),
            *folds.probabilities[i].tolist(),
        ]


def _device_rows(scores: Scores) -> Iterator[list[Any]]:
    for verdict in scores.verdicts:
        yield [
            verdict.device,
            verdict.group,
            verdict.label,
            verdict.n_windows,
            verdict.prediction,
            int(verdict.prediction == verdict.label),
            *verdict.votes.tolist(),
            *verdict.probabilities.tolist(),
        ]


def _confusion_rows(scores: Scores) -> Iterator[list[Any]]:
    for unit, counts in (
        ("device", scores.device_confusion),
        ("window", scores.window_confusion),
    ):
        for row, column in np.ndindex(*counts.shape):
            yield [
                unit,
                scores.classes[row],
                scores.classes[column],
                int(counts[row, column]),
            ]

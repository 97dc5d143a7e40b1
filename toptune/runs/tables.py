"""Tables and the confusion matrices of a run.

folds.csv, windows.csv, devices.csv and confusion.csv hold shares between 0 and 1 and times in
seconds since the recording's start. parameters.csv holds burst parameters of whole recordings,
where they were measured; further tables are the head's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.evaluation.evaluate import Evaluation
from toptune.evaluation.folds import FoldResults
from toptune.evaluation.scores import Scores
from toptune.evaluation.task import Task
from toptune.features.burst_features import NAMES, in_units
from toptune.features.table import FeatureTable
from toptune.heads.base import Head
from toptune.machine.drawing import Axes, Figure, FigureCanvasAgg, new_figure
from toptune.runs.folder import write_csv

# Up to this many classes the cells of confusion.png have room for counts and percentages.
_PERCENT_CLASSES = 10


def write_tables(
    folder: Path, task: Task, start_s: NDArray[np.float64], found: Evaluation, scores: Scores
) -> None:
    """Write a run's four tables; `start_s`, (n_windows,), and `found` have rows as in `task`."""
    write_csv(
        folder / "folds.csv",
        ["group", "n_train_windows", "n_windows", "n_correct", "window_accuracy", "jitter"]
        + _fold_choices(found)[0],
        _fold_rows(found, scores),
    )
    probabilities = [f"probability_{name}" for name in scores.classes]
    write_csv(
        folder / "windows.csv",
        [
            *("recording", "device", "group", "start_s", "label", "prediction", "correct"),
            *probabilities,
        ],
        _window_rows(task, start_s, found.folds),
    )
    write_csv(
        folder / "devices.csv",
        ["device", "group", "label", "n_windows", "prediction", "correct"]
        + [f"windows_{name}" for name in scores.classes]
        + probabilities,
        _device_rows(scores),
    )
    header = ["unit", "label", "prediction", "count"]
    write_csv(folder / "confusion.csv", header, _confusion_rows(scores))


def write_model_tables(
    folder: Path, table: FeatureTable, head: Head, estimator: Any, whole: FeatureTable | None = None
) -> None:
    """Write the burst parameters of the recordings, and what the head tells of the final model.

    parameters.csv has a row a recording, in the parameters' units, empty where one is not defined;
    it is there where rows are whole recordings, or where `whole` are their parameters. `estimator`
    is fitted on `table`.
    """
    columns = NAMES if head.uses == "recordings" else ()
    whole = table if columns else whole
    if whole is not None:
        values = in_units(whole.features)
        infos = [whole.recordings[row] for row in whole.recording]
        write_csv(
            folder / "parameters.csv",
            ["recording", "device", "label", *NAMES],
            (
                [info.name, info.device, info.label, *("" if math.isnan(v) else v for v in row)]
                for info, row in zip(infos, values.tolist(), strict=True)
            ),
        )
    for name, (header, rows) in head.tables(estimator, columns).items():
        write_csv(folder / name, header, rows)


def write_confusion(folder: Path, scores: Scores, order: Sequence[str] | None = None) -> None:
    """Write confusion.png: devices and windows side by side, classes in an order of their names."""
    order = scores.classes if order is None else order
    at = np.array([scores.classes.index(name) for name in order])
    figure = draw_confusion(
        scores.device_confusion[np.ix_(at, at)],
        scores.window_confusion[np.ix_(at, at)],
        order,
        "Devices" if len(scores.verdicts) == scores.n_devices else "Verdicts",
    )
    figure.savefig(folder / "confusion.png", dpi=150)


def _fold_rows(found: Evaluation, scores: Scores) -> Iterator[list[Any]]:
    choices = _fold_choices(found)[1]
    # All are in the sorted order of the groups' names.
    for fold, group, chosen in zip(found.folds.folds, scores.groups, choices, strict=True):
        counts = fold.n_train_rows, group.n_windows, group.n_correct
        yield [group.group, *counts, group.accuracy, fold.jitter, *chosen]


def _fold_choices(found: Evaluation) -> tuple[list[str], list[list[Any]]]:
    """Name and list what each fold chose, by which loss, and how it was calibrated."""
    names: list[str] = []
    rows: list[list[Any]] = [[] for _ in found.folds.folds]
    if found.nested is not None and len(found.candidates) > 1:
        tuned = list(found.candidates[0])
        names += [*(f"chosen_{name}" for name in tuned), "inner_loss"]
        for fold, (row, choice) in enumerate(zip(rows, found.nested.choice, strict=True)):
            row += [_shown(found.candidates[choice][name]) for name in tuned]
            row.append(float(found.nested.loss[choice, fold]))
    if found.inverse_temperature is not None:
        names.append("inverse_temperature")
        for row, value in zip(rows, found.inverse_temperature.tolist(), strict=True):
            row.append(value)
    return names, rows


def _shown(value: Any) -> Any:
    """Several numbers in one cell, as the command line reads them."""
    return ",".join(f"{v:.6g}" for v in value) if isinstance(value, tuple) else value


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
    classes = scores.classes
    for unit, counts in (("device", scores.device_confusion), ("window", scores.window_confusion)):
        for row, column in np.ndindex(*counts.shape):
            yield [unit, classes[row], classes[column], int(counts[row, column])]


def draw_confusion(
    devices: NDArray[np.int64],
    windows: NDArray[np.int64],
    classes: Sequence[str],
    unit: str = "Devices",
) -> Figure:
    """Draw both matrices side by side, coloured by each row's shares, with the counts written in.

    Their rows are true classes, columns predicted ones, (k, k). `unit` is what the first counts:
    devices, or verdicts where devices have several. The figure has an Agg canvas, which
    needs no display.
    """
    # Room for the longest name twice: beside its row, and slanted below its column.
    names = 0.08 * max(len(name) for name in classes)
    side = max(2.6, 0.72 * len(classes))
    figure = new_figure(2 * (side + names) + 2.2, side + names + 1.4)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    draw_matrix(axes[0], devices, classes, unit)
    draw_matrix(axes[1], windows, classes, "Windows")
    bar = figure.colorbar(
        axes[1].images[0], ax=axes, shrink=0.8, label="share of the true class (row)"
    )
    bar.outline.set_visible(False)
    return figure


def draw_matrix(axes: Axes, counts: NDArray[np.int64], classes: Sequence[str], unit: str) -> None:
    """Draw one matrix, (k, k) with a row per true class; `unit` is what it counts, in capitals."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    # cividis looks the same with and without colour blindness, and in grey.
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        text = str(counts[row, column])
        if len(classes) <= _PERCENT_CLASSES and counts[row, column]:
            text += f"\n{100 * shares[row, column]:.0f} %"
        colour = "black" if shares[row, column] > 0.55 else "white"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{unit}: {np.trace(counts)} of {counts.sum()} correct")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

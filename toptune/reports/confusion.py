"""The confusion matrices of a report, in HTML: of devices and of windows.

The picture of them in a run's folder, confusion.png, is drawn by `toptune.runs.tables`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from toptune.reports.page import Block, Columns, HeatMap, Section, Shade, Text, percent
from toptune.runs.reading import ReadRun


def confusion_section(run: ReadRun) -> Section:
    """Show the confusion matrices of devices and of windows, and the most common error."""
    blocks: tuple[Block, ...] = (
        Text(
            text="Rows: true class; columns: predicted class. Correct predictions lie on the framed"
            " diagonal. Percentages are shares of a row."
        ),
        Columns(
            blocks=(
                confusion_map(device_confusion(run), run.classes, "Devices"),
                confusion_map(run.scores.window_confusion, run.classes, run.rows_are.capitalize()),
            )
        ),
        *_most_common_error(run),
    )
    return Section(title="Confusion matrices", blocks=blocks)


def device_confusion(run: ReadRun) -> NDArray[np.int64]:
    """Count the verdicts, (k, k) int64: rows are true classes, columns predicted ones."""
    counts = np.zeros((len(run.classes),) * 2, dtype=np.int64)
    for v in run.verdicts:
        counts[run.classes.index(v.label), run.classes.index(v.prediction)] += 1
    return counts


def confusion_map(counts: NDArray[np.int64], classes: tuple[str, ...], unit: str) -> HeatMap:
    """Turn a confusion matrix into a heat map coloured by each row's shares.

    Parameters
    ----------
    counts : (k, k) int64
        Rows are true classes, columns predicted ones.
    classes : tuple of str
    unit : str
        What was counted.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = tuple(
        tuple(
            Shade(
                text=str(n) if n else "",
                share=float(shares[i, j]),
                detail=percent(float(shares[i, j])) if n else "",
                marked=i == j,
            )
            for j, n in enumerate(row)
        )
        for i, row in enumerate(counts.tolist())
    )
    return HeatMap(
        caption=f"{unit}: {np.trace(counts)} of {counts.sum()} correct",
        rows=classes,
        columns=classes,
        cells=cells,
        row_title="true class",
        column_title="predicted class",
    )


def _most_common_error(run: ReadRun) -> tuple[Text, ...]:
    wrong = device_confusion(run)
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return ()
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    n_class = sum(v.label == run.classes[i] for v in run.verdicts)
    return (
        Text(
            text=f"The most common error: {wrong[i, j]} of {n_class} {run.classes[i]} devices were"
            f" classified as {run.classes[j]}."
        ),
    )

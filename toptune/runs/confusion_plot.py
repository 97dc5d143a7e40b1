"""The confusion matrices of a run as a picture, confusion.png.

The report's own confusion matrices, in HTML, are made in `toptune.reports.confusion`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Up to this many classes the cells are large enough for counts and percentages.
_PERCENT_CLASSES = 10


def draw_confusion(
    devices: NDArray[np.int64], windows: NDArray[np.int64], classes: Sequence[str]
) -> Figure:
    """Draw both matrices side by side, coloured by each row's shares, with the counts written in.

    Parameters
    ----------
    devices, windows : (k, k) int64
        Rows are true classes, columns predicted ones.
    classes : sequence of k str

    Returns
    -------
    matplotlib.figure.Figure
        With an Agg canvas, which needs no display.
    """
    # Room for the longest name twice: beside its row, and slanted below its column.
    names = 0.08 * max(len(name) for name in classes)
    side = max(2.6, 0.72 * len(classes))
    figure = Figure(figsize=(2 * (side + names) + 2.2, side + names + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    _draw_matrix(axes[0], devices, classes, "Devices")
    _draw_matrix(axes[1], windows, classes, "Windows")
    bar = figure.colorbar(
        axes[1].images[0], ax=axes, shrink=0.8, label="share of the true class (row)"
    )
    bar.outline.set_visible(False)
    return figure


def _draw_matrix(axes: Axes, counts: NDArray[np.int64], classes: Sequence[str], unit: str) -> None:
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

"""Pictures that are small matrices, enlarged: the same on every device.

The cells are computed on the CPU; a GPU gets these few and enlarges them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from toptune.params import Picture, Windows
from toptune.pictures.bins import BinnedSpikes

#: Kinds of pictures that are made of cells.
KINDS = ("intervals", "correlation")


class CellSource(Protocol):
    """Computes the cells of windows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a picture's cells."""

    @property
    def upwards(self) -> bool:
        """Whether the first row is drawn at the bottom."""

    def darkness(self, window_bin: NDArray[np.int64]) -> NDArray[np.float32]:
        """Give the cells of windows that begin with some bins, (windows, *shape), 1 for black."""


def cell_source(binned: BinnedSpikes, windows: Windows, picture: Picture, size: int) -> CellSource:
    """Make what computes the cells of a recording's windows."""
    # Each brings a library that the other pictures do without.
    if picture.kind == "intervals":
        from toptune.pictures.intervals import IntervalCells

        rate_hz = binned.trains.sampling_rate_hz
        return IntervalCells(binned.placed, rate_hz, windows.width_bins)
    from toptune.pictures.correlation import CorrelationCells

    return CorrelationCells(binned.placed, len(binned.trains.channel_labels), windows, size)


class CellPictures:
    """Draws pictures of S x S pixels made of cells on a device; `Drawer` defines them.

    The pixel in row i, column j shows cell ``floor(i * rows / S)``, ``floor(j * columns / S)``,
    with rows of both counted from where the first one is drawn.
    """

    def __init__(self, source: CellSource, size: int, device: torch.device) -> None:
        self._source = source
        self.device = device
        pixel = torch.arange(size)
        n_rows, n_columns = source.shape
        rows = pixel * n_rows // size
        self._rows = (rows.flip(0) if source.upwards else rows).to(device)
        self._columns = (pixel * n_columns // size).to(device)
        # The cells in three forms, rows of pixels, and pixels: 4 or 8 bytes a value.
        self.window_bytes = 20 * n_rows * n_columns + 4 * size * (n_columns + size)

    def draw(self, window_bin: torch.Tensor, out: torch.Tensor) -> None:
        """Draw the windows that begin with some bins into `out`, (windows, S, S)."""
        if not all(self._source.shape):  # no electrode
            out.fill_(1)
            return
        cells = torch.from_numpy(self._source.darkness(window_bin.numpy())).to(self.device)
        dark = cells.index_select(1, self._rows).index_select(2, self._columns)
        torch.sub(1, dark, out=out)

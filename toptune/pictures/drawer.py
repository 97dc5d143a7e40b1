"""The sliding windows of a recording drawn as square pictures.

`Drawer` defines the pictures and draws them on every torch device. On CUDA, `drawer_cuda` draws
histograms and raster plots in one launch.
"""

from __future__ import annotations

import torch

from toptune.params import Picture, Windows
from toptune.pictures import cells
from toptune.pictures.bins import BinnedSpikes
from toptune.pictures.cells import CellPictures
from toptune.pictures.levels import LevelPictures
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.windows import window_bins, window_starts

# The most memory for the intermediate arrays of one block of windows, whatever the batch.
_BLOCK_BYTES = 64 * 2**20


class Drawer:
    """Draws any slice of a recording's windows.

    Parameters
    ----------
    trains
        The recording's spikes.
    windows
        Width, stride and bin.
    picture
        What is drawn.
    size
        Side S of the pictures in pixels, 1 or more.
    device
        Where the pictures are drawn and stay.
    binned
        The recording's spikes in bins of the windows' bin length, made if None; on `device`, but
        for pictures made of cells, which are computed on the CPU.

    Attributes
    ----------
    start_s : (n_windows,) float64
        Start of each window in seconds since the recording's start.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.

    Notes
    -----
    `PlacedSpikes` says which bin a spike is in; samples after a segment's last whole bin are not
    drawn. A bin belongs to the column in which it starts: ``floor(bin * S / bins)``. If no bin
    starts in a column, because there are fewer bins than columns, the column shows the bin that
    covers it: ``floor(column * bins / S)``.

    Histogram: with h spikes in a bin, over all channels, and A the top of the count axis, the
    pixel in row j from the bottom is as dark as the mean of ``clip(h * S / A - j, 0, 1)`` over its
    column's bins, which is the area of the bar chart inside the pixel. Bars above A are cut off. A
    picture whose count axis would end at 0 is white. With the count axis ``log`` a bar is
    ``log2(1 + h) / 8`` of the picture high instead of h / A: 255 spikes fill it.

    Raster: electrode e of E, with 0 at the top, has the band of rows from ``e * S / E`` to
    ``(e + 1) * S / E``, silent or not; a mark is one bin wide and as high as the band. A pixel is
    as dark as the sum over electrodes of (part of the row inside the band) x (darkness of the
    electrode's marks). In a sorted raster electrode 0 is the one with the most spikes in the
    window, and so on; of equally active ones the first of the file comes first.

    The other pictures are made of cells, enlarged to the nearest: the pixel in row i, column j
    shows cell ``floor(i * rows / S)``, ``floor(j * columns / S)``.

    Intervals: 48 rows, counted from the bottom as the pixels' are, by 112 columns. A cell with n
    intervals is ``min(1, log(1 + n) / log(51))`` dark. An interval lies between two successive
    spikes of an electrode in the window, not at the same sample. Its row is the step of its length,
    of 48 of equal ratio from 1 ms to 100 s: step k begins with ``10**(5 * k / 48)`` ms, and shorter
    and longer intervals are in the first and last step. Its column is ``floor(112 * bin / bins)``,
    with the bin of its second spike, counted from the window's start.

    Correlation: a row and a column for each electrode, or where there are more than S for the S
    with the most spikes in the window. A cell is as dark as Pearson's correlation of the square
    roots of both electrodes' spike counts in bins of 100 ms, counted from the window's start; what
    is left at its end is not counted. The square root keeps the variance of Poisson counts about
    the same at every rate (Bartlett 1936, J. R. Stat. Soc. Suppl. 3:68-78). A bin of the windows
    belongs to the 100 ms in which it starts, and is itself the bin where it is longer. Negative
    correlations are white, and so are rows and columns of electrodes whose counts do not vary,
    which come last. The others are sorted by the second leading eigenvector of their matrix:
    `toptune.pictures.correlation.clustering_order`.
    """

    def __init__(
        self,
        trains: SpikeTrains,
        windows: Windows,
        picture: Picture,
        size: int,
        device: torch.device | str = "cpu",
        binned: BinnedSpikes | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be 1 or more, got {size}")
        self.size = size
        self.device = torch.device(device)
        binned = binned or BinnedSpikes(trains, windows.bin_ms, device)
        starts = window_starts(trains, windows)
        self.start_s = starts.start_s
        # From here on bins are counted through all segments; windows stay inside their own.
        self._window_bin = torch.as_tensor(window_bins(starts, binned.segment_bins))
        self._pictures: LevelPictures | CellPictures
        if picture.kind in cells.KINDS:
            source = cells.cell_source(binned, windows, picture, size)
            self._pictures = CellPictures(source, size, self.device)
        else:
            self._pictures = LevelPictures(binned, windows, picture, size)

    def __len__(self) -> int:
        return len(self.start_s)

    def draw(self, first: int, last: int) -> torch.Tensor:
        """Draw windows `first` up to, not including, `last`.

        Returns (last - first, S, S) float32 in [0, 1] on the drawer's device. If the recording has
        no such windows, that is an `IndexError`.
        """
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"windows {first} to {last} asked for, there are {len(self)}")
        pictures = torch.empty((last - first, self.size, self.size), device=self.device)
        block = max(1, _BLOCK_BYTES // self._pictures.window_bytes)
        for at in range(first, last, block):
            end = min(at + block, last)
            self._pictures.draw(self._window_bin[at:end], pictures[at - first : end - first])
        return pictures


def largest_count(trains: SpikeTrains, bin_ms: float) -> int:
    """Count the spikes in a recording's fullest bin, the top of the count axis ``recording``."""
    counts = BinnedSpikes(trains, bin_ms, "cpu").counted.counts
    return int(counts[-1]) if len(counts) else 0

"""Draw the sliding windows of a recording as square pictures.

What enters: the spikes of one recording (sample indices), window and picture parameters, the side
S of the picture in pixels, a torch device. What leaves: float32 tensors (windows, S, S) on that
device, 1 = white, 0 = black, row 0 = top of the picture; and each window's start in seconds.

How it is drawn. A picture's column is a run of bins, and every pixel is a mean over that run, so a
picture needs only how many bins of each column show each *level*: for the histogram a level is a
spike count that occurs, for the raster an electrode that fired. Those shares come from one table
of running totals at the columns' edges, whatever the windows' overlap, and the picture is one
matrix product: (coverage of a pixel row by a level) x (share of the column's bins at that level).
No loop runs over windows, bins or spikes, and the same code runs on every device; on CUDA
`rendering` draws the same pictures in one launch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from toptune.params import Picture, Windows
from toptune.pictures.bins import BinnedSpikes, Stretches
from toptune.recordings.trains import SpikeTrains

# What the temporaries of one block of windows may take, so that memory does not grow with a batch.
_BLOCK_BYTES = 64 * 2**20


class WindowStarts(NamedTuple):
    """Where the windows of a recording begin, in order of time.

    Attributes
    ----------
    segment : (n,) int64
        The segment that holds the window; no window spans two.
    first_bin : (n,) int64
        The window's first bin, counted from its segment's start.
    start_s : (n,) float64
        Seconds from the recording's start to the window's.
    """

    segment: NDArray[np.int64]
    first_bin: NDArray[np.int64]
    start_s: NDArray[np.float64]


def window_starts(trains: SpikeTrains, windows: Windows) -> WindowStarts:
    """Place the whole windows of a recording: (duration - width) / stride + 1 in each segment.

    Parameters
    ----------
    trains
        Only its segments and sampling rate matter.
    windows
        Width, stride and bin.

    Returns
    -------
    WindowStarts
        Empty where no segment is as long as a window.
    """
    n_bins = Stretches.of(trains, windows.bin_ms).n_bins
    n_windows = np.maximum((n_bins - windows.width_bins) // windows.stride_bins + 1, 0)
    segment = np.repeat(np.arange(len(n_bins)), n_windows)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    segment_start_s = np.array([s.start_s for s in trains.segments], dtype=np.float64)
    return WindowStarts(
        segment, within * windows.stride_bins, segment_start_s[segment] + within * windows.stride_s
    )


def window_bins(starts: WindowStarts, stretches: Stretches) -> NDArray[np.int64]:
    """First bin of each window, counted through all segments, (n,) int64."""
    return stretches.offset[starts.segment] + starts.first_bin


class Drawer:
    """Draws any slice of a recording's windows.

    Parameters
    ----------
    trains
        The recording's spikes.
    windows
        Width, stride and bin.
    picture
        Histogram with its count axis, or raster.
    size
        Side S of the pictures in pixels, 1 or more.
    device
        Where the pictures are made and stay.
    binned
        The recording's spikes in bins of the windows' length, where they are already, on `device`.

    Attributes
    ----------
    start_s : (n_windows,) float64
        Start of each window in seconds since the recording's start.
    size, device
        As given.
    largest_count : int
        Spikes in the recording's fullest bin, where a histogram is drawn; the top of the count
        axis ``recording``.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.

    Notes
    -----
    A spike's bin is ``floor((sample - first sample of the segment) / samples per bin)``; what is
    left of a segment after its last whole bin is not drawn. A bin belongs to the column its start
    falls in: ``floor(bin * S / bins)``. Where there are fewer bins than columns and none starts in
    a column, the column shows the bin that covers it: ``floor(column * bins / S)``.

    Histogram: with h spikes in a bin, over all channels, and A the top of the count axis, the
    pixel in row j from the bottom is as dark as the mean of ``clip(h * S / A - j, 0, 1)`` over its
    column's bins; this is the area of the bar chart inside the pixel. Bars above A are cut. A
    picture whose count axis would end at 0 is white.

    Raster: electrode e of E, 0 at the top, has the rows from ``e * S / E`` to ``(e + 1) * S / E``,
    silent or not; a mark is one bin wide and as high as the band. The pixel is as dark as the sum
    over electrodes of (part of the row inside the band) x (darkness of the electrode's marks).
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
        binned = binned or BinnedSpikes(trains, windows.bin_ms, device)
        self.size = size
        self.device = torch.device(device)
        self._picture = picture
        starts = window_starts(trains, windows)
        self.start_s = starts.start_s
        # From here on bins are counted through all segments; windows stay inside their own.
        self._window_bin = torch.as_tensor(window_bins(starts, binned.stretches))
        self._column = _column_edges(windows.width_bins, size)
        if picture.kind == "histogram":
            self._bin, self._level, self._counts = binned.counted
            self._n_levels = len(self._counts)
            self.largest_count = int(self._counts[-1]) if self._n_levels else 0
        else:
            self._n_levels = len(trains.channel_labels)
            self._bin, self._level = binned.fired
            self._bands = _band_coverage(self._n_levels, size).to(self.device)

    def __len__(self) -> int:
        return len(self.start_s)

    def draw(self, first: int, last: int) -> torch.Tensor:
        """Draw windows `first` up to, not including, `last`.

        Parameters
        ----------
        first, last
            A slice of the windows, ``0 <= first <= last <= len(self)``.

        Returns
        -------
        torch.Tensor
            (last - first, S, S) float32 in [0, 1] on the drawer's device.

        Raises
        ------
        IndexError
            There are no such windows.
        """
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"windows {first} to {last} asked for, there are {len(self)}")
        pictures = torch.empty((last - first, self.size, self.size), device=self.device)
        # Four arrays of (windows, S, levels) in 4 bytes a value live at once.
        block = max(1, _BLOCK_BYTES // (16 * self.size * max(1, self._n_levels)))
        for at in range(first, last, block):
            end = min(at + block, last)
            self._draw_block(self._window_bin[at:end], pictures[at - first : end - first])
        return pictures

    def _draw_block(self, window_bin: torch.Tensor, out: torch.Tensor) -> None:
        totals, edge = self._running_totals(window_bin)
        n, levels = len(window_bin), self._n_levels
        at_start = totals.index_select(0, edge[:, 0].reshape(-1))
        at_end = totals.index_select(0, edge[:, 1].reshape(-1))
        bins_in_column = (self._column[1] - self._column[0]).to(self.device, torch.float32)
        share = at_end.sub_(at_start).view(n, self.size, levels) / bins_in_column[:, None]
        if self._picture.kind == "histogram":
            in_window = totals[edge[:, 1, -1]] - totals[edge[:, 0, 0]]
            coverage = self._bar_coverage(in_window > 0)
        else:
            share = _marks(share)
            coverage = self._bands.expand(n, self.size, levels)
        white = torch.ones((), device=self.device).expand_as(out)
        torch.baddbmm(white, coverage, share.transpose(1, 2), alpha=-1, out=out)
        out.clamp_(0, 1)  # the product's rounding may leave -1e-7

    def _running_totals(self, window_bin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Count, for each level, the bins that show it before every column edge of these windows.

        Returns the totals, (edges, levels) int32, and the row in them of each window's columns'
        starts and ends, (windows, 2, S).
        """
        begin, end = int(window_bin[0]), int(window_bin[-1] + self._column[1, -1])
        edge_bin = (window_bin[:, None, None] - begin + self._column).to(self.device)
        is_edge = torch.zeros(end - begin + 1, dtype=torch.int64, device=self.device)
        is_edge[edge_bin.view(-1)] = 1
        row = is_edge.cumsum(0) - 1
        n_edges = int(row[-1]) + 1
        inside = torch.tensor([begin, end], dtype=self._bin.dtype, device=self.device)
        lo, hi = torch.searchsorted(self._bin, inside).tolist()
        # What lies between edge k and the next counts from edge k + 1 on.
        cell = (row[self._bin[lo:hi].long() - begin] + 1) * self._n_levels + self._level[lo:hi]
        totals = torch.zeros(n_edges * self._n_levels, dtype=torch.int32, device=self.device)
        totals.scatter_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
        totals = totals.view(n_edges, self._n_levels).cumsum(0, dtype=torch.int32)
        return totals, row[edge_bin]

    def _bar_coverage(self, shown: torch.Tensor) -> torch.Tensor:
        """How much of each pixel row, top first, the bar of each count covers.

        `shown` is (windows, levels), whether the window has a bin of that count; the result is
        (windows, S, levels) float32.
        """
        top = self._axis_top(shown)
        height = self._counts.to(torch.float64) * self.size / top
        whole = height.floor()
        # Split, because height - row in float32 would lose the fraction of tall pictures.
        whole, part = whole.float()[:, None], (height - whole).float()[:, None]
        row = torch.arange(self.size - 1, -1, -1, dtype=torch.float32, device=self.device)
        coverage = (whole - row[:, None]).add_(part).clamp_(0, 1)
        return coverage.expand(len(shown), -1, -1)

    def _axis_top(self, shown: torch.Tensor) -> torch.Tensor:
        """Top of the count axis, (windows, 1) float64, or (1, 1) where all windows share it."""
        axis = self._picture.count_axis
        if isinstance(axis, str) and self._n_levels == 0:
            top = torch.ones(1)  # nothing is drawn, on whatever axis
        elif axis == "window":
            # Where the window is empty nothing is drawn either; 1 only avoids 0 / 0.
            top = (self._counts * shown).amax(1).clamp(min=1)
        elif axis == "recording":
            top = self._counts[-1:]
        else:
            top = torch.tensor([float(axis)])
        return top.to(self.device, torch.float64)[:, None]


def _marks(share: torch.Tensor) -> torch.Tensor:
    """Darkness of an electrode's marks in a column, from the share of the column's bins with one.

    The one place where this is decided: the share itself is exact area coverage; ``share > 0``
    would make any spike as visible as a burst.
    """
    return share


def _column_edges(n_bins: int, size: int) -> torch.Tensor:
    """First bin of each column and the one after its last, (2, S) int64, within the window."""
    edge = -(-torch.arange(size + 1) * n_bins // size)  # ceiling: the bins that start in it
    first, end = edge[:-1], edge[1:]
    covering = torch.arange(size) * n_bins // size
    none = first == end
    return torch.stack([torch.where(none, covering, first), torch.where(none, covering + 1, end)])


def _band_coverage(n_channels: int, size: int) -> torch.Tensor:
    """How much of each pixel row, top first, lies in each electrode's band, (S, E) float32."""
    row = torch.arange(size)[:, None] * n_channels
    band = torch.arange(n_channels) * size
    # In units of 1 / (S x E) of the picture, so that it is exact until the last division.
    overlap = torch.minimum(row + n_channels, band + size) - torch.maximum(row, band)
    return (overlap.clamp(min=0) / max(1, n_channels)).float()

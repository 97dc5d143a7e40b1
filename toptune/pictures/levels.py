"""Histograms and raster plots of windows, in torch's operations.

A picture's column is a run of bins, and a pixel is a mean over that run. So a picture needs only
the number of bins in each column that show each *level*: for the histogram a level is a spike count
that occurs, for rasters an electrode that fired. These shares come from one table of running
totals at the columns' edges, however much windows overlap, and the picture is one matrix product:
(coverage of a pixel row by a level) x (share of the column's bins at that level). No loop runs over
windows, bins or spikes. The code runs on every torch device.
"""

from __future__ import annotations

import math

import torch

from toptune.params import Picture, Windows
from toptune.pictures.bins import BinnedSpikes

#: A bar of the logarithmic count axis is ``log2(1 + spikes)`` of so many parts of the picture high.
LOG_PARTS = 8.0


class LevelPictures:
    """Draws histograms and raster plots; `Drawer` defines them.

    Parameters
    ----------
    binned
        The recording's spikes, on the device where the pictures are drawn.
    windows, picture, size
        As for `Drawer`.

    Attributes
    ----------
    window_bytes : int
        Memory for the intermediate arrays of a window.
    """

    def __init__(self, binned: BinnedSpikes, windows: Windows, picture: Picture, size: int) -> None:
        self.device = binned.device
        self.size = size
        self._picture = picture
        self._binned = binned
        self._width_bins = windows.width_bins
        self._column = _column_edges(windows.width_bins, size)
        if picture.kind == "histogram":
            self._bin, self._level, self._counts = binned.counted
            self._n_levels = len(self._counts)
        else:
            self._n_levels = len(binned.trains.channel_labels)
            self._bin, self._level = binned.fired
            self._bands = _band_coverage(self._n_levels, size).to(self.device)
        # Five arrays of (windows, S, levels), 4 bytes a value, exist at once.
        self.window_bytes = 20 * size * max(1, self._n_levels)

    def draw(self, window_bin: torch.Tensor, out: torch.Tensor) -> None:
        """Draw the windows that begin with some bins into `out`, (windows, S, S)."""
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
            # Exact area coverage; ``share > 0`` would make any spike as visible as a burst.
            coverage = self._bands.expand(n, self.size, levels)
        if self._picture.kind == "sorted_raster":
            share = share.gather(2, self._order(window_bin)[:, None].expand_as(share))
        white = torch.ones((), device=self.device).expand_as(out)
        torch.baddbmm(white, coverage, share.transpose(1, 2), alpha=-1, out=out)
        out.clamp_(0, 1)  # rounding may give -1e-7

    def _order(self, window_bin: torch.Tensor) -> torch.Tensor:
        """Electrodes of each window, most active first, (windows, E) int64."""
        order = self._binned.placed.by_activity(
            window_bin.numpy(), self._width_bins, self._n_levels
        )
        return torch.as_tensor(order, device=self.device).long()

    def _running_totals(self, window_bin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Count, for each level, the bins before every column edge of these windows that show it.

        Returns the totals, (edges, levels) int32, and for each window the rows of the totals at
        which its columns start and end, (windows, 2, S).
        """
        begin, end = int(window_bin[0]), int(window_bin[-1] + self._column[1, -1])
        edge_bin = (window_bin[:, None, None] - begin + self._column).to(self.device)
        is_edge = torch.zeros(end - begin + 1, dtype=torch.int64, device=self.device)
        is_edge[edge_bin.view(-1)] = 1
        row = is_edge.cumsum(0) - 1
        n_edges = int(row[-1]) + 1
        inside = torch.tensor([begin, end], dtype=self._bin.dtype, device=self.device)
        lo, hi = torch.searchsorted(self._bin, inside).tolist()
        # Bins between edge k and the next one count from edge k + 1 on.
        cell = (row[self._bin[lo:hi].long() - begin] + 1) * self._n_levels + self._level[lo:hi]
        totals = torch.zeros(n_edges * self._n_levels, dtype=torch.int32, device=self.device)
        totals.scatter_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
        totals = totals.view(n_edges, self._n_levels).cumsum(0, dtype=torch.int32)
        return totals, row[edge_bin]

    def _bar_coverage(self, shown: torch.Tensor) -> torch.Tensor:
        """Compute how much of each pixel row, top first, the bar of each count covers.

        `shown` (windows, levels) tells whether the window has a bin of that count. Returns
        (windows, S, levels) float32.
        """
        height = self._bar_heights(shown)
        whole = height.floor()
        # In two parts, because height - row in float32 would lose the fraction in tall pictures.
        whole, part = whole.float()[:, None], (height - whole).float()[:, None]
        row = torch.arange(self.size - 1, -1, -1, dtype=torch.float32, device=self.device)
        coverage = (whole - row[:, None]).add_(part).clamp_(0, 1)
        return coverage.expand(len(shown), -1, -1)

    def _bar_heights(self, shown: torch.Tensor) -> torch.Tensor:
        """Height of each count's bar in pixels, (windows, levels), or (1, levels) if all share it.

        They are float64.
        """
        counts = self._counts.to(torch.float64)
        if self._picture.count_axis == "log":
            return (counts.log1p() * (self.size / LOG_PARTS / math.log(2)))[None]
        return counts * self.size / self._axis_top(shown)

    def _axis_top(self, shown: torch.Tensor) -> torch.Tensor:
        """Top of the count axis, (windows, 1) float64, or (1, 1) if all windows share it."""
        axis = self._picture.count_axis
        if isinstance(axis, str) and self._n_levels == 0:
            top = torch.ones(1)  # nothing is drawn, whatever the axis
        elif axis == "window":
            # In an empty window nothing is drawn; 1 only avoids 0 / 0.
            top = (self._counts * shown).amax(1).clamp(min=1)
        elif axis == "recording":
            top = self._counts[-1:]
        else:
            top = torch.tensor([float(axis)])
        return top.to(self.device, torch.float64)[:, None]


def _column_edges(n_bins: int, size: int) -> torch.Tensor:
    """First bin of each column and the bin after its last, within the window, (2, S) int64."""
    edge = -(-torch.arange(size + 1) * n_bins // size)  # rounded up: the bins that start in it
    first, end = edge[:-1], edge[1:]
    covering = torch.arange(size) * n_bins // size
    none = first == end
    return torch.stack([torch.where(none, covering, first), torch.where(none, covering + 1, end)])


def _band_coverage(n_channels: int, size: int) -> torch.Tensor:
    """Part of each pixel row, top first, inside each electrode's band, (S, E) float32."""
    row = torch.arange(size)[:, None] * n_channels
    band = torch.arange(n_channels) * size
    # In units of 1 / (S x E) of the picture, so that all but the last division is exact.
    overlap = torch.minimum(row + n_channels, band + size) - torch.maximum(row, band)
    return (overlap.clamp(min=0) / max(1, n_channels)).float()

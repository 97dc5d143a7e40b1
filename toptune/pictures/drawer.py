"""The sliding windows of a recording drawn as square pictures.

A picture's column is a run of bins, and a pixel is a mean over that run. So a picture needs only
the number of bins in each column that show each *level*: for the histogram a level is a spike count
that occurs, for the raster an electrode that fired. These shares come from one table of running
totals at the columns' edges, however much windows overlap, and the picture is one matrix product:
(coverage of a pixel row by a level) x (share of the column's bins at that level). No loop runs over
windows, bins or spikes. The code runs on every torch device; on CUDA, `drawer_cuda` draws the same
pictures in one launch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from toptune.params import Picture, Windows
from toptune.pictures.bins import BinnedSpikes
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.windows import window_bins, window_starts

if TYPE_CHECKING:
    from toptune.pictures.drawer_cuda import CudaBinnedSpikes, CudaDrawer, ResidentSpikes

# The most memory for the intermediate arrays of one block of windows, whatever the batch.
_BLOCK_BYTES = 64 * 2**20


class Drawer:
    """Draws any slice of a recording's windows, in torch's operations.

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
        Where the pictures are drawn and stay.
    binned
        The recording's spikes in bins of the windows' bin length, on `device`; made if None.

    Attributes
    ----------
    start_s : (n_windows,) float64
        Start of each window in seconds since the recording's start.
    largest_count : int
        Spikes in the recording's fullest bin, where a histogram is drawn; the top of the count
        axis ``recording``.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.

    Notes
    -----
    `BinnedSpikes` says which bin a spike is in; samples after a segment's last whole bin are not
    drawn. A bin belongs to the column in which it starts: ``floor(bin * S / bins)``. If no bin
    starts in a column, because there are fewer bins than columns, the column shows the bin that
    covers it: ``floor(column * bins / S)``.

    Histogram: with h spikes in a bin, over all channels, and A the top of the count axis, the
    pixel in row j from the bottom is as dark as the mean of ``clip(h * S / A - j, 0, 1)`` over its
    column's bins, which is the area of the bar chart inside the pixel. Bars above A are cut off. A
    picture whose count axis would end at 0 is white.

    Raster: electrode e of E, with 0 at the top, has the band of rows from ``e * S / E`` to
    ``(e + 1) * S / E``, silent or not; a mark is one bin wide and as high as the band. A pixel is
    as dark as the sum over electrodes of (part of the row inside the band) x (darkness of the
    electrode's marks).
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
        self._window_bin = torch.as_tensor(window_bins(starts, binned.segment_bins))
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

        Returns (last - first, S, S) float32 in [0, 1] on the drawer's device. If the recording has
        no such windows, that is an `IndexError`.
        """
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"windows {first} to {last} asked for, there are {len(self)}")
        pictures = torch.empty((last - first, self.size, self.size), device=self.device)
        # Four arrays of (windows, S, levels), 4 bytes a value, exist at once.
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
            # Exact area coverage; ``share > 0`` would make any spike as visible as a burst.
            coverage = self._bands.expand(n, self.size, levels)
        white = torch.ones((), device=self.device).expand_as(out)
        torch.baddbmm(white, coverage, share.transpose(1, 2), alpha=-1, out=out)
        out.clamp_(0, 1)  # rounding may give -1e-7

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
        top = self._axis_top(shown)
        height = self._counts.to(torch.float64) * self.size / top
        whole = height.floor()
        # In two parts, because height - row in float32 would lose the fraction in tall pictures.
        whole, part = whole.float()[:, None], (height - whole).float()[:, None]
        row = torch.arange(self.size - 1, -1, -1, dtype=torch.float32, device=self.device)
        coverage = (whole - row[:, None]).add_(part).clamp_(0, 1)
        return coverage.expand(len(shown), -1, -1)

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


class Drawers:
    """The drawers of one recording, on any device; those of one bin length share binned spikes.

    Parameters
    ----------
    trains
        The recording's spikes.
    resident
        The same spikes on the current GPU, if they were detected there.
    """

    def __init__(self, trains: SpikeTrains, resident: ResidentSpikes | None = None) -> None:
        self.trains = trains
        self._resident = resident
        self._binned: dict[float, BinnedSpikes] = {}
        self._binned_on_cuda: dict[tuple[str, float], CudaBinnedSpikes] = {}

    def drawer(
        self, windows: Windows, picture: Picture, size: int, device: str
    ) -> Drawer | CudaDrawer:
        """Return the drawer of some windows on the device where their features are computed.

        Parameters
        ----------
        windows, picture
            Which windows, and how they are drawn.
        size
            Side of the pictures in pixels.
        device
            ``cpu``, or ``cuda`` with or without an index.

        Raises
        ------
        InputError
            A spike lies outside the recording or on a channel it does not have.
        ToptuneError
            CuPy, which launches CUDA kernels, is not installed.
        """
        if device != "cpu":
            return self._on_cuda(windows, picture, size, device)
        bin_ms = windows.bin_ms
        if bin_ms not in self._binned:
            self._binned[bin_ms] = BinnedSpikes(self.trains, bin_ms, "cpu")
        return Drawer(self.trains, windows, picture, size, "cpu", self._binned[bin_ms])

    def _on_cuda(self, windows: Windows, picture: Picture, size: int, device: str) -> CudaDrawer:
        from toptune.machine.cuda import torch_kernels
        from toptune.pictures.drawer_cuda import CudaBinnedSpikes, CudaDrawer

        key = (device, windows.bin_ms)
        if key not in self._binned_on_cuda:
            index = torch.device(device).index
            index = torch.cuda.current_device() if index is None else index
            target = torch.device("cuda", index)
            resident = self._resident
            if resident is not None and resident.sample.device != target:
                resident = None
            self._binned_on_cuda[key] = CudaBinnedSpikes(
                self.trains, key[1], target, torch_kernels("render", index).launch, resident
            )
        return CudaDrawer(self._binned_on_cuda[key], windows, picture, size)


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

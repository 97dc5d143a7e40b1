"""The sliding windows of a recording drawn by CUDA kernels, straight into a network's input.

The pictures are those of `toptune.pictures.drawer.Drawer`, in a batch as a network takes it:
channels last, in 32 or 16 bits. One launch of kernels/render.cu draws any number of windows, and
the host never waits for the device.

Torch's operations would move more and wait more: a matrix product of shares and coverages needs
S x levels values of both for each window, reads and writes them several times in about twenty
launches, and asks the device for the numbers of levels and edges. The kernels read the spike counts
(4 bytes per bin) or marks (1 bit per bin and electrode) and write the batch.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from toptune.machine.cuda import Launch
from toptune.params import Picture, Windows
from toptune.pictures import cells
from toptune.pictures.bins import PlacedSpikes
from toptune.recordings.trains import SpikeTrains, check_spikes
from toptune.recordings.windows import SegmentBins, window_bins, window_starts

# Pixels of a column per thread; it only suggests how many threads are useful.
_ROWS = 16
_NOTHING = 0  # a pointer
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class InputChannels(NamedTuple):
    """The content of a network's input channels: darkness * scale + shift."""

    scale: torch.Tensor  # (channels,) float32, on the device of the pictures
    shift: torch.Tensor  # the same

    @classmethod
    def of(cls, channels: tuple[tuple[float, float], ...], device: torch.device) -> InputChannels:
        """Copy (scale, shift) of each channel to a device."""
        scale, shift = torch.tensor(channels, dtype=torch.float32).T.contiguous().to(device)
        return cls(scale, shift)


def _upload(values: NDArray[np.int64] | NDArray[np.int32], device: torch.device) -> torch.Tensor:
    """Copy to a device from pinned memory; a copy from other memory would wait for the device."""
    tensor = torch.tensor(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class ResidentSpikes(NamedTuple):
    """Spikes on the device where they were detected."""

    sample: torch.Tensor  # (n,) int64
    channel: torch.Tensor  # (n,) int32


class CudaBinnedSpikes:
    """What `BinnedSpikes` is, for the kernels of render.cu, which `launch` launches on `device`.

    `resident` are the same spikes if they are on the device already; else they are uploaded.
    `count` (bins,) int32 are the spikes per bin. Bit b of word k of a channel in `fired` (channels,
    words) int32 tells whether it fired in bin 32 k + b.
    """

    def __init__(
        self,
        trains: SpikeTrains,
        bin_ms: float,
        device: torch.device,
        launch: Launch,
        resident: ResidentSpikes | None = None,
    ) -> None:
        check_spikes(trains)
        self.trains, self.bin_ms, self.device, self.launch = trains, bin_ms, device, launch
        self.segment_bins = SegmentBins.of(trains, bin_ms)
        first_sample, n_bins, offset, per_bin = self.segment_bins
        words = -(-self.segment_bins.total // 32)
        self.count = torch.zeros(self.segment_bins.total, dtype=torch.int32, device=device)
        shape = (len(trains.channel_labels), words)
        self.fired = torch.zeros(shape, dtype=torch.int32, device=device)
        n = len(trains.spikes.sample)
        if n:
            places = [_upload(c, device) for c in (first_sample, n_bins, offset)]
            sample, channel = resident or (
                _upload(c, device) for c in (trains.spikes.sample, trains.spikes.channel)
            )
            launch(
                "render_place", n, n, sample, channel, len(first_sample), *places, per_bin, words,
                self.count, self.fired,
            )  # fmt: skip

    @cached_property
    def placed(self) -> PlacedSpikes:
        """The spikes in whole bins, in main memory."""
        return PlacedSpikes.of(self.trains, self.segment_bins)

    @cached_property
    def highest(self) -> torch.Tensor:
        """The largest count of a bin, () int32; 0 if there is no bin."""
        return torch.cat([self.count, self.count.new_zeros(1)]).amax()


class CudaDrawer:
    """Draws any slice of a recording's windows; `Drawer` defines the pictures.

    Parameters
    ----------
    binned
        The recording's spikes in bins of the windows' bin length.
    windows
        Width, stride and bin.
    picture
        Histogram with its count axis, raster, or sorted raster.
    size
        Side S of the pictures in pixels, 1 or more.

    Attributes
    ----------
    start_s : (n_windows,) float64
        Start of each window in seconds since the recording's start.
    """

    def __init__(
        self, binned: CudaBinnedSpikes, windows: Windows, picture: Picture, size: int
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be 1 or more, got {size}")
        if picture.kind in cells.KINDS:
            raise ValueError(f"pictures of {picture.kind} are drawn by `Drawer`, on CUDA, too")
        if binned.bin_ms != windows.bin_ms:
            raise ValueError(f"spikes lie in bins of {binned.bin_ms} ms, not {windows.bin_ms} ms")
        self.size = size
        self.device = binned.device
        self._binned, self._windows, self._picture = binned, windows, picture
        starts = window_starts(binned.trains, windows)
        self.start_s = starts.start_s
        bins = window_bins(starts, binned.segment_bins)
        self._window_bin = _upload(bins, self.device)
        self._order: torch.Tensor | None = None
        if picture.kind == "histogram":
            self._top = self._axis_tops()
        elif picture.kind == "sorted_raster":
            n_electrodes = len(binned.trains.channel_labels)
            order = binned.placed.by_activity(bins, windows.width_bins, n_electrodes)
            self._order = _upload(order, self.device)

    def __len__(self) -> int:
        return len(self.start_s)

    def render(self, first: int, last: int, out: torch.Tensor, channels: InputChannels) -> None:
        """Draw windows `first` up to, not including, `last` into a batch; only queue the work.

        If the recording has no such windows, that is an `IndexError`. The batch `out`, (last -
        first, channels, S, S) float32, float16 or bfloat16, is on the device, channels last in
        memory, and is overwritten. One of another shape, type or layout is a `ValueError`.
        """
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"windows {first} to {last} asked for, there are {len(self)}")
        n, size = last - first, self.size
        shape = (n, len(channels.scale), size, size)
        pixels_last = out.permute(0, 2, 3, 1) if out.ndim == 4 else out
        if out.shape != shape or out.dtype not in _TYPES or not pixels_last.is_contiguous():
            raise ValueError(
                f"the batch must be {shape} in {', '.join(map(str, _TYPES))}, channels last, got "
                f"{tuple(out.shape)}, {out.dtype}, strides {out.stride()}"
            )
        if n == 0:
            return
        binned = self._binned
        target = (_TYPES[out.dtype], shape[1], channels.scale, channels.shift, out)
        threads = n * -(-size // _ROWS) * size
        windows = (n, self._window_bin[first:last], self._windows.width_bins, size)
        if self._picture.kind == "histogram":
            logarithmic = int(self._picture.count_axis == "log")
            axis = (logarithmic, self._top[first:last])
            binned.launch("render_histogram", threads, *windows, binned.count, *axis, *target)
        else:
            fired = (*binned.fired.shape, binned.fired)
            order = _NOTHING if self._order is None else self._order[first:last]
            binned.launch("render_raster", threads, *windows, *fired, order, *target)

    def draw(self, first: int, last: int) -> torch.Tensor:
        """Draw windows in grey values from 0 to 1 (white), (last - first, S, S) float32."""
        grey = InputChannels.of(((-1.0, 1.0),), self.device)
        shape = (max(last - first, 0), 1, self.size, self.size)
        pictures = torch.empty(shape, device=self.device, memory_format=torch.channels_last)
        self.render(first, last, pictures, grey)
        return pictures[:, 0]

    def _axis_tops(self) -> torch.Tensor:
        """Return the top of each window's count axis, (n_windows,) float64."""
        axis = self._picture.count_axis
        n = len(self)
        if axis == "window":
            top = self._window_tops()
        elif axis == "recording":
            top = self._binned.highest.expand(n)
        elif axis == "log":  # its top is the kernel's
            top = torch.ones(n, device=self.device)
        else:
            top = torch.full((n,), float(axis), dtype=torch.float64, device=self.device)
        return top.to(torch.float64).contiguous()

    def _window_tops(self) -> torch.Tensor:
        """Find the largest count in each window, (n_windows,) int32."""
        width, stride = self._windows.width_bins, self._windows.stride_bins
        # Windows begin and end at multiples of this, counted from their segment's start.
        step = math.gcd(width, stride)
        tops = []
        for n_bins, offset in zip(*self._binned.segment_bins[1:3], strict=True):
            if n_bins >= width:
                whole = self._binned.count[offset : offset + n_bins - n_bins % step]
                of_step = whole.view(-1, step).amax(1)
                tops.append(of_step.unfold(0, width // step, stride // step).amax(1))
        return torch.cat(tops) if tops else self._binned.count.new_empty(0)

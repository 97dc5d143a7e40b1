"""Draw the sliding windows of a recording by CUDA kernels, into a network's input.

What enters: the spikes of one recording, window and picture parameters, and what launches the
kernels of kernels/render.cu. What leaves: pictures, the same as those of `windows.Drawer`, in a
batch that a network takes: channels last, in 32 or 16 bits. One launch draws any number of
windows, and nothing waits for the device.

Kernels rather than torch's operations, because of what the latter move and wait for: a matrix
product of shares and coverages needs, for each window, S x levels values of both, read and written
several times in about twenty launches, and asks the device how many levels and edges there are. The
kernels read the spikes' counts (4 bytes a bin) or marks (1 bit a bin and electrode), and write the
batch.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from toptune.machine.cuda_launch import Launch
from toptune.params import Picture, Windows
from toptune.pictures.bins import Stretches, check_spikes
from toptune.pictures.drawer import window_bins, window_starts
from toptune.recordings.trains import SpikeTrains

# Pixels of a column that a thread makes; only a hint of how many threads are of use.
_ROWS = 16
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class InputChannels(NamedTuple):
    """What the channels of a network's input hold: darkness * scale + shift.

    Attributes
    ----------
    scale, shift : (channels,) float32
        On the device of the pictures.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(cls, channels: tuple[tuple[float, float], ...], device: torch.device) -> InputChannels:
        """Bring (scale, shift) of each channel to a device."""
        scale, shift = torch.tensor(channels, dtype=torch.float32).T.contiguous().to(device)
        return cls(scale, shift)


def _upload(values: NDArray[np.int64] | NDArray[np.int32], device: torch.device) -> torch.Tensor:
    """Copy to a device; from pinned memory, since from other memory it would wait for its work."""
    tensor = torch.tensor(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class ResidentSpikes(NamedTuple):
    """Spikes that are on a device already, because they were found there.

    Attributes
    ----------
    sample : (n,) int64
    channel : (n,) int32
    """

    sample: torch.Tensor
    channel: torch.Tensor


class PlacedSpikes:
    """A recording's spikes in bins, on a device; windows and pictures share it.

    Parameters
    ----------
    trains
        The recording's spikes.
    bin_ms
        Length of a bin.
    device
        Where to.
    launch
        Launches the kernels of render.cu on that device.
    resident
        The same spikes where they are on the device already; uploaded where None.

    Attributes
    ----------
    trains, bin_ms, device, launch
        As given.
    stretches
        Where the bins lie.
    count : (bins,) int32
        Spikes of each bin, over all channels.
    fired : (channels, words) int32
        Bit b of word k of a channel tells whether it fired in bin 32 k + b.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.
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
        self.stretches = Stretches.of(trains, bin_ms)
        first_sample, n_bins, offset, per_bin = self.stretches
        words = -(-self.stretches.total // 32)
        self.count = torch.zeros(self.stretches.total, dtype=torch.int32, device=device)
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
    def highest(self) -> torch.Tensor:
        """The largest count of a bin, () int32; 0 where there is no bin."""
        return torch.cat([self.count, self.count.new_zeros(1)]).amax()


class Renderer:
    """Draws any slice of a recording's windows; the pictures are defined at `windows.Drawer`.

    Parameters
    ----------
    placed
        The recording's spikes in bins of the windows' length.
    windows
        Width, stride and bin.
    picture
        Histogram with its count axis, or raster.
    size
        Side S of the pictures in pixels, 1 or more.

    Attributes
    ----------
    start_s : (n_windows,) float64
        Start of each window in seconds since the recording's start.
    size, device
        As given.
    """

    def __init__(self, placed: PlacedSpikes, windows: Windows, picture: Picture, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be 1 or more, got {size}")
        if placed.bin_ms != windows.bin_ms:
            raise ValueError(f"spikes lie in bins of {placed.bin_ms} ms, not {windows.bin_ms} ms")
        self.size = size
        self.device = placed.device
        self._placed, self._windows, self._picture = placed, windows, picture
        starts = window_starts(placed.trains, windows)
        self.start_s = starts.start_s
        bins = window_bins(starts, placed.stretches)
        self._window_bin = _upload(bins, self.device)
        if picture.kind == "histogram":
            self._top = self._axis_tops()

    def __len__(self) -> int:
        return len(self.start_s)

    def render(self, first: int, last: int, out: torch.Tensor, channels: InputChannels) -> None:
        """Draw windows `first` up to, not including, `last` into a batch; returns at once.

        Parameters
        ----------
        first, last
            A slice of the windows, ``0 <= first <= last <= len(self)``.
        out : (last - first, channels, S, S) float32, float16 or bfloat16
            Channels last in memory, on the device; overwritten.
        channels
            What `out`'s channels hold.

        Raises
        ------
        IndexError
            There are no such windows.
        ValueError
            `out` is none of these.
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
        placed = self._placed
        target = (_TYPES[out.dtype], shape[1], channels.scale, channels.shift, out)
        threads = n * -(-size // _ROWS) * size
        windows = (n, self._window_bin[first:last], self._windows.width_bins, size)
        if self._picture.kind == "histogram":
            top = self._top[first:last]
            placed.launch("render_histogram", threads, *windows, placed.count, top, *target)
        else:
            electrodes, words = placed.fired.shape
            placed.launch(
                "render_raster", threads, *windows, electrodes, words, placed.fired, *target
            )

    def draw(self, first: int, last: int) -> torch.Tensor:
        """Draw windows as grey values in [0, 1], (last - first, S, S) float32, 1 = white."""
        grey = InputChannels.of(((-1.0, 1.0),), self.device)
        shape = (max(last - first, 0), 1, self.size, self.size)
        pictures = torch.empty(shape, device=self.device, memory_format=torch.channels_last)
        self.render(first, last, pictures, grey)
        return pictures[:, 0]

    def _axis_tops(self) -> torch.Tensor:
        """Top of each window's count axis, (n_windows,) float64."""
        axis = self._picture.count_axis
        n = len(self)
        if axis == "window":
            top = self._window_tops()
        elif axis == "recording":
            top = self._placed.highest.expand(n)
        else:
            top = torch.full((n,), float(axis), dtype=torch.float64, device=self.device)
        return top.to(torch.float64).contiguous()

    def _window_tops(self) -> torch.Tensor:
        """Find the largest count in each window, (n_windows,) int32."""
        width, stride = self._windows.width_bins, self._windows.stride_bins
        # Windows begin and end at multiples of this, from their stretch's start.
        step = math.gcd(width, stride)
        tops = []
        for n_bins, offset in zip(*self._placed.stretches[1:3], strict=True):
            if n_bins >= width:
                whole = self._placed.count[offset : offset + n_bins - n_bins % step]
                of_step = whole.view(-1, step).amax(1)
                tops.append(of_step.unfold(0, width // step, stride // step).amax(1))
        return torch.cat(tops) if tops else self._placed.count.new_empty(0)

"""Where the sliding windows of a recording lie, and the bins that they are made of.

Bins are counted from each segment's start, and a window never spans a gap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.params import Windows
from toptune.recordings.trains import SpikeTrains


class SegmentBins(NamedTuple):
    """The whole bins of each segment of a recording."""

    first_sample: NDArray[np.int64]  # (segments,)
    n_bins: NDArray[np.int64]  # (segments,); the samples after the last bin belong to none
    offset: NDArray[np.int64]  # (segments,): bins in all previous segments
    per_bin: float  # samples, which need not be a whole number

    @classmethod
    def of(cls, trains: SpikeTrains, bin_ms: float) -> SegmentBins:
        """Cut a recording's segments into bins."""
        per_bin = trains.sampling_rate_hz * bin_ms / 1000
        first = np.array([s.first_sample for s in trains.segments], dtype=np.int64)
        n_bins = np.array(
            [math.floor(s.n_samples / per_bin) for s in trains.segments], dtype=np.int64
        )
        return cls(first, n_bins, np.cumsum(n_bins) - n_bins, per_bin)

    @property
    def total(self) -> int:
        """Whole bins of the recording."""
        return int(self.n_bins.sum())


class WindowStarts(NamedTuple):
    """Where the windows of a recording begin, in order of time."""

    segment: NDArray[np.int64]  # (n,): the segment that holds the window
    first_bin: NDArray[np.int64]  # (n,): its first bin, counted from its segment's start
    start_s: NDArray[np.float64]  # (n,): seconds from the recording's start to the window's


def window_starts(trains: SpikeTrains, windows: Windows) -> WindowStarts:
    """Place the whole windows of a recording: (duration - width) / stride + 1 in each segment.

    Only the segments and the sampling rate of `trains` matter. There are no windows in a segment
    shorter than one.
    """
    n_bins = SegmentBins.of(trains, windows.bin_ms).n_bins
    n_windows = np.maximum((n_bins - windows.width_bins) // windows.stride_bins + 1, 0)
    segment = np.repeat(np.arange(len(n_bins)), n_windows)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    segment_start_s = np.array([s.start_s for s in trains.segments], dtype=np.float64)
    return WindowStarts(
        segment, within * windows.stride_bins, segment_start_s[segment] + within * windows.stride_s
    )


def window_bins(starts: WindowStarts, bins: SegmentBins) -> NDArray[np.int64]:
    """Return each window's first bin, counted through all segments, (n,) int64."""
    return bins.offset[starts.segment] + starts.first_bin

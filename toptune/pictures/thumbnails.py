"""A whole recording at a glance: its histogram and its raster as small PNG images.

They are drawn as windows are (`toptune.pictures.drawer`), for one window as long as the recording
and not square, by NumPy alone: a report needs no torch. Bins are coarser than the usual 10 ms: a
column of the image is seconds long, and a burst in one of its hundreds of bins would be too pale.
"""

from __future__ import annotations

import io
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes, spike_times_s

Int64 = NDArray[np.int64]

WIDTH, HEIGHT = 720, 120
# About one bin per column, so that bars are solid, and ten, so that marks stay separate.
_HISTOGRAM_BINS, _RASTER_BINS = 1_000, 10_000
_GREYS = 16


class HistogramThumbnail(NamedTuple):
    """The histogram alone, of a recording whose spikes were not kept."""

    histogram: bytes
    histogram_bin_s: float  # width of its bins
    largest_count: int  # spikes in its fullest bin, whose bar is as high as the image
    duration_s: float  # from the recording's start to its end


class Thumbnails(NamedTuple):
    """Images of one recording, PNG of `WIDTH` x `HEIGHT`, and what their captions say."""

    histogram: bytes
    raster: bytes
    histogram_bin_s: float  # width of the histogram's bins
    largest_count: int  # spikes in its fullest bin, whose bar is as high as the image
    duration_s: float  # from the recording's start to its end, gaps included


def draw_thumbnails(trains: SpikeTrains) -> Thumbnails:
    """Draw a recording as a whole; a gap is empty."""
    whole = without_gaps(trains)
    bin_ms = _bin_ms(whole, _HISTOGRAM_BINS)
    bins, n_bins = _in_bins(whole, bin_ms)
    histogram = _draw_histogram(bins, n_bins)
    in_raster = _in_bins(whole, _bin_ms(whole, _RASTER_BINS))
    raster = _draw_raster(
        in_raster[0], whole.spikes.channel, in_raster[1], len(whole.channel_labels)
    )
    return Thumbnails(
        histogram=grey_png(histogram),
        # The square root makes a single spike visible beside a burst.
        raster=grey_png(np.sqrt(raster)),
        histogram_bin_s=bin_ms / 1000,
        largest_count=int(np.bincount(bins, minlength=1).max()),
        duration_s=whole.duration_s,
    )


def draw_counts(counts: NDArray[np.int64], bin_s: float) -> HistogramThumbnail:
    """Draw a recording of which only the spikes of all electrodes per bin are known, (n_bins,)."""
    return HistogramThumbnail(
        histogram=grey_png(_draw_bars(counts)),
        histogram_bin_s=bin_s,
        largest_count=int(counts.max(initial=0)),
        duration_s=len(counts) * bin_s,
    )


def without_gaps(trains: SpikeTrains) -> SpikeTrains:
    """Place spikes by their times in a single segment, in which gaps are silent."""
    times_s, rate = spike_times_s(trains), trains.sampling_rate_hz
    last = trains.segments[-1]
    # From time 0 to the end of the last segment.
    n_samples = round(last.start_s * rate) + last.n_samples
    sample = np.minimum(np.rint(times_s * rate).astype(np.int64), n_samples - 1)
    return SpikeTrains(
        spikes=sort_spikes(sample, trains.spikes.channel, trains.spikes.peak_to_peak_uv),
        channel_labels=trains.channel_labels,
        sampling_rate_hz=rate,
        segments=(Segment(0, n_samples, 0.0),),
        threshold_uv=trains.threshold_uv,
    )


def _bin_ms(trains: SpikeTrains, n_bins: int) -> float:
    """Choose a bin length in whole tens of milliseconds that gives about `n_bins` bins."""
    return max(1, round(trains.duration_s * 100 / n_bins)) * 10.0


def _in_bins(trains: SpikeTrains, bin_ms: float) -> tuple[Int64, int]:
    """Give each spike's bin, and how many whole bins there are, which are drawn."""
    bins = trains.spikes.sample // (trains.sampling_rate_hz * bin_ms / 1000)
    return bins.astype(np.int64), math.floor(trains.duration_s * 1000 / bin_ms)


def _draw_histogram(bins: Int64, n_bins: int) -> NDArray[np.float32]:
    """Draw bars as high as the image where a bin is the fullest; (`HEIGHT`, `WIDTH`)."""
    return _draw_bars(np.bincount(bins, minlength=n_bins)[:n_bins])


def _draw_bars(counts: Int64) -> NDArray[np.float32]:
    heights = counts * (HEIGHT / max(1, counts.max(initial=0)))
    row = np.arange(HEIGHT - 1, -1, -1)[:, None]
    return _mean_of_columns(np.clip(heights - row, 0, 1))


def _draw_raster(
    bins: Int64, channel: NDArray[np.int32], n_bins: int, n_channels: int
) -> NDArray[np.float32]:
    """Draw a band for each electrode, as dark as its bins are full; (`HEIGHT`, `WIDTH`)."""
    drawn = bins < n_bins
    # Each electrode's bins once, of which only the columns' counts are kept: thousands of
    # electrodes in ten thousand bins would be too many cells.
    fired = np.unique(channel[drawn] * np.int64(n_bins) + bins[drawn])
    electrode, bin_of = np.divmod(fired, max(1, n_bins))
    if n_bins >= WIDTH:
        column = bin_of * WIDTH // n_bins
        per_column = np.diff(_edges(n_bins))
        counted = _counted(electrode, column, (n_channels, WIDTH))
        shares = (counted / per_column).astype(np.float32)
    else:
        shares = _mean_of_columns(_counted(electrode, bin_of, (n_channels, n_bins)))
    row, band = np.arange(HEIGHT)[:, None] * n_channels, np.arange(n_channels) * HEIGHT
    inside = np.minimum(row + n_channels, band + HEIGHT) - np.maximum(row, band)
    coverage = (inside.clip(min=0) / max(1, n_channels)).astype(np.float32)
    dark: NDArray[np.float32] = coverage @ shares
    return dark


def _counted(row: Int64, column: Int64, shape: tuple[int, int]) -> Int64:
    return np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1]).reshape(shape)


def _edges(n_bins: int) -> Int64:
    """First bin that starts in each column, and the number of bins."""
    return -(-np.arange(WIDTH + 1) * n_bins // WIDTH)


def _mean_of_columns(of_bins: NDArray[Any]) -> NDArray[np.float32]:
    """Average the bins that start in each column, or take the one that covers it."""
    n_bins = of_bins.shape[1]
    if not n_bins:  # shorter than a bin
        return np.zeros((len(of_bins), WIDTH), np.float32)
    totals: NDArray[Any] = np.zeros((len(of_bins), n_bins + 1))
    np.cumsum(of_bins, axis=1, out=totals[:, 1:])
    edge, covering = _edges(n_bins), np.arange(WIDTH) * n_bins // WIDTH
    none = edge[:-1] == edge[1:]
    first, end = np.where(none, covering, edge[:-1]), np.where(none, covering + 1, edge[1:])
    mean: NDArray[np.float32] = ((totals[:, end] - totals[:, first]) / (end - first)).astype("f4")
    return mean


def grey_png(darkness: NDArray[np.float32]) -> bytes:
    """Write a picture, (height, width) from 0 for white to 1 for black, as PNG in 16 greys."""
    image = Image.fromarray(np.rint((1 - darkness) * (_GREYS - 1)).astype(np.uint8), mode="P")
    image.putpalette([level * 255 // (_GREYS - 1) for level in range(_GREYS) for _ in range(3)])
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True, bits=4)
    return out.getvalue()

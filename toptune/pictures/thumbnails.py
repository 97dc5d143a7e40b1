"""A whole recording at a glance: its histogram and its raster as small PNG images.

They are drawn as windows are, with coarser bins than the usual 10 ms: a column of the image is
seconds long, and a burst in one of its hundreds of bins would be too pale to see.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toptune.params import Picture, Windows
from toptune.pictures.drawer import Drawer
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes, spike_times_s

WIDTH, HEIGHT = 720, 120
# About one bin per column, so that bars are solid, and ten, so that marks stay separate.
_HISTOGRAM_BINS, _RASTER_BINS = 1_000, 10_000
_GREYS = 16


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
    histogram = _draw(whole, "histogram", bin_ms)
    # The square root makes a single spike visible beside a burst.
    raster = np.sqrt(_draw(whole, "raster", _bin_ms(whole, _RASTER_BINS)))
    bins = whole.spikes.sample // (whole.sampling_rate_hz * bin_ms / 1000)
    return Thumbnails(
        histogram=grey_png(histogram),
        raster=grey_png(raster),
        histogram_bin_s=bin_ms / 1000,
        largest_count=int(np.bincount(bins.astype(np.int64), minlength=1).max()),
        duration_s=whole.duration_s,
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


def _draw(trains: SpikeTrains, kind: str, bin_ms: float) -> NDArray[np.float32]:
    """Draw the whole recording; its darkness, (`HEIGHT`, `WIDTH`)."""
    n_bins = max(1, math.floor(trains.duration_s * 1000 / bin_ms))
    width_s = n_bins * bin_ms / 1000
    windows = Windows(width_s=width_s, stride_s=width_s, bin_ms=bin_ms)
    drawer = Drawer(trains, windows, Picture.from_json({"kind": kind}), WIDTH)
    if not len(drawer):  # shorter than a bin
        return np.zeros((HEIGHT, WIDTH), np.float32)
    picture = 1 - drawer.draw(0, 1)[0].numpy()
    # The coverage of a row as high as several rows is the mean of theirs.
    rows: NDArray[np.float32] = picture.reshape(HEIGHT, WIDTH // HEIGHT, WIDTH).mean(axis=1)
    return rows


def grey_png(darkness: NDArray[np.float32]) -> bytes:
    """Write a picture, (height, width) from 0 for white to 1 for black, as PNG in 16 greys."""
    image = Image.fromarray(np.rint((1 - darkness) * (_GREYS - 1)).astype(np.uint8), mode="P")
    image.putpalette([level * 255 // (_GREYS - 1) for level in range(_GREYS) for _ in range(3)])
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True, bits=4)
    return out.getvalue()

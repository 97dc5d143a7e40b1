"""Spikes of one recording, whatever they came from: detected in voltage or read from a file.

What leaves every reader and detector and enters drawing and the store: sample indices (0-based,
counted over the recording's stored samples), channel rows, peak-to-peak amplitudes in microvolts,
and the stretches between gaps with their times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Spikes(NamedTuple):
    """Spikes sorted by sample, then channel.

    Attributes
    ----------
    sample : (n,) int64
        0-based index into the recording's stored samples.
    channel : (n,) int32
        Row of the channel.
    peak_to_peak_uv : (n,) float32
        Differential amplitude in microvolts.
    """

    sample: NDArray[np.int64]
    channel: NDArray[np.int32]
    peak_to_peak_uv: NDArray[np.float32]


class Segment(NamedTuple):
    """A stretch of a recording without a gap; detection and windows never cross its ends.

    Attributes
    ----------
    first_sample
        Index of its first sample among the recording's stored samples.
    n_samples
        Its length.
    start_s
        Time of its first sample, in seconds since the recording's start.
    """

    first_sample: int
    n_samples: int
    start_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SpikeTrains:
    """All spikes of a recording, with what is needed to place them in time and on the array.

    Parameters
    ----------
    spikes
        Sorted by sample, then channel.
    channel_labels
        The electrodes' names, as the recording gives them.
    sampling_rate_hz
        Samples a second.
    segments
        The stretches between gaps, in order; together they hold all samples.
    threshold_uv : (channels,) float32
        The peak-to-peak thresholds used; NaN where none was (spikes from a file), infinite on a
        dead channel.
    """

    spikes: Spikes
    channel_labels: tuple[str, ...]
    sampling_rate_hz: float
    segments: tuple[Segment, ...]
    threshold_uv: NDArray[np.float32]

    @property
    def n_samples(self) -> int:
        """Stored samples a channel, gaps not counted."""
        return sum(s.n_samples for s in self.segments)

    @property
    def duration_s(self) -> float:
        """Recorded time in seconds, gaps not counted."""
        return self.n_samples / self.sampling_rate_hz


def sort_spikes(
    sample: NDArray[np.int64], channel: NDArray[np.int32], peak_to_peak_uv: NDArray[np.float32]
) -> Spikes:
    """Put spikes into the order that `Spikes` promises: by sample, then channel."""
    order = np.lexsort((channel, sample))
    return Spikes(sample[order], channel[order], peak_to_peak_uv[order])


def spike_times_s(trains: SpikeTrains) -> NDArray[np.float64]:
    """Seconds from the recording's start to each spike, gaps included, (n,) float64."""
    firsts = np.array([s.first_sample for s in trains.segments])
    starts = np.array([s.start_s for s in trains.segments])
    which = np.searchsorted(firsts, trains.spikes.sample, side="right") - 1
    since = (trains.spikes.sample - firsts[which]) / trains.sampling_rate_hz
    return np.asarray(starts[which] + since)


def end_s(trains: SpikeTrains) -> float:
    """Seconds from the recording's start to its end, gaps included."""
    last = trains.segments[-1]
    return last.start_s + last.n_samples / trains.sampling_rate_hz

"""The spikes of a recording in bins of equal length, which all its windows share.

Bins are counted through all segments.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from toptune.recordings.trains import SpikeTrains, check_spikes
from toptune.recordings.windows import SegmentBins


class Counted(NamedTuple):
    """Bins that hold spikes, and how many."""

    bin: torch.Tensor  # (m,) int32, every bin with a spike, ascending
    level: torch.Tensor  # (m,) int32, index into `counts` of the bin's spike count
    counts: torch.Tensor  # (levels,) int64, the spike counts that occur, ascending


class Fired(NamedTuple):
    """Bins and the electrodes that fired in them: each pair once, sorted by bin."""

    bin: torch.Tensor  # (m,) int32
    electrode: torch.Tensor  # (m,) int32


class PlacedSpikes(NamedTuple):
    """The spikes in whole bins, in order of time, in main memory.

    A spike's bin is ``floor((sample - first sample of the segment) / samples per bin)``, counted
    through all segments.
    """

    bin: NDArray[np.int64]  # (n,), ascending
    channel: NDArray[np.int32]  # (n,)
    sample: NDArray[np.int64]  # (n,)
    segment: NDArray[np.int64]  # (n,)

    @classmethod
    def of(cls, trains: SpikeTrains, segment_bins: SegmentBins) -> PlacedSpikes:
        """Place a recording's spikes, which `check_spikes` has accepted."""
        (sample, channel, _), (first, n_bins, offset, per_bin) = trains.spikes, segment_bins
        segment = np.searchsorted(first, sample, side="right") - 1
        # In float64, so that bins' edges are exactly those of the definition.
        within = np.floor((sample - first[segment]) / per_bin).astype(np.int64)
        whole = within < n_bins[segment]
        spike_bin = within + offset[segment]
        if whole.all():
            return cls(spike_bin, channel, sample, segment)
        return cls(spike_bin[whole], channel[whole], sample[whole], segment[whole])

    def inside(self, first_bin: int, n_bins: int) -> slice:
        """Find the spikes of a run of bins."""
        low, high = np.searchsorted(self.bin, [first_bin, first_bin + n_bins])
        return slice(int(low), int(high))

    def counts(self, first_bin: int, n_bins: int, n_channels: int) -> NDArray[np.int64]:
        """Count the spikes of each channel in a run of bins, (channels,)."""
        return np.bincount(self.channel[self.inside(first_bin, n_bins)], minlength=n_channels)

    def by_activity(
        self, window_bin: NDArray[np.int64], n_bins: int, n_channels: int
    ) -> NDArray[np.int32]:
        """Sort channels by their spikes in each window, most active first, (windows, channels).

        Of equally active channels the first of the file comes first.
        """
        order = np.empty((len(window_bin), n_channels), np.int32)
        for row, first in zip(order, window_bin.tolist(), strict=True):
            row[:] = np.argsort(-self.counts(first, n_bins, n_channels), kind="stable")
        return order


class BinnedSpikes:
    """A recording's spikes in bins of one length; windows and pictures share it.

    Parameters
    ----------
    trains
        The recording's spikes.
    bin_ms
        Length of a bin.
    device
        Where the tensors are computed and stay.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.
    """

    def __init__(self, trains: SpikeTrains, bin_ms: float, device: torch.device | str) -> None:
        check_spikes(trains)
        self.trains = trains
        self.bin_ms = bin_ms
        self.device = torch.device(device)
        self.segment_bins = SegmentBins.of(trains, bin_ms)  # the bins of each segment

    @cached_property
    def placed(self) -> PlacedSpikes:
        """The spikes in whole bins."""
        return PlacedSpikes.of(self.trains, self.segment_bins)

    @cached_property
    def counted(self) -> Counted:
        """Spikes per bin, over all channels."""
        spike_bin = torch.as_tensor(self.placed.bin, device=self.device)
        count = torch.bincount(spike_bin, minlength=self.segment_bins.total)
        busy = count.nonzero().view(-1)
        count = count[busy]
        occurs = torch.bincount(count) > 0
        level = occurs.cumsum(0) - 1
        return Counted(busy.int(), level[count].int(), occurs.nonzero().view(-1))

    @cached_property
    def fired(self) -> Fired:
        """The electrodes that fired in each bin."""
        n = max(1, len(self.trains.channel_labels))
        pair = torch.as_tensor(self.placed.bin * n + self.placed.channel, device=self.device)
        key = torch.unique_consecutive(torch.sort(pair)[0])
        return Fired((key // n).int(), (key % n).int())

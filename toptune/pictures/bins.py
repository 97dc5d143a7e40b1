"""The spikes of a recording in bins of equal length, as tensors that all its windows share.

Bins are counted through all segments.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch

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

    Notes
    -----
    A spike's bin is ``floor((sample - first sample of the segment) / samples per bin)``.
    """

    def __init__(self, trains: SpikeTrains, bin_ms: float, device: torch.device | str) -> None:
        check_spikes(trains)
        self.trains = trains
        self.bin_ms = bin_ms
        self.device = torch.device(device)
        self.segment_bins = SegmentBins.of(trains, bin_ms)  # the bins of each segment

    @cached_property
    def counted(self) -> Counted:
        """Spikes per bin, over all channels."""
        count = torch.bincount(self._placed[0], minlength=self.segment_bins.total)
        busy = count.nonzero().view(-1)
        count = count[busy]
        occurs = torch.bincount(count) > 0
        level = occurs.cumsum(0) - 1
        return Counted(busy.int(), level[count].int(), occurs.nonzero().view(-1))

    @cached_property
    def fired(self) -> Fired:
        """The electrodes that fired in each bin."""
        spike_bin, channel = self._placed
        n = max(1, len(self.trains.channel_labels))
        key = torch.unique_consecutive(torch.sort(spike_bin * n + channel)[0])
        return Fired((key // n).int(), (key % n).int())

    @cached_property
    def _placed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Bin (counted through all segments) and channel of every spike in a whole bin."""
        spikes, (first_sample, n_bins, offset, per_bin) = self.trains.spikes, self.segment_bins
        sample = torch.tensor(spikes.sample, device=self.device)
        channel = torch.tensor(spikes.channel, device=self.device)
        first = torch.as_tensor(first_sample, device=self.device)
        segment = torch.bucketize(sample, first, right=True) - 1
        # In float64, so that bins' edges are exactly those of the definition.
        within = ((sample - first[segment]).to(torch.float64) / per_bin).floor().to(torch.int64)
        whole = within < torch.as_tensor(n_bins, device=self.device)[segment]
        spike_bin = within + torch.as_tensor(offset, device=self.device)[segment]
        return spike_bin[whole], channel[whole]

"""Spikes in bins of equal length, for all windows and pictures of a recording at once.

What enters: the spikes of one recording (sample indices), the length of a bin, a torch device. What
leaves: which bins show what, as integer tensors on that device; bins are counted through all
stretches between gaps.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.trains import SpikeTrains


class Counted(NamedTuple):
    """Bins with spikes, by how many they hold.

    Attributes
    ----------
    bin : (m,) int32
        Every bin with a spike, ascending.
    level : (m,) int32
        Its row of `counts`.
    counts : (levels,) int64
        The spike counts that occur, ascending.
    """

    bin: torch.Tensor
    level: torch.Tensor
    counts: torch.Tensor


class Fired(NamedTuple):
    """Bins and the electrodes that fired in them, each pair once, by bin.

    Attributes
    ----------
    bin, electrode : (m,) int32
    """

    bin: torch.Tensor
    electrode: torch.Tensor


class Stretches(NamedTuple):
    """Where the whole bins of each stretch lie.

    Attributes
    ----------
    first_sample : (stretches,) int64
    n_bins : (stretches,) int64
        Whole bins; what is left after the last one belongs to none.
    offset : (stretches,) int64
        Whole bins of all stretches before.
    per_bin : float
        Samples in a bin, which need not be a whole number.
    """

    first_sample: NDArray[np.int64]
    n_bins: NDArray[np.int64]
    offset: NDArray[np.int64]
    per_bin: float

    @classmethod
    def of(cls, trains: SpikeTrains, bin_ms: float) -> Stretches:
        """Cut a recording's stretches into bins."""
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


class BinnedSpikes:
    """A recording's spikes in bins of one length; windows and pictures share it.

    Parameters
    ----------
    trains
        The recording's spikes.
    bin_ms
        Length of a bin.
    device
        Where the results are made and stay.

    Attributes
    ----------
    trains, bin_ms, device
        As given.
    stretches
        Where the bins lie.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.

    Notes
    -----
    A spike's bin is ``floor((sample - first sample of the stretch) / samples per bin)``.
    """

    def __init__(self, trains: SpikeTrains, bin_ms: float, device: torch.device | str) -> None:
        check_spikes(trains)
        self.trains = trains
        self.bin_ms = bin_ms
        self.device = torch.device(device)
        self.stretches = Stretches.of(trains, bin_ms)

    @cached_property
    def counted(self) -> Counted:
        """How many spikes each bin holds, over all channels."""
        return _count_levels(self._placed[0], self.stretches.total)

    @cached_property
    def fired(self) -> Fired:
        """Which electrodes fired in each bin."""
        return _electrode_levels(*self._placed, len(self.trains.channel_labels))

    @cached_property
    def _placed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Bin (through all stretches) and channel of every spike that lies in a whole bin."""
        spikes, (first_sample, n_bins, offset, per_bin) = self.trains.spikes, self.stretches
        sample = torch.tensor(spikes.sample, device=self.device)
        channel = torch.tensor(spikes.channel, device=self.device)
        first = torch.as_tensor(first_sample, device=self.device)
        stretch = torch.bucketize(sample, first, right=True) - 1
        # Float64, so that a bin's edge is where the definition's division puts it.
        within = ((sample - first[stretch]).to(torch.float64) / per_bin).floor().to(torch.int64)
        whole = within < torch.as_tensor(n_bins, device=self.device)[stretch]
        spike_bin = within + torch.as_tensor(offset, device=self.device)[stretch]
        return spike_bin[whole], channel[whole]


def check_spikes(trains: SpikeTrains) -> None:
    """Refuse spikes outside the recording or on channels it does not have, by an `InputError`."""
    sample, channel = trains.spikes.sample, trains.spikes.channel
    if len(sample) == 0:
        return
    low, high, n = int(sample.min()), int(sample.max()), trains.n_samples
    if low < 0 or high >= n:
        raise InputError(
            f"a spike at sample {low if low < 0 else high} lies outside the recording's {n} samples"
        )
    low, high, n = int(channel.min()), int(channel.max()), len(trains.channel_labels)
    if low < 0 or high >= n:
        raise InputError(
            f"a spike is on channel {low if low < 0 else high}, the recording has {n} channels"
        )


def _count_levels(spike_bin: torch.Tensor, n_bins: int) -> Counted:
    count = torch.bincount(spike_bin, minlength=n_bins)
    busy = count.nonzero().view(-1)
    count = count[busy]
    occurs = torch.bincount(count) > 0
    level = occurs.cumsum(0) - 1
    return Counted(busy.int(), level[count].int(), occurs.nonzero().view(-1))


def _electrode_levels(spike_bin: torch.Tensor, channel: torch.Tensor, n_channels: int) -> Fired:
    key = torch.unique_consecutive(torch.sort(spike_bin * max(1, n_channels) + channel)[0])
    return Fired((key // max(1, n_channels)).int(), (key % max(1, n_channels)).int())

"""Spikes in bins against the definition, one spike at a time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures.test_drawer import make_trains, naive_bins, recordings

from toptune.errors import InputError
from toptune.params import Windows
from toptune.pictures.bins import BinnedSpikes
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.windows import SegmentBins


@settings(deadline=None, max_examples=60)
@given(recordings(), st.sampled_from([10.0, 20.0, 12.5]))
def test_counts_and_electrodes_of_every_bin_are_the_definitions(
    trains: SpikeTrains, bin_ms: float
) -> None:
    windows = Windows(width_s=bin_ms / 1000, stride_s=bin_ms / 1000, bin_ms=bin_ms)
    bins = [channels for stretch in naive_bins(trains, windows) for channels in stretch]
    binned = BinnedSpikes(trains, bin_ms, "cpu")
    counts = {b: len(channels) for b, channels in enumerate(bins) if channels}
    of_level = binned.counted.counts[binned.counted.level.long()]
    assert dict(zip(binned.counted.bin.tolist(), of_level.tolist(), strict=True)) == counts
    assert binned.counted.counts.tolist() == sorted(set(counts.values()))
    pairs = Counter(zip(binned.fired.bin.tolist(), binned.fired.electrode.tolist(), strict=True))
    assert pairs == Counter({(b, e) for b, channels in enumerate(bins) for e in channels})
    assert binned.segment_bins.total == len(bins)


def test_stretches_hold_whole_bins_only() -> None:
    trains = make_trains([], [], n_channels=1, rate_hz=250, lengths=[9, 2, 5])
    stretches = SegmentBins.of(trains, 10.0)
    assert stretches.per_bin == 2.5
    assert stretches.n_bins.tolist() == [3, 0, 2]
    assert stretches.offset.tolist() == [0, 3, 3]
    assert stretches.first_sample.tolist() == [0, 9, 11]


def test_what_was_binned_is_kept() -> None:
    trains = make_trains([5, 7], [0, 1], n_channels=2, rate_hz=1000, lengths=[100])
    binned = BinnedSpikes(trains, 10.0, "cpu")
    assert binned.counted is binned.counted
    assert binned.fired is binned.fired
    assert torch.equal(binned.fired.electrode, torch.tensor([0, 1], dtype=torch.int32))


@pytest.mark.parametrize(("sample", "channel"), [(100, 0), (-1, 0), (5, 2), (5, -1)])
def test_spikes_that_cannot_be_are_refused(sample: int, channel: int) -> None:
    trains = make_trains([sample], [channel], n_channels=2, rate_hz=1000, lengths=[100])
    with pytest.raises(InputError, match=r"outside the recording|the recording has 2 channels"):
        BinnedSpikes(trains, 10.0, "cpu")

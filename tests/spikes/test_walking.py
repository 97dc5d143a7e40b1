"""The walk that is carried from block to block finds what the walk over the whole finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.params import Ptsd
from toptune.recordings.trains import Spikes, join_spikes
from toptune.spikes.ptsd import PtsdSamples, channel_mean, detect_spikes
from toptune.spikes.walking import CarriedWalk

RATE_HZ = 10_000.0

rules = st.builds(
    Ptsd,
    lifetime_ms=st.sampled_from([0.1, 0.4, 2.0, 3.1]),
    refractory_ms=st.sampled_from([0.0, 0.1, 1.0, 4.0]),
    overshoot_ms=st.sampled_from([0.0, 0.3, 0.9]),
    alignment=st.sampled_from(["largest", "negative"]),
)


def walk(
    x: NDArray[np.float32], ptsd: Ptsd, thresholds: NDArray[np.float32], lengths: list[int]
) -> Spikes:
    """Push x in blocks of some lengths, in turn."""
    n = x.shape[1]
    means = [channel_mean(float(row.sum(dtype=np.float64)), n, "") for row in x]
    carried = CarriedWalk(PtsdSamples.at(ptsd, RATE_HZ), np.array(means), thresholds, None)
    parts: list[Spikes] = []
    at = 0
    while at < n:
        known = carried.known_to
        end = at + lengths[len(parts) % len(lengths)]
        part = carried.push(x[:, at:end])
        # What was said to be known stays so.
        assert part.sample.min(initial=n) >= known
        parts.append(part)
        at = end
    parts.append(carried.end())
    assert carried.known_to == carried.n_samples == n
    return join_spikes(parts)


@given(
    rules,
    st.integers(0, 2**31),
    st.integers(1, 1400),
    st.lists(st.sampled_from([1, 3, 16, 17, 128, 130, 700]), min_size=1, max_size=5),
)
def test_any_blocks_give_the_spikes_of_the_whole(
    ptsd: Ptsd, seed: int, n: int, lengths: list[int]
) -> None:
    # Few values, so that plateaus and ties happen; the last channel is silenced.
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (3, n)).astype(np.float32)
    thresholds = np.array([2, 5, np.inf], np.float32)
    found = walk(x, ptsd, thresholds, lengths)
    expected = detect_spikes(x, RATE_HZ, ptsd, thresholds, n_jobs=1)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_block_with_more_spikes_than_there_is_room_for_loses_none() -> None:
    x = np.tile(np.array([[0, 5, -3]], np.float32), (2, 1000))
    ptsd = Ptsd(lifetime_ms=0.1, refractory_ms=0, overshoot_ms=0)
    thresholds = np.full(2, 5, np.float32)
    found = walk(x, ptsd, thresholds, [3000])
    assert len(found.sample) > 2 * 900
    expected = detect_spikes(x, RATE_HZ, ptsd, thresholds)
    np.testing.assert_array_equal(found.sample, expected.sample)


@pytest.mark.parametrize("length", [7, 500])
def test_little_voltage_is_held_however_long_it_goes_on(length: int) -> None:
    times = PtsdSamples.at(Ptsd(), RATE_HZ)
    carried = CarriedWalk(times, np.zeros(2, np.float32), np.full(2, 9, np.float32), None)
    for _ in range(50_000 // length):
        carried.push(np.ones((2, length), np.float32))
    assert carried._held.shape[1] < 4 * (length + sum(times[:3]) + 2)

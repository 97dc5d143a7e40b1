"""Cases for PTSD on any device, and how to run them in chunks that hold no more than they must."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from cuda_on_cpu import Launch
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.machine.cuda import Accelerator, DeviceArray
from toptune.params import Ptsd
from toptune.recordings.trains import Segment, Spikes
from toptune.spikes import ptsd_compiled
from toptune.spikes.noise_cuda import channel_means, noise_thresholds_on
from toptune.spikes.ptsd import PtsdSamples, channel_mean, sequential_sum
from toptune.spikes.ptsd_cuda import DeviceSpikes, SegmentWalk, sort_device_spikes, walk_segments

RATE_HZ = 10_000.0
# Around the samples of a chunk: a kernel that reads outside finds its largest peaks here.
OUTSIDE = 40
# Limits that force one way of selecting or the other.
WALK, DOUBLE = 10**9, 0


class Chunk(NamedTuple):
    """Candidates [begin, end) and what they read, with samples of nobody around them."""

    padded: NDArray[np.float32]
    first: int

    @classmethod
    def of(cls, x: NDArray[np.float32], begin: int, end: int, reach: int) -> Chunk:
        first, stop = max(begin - 1, 0), min(end + reach, x.shape[1])
        padded = np.empty((x.shape[0], stop - first + 2 * OUTSIDE), np.float32)
        padded[:, ::2], padded[:, 1::2] = 1e30, -1e30
        padded[:, OUTSIDE:-OUTSIDE] = x[:, first:stop]
        return cls(padded, first)


def means(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each channel's mean as `detect_spikes` takes it off."""
    out = np.empty(x.shape[0], np.float32)
    for row, samples in enumerate(x):
        blocks = -(-samples.size // ptsd_compiled.BLOCK)
        low, high, total = np.empty(blocks, "f4"), np.empty(blocks, "f4"), np.empty(blocks)
        ptsd_compiled.block_stats(samples, low, high, total)
        out[row] = channel_mean(sequential_sum(total), samples.size, f"channel {row}")
    return out


def streamed(
    device: Accelerator,
    x: NDArray[np.float32],
    times: PtsdSamples,
    threshold: NDArray[np.float32],
    cuts: list[int],
    walk_limit: int,
) -> Spikes:
    """Detect in chunks that end at `cuts` and hold no more than they must."""
    n = x.shape[1]
    asarray = device.xp.asarray
    walk = SegmentWalk(
        device, times, n, asarray(means(x)), asarray(threshold), walk_limit=walk_limit
    )
    found = []
    for begin, end in itertools.pairwise([0, *cuts, n]):
        chunk = Chunk.of(x, begin, end, times.lifetime + times.overshoot)
        samples = asarray(chunk.padded)[:, OUTSIDE:-OUTSIDE]
        found.append(walk.decide(samples, chunk.first, begin, end))
    return sort_device_spikes(device, found, x.shape[0]).to_host()


def detect_spikes_on(
    device: Accelerator,
    samples_uv: DeviceArray,
    ptsd: Ptsd | None = None,
    thresholds_uv: NDArray[np.float32] | None = None,
) -> DeviceSpikes:
    """Find the spikes of samples on the device, as `detect_spikes` does on the host."""
    ptsd = ptsd or Ptsd()
    channels, n = samples_uv.shape
    with device.active():
        segments = (Segment(0, n, 0.0),) if n else ()
        names = [f"channel {k}" for k in range(channels)]
        mean = channel_means(device, samples_uv, segments, names)
        if thresholds_uv is None:
            thresholds_uv = noise_thresholds_on(device, samples_uv, RATE_HZ, ptsd).threshold_uv
        times = PtsdSamples.at(ptsd, RATE_HZ)
        found = walk_segments(device, samples_uv, segments, times, mean, thresholds_uv)
        return sort_device_spikes(device, found, channels)


def assert_same_bits(got: Spikes, expected: Spikes) -> None:
    np.testing.assert_array_equal(got.sample, expected.sample)
    np.testing.assert_array_equal(got.channel, expected.channel)
    bits, expected_bits = (s.peak_to_peak_uv.view(np.uint32) for s in (got, expected))
    np.testing.assert_array_equal(bits, expected_bits)
    assert [a.dtype for a in got] == [a.dtype for a in expected]


@st.composite
def voltages(draw: st.DrawFn) -> NDArray[np.float32]:
    """Few distinct values, so that ties and plateaus happen; quiet stretches; fractional means."""
    channels, n = draw(st.integers(1, 3)), draw(st.integers(1, 400))
    levels, loud = draw(st.integers(1, 6)), draw(st.floats(0.02, 1.0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(-levels, levels + 1, (channels, n)) * np.float32(draw(st.floats(0.1, 3)))
    runs = np.repeat(rng.random((channels, n // 8 + 1)) < loud, 8, axis=1)[:, :n]
    held = rng.random((channels, n)) < draw(st.floats(0, 0.5))
    held[:, 0] = False
    since = np.maximum.accumulate(np.where(held, 0, np.arange(n)), axis=1)
    plateaus = np.take_along_axis(np.where(runs, x, 0), since, axis=1)
    offset = np.float32(draw(st.sampled_from([0, 0.3, -1000])))
    return np.asarray(plateaus + offset, np.float32)


milliseconds = st.tuples(st.integers(1, 60), st.integers(0, 50), st.integers(0, 40))
launches = st.builds(Launch, st.integers(1, 5), st.integers(1, 33), st.booleans())

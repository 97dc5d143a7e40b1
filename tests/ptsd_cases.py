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
from toptune.spikes.preparing_cuda import channel_means, noise_thresholds_on
from toptune.spikes.ptsd import PtsdSamples, channel_mean, detect_spikes, sequential_sum
from toptune.spikes.ptsd_cuda import Detector, DeviceSpikes, sort_device_spikes, walk_segments

RATE_HZ = 10_000.0
# Around the samples of a chunk: a kernel that reads outside finds its largest peaks here.
OUTSIDE = 40
# Limits at which threads walk every run whole, or blocks of threads walk all of every run.
ALONE, TOGETHER = 10**9, 0


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
    detector = Detector(
        device, times, asarray(means(x)), asarray(threshold), most=x.size, walk_limit=walk_limit
    )
    detector.begin_segment(n, 0)
    for begin, end in itertools.pairwise([0, *cuts, n]):
        chunk = Chunk.of(x, begin, end, times.lifetime + times.overshoot)
        samples = asarray(chunk.padded)[:, OUTSIDE:-OUTSIDE]
        detector.queue(samples, chunk.first, begin, end)
    return sort_device_spikes(device, [detector.fetch()], x.shape[0]).to_host()


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


def voltage(seed: int, channels: int, n: int, spikes_hz: float = 20.0) -> NDArray[np.float32]:
    """Coloured noise with an offset and biphasic spikes, some across chunk edges."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 8, (channels, n)) + rng.normal(0, 40, (channels, 1))
    shape = np.array([-20, -55, -70, -40, -5, 20, 30, 22, 10])
    for row in x:
        for t in rng.integers(0, max(1, n - 9), int(n / RATE_HZ * spikes_hz)):
            row[t : t + 9] += shape[: n - t]
    return x.astype(np.float32)


milliseconds = st.tuples(st.integers(1, 60), st.integers(0, 50), st.integers(0, 40))


class ChunkedCase(NamedTuple):
    """A recording, how its spikes are found, and how it is cut into chunks."""

    x: NDArray[np.float32]
    threshold: NDArray[np.float32]
    times: PtsdSamples
    cuts: list[int]
    walk_limit: int

    def check_on(self, device: Accelerator) -> None:
        """Find on the device, in chunks, what the CPU finds in the whole, bit for bit."""
        got = streamed(device, self.x, self.times, self.threshold, self.cuts, self.walk_limit)
        params = Ptsd(
            lifetime_ms=self.times.lifetime / 10,
            refractory_ms=self.times.refractory / 10,
            overshoot_ms=self.times.overshoot / 10,
            alignment="negative" if self.times.negative else "largest",
        )
        assert_same_bits(got, detect_spikes(self.x, RATE_HZ, params, self.threshold, n_jobs=1))


@st.composite
def chunked_cases(draw: st.DrawFn) -> ChunkedCase:
    """Any times and thresholds, cuts at any samples, and either way of selecting or both."""
    x = draw(voltages())
    levels = st.lists(st.sampled_from([0.5, 1.0, 2.5, 4.0, 9.0, np.inf]), min_size=3)
    threshold = np.array(draw(levels)[: x.shape[0]], np.float32)
    times = PtsdSamples(*draw(milliseconds), draw(st.booleans()))
    cuts = sorted(int(cut * x.shape[1]) for cut in draw(st.lists(st.floats(0, 1), max_size=4)))
    return ChunkedCase(x, threshold, times, cuts, draw(st.sampled_from([ALONE, 3, TOGETHER])))


launches = st.builds(Launch, st.integers(1, 5), st.integers(1, 33), st.booleans())

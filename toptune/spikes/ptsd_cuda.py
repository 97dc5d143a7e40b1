"""PTSD on a GPU in the parallel form of kernels/ptsd.cu, chunk by chunk with carried state.

The spikes are exactly those of the CPU for the same samples, however the chunks are cut, and stay
on the device. All chunks are queued without waiting; then the number of spikes is copied to the
host, and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.machine.cuda import THREADS, Accelerator, DeviceArray, Kernels, to_host
from toptune.recordings.trains import Segment, Spikes
from toptune.spikes.preparing_cuda import row_pitch
from toptune.spikes.ptsd import PtsdSamples

if TYPE_CHECKING:
    import torch

PTSD_SHAPES = {"PTSD_BLOCK": 32, "PTSD_TILE": 128, "PTSD_RUN": 1024}
# The most candidates after a head that one thread walks; longer runs are walked on by a block of
# threads each.
WALK_LIMIT = 256
# The most candidates of a chunk, and spikes of a recording, for which there is room. A quarter of
# an hour of 60 channels, each with 50 spikes a second, has about that many candidates.
MOST_CANDIDATES = 1 << 23
# Threads that list what is found; how much that is, only the device knows.
_LISTING_THREADS = 1 << 18


class DeviceSpikes(NamedTuple):
    """`Spikes` on the device, sorted by sample, then channel."""

    sample: DeviceArray  # (n,) int64
    channel: DeviceArray  # (n,) int32
    peak_to_peak_uv: DeviceArray  # (n,) float32

    def to_host(self) -> Spikes:
        """Copy to the host."""
        return Spikes(*(to_host(part) for part in self))

    def to_torch(self, device: Accelerator) -> SpikeTensors:
        """Copy for torch's current stream, which waits for the copies; the host does not."""
        return SpikeTensors(*device.to_torch(self))


class SpikeTensors(NamedTuple):
    """`DeviceSpikes` as tensors of the same values, for the torch stream that was current."""

    sample: torch.Tensor
    channel: torch.Tensor
    peak_to_peak_uv: torch.Tensor


class NoRoomError(Exception):
    """More was found than there is room for: it is to be found in shorter chunks."""


class Detector:
    """What is found on a device, segment by segment and chunk by chunk, until it is fetched.

    Parameters
    ----------
    device
        Where to work.
    times
        Of PTSD, in samples.
    mean_uv, threshold_uv
        (channels,) float32 on the device; with an infinite threshold nothing is found.
    most
        The candidates of a chunk, and the spikes in all, for which there is room.
    walk_limit
        Runs of more candidates are walked by blocks of threads; the spikes do not depend on it.
    """

    def __init__(
        self,
        device: Accelerator,
        times: PtsdSamples,
        mean_uv: DeviceArray,
        threshold_uv: DeviceArray,
        *,
        most: int,
        walk_limit: int = WALK_LIMIT,
    ) -> None:
        self._xp = xp = device.xp
        self._kernels: Kernels = device.kernels("ptsd", **PTSD_SHAPES)
        self._times = times
        self._mean, self._threshold = mean_uv, threshold_uv
        self._most, self._walk_limit = most, walk_limit
        self._lists = _Lists.of(xp, most)
        runs = most // (walk_limit + 1) + 1
        self._run_at, self._run_state = (xp.empty(runs, np.int64) for _ in range(2))
        self._found = _no_spikes(xp, most)
        self._n_found = xp.zeros(1, np.uint64)
        self._lost = xp.zeros(1, np.int64)
        self.begin_segment(0, 0)

    def begin_segment(self, n_samples: int, shift: int) -> None:
        """Begin a segment of `n_samples`; the samples of its spikes grow by `shift`."""
        self._n, self._shift = n_samples, shift
        self._resume = self._xp.ones(self._mean.size, np.int64)

    def queue(self, samples: DeviceArray, first: int, begin: int, end: int) -> None:
        """Queue the search for the spikes whose candidates lie in [begin, end).

        A segment's chunks follow one another. `samples` (channels, held) float32 begin at `first`,
        rows contiguous: all from begin - 1 to end - 1 + lifetime + overshoot, as far as the segment
        has them. These and all indices count from the segment's start.
        """
        end = min(end, self._n)
        if begin >= end:
            return
        chunk = _Chunk(samples, row_pitch(samples), len(samples), first, self._n, begin, end)
        accepted, ends = self._evaluate(chunk)
        listed = (ends, ends.size, self._most)
        lists, launch, threads = self._lists, self._kernels.launch, self._threads
        lifetime, refractory, overshoot, negative = self._times
        launch(
            "ptsd_scatter", ends.size * THREADS, chunk.channels, begin, end, accepted, ends,
            self._most, lists.candidate, lists.channel, self._lost,
        )  # fmt: skip
        launch(
            "ptsd_peaks", threads, *listed, samples, chunk.pitch, first, self._n, self._mean,
            lifetime, refractory, overshoot, int(negative), *lists[:5],
        )  # fmt: skip
        launch(
            "ptsd_heads", threads, *listed, *lists[:3], lifetime, refractory, overshoot, lists.head
        )
        n_runs = self._xp.zeros(1, np.uint64)
        runs = n_runs, self._run_at, self._run_state
        launch(
            "ptsd_walk", threads, *listed, lists.candidate, lists.next, lists.head,
            self._walk_limit, lists.selected, *runs,
        )  # fmt: skip
        launch(
            "ptsd_walk_on", threads, *listed, lists.candidate, lists.next, lists.head, *runs,
            lists.selected,
        )  # fmt: skip
        launch(
            "ptsd_collect", threads, *listed, *lists[:5], lists.selected, self._shift,
            self._resume, self._n_found, *self._found,
        )  # fmt: skip

    def fetch(self) -> DeviceSpikes:
        """Wait, and return the spikes found since the last call, in any order.

        A `NoRoomError` where a chunk has more candidates, or all have more spikes, than there is
        room for.
        """
        counts = self._xp.concatenate([self._n_found.astype(np.int64), self._lost])
        n_found, lost = (int(n) for n in to_host(counts))
        self._n_found.fill(0)
        self._lost.fill(0)
        if lost or n_found > self._most:
            raise NoRoomError
        # Copied, since the next chunk begins at the front again.
        return DeviceSpikes(*(part[:n_found].copy() for part in self._found))

    @property
    def _threads(self) -> int:
        return min(max(self._most, 1), _LISTING_THREADS)

    def _evaluate(self, chunk: _Chunk) -> tuple[DeviceArray, DeviceArray]:
        """Mark accepted candidates by bits, and count them up to each tile's end."""
        xp, launch = self._xp, self._kernels.launch
        block, tile = (self._kernels.shapes[k] for k in ("PTSD_BLOCK", "PTSD_TILE"))
        lifetime, _, overshoot, _ = self._times
        channels, n, begin, end = chunk.channels, chunk.n, chunk.begin, chunk.end
        stop = min(end + lifetime + overshoot, n)
        blocks, words = (-(-last // block) - begin // block for last in (stop, end))
        low, high = (xp.empty((channels, blocks), np.float32) for _ in range(2))
        launch(
            "ptsd_extremes", channels * -(-blocks // tile) * THREADS,
            chunk.samples, chunk.pitch, channels, chunk.first, begin, stop, low, high,
        )  # fmt: skip
        tiles = channels * -(-words // tile)
        accepted, count = xp.empty((channels, words), np.uint32), xp.empty(tiles, np.int32)
        launch(
            "ptsd_evaluate", tiles * THREADS, *chunk, self._mean, self._threshold, self._resume,
            lifetime, overshoot, low, high, accepted, count,
        )  # fmt: skip
        return accepted, xp.cumsum(count, dtype=np.int64)


class _Chunk(NamedTuple):
    """Samples of one segment, in the order that the kernels take."""

    samples: DeviceArray  # (channels, held)
    pitch: int
    channels: int
    first: int  # of the held samples
    n: int  # samples of the segment
    begin: int  # the candidates decided
    end: int


class _Lists(NamedTuple):
    """Memory for the candidates of a chunk, by channel, then sample."""

    candidate: DeviceArray
    channel: DeviceArray
    next: DeviceArray  # the sample at which the walk goes on if the candidate is a spike
    dated: DeviceArray  # the sample that dates that spike
    uv: DeviceArray
    head: DeviceArray
    selected: DeviceArray

    @classmethod
    def of(cls, xp: Any, most: int) -> _Lists:
        i64, u8 = np.int64, np.uint8
        kinds = (i64, np.int32, i64, i64, np.float32, u8, u8)
        return cls(*(xp.empty(most, kind) for kind in kinds))


def walk_segments(
    device: Accelerator,
    samples_uv: DeviceArray,
    segments: Sequence[Segment],
    times: PtsdSamples,
    mean_uv: NDArray[np.float32],
    threshold_uv: NDArray[np.float32],
) -> list[DeviceSpikes]:
    """Find the spikes of a recording on the device.

    `samples_uv` (channels, samples) float32 is the whole recording, filtered, rows contiguous.
    Means and thresholds (channels,) are on the host. The walk restarts in each segment. Returns
    spikes in parts and in any order; their samples count over the recording.

    Each segment is one chunk where memory allows, and the host waits once, at the end. Where most
    peaks are candidates, as at a threshold far too low, there is no room for all of them. Then the
    work is done again in chunks that cannot have too many, and the host waits for each.
    """
    channels, n = samples_uv.shape
    if not channels * n:
        return []
    mean, threshold = (device.xp.asarray(a, np.float32) for a in (mean_uv, threshold_uv))
    most, step = most_candidates(device), max(1, chunk_values(device) // channels)
    once = Detector(device, times, mean, threshold, most=min(most, channels * n))
    for _ in _queued(once, samples_uv, segments, step):
        pass
    try:
        return [once.fetch()]
    except NoRoomError:
        del once  # and its memory
    most = max(most, channels)
    again = Detector(device, times, mean, threshold, most=most)
    # Of two neighbouring samples at most one is a peak.
    step = min(step, 2 * (most // channels))
    return [again.fetch() for _ in _queued(again, samples_uv, segments, step)]


def chunk_values(device: Accelerator) -> int:
    """Choose how many values (channels x samples) a chunk may have: each needs under a byte."""
    return device.free_bytes() // 2


def most_candidates(device: Accelerator) -> int:
    """Choose for how many candidates and spikes there is room: each needs about 55 bytes."""
    return max(1, min(MOST_CANDIDATES, device.free_bytes() // 256))


def _queued(
    detector: Detector, samples: DeviceArray, segments: Sequence[Segment], step: int
) -> Iterator[None]:
    """Queue all chunks of up to `step` samples, and stop after each."""
    for segment in segments:
        n = segment.n_samples
        part = samples[:, segment.first_sample : segment.first_sample + n]
        detector.begin_segment(n, segment.first_sample)
        for begin, end in itertools.pairwise([*range(0, n, step), n]):
            detector.queue(part, 0, begin, end)
            yield


def _no_spikes(xp: Any, room: int = 0) -> DeviceSpikes:
    return DeviceSpikes(*(xp.empty(room, kind) for kind in (np.int64, np.int32, np.float32)))


def sort_device_spikes(
    device: Accelerator, parts: Iterable[DeviceSpikes], n_channels: int
) -> DeviceSpikes:
    """Merge parts into the order of `DeviceSpikes`."""
    xp = device.xp
    empty = _no_spikes(xp)
    sample, channel, uv = (xp.concatenate(p) for p in zip(empty, *parts, strict=True))
    # No channel has two spikes at one sample, so the keys are distinct.
    order = xp.argsort(sample * n_channels + channel)
    return DeviceSpikes(sample[order], channel[order], uv[order])

"""PTSD on a GPU in the parallel form of kernels/ptsd.cu, chunk by chunk with carried state.

The spikes are exactly those of the CPU for the same samples, however the chunks are cut, and stay
on the device; only counts are copied to the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.machine.cuda import THREADS, Accelerator, DeviceArray, Kernels, to_host
from toptune.recordings.trains import Segment, Spikes
from toptune.spikes.preparing_cuda import row_pitch
from toptune.spikes.ptsd import PtsdSamples

if TYPE_CHECKING:
    import torch

PTSD_SHAPES = {"PTSD_BLOCK": 32, "PTSD_TILE": 128}
# The most candidates from one head to the next that one thread walks; longer runs are walked by
# pointer doubling.
WALK_LIMIT = 256
# The most candidates of a chunk, at about 50 bytes each; a chunk with more is cut in half.
MOST_CANDIDATES = 1 << 23
# Values (channels x samples) per chunk; detection needs less than a byte for each.
CHUNK_VALUES = 1 << 27


class DeviceSpikes(NamedTuple):
    """`Spikes` on the device, sorted by sample, then channel."""

    sample: DeviceArray  # (n,) int64
    channel: DeviceArray  # (n,) int32
    peak_to_peak_uv: DeviceArray  # (n,) float32

    def to_host(self) -> Spikes:
        """Copy to the host."""
        return Spikes(*(to_host(part) for part in self))

    def to_torch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (sample, channel, peak_to_peak_uv) as tensors that share this memory, by DLPack.

        Use them on the torch stream that was current when the spikes were found.
        """
        from torch.utils.dlpack import from_dlpack

        sample, channel, uv = (from_dlpack(part) for part in self)
        return sample, channel, uv


class SegmentWalk:
    """The walk over one segment of all channels, and its state between chunks.

    `mean_uv` and `threshold_uv` (channels,) float32 are on the device; with an infinite threshold
    nothing is found. Runs of more than `walk_limit` candidates are walked by pointer doubling, on
    which the spikes do not depend.
    """

    def __init__(
        self,
        device: Accelerator,
        times: PtsdSamples,
        n_samples: int,
        mean_uv: DeviceArray,
        threshold_uv: DeviceArray,
        *,
        walk_limit: int = WALK_LIMIT,
    ) -> None:
        self._xp = device.xp
        self._kernels: Kernels = device.kernels("ptsd", **PTSD_SHAPES)
        self._times = times
        self._n = n_samples
        self._mean = mean_uv
        self._threshold = threshold_uv
        self._walk_limit = walk_limit
        self._resume = self._xp.ones(mean_uv.size, np.int64)

    def decide(self, samples: DeviceArray, first: int, begin: int, end: int) -> DeviceSpikes:
        """Find the spikes whose candidates lie in [begin, end), which follows the previous chunk.

        `samples` (channels, held) float32 begin at `first`, rows contiguous: all from begin - 1 to
        end - 1 + lifetime + overshoot, as far as the segment has them. Returns spikes by channel,
        then sample; these and all indices count from the segment's start.
        """
        end = min(end, self._n)
        if begin >= end:
            return _no_spikes(self._xp)
        chunk = _Chunk(samples, row_pitch(samples), len(samples), first, self._n, begin, end)
        accepted, ends = self._evaluate(chunk)
        m = int(ends[-1])
        if m == 0:
            return _no_spikes(self._xp)
        if m > MOST_CANDIDATES and end - begin > 1:
            del accepted, ends
            middle = (begin + end) // 2
            halves = [self.decide(samples, first, *h) for h in ((begin, middle), (middle, end))]
            return DeviceSpikes(*(self._xp.concatenate(p) for p in zip(*halves, strict=True)))
        made = self._candidates(chunk, m, accepted, ends)
        selected = self._select(made)
        self._kernels.launch(
            "ptsd_resume", m, m, made.sample, made.channel, made.next, selected, self._resume
        )
        chosen = self._xp.flatnonzero(selected)
        return DeviceSpikes(made.dated[chosen], made.channel[chosen], made.uv[chosen])

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

    def _candidates(
        self, chunk: _Chunk, m: int, accepted: DeviceArray, ends: DeviceArray
    ) -> _Candidates:
        launch = self._kernels.launch
        kinds = (np.int64, np.int32, np.int64, np.int64, np.float32)
        made = _Candidates(*(self._xp.empty(m, kind) for kind in kinds))
        launch(
            "ptsd_scatter", ends.size * THREADS, chunk.channels, chunk.begin, chunk.end, accepted,
            ends, made.sample, made.channel,
        )  # fmt: skip
        lifetime, refractory, overshoot, negative = self._times
        launch(
            "ptsd_peaks", m, m, chunk.samples, chunk.pitch, chunk.first, chunk.n, self._mean,
            lifetime, refractory, overshoot, int(negative), *made,
        )  # fmt: skip
        return made

    def _select(self, made: _Candidates) -> DeviceArray:
        """Decide which candidates are spikes: (m,) uint8, 1 for a spike."""
        xp, launch, m = self._xp, self._kernels.launch, made.sample.size
        lifetime, refractory, overshoot, _ = self._times
        head, selected = xp.empty(m, np.uint8), xp.empty(m, np.uint8)
        launch(
            "ptsd_heads", m, m, made.sample, made.channel, made.next, lifetime, refractory,
            overshoot, head,
        )  # fmt: skip
        heads = xp.flatnonzero(head)
        # The first candidate is a head, so every candidate belongs to a run that begins at a head.
        longest = int(xp.diff(heads, append=xp.asarray([m], heads.dtype)).max())
        if longest <= self._walk_limit:
            launch("ptsd_walk", m, m, made.sample, made.next, head, selected)
            return selected
        jump, doubled = xp.empty(m, np.int64), xp.empty(m, np.int64)
        launch("ptsd_link", m, m, made.sample, made.channel, made.next, head, jump, selected)
        for _ in range((longest - 1).bit_length()):
            launch("ptsd_double", m, m, jump, doubled, selected)
            jump, doubled = doubled, jump
        return selected


class _Chunk(NamedTuple):
    """A chunk, in the order of the kernels' arguments."""

    samples: DeviceArray
    pitch: int
    channels: int
    first: int
    n: int
    begin: int
    end: int


class _Candidates(NamedTuple):
    """Accepted candidates, in the order of the arguments of ptsd_peaks."""

    sample: DeviceArray
    channel: DeviceArray
    next: DeviceArray
    dated: DeviceArray
    uv: DeviceArray


def walk_segments(
    device: Accelerator,
    samples_uv: DeviceArray,
    segments: Sequence[Segment],
    times: PtsdSamples,
    mean_uv: NDArray[np.float32],
    threshold_uv: NDArray[np.float32],
) -> list[DeviceSpikes]:
    """Find the spikes of a recording on the device, in chunks that bound the memory needed.

    `samples_uv` (channels, samples) float32 is the whole recording, filtered, rows contiguous.
    Means and thresholds (channels,) are on the host. The walk restarts in each segment. Returns
    spikes by chunk; their samples count over the recording.
    """
    xp = device.xp
    mean, threshold = (xp.asarray(a, np.float32) for a in (mean_uv, threshold_uv))
    step = max(1, CHUNK_VALUES // max(1, samples_uv.shape[0]))
    found = []
    for segment in segments:
        n = segment.n_samples
        part = samples_uv[:, segment.first_sample : segment.first_sample + n]
        walk = SegmentWalk(device, times, n, mean, threshold)
        for begin, end in itertools.pairwise([*range(0, n, step), n]):
            spikes = walk.decide(part, 0, begin, end)
            found.append(spikes._replace(sample=spikes.sample + segment.first_sample))
    return found


def _no_spikes(xp: Any) -> DeviceSpikes:
    return DeviceSpikes(*(xp.empty(0, kind) for kind in (np.int64, np.int32, np.float32)))


def sort_device_spikes(
    device: Accelerator, parts: Iterable[DeviceSpikes], n_channels: int
) -> DeviceSpikes:
    """Merge the chunks' spikes into the order of `DeviceSpikes`."""
    xp = device.xp
    empty = _no_spikes(xp)
    sample, channel, uv = (xp.concatenate(p) for p in zip(empty, *parts, strict=True))
    # No channel has two spikes at one sample, so the keys are distinct.
    order = xp.argsort(sample * n_channels + channel)
    return DeviceSpikes(sample[order], channel[order], uv[order])

"""PTSD on a GPU: the parallel form of kernels/ptsd.cu, chunk by chunk with carried state.

(channels, samples) float32 microvolts on the device enter, filtered, with means and thresholds;
`DeviceSpikes` leave, on the device too: exactly the CPU's on the same samples, however the chunks
are cut. Only counts visit the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.cuda import THREADS, Accelerator, DeviceArray, Kernels, to_host
from toptune.params import Ptsd
from toptune.recordings.trains import Segment, Spikes
from toptune.spikes.filters_cuda import row_pitch
from toptune.spikes.noise_cuda import channel_means, noise_thresholds_on
from toptune.spikes.ptsd import PtsdSamples, checked_thresholds

if TYPE_CHECKING:
    import torch

PTSD_SHAPES = {"PTSD_BLOCK": 32, "PTSD_TILE": 128}
# Candidates between two heads that one thread walks; longer segments take pointer doubling.
WALK_LIMIT = 256
# Candidates of a chunk held at once, at some 50 bytes each: chunks with more are cut in half.
MOST_CANDIDATES = 1 << 23
# Values (channels x samples) a chunk; what detection keeps of one is less than a byte each.
CHUNK_VALUES = 1 << 27


class DeviceSpikes(NamedTuple):
    """Spikes on the device, sorted by sample, then channel.

    Attributes
    ----------
    sample : (n,) int64
        0-based index into the recording's stored samples.
    channel : (n,) int32
        Row of the channel.
    peak_to_peak_uv : (n,) float32
        Differential amplitude in microvolts.
    """

    sample: DeviceArray
    channel: DeviceArray
    peak_to_peak_uv: DeviceArray

    def to_host(self) -> Spikes:
        """Copy to the host."""
        return Spikes(*(to_host(part) for part in self))

    def to_torch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give (sample, channel, peak_to_peak_uv) as tensors in the same memory, by DLPack.

        They are for the torch stream that was the current one when the spikes were found.
        """
        from torch.utils.dlpack import from_dlpack

        sample, channel, uv = (from_dlpack(part) for part in self)
        return sample, channel, uv


class StretchWalk:
    """The walk over one gap-free stretch of all channels, and its state between chunks.

    Parameters
    ----------
    device
        Where the samples are.
    times
        Detection times in samples.
    n_samples
        Length of the stretch.
    mean_uv, threshold_uv : (channels,) float32
        On the device. An infinite threshold finds nothing.
    walk_limit
        Segments of more candidates take pointer doubling; the spikes do not depend on it.
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
        """Find the spikes whose candidates lie in [begin, end), which follows the last chunk's.

        Parameters
        ----------
        samples : (channels, held) float32
            Samples from `first` on, rows contiguous: all from begin-1 to end-1+lifetime+overshoot,
            as far as the stretch has them.
        first, begin, end
            Samples of the stretch.

        Returns
        -------
        DeviceSpikes
            By channel, then sample; samples count from the stretch's start.
        """
        end = min(end, self._n)
        if begin >= end:
            return self._none()
        chunk = _Chunk(samples, row_pitch(samples), len(samples), first, self._n, begin, end)
        accepted, ends = self._evaluate(chunk)
        m = int(ends[-1])
        if m == 0:
            return self._none()
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
        """Bits of the accepted candidates, and how many there are up to each tile's end."""
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
        """(m,) uint8, 1 where a candidate is a spike."""
        xp, launch, m = self._xp, self._kernels.launch, made.sample.size
        lifetime, refractory, overshoot, _ = self._times
        head, selected = xp.empty(m, np.uint8), xp.empty(m, np.uint8)
        launch(
            "ptsd_heads", m, m, made.sample, made.channel, made.next, lifetime, refractory,
            overshoot, head,
        )  # fmt: skip
        heads = xp.flatnonzero(head)
        # The first candidate is a head, so the segments are all there is between heads.
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

    def _none(self) -> DeviceSpikes:
        kinds = (np.int64, np.int32, np.float32)
        return DeviceSpikes(*(self._xp.empty(0, kind) for kind in kinds))


class _Chunk(NamedTuple):
    """A chunk as the kernels take it."""

    samples: DeviceArray
    pitch: int
    channels: int
    first: int
    n: int
    begin: int
    end: int


class _Candidates(NamedTuple):
    """Accepted candidates, in the order that ptsd_peaks takes them."""

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
    """Find the spikes of a recording on the device, in chunks that bound what they take.

    Parameters
    ----------
    device
        Where the samples are.
    samples_uv : (channels, samples) float32
        The whole recording, filtered, rows contiguous.
    segments
        Stretches between gaps: the walk starts anew in each.
    times
        Detection times in samples.
    mean_uv, threshold_uv : (channels,) float32
        On the host.

    Returns
    -------
    list of DeviceSpikes
        By chunk; samples count over the recording.
    """
    xp = device.xp
    mean, threshold = (xp.asarray(a, np.float32) for a in (mean_uv, threshold_uv))
    step = max(1, CHUNK_VALUES // max(1, samples_uv.shape[0]))
    found = []
    for segment in segments:
        n = segment.n_samples
        part = samples_uv[:, segment.first_sample : segment.first_sample + n]
        walk = StretchWalk(device, times, n, mean, threshold)
        for begin, end in itertools.pairwise([*range(0, n, step), n]):
            spikes = walk.decide(part, 0, begin, end)
            found.append(spikes._replace(sample=spikes.sample + segment.first_sample))
    return found


def sort_device_spikes(
    device: Accelerator, parts: Iterable[DeviceSpikes], n_channels: int
) -> DeviceSpikes:
    """Put chunks' spikes into the order that `DeviceSpikes` promises."""
    xp = device.xp
    kinds = (np.int64, np.int32, np.float32)
    empty = DeviceSpikes(*(xp.empty(0, kind) for kind in kinds))
    sample, channel, uv = (xp.concatenate(p) for p in zip(empty, *parts, strict=True))
    # No channel has two spikes at one sample, so the keys are distinct.
    order = xp.argsort(sample * n_channels + channel)
    return DeviceSpikes(sample[order], channel[order], uv[order])


def detect_spikes_on(
    device: Accelerator,
    samples_uv: DeviceArray,
    sampling_rate_hz: float,
    ptsd: Ptsd | None = None,
    thresholds_uv: NDArray[np.float32] | None = None,
) -> DeviceSpikes:
    """Find the spikes of a recording that lies on the device.

    Parameters
    ----------
    device
        Where; `CudaAccelerator` outside tests.
    samples_uv : (channels, samples) float32
        The whole recording in microvolts, filtered as wanted, rows contiguous.
    sampling_rate_hz, ptsd
        As for `detect_spikes`.
    thresholds_uv : (channels,) float32, optional
        Peak-to-peak thresholds, on the host; estimated from the noise where None.

    Returns
    -------
    DeviceSpikes
        The spikes of `detect_spikes`, bit for bit where the thresholds are the same.

    Raises
    ------
    InputError
        Samples are not two-dimensional, NaN or infinite; a threshold is NaN or not above 0.
    """
    ptsd = Ptsd() if ptsd is None else ptsd
    if samples_uv.ndim != 2 or samples_uv.dtype != np.float32:
        raise InputError(
            "samples must be (channels, samples) float32, got shape"
            f" {samples_uv.shape} of {samples_uv.dtype}"
        )
    times = PtsdSamples.at(ptsd, sampling_rate_hz)
    channels, n = samples_uv.shape
    with device.active():
        segments = (Segment(0, n, 0.0),) if n else ()
        names = [f"channel {k}" for k in range(channels)]
        means = channel_means(device, samples_uv, segments, names)
        if thresholds_uv is None:
            noise = noise_thresholds_on(device, samples_uv, sampling_rate_hz, ptsd)
            thresholds_uv = noise.threshold_uv
        thresholds = checked_thresholds(thresholds_uv, channels)
        found = walk_segments(device, samples_uv, segments, times, means, thresholds)
        return sort_device_spikes(device, found, channels)

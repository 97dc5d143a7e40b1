"""The high-pass filter, means and noise estimates on a GPU: what a recording needs before PTSD.

The filter is parallel over time, with state carried from chunk to chunk. Samples may differ from
those of `toptune.spikes.filters` in rounding. The state at the start of every block of 128 samples
comes from a scan in float64 (kernels/highpass.cu), which changes it by about 1e-16 of its value and
so, now and then, the last bit of a float32.

Means and noise, by the rules of `toptune.spikes.noise`, are computed in float64. Noise estimates
have the bits of the CPU's. Means are summed in the CPU's order but for the inside of blocks of 128
samples, which may change the last of their 53 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from toptune.machine.cuda import THREADS, Accelerator, DeviceArray, Launch, to_host
from toptune.params import HighPass, Ptsd
from toptune.recordings.trains import Segment
from toptune.spikes.filters import butterworth_sections
from toptune.spikes.noise import Thresholds, noise_windows, thresholds_from
from toptune.spikes.ptsd import channel_mean
from toptune.spikes.ptsd_compiled import BLOCK

# Chunks whose length is a multiple of this give the same samples as the whole, bit for bit.
HIGHPASS_BLOCK = 128
# Blocks of samples for a block of threads: as few as fit into 17 KB of shared memory, so that a
# multiprocessor has a dozen blocks of threads, of which some load while others compute.
_TILE = 32
SUM_SHAPES = {"SUM_BLOCK": BLOCK, "SUM_TILE": _TILE}
HIGHPASS_SHAPES = {"HIGHPASS_BLOCK": HIGHPASS_BLOCK, "HIGHPASS_TILE": _TILE}
NOISE_SHAPES = {"NOISE_LEAF": 128, "RANK_BITS": 11, "RANK_TILE": 65536}


class DeviceHighPass:
    """`HighPassFilter` for chunks on the device; an `InputError` where that one raises it."""

    def __init__(self, device: Accelerator, params: HighPass, sampling_rate_hz: float) -> None:
        self._xp = device.xp
        self._n_sections = 0
        self._state: DeviceArray | None = None
        self._ended = False
        sos = butterworth_sections(params, sampling_rate_hz)
        if sos is None:
            return
        self._n_sections = len(sos)
        self._kernels = device.kernels(
            "highpass", **HIGHPASS_SHAPES, HIGHPASS_SECTIONS=self._n_sections
        )
        self._sos = self._xp.asarray(np.ascontiguousarray(sos, np.float64))
        self._silence = self._xp.asarray(_after_silence(sos, HIGHPASS_BLOCK))

    def apply(self, samples_uv: DeviceArray, out: DeviceArray) -> None:
        """Filter the next chunk, (channels, samples) float32, into `out`; they must not overlap.

        Rows are contiguous. A chunk that follows one of no whole number of blocks, after which the
        state is unknown, is a `ValueError`.
        """
        channels, n = samples_uv.shape
        if n == 0:
            return
        if not self._n_sections:
            out[...] = samples_uv
            return
        if self._ended:
            raise ValueError(f"only the last chunk may be no multiple of {HIGHPASS_BLOCK}")
        self._ended = n % HIGHPASS_BLOCK != 0
        if self._state is None:
            self._state = self._xp.zeros((channels, 2 * self._n_sections), np.float64)
            self._first = samples_uv[:, 0].copy()
        blocks = -(-n // HIGHPASS_BLOCK)
        threads = channels * -(-blocks // _TILE) * THREADS
        left = self._xp.empty((channels, blocks, 2 * self._n_sections), np.float64)
        entered = self._xp.empty_like(left)
        chunk = (samples_uv, row_pitch(samples_uv), channels, n, self._first, self._sos)
        launch = self._kernels.launch
        launch("highpass_probe", threads, *chunk, left)
        launch(
            "highpass_chain", channels, channels, blocks, self._silence, left, entered, self._state
        )
        launch("highpass_run", threads, *chunk, entered, out, row_pitch(out))


def row_pitch(samples: DeviceArray) -> int:
    """Return the number of values from one row to the next; the rows must be contiguous."""
    if samples.shape[1] > 1 and samples.strides[1] != samples.itemsize:
        raise ValueError(f"rows must be contiguous, got strides {samples.strides}")
    return int(samples.strides[0] // samples.itemsize)


def _after_silence(sos: NDArray[np.float64], n_samples: int) -> NDArray[np.float64]:
    """Return the (states, states) matrix that maps a state to the one after `n_samples` zeros."""
    states = np.eye(2 * len(sos))
    for _ in range(n_samples):
        v = np.zeros(2 * len(sos))
        for k, (b0, b1, b2, _a0, a1, a2) in enumerate(sos):
            y = b0 * v + states[2 * k]
            states[2 * k] = b1 * v - a1 * y + states[2 * k + 1]
            states[2 * k + 1] = b2 * v - a2 * y
            v = y
    return states


# --- means and noise


def channel_means(
    device: Accelerator, samples_uv: DeviceArray, segments: Sequence[Segment], names: Sequence[str]
) -> NDArray[np.float32]:
    """Return the mean of each channel of `samples_uv` over all segments, on the host.

    `samples_uv` (channels, samples) float32 is the whole recording on the device, rows contiguous;
    `names` are its channels', for messages. NaN or infinity is an `InputError`.
    """
    xp = device.xp
    kernels = device.kernels("sums", **SUM_SHAPES)
    channels = samples_uv.shape[0]
    total = xp.zeros(channels, np.float64)
    for segment in (s for s in segments if s.n_samples):
        part = samples_uv[:, segment.first_sample : segment.first_sample + segment.n_samples]
        blocks = -(-segment.n_samples // BLOCK)
        sums = xp.empty((channels, blocks), np.float64)
        threads = channels * -(-blocks // _TILE) * THREADS
        kernels.launch(
            "sum_blocks", threads, part, row_pitch(part), channels, segment.n_samples, sums
        )
        kernels.launch("sum_totals", channels * THREADS, channels, blocks, sums, total)
    n = max(1, sum(s.n_samples for s in segments))
    means = [channel_mean(float(t), n, name) for t, name in zip(to_host(total), names, strict=True)]
    return np.array(means, np.float32)


def noise_thresholds_on(
    device: Accelerator, samples_uv: DeviceArray, sampling_rate_hz: float, ptsd: Ptsd
) -> Thresholds:
    """Do what `noise_thresholds` does for a recording on the device.

    Thresholds are computed on the host, in float64, and cast once.
    """
    windows = noise_windows(samples_uv.shape[1], sampling_rate_hz)
    smallest = _smallest_sd(device, samples_uv, windows)
    noise = _mad_sd(device, samples_uv) if ptsd.noise == "mad" else smallest
    return thresholds_from(ptsd, smallest, noise)


def _smallest_sd(
    device: Accelerator, samples_uv: DeviceArray, windows: Sequence[slice]
) -> NDArray[np.float64]:
    """Return each channel's smallest sample SD (ddof 1); 0 where no window has two samples.

    The windows begin at equal distances and are equally long but for the last. All are done at
    once, as NumPy's `std` does each: see kernels/noise.cu.
    """
    xp, (channels, n) = device.xp, samples_uv.shape
    size = np.array([w.stop - w.start for w in windows])
    if size.max() < 2:
        return np.zeros(channels)
    launch, shapes = _noise_kernels(device)
    step, width = windows[-1].start // max(1, len(windows) - 1), int(size[0])
    depth = _halvings(width, shapes["NOISE_LEAF"])
    mean, squares = (xp.empty((channels, len(windows)), np.float64) for _ in range(2))
    leaves = xp.empty((channels, len(windows), 2**depth), np.float64)
    cut = (len(windows), step, width, depth)
    for total, of_squares in ((mean, 0), (squares, 1)):
        launch(
            "noise_leaves", leaves.size, samples_uv, row_pitch(samples_uv), channels, n, *cut,
            of_squares, mean, leaves,
        )  # fmt: skip
        launch("noise_join", mean.size, channels, n, *cut, 1 - of_squares, leaves, total)
    enough = size > 1
    variance = to_host(squares)[:, enough] / (size[enough] - 1)
    return np.asarray(np.sqrt(variance).min(axis=1))


def _halvings(n: int, most: int) -> int:
    """Count how often n values are halved until no part has more than `most`."""
    depth = 0
    while n > most:
        # The longer half: the first has a multiple of 8 values.
        n -= n // 2 - n // 2 % 8
        depth += 1
    return depth


def _mad_sd(device: Accelerator, samples_uv: DeviceArray) -> NDArray[np.float64]:
    """Return each channel's MAD / 0.6745, as NumPy's `median` gives it; NaN without samples."""
    xp, (channels, n) = device.xp, samples_uv.shape
    if not n:
        return np.full(channels, np.nan)
    launch, _ = _noise_kernels(device)
    centre = xp.zeros(channels, np.float64)
    middle = _middle_two(device, samples_uv, centre, deviations=False)
    launch("rank_centre", channels, channels, middle, centre)
    deviations = to_host(_middle_two(device, samples_uv, centre, deviations=True))
    return np.asarray(deviations.view(np.float64).mean(axis=1) / 0.6745)


def _middle_two(
    device: Accelerator, samples_uv: DeviceArray, centre: DeviceArray, *, deviations: bool
) -> DeviceArray:
    """Find the integers of the two middle values of each channel, or of their deviations.

    (channels, 2) uint64; of an odd number of values the middle one twice. See kernels/noise.cu.
    """
    xp, (channels, n) = device.xp, samples_uv.shape
    launch, shapes = _noise_kernels(device)
    wanted = xp.zeros((channels, 2), np.uint64)
    rank = xp.asarray(np.tile(np.array([(n - 1) // 2, n // 2], np.int64), (channels, 1)))
    threads = channels * -(-n // shapes["RANK_TILE"]) * THREADS
    shift = 64 if deviations else 32
    while shift:
        bits = min(shift, shapes["RANK_BITS"])
        shift -= bits
        counts = xp.zeros((channels, 2, 2 ** shapes["RANK_BITS"]), np.uint64)
        launch(
            "rank_count", threads, samples_uv, row_pitch(samples_uv), channels, n, int(deviations),
            centre, shift, bits, wanted, counts,
        )  # fmt: skip
        launch("rank_narrow", channels, channels, bits, counts, rank, wanted)
    return wanted


def _noise_kernels(device: Accelerator) -> tuple[Launch, Mapping[str, int]]:
    kernels = device.kernels("noise", **NOISE_SHAPES)
    return kernels.launch, kernels.shapes

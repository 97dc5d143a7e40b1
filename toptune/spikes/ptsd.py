"""Spikes from voltage in memory: noise thresholds and PTSD, all channels at once.

(channels, samples) float32 microvolts enter, already filtered; `Spikes` leave. Precision Timing
Spike Detection: Maccione et al. 2009, J. Neurosci. Methods 177:241-249. Recordings that do not fit
into memory go through `toptune.spikes.streaming`, which finds the same spikes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.threads import in_threads, thread_pool
from toptune.params import Ptsd
from toptune.recordings.trains import Spikes, sort_spikes
from toptune.spikes import ptsd_blocks as spikes_cpu
from toptune.spikes.ptsd_compiled import Found, Rule, Scratch, walk_kept, walk_row

NOISE_WINDOWS = 30
NOISE_WINDOW_S = 0.2
NOISE_CAP_UV = 100.0


class PtsdSamples(NamedTuple):
    """`Ptsd`'s times in whole samples, truncated as the definition says."""

    lifetime: int
    refractory: int
    overshoot: int
    negative: bool

    @classmethod
    def at(cls, ptsd: Ptsd, sampling_rate_hz: float) -> PtsdSamples:
        """Convert; a lifetime below one sample could find nothing and is an `InputError`."""
        # The tiny factor keeps 0.3 ms x 10 kHz at 3 samples: 2.9999999999999996 in binary.
        lifetime, refractory, overshoot = (
            int(ms * sampling_rate_hz / 1000 * (1 + 1e-12))
            for ms in (ptsd.lifetime_ms, ptsd.refractory_ms, ptsd.overshoot_ms)
        )
        if lifetime < 1:
            raise InputError(
                f"Ptsd.lifetime_ms {ptsd.lifetime_ms:g} is less than one sample at"
                f" {sampling_rate_hz:g} Hz: choose at least {1000 / sampling_rate_hz:g} ms"
            )
        return cls(lifetime, refractory, overshoot, ptsd.alignment == "negative")


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Peak-to-peak thresholds and what they rest on.

    Parameters
    ----------
    threshold_uv : (channels,) float32
        Infinite for a dead channel: it gives no spikes.
    noise_sd_uv : (channels,) float64
        The noise estimate, before the cap; NaN with a fixed threshold.
    dead : (channels,) bool
        The smallest deviation is 0.
    noisy : (channels,) bool
        The estimate is above 100 uV, where the threshold is capped.
    """

    threshold_uv: NDArray[np.float32]
    noise_sd_uv: NDArray[np.float64]
    dead: NDArray[np.bool_]
    noisy: NDArray[np.bool_]


def noise_windows(n_samples: int, sampling_rate_hz: float) -> list[slice]:
    """Where the noise is estimated: 30 windows of 200 ms, one every round(n/30) samples.

    A recording shorter than 6 s gives contiguous windows of 200 ms, one shorter than 200 ms itself.
    """
    width = max(2, int(NOISE_WINDOW_S * sampling_rate_hz))
    if n_samples < NOISE_WINDOWS * width:
        count = n_samples // width
        return [slice(i * width, (i + 1) * width) for i in range(count)] or [slice(0, n_samples)]
    step = round(n_samples / NOISE_WINDOWS)
    starts = [i * step for i in range(NOISE_WINDOWS)]
    return [slice(a, min(a + width, n_samples)) for a in starts]


def smallest_sd(windows: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Smallest sample standard deviation (ddof 1) of each channel over windows of samples.

    Parameters
    ----------
    windows
        (channels, samples) float32 each.

    Returns
    -------
    (channels,) float64
        0 where no window has two samples.
    """
    sds = [w.astype(np.float64).std(axis=1, ddof=1) for w in windows if w.shape[1] > 1]
    if not sds:
        return np.zeros(windows[0].shape[0] if windows else 0)
    return np.asarray(np.min(sds, axis=0))


def mad_sd(samples_uv: NDArray[np.float32]) -> NDArray[np.float64]:
    """MAD / 0.6745 of each channel over all samples (Quiroga et al. 2004, Neural Comput. 16:1661).

    Parameters
    ----------
    samples_uv : (channels, samples) float32
    """
    out = np.empty(samples_uv.shape[0])
    for row, x in enumerate(samples_uv):
        centre = np.median(x).astype(np.float64)
        out[row] = np.median(np.abs(x - centre)) / 0.6745
    return out


def thresholds_from(
    ptsd: Ptsd, smallest: NDArray[np.float64], noise: NDArray[np.float64]
) -> Thresholds:
    """Turn noise estimates into thresholds.

    Parameters
    ----------
    ptsd
        Factor, or the fixed threshold.
    smallest : (channels,) float64
        Smallest SD of the noise windows: 0 tells a dead channel.
    noise : (channels,) float64
        The estimate that `ptsd.noise` asks for.
    """
    dead = smallest == 0
    if ptsd.threshold_uv is not None:
        wanted = np.full(smallest.size, ptsd.threshold_uv)
        noise = np.full(smallest.size, np.nan)
        noisy = smallest > NOISE_CAP_UV
    else:
        dead = dead | (noise == 0)
        noisy = noise > NOISE_CAP_UV
        wanted = ptsd.threshold_sd * np.minimum(noise, NOISE_CAP_UV)
    threshold = np.where(dead, np.inf, wanted).astype(np.float32)
    return Thresholds(threshold, noise, dead, noisy)


def noise_thresholds(
    samples_uv: NDArray[np.float32], sampling_rate_hz: float, ptsd: Ptsd
) -> Thresholds:
    """Estimate each channel's noise over a whole recording in memory and set its threshold.

    Parameters
    ----------
    samples_uv : (channels, samples) float32
        The whole recording, filtered.
    sampling_rate_hz
        Samples a second.
    ptsd
        Which estimate, and the factor.
    """
    windows = noise_windows(samples_uv.shape[1], sampling_rate_hz)
    smallest = smallest_sd([samples_uv[:, w] for w in windows])
    noise = mad_sd(samples_uv) if ptsd.noise == "mad" else smallest
    return thresholds_from(ptsd, smallest, noise)


def detect_spikes(
    samples_uv: NDArray[np.float32],
    sampling_rate_hz: float,
    ptsd: Ptsd | None = None,
    thresholds_uv: NDArray[np.float32] | None = None,
    *,
    n_jobs: int | None = None,
) -> Spikes:
    """Find the spikes of a recording in memory.

    Parameters
    ----------
    samples_uv : (channels, samples) float32
        The whole recording in microvolts, filtered as wanted. Each channel's mean is taken off
        here.
    sampling_rate_hz
        Samples a second.
    ptsd
        Parameters of the detection; the defaults of `Ptsd` where None.
    thresholds_uv : (channels,) float32, optional
        Peak-to-peak thresholds; estimated from the noise where None. Infinity silences a channel.
    n_jobs
        Threads; None for one a core. The spikes do not depend on it.

    Returns
    -------
    Spikes
        Sorted by sample, then channel.

    Raises
    ------
    InputError
        Samples are not two-dimensional, NaN or infinite; a threshold is NaN or not above 0.
    """
    ptsd = Ptsd() if ptsd is None else ptsd
    if samples_uv.ndim != 2:
        raise InputError(f"samples must be (channels, samples), got shape {samples_uv.shape}")
    if not (np.isfinite(sampling_rate_hz) and sampling_rate_hz > 0):
        raise InputError(f"sampling_rate_hz must be above 0, got {sampling_rate_hz!r}")
    samples_uv = np.ascontiguousarray(samples_uv, dtype=np.float32)
    n_channels, n = samples_uv.shape
    times = PtsdSamples.at(ptsd, sampling_rate_hz)
    if thresholds_uv is None:
        thresholds_uv = noise_thresholds(samples_uv, sampling_rate_hz, ptsd).threshold_uv
    thresholds = checked_thresholds(thresholds_uv, n_channels)

    def one(channel: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        x = samples_uv[channel]
        low, high, total = (
            np.empty(-(-n // spikes_cpu.BLOCK), kind)
            for kind in (np.float32, np.float32, np.float64)
        )
        spikes_cpu.block_stats(x, low, high, total)
        mean = channel_mean(sequential_sum(total), n, f"channel {channel}")
        finder = ChannelWalk(times, thresholds[channel])
        finder.walk_row(x, low, high, mean)
        return finder.found()

    with thread_pool(n_jobs) as pool:
        found = in_threads(pool, one, range(n_channels if n else 0))
    return merge_channels(found)


def sequential_sum(block_sums: NDArray[np.float64]) -> float:
    """Add block sums one after the other: the order every chunking shares."""
    # cumsum adds in order, where sum adds pairwise.
    return float(block_sums.cumsum()[-1]) if block_sums.size else 0.0


def channel_mean(total: float, n: int, what: str) -> np.float32:
    """Mean of a channel from its sum; NaN or infinity in its samples is an `InputError`."""
    if not np.isfinite(total):
        raise InputError(f"{what} holds NaN or infinite samples: repair or leave out the recording")
    return np.float32(total / n)


def checked_thresholds(thresholds_uv: NDArray[np.float32], n_channels: int) -> NDArray[np.float32]:
    """One positive float32 threshold a channel, or an `InputError` that names the first bad one."""
    thresholds = np.asarray(thresholds_uv, dtype=np.float32)
    if thresholds.shape != (n_channels,):
        raise InputError(
            f"thresholds_uv must hold one value for each of {n_channels} channels,"
            f" got shape {thresholds.shape}"
        )
    bad = np.flatnonzero(~(thresholds > 0))
    if bad.size:
        raise InputError(
            f"thresholds_uv must be above 0, got {thresholds[bad[0]]} for channel {bad[0]}"
        )
    return thresholds


def merge_channels(found: list[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> Spikes:
    """Put the channels' spikes together in the order of `Spikes`."""
    if not found:
        return Spikes(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    counts = [sample.size for sample, _ in found]
    channel = np.repeat(np.arange(len(found), dtype=np.int32), counts)
    return sort_spikes(
        np.concatenate([sample for sample, _ in found]),
        channel,
        np.concatenate([uv for _, uv in found]),
    )


class ChannelWalk:
    """The walk over one gap-free stretch of one channel: its state and what it found so far.

    Parameters
    ----------
    times
        Detection times in samples.
    threshold_uv
        Peak-to-peak threshold; infinity finds nothing.
    """

    def __init__(self, times: PtsdSamples, threshold_uv: np.float32) -> None:
        self._times = times
        self._threshold = threshold_uv
        self._found = Found(np.array([1, 0], np.int64), *self._room(1024))
        self._scratch = Scratch.for_reach(times.lifetime + times.overshoot)

    def walk_row(
        self,
        x: NDArray[np.float32],
        low: NDArray[np.float32],
        high: NDArray[np.float32],
        mean: np.float32,
    ) -> None:
        """Walk the whole stretch, given the statistics of its blocks."""
        rule = Rule(*self._times, mean, self._threshold)
        chosen = np.empty(low.size + 1, np.int64)
        while np.isfinite(self._threshold) and not walk_row(
            x, low, high, rule, self._found, self._scratch, chosen
        ):
            self._grow()

    def walk_kept(
        self,
        ids: NDArray[np.int64],
        kept: NDArray[np.float32],
        stop: int,
        n: int,
        mean: np.float32,
    ) -> None:
        """Walk kept blocks below block `stop` of a stretch of n samples."""
        rule = Rule(*self._times, mean, self._threshold)
        while np.isfinite(self._threshold) and not walk_kept(
            ids, kept, stop, n, rule, self._found, self._scratch
        ):
            self._grow()

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Give samples (int64) and peak-to-peak microvolts (float32) of the spikes so far."""
        k = int(self._found.state[1])
        return self._found.sample[:k].copy(), self._found.uv[:k].copy()

    def _grow(self) -> None:
        state, sample, uv = self._found
        self._found = Found(state, *self._room(2 * sample.size))
        self._found.sample[: sample.size] = sample
        self._found.uv[: uv.size] = uv

    @staticmethod
    def _room(size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return np.empty(size, np.int64), np.empty(size, np.float32)

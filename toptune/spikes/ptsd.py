"""Precision Timing Spike Detection (PTSD) of filtered voltage in memory, all channels at once.

Source: Maccione et al. 2009, J. Neurosci. Methods 177:241-249. A recording that does not fit into
memory goes through `toptune.spikes.streaming`, which finds the same spikes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from toptune.errors import InputError
from toptune.machine.threads import in_threads, thread_pool
from toptune.params import Ptsd
from toptune.recordings.trains import Spikes, sort_spikes
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.ptsd_compiled import (
    BLOCK,
    Float32,
    Float64,
    Found,
    Ints,
    Rule,
    Scratch,
    block_stats,
    walk_kept,
    walk_row,
)


class PtsdSamples(NamedTuple):
    """The times of `Ptsd` in whole samples, truncated as PTSD defines."""

    lifetime: int
    refractory: int
    overshoot: int
    negative: bool

    @classmethod
    def at(cls, ptsd: Ptsd, sampling_rate_hz: float) -> PtsdSamples:
        """Convert; a lifetime below one sample, which could find nothing, is an `InputError`."""
        # The factor keeps 0.3 ms x 10 kHz, which is 2.9999999999999996 in binary, at 3 samples.
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


def detect_spikes(
    samples_uv: Float32,
    sampling_rate_hz: float,
    ptsd: Ptsd | None = None,
    thresholds_uv: Float32 | None = None,
    *,
    n_jobs: int | None = None,
) -> Spikes:
    """Find the spikes of a recording in memory.

    Parameters
    ----------
    samples_uv : (channels, samples) float32
        The whole recording in microvolts, filtered as wanted. Each channel's mean is subtracted
        here.
    sampling_rate_hz
        Samples per second.
    ptsd
        Parameters of the detection; the defaults of `Ptsd` if None.
    thresholds_uv : (channels,) float32, optional
        Peak-to-peak thresholds; estimated from the noise if None. Infinity silences a channel.
    n_jobs
        CPU threads; all cores if None. The spikes do not depend on it.

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
    thresholds = _checked_thresholds(thresholds_uv, n_channels)

    def one(channel: int) -> tuple[Ints, Float32]:
        x = samples_uv[channel]
        low, high, total = (
            np.empty(-(-n // BLOCK), kind) for kind in (np.float32, np.float32, np.float64)
        )
        block_stats(x, low, high, total)
        mean = channel_mean(sequential_sum(total), n, f"channel {channel}")
        finder = ChannelWalk(times, thresholds[channel])
        finder.walk_row(x, low, high, mean)
        return finder.found()

    with thread_pool(n_jobs) as pool:
        found = in_threads(pool, one, range(n_channels if n else 0))
    return merge_channels(found)


def sequential_sum(block_sums: Float64) -> float:
    """Add block sums one after another, in the order that every chunking shares."""
    # cumsum adds in order; sum would add pairwise.
    return float(block_sums.cumsum()[-1]) if block_sums.size else 0.0


def channel_mean(total: float, n: int, what: str) -> np.float32:
    """Return a channel's mean from its sum; NaN or infinite samples are an `InputError`."""
    if not np.isfinite(total):
        raise InputError(f"{what} holds NaN or infinite samples: repair or leave out the recording")
    return np.float32(total / n)


def _checked_thresholds(thresholds_uv: Float32, n_channels: int) -> Float32:
    """Check for one positive threshold per channel, float32; the error names the first bad one."""
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


def merge_channels(found: list[tuple[Ints, Float32]]) -> Spikes:
    """Merge the channels' spikes into the order of `Spikes`."""
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
    """The walk over one segment of one channel: its state and the spikes found so far.

    With an infinite threshold nothing is found.
    """

    def __init__(self, times: PtsdSamples, threshold_uv: np.float32) -> None:
        self._times = times
        self._threshold = threshold_uv
        room = np.empty(1024, np.int64), np.empty(1024, np.float32)
        self._found = Found(np.array([1, 0], np.int64), *room)
        self._scratch = Scratch.for_reach(times.lifetime + times.overshoot)

    def walk_row(self, x: Float32, low: Float32, high: Float32, mean: np.float32) -> None:
        """Walk the whole segment, given the statistics of its blocks."""
        rule = Rule(*self._times, mean, self._threshold)
        chosen = np.empty(low.size + 1, np.int64)
        while np.isfinite(self._threshold) and not walk_row(
            x, low, high, rule, self._found, self._scratch, chosen
        ):
            self._grow()

    def walk_kept(self, ids: Ints, kept: Float32, n: int, mean: np.float32) -> None:
        """Walk the kept blocks of a segment of n samples."""
        rule = Rule(*self._times, mean, self._threshold)
        while np.isfinite(self._threshold) and not walk_kept(
            ids, kept, n, rule, self._found, self._scratch
        ):
            self._grow()

    def found(self) -> tuple[Ints, Float32]:
        """Return samples (int64) and peak-to-peak microvolts (float32) of the spikes so far."""
        k = int(self._found.state[1])
        return self._found.sample[:k].copy(), self._found.uv[:k].copy()

    def _grow(self) -> None:
        state, sample, uv = self._found
        self._found = Found(state, np.resize(sample, 2 * sample.size), np.resize(uv, 2 * uv.size))

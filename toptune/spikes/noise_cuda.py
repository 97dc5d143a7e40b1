"""Means and noise estimates of a recording on a GPU.

A filtered recording, (channels, samples) float32 microvolts on the device, enters; means and
`Thresholds`, a few numbers a channel, leave, on the host. They follow the rules of
`toptune.spikes.ptsd` in float64. Sums are added in the CPU's order but for the inside of blocks of
128 samples; standard deviations in the array module's own, which may change the last of their 53
bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toptune.machine.cuda import THREADS, Accelerator, DeviceArray, to_host
from toptune.params import Ptsd
from toptune.recordings.trains import Segment
from toptune.spikes.filters_cuda import row_pitch
from toptune.spikes.ptsd import Thresholds, channel_mean, noise_windows, thresholds_from
from toptune.spikes.ptsd_blocks import BLOCK

_TILE = 64


def channel_means(
    device: Accelerator, samples_uv: DeviceArray, segments: Sequence[Segment], names: Sequence[str]
) -> NDArray[np.float32]:
    """Mean of each channel over all segments.

    Parameters
    ----------
    device
        Where the samples are.
    samples_uv : (channels, samples) float32
        The whole recording, rows contiguous.
    segments
        The stretches that hold all samples.
    names
        Of the channels, for messages.

    Returns
    -------
    (channels,) float32
        On the host.

    Raises
    ------
    InputError
        A channel holds NaN or infinity.
    """
    xp = device.xp
    kernels = device.kernels("sums", SUM_BLOCK=BLOCK, SUM_TILE=_TILE)
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
    """Estimate each channel's noise over a whole recording and set its threshold.

    Parameters
    ----------
    device
        Where the samples are.
    samples_uv : (channels, samples) float32
        The whole recording, filtered.
    sampling_rate_hz
        Samples a second.
    ptsd
        Which estimate, and the factor.

    Returns
    -------
    Thresholds
        On the host: deviations become thresholds there, in float64, cast once.
    """
    windows = noise_windows(samples_uv.shape[1], sampling_rate_hz)
    smallest = _smallest_sd([samples_uv[:, w] for w in windows], samples_uv.shape[0])
    noise = _mad_sd(device, samples_uv) if ptsd.noise == "mad" else smallest
    return thresholds_from(ptsd, smallest, noise)


def _smallest_sd(windows: list[DeviceArray], channels: int) -> NDArray[np.float64]:
    """Smallest sample standard deviation (ddof 1) of each channel; 0 where no window has two."""
    smallest = np.full(channels, np.inf)
    # Queued all at once, then fetched: 30 numbers a channel.
    sds = [w.astype(np.float64).std(axis=1, ddof=1) for w in windows if w.shape[1] > 1]
    for sd in sds:
        smallest = np.minimum(smallest, to_host(sd))
    return smallest if sds else np.zeros(channels)


def _mad_sd(device: Accelerator, samples_uv: DeviceArray) -> NDArray[np.float64]:
    """MAD / 0.6745 of each channel, a channel at a time: its sorted copy is all that it takes."""
    xp = device.xp
    out = np.empty(samples_uv.shape[0])
    for row, x in enumerate(samples_uv):
        centre = _median(xp.sort(x))
        deviations = xp.abs(x.astype(np.float64) - centre)
        out[row] = _median(xp.sort(deviations)) / 0.6745
    return out


def _median(ordered: DeviceArray) -> float:
    """Median of sorted values; of an even number the middle ones' mean, in their own precision."""
    n = ordered.size
    return float(np.median(to_host(ordered[(n - 1) // 2 : n // 2 + 1])))

"""Means and noise estimates of a recording on a GPU, by the rules of `toptune.spikes.noise`.

All is computed in float64. Sums are added in the CPU's order but for the inside of blocks of 128
samples, and standard deviations in the order of the array module, which may change the last of
their 53 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toptune.machine.cuda import THREADS, Accelerator, DeviceArray, to_host
from toptune.params import Ptsd
from toptune.recordings.trains import Segment
from toptune.spikes.filters_cuda import row_pitch
from toptune.spikes.noise import Thresholds, noise_windows, thresholds_from
from toptune.spikes.ptsd import channel_mean
from toptune.spikes.ptsd_compiled import BLOCK

_TILE = 64


def channel_means(
    device: Accelerator, samples_uv: DeviceArray, segments: Sequence[Segment], names: Sequence[str]
) -> NDArray[np.float32]:
    """Return the mean of each channel of `samples_uv` over all segments, on the host.

    `samples_uv` (channels, samples) float32 is the whole recording on the device, rows contiguous;
    `names` are its channels', for messages. NaN or infinity is an `InputError`.
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
    """Do what `noise_thresholds` does for a recording on the device.

    Thresholds are computed on the host, in float64, and cast once.
    """
    windows = noise_windows(samples_uv.shape[1], sampling_rate_hz)
    smallest = _smallest_sd([samples_uv[:, w] for w in windows], samples_uv.shape[0])
    noise = _mad_sd(device, samples_uv) if ptsd.noise == "mad" else smallest
    return thresholds_from(ptsd, smallest, noise)


def _smallest_sd(windows: list[DeviceArray], channels: int) -> NDArray[np.float64]:
    """Return each channel's smallest sample SD (ddof 1); 0 where no window has two samples."""
    smallest = np.full(channels, np.inf)
    # All are queued before the first is fetched.
    sds = [w.astype(np.float64).std(axis=1, ddof=1) for w in windows if w.shape[1] > 1]
    for sd in sds:
        smallest = np.minimum(smallest, to_host(sd))
    return smallest if sds else np.zeros(channels)


def _mad_sd(device: Accelerator, samples_uv: DeviceArray) -> NDArray[np.float64]:
    """Return each channel's MAD / 0.6745, one at a time to hold only one sorted channel."""
    xp = device.xp
    out = np.empty(samples_uv.shape[0])
    for row, x in enumerate(samples_uv):
        centre = _median(xp.sort(x))
        deviations = xp.abs(x.astype(np.float64) - centre)
        out[row] = _median(xp.sort(deviations)) / 0.6745
    return out


def _median(ordered: DeviceArray) -> float:
    """Median of sorted values; for an even number, the mean of the middle two in their own type."""
    n = ordered.size
    return float(np.median(to_host(ordered[(n - 1) // 2 : n // 2 + 1])))

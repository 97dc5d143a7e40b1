"""Each channel's noise, and the peak-to-peak threshold that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toptune.params import Ptsd

NOISE_WINDOWS = 30
NOISE_WINDOW_S = 0.2
NOISE_CAP_UV = 100.0


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Peak-to-peak thresholds and the noise estimates they come from, all (channels,)."""

    threshold_uv: NDArray[np.float32]  # infinite for a dead channel, which has no spikes
    noise_sd_uv: NDArray[np.float64]  # before the cap; NaN with a fixed threshold
    dead: NDArray[np.bool_]  # the noise is exactly 0
    noisy: NDArray[np.bool_]  # it is above 100 uV, at which the threshold is capped


def noise_windows(n_samples: int, sampling_rate_hz: float) -> list[slice]:
    """Choose where the noise is estimated: 30 windows of 200 ms, one every round(n / 30) samples.

    In a recording shorter than 6 s the windows of 200 ms are contiguous; one shorter than 200 ms is
    itself the only window.
    """
    width = max(2, int(NOISE_WINDOW_S * sampling_rate_hz))
    if n_samples < NOISE_WINDOWS * width:
        count = n_samples // width
        return [slice(i * width, (i + 1) * width) for i in range(count)] or [slice(0, n_samples)]
    step = round(n_samples / NOISE_WINDOWS)
    starts = [i * step for i in range(NOISE_WINDOWS)]
    return [slice(a, min(a + width, n_samples)) for a in starts]


def smallest_sd(windows: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return each channel's smallest sample SD (ddof 1) over windows, each (channels, samples).

    It is 0 where no window has two samples.
    """
    sds = [w.astype(np.float64).std(axis=1, ddof=1) for w in windows if w.shape[1] > 1]
    if not sds:
        return np.zeros(windows[0].shape[0] if windows else 0)
    return np.asarray(np.min(sds, axis=0))


def mad_sd(samples_uv: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each channel's MAD / 0.6745 (Quiroga et al. 2004, Neural Comput. 16:1661)."""
    out = np.empty(samples_uv.shape[0])
    for row, x in enumerate(samples_uv):
        centre = np.median(x).astype(np.float64)
        out[row] = np.median(np.abs(x - centre)) / 0.6745
    return out


def thresholds_from(
    ptsd: Ptsd, smallest: NDArray[np.float64], noise: NDArray[np.float64]
) -> Thresholds:
    """Turn noise estimates into thresholds.

    Both are (channels,): `smallest` is the smallest SD of the noise windows, 0 for a dead channel,
    and `noise` the estimate that `ptsd.noise` asks for.
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
    """Estimate each channel's noise and set its threshold.

    `samples_uv` (channels, samples) is the whole recording in memory, filtered.
    """
    windows = noise_windows(samples_uv.shape[1], sampling_rate_hz)
    smallest = smallest_sd([samples_uv[:, w] for w in windows])
    noise = mad_sd(samples_uv) if ptsd.noise == "mad" else smallest
    return thresholds_from(ptsd, smallest, noise)

"""The voltage of simulated electrodes: spike templates in coloured noise.

It is made block by block, so that memory does not grow with the recording.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.compiling import compiled

# Of an autoregressive process of order 2: amplifier noise has more power at low frequencies.
_AR = (0.35, 0.1)
_HUM_HZ = 50.0
# Samples for which drift is constant; it changes by about 0.1 uV, far less than the noise.
_DRIFT_STEP = 65
# 30 chunks of a 60-channel MCS file, so that its writer need not cut and join blocks.
_BLOCK = 126 * _DRIFT_STEP
_BEFORE_MS = 0.8
_AFTER_MS = 1.7
# Below this, a template has only a few samples and is no longer biphasic.
MIN_SAMPLING_RATE_HZ = 5_000.0


class Template(NamedTuple):
    """The shape of a neuron's spike at an electrode.

    Attributes
    ----------
    trough_ms, hump_ms
        Widths (SD) of the negative peak and the positive one after it.
    delay_ms
        Time from the negative peak to the positive one.
    ratio
        Height of the positive peak relative to the negative one.
    """

    trough_ms: float
    hump_ms: float
    delay_ms: float
    ratio: float


TYPICAL_TEMPLATE = Template(trough_ms=0.15, hump_ms=0.28, delay_ms=0.6, ratio=0.35)


class Electrodes(NamedTuple):
    """Noise, hum, drift and offset of each electrode, (channels,) float64 in microvolts and hertz.

    A dead electrode and the reference have a `noise_sd_uv` of 0, and show their offset only.
    """

    noise_sd_uv: NDArray[np.float64]
    hum_uv: NDArray[np.float64]
    drift_uv: NDArray[np.float64]
    drift_hz: NDArray[np.float64]
    offset_uv: NDArray[np.float64]


class PlacedSpikes(NamedTuple):
    """Spikes to add to the traces, sorted by sample.

    Attributes
    ----------
    sample : (n,) int64
        The sample of the template's negative peak.
    channel, shape : (n,) int32
        The electrode, and the row of `waveforms_uv`.
    waveforms_uv : (shapes, length) float32
        From `template_waveform`.
    peak_at
        Column of the negative peak.
    """

    sample: NDArray[np.int64]
    channel: NDArray[np.int32]
    shape: NDArray[np.int32]
    waveforms_uv: NDArray[np.float32]
    peak_at: int


def template_waveform(
    template: Template, peak_uv: float, sampling_rate_hz: float
) -> NDArray[np.float32]:
    """Return a biphasic spike whose negative peak is `peak_uv` below zero; (length,) float32."""
    before = samples_before_peak(sampling_rate_hz)
    after = math.ceil(_AFTER_MS * sampling_rate_hz / 1000)
    ms = np.arange(-before, after + 1) * 1000 / sampling_rate_hz
    trough = np.exp(-0.5 * (ms / template.trough_ms) ** 2)
    hump = np.exp(-0.5 * ((ms - template.delay_ms) / template.hump_ms) ** 2)
    wave = template.ratio * hump - trough
    # Both ends must be zero, to leave no steps in the trace, and the peak exact despite the hump.
    wave *= np.sin(np.pi * (np.arange(len(ms)) + 1) / (len(ms) + 1)) ** 0.25
    scaled: NDArray[np.float32] = (wave * (peak_uv / -wave[before])).astype(np.float32)
    return scaled


def samples_before_peak(sampling_rate_hz: float) -> int:
    """Return the column of the negative peak in a waveform of `template_waveform`."""
    return math.ceil(_BEFORE_MS * sampling_rate_hz / 1000)


def voltage_blocks(
    rng: np.random.Generator,
    electrodes: Electrodes,
    placed: PlacedSpikes,
    *,
    n_samples: int,
    sampling_rate_hz: float,
) -> Iterator[NDArray[np.float32]]:
    """Yield (channels, up to 8190) float32 microvolts until `n_samples` are reached."""
    n_channels = len(electrodes.noise_sd_uv)
    phases = rng.uniform(0, 2 * np.pi, (n_channels, 2))
    state = np.zeros((n_channels, 2))
    gain = electrodes.noise_sd_uv / _ar_sd()
    # sin(wt + p) = sin(wt) cos(p) + cos(wt) sin(p), so that all channels share one pair of waves.
    mix = np.stack([np.cos(phases[:, 0]), np.sin(phases[:, 0])], axis=1)
    hum = (electrodes.hum_uv[:, None] * mix).astype(np.float32)
    for start in range(0, n_samples, _BLOCK):
        block = rng.standard_normal((n_channels, min(_BLOCK, n_samples - start)), np.float32)
        time_s = (start + np.arange(block.shape[1])) / sampling_rate_hz
        angle = 2 * np.pi * _HUM_HZ * time_s
        mains = np.stack([np.sin(angle), np.cos(angle)]).astype(np.float32)
        drift = _drift_uv(electrodes, phases[:, 1], time_s[::_DRIFT_STEP])
        _colour(block, state, gain, mains, hum, drift)
        _add_spikes(block, placed, start)
        yield block


def new_generator(seed: int | np.random.SeedSequence) -> np.random.Generator:
    """Return a random generator; SFC64 is NumPy's fastest bit generator."""
    return np.random.Generator(np.random.SFC64(seed))


def check_rate(sampling_rate_hz: float) -> None:
    """Refuse rates at which templates cannot be sampled."""
    if not MIN_SAMPLING_RATE_HZ <= sampling_rate_hz < math.inf:
        raise InputError(
            f"sampling_rate_hz must be {MIN_SAMPLING_RATE_HZ:g} or above, got {sampling_rate_hz:g}"
        )


def _ar_sd() -> float:
    """Return the autoregressive process's SD for unit innovations (Box & Jenkins, section 3.2)."""
    a, b = _AR
    return math.sqrt((1 - b) / ((1 + b) * ((1 - b) ** 2 - a**2)))


@compiled()
def _colour(
    block: NDArray[np.float32],
    state: NDArray[np.float64],
    gain: NDArray[np.float64],
    mains: NDArray[np.float32],
    hum: NDArray[np.float32],
    drift: NDArray[np.float32],
) -> None:
    """Turn white noise into each channel's autoregressive noise, with hum and drift, in place."""
    a, b = _AR
    for channel in range(block.shape[0]):
        last, before = state[channel]
        for t in range(block.shape[1]):
            now = block[channel, t] + a * last + b * before
            before = last
            last = now
            wave = hum[channel, 0] * mains[0, t] + hum[channel, 1] * mains[1, t]
            block[channel, t] = now * gain[channel] + wave + drift[channel, t // _DRIFT_STEP]
        state[channel, 0] = last
        state[channel, 1] = before


def _drift_uv(
    electrodes: Electrodes, phases: NDArray[np.float64], time_s: NDArray[np.float64]
) -> NDArray[np.float32]:
    angle = 2 * np.pi * electrodes.drift_hz[:, None] * time_s + phases[:, None]
    slow = electrodes.drift_uv[:, None] * np.sin(angle) + electrodes.offset_uv[:, None]
    return slow.astype(np.float32)


def _add_spikes(block: NDArray[np.float32], placed: PlacedSpikes, start: int) -> None:
    length = placed.waveforms_uv.shape[1]
    low, high = np.searchsorted(placed.sample, [start - length, start + block.shape[1] + length])
    _stamp(
        block,
        placed.sample[low:high] - placed.peak_at - start,
        placed.channel[low:high],
        placed.shape[low:high],
        placed.waveforms_uv,
    )


@compiled()
def _stamp(
    block: NDArray[np.float32],
    first: NDArray[np.int64],
    channel: NDArray[np.int32],
    shape: NDArray[np.int32],
    waveforms: NDArray[np.float32],
) -> None:
    """Add each spike's waveform from column `first` on, as far as it is inside the block."""
    for i in range(len(first)):
        for k in range(max(0, -first[i]), min(waveforms.shape[1], block.shape[1] - first[i])):
            block[channel[i], first[i] + k] += waveforms[shape[i], k]

"""Voltage with known spikes, to judge a detector by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.recordings.simulated import (
    TYPICAL_TEMPLATE,
    Electrodes,
    PlacedSpikes,
    check_rate,
    new_generator,
    samples_before_peak,
    template_waveform,
    voltage_blocks,
)
from toptune.recordings.trains import Spikes, sort_spikes


class Traces(NamedTuple):
    """Voltage with known spikes."""

    samples_uv: NDArray[np.float32]  # (channels, samples)
    spikes: Spikes  # the true ones: negative peaks, and the template's peak-to-peak amplitude
    noise_sd_uv: float  # of every channel


def simulate_traces(
    *,
    n_channels: int,
    seconds: float,
    seed: int,
    peak_sd: float,
    rate_hz: float = 5.0,
    noise_sd_uv: float = 5.0,
    sampling_rate_hz: float = 10_000.0,
    refractory_ms: float = 5.0,
) -> Traces:
    """Simulate electrodes with one randomly firing neuron each, without hum, drift or offset.

    ``peak_sd`` is the height of the negative peak in noise standard deviations; peak to peak is
    1.37 times that. ``rate_hz`` is before spikes in the refractory time are removed. No spike is
    cut off at the ends.
    """
    check_rate(sampling_rate_hz)
    rng = new_generator(seed)
    n_samples = round(seconds * sampling_rate_hz)
    wave = template_waveform(TYPICAL_TEMPLATE, peak_sd * noise_sd_uv, sampling_rate_hz)
    refractory = max(1, round(refractory_ms * sampling_rate_hz / 1000))
    trains = []
    for _ in range(n_channels):
        count = rng.poisson(rate_hz * seconds)
        sample = np.unique(
            rng.integers(len(wave), max(len(wave) + 1, n_samples - len(wave)), count)
        )
        trains.append(sample[np.diff(sample, prepend=-refractory) >= refractory])
    channel = np.repeat(np.arange(n_channels, dtype=np.int32), [len(t) for t in trains])
    swing = np.float32(wave.max() - wave.min())
    spikes = sort_spikes(np.concatenate(trains), channel, np.full(len(channel), swing, np.float32))
    none = np.zeros(n_channels)
    electrodes = Electrodes(np.full(n_channels, noise_sd_uv), none, none, none, none)
    placed = PlacedSpikes(
        spikes.sample,
        spikes.channel,
        np.zeros(len(channel), np.int32),
        wave[None],
        samples_before_peak(sampling_rate_hz),
    )
    blocks = voltage_blocks(
        rng, electrodes, placed, n_samples=n_samples, sampling_rate_hz=sampling_rate_hz
    )
    return Traces(np.concatenate(list(blocks), axis=1), spikes, noise_sd_uv)

"""Detection of a recording in chunks: the same spikes as of the whole, whatever the route."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_recording import ArrayRecording
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ptsd_cases import RATE_HZ, voltage

from toptune.errors import InputError
from toptune.params import HighPass, Noise, Ptsd
from toptune.recordings.trains import Segment, Spikes
from toptune.spikes import streaming as detection
from toptune.spikes.filters import HighPassFilter
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.ptsd import detect_spikes
from toptune.spikes.streaming import Detected, detect_recording


def by_definition(
    x: NDArray[np.float32], highpass: HighPass, ptsd: Ptsd
) -> tuple[Spikes, NDArray[np.float32]]:
    y = HighPassFilter(highpass, RATE_HZ, x.shape[0]).apply(x)
    thresholds = noise_thresholds(y, RATE_HZ, ptsd).threshold_uv
    return detect_spikes(y, RATE_HZ, ptsd, thresholds), thresholds


def assert_same(found: Detected, spikes: Spikes, thresholds: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(found.trains.threshold_uv, thresholds)
    for got, expected in zip(found.trains.spikes, spikes, strict=True):
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 30_000),
    channels=st.integers(1, 4),
    batch=st.integers(1, 9000),
    keep_bytes=st.sampled_from([0, 20_000, 2**30]),
    cutoff_hz=st.sampled_from([0.0, 1.0, 300.0]),
    order=st.integers(1, 3),
    noise=st.sampled_from(["smallest_sd", "mad", "fixed"]),
    lifetime_ms=st.sampled_from([0.1, 2.0, 40.0]),
    n_jobs=st.sampled_from([1, 2]),
)
def test_any_chunking_gives_the_spikes_of_the_whole(
    seed: int,
    n: int,
    channels: int,
    batch: int,
    keep_bytes: int,
    cutoff_hz: float,
    order: int,
    noise: Noise,
    lifetime_ms: float,
    n_jobs: int,
) -> None:
    x = voltage(seed, channels, n)
    highpass = HighPass(cutoff_hz=cutoff_hz, order=order)
    ptsd = Ptsd(
        threshold_sd=5,
        lifetime_ms=lifetime_ms,
        noise=noise,
        threshold_uv=45.0 if noise == "fixed" else None,
    )
    expected = by_definition(x, highpass, ptsd)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection, "_BATCH_VALUES", batch * channels)
        patch.setattr(detection, "_KEEP_BYTES", keep_bytes)
        found = detect_recording(ArrayRecording(x, RATE_HZ), highpass, ptsd, n_jobs=n_jobs)
    assert_same(found, *expected)


def test_one_pass_is_enough_and_two_are_where_too_much_would_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = voltage(0, 4, 100_000)
    monkeypatch.setattr(detection, "_BATCH_VALUES", 40_000)
    once = detect_recording(ArrayRecording(x, RATE_HZ))
    monkeypatch.setattr(detection, "_KEEP_BYTES", 1000)
    twice = detect_recording(ArrayRecording(x, RATE_HZ))
    assert (once.passes, twice.passes) == (1, 2)
    assert once.trains.spikes.sample.size > 500
    assert_same(twice, once.trains.spikes, once.trains.threshold_uv)


def test_a_preliminary_threshold_that_was_too_high_costs_a_second_pass_and_no_spike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = voltage(1, 3, 80_000)
    expected = by_definition(x, HighPass(), Ptsd())
    monkeypatch.setattr(detection, "_PRELIMINARY_MARGIN", 1.5)
    found = detect_recording(ArrayRecording(x, RATE_HZ))
    assert found.passes == 2
    assert_same(found, *expected)


def test_gaps_restart_the_filter_and_the_detector() -> None:
    x = voltage(2, 2, 90_000)
    gaps = (Segment(0, 31_234, 0.0), Segment(31_234, 50, 10.0), Segment(31_284, 58_716, 12.0))
    found = detect_recording(ArrayRecording(x, RATE_HZ, gaps))
    parts = [
        HighPassFilter(HighPass(), RATE_HZ, 2).apply(x[:, g.first_sample :][:, : g.n_samples])
        for g in gaps
    ]
    whole = np.concatenate(parts, axis=1)
    thresholds = noise_thresholds(whole, RATE_HZ, Ptsd()).threshold_uv
    centred = whole - whole.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    expected = [
        (s + g.first_sample, c)
        for g in gaps
        for s, c in zip(
            *detect_spikes(
                # The mean is the recording's, so it is taken off before each part is looked at.
                centred[:, g.first_sample :][:, : g.n_samples], RATE_HZ, Ptsd(), thresholds
            )[:2],
            strict=True,
        )
    ]  # fmt: skip
    got = list(zip(found.trains.spikes.sample, found.trains.spikes.channel, strict=True))
    assert got == expected
    assert found.trains.segments == gaps


def test_dead_and_noisy_channels_are_told_and_dead_ones_silent() -> None:
    x = voltage(3, 3, 80_000)
    x[1] = 5.0
    x[2] *= 40
    found = detect_recording(ArrayRecording(x, RATE_HZ))
    assert found.noise.dead.tolist() == [False, True, False]
    assert found.noise.noisy.tolist() == [False, False, True]
    assert 1 not in found.trains.spikes.channel


def test_nan_is_refused_by_channel() -> None:
    x = voltage(4, 2, 20_000)
    x[1, 12_345] = np.nan
    with pytest.raises(InputError, match="<memory>: channel 1 holds NaN"):
        detect_recording(ArrayRecording(x, RATE_HZ))


def test_a_cutoff_above_nyquist_is_refused_before_reading() -> None:
    recording: Any = ArrayRecording(voltage(5, 1, 1000), 500.0)
    with pytest.raises(InputError, match="high-pass cut-off of 300 Hz"):
        detect_recording(recording)


def test_progress_counts_samples_up_to_all() -> None:
    calls: list[tuple[int, int]] = []
    x = voltage(6, 2, 50_000)
    detect_recording(ArrayRecording(x, RATE_HZ), progress=lambda a, b: calls.append((a, b)))
    assert calls[-1] == (50_000, 50_000)

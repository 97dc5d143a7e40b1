"""Means and thresholds taken on the device against the CPU's."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from cuda_on_cpu import HostAccelerator, Launch, decaying
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import Noise, Ptsd
from toptune.recordings.trains import Segment
from toptune.spikes import preparing_cuda
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.preparing_cuda import channel_means, noise_thresholds_on

RATE_HZ = 10_000.0


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> HostAccelerator:
    # Small tiles put many of their edges into short recordings.
    return HostAccelerator(
        tmp_path_factory.mktemp("noise_cuda"), shapes={"SUM_TILE": 3, "THREADS": 7}
    )


def cut(n: int, at: list[float]) -> tuple[Segment, ...]:
    edges = sorted({0, n, *(int(a * n) for a in at)})
    return tuple(Segment(a, b - a, float(a)) for a, b in itertools.pairwise(edges))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 4),
    n=st.integers(1, 3000),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    launch=st.builds(Launch, st.integers(1, 5), st.integers(1, 33), st.booleans()),
)
def test_mean_is_that_of_an_exact_sum(
    device: HostAccelerator, seed: int, channels: int, n: int, cuts: list[float], launch: Launch
) -> None:
    rng = np.random.default_rng(seed)
    device.how = launch
    # Multiples of 2**-10, whose float64 sums are exact in any order.
    x = (rng.integers(-(2**16), 2**16, (channels, n)) / 1024).astype(np.float32)
    got = channel_means(device, x, cut(n, cuts), [str(k) for k in range(channels)])
    expected = (x.astype(np.float64).sum(axis=1) / n).astype(np.float32)
    np.testing.assert_array_equal(got, expected)


def test_mean_survives_samples_of_very_different_size(device: HostAccelerator) -> None:
    x = np.zeros((1, 500), np.float32)
    x[0, ::2], x[0, 1::2] = 3e7, -3e7
    x[0, 7] += 4.0
    got = channel_means(device, x, cut(500, []), ["a"])
    np.testing.assert_array_equal(got, np.float32(x.astype(np.float64).sum() / 500))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_channel_that_is_not_finite_is_refused_by_name(
    device: HostAccelerator, bad: float
) -> None:
    x = np.ones((2, 400), np.float32)
    x[1, 399] = bad
    with pytest.raises(InputError, match="electrode B holds NaN or infinite samples"):
        channel_means(device, x, cut(400, [0.4]), ["electrode A", "electrode B"])


@pytest.mark.parametrize("noise", ["smallest_sd", "mad"])
@pytest.mark.parametrize("n", [1, 2, 1999, 2000, 59_999, 60_016, 70_001])
def test_thresholds_are_the_cpus(device: HostAccelerator, noise: Noise, n: int) -> None:
    x = np.random.default_rng(7).normal(0, 9, (3, n)).astype(np.float32)
    x[1] = 0.1
    x[2] *= 50
    got = noise_thresholds_on(device, x, RATE_HZ, Ptsd(noise=noise))
    expected = noise_thresholds(x, RATE_HZ, Ptsd(noise=noise))
    for a, b in zip(vars(got).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    if n > 2:
        assert got.dead.tolist() == [False, True, False]
        assert got.noisy.tolist() == [False, False, True]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 3),
    n=st.integers(1, 700),
    # Windows of 4, 8, 9, 20, 128, 129, 200, 257 and 600 samples.
    rate_hz=st.sampled_from([20.0, 40.0, 45.0, 100.0, 640.0, 645.0, 1000.0, 1285.0, 3000.0]),
    levels=st.sampled_from([2, 5, 2**16]),
    scale=st.sampled_from([1.0, 1e-3, 1e-44]),
    launch=st.builds(Launch, st.integers(1, 5), st.just(7), st.booleans()),
)
def test_noise_has_the_cpus_bits(
    device: HostAccelerator,
    seed: int,
    channels: int,
    n: int,
    rate_hz: float,
    levels: int,
    scale: float,
    launch: Launch,
) -> None:
    """With windows of any length, ties, zeros of both signs and subnormal numbers."""
    rng = np.random.default_rng(seed)
    device.how = launch
    x = (rng.integers(-levels, levels + 1, (channels, n)) * rng.normal(1, 0.3, n)).astype("f4")
    x = (x * np.float32(scale)).astype(np.float32)
    x[x == 0] *= rng.choice([-1, 1], np.count_nonzero(x == 0))
    for noise in ("smallest_sd", "mad"):
        got = noise_thresholds_on(device, x, rate_hz, Ptsd(noise=noise))
        expected = noise_thresholds(x, rate_hz, Ptsd(noise=noise))
        for a, b in zip(vars(got).values(), vars(expected).values(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("width", [2, 7, 8, 9, 15, 16, 17, 128, 129, 136, 255, 257, 2000])
def test_windows_of_any_length_are_summed_in_the_cpus_order(
    device: HostAccelerator, width: int
) -> None:
    # Many channels, since another order changes the last bit of some sums only.
    x = np.random.default_rng(width).normal(3, 9, (50, 31 * width)).astype(np.float32)
    got = noise_thresholds_on(device, x, 5.0 * width, Ptsd())
    expected = noise_thresholds(x, 5.0 * width, Ptsd())
    np.testing.assert_array_equal(got.noise_sd_uv, expected.noise_sd_uv)


def test_rows_of_a_larger_array_are_taken_as_they_lie(device: HostAccelerator) -> None:
    x = np.random.default_rng(1).normal(0, 9, (5, 9000)).astype(np.float32)
    for noise in ("smallest_sd", "mad"):
        got = noise_thresholds_on(device, x[1:4, 100:8000], RATE_HZ, Ptsd(noise=noise))
        expected = noise_thresholds(x[1:4, 100:8000], RATE_HZ, Ptsd(noise=noise))
        np.testing.assert_array_equal(got.noise_sd_uv, expected.noise_sd_uv)


@pytest.mark.parametrize("noise", ["smallest_sd", "mad"])
def test_a_channel_that_fades_is_not_dead(device: HostAccelerator, noise: Noise) -> None:
    x = decaying()[:2, 1900:2900]
    got = noise_thresholds_on(device, x, 100.0, Ptsd(noise=noise))
    expected = noise_thresholds(x, 100.0, Ptsd(noise=noise))
    # All of its samples are subnormal numbers.
    assert (expected.noise_sd_uv > 0).all()
    assert (expected.noise_sd_uv < np.finfo(np.float32).tiny).all()
    assert not got.dead.any()
    np.testing.assert_array_equal(got.noise_sd_uv, expected.noise_sd_uv)


@pytest.mark.parametrize("noise", ["smallest_sd", "mad"])
def test_the_host_waits_once_for_an_estimate_of_all_channels(
    device: HostAccelerator, monkeypatch: pytest.MonkeyPatch, noise: Noise
) -> None:
    waited: list[int] = []

    def fetched(array: NDArray[np.generic]) -> NDArray[np.generic]:
        waited.append(array.size)
        return array

    monkeypatch.setattr(preparing_cuda, "to_host", fetched)
    x = np.random.default_rng(2).normal(0, 9, (4, 70_000)).astype(np.float32)
    noise_thresholds_on(device, x, RATE_HZ, Ptsd(noise=noise))
    assert waited == ([4 * 30] if noise == "smallest_sd" else [4 * 30, 4 * 2])


def test_a_fixed_threshold_is_taken_and_dead_channels_stay_silent(device: HostAccelerator) -> None:
    x = np.random.default_rng(7).normal(0, 9, (2, 9000)).astype(np.float32)
    x[1] = 3
    got = noise_thresholds_on(device, x, RATE_HZ, Ptsd(noise="fixed", threshold_uv=40))
    assert got.threshold_uv.tolist() == [40, np.inf]


def test_no_samples_give_dead_channels(tmp_path: Path) -> None:
    x = np.empty((2, 0), np.float32)
    got = noise_thresholds_on(HostAccelerator(tmp_path), x, RATE_HZ, Ptsd())
    assert got.dead.all()

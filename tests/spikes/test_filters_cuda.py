"""The GPU's filter, built by g++, against the CPU's: equal but for rounding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.signal
from cuda_on_cpu import HostAccelerator, Launch, decaying
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import HighPass
from toptune.spikes.filters import HighPassFilter
from toptune.spikes.preparing_cuda import HIGHPASS_BLOCK, DeviceHighPass

RATE_HZ = 10_000.0


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> HostAccelerator:
    # Small tiles put many of their edges into short recordings.
    return HostAccelerator(
        tmp_path_factory.mktemp("filters_cuda"), shapes={"HIGHPASS_TILE": 3, "THREADS": 16}
    )


def filtered(
    device: HostAccelerator, x: NDArray[np.float32], params: HighPass, cuts: list[int]
) -> NDArray[np.float32]:
    filt = DeviceHighPass(device, params, RATE_HZ)
    out = np.full_like(x, np.nan)
    for begin, end in itertools.pairwise([0, *cuts, x.shape[1]]):
        filt.apply(x[:, begin:end], out[:, begin:end])
    return out


def voltage(seed: int, channels: int, n: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    drift = rng.normal(0, 5, (channels, n)).cumsum(axis=1)
    return (drift + rng.normal(0, 30, (channels, n)) + rng.normal(0, 2000, (channels, 1))).astype(
        np.float32
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    channels=st.integers(1, 4),
    n=st.integers(1, 3000),
    order=st.integers(1, 8),
    cutoff_hz=st.sampled_from([1.0, 5.0, 300.0, 4000.0]),
    launch=st.builds(Launch, st.integers(1, 5), st.integers(1, 33), st.booleans()),
)
def test_samples_are_the_cpus_but_for_rounding(
    device: HostAccelerator,
    seed: int,
    channels: int,
    n: int,
    order: int,
    cutoff_hz: float,
    launch: Launch,
) -> None:
    device.how = launch
    params = HighPass(cutoff_hz=cutoff_hz, order=order)
    x = voltage(seed, channels, n)
    got = filtered(device, x, params, [])
    expected = HighPassFilter(params, RATE_HZ, channels).apply(x)
    # One unit in the last place, or what float64 leaves of the samples that went in.
    close = np.abs(got - expected) <= np.maximum(
        np.spacing(np.abs(expected)), float(np.abs(x).max()) * 1e-9
    )
    assert close.all()


def test_a_channel_that_fades_keeps_its_subnormal_numbers(device: HostAccelerator) -> None:
    device.how = Launch()
    params = HighPass(cutoff_hz=300.0, order=1)
    expected = HighPassFilter(params, RATE_HZ, 3).apply(decaying())
    smallest = np.finfo(np.float32).tiny
    assert np.count_nonzero((expected != 0) & (np.abs(expected) < smallest)) > 100
    got = filtered(device, decaying(), params, [])
    assert (np.abs(got - expected) <= np.spacing(np.abs(expected))).all()


@pytest.mark.parametrize("order", [1, 2])
def test_nearly_all_samples_have_the_cpus_bits(device: HostAccelerator, order: int) -> None:
    device.how = Launch()
    x = voltage(1, 8, 200_000)
    got = filtered(device, x, HighPass(order=order), [])
    expected = HighPassFilter(HighPass(order=order), RATE_HZ, 8).apply(x)
    assert (got != expected).sum() <= 10
    # Near zero the rounding of the microvolts that went in, thousands, is more than the last bit.
    assert (np.abs(got - expected) <= np.maximum(np.spacing(np.abs(expected)), 1e-9)).all()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3000),
    cuts=st.lists(st.integers(0, 24), max_size=4).map(sorted),
    order=st.integers(1, 8),
    channels=st.integers(1, 3),
)
def test_chunks_of_whole_blocks_give_the_samples_of_the_whole_bit_for_bit(
    device: HostAccelerator, n: int, cuts: list[int], order: int, channels: int
) -> None:
    device.how = Launch()
    x = voltage(n, channels, n)
    params = HighPass(order=order)
    at = [c * HIGHPASS_BLOCK for c in cuts if c * HIGHPASS_BLOCK < n]
    np.testing.assert_array_equal(filtered(device, x, params, at), filtered(device, x, params, []))


def test_a_long_recording_drifts_no_further_than_a_short_one(device: HostAccelerator) -> None:
    device.how = Launch(2, 64)
    params = HighPass(cutoff_hz=1, order=4)
    x = voltage(3, 1, 400_000)
    sos = scipy.signal.butter(4, 1, "highpass", fs=RATE_HZ, output="sos")
    expected = scipy.signal.sosfilt(sos, x.astype(np.float64) - np.float64(x[0, 0]))
    off = np.abs(filtered(device, x, params, []) - expected)
    assert off[:, -50_000:].max() <= 1e-6 * np.abs(expected).max()


def test_a_channel_that_never_moves_is_exactly_zero(device: HostAccelerator) -> None:
    x = np.full((2, 1000), np.float32(1234.5))
    for order in (1, 2, 8):
        assert not filtered(device, x, HighPass(order=order), [256]).any()


def test_zero_turns_the_filter_off(device: HostAccelerator) -> None:
    x = voltage(4, 2, 777)
    np.testing.assert_array_equal(filtered(device, x, HighPass(cutoff_hz=0), [5, 300]), x)


def test_rows_may_be_some_of_a_larger_array(device: HostAccelerator) -> None:
    x = voltage(5, 5, 900)
    held = np.full((3, 1200), np.nan, np.float32)
    filt = DeviceHighPass(device, HighPass(), RATE_HZ)
    filt.apply(x[1:4, 100:900], held[:, 200:1000])
    expected = filtered(device, np.ascontiguousarray(x[1:4, 100:900]), HighPass(), [])
    np.testing.assert_array_equal(held[:, 200:1000], expected)
    assert np.isnan(held[:, :200]).all()
    assert np.isnan(held[:, 1000:]).all()


def test_what_follows_a_chunk_of_broken_blocks_is_refused(device: HostAccelerator) -> None:
    filt = DeviceHighPass(device, HighPass(), RATE_HZ)
    x = voltage(6, 1, 400)
    out = np.empty_like(x)
    filt.apply(x[:, :100], out[:, :100])
    with pytest.raises(ValueError, match="last chunk may be no multiple of 128"):
        filt.apply(x[:, 100:], out[:, 100:])


@pytest.mark.parametrize("order", [1, 2])
def test_a_cutoff_at_nyquist_is_refused(device: HostAccelerator, order: int) -> None:
    with pytest.raises(InputError, match="choose a cut-off below 250 Hz, or 0"):
        DeviceHighPass(device, HighPass(order=order), 500)

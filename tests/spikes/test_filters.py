"""The high-pass filter against scipy, and its carried state."""

from __future__ import annotations

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from toptune.errors import InputError
from toptune.params import HighPass
from toptune.spikes.filters import HighPassFilter, settling_samples


@pytest.mark.parametrize(("order", "cutoff_hz"), [(1, 300), (2, 300), (3, 5), (4, 100), (8, 2000)])
@pytest.mark.parametrize("channels", [1, 7, 8, 19])
def test_filter_equals_scipy_in_double_precision(
    order: int, cutoff_hz: float, channels: int
) -> None:
    x = np.random.default_rng(0).normal(20, 30, (channels, 4000)).astype(np.float32)
    sos = scipy.signal.butter(order, cutoff_hz, "highpass", fs=10_000, output="sos")
    zi = scipy.signal.sosfilt_zi(sos)[:, None, :] * x[None, :, :1]
    expected, _ = scipy.signal.sosfilt(sos, x.astype(np.float64), zi=zi)
    got = HighPassFilter(HighPass(cutoff_hz=cutoff_hz, order=order), 10_000, channels).apply(x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 500), max_size=6).map(sorted),
    order=st.integers(1, 4),
    channels=st.integers(1, 18),
)
def test_any_chunking_and_threads_give_the_same_samples(
    cuts: list[int], order: int, channels: int
) -> None:
    x = np.random.default_rng(order).normal(0, 10, (channels, 500)).astype(np.float32)
    params = HighPass(order=order)
    whole = HighPassFilter(params, 10_000, channels).apply(x)
    filt = HighPassFilter(params, 10_000, channels)
    with ThreadPoolExecutor(3) as pool:
        bounds = [0, *cuts, 500]
        parts = [filt.apply(x[:, a:b], pool=pool) for a, b in itertools.pairwise(bounds)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_an_offset_is_not_filtered_as_a_step() -> None:
    filt = HighPassFilter(HighPass(), 10_000, 1)
    assert np.abs(filt.apply(np.full((1, 50), 4000, np.float32))).max() == 0


def test_zero_turns_the_filter_off() -> None:
    x = np.random.default_rng(1).normal(size=(3, 100)).astype(np.float32)
    off = HighPass(cutoff_hz=0)
    np.testing.assert_array_equal(HighPassFilter(off, 10_000, 3).apply(x), x)
    assert settling_samples(off, 10_000, 99) == 0


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("cutoff_hz", [250, 251, 1e6])
def test_a_cutoff_at_or_above_nyquist_is_refused(cutoff_hz: float, order: int) -> None:
    needed = f"needs a sampling rate above {2 * cutoff_hz:g} Hz, .* below 250 Hz, or 0 for no"
    with pytest.raises(InputError, match=re.escape(needed).replace(r"\.\*", ".*")):
        HighPassFilter(HighPass(cutoff_hz=cutoff_hz, order=order), 500, 1)
    HighPassFilter(HighPass(cutoff_hz=249, order=order), 500, 1)


@pytest.mark.parametrize("order", [0, 9, 1.0, True])
def test_an_order_that_no_filter_has_is_refused(order: int) -> None:
    with pytest.raises(InputError, match="a whole number from 1 to 8"):
        HighPass(order=order)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_after_settling_the_past_does_not_matter(order: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 10, (1, 3000)).astype(np.float32)
    params = HighPass(order=order)
    settle = settling_samples(params, 10_000, 2000)
    assert 30 < settle < 300
    whole = HighPassFilter(params, 10_000, 1).apply(x)
    late = HighPassFilter(params, 10_000, 1).apply(x[:, 1000 - settle :])
    np.testing.assert_allclose(late[:, settle:], whole[:, 1000:], atol=1e-3)

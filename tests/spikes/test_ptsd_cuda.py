"""The GPU's PTSD, kernels built by g++ and the host code as it is, equals the CPU's bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_on_cpu import HostAccelerator, Launch, decaying
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ptsd_cases import (
    ALONE,
    RATE_HZ,
    TOGETHER,
    ChunkedCase,
    assert_same_bits,
    chunked_cases,
    detect_spikes_on,
    launches,
    milliseconds,
    streamed,
    voltages,
)

from toptune.errors import InputError
from toptune.params import Noise, Ptsd
from toptune.recordings.trains import Segment
from toptune.spikes import ptsd_cuda as spikes_cuda
from toptune.spikes.ptsd import PtsdSamples, detect_spikes
from toptune.spikes.ptsd_cuda import Detector, DeviceSpikes, sort_device_spikes


# Blocks, tiles and blocks of threads this small put many of their edges into short recordings, with
# whole rounds of loads, whose places in memory the compiler knows or not, and without any.
@pytest.fixture(scope="module", params=[(32, 128, 1024, 32), (4, 16, 8, 4), (3, 7, 1, 2)], ids=str)
def device(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> HostAccelerator:
    names = ("PTSD_BLOCK", "PTSD_TILE", "PTSD_RUN", "THREADS")
    folder = tmp_path_factory.mktemp("spikes_cuda")
    return HostAccelerator(folder, shapes=dict(zip(names, request.param, strict=True)))


@settings(max_examples=100, deadline=None)
@given(case=chunked_cases(), launch=launches)
def test_spikes_are_the_cpus_bit_for_bit_however_chunked_and_selected(
    device: HostAccelerator, case: ChunkedCase, launch: Launch
) -> None:
    device.how = launch
    case.check_on(device)


@settings(max_examples=25, deadline=None)
@given(
    x=voltages(),
    threshold_sd=st.sampled_from([0.5, 2.0, 5.0]),
    noise=st.sampled_from(["smallest_sd", "mad"]),
    chunk_values=st.sampled_from([1, 100, 10**6]),
    most=st.sampled_from([1, 4, 40, 10**6]),
)
def test_a_recording_on_the_device_gives_the_thresholds_and_spikes_of_the_cpu(
    device: HostAccelerator,
    x: NDArray[np.float32],
    threshold_sd: float,
    noise: Noise,
    chunk_values: int,
    most: int,
) -> None:
    """Also where there is no room for all candidates, or not for all spikes."""
    device.how = Launch()
    params = Ptsd(threshold_sd=threshold_sd, noise=noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spikes_cuda, "chunk_values", lambda _: chunk_values)
        patch.setattr(spikes_cuda, "MOST_CANDIDATES", most)
        got = detect_spikes_on(device, x, params).to_host()
    assert_same_bits(got, detect_spikes(x, RATE_HZ, params, n_jobs=1))


@pytest.mark.parametrize("walk_limit", [ALONE, TOGETHER])
def test_spikes_are_the_cpus_on_coloured_noise_with_offsets_and_spikes(
    device: HostAccelerator, walk_limit: int
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 12_000)).cumsum(axis=1) * 0.2 + rng.standard_normal((5, 12_000))
    x = (x + np.array([[0], [1000], [-3000], [5], [0]])).astype(np.float32)
    threshold = np.array([0.5, 5, 4, 6.5, np.inf], np.float32)
    expected = detect_spikes(x, RATE_HZ, Ptsd(), threshold, n_jobs=1)
    assert expected.sample.size > 500
    device.how = Launch(3, 64, False)
    times = PtsdSamples.at(Ptsd(), RATE_HZ)
    for cuts in ([], [999, 1000, 3_987, 8_001]):
        got = streamed(device, x, times, threshold, cuts, walk_limit)
        assert_same_bits(got, expected)


def test_only_long_runs_are_walked_by_blocks_of_threads(device: HostAccelerator) -> None:
    rng = np.random.default_rng(0)
    device.how = Launch()
    times = PtsdSamples(20, 10, 5, False)
    kernels = device.kernels("ptsd", **spikes_cuda.PTSD_SHAPES)
    noise = rng.standard_normal((1, 20_000)).astype(np.float32)
    # Nearly every peak of noise is a candidate and hinders the next: one run, thousands long.
    for threshold, long in ((0.01, True), (6.0, False)):
        limits = np.full(1, threshold, np.float32)
        got = streamed(device, noise, times, limits, [], spikes_cuda.WALK_LIMIT)
        assert got.sample.size > 3
        *_, n_runs, _, _, _ = kernels.arguments["ptsd_walk_on"]
        assert isinstance(n_runs, np.ndarray)
        assert (n_runs[0] > 0) == long
        assert_same_bits(got, detect_spikes(noise, RATE_HZ, Ptsd(), limits, n_jobs=1))


def test_the_host_waits_once_for_all_chunks_and_segments(
    device: HostAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.how = Launch()
    x = np.random.default_rng(4).standard_normal((2, 6000)).astype(np.float32)
    segments = (Segment(0, 2500, 0.0), Segment(2500, 3500, 1.0))
    waited: list[int] = []

    def fetched(array: NDArray[np.generic]) -> NDArray[np.generic]:
        waited.append(array.size)
        return array

    monkeypatch.setattr(spikes_cuda, "to_host", fetched)
    monkeypatch.setattr(spikes_cuda, "chunk_values", lambda _: 2 * 1000)
    mean, limits = np.zeros(2, np.float32), np.full(2, 4, np.float32)
    times = PtsdSamples(20, 10, 5, False)
    (found,) = spikes_cuda.walk_segments(device, x, segments, times, mean, limits)
    assert found.sample.size > 100
    assert found.sample.max() > 5000
    assert waited == [2]


@settings(max_examples=30, deadline=None)
@given(x=voltages(), times=milliseconds, launch=launches)
def test_heads_are_the_candidates_no_earlier_one_can_pass(
    device: HostAccelerator, x: NDArray[np.float32], times: tuple[int, int, int], launch: Launch
) -> None:
    device.how = launch
    threshold = np.full(x.shape[0], 1.5, np.float32)
    kernels = device.kernels("ptsd", **spikes_cuda.PTSD_SHAPES)
    kernels.arguments.clear()
    streamed(device, x, PtsdSamples(*times, False), threshold, [], ALONE)
    if "ptsd_heads" not in kernels.arguments:
        return
    ends, _, _, sample, channel, after, *_, head = kernels.arguments["ptsd_heads"]
    assert isinstance(ends, np.ndarray)
    assert isinstance(sample, np.ndarray)
    assert isinstance(channel, np.ndarray)
    assert isinstance(after, np.ndarray)
    assert isinstance(head, np.ndarray)
    for i in range(ends[-1]):
        earlier = after[:i][channel[:i] == channel[i]]
        assert head[i] == (earlier.max(initial=0) <= sample[i])


@settings(max_examples=25, deadline=None)
@given(x=voltages(), cut=st.floats(0, 1), reach=st.integers(1, 60), launch=launches)
def test_extremes_are_those_of_the_samples_that_the_chunk_holds(
    device: HostAccelerator, x: NDArray[np.float32], cut: float, reach: int, launch: Launch
) -> None:
    device.how = launch
    kernels = device.kernels("ptsd", **spikes_cuda.PTSD_SHAPES)
    begin = int(cut * (x.shape[1] - 1))
    threshold = np.full(x.shape[0], 1e9, np.float32)
    # Beside the chunk lie samples that are larger and smaller than any of its own.
    streamed(device, x, PtsdSamples(reach, 0, 0, False), threshold, [begin], ALONE)
    *_, first, started, stop, low, high = kernels.arguments["ptsd_extremes"]
    assert started == begin
    assert isinstance(first, int)
    assert isinstance(stop, int)
    size = kernels.shapes["PTSD_BLOCK"]
    edges = range(begin // size * size, stop, size)
    held = [x[:, max(a, first) : min(a + size, stop)] for a in edges]
    np.testing.assert_array_equal(low, np.stack([h.min(axis=1) for h in held], axis=1))
    np.testing.assert_array_equal(high, np.stack([h.max(axis=1) for h in held], axis=1))


def test_amplitude_equal_to_the_threshold_is_a_spike(device: HostAccelerator) -> None:
    x = np.random.default_rng(8).integers(-3, 4, (2, 3000)).astype(np.float32)
    low = np.full(2, 0.5, np.float32)
    amplitudes = detect_spikes(x, RATE_HZ, Ptsd(), low, n_jobs=1).peak_to_peak_uv
    threshold = np.full(2, amplitudes.max(), np.float32)
    device.how = Launch(1, 8, False)
    got = streamed(device, x, PtsdSamples.at(Ptsd(), RATE_HZ), threshold, [1500], ALONE)
    assert got.sample.size > 0
    assert_same_bits(got, detect_spikes(x, RATE_HZ, Ptsd(), threshold, n_jobs=1))


def test_spikes_of_subnormal_size_are_the_cpus(device: HostAccelerator) -> None:
    device.how = Launch()
    x = decaying()[:, ::7] * np.where(np.arange(572) % 5 == 0, -1, 1).astype(np.float32)
    limits = np.full(3, 1e-41, np.float32)
    expected = detect_spikes(x, RATE_HZ, Ptsd(), limits, n_jobs=1)
    small = expected.peak_to_peak_uv < np.finfo(np.float32).tiny
    assert np.count_nonzero(small) > 5
    times = PtsdSamples.at(Ptsd(), RATE_HZ)
    assert_same_bits(streamed(device, x, times, limits, [300], ALONE), expected)


def test_a_quiet_recording_has_no_spikes(device: HostAccelerator) -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (2, 500)).astype(np.float32)
    got = streamed(device, x, PtsdSamples(20, 10, 5, False), np.full(2, 3, np.float32), [], ALONE)
    assert [a.size for a in got] == [0, 0, 0]
    assert [a.dtype.name for a in got] == ["int64", "int32", "float32"]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_recordings_too_short_for_a_peak_have_no_spikes(device: HostAccelerator, n: int) -> None:
    x = np.arange(2 * n, dtype=np.float32).reshape(2, n)
    got = detect_spikes_on(device, x, thresholds_uv=np.ones(2, np.float32))
    assert got.sample.size == 0


def test_nan_and_rows_that_are_not_contiguous_are_refused(device: HostAccelerator) -> None:
    x = np.random.default_rng(2).normal(size=(2, 5000)).astype(np.float32)
    with pytest.raises(ValueError, match="rows must be contiguous"):
        detect_spikes_on(device, x[:, ::2])
    x[1, 77] = np.nan
    with pytest.raises(InputError, match="channel 1 holds NaN"):
        detect_spikes_on(device, x)


def test_samples_beyond_32_bit_indices_are_counted(device: HostAccelerator) -> None:
    x = np.random.default_rng(5).normal(0, 3, (1, 900)).astype(np.float32)
    times = PtsdSamples(20, 10, 5, False)
    limits = np.full(1, 8, np.float32)
    start = 3 * 2**32
    mean = np.zeros(1, np.float32)

    def found(first: int) -> DeviceSpikes:
        detector = Detector(device, times, mean, limits, most=900)
        detector.begin_segment(first + 900, 0)
        detector.queue(x, first, first + 1, first + 900)
        return sort_device_spikes(device, [detector.fetch()], 1)

    got, expected = found(start), found(0)
    assert expected.sample.size > 3
    np.testing.assert_array_equal(got.sample - start, expected.sample)


def test_torch_gets_the_spikes(device: HostAccelerator) -> None:
    x = np.random.default_rng(6).normal(size=(2, 3000)).astype(np.float32)
    spikes = detect_spikes_on(device, x, thresholds_uv=np.full(2, 5, np.float32))
    sample, channel, uv = spikes.to_torch(device)
    assert (sample.dtype, channel.dtype, uv.dtype) == (torch.int64, torch.int32, torch.float32)
    assert len(sample) > 3
    for tensor, array in zip((sample, channel, uv), spikes, strict=True):
        assert tensor.tolist() == array.tolist()

"""On a real GPU: the kernels, CuPy and torch together give what the CPU gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from array_recording import ArrayRecording
from cuda_on_cpu import HostAccelerator, Launch, decaying
from hypothesis import given, settings
from numpy.typing import NDArray
from ptsd_cases import RATE_HZ, ChunkedCase, assert_same_bits, chunked_cases, detect_spikes_on
from real_gpu import real_accelerator
from small_data import write_mcs

from toptune.machine.cuda import CudaAccelerator, to_host
from toptune.params import HighPass, Noise, Ptsd, SpikeSettings
from toptune.recordings.trains import Segment
from toptune.spikes import ptsd_cuda as spikes_cuda
from toptune.spikes import streaming_cuda as detection_cuda
from toptune.spikes.finding import find_spikes
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.preparing_cuda import DeviceHighPass, channel_means, noise_thresholds_on
from toptune.spikes.ptsd import detect_spikes
from toptune.spikes.streaming import detect_recording
from toptune.spikes.streaming_cuda import detect_recording_on

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu() -> CudaAccelerator:
    return real_accelerator()


@pytest.fixture
def _active(gpu: CudaAccelerator) -> Iterator[None]:
    with gpu.active():
        yield


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostAccelerator:
    made = HostAccelerator(tmp_path_factory.mktemp("host"))
    made.how = Launch(8, 64)
    return made


def recorded(seed: int, channels: int, n: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 8, (channels, n)) + rng.normal(0, 400, (channels, 1))
    for row in x:
        for t in rng.integers(0, n - 9, n // 500):
            row[t : t + 9] += [-20, -55, -70, -40, -5, 20, 30, 22, 10]
    return x.astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(case=chunked_cases())
def test_spikes_are_the_cpus_bit_for_bit_however_chunked_and_selected(
    gpu: CudaAccelerator, case: ChunkedCase
) -> None:
    with gpu.active():
        case.check_on(gpu)


@pytest.mark.usefixtures("_active")
@pytest.mark.parametrize("threshold_sd", [0.05, 5.0, 8.0])
@pytest.mark.parametrize("noise", ["smallest_sd", "mad"])
def test_a_long_recording_gives_the_thresholds_and_spikes_of_the_cpu(
    gpu: CudaAccelerator, threshold_sd: float, noise: Noise
) -> None:
    x = recorded(0, 60, 300_000)
    params = Ptsd(threshold_sd=threshold_sd, noise=noise)
    on_gpu = gpu.xp.asarray(x)
    got = noise_thresholds_on(gpu, on_gpu, RATE_HZ, params)
    thresholds = noise_thresholds(x, RATE_HZ, params)
    np.testing.assert_array_equal(got.noise_sd_uv, thresholds.noise_sd_uv)
    spikes = detect_spikes_on(gpu, on_gpu, params, thresholds.threshold_uv)
    expected = detect_spikes(x, RATE_HZ, params, thresholds.threshold_uv)
    assert expected.sample.size > 10_000
    assert_same_bits(spikes.to_host(), expected)


@pytest.mark.usefixtures("_active")
@pytest.mark.parametrize("order", [1, 2, 3, 8])
@pytest.mark.parametrize("cutoff_hz", [1.0, 300.0])
def test_filter_has_the_bits_of_the_same_source_built_for_the_processor(
    gpu: CudaAccelerator, host: HostAccelerator, order: int, cutoff_hz: float
) -> None:
    x = recorded(1, 5, 100_001)
    params = HighPass(cutoff_hz=cutoff_hz, order=order)
    expected, got = np.empty_like(x), gpu.xp.empty(x.shape, np.float32)
    DeviceHighPass(host, params, RATE_HZ).apply(x, expected)
    DeviceHighPass(gpu, params, RATE_HZ).apply(gpu.xp.asarray(x), got)
    np.testing.assert_array_equal(to_host(got), expected)


@pytest.mark.usefixtures("_active")
def test_a_channel_that_fades_keeps_its_subnormal_numbers(
    gpu: CudaAccelerator, host: HostAccelerator
) -> None:
    x, params = decaying(), HighPass(cutoff_hz=300.0, order=1)
    expected, got = np.empty_like(x), gpu.xp.empty(x.shape, np.float32)
    DeviceHighPass(host, params, RATE_HZ).apply(x, expected)
    DeviceHighPass(gpu, params, RATE_HZ).apply(gpu.xp.asarray(x), got)
    np.testing.assert_array_equal(to_host(got), expected)
    # As they are, and with spikes of subnormal size.
    x = x[:, ::7] * np.where(np.arange(572) % 5 == 0, -1, 1).astype(np.float32)
    limits = np.full(3, 1e-41, np.float32)
    spikes = detect_spikes(x, RATE_HZ, Ptsd(), limits)
    assert np.count_nonzero(spikes.peak_to_peak_uv < np.finfo(np.float32).tiny) > 5
    found = detect_spikes_on(gpu, gpu.xp.asarray(x), Ptsd(), limits)
    assert_same_bits(found.to_host(), spikes)
    faded = decaying()[:2, 1900:2900]
    for noise in ("smallest_sd", "mad"):
        thresholds = noise_thresholds_on(gpu, gpu.xp.asarray(faded), 100.0, Ptsd(noise=noise))
        assert not thresholds.dead.any()
        on_cpu = noise_thresholds(faded, 100.0, Ptsd(noise=noise))
        np.testing.assert_array_equal(thresholds.noise_sd_uv, on_cpu.noise_sd_uv)


@pytest.mark.usefixtures("_active")
def test_means_have_the_bits_of_the_same_source_built_for_the_processor(
    gpu: CudaAccelerator, host: HostAccelerator
) -> None:
    x = recorded(2, 61, 200_001)
    segments = (Segment(0, 77_777, 0.0), Segment(77_777, 200_001 - 77_777, 9.0))
    names = [str(k) for k in range(61)]
    expected = channel_means(host, x, segments, names)
    got = channel_means(gpu, gpu.xp.asarray(x), segments, names)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("channels_at_once", [60, 7])
def test_a_recording_in_many_uploads_gives_what_the_processor_gives(
    gpu: CudaAccelerator,
    host: HostAccelerator,
    monkeypatch: pytest.MonkeyPatch,
    channels_at_once: int,
) -> None:
    x = recorded(3, 60, 200_000)
    gaps = (Segment(0, 90_001, 0.0), Segment(90_001, 109_999, 20.0))
    recording = ArrayRecording(x, RATE_HZ, gaps)
    monkeypatch.setattr(detection_cuda, "_CHUNK_VALUES", 60 * 3000)
    monkeypatch.setattr(detection_cuda, "_room", lambda *_: channels_at_once * 4 * 200_000)
    monkeypatch.setattr(spikes_cuda, "chunk_values", lambda _: 60 * 50_000)
    found = detect_recording_on(gpu, recording)
    expected = detect_recording_on(host, recording)
    assert found.found.passes == -(-60 // channels_at_once)
    np.testing.assert_allclose(
        found.found.trains.threshold_uv, expected.found.trains.threshold_uv, rtol=1e-6
    )
    assert_same_bits(found.found.trains.spikes, expected.found.trains.spikes)
    on_cpu = detect_recording(recording).trains.spikes
    np.testing.assert_array_equal(found.found.trains.spikes.sample, on_cpu.sample)
    np.testing.assert_array_equal(found.found.trains.spikes.channel, on_cpu.channel)


def test_torch_and_cupy_share_memory_and_its_pool(gpu: CudaAccelerator) -> None:
    before = torch.cuda.memory_allocated()
    with gpu.active():
        held = gpu.xp.zeros(50_000_000, np.float32)
    assert torch.cuda.memory_allocated() >= before + 200_000_000
    free = gpu.free_bytes()
    del held
    assert torch.cuda.memory_allocated() < before + 200_000_000
    assert gpu.free_bytes() >= free + 190_000_000
    x = recorded(4, 4, 50_000)
    with gpu.active():
        spikes = detect_spikes_on(gpu, gpu.xp.asarray(x))
        expected = spikes.to_host()
    sample, channel, uv = spikes.to_torch(gpu)
    assert sample.is_cuda
    assert (sample.dtype, channel.dtype, uv.dtype) == (torch.int64, torch.int32, torch.float32)
    np.testing.assert_array_equal(sample.cpu().numpy(), expected.sample)


def test_detection_does_not_wait_for_what_torch_computes(gpu: CudaAccelerator) -> None:
    recording = ArrayRecording(recorded(5, 60, 100_000), RATE_HZ)
    expected = detect_recording_on(gpu, recording).found.trains.spikes  # and compiles
    a = torch.rand(4096, 4096, device="cuda")
    for _ in range(800):  # seconds of work, and fewer kernels than a stream takes unasked
        a @ a
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # in torch
    done.record()
    found = detect_recording_on(gpu, recording)
    assert not done.query()  # type: ignore[no-untyped-call]  # in torch
    # What torch queues now comes behind both.
    sample = found.spikes.sample + 1
    assert_same_bits(found.found.trains.spikes, expected)
    np.testing.assert_array_equal(sample.cpu().numpy(), expected.sample + 1)
    assert done.query()  # type: ignore[no-untyped-call]  # in torch


def test_a_file_gives_the_same_spikes_on_gpu_and_cpu(gpu: CudaAccelerator, tmp_path: Path) -> None:
    path = write_mcs(tmp_path / "a.h5", seed=1)
    settings_ = SpikeSettings()
    on_cpu = find_spikes(path, settings_, stage=lambda *_: None)
    on_gpu = find_spikes(path, settings_, device=gpu, stage=lambda *_: None)
    assert on_cpu.trains.spikes.sample.size > 100
    np.testing.assert_array_equal(on_gpu.trains.spikes.sample, on_cpu.trains.spikes.sample)
    assert on_gpu.on_device is not None
    assert on_cpu.on_device is None
    for tensor, array in zip(on_gpu.on_device, on_gpu.trains.spikes, strict=True):
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)

"""PTSD on a GPU: 60 channels x 15 min at 10 kHz, float32 in device memory.

Peer: a device-to-device copy of the same bytes, which is to be at most twice as fast. Beside them
a silent recording, means and thresholds, and the filter. Every timed function waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from known_traces import simulate_traces
from real_gpu import real_accelerator

from toptune.machine.cuda import CudaAccelerator, DeviceArray
from toptune.params import HighPass, Ptsd
from toptune.recordings.trains import Segment
from toptune.spikes.preparing_cuda import (
    HIGHPASS_BLOCK,
    DeviceHighPass,
    channel_means,
    noise_thresholds_on,
)
from toptune.spikes.ptsd import PtsdSamples
from toptune.spikes.ptsd_cuda import Detector, sort_device_spikes, walk_segments

pytestmark = pytest.mark.gpu

RATE_HZ = 10_000.0
SPIKES_HZ = 5.0
SIMULATED_S = 30.0


@pytest.fixture(scope="module")
def gpu() -> CudaAccelerator:
    return real_accelerator()


@pytest.fixture(scope="module")
def voltage(request: pytest.FixtureRequest, gpu: CudaAccelerator) -> DeviceArray:
    """Half a minute of simulation, again and again."""
    enabled = request.config.getoption("benchmark_enable")
    made = simulate_traces(
        n_channels=60, seconds=SIMULATED_S if enabled else 2.0, seed=0, peak_sd=8.0,
        rate_hz=SPIKES_HZ,
    ).samples_uv  # fmt: skip
    with gpu.active():
        return gpu.xp.tile(gpu.xp.asarray(made), (1, 30 if enabled else 1))


def timed(
    benchmark: Any, gpu: CudaAccelerator, work: Callable[[], object], voltage: DeviceArray
) -> None:
    def synchronised() -> None:
        work()
        gpu.xp.cuda.get_current_stream().synchronize()

    with gpu.active():
        benchmark.pedantic(synchronised, rounds=20, warmup_rounds=3)
    if benchmark.stats:
        seconds = benchmark.stats.stats.min
        benchmark.extra_info["M_samples_per_s"] = voltage.size / seconds / 1e6
        benchmark.extra_info["GB_read_per_s"] = voltage.nbytes / seconds / 1e9
        benchmark.extra_info["gpu"] = gpu.xp.cuda.runtime.getDeviceProperties(0)["name"].decode()


@pytest.mark.benchmark(group="PTSD on a GPU")
def test_copy_on_the_device(benchmark: Any, gpu: CudaAccelerator, voltage: DeviceArray) -> None:
    out = gpu.xp.empty_like(voltage)
    timed(
        benchmark, gpu, lambda: out.data.copy_from_device_async(voltage.data, voltage.nbytes),
        voltage,
    )  # fmt: skip


@pytest.mark.benchmark(group="PTSD on a GPU")
@pytest.mark.parametrize("threshold_sd", [8.0, 1.0])
def test_toptune(
    benchmark: Any, gpu: CudaAccelerator, voltage: DeviceArray, threshold_sd: float
) -> None:
    """With thresholds and means; a threshold of 1 SD is a worst case: every block may spike."""
    channels, n = voltage.shape
    segments = (Segment(0, n, 0.0),)
    times = PtsdSamples.at(Ptsd(), RATE_HZ)
    with gpu.active():
        means = channel_means(gpu, voltage, segments, [str(k) for k in range(channels)])
        params = Ptsd(threshold_sd=threshold_sd)
        thresholds = noise_thresholds_on(gpu, voltage, RATE_HZ, params).threshold_uv
        found = walk_segments(gpu, voltage, segments, times, means, thresholds)
        assert sort_device_spikes(gpu, found, channels).sample.size > SPIKES_HZ * n / RATE_HZ
    timed(
        benchmark, gpu,
        lambda: sort_device_spikes(
            gpu, walk_segments(gpu, voltage, segments, times, means, thresholds), channels
        ),
        voltage,
    )  # fmt: skip


@pytest.mark.benchmark(group="PTSD on a GPU")
def test_silence(benchmark: Any, gpu: CudaAccelerator, voltage: DeviceArray) -> None:
    """Without a candidate: what reading every sample and deciding every block costs."""
    channels, n = voltage.shape
    times = PtsdSamples.at(Ptsd(), RATE_HZ)
    with gpu.active():
        mean = gpu.xp.zeros(channels, np.float32)
        limit = gpu.xp.full(channels, 1e6, np.float32)
        detector = Detector(gpu, times, mean, limit, most=1 << 20)

    def work() -> None:
        detector.begin_segment(n, 0)
        detector.queue(voltage, 0, 0, n)

    timed(benchmark, gpu, work, voltage)


@pytest.mark.benchmark(group="PTSD on a GPU")
def test_means_and_thresholds(benchmark: Any, gpu: CudaAccelerator, voltage: DeviceArray) -> None:
    names = [str(k) for k in range(voltage.shape[0])]
    segments = (Segment(0, voltage.shape[1], 0.0),)

    def work() -> None:
        channel_means(gpu, voltage, segments, names)
        noise_thresholds_on(gpu, voltage, RATE_HZ, Ptsd())

    timed(benchmark, gpu, work, voltage)


@pytest.mark.benchmark(group="PTSD on a GPU")
@pytest.mark.parametrize("order", [1, 2, 8])
def test_filter(benchmark: Any, gpu: CudaAccelerator, voltage: DeviceArray, order: int) -> None:
    with gpu.active():
        out = gpu.xp.empty_like(voltage)
    n = voltage.shape[1]
    step = 4_000_000 // voltage.shape[0] // HIGHPASS_BLOCK * HIGHPASS_BLOCK

    def work() -> None:
        """In chunks, as uploads bring them."""
        filt = DeviceHighPass(gpu, HighPass(order=order), RATE_HZ)
        for start in range(0, n, step):
            stop = min(start + step, n)
            filt.apply(voltage[:, start:stop], out[:, start:stop])

    timed(benchmark, gpu, work, voltage)

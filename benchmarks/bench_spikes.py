"""PTSD in memory: 60 channels x 120 s at 10 kHz, float32, two threads.

Peers: SpikeInterface's fastest detector (`locally_exclusive`, radius 0; not PTSD, it compares
single samples with a threshold), the plain sequential PTSD compiled, and merely reading the memory.
SpikeInterface pins zarr below 3 and so cannot be a dependency; for the comparison, run

    pip install --no-deps spikeinterface neo probeinterface quantities && pip install requests
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest
from known_traces import simulate_traces
from numpy.typing import NDArray

from toptune.params import Ptsd
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.ptsd import detect_spikes

RATE_HZ = 10_000.0
SPIKES_HZ = 5.0


@pytest.fixture(scope="module")
def voltage(request: pytest.FixtureRequest) -> NDArray[np.float32]:
    seconds = 120.0 if request.config.getoption("benchmark_enable") else 2.0
    return simulate_traces(
        n_channels=60, seconds=seconds, seed=0, peak_sd=8.0, rate_hz=SPIKES_HZ
    ).samples_uv


@numba.njit(nogil=True)
def _read(words: NDArray[np.int32]) -> int:
    seen = np.int32(0)
    for i in range(words.size):
        seen ^= words[i]
    return int(seen)


@numba.njit(nogil=True)
def _first_extreme(x: NDArray[np.float32], start: int, last: int, sign: np.float32) -> int:
    best = 0
    for k in range(1, last + 1):
        if sign * x[start + k] > sign * x[start + best]:
            best = k
    return best


@numba.njit(nogil=True)
def _plain(
    x: NDArray[np.float32],
    threshold: np.float32,
    sample: NDArray[np.int64],
    uv: NDArray[np.float32],
) -> int:
    """The sequential definition as it is written: every sample looked at, no block skipped."""
    found = 0
    c = 1
    while c < x.size - 1:
        if not (abs(x[c]) > abs(x[c - 1]) and abs(x[c]) >= abs(x[c + 1])):
            c += 1
            continue
        up = np.float32(1) if x[c] > 0 else np.float32(-1)
        window = min(20, x.size - 1 - c)
        e = _first_extreme(x, c, window, -up)
        s = _first_extreme(x, c, e, up)
        if e == window and c + window + 5 < x.size:
            e = _first_extreme(x, c, window + 5, -up)
        d = abs(x[c + s] - x[c + e])
        if d < threshold:
            c += 1
            continue
        ts = c + s if abs(x[c + s]) > abs(x[c + e]) else c + e
        sample[found] = ts
        uv[found] = d
        found += 1
        c = ts + 10 if (ts + 10 > c + e and ts + 10 < x.size) else c + e + 1
    return found


def _report(benchmark: Any, n_values: int) -> None:
    if benchmark.stats:
        benchmark.extra_info["M_samples_per_s"] = n_values / benchmark.stats.stats.min / 1e6


@pytest.mark.benchmark(group="PTSD in memory")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_toptune(benchmark: Any, voltage: NDArray[np.float32], n_jobs: int) -> None:
    thresholds = noise_thresholds(voltage, RATE_HZ, Ptsd()).threshold_uv
    spikes = benchmark.pedantic(
        lambda: detect_spikes(voltage, RATE_HZ, Ptsd(), thresholds, n_jobs=n_jobs),
        rounds=7, warmup_rounds=1,
    )  # fmt: skip
    assert spikes.sample.size > 60 * SPIKES_HZ * voltage.shape[1] / RATE_HZ / 2
    _report(benchmark, voltage.size)


@pytest.mark.benchmark(group="PTSD in memory")
def test_toptune_with_thresholds(benchmark: Any, voltage: NDArray[np.float32]) -> None:
    benchmark.pedantic(
        lambda: detect_spikes(voltage, RATE_HZ, Ptsd(), n_jobs=2), rounds=7, warmup_rounds=1
    )
    _report(benchmark, voltage.size)


@pytest.mark.benchmark(group="PTSD in memory")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_reading_the_memory(benchmark: Any, voltage: NDArray[np.float32], n_threads: int) -> None:
    words = voltage.view(np.int32)
    with ThreadPoolExecutor(n_threads) as pool:
        benchmark.pedantic(lambda: list(pool.map(_read, words)), rounds=7, warmup_rounds=1)
    _report(benchmark, voltage.size)


@pytest.mark.benchmark(group="PTSD in memory")
def test_plain_sequential(benchmark: Any, voltage: NDArray[np.float32]) -> None:
    thresholds = noise_thresholds(voltage, RATE_HZ, Ptsd()).threshold_uv
    sample, uv = np.empty(voltage.shape[1], np.int64), np.empty(voltage.shape[1], np.float32)
    benchmark.pedantic(
        lambda: [_plain(x, t, sample, uv) for x, t in zip(voltage, thresholds, strict=True)],
        rounds=1, warmup_rounds=1,
    )  # fmt: skip
    _report(benchmark, voltage.size)


@pytest.mark.benchmark(group="PTSD in memory")
@pytest.mark.filterwarnings("ignore")  # the peer's own
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_spikeinterface(benchmark: Any, voltage: NDArray[np.float32], n_jobs: int) -> None:
    core = pytest.importorskip("spikeinterface.core", reason="see the head of this file")
    from spikeinterface.sortingcomponents.peak_detection import detect_peaks

    recording = core.NumpyRecording([np.ascontiguousarray(voltage.T)], RATE_HZ)
    places = np.array([[k % 8 * 200.0, k // 8 * 200.0] for k in range(60)])
    recording.set_dummy_probe_from_locations(places)
    job = {"n_jobs": n_jobs, "chunk_duration": "1s", "progress_bar": False}
    if n_jobs > 1:
        job["pool_engine"] = "thread"
    settings = {
        "peak_sign": "both",
        "detect_threshold": 5,
        "exclude_sweep_ms": 1.0,
        "radius_um": 0.0,
        "noise_levels": np.full(60, 5.0),
    }
    benchmark.pedantic(
        lambda: detect_peaks(
            recording, method="locally_exclusive", method_kwargs=settings, job_kwargs=job
        ),
        rounds=5, warmup_rounds=1,
    )  # fmt: skip
    _report(benchmark, voltage.size)

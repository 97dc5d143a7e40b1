"""From a gzip MCS file to spikes: read, filter, detect; 60 electrodes x 120 s at 10 kHz.

The file is deflated by zlib at level 5, as MCS's program does. Peers: h5py merely reading it into
memory, and SpikeInterface reading, band-passing and detecting (bench_spikes.py tells how to
install it).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from toptune.recordings.mcs import McsRecording
from toptune.recordings.simulated import simulate
from toptune.spikes.streaming import detect_recording

DATA = "Data/Recording_0/AnalogStream/Stream_1/ChannelData"


@pytest.fixture(scope="module")
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    seconds = 120.0 if request.config.getoption("benchmark_enable") else 7.0
    folder = tmp_path_factory.mktemp("mcs")
    simulate(folder, n_devices=2, seconds=seconds, seed=0, n_jobs=1)
    path = min(folder.glob("*.h5"))
    with h5py.File(path, "r+") as file:
        old = file[DATA]
        counts, chunks = old[...], old.chunks
        del file[DATA]
        file.create_dataset(
            DATA, data=counts, chunks=chunks, compression="gzip", compression_opts=5, shuffle=True
        )
    return path


def _report(benchmark: Any, path: Path) -> None:
    with h5py.File(path) as file:
        n_values = file[DATA].size
    if benchmark.stats:
        benchmark.extra_info["M_samples_per_s"] = n_values / benchmark.stats.stats.min / 1e6


@pytest.mark.benchmark(group="MCS file to spikes")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_toptune(benchmark: Any, recording: Path, n_jobs: int) -> None:
    def run() -> int:
        with McsRecording(recording) as opened:
            return detect_recording(opened, n_jobs=n_jobs).trains.spikes.sample.size

    assert benchmark.pedantic(run, rounds=5, warmup_rounds=1) > 100
    _report(benchmark, recording)


@pytest.mark.benchmark(group="MCS file to spikes")
def test_h5py_reading_alone(benchmark: Any, recording: Path) -> None:
    def run() -> int:
        with h5py.File(recording) as file:
            return int(file[DATA][...].shape[1])

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    _report(benchmark, recording)


@pytest.mark.benchmark(group="MCS file to spikes")
@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_spikeinterface(benchmark: Any, recording: Path) -> None:
    pytest.importorskip("spikeinterface.core", reason="see the head of bench_spikes.py")
    from spikeinterface.extractors import read_mcsh5
    from spikeinterface.preprocessing import bandpass_filter
    from spikeinterface.sortingcomponents.peak_detection import detect_peaks

    job = {"n_jobs": 2, "chunk_duration": "1s", "progress_bar": False, "pool_engine": "thread"}

    def run() -> int:
        # Its reader takes the first stream; here that is the digital one, so the second is named.
        raw = read_mcsh5(recording, stream_id=1)
        places = np.array([[k % 8 * 200.0, k // 8 * 200.0] for k in range(raw.get_num_channels())])
        raw.set_dummy_probe_from_locations(places)
        filtered = bandpass_filter(raw, freq_min=300.0, freq_max=4000.0)
        settings = {"peak_sign": "both", "exclude_sweep_ms": 1.0, "radius_um": 0.0}
        return len(
            detect_peaks(
                filtered, method="locally_exclusive", method_kwargs=settings, job_kwargs=job
            )
        )

    # Warmed up like the others: its first call compiles for 6 s.
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    _report(benchmark, recording)

"""Verdicts while recording: how late they are, how fast a recording is replayed, in which memory.

60 channels at 10 kHz, histograms of 120 s every 5 s, random weights, and a Falkon model of 5,024
windows. The voltage is ten seconds of noise and spikes, again and again, so that no file is read.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_pipeline import bursting
from numpy.typing import NDArray
from small_data import make_provenance

from toptune.backbones.loading import load_backbone
from toptune.features.picture_features import BackboneIdentity, PictureFeatureParams
from toptune.features.table import FeatureTable, RecordingInfo, View
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.live import LiveSession, LiveVerdict, SourceInfo
from toptune.live.detection import CertainSpikes
from toptune.live.engine import LiveJudge
from toptune.live.replay import Replay
from toptune.params import Backbone, Compute, Picture, Windows
from toptune.recordings.trains import RecordingFacts, Segment, TrainingFacts, WeightsSource
from toptune.runs.model import read_model, trained_model, write_model

RATE_HZ = 10_000.0
N_CHANNELS = 60
LABELS = tuple(str(k) for k in range(N_CHANNELS))
TWO_THREADS = Compute(device="cpu", n_jobs=2)

pytestmark = pytest.mark.filterwarnings("ignore")  # random weights say so, loudly


@pytest.fixture(scope="module")
def model_of(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    """Write a model on pictures that a network describes; made-up features, once each."""
    full = request.config.getoption("benchmark_enable")

    @cache
    def made(name: str) -> Path:
        backbone = Backbone(name=name, weights="random")
        loaded = load_backbone(backbone)
        windows = Windows() if full else Windows(width_s=1, stride_s=0.5)
        identity = BackboneIdentity.of(loaded, backbone)
        params = PictureFeatureParams(windows=windows, picture=Picture(), backbone=identity)
        n_devices, n_windows = (32, 157) if full else (4, 5)
        view = View(name, "0" * 16, loaded.n_features, params.to_json())
        devices = [f"device {k}" for k in range(n_devices)]
        rng = np.random.default_rng(0)
        recording = np.repeat(np.arange(n_devices), n_windows)
        table = FeatureTable(
            features=rng.random((len(recording), loaded.n_features), np.float32),
            start_s=np.tile(np.arange(n_windows) * 5.0, n_devices),
            recording=recording,
            recordings=tuple(RecordingInfo(d, d, "ab"[k % 2], {}) for k, d in enumerate(devices)),
            provenance=make_provenance(view),
            views=(view,),
        )
        label = np.array([table.recordings[row].label for row in recording])
        facts = RecordingFacts(
            name="r",
            sampling_rate_hz=RATE_HZ,
            n_electrodes=N_CHANNELS,
            n_spikes=270_000,
            duration_s=900.0,
        )
        scores = {"n_devices": n_devices, "device_accuracy": 0.5, "chance": 0.5}
        written = trained_model(
            "falkon",
            FalkonClassifier().fit(table.features, label),
            table,
            TrainingFacts(recordings=(facts,), weights=(WeightsSource(seed=0),)),
            left_out=np.array(devices)[recording],
            scores=scores | {"device_accuracy_ci95": [0.3, 0.7]},
            inverse_temperature=2.0,
        )
        folder = tmp_path_factory.mktemp(name) / "model"
        write_model(folder, written)
        return folder

    return made


class Loop:
    """Ten seconds of noise with 5 spikes/s per channel, again and again: a `VoltageRecording`."""

    path = Path("<loop>")
    channel_labels = LABELS
    sampling_rate_hz = RATE_HZ
    chunk_samples = 1

    def __init__(self, seconds: float) -> None:
        self.n_samples = round(seconds * RATE_HZ)
        self.segments = (Segment(0, self.n_samples, 0.0),)
        self._loop = ten_seconds()

    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Copy microvolts from sample `start` on."""
        del pool
        done, n = 0, self._loop.shape[1]
        while done < out.shape[1]:
            at = (start + done) % n
            more = min(n - at, out.shape[1] - done)
            out[:, done : done + more] = self._loop[:, at : at + more]
            done += more

    def read(self, start: int, stop: int, pool: Executor | None = None) -> NDArray[np.float32]:
        """Return samples [start, stop)."""
        out = np.empty((N_CHANNELS, stop - start), np.float32)
        self.read_into(out, start, pool)
        return out

    def chunks(self, n_samples: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Go through all samples."""
        step = n_samples or 10_000
        for start in range(0, self.n_samples, step):
            yield self.read(start, min(start + step, self.n_samples))


@cache
def ten_seconds() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    n = round(10 * RATE_HZ)
    x = rng.normal(0, 5, (N_CHANNELS, n)).astype(np.float32)
    for row in x:
        for at in rng.integers(0, n - 8, 50):
            row[at : at + 4] += np.array([-90, -40, 60, 30], np.float32)
    return x


def only_once(full: bool, network: str, step_s: float = 5.0) -> None:
    if not full and (network, step_s) != ("mobilenet_v2", 5.0):
        pytest.skip("only as a benchmark: another network, or step, of the same code")


def verdicts_of(model: Path, source: Replay) -> Iterator[LiveVerdict]:
    with LiveSession(model, source, calibration_s=1, compute=TWO_THREADS) as session:
        yield from (event for event in session.events() if isinstance(event, LiveVerdict))


@pytest.mark.benchmark(group="live: latency")
@pytest.mark.parametrize("network", ["efficientnet_b0", "mobilenet_v2"])
def test_latency(
    benchmark: Any, network: str, model_of: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    """From a window's last sample to its verdict, at four times the pace of the recording."""
    full = request.config.getoption("benchmark_enable")
    only_once(full, network)
    seconds, speed = (240.0, 4.0) if full else (2.1, 10.0)
    model = model_of(network)
    latency_s: list[float] = []

    def watch() -> None:
        verdicts = verdicts_of(model, Replay(Loop(seconds), speed=speed))
        latency_s.extend(verdict.latency_s for verdict in verdicts)

    benchmark.pedantic(watch, rounds=1, warmup_rounds=0)
    assert len(latency_s) == (25 if full else 3)
    benchmark.extra_info["latency_ms_p95"] = 1000 * float(np.quantile(latency_s, 0.95))
    benchmark.extra_info["latency_ms_median"] = 1000 * float(np.median(latency_s))


@pytest.mark.benchmark(group="live: replay")
def test_replay_in_flat_memory(
    benchmark: Any, model_of: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    """An hour, as fast as it goes."""
    full = request.config.getoption("benchmark_enable")
    seconds = 3600.0 if full else 3.0
    model = model_of("efficientnet_b0" if full else "mobilenet_v2")
    memory_mib: dict[float, float] = {}
    loaded_s: list[float] = []

    def watch() -> None:
        for number, verdict in enumerate(verdicts_of(model, Replay(Loop(seconds), speed="max"))):
            if number == 0:
                loaded_s.append(time.perf_counter())
            if verdict.stop_s in (600.0, 3600.0):
                gc.collect()
                memory_mib[verdict.stop_s] = resident_mib()
        loaded_s.append(time.perf_counter())

    benchmark.pedantic(watch, rounds=1, warmup_rounds=0)
    if full:
        benchmark.extra_info["times_real_time"] = (seconds - 120) / (loaded_s[1] - loaded_s[0])
        benchmark.extra_info["mib_after_10_minutes"] = memory_mib[600.0]
        benchmark.extra_info["mib_after_an_hour"] = memory_mib[3600.0]


def resident_mib() -> float:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * 4096 / 2**20


@pytest.mark.benchmark(group="live: spikes to verdicts")
@pytest.mark.parametrize("step_s", [5.0, 60.0])
@pytest.mark.parametrize("network", ["efficientnet_b0", "mobilenet_v2"])
def test_spikes_to_verdicts(
    benchmark: Any,
    network: str,
    step_s: float,
    model_of: Callable[[str], Path],
    request: pytest.FixtureRequest,
) -> None:
    """15 minutes of spikes that come a window or twelve at a time: 157 pictures."""
    full = request.config.getoption("benchmark_enable")
    only_once(full, network, step_s)
    seconds = 900.0 if full else 3.0
    model, spikes = read_model(model_of(network)), bursting(0, seconds).spikes
    step = round(step_s * RATE_HZ)
    n = round(seconds * RATE_HZ)
    parts = [
        CertainSpikes(
            stretch=0,
            spikes=spikes.at((spikes.sample >= at) & (spikes.sample < at + step)),
            known_to=min(at + step, n),
            ended=at + step >= n,
        )
        for at in range(0, n, step)
    ]
    info = SourceInfo(name="spikes", channel_labels=LABELS, sampling_rate_hz=RATE_HZ)

    def ready() -> tuple[tuple[LiveJudge], dict[str, Any]]:
        judge = LiveJudge(model, info, compute=TWO_THREADS)
        judge.windows.start_stretch(0, 0.0)
        judge.arrived(0, n, time.monotonic())
        return (judge,), {}

    def judge_all(judge: LiveJudge) -> int:
        return sum(1 for part in parts for _ in judge.take(part))

    n_verdicts = benchmark.pedantic(judge_all, setup=ready, rounds=3 if full else 1)
    assert n_verdicts == (157 if full else 5)
    if benchmark.stats:
        benchmark.extra_info["pictures_per_s"] = n_verdicts / benchmark.stats.stats.min

"""Training past memory: 1,000,000 windows of 1,280 features from a store, 5.1 GB, in under 8 GiB.

`toptune fit` reads the features from the store whenever it looks at them, and takes Nystrom
centres. It runs in a process of its own that believes there are 8 GiB of memory. Its resident size
and that of its children are looked at every fifth of a second, and the largest sum is reported.
With the benchmarks disabled it is 3,000 windows, and the run is compared with that in memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from toptune.features.table import RecordingInfo
from toptune.params import Picture, SpikeSettings, Windows
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes
from toptune.store.feature_store import FeatureSet, FeatureStore, features_key

LIMIT = 8 * 2**30
N_CLASSES = 5
# Windows of 1 s every 1 s: of a recording as many as it lasts seconds.
WINDOWS = Windows(width_s=1.0, stride_s=1.0)

PROGRAM = """
import os, sys
from pathlib import Path
from toptune.machine import device
from toptune.store import tables
from toptune.heads.falkon import arrays, head

limit, stream = int(sys.argv.pop(1)), sys.argv.pop(1)

def available():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))

if stream == "always":
    tables._MEMORY_SHARE = 0.0
for module in (device, tables, arrays, head):
    module.available_memory = available
from toptune.cli.app import main
sys.argv[0] = "toptune"
sys.exit(main())
"""


def a_store(path: Path, n_recordings: int, n_windows: int, n_features: int) -> FeatureStore:
    """Write a store of three devices of each of five classes, which lie in three batches.

    Features are those of a device, of its class, and noise; none is negative, as of a backbone.
    """
    rng = np.random.default_rng(0)
    store = FeatureStore.create(path, SpikeSettings().to_json())
    n_devices = 3 * N_CLASSES
    infos = tuple(
        RecordingInfo(
            f"r{k:05d}",
            f"dev{k % n_devices:02d}",
            f"class{k % n_devices % N_CLASSES}",
            {"batch": f"b{k % n_devices // N_CLASSES}"},
        )
        for k in range(n_recordings)
    )
    store.list_recordings(infos)
    made = FeatureSet.of(
        {
            "windows": WINDOWS.to_json(),
            "picture": Picture().to_json(),
            "backbone": {
                "name": "noise", "weights": "random", "sha256": "0" * 64, "input_size": 8,
                "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
            },
        }
    )  # fmt: skip
    of_class = rng.random((N_CLASSES, n_features), np.float32)
    of_device = rng.random((n_devices, n_features), np.float32)
    for k, info in enumerate(infos):
        base = of_class[k % n_devices % N_CLASSES] + of_device[k % n_devices]
        # Few bits, so that the store takes a third of what it takes in memory.
        noise = rng.integers(0, 64, (n_windows, n_features), np.uint8).astype(np.float32) / 32
        store.write_spikes(info.name, silence(n_windows, k), {"key": f"s{k}", "input": of(k)})
        about = {"key": features_key(f"s{k}", made.key), "n_windows": n_windows, "input": of(k)}
        start_s = np.arange(n_windows, dtype=np.float64)
        store.write_features(info.name, base + noise, start_s, made, about)
    return store


def of(k: int) -> dict[str, str]:
    return {"path": f"r{k}.h5", "sha256": f"{k:064d}"}


def silence(seconds: int, seed: int) -> SpikeTrains:
    """A recording of few spikes."""
    rng = np.random.default_rng(seed)
    sample = rng.integers(0, 1000 * seconds, 50)
    return SpikeTrains(
        spikes=sort_spikes(sample, np.zeros(50, np.int32), np.full(50, 50, np.float32)),
        channel_labels=("1",),
        sampling_rate_hz=1000.0,
        segments=(Segment(0, 1000 * seconds, 0.0),),
        threshold_uv=np.full(1, 40, np.float32),
    )


def resident(pid: int) -> int:
    """Bytes of a process and of all its children, on Linux."""
    total = 0
    for one in family(pid):
        try:
            pages = int(Path(f"/proc/{one}/statm").read_text("ascii").split()[1])
        except OSError:  # it has ended
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


def family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text("ascii").split()
        except OSError:
            continue
        for child in map(int, children):
            yield from family(child)


def run(words: list[str], limit: int, stream: str = "as needed") -> dict[str, float]:
    """Run toptune's command line where there is so much memory."""
    began = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM, str(limit), stream, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        peak = 0

        def watch() -> None:
            nonlocal peak
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                time.sleep(0.2)

        watching = threading.Thread(target=watch)
        watching.start()
        said = process.communicate()[0].decode()
        watching.join()
    assert process.returncode == 0, said
    return {"seconds": time.perf_counter() - began, "peak_gib": peak / 2**30}


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.benchmark(group="fit past memory")
def test_fit_past_memory(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    full = benchmark.enabled
    n_recordings, n_windows, n_features = (1000, 1000, 1280) if full else (20, 150, 1280)
    kept = Path(os.environ.get("TOPTUNE_BENCH_STORE", tmp_path / "s.zarr"))
    if not kept.exists():
        a_store(kept, n_recordings, n_windows, n_features)
    centres = 1000 if full else 100
    words = [
        *("fit", str(kept), "--features", "noise", "--windows-per-recording", "0"),
        *("--group-by", "batch", "--no-tune", "--permutations", "0"),
        *("--n-centres", str(centres), "--overwrite", "-o"),
    ]
    found: dict[str, Any] = {}

    def fit() -> None:
        stream = "as needed" if full else "always"
        found.update(run([*words, str(tmp_path / "streamed")], LIMIT, stream))

    benchmark.pedantic(fit, rounds=1)  # type: ignore[no-untyped-call]  # untyped there
    metrics = json.loads((tmp_path / "streamed" / "metrics.json").read_text("utf-8"))
    assert metrics["n_windows"] == n_recordings * n_windows
    assert metrics["device_accuracy"] == 1
    found["centres"] = metrics["centres"]
    benchmark.extra_info.update(found)
    if full:
        assert found["peak_gib"] < LIMIT / 2**30
        return
    run([*words, str(tmp_path / "in_memory")], 64 * 2**30)
    for name in ("windows.csv", "folds.csv", "model/model.safetensors"):
        one, other = ((tmp_path / kind / name).read_bytes() for kind in ("streamed", "in_memory"))
        assert one == other

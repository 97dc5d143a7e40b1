"""The paper's Table I as a sweep: 8 devices of 5 minutes, whose spikes are in the store already.

EfficientNetB0 with random weights, two pictures of four windows: eight views of each recording. Its
classifiers are those of the grid, or one Falkon setting a view, which leaves little but the
features. Each sweep is a process of its own, as a user starts it; ``TOPTUNE_AT`` names the checkout
whose toptune it runs, this one if not given, so that two versions can be compared:

    TOPTUNE_AT=../before pytest benchmarks/bench_sweep.py -n0 --benchmark-enable
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

HERE = Path(__file__).parents[1]
N_VIEWS = 8


def toptune(*words: object) -> None:
    """Run a command of toptune; what it says is shown where it fails."""
    at = os.environ.get("TOPTUNE_AT", str(HERE))
    done = subprocess.run(
        [sys.executable, "-m", "toptune", *map(str, words)],
        env={**os.environ, "PYTHONPATH": at},
        cwd=at,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def two_classes(devices: Path) -> None:
    """Give every other device one class, so that eight are enough to leave each out."""
    with devices.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["label"] = "ab"[number % 2]
    with devices.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.benchmark(group="sweep of table1")
@pytest.mark.parametrize("fits", ["one setting", "the grid's"])
def test_sweep_of_table1(
    benchmark: BenchmarkFixture, fits: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    full = request.config.getoption("benchmark_enable")
    if not full and fits != "one setting":
        pytest.skip("only as a benchmark: it trains eight networks")
    n_devices, seconds = (8, 300) if full else (4, 12)
    data, out = tmp_path / "data", tmp_path / "sweep"
    toptune("simulate", data, "--devices", n_devices, "--seconds", seconds)
    two_classes(data / "devices.csv")
    settings = ["weights=random", "permutations=0"]
    if not full:
        settings += ["backbone=mobilenet_v3_small", "window_s=[10, 8, 6, 4]"]
    if fits == "one setting":
        settings += ["head=falkon", "tune=false"]
    given = [word for one in settings for word in ("--set", one)]
    # One short window of one picture finds the spikes.
    first = ["picture=raster", "window_s=5", "stride_s=15", "head=falkon", "tune=false"]
    spikes = tmp_path / "spikes"
    words = [word for one in (*settings, *first) for word in ("--set", one)]
    toptune("sweep", data / "devices.csv", "table1", "-o", spikes, *words)

    def again() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(spikes, out)

    def run() -> None:
        toptune("sweep", data / "devices.csv", "table1", "-o", out, *given)

    benchmark.pedantic(run, setup=again, rounds=3 if full else 1)  # type: ignore[no-untyped-call]  # untyped there
    assert len(list((out / "measured").iterdir())) == N_VIEWS + 1

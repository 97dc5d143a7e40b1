"""Leave-one-device-out of both heads beside one fit per fold: 32 devices of 157 windows x 1280.

Enabled, the figures of DESIGN 5; disabled, the same code on six windows a device, as a quick test.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from toptune.folds import leave_one_group_out, refit_each_fold
from toptune.heads.falkon import FalkonClassifier
from toptune.heads.kernel import l2_normalise
from toptune.heads.mlp import MLPClassifier

DEVICES, WINDOWS, FEATURES, CLASSES = 32, 157, 1280, 5
MLP_EPOCHS = 5


class Data(NamedTuple):
    X: NDArray[np.float32]
    y: NDArray[np.int64]
    device: NDArray[np.int64]


@pytest.fixture(autouse=True, scope="module")
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(benchmark: BenchmarkFixture) -> Data:
    """Features as pooled ReLU outputs are: not negative, alike within a device and a class."""
    n_windows = WINDOWS if benchmark.enabled else 6
    rng = np.random.default_rng(0)
    centres = rng.random((CLASSES, FEATURES))
    label = np.arange(DEVICES) % CLASSES
    devices = centres[label] + 0.6 * rng.standard_normal((DEVICES, FEATURES))
    windows = 0.3 * rng.standard_normal((DEVICES, n_windows, FEATURES))
    X = np.maximum(devices[:, None] + windows, 0).reshape(-1, FEATURES)
    return Data(
        X.astype(np.float32),
        np.repeat(label, n_windows),
        np.repeat(np.arange(DEVICES), n_windows),
    )


def run(benchmark: BenchmarkFixture, rounds: int, work: Callable[[], NDArray[Any]], y: Any) -> None:
    """Time `work`, which names a class for every window, and note how often it is right."""
    predictions = benchmark.pedantic(work, rounds=rounds)  # type: ignore[no-untyped-call]  # untyped there
    benchmark.extra_info["window_accuracy"] = round(float((predictions == y).mean()), 4)
    # Linux counts KiB, macOS bytes. Of the process so far: run one benchmark alone to read it.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    benchmark.extra_info["process_peak_mib"] = round(peak / unit)
    assert (predictions == y).mean() > 2 / CLASSES


@pytest.mark.benchmark(group="falkon, 32 folds, all rows as centres")
def test_falkon_all_rows_toptune(benchmark: BenchmarkFixture, data: Data) -> None:
    head = FalkonClassifier()
    run(benchmark, 3, lambda: leave_one_group_out(head, *data).predictions, data.y)


@pytest.mark.benchmark(group="falkon, 32 folds, all rows as centres")
def test_falkon_all_rows_one_fit_per_fold(benchmark: BenchmarkFixture, data: Data) -> None:
    head = FalkonClassifier()
    run(benchmark, 1, lambda: refit_each_fold(head, *data).predictions, data.y)


@pytest.mark.benchmark(group="falkon, 32 folds, 1000 centres")
def test_falkon_nystrom_toptune(benchmark: BenchmarkFixture, data: Data) -> None:
    head = FalkonClassifier(n_centres=min(1000, len(data.X) // 2))
    run(benchmark, 3, lambda: leave_one_group_out(head, *data).predictions, data.y)


@pytest.mark.benchmark(group="falkon, 32 folds, 1000 centres")
def test_falkon_nystrom_one_fit_per_fold(benchmark: BenchmarkFixture, data: Data) -> None:
    head = FalkonClassifier(n_centres=min(1000, len(data.X) // 2))
    run(benchmark, 1, lambda: refit_each_fold(head, *data).predictions, data.y)


@pytest.mark.benchmark(group="falkon, 32 folds, 1000 centres")
def test_falkon_nystrom_iterative(benchmark: BenchmarkFixture, data: Data) -> None:
    head = FalkonClassifier(n_centres=min(1000, len(data.X) // 2), solver="iterative")
    run(benchmark, 1, lambda: leave_one_group_out(head, *data).predictions, data.y)


@pytest.mark.benchmark(group="falkon, 32 folds, 1000 centres")
def test_falkon_nystrom_falkon_library(benchmark: BenchmarkFixture, data: Data) -> None:
    falkon = pytest.importorskip(
        "falkon", reason="the falkon library is not installed, and not on PyPI: see docs/falkon.md"
    )
    rows = torch.from_numpy(l2_normalise(data.X).astype(np.float64))
    targets = 2.0 * torch.nn.functional.one_hot(torch.from_numpy(data.y)).double() - 1

    def folds() -> NDArray[Any]:
        predictions = np.empty_like(data.y)
        for device in range(DEVICES):
            held_out = torch.from_numpy(data.device == device)
            model = falkon.Falkon(
                kernel=falkon.kernels.GaussianKernel(sigma=0.5),
                penalty=1e-6,
                M=min(1000, len(data.X) // 2),
                options=falkon.FalkonOptions(use_cpu=True, keops_active="no"),
            )
            model.fit(rows[~held_out], targets[~held_out])
            predictions[data.device == device] = model.predict(rows[held_out]).argmax(dim=1)
        return predictions

    run(benchmark, 1, folds, data.y)


@pytest.mark.benchmark(group=f"mlp, 32 folds, {MLP_EPOCHS} of 25 epochs")
def test_mlp_toptune(benchmark: BenchmarkFixture, data: Data) -> None:
    head = MLPClassifier(epochs=MLP_EPOCHS)
    run(benchmark, 3, lambda: leave_one_group_out(head, *data).predictions, data.y)


@pytest.mark.benchmark(group=f"mlp, 32 folds, {MLP_EPOCHS} of 25 epochs")
def test_mlp_one_pytorch_loop_per_fold(benchmark: BenchmarkFixture, data: Data) -> None:
    rows = torch.from_numpy(l2_normalise(data.X)) * FEATURES**0.5
    y = torch.from_numpy(data.y)

    def folds() -> NDArray[Any]:
        predictions = np.empty_like(data.y)
        for device in range(DEVICES):
            held_out = torch.from_numpy(data.device == device)
            net = train_plainly(rows[~held_out], y[~held_out])
            with torch.no_grad():
                predictions[data.device == device] = net(rows[held_out]).argmax(dim=1)
        return predictions

    run(benchmark, 1, folds, data.y)


def train_plainly(rows: torch.Tensor, y: torch.Tensor) -> torch.nn.Sequential:
    """Train as PyTorch's documentation shows, with the optimiser as it comes."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES)
    )
    adam = torch.optim.Adam(net.parameters(), lr=0.0005)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.95)
    for _ in range(MLP_EPOCHS):
        for batch in torch.split(torch.randperm(len(rows)), 75):
            adam.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(net(rows[batch]), y[batch]))
            adam.step()
        decay.step()
    return net

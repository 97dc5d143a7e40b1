"""Leave-one-device-out of both heads beside one fit per fold: 32 devices of 157 windows x 1280.

Enabled, the figures of DESIGN 5; disabled, the same code on six windows a device, as a quick test.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from toptune.evaluation.evaluate import Units, shuffles
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.head import falkon_candidates
from toptune.heads.falkon.tuning import tune_falkon
from toptune.heads.mlp.classifier import MLPClassifier, tune_mlp
from toptune.heads.rows import LabelledRows, group_rows, l2_normalise

DEVICES, WINDOWS, FEATURES, CLASSES = 32, 157, 1280, 5
MLP_EPOCHS = 5
TUNED_DEVICES = 10
CANDIDATES: tuple[dict[str, float], ...] = (
    {"learning_rate_decay": 0.95, "weight_decay": 0.0},
    {"learning_rate_decay": 1.0, "weight_decay": 0.01},
)


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


class Refitted(FalkonClassifier):
    """Of another type, so that it is fitted for every fold."""


@pytest.mark.benchmark(group="falkon, 32 folds, all rows as centres")
def test_falkon_all_rows_toptune(benchmark: BenchmarkFixture, data: Data) -> None:
    head = FalkonClassifier()
    run(benchmark, 3, lambda: leave_one_group_out(head, *data).predictions, data.y)


@pytest.mark.benchmark(group="falkon, 32 folds, all rows as centres")
def test_falkon_all_rows_one_fit_per_fold(benchmark: BenchmarkFixture, data: Data) -> None:
    head = Refitted()
    run(benchmark, 1, lambda: leave_one_group_out(head, *data).predictions, data.y)


@pytest.mark.benchmark(group="falkon, 32 folds, tuned, 1000 permutations")
def test_falkon_tuned_and_permuted(benchmark: BenchmarkFixture, data: Data) -> None:
    """Thirty settings inside every fold, for the labels and for a thousand shuffles of them.

    DESIGN's peer is the falkon library without tuning or permutations (74 s where it was measured).
    """
    head = FalkonClassifier()
    widths = (0.25, 0.5, 1.0, 2.0, 4.0) if benchmark.enabled else (0.5, 1.0)
    penalties = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2) if benchmark.enabled else (1e-4, 1e-3)
    candidates = falkon_candidates(1, widths=widths, penalties=penalties)
    units = Units.of(data.device, data.y)
    shuffled = shuffles(units, 1000 if benchmark.enabled else 20, 0)
    assert shuffled is not None

    def work() -> NDArray[Any]:
        nested, told = tune_falkon(
            head, LabelledRows(data.X, data.y, group_rows(data.device), units.of_row), candidates,
            shuffled=shuffled.labels,
        )  # fmt: skip
        assert len(told.predicted) == 1 + len(shuffled.labels)
        predictions: NDArray[Any] = nested.scores.argmax(axis=1)
        return predictions

    run(benchmark, 1, work, data.y)


@pytest.mark.benchmark(group="falkon, 32 folds, 1000 centres")
def test_falkon_nystrom_toptune(benchmark: BenchmarkFixture, data: Data) -> None:
    head = FalkonClassifier(n_centres=min(1000, len(data.X) // 2))
    run(benchmark, 3, lambda: leave_one_group_out(head, *data).predictions, data.y)


@pytest.mark.benchmark(group="falkon, 32 folds, 1000 centres")
def test_falkon_nystrom_one_fit_per_fold(benchmark: BenchmarkFixture, data: Data) -> None:
    head = Refitted(n_centres=min(1000, len(data.X) // 2))
    run(benchmark, 1, lambda: leave_one_group_out(head, *data).predictions, data.y)


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


@pytest.fixture
def few_devices(benchmark: BenchmarkFixture, data: Data) -> Data:
    """The first ten devices, two a class: 55 networks a candidate; five in a quick test."""
    few = data.device < (TUNED_DEVICES if benchmark.enabled else TUNED_DEVICES // 2)
    return Data(data.X[few], data.y[few], data.device[few])


@pytest.mark.benchmark(group=f"mlp, tuned, {TUNED_DEVICES} folds, {MLP_EPOCHS} of 25 epochs")
def test_mlp_tuning_toptune(benchmark: BenchmarkFixture, few_devices: Data) -> None:
    X, y, device = few_devices

    def tuned() -> NDArray[Any]:
        head = MLPClassifier(epochs=MLP_EPOCHS)
        scores = tune_mlp(head, LabelledRows(X, y, group_rows(device), device), CANDIDATES).scores
        predictions: NDArray[Any] = scores.argmax(axis=1)
        return predictions

    run_tuned(benchmark, tuned, y)


@pytest.mark.benchmark(group=f"mlp, tuned, {TUNED_DEVICES} folds, {MLP_EPOCHS} of 25 epochs")
def test_mlp_tuning_one_pytorch_loop_per_network(
    benchmark: BenchmarkFixture, few_devices: Data
) -> None:
    """Train as many networks, each pair of left-out devices once, as `tune_mlp` does too."""
    rows = torch.from_numpy(l2_normalise(few_devices.X)) * FEATURES**0.5
    y = torch.from_numpy(few_devices.y)
    device = torch.from_numpy(few_devices.device)
    n_devices = len(np.unique(few_devices.device))

    def folds() -> NDArray[Any]:
        outer = np.empty((len(CANDIDATES), len(y)), dtype=np.int64)
        wrong = np.zeros((len(CANDIDATES), n_devices))
        pairs = list(combinations_with_replacement(range(n_devices), 2))
        for p, candidate in enumerate(CANDIDATES):
            for g, h in pairs:
                net = train_plainly(
                    rows[(device != g) & (device != h)],
                    y[(device != g) & (device != h)],
                    **candidate,
                )
                with torch.no_grad():
                    right = [net(rows[device == k]).argmax(dim=1) for k in (g, h)]
                if g == h:
                    outer[p, few_devices.device == g] = right[0]
                else:
                    wrong[p, g] += float((right[1] != y[device == h]).double().mean())
                    wrong[p, h] += float((right[0] != y[device == g]).double().mean())
        choice = wrong.argmin(axis=0)[few_devices.device]
        predictions: NDArray[Any] = outer[choice, np.arange(len(y))]
        return predictions

    run_tuned(benchmark, folds, few_devices.y)


def run_tuned(benchmark: BenchmarkFixture, work: Callable[[], NDArray[Any]], y: Any) -> None:
    """Time `work` once; a quick test has too few steps to learn, but all of them must be there."""
    predictions = benchmark.pedantic(work, rounds=1)  # type: ignore[no-untyped-call]  # untyped there
    accuracy = float((predictions == y).mean())
    benchmark.extra_info["window_accuracy"] = round(accuracy, 4)
    assert predictions.shape == y.shape
    assert accuracy > 1.5 / CLASSES or not benchmark.enabled


def train_plainly(
    rows: torch.Tensor,
    y: torch.Tensor,
    learning_rate_decay: float = 0.95,
    weight_decay: float = 0.0,
) -> torch.nn.Sequential:
    """Train as PyTorch's documentation shows, with the optimiser as it comes."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES)
    )
    adam = torch.optim.Adam(net.parameters(), lr=0.0005, weight_decay=weight_decay)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, learning_rate_decay)
    for _ in range(MLP_EPOCHS):
        for batch in torch.split(torch.randperm(len(rows)), 75):
            adam.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(net(rows[batch]), y[batch]))
            adam.step()
        decay.step()
    return net

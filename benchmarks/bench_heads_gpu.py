"""Both heads on a GPU, beside the CPU and beside one PyTorch loop a fold on the same GPU.

32 devices of 157 windows x 1280, as in bench_heads.py. Enabled, the figures of DESIGN 5 for a GPU;
disabled, the same code on six windows a device, as a quick test. Where there is no GPU all of it is
skipped; TOPTUNE_GPU=1 turns that into failures.

    TOPTUNE_GPU=1 pytest benchmarks/bench_heads_gpu.py -n0 --benchmark-enable --benchmark-only
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from toptune.bench import Rows, Sizes, Stages
from toptune.evaluation.evaluate import Units, shuffles
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.head import falkon_candidates
from toptune.heads.falkon.tuning import tune_falkon
from toptune.heads.mlp.classifier import MLPClassifier
from toptune.heads.rows import LabelledRows, group_rows, l2_normalise

pytestmark = pytest.mark.gpu

CLASSES = 5
EPOCHS = 25
BOTH = pytest.mark.parametrize("device", ["cuda", "cpu"])


@pytest.fixture(autouse=True, scope="module")
def gpu() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    reason = "no CUDA device"
    if os.environ.get("TOPTUNE_GPU") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def rows(benchmark: BenchmarkFixture, tmp_path: Path) -> Rows:
    windows = 157 if benchmark.enabled else 6
    return Stages(tmp_path, Sizes(windows_a_device=windows), "cuda", None).rows


def run(
    benchmark: BenchmarkFixture, device: str, work: Callable[[], NDArray[Any]], rows: Rows
) -> None:
    """Time `work`, which names a class for every window: in main memory, so the GPU is done.

    One round before the others where a GPU works: its libraries start up in the first.
    """
    rounds, warm_ups = (5, 1) if device == "cuda" else (1, 0)
    predictions = benchmark.pedantic(work, rounds=rounds, warmup_rounds=warm_ups)  # type: ignore[no-untyped-call]  # untyped there
    benchmark.extra_info["window_accuracy"] = round(float((predictions == rows.label).mean()), 4)
    benchmark.extra_info["gpu"] = torch.cuda.get_device_name()
    assert predictions.shape == rows.label.shape
    assert (predictions == rows.label).mean() > 2 / CLASSES or not benchmark.enabled


@BOTH
@pytest.mark.benchmark(group="falkon, 32 folds, all rows as centres")
def test_falkon_all_rows(benchmark: BenchmarkFixture, rows: Rows, device: str) -> None:
    head = FalkonClassifier(device=device)
    run(benchmark, device, lambda: leave_one_group_out(head, *rows).predictions, rows)


@BOTH
@pytest.mark.benchmark(group="falkon, 32 folds, 1000 centres")
def test_falkon_nystrom(benchmark: BenchmarkFixture, rows: Rows, device: str) -> None:
    head = FalkonClassifier(n_centres=min(1000, len(rows.X) // 2), device=device)
    run(benchmark, device, lambda: leave_one_group_out(head, *rows).predictions, rows)


@BOTH
@pytest.mark.benchmark(group="falkon, 32 folds, tuned, 1000 permutations")
def test_falkon_tuned_and_permuted(benchmark: BenchmarkFixture, rows: Rows, device: str) -> None:
    """Thirty settings inside every fold, for the labels and for a thousand shuffles of them."""
    head = FalkonClassifier(device=device)
    widths = (0.25, 0.5, 1.0, 2.0, 4.0) if benchmark.enabled else (0.5, 1.0)
    penalties = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2) if benchmark.enabled else (1e-4, 1e-3)
    candidates = falkon_candidates(1, widths=widths, penalties=penalties)
    units = Units.of(rows.device, rows.label)
    shuffled = shuffles(units, 1000 if benchmark.enabled else 20, 0)
    assert shuffled is not None

    def work() -> NDArray[Any]:
        nested, told = tune_falkon(
            head,
            LabelledRows(rows.X, rows.label, group_rows(rows.device), units.of_row),
            candidates,
            shuffled=shuffled.labels,
        )  # fmt: skip
        assert len(told.predicted) == 1 + len(shuffled.labels)
        predictions: NDArray[Any] = nested.scores.argmax(axis=1)
        return predictions

    run(benchmark, device, work, rows)


@BOTH
@pytest.mark.benchmark(group=f"mlp, 32 folds, {EPOCHS} epochs")
def test_mlp(benchmark: BenchmarkFixture, rows: Rows, device: str) -> None:
    head = MLPClassifier(epochs=EPOCHS if benchmark.enabled else 2, device=device)
    run(benchmark, device, lambda: leave_one_group_out(head, *rows).predictions, rows)


@pytest.mark.benchmark(group=f"mlp, 32 folds, {EPOCHS} epochs")
def test_mlp_one_pytorch_loop_per_fold(benchmark: BenchmarkFixture, rows: Rows) -> None:
    """Train as PyTorch's documentation shows, rows and networks on the GPU from the start."""
    epochs = EPOCHS if benchmark.enabled else 2
    X = (torch.from_numpy(l2_normalise(rows.X)) * rows.X.shape[1] ** 0.5).cuda()
    y, device = torch.from_numpy(rows.label).cuda(), torch.from_numpy(rows.device).cuda()

    def folds() -> NDArray[Any]:
        predictions = torch.empty_like(y)
        for left_out in np.unique(rows.device).tolist():
            held_out = device == left_out
            net = train_plainly(X[~held_out], y[~held_out], epochs)
            with torch.no_grad():
                predictions[held_out] = net(X[held_out]).argmax(dim=1)
        found: NDArray[Any] = predictions.cpu().numpy()
        return found

    run(benchmark, "cuda", folds, rows)


def train_plainly(X: torch.Tensor, y: torch.Tensor, epochs: int) -> torch.nn.Sequential:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], 64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES)
    ).to(X.device)
    adam = torch.optim.Adam(net.parameters(), lr=0.0005)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.95)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(X), device=X.device), 75):
            adam.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(net(X[batch]), y[batch]))
            adam.step()
        decay.step()
    return net

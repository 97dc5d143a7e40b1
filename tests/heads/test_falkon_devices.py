"""Where the Falkon classifier computes: the device decides, and a full one says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import TORCH, Array, Ints

from toptune.errors import InputError, ToptuneError
from toptune.evaluation.evaluate import Units, shuffles
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads.falkon import solvers
from toptune.heads.falkon.arrays import NUMPY
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.tuning import tune_falkon
from toptune.heads.rows import LabelledRows, group_rows

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CANDIDATES = ({"width": 0.7, "penalty": 1e-2}, {"width": 1.5, "penalty": 1e-2})


def devices(seed: int, n_classes: int = 2) -> tuple[Array, Any, Ints]:
    """Unequal devices whose rows come in any order; labels go round."""
    rng = np.random.default_rng(seed)
    device = rng.permutation(np.repeat(np.arange(7), [6, 9, 4, 8, 7, 5, 12]))
    X = rng.standard_normal((len(device), 5)) + 0.7 * (device % n_classes)[:, None]
    return X, np.array([f"c{d % n_classes}" for d in device]), device.astype(np.int64)


@pytest.mark.parametrize("n_centres", [None, 30])
@pytest.mark.parametrize("step", ["fit", "folds", "tuning"])
def test_too_little_memory_is_one_line_with_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, n_centres: int | None, step: str
) -> None:
    monkeypatch.setattr(solvers, "NUMPY", TORCH)
    X, y, device = devices(1)
    head = FalkonClassifier(n_centres=n_centres)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.80 GiB")

    monkeypatch.setattr(torch.linalg, "cholesky_ex", full)
    rows = LabelledRows(X, y, group_rows(device), device)
    steps: dict[str, Callable[[], object]] = {
        "fit": lambda: head.fit(X, y),
        "folds": lambda: leave_one_group_out(head, X, y, device),
        "tuning": lambda: tune_falkon(head, rows, CANDIDATES),
    }
    with pytest.raises(
        ToptuneError, match=r"not fit into the memory of cpu .*`n_centres`.*`device"
    ):
        steps[step]()


def test_the_device_decides_and_is_never_changed_silently() -> None:
    X, y, _ = devices(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver = solvers.solver_of(FalkonClassifier())
    assert isinstance(solver, solvers.Direct)
    assert solver.arrays is NUMPY
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device is 'cuda', but torch finds no such device"):
            FalkonClassifier(device="cuda").fit(X, y)
    with pytest.raises(InputError, match="device must be cpu or cuda, got 'gpu'"):
        FalkonClassifier(device="gpu").fit(X, y)


@pytest.fixture
def cuda() -> Iterator[str]:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield "cuda"
    # The work was done there.
    assert torch.cuda.max_memory_allocated() > before


@pytest.mark.gpu
@pytest.mark.parametrize("view_sizes", [None, (300, 212)])
@pytest.mark.parametrize("n_centres", [None, 400])
def test_a_gpu_gives_the_cpus_scores(
    cuda: str, n_centres: int | None, view_sizes: tuple[int, ...] | None
) -> None:
    rng = np.random.default_rng(0)
    device = rng.permutation(np.repeat(np.arange(12), rng.integers(60, 140, 12)))
    y = device % 3
    X = np.abs(rng.standard_normal((3, 512))[y] + rng.standard_normal((len(y), 512)))
    args = (LabelledRows(X.astype(np.float32), y, group_rows(device), device),)
    candidates = [{"width": w, "penalty": p} for w in (0.5, 1.0) for p in (1e-5, 1e-4)]
    units = Units.of(device.astype(str), y.astype(str))
    drawn = shuffles(units, 50, 0)
    assert drawn is not None
    # Units in the order of the devices' numbers, as `device` numbers them.
    labels = drawn.labels[:, np.argsort(units.device.astype(int))]
    results = [
        tune_falkon(
            FalkonClassifier(n_centres=n_centres, view_sizes=view_sizes, device=where),
            *args,
            candidates,
            shuffled=labels,
        )
        for where in ("cpu", cuda)
    ]
    (expected, told_cpu), (found, told) = results
    np.testing.assert_allclose(found.final_scores, expected.final_scores, atol=1e-8)
    np.testing.assert_allclose(found.loss, expected.loss, atol=2e-6)
    np.testing.assert_array_equal(found.choice, expected.choice)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-8)
    assert (told.predicted == told_cpu.predicted).mean() > 0.999
    fitted = [
        FalkonClassifier(n_centres=n_centres, view_sizes=view_sizes, device=where)
        .fit(X, y)
        .decision_function(X[:50])
        for where in ("cpu", cuda)
    ]
    np.testing.assert_allclose(fitted[1], fitted[0], atol=1e-7)


@pytest.mark.gpu
def test_a_gpu_that_is_full_says_so(cuda: str) -> None:
    X, y, _ = devices(0)
    torch.ones(1, device=cuda)
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(ToptuneError, match="do not fit into the memory of cuda"):
            FalkonClassifier(device=cuda).fit(np.tile(X, (100, 200)), np.tile(y, 100))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

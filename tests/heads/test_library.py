"""What the falkon library is asked, and that it leaves no trace: by a double of its interface.

The double records how it is called, seeds and prints as the library does, and solves directly.
With the library itself installed, one test compares it with the direct solver.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.iterative import Iteration, Library
from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.falkon.solvers import Problem
from toptune.heads.rows import group_rows

INSTALLED = importlib.util.find_spec("falkon") is not None
Array = NDArray[np.float64]


@dataclass
class Options:
    """Those of the library's options that matter here, with its names and defaults."""

    use_cpu: bool = False
    keops_active: str = "auto"
    cg_tolerance: float = 1e-7
    cpu_preconditioner: bool = False
    min_cuda_pc_size_32: int = 10_000
    min_cuda_pc_size_64: int = 30_000
    min_cuda_iter_size_32: int = 300_000_000
    min_cuda_iter_size_64: int = 900_000_000


class GaussianKernel:
    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def __call__(self, P: torch.Tensor, Q: torch.Tensor) -> torch.Tensor:
        distance = (P[:, None] - Q[None]).square().sum(dim=2)
        return torch.exp(-distance / (2 * self.sigma**2))


class FixedSelector:
    def __init__(self, centers: torch.Tensor) -> None:
        self.centers = centers


class Falkon:
    made: list[Falkon]
    fails = False

    def __init__(
        self,
        kernel: GaussianKernel,
        penalty: float,
        M: int,
        center_selection: FixedSelector,
        maxiter: int = 20,
        seed: int | None = None,
        error_fn: Any = None,
        error_every: int | None = 1,
        weight_fn: Any = None,
        options: Options | None = None,
    ) -> None:
        assert options is not None
        assert error_fn is weight_fn is error_every is None
        self.kernel, self.penalty, self.M, self.maxiter = kernel, penalty, M, maxiter
        self.centers, self.seed, self.options = center_selection.centers, seed, options
        Falkon.made.append(self)
        # As the library does with a seed.
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002  # this is what must be undone
        random.seed(7)

    def fit(self, X: torch.Tensor, Y: torch.Tensor) -> Falkon:
        sys.stdout.write("Stopping conjugate gradient descent at iteration 5.\n")
        if Falkon.fails:
            raise RuntimeError("out of memory")
        self.X = X
        Z, B = self.kernel(X, self.centers), self.kernel(self.centers, self.centers)
        ridge = self.penalty * len(X)
        self.alpha_ = torch.linalg.solve(Z.T @ Z + ridge * B, Z.T @ Y)
        return self


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> type[Falkon]:
    falkon = types.ModuleType("falkon")
    vars(falkon).update(
        Falkon=Falkon,
        FalkonOptions=Options,
        kernels=types.SimpleNamespace(GaussianKernel=GaussianKernel),
        center_selection=types.SimpleNamespace(FixedSelector=FixedSelector),
    )
    monkeypatch.setitem(sys.modules, "falkon", falkon)
    monkeypatch.setattr(Falkon, "made", [], raising=False)
    return Falkon


def data() -> tuple[Array, NDArray[np.str_], NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    device = rng.permutation(np.repeat(np.arange(6), rng.integers(6, 12, size=6)))
    X = 1.5 * rng.standard_normal((2, 4))[device % 2] + rng.standard_normal((len(device), 4))
    return X, np.array(["a", "b"])[device % 2], device


def random_states() -> list[Any]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002  # the state is what is tested
    return [
        random.getstate(),
        torch.get_rng_state().tolist(),
        legacy["state"]["key"].tolist(),
        legacy["state"]["pos"],
    ]


def test_the_library_gets_a_penalty_per_training_row_and_our_centres(double: type[Falkon]) -> None:
    X, y, _ = data()
    params: dict[str, Any] = {"width": 0.7, "penalty": 1e-3, "n_centres": 9, "random_state": 2}
    head = FalkonClassifier(**params, solver="falkon", tolerance=1e-9, max_iterations=40).fit(X, y)
    (model,) = double.made
    assert model.penalty == pytest.approx(1e-3)
    assert model.kernel.sigma == 0.7
    assert model.M == 9
    assert model.maxiter == 40
    assert model.seed is None
    assert model.X.dtype == torch.float64
    np.testing.assert_array_equal(model.centers.numpy(), head.centres_)
    options = model.options
    assert options.use_cpu is True
    assert options.keops_active == "no"
    assert options.cg_tolerance == 1e-9
    direct = FalkonClassifier(**params).fit(X, y)
    np.testing.assert_allclose(head.decision_function(X), direct.decision_function(X), atol=1e-8)


def test_on_a_gpu_nothing_is_moved_to_the_cpu(double: type[Falkon]) -> None:
    X = data()[0]
    iteration = Iteration(device="cuda", precision="float32")
    kernel = KernelSum((0.3, 0.7), (0.0, 1.0), (1, 3))
    Y = np.ones((len(X), 1))
    Library(iteration).solve(Problem(X, np.arange(5), kernel, 0.1), Y)
    (model,) = double.made
    options = model.options
    assert options.use_cpu is False
    assert options.cpu_preconditioner is False
    thresholds = [v for name, v in vars(options).items() if name.startswith("min_cuda")]
    assert thresholds == [0, 0, 0, 0]
    # Only the view that counts is handed over.
    np.testing.assert_array_equal(model.X.numpy(), X[:, 1:].astype(np.float32))


def test_folds_are_those_of_the_closed_form(double: type[Falkon]) -> None:
    X, y, device = data()
    params: dict[str, Any] = {"width": 0.7, "penalty": 1e-3, "n_centres": 12}
    expected = leave_one_group_out(FalkonClassifier(**params), X, y, device)
    results = leave_one_group_out(FalkonClassifier(**params, solver="falkon"), X, y, device)
    np.testing.assert_allclose(results.scores, expected.scores, atol=1e-8)
    # The ridge is that of the whole data set in every fold.
    for model in double.made:
        assert model.penalty * len(model.X) == pytest.approx(1e-3 * len(X))


@pytest.mark.parametrize("fails", [False, True])
def test_global_generators_and_standard_output_are_left_alone(
    double: type[Falkon],
    fails: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(double, "fails", fails)
    X, y, _ = data()
    head = FalkonClassifier(n_centres=9, penalty=1e-3, solver="falkon")
    before = random_states()
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            head.fit(X, y)
    else:
        head.fit(X, y)
    assert random_states() == before
    assert len(double.made) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Stopping conjugate gradient" in err


def test_several_gaussians_are_refused(double: type[Falkon]) -> None:
    X, y, _ = data()
    head = FalkonClassifier(n_centres=9, scales=(1, 2), solver="falkon")
    with pytest.raises(InputError, match="'falkon' has one Gaussian, not 2; take `scales=1`"):
        head.fit(X, y)
    assert not double.made


def test_several_views_are_refused(double: type[Falkon]) -> None:
    X, y, _ = data()
    head = FalkonClassifier(n_centres=9, view_sizes=(2, 2), solver="falkon")
    with pytest.raises(InputError, match="'falkon' has one kernel, not a sum over 2 views"):
        head.fit(X, y)
    assert double.made == []


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes the import fail, installed or not.
    monkeypatch.setitem(sys.modules, "falkon", None)
    X, y, device = data()
    head = FalkonClassifier(n_centres=9, solver="falkon")
    for work in (lambda: head.fit(X, y), lambda: leave_one_group_out(head, X, y, device)):
        with pytest.raises(InputError, match=r"not on PyPI: docs/falkon.md says how to install it"):
            work()


@pytest.mark.skipif(not INSTALLED, reason="falkon library: not installed, docs/falkon.md")
def test_the_library_itself_agrees_with_the_direct_solver() -> None:
    X, y, device = data()
    params: dict[str, Any] = {"width": 0.7, "penalty": 1e-3, "n_centres": 12}
    expected = leave_one_group_out(FalkonClassifier(**params), X, y, device)
    before = random_states()
    results = leave_one_group_out(
        FalkonClassifier(**params, solver="falkon", tolerance=1e-12), X, y, device
    )
    assert random_states() == before
    np.testing.assert_allclose(results.scores, expected.scores, atol=1e-6)


def test_all_centres_in_one_group_are_refused(double: type[Falkon]) -> None:
    X, _, device = data()
    problem = Problem(X, np.flatnonzero(device == 2), KernelSum.single(0.5, 4), 1.0)
    with pytest.raises(InputError, match="all centres lie in group 2"):
        Library(Iteration()).folds(problem, group_rows(device))
    assert double.made == []

"""The iterative solver against the direct one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning

from toptune.errors import InputError, ToptuneError
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads.falkon.arrays import NUMPY
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.iterative import Iteration, Iterative, conjugate_gradients
from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.falkon.solvers import Direct, Problem
from toptune.heads.rows import group_rows

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def devices(seed: int = 0, k: int = 3) -> tuple[Array, NDArray[np.str_], Ints]:
    """Nine groups of unequal size in mixed order, three a class; eight features."""
    rng = np.random.default_rng(seed)
    device = rng.permutation(np.repeat(np.arange(9), rng.integers(10, 40, size=9)))
    label = device % k
    X = 1.5 * rng.standard_normal((k, 8))[label] + rng.standard_normal((len(device), 8))
    return X, np.array(list("abc"))[label], device


@pytest.mark.parametrize("penalty", [1e-4, 1e-6])
@pytest.mark.parametrize("views", [{}, {"view_sizes": (5, 3), "width": (0.4, 0.8)}])
def test_iterating_gives_the_direct_solvers_scores(penalty: float, views: dict[str, Any]) -> None:
    X, y, _ = devices()
    params: dict[str, Any] = {
        "width": 0.4,
        "penalty": penalty,
        "n_centres": 60,
        "random_state": 3,
        **views,
    }
    direct = FalkonClassifier(**params).fit(X, y)
    iterative = FalkonClassifier(**params, solver="iterative").fit(X, y)
    np.testing.assert_array_equal(iterative.centres_, direct.centres_)
    assert (iterative.jitter_, direct.jitter_) == (0, 0)
    assert 0 < iterative.n_iter_ < 200
    new = devices(1)[0]
    expected = direct.decision_function(new)
    error = np.abs(iterative.decision_function(new) - expected).max()
    assert error <= 1e-6 * np.abs(expected).max()


def test_iterated_folds_are_those_of_the_closed_form() -> None:
    X, y, device = devices()
    params: dict[str, Any] = {"width": 0.4, "penalty": 1e-6, "n_centres": 60, "random_state": 3}
    expected = leave_one_group_out(FalkonClassifier(**params), X, y, device)
    iterated = leave_one_group_out(FalkonClassifier(**params, solver="iterative"), X, y, device)
    error = np.abs(iterated.scores - expected.scores).max()
    assert error <= 1e-6 * np.abs(expected.scores).max()
    np.testing.assert_array_equal(iterated.predictions, expected.predictions)
    assert [fold.jitter for fold in iterated.folds] == [0] * 9


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.sampled_from([1e-1, 1e-3]))
def test_any_groups_and_centres_give_the_closed_forms_scores(
    seed: int, n_centres: int, ridge: float
) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(4), rng.integers(5, 20, size=4)))
    X = 2 * rng.standard_normal((len(groups), 4))
    Y = rng.choice([-1.0, 1.0], size=(len(groups), 3))
    # A target of zeros needs no iterations.
    Y[:, 2] = 0
    kernel = KernelSum((0.8, 1.0, 0.5), (0.4, 0.0, 0.6), (2, 1, 1))
    centres = rng.choice(len(X), min(n_centres, len(X)), replace=False)
    problem, grouping = Problem(X, centres, kernel, ridge), group_rows(groups)
    iterative = Iterative(Iteration())
    if len(set(groups[centres])) == 1:
        with pytest.raises(InputError, match="all centres lie in group"):
            iterative.folds(problem, grouping)
        return
    expected = Direct(NUMPY).folds(problem, grouping).held_out_scores(Y).scores
    scores = iterative.folds(problem, grouping).held_out_scores(Y).scores
    np.testing.assert_allclose(scores, expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(scores[:, 2], 0)


def test_float32_is_used_only_when_asked_and_is_close() -> None:
    X, y, device = devices()
    params: dict[str, Any] = {"width": 0.4, "penalty": 1e-4, "n_centres": 60}
    exact = leave_one_group_out(FalkonClassifier(**params), X, y, device).scores
    for precision, least, most in (("float64", 0, 1e-6), ("float32", 1e-7, 1e-2)):
        head = FalkonClassifier(**params, solver="iterative", precision=precision)
        scores = leave_one_group_out(head, X, y, device).scores
        assert least <= np.abs(scores - exact).max() / np.abs(exact).max() <= most


def test_not_converging_is_an_error_that_names_the_fold_and_the_residual() -> None:
    X, y, device = devices()
    head = FalkonClassifier(0.4, n_centres=60, solver="iterative", max_iterations=3)
    message = r"stopped after 3 iterations at a relative residual of \d.*, not 1.0e-08: raise `pen"
    with pytest.raises(ToptuneError, match=rf"the iterative solver {message}"):
        head.fit(X, y)
    with pytest.raises(ToptuneError, match=rf"the iterative solver without group 0 {message}"):
        leave_one_group_out(head, X, y, device)


def test_centres_that_coincide_are_solved_with_a_stated_jitter_or_none() -> None:
    X, y, device = devices()
    X[1:60:2] = X[:59:2]
    params: dict[str, Any] = {"width": 0.4, "n_centres": len(X) - 1, "penalty": 1e-6}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", LinAlgWarning)
        head = FalkonClassifier(**params, solver="iterative")
        results = leave_one_group_out(head, X, y, device)
    jitters = [fold.jitter for fold in results.folds if fold.jitter]
    assert len(said) == len(jitters) > 0
    assert all("is singular to the iterative solver" in str(warning.message) for warning in said)
    assert max(jitters) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)
        direct = leave_one_group_out(FalkonClassifier(**params), X, y, device)
    np.testing.assert_allclose(results.scores, direct.scores, atol=1e-5)


def test_each_column_takes_its_own_steps() -> None:
    rng = np.random.default_rng(5)
    A = torch.from_numpy(np.diag(np.linspace(1, 50, 20)))
    b = torch.from_numpy(rng.standard_normal((20, 3)))
    # The first column is an eigenvector: one step.
    b[:, 0] = 0
    b[3, 0] = 1
    counted = []

    def apply(x: torch.Tensor) -> torch.Tensor:
        counted.append(x)
        return A @ x

    done = conjugate_gradients(apply, b, tolerance=1e-12, max_iterations=100)
    torch.testing.assert_close(done.x, torch.linalg.solve(A, b), rtol=1e-10, atol=1e-12)
    assert done.residual <= 1e-12
    # One more tells the true residual.
    assert len(counted) == done.n_iterations + 1 <= 22
    alone = conjugate_gradients(apply, b[:, :1], tolerance=1e-12, max_iterations=100)
    assert alone.n_iterations == 1
    cut = conjugate_gradients(apply, b, tolerance=1e-12, max_iterations=2)
    true = torch.linalg.vector_norm(b - A @ cut.x, dim=0) / torch.linalg.vector_norm(b, dim=0)
    assert cut.residual == pytest.approx(float(true.max()))
    assert cut.residual > 1e-12


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_scores() -> None:
    X, y, device = devices()
    params: dict[str, Any] = {"width": 0.4, "penalty": 1e-6, "n_centres": 60, "solver": "iterative"}
    cpu = leave_one_group_out(FalkonClassifier(**params), X, y, device).scores
    gpu = leave_one_group_out(FalkonClassifier(**params, device="cuda"), X, y, device).scores
    np.testing.assert_allclose(gpu, cpu, atol=1e-6 * np.abs(cpu).max())

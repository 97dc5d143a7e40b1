"""Factorisations in torch: the jitter's rule, matrices of different sizes together, and memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import LinAlgWarning
from toptune.heads.falkon.torch_algebra import factor, factor_together

from toptune.errors import ToptuneError
from toptune.heads.falkon import torch_algebra
from toptune.heads.falkon.kernel import cholesky

CPU = torch.device("cpu")


def test_the_jitter_of_a_matrix_is_that_of_the_rule() -> None:
    rng = np.random.default_rng(0)
    half = rng.standard_normal((12, 3))
    A = half @ half.T
    with pytest.warns(LinAlgWarning, match="the matrix is singular in float64"):
        expected = cholesky(A.copy, "the matrix")
    with pytest.warns(LinAlgWarning, match=r"the matrix is singular in float64; .* was added"):
        found = factor(lambda: torch.from_numpy(A.copy()), "the matrix")
    # Where rounding makes it indefinite is LAPACK's affair; a tenfold more may be needed or not.
    assert found.jitter / expected.jitter in (pytest.approx(0.1), pytest.approx(1), 10)
    lower = found.lower.numpy()
    np.testing.assert_allclose(lower @ lower.T, A + found.jitter * np.eye(12), atol=1e-12)


def test_each_matrix_of_a_batch_has_its_own_size_and_jitter() -> None:
    rng = np.random.default_rng(1)
    sizes, padded = (5, 3, 4), torch.zeros((3, 5, 5), dtype=torch.float64)
    absent = torch.ones((3, 5), dtype=torch.bool)
    for i, size in enumerate(sizes):
        half = rng.standard_normal((size, 2 if i == 2 else size + 2))
        padded[i, :size, :size] = torch.from_numpy(half @ half.T)
        absent[i, :size] = False
    given_matrices = padded.clone()
    with pytest.warns(LinAlgWarning, match="matrix 2 is singular") as said:
        found = factor_together(padded, absent, [f"matrix {i}" for i in range(3)])
    assert len(said) == 1
    assert (found.jitter > 0).tolist() == [False, False, True]
    # By size and diagonal of the matrix itself, not of what it was padded to.
    rule = 4 * np.finfo(np.float64).eps * float(given_matrices[2].diagonal().max())
    steps = np.log10(found.jitter[2] / rule)
    assert steps == pytest.approx(round(steps))
    right = torch.randn((3, 5, 2), dtype=torch.float64).masked_fill(absent[:, :, None], 0)
    solved = found.solve(right)
    assert (solved[absent] == 0).all()
    for i, size in enumerate(sizes):
        A = given_matrices[i, :size, :size] + found.jitter[i] * torch.eye(size)
        lower = found.lower[i, :size, :size]
        torch.testing.assert_close(lower @ lower.T, A, atol=1e-12, rtol=0)
        if not found.jitter[i]:
            torch.testing.assert_close(A @ solved[i, :size], right[i, :size])


def test_a_matrix_no_jitter_can_save_is_an_error() -> None:
    bad = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    with pytest.raises(ToptuneError, match="the matrix is singular even with a jitter"):
        factor(bad.clone, "the matrix")
    with pytest.raises(ToptuneError, match="matrix 0 is singular even with a jitter"):
        factor_together(bad[None].clone(), torch.zeros((1, 2), dtype=torch.bool), ["matrix 0"])


def test_other_errors_of_a_device_stay_what_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="an illegal memory access"),
        torch_algebra.says_when_full(torch.device("cuda")),
    ):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_batches_fit_the_memory_and_large_matrices_come_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_algebra, "free_bytes", lambda _: 8 * 1000)
    cut = list(torch_algebra.batches(7, 10, CPU, 300))
    assert [s.stop - s.start for s in cut] == [3, 3, 1]
    assert len(list(torch_algebra.batches(7, 1025, CPU, 1))) == 7
    # One at least, however little there is.
    assert len(list(torch_algebra.batches(2, 10, CPU, 10**9))) == 2

"""Factorisations in NumPy and torch: the jitter's rule, matrices padded to one size, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import BOTH, TORCH
from scipy.linalg import LinAlgWarning

from toptune.errors import ToptuneError
from toptune.heads.falkon.arrays import Arrays
from toptune.heads.falkon.torch_arrays import TorchArrays


@BOTH
def test_a_singular_matrix_is_factored_with_the_jitter_of_the_rule(arrays: Arrays) -> None:
    half = np.random.default_rng(0).standard_normal((12, 3))
    A = half @ half.T
    with pytest.warns(LinAlgWarning, match=r"the matrix is singular in float64; .* was added"):
        found = arrays.cholesky(lambda: arrays.asarray(A.copy()), "the matrix")
    rule = 12 * np.finfo(np.float64).eps * A.diagonal().max()
    # Where rounding makes it indefinite is LAPACK's affair; a tenfold more may be needed or not.
    assert found.jitter / rule in (pytest.approx(1), pytest.approx(10))
    lower = np.tril(arrays.to_host(found.lower))
    np.testing.assert_allclose(lower @ lower.T, A + found.jitter * np.eye(12), atol=1e-12)


@BOTH
def test_a_matrix_no_jitter_can_save_is_an_error(arrays: Arrays) -> None:
    bad = np.diag([1.0, -1.0])
    with pytest.raises(ToptuneError, match="the matrix is singular even with a jitter"):
        arrays.cholesky(lambda: arrays.asarray(bad.copy()), "the matrix")
    rows = arrays.rows([[slice(0, 2)]])
    with pytest.raises(ToptuneError, match="matrix 0 is singular even with a jitter"):
        arrays.factor_each(rows, lambda: rows.principal(arrays.asarray(bad)), ["matrix 0"])


def test_each_matrix_of_a_batch_has_its_own_size_and_jitter() -> None:
    rng = np.random.default_rng(1)
    sizes = (5, 3, 4)
    whole = np.zeros((12, 12))
    spans, start = [], 0
    for i, size in enumerate(sizes):
        half = rng.standard_normal((size, 2 if i == 2 else size + 2))
        spans.append(slice(start, start + size))
        whole[spans[-1], spans[-1]] = half @ half.T
        start += size
    rows = TORCH.rows([[span] for span in spans])
    with pytest.warns(LinAlgWarning, match="matrix 2 is singular") as said:
        found = TORCH.factor_each(
            rows, lambda: rows.principal(TORCH.asarray(whole)), [f"matrix {i}" for i in range(3)]
        )
    assert len(said) == 1
    assert (found.jitter > 0).tolist() == [False, False, True]
    # By size and diagonal of the matrix itself, not of what it was padded to.
    rule = 4 * np.finfo(np.float64).eps * whole[spans[2], spans[2]].diagonal().max()
    steps = np.log10(found.jitter[2] / rule)
    assert steps == pytest.approx(round(steps))
    right = rng.standard_normal((12, 2))
    solved = found.solve(rows.take(TORCH.asarray(right)))
    assert (solved[torch.from_numpy(np.arange(5) >= np.array(sizes)[:, None])] == 0).all()
    flat = TORCH.to_host(rows.flat(solved))
    for i, span in enumerate(spans):
        A = whole[span, span] + found.jitter[i] * np.eye(sizes[i])
        lower = TORCH.to_host(found.lower[i, : sizes[i], : sizes[i]])
        np.testing.assert_allclose(lower @ lower.T, A, atol=1e-12)
        if not found.jitter[i]:
            np.testing.assert_allclose(A @ flat[span], right[span], atol=1e-8)


def test_other_errors_of_a_device_stay_what_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="an illegal memory access"),
        TorchArrays("cuda").says_when_full(),
    ):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_batches_fit_the_memory_and_large_matrices_come_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TorchArrays, "free_bytes", lambda _: 8 * 1000)
    assert [s.stop - s.start for s in TORCH.batches(7, 10, 300)] == [3, 3, 1]
    assert len(list(TORCH.batches(7, 1025, 1))) == 7
    # One at least, however little there is.
    assert len(list(TORCH.batches(2, 10, 10**9))) == 2

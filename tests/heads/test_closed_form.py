"""Closed forms over several views against brute-force refitting, and bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_cases import Case, cases, naive_kernel, refit
from needs import shared
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from toptune.heads.falkon.closed_form import AllRowsFolds, NystromFolds
from toptune.heads.falkon.direct import solve_nystrom
from toptune.heads.falkon.torch_direct import TorchDirect

from toptune.evaluation.folds import leave_one_group_out
from toptune.heads.falkon import nystrom, solvers
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.rows import group_rows

Ints = NDArray[np.int64]


@settings(max_examples=100, deadline=None)
@given(cases, st.sampled_from([1e-2, 1.0]))
def test_all_rows_over_several_views_are_refitted_folds(case: Case, ridge: float) -> None:
    folds = AllRowsFolds.factor(case.X, group_rows(case.groups), kernel=case.kernel, ridge=ridge)
    expected = refit(case.X, case.Y, case.groups, None, case.kernel, ridge)
    np.testing.assert_allclose(folds.held_out_scores(case.Y).scores, expected, atol=1e-8)


@settings(max_examples=100, deadline=None)
@given(cases, st.sampled_from([0.1, 1.0]), st.booleans())
def test_nystrom_over_several_views_are_refitted_folds(
    case: Case, ridge: float, keep: bool
) -> None:
    centres = case.rng.permutation(len(case.X))[: case.rng.integers(2, len(case.X) + 1)]
    assume(len(set(case.groups[centres])) > 1)
    # Where centres nearly coincide, two ways of solving agree to fewer digits than eight.
    assume(np.linalg.cond(naive_kernel(case.X[centres], case.X[centres], case.kernel)) < 1e5)
    folds = NystromFolds.factor(
        case.X,
        group_rows(case.groups),
        centres,
        kernel=case.kernel,
        ridge=ridge,
        keep_bytes=10**9 if keep else 0,
    )
    held_out = folds.held_out_scores(case.Y)
    expected = refit(case.X, case.Y, case.groups, centres, case.kernel, ridge)
    np.testing.assert_allclose(held_out.scores, expected, atol=1e-8)
    assert (held_out.jitter == 0).all()


def test_a_kernel_that_is_not_kept_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks smaller than a group, and groups smaller than a block.
    monkeypatch.setattr(nystrom, "BLOCK_ROWS", 16)
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(6), [3, 50, 7, 16, 20, 33]))
    X = rng.standard_normal((len(groups), 5)).astype(np.float32)
    Y = rng.choice([-1.0, 1.0], size=(len(groups), 3))
    centres = rng.choice(len(groups), 40, replace=False)
    kernel = KernelSum((1.0, 0.7), (0.5, 0.5), (2, 3))
    sizes = (8 * len(groups) * 40, 8 * 20 * 40, 0)
    kept, groups_kept, never = (
        NystromFolds.factor(
            X, group_rows(groups), centres, kernel=kernel, ridge=0.1, keep_bytes=size
        )
        for size in sizes
    )
    assert kept.kernel.kept is not None
    assert groups_kept.kernel.kept is None
    expected = kept.held_out_scores(Y).scores
    np.testing.assert_allclose(groups_kept.held_out_scores(Y).scores, expected, atol=1e-10)
    np.testing.assert_allclose(never.held_out_scores(Y).scores, expected, atol=1e-10)


def test_blocks_of_rows_do_not_change_a_nystrom_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((100, 3)), rng.choice([-1.0, 1.0], size=(100, 2))
    centres = np.arange(0, 100, 7)
    kernel = KernelSum.single(0.8, 3)
    whole = solve_nystrom(X, centres, Y, kernel=kernel, ridge=0.1).dual_coef
    monkeypatch.setattr(nystrom, "BLOCK_ROWS", 9)
    blocks = solve_nystrom(X, centres, Y, kernel=kernel, ridge=0.1).dual_coef
    np.testing.assert_allclose(blocks, whole, rtol=1e-8)


def test_jitter_is_reported_for_the_folds_that_needed_it() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    groups = np.repeat([0, 1, 2, 3], 10)
    # Centres of groups 0 and 1 coincide: only without one of the two the matrix is regular.
    X[10:20] = X[:10]
    centres = np.array([*range(20), 21, 32])
    folds = NystromFolds.factor(
        X, group_rows(groups), centres, kernel=KernelSum.single(0.5, 3), ridge=1e-3
    )
    with pytest.warns(LinAlgWarning) as said:
        jitter = folds.held_out_scores(np.ones((40, 1))).jitter
    assert (jitter > 0).tolist() == [False, False, True, True]
    assert ["group 2" in str(w.message) or "group 3" in str(w.message) for w in said] == [True] * 2


@pytest.mark.parametrize("solver", ["direct", "direct in torch", "iterative"])
@pytest.mark.parametrize("refitted", [False, True])
def test_the_head_gives_the_falkon_librarys_scores(
    solver: str, refitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if solver == "direct in torch":
        monkeypatch.setattr(solvers, "Direct", lambda: TorchDirect("cpu"))
    with np.load(shared("data", "falkon", "logo_reference.npz")) as reference:
        X, y, groups, centres = (reference[name] for name in ("X", "y", "group", "centres"))
        width, penalty = float(reference["sigma"]), float(reference["penalty"])
        expected = reference["scores"]

    class Chosen(FalkonClassifier):
        """With the centres of the reference, of those rows that are given."""

        chosen = centres

        def _draw_centres(self, n_rows: int) -> Ints | None:
            assert n_rows >= len(self.chosen)
            return np.asarray(self.chosen, np.int64)

    params: dict[str, Any] = {
        "width": width,
        "n_centres": len(centres),
        "normalise": False,
        "solver": solver.partition(" ")[0],
        "tolerance": 1e-10,
    }
    if not refitted:
        # The library took penalty x 550 training rows.
        head = Chosen(penalty=penalty * 550 / len(X), **params)
        folds, Y = head.fold_factors(X, y, group_rows(groups))
        np.testing.assert_allclose(folds.held_out_scores(Y).scores, expected, atol=1e-6)
        return
    for group in np.unique(groups):
        train = np.flatnonzero(groups != group)
        head = Chosen(penalty=penalty, **params)
        head.chosen = np.searchsorted(train, centres[groups[centres] != group])
        assert len(train) == 550
        scores = head.fit(X[train], y[train]).class_scores(X[groups == group])
        np.testing.assert_allclose(scores, expected[groups == group], atol=1e-6)


def test_folds_of_a_fused_head_are_refits_of_views_normalised_by_themselves() -> None:
    rng = np.random.default_rng(3)
    device = rng.permutation(np.repeat(np.arange(8), rng.integers(4, 12, size=8)))
    y = np.array(["a", "b"])[device % 2]
    X = rng.standard_normal((2, 6))[device % 2] + rng.standard_normal((len(device), 6))
    views: dict[str, Any] = {"view_sizes": (2, 3, 1), "view_weights": (0.4, 0.6, 0.0)}
    head = FalkonClassifier((0.6, 0.9, 0.1), 1e-3, **views)
    parts = np.split(X, [2, 5], axis=1)
    unit = np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], axis=1)
    kernel = KernelSum((0.6, 0.9, 0.1), (0.4, 0.6, 0.0), (2, 3, 1))
    Y = np.where(y[:, None] == np.array(["a", "b"]), 1.0, -1.0)
    expected = refit(unit, Y, device, None, kernel, 1e-3 * len(X))
    scores = leave_one_group_out(head, X, y, device).scores
    np.testing.assert_allclose(scores, expected, atol=1e-8)

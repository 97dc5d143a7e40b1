"""Folds, pairs and models in closed form, in NumPy and in torch, against refitting each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_cases import BOTH, TORCH, Array, Case, Ints, cases, naive_kernel, refit, scores_without
from needs import shared
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning

from toptune.errors import InputError
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads.falkon import solvers
from toptune.heads.falkon.arrays import NUMPY, Arrays
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.folds import AllRows, Model
from toptune.heads.falkon.kernel import KernelSum, NystromKernel
from toptune.heads.falkon.solvers import Direct, Problem
from toptune.heads.falkon.torch_arrays import TorchArrays
from toptune.heads.rows import group_rows

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class OneByOne(TorchArrays):
    """As where matrices are too large to be factored together."""

    def batches(self, n: int, size: int, n_bytes: int) -> Any:
        del size, n_bytes
        return (slice(i, i + 1) for i in range(n))


ALL = pytest.mark.parametrize(
    "arrays", [NUMPY, TORCH, OneByOne("cpu")], ids=["numpy", "torch", "torch, one by one"]
)


def model_of(
    arrays: Arrays, case: Case, centres: Ints | None, ridge: float, at_once: int = 1, **how: Any
) -> Model:
    problem = Problem(case.X, centres, case.kernel, ridge)
    return Direct(arrays).model(problem, group_rows(case.groups), at_once, **how)


@ALL
@settings(max_examples=60, deadline=None)
@given(case=cases, ridge=st.sampled_from([1e-2, 1.0]), at_once=st.sampled_from([1, 2]))
def test_folds_with_all_rows_are_refits(
    arrays: Arrays, case: Case, ridge: float, at_once: int
) -> None:
    model = model_of(arrays, case, None, ridge, at_once)
    held_out = model.held_out_scores(case.Y)
    expected = refit(case.X, case.Y, case.groups, None, case.kernel, ridge)
    np.testing.assert_allclose(held_out.scores, expected, atol=1e-8)
    assert (held_out.jitter == 0).all()
    # Further targets use the same factorisation.
    np.testing.assert_allclose(model.held_out_scores(-2 * case.Y).scores, -2 * expected, atol=1e-8)


@ALL
@settings(max_examples=60, deadline=None)
@given(case=cases, ridge=st.sampled_from([0.1, 1.0]), keep=st.booleans())
def test_nystrom_folds_are_refits_without_the_groups_centres(
    arrays: Arrays, case: Case, ridge: float, keep: bool
) -> None:
    centres = case.some_centres(1)
    model = model_of(arrays, case, centres, ridge, keep_bytes=10**9 if keep else 0)
    held_out = model.held_out_scores(case.Y)
    expected = refit(case.X, case.Y, case.groups, centres, case.kernel, ridge)
    np.testing.assert_allclose(held_out.scores, expected, atol=1e-8)
    assert (held_out.jitter == 0).all()


@ALL
@settings(max_examples=40, deadline=None)
@given(case=cases, nystrom=st.booleans(), data=st.data())
def test_inner_folds_are_refits_without_both_groups(
    arrays: Arrays, case: Case, nystrom: bool, data: st.DataObject
) -> None:
    n_groups = len(np.unique(case.groups))
    assume(n_groups > 2)
    centres = case.some_centres(2) if nystrom else None
    model = model_of(arrays, case, centres, 0.1, 2)
    start = data.draw(st.integers(0, n_groups - 1))
    block = range(start, data.draw(st.integers(start + 1, n_groups)))
    maps = model.targets(case.Y).inner(block)
    assert maps.dtype == arrays.xp.float32
    assert maps.shape == (len(block), *case.Y.shape)
    for found, g in zip(arrays.to_host(maps), block, strict=True):
        expected = np.full_like(case.Y, np.nan)
        for h in set(range(n_groups)) - {g}:
            here = case.groups == h
            expected[here] = scores_without(
                case.X, case.Y, case.groups, (g, h), centres, case.kernel, 0.1
            )[here]
        # NaN in the group's own rows; both were float64 until they were kept.
        np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-7)


@BOTH
@settings(max_examples=30, deadline=None)
@given(case=cases, nystrom=st.booleans())
def test_one_model_is_the_definitions(arrays: Arrays, case: Case, nystrom: bool) -> None:
    centres = case.some_centres(1) if nystrom else None
    problem = Problem(case.X, centres, case.kernel, 0.1)
    solution = Direct(arrays).solve(problem, case.Y)
    scores = naive_kernel(case.X, case.X[problem.named_centres], case.kernel) @ solution.dual_coef
    expected = scores_without(case.X, case.Y, case.groups, (), centres, case.kernel, 0.1)
    np.testing.assert_allclose(scores, expected, atol=1e-8)
    assert (solution.jitter, solution.n_iterations) == (0, 0)
    assert solution.dual_coef.flags.c_contiguous


@BOTH
def test_rows_that_occur_in_every_group_are_handled_exactly(arrays: Arrays) -> None:
    rng = np.random.default_rng(3)
    X = np.repeat(rng.standard_normal((12, 3)), 3, axis=0)
    groups = np.tile([0, 1, 2], 12)
    Y = rng.choice([-1.0, 1.0], size=(36, 2))
    kernel = KernelSum.single(1.0, 3)
    # Each row is a centre once: left out with its group, its copy is not.
    once = np.arange(12) * 3 + rng.integers(3, size=12)
    for centres in (None, once):
        model = Direct(arrays).folds(Problem(X, centres, kernel, 0.1), group_rows(groups))
        expected = refit(X, Y, groups, centres, kernel, 0.1)
        np.testing.assert_allclose(model.held_out_scores(Y).scores, expected, atol=1e-8)


@BOTH
def test_a_kernel_that_is_not_kept_gives_the_same_scores(
    arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks smaller than a group, and groups smaller than a block.
    monkeypatch.setattr(arrays, "block_rows", 16)
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(6), [3, 50, 7, 16, 20, 33]))
    X = rng.standard_normal((len(groups), 5)).astype(np.float32)
    Y = rng.choice([-1.0, 1.0], size=(len(groups), 3))
    centres = rng.choice(len(groups), 40, replace=False)
    problem = Problem(X, centres, KernelSum((1.0, 0.7), (0.5, 0.5), (2, 3)), 0.1)
    sizes = (8 * len(groups) * 40, 8 * 20 * 40, 0)
    kept, groups_kept, never = (
        Direct(arrays).model(problem, group_rows(groups), 1, keep_bytes=size) for size in sizes
    )
    expected = kept.held_out_scores(Y).scores
    np.testing.assert_allclose(groups_kept.held_out_scores(Y).scores, expected, atol=1e-10)
    np.testing.assert_allclose(never.held_out_scores(Y).scores, expected, atol=1e-10)


@BOTH
def test_blocks_of_rows_do_not_change_a_nystrom_fit(
    arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((100, 3)), rng.choice([-1.0, 1.0], size=(100, 2))
    problem = Problem(X, np.arange(0, 100, 7), KernelSum.single(0.8, 3), 0.1)
    whole = Direct(arrays).solve(problem, Y).dual_coef
    monkeypatch.setattr(arrays, "block_rows", 9)
    np.testing.assert_allclose(Direct(arrays).solve(problem, Y).dual_coef, whole, rtol=1e-8)


@BOTH
def test_a_kernel_that_does_not_fit_is_evaluated_again_and_is_the_same(arrays: Arrays) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((9000, 5)).astype(np.float32)
    order, centres = rng.permutation(9000), rng.choice(9000, 7, replace=False)
    kernel = KernelSum((1.0, 2.0), (0.5, 0.5), (2, 3))
    exact = X.astype(np.float64)
    expected = naive_kernel(exact[order], exact[centres], kernel)
    size = 9000 * 7 * 8
    for keep_bytes, is_kept in ((size, True), (size - 1, False)):
        Z = NystromKernel(X, order, centres, kernel, arrays, keep_bytes)
        assert Z.is_kept is is_kept
        rows = np.concatenate([arrays.to_host(block) for _, block in Z.blocks(10, 8990)])
        np.testing.assert_allclose(rows, expected[10:8990], rtol=1e-10)


@BOTH
def test_jitter_is_reported_for_the_folds_that_needed_it(arrays: Arrays) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    groups = np.repeat([0, 1, 2, 3], 10)
    # Centres of groups 0 and 1 coincide: only without one of the two the matrix is regular.
    X[10:20] = X[:10]
    problem = Problem(X, np.array([*range(20), 21, 32]), KernelSum.single(0.5, 3), 1e-3)
    folds = Direct(arrays).folds(problem, group_rows(groups))
    with pytest.warns(LinAlgWarning, match=r"normal equation without group [23]") as said:
        jitter = folds.held_out_scores(np.ones((40, 1))).jitter
    assert (jitter > 0).tolist() == [False, False, True, True]
    assert ["group 2" in str(w.message) or "group 3" in str(w.message) for w in said] == [True] * 2


@BOTH
@pytest.mark.parametrize(("at_once", "named"), [(1, "group 2"), (2, "groups 2 and 5")])
def test_centres_that_all_lie_in_groups_left_out_are_refused(
    arrays: Arrays, at_once: int, named: str
) -> None:
    X = np.random.default_rng(0).standard_normal((40, 3))
    groups = np.arange(40) % 8
    centres = np.flatnonzero(groups == 2)
    if at_once == 2:
        centres = np.flatnonzero(np.isin(groups, [2, 5]))
    problem = Problem(X, centres, KernelSum.single(1.0, 3), 1.0)
    with pytest.raises(InputError, match=f"all centres lie in {named}; raise `n_centres`"):
        Direct(arrays).model(problem, group_rows(groups), at_once)


def test_pairs_are_factored_in_few_batches_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, ...]] = []
    real = torch.linalg.cholesky_ex

    def counting(A: torch.Tensor, **options: Any) -> Any:
        counted.append(tuple(A.shape))
        return real(A, **options)

    groups = np.repeat(np.arange(7), [6, 9, 4, 8, 7, 5, 12])
    X = np.random.default_rng(5).standard_normal((len(groups), 5))
    problem = Problem(X, None, KernelSum.single(0.5, 5), 0.1)
    model = Direct(TORCH).model(problem, group_rows(groups), 2)
    assert isinstance(model, AllRows)
    targets = model.targets(np.ones((len(X), 2)))
    monkeypatch.setattr(torch.linalg, "cholesky_ex", counting)
    targets.inner(range(7))
    # 7 x 6 / 2 pairs of up to 12 + 9 rows, at once.
    assert counted == [(21, 21, 21)]


@pytest.mark.parametrize("solver", ["direct", "direct in torch", "iterative"])
@pytest.mark.parametrize("refitted", [False, True])
def test_the_classifier_gives_the_falkon_librarys_scores(
    solver: str, refitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if solver == "direct in torch":
        monkeypatch.setattr(solvers, "NUMPY", TORCH)
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
        "balanced": False,
        "solver": solver.partition(" ")[0],
        "tolerance": 1e-10,
    }
    if not refitted:
        # The library took penalty x 550 training rows.
        head = Chosen(penalty=penalty * 550 / len(X), **params)
        held_out = head.held_out(X, y, group_rows(groups))
        np.testing.assert_allclose(held_out.scores, expected, atol=1e-6)
        assert (held_out.jitter == 0).all()
        return
    for group in np.unique(groups):
        train = np.flatnonzero(groups != group)
        head = Chosen(penalty=penalty, **params)
        head.chosen = np.searchsorted(train, centres[groups[centres] != group])
        assert len(train) == 550
        scores = head.fit(X[train], y[train]).class_scores(X[groups == group])
        np.testing.assert_allclose(scores, expected[groups == group], atol=1e-6)


def test_folds_of_a_fused_classifier_are_refits_of_views_normalised_by_themselves() -> None:
    rng = np.random.default_rng(3)
    device = rng.permutation(np.repeat(np.arange(8), rng.integers(4, 12, size=8)))
    y: NDArray[np.str_] = np.array(["a", "b"])[device % 2]
    X: Array = rng.standard_normal((2, 6))[device % 2] + rng.standard_normal((len(device), 6))
    views: dict[str, Any] = {"view_sizes": (2, 3, 1), "view_weights": (0.4, 0.6, 0.0)}
    head = FalkonClassifier((0.6, 0.9, 0.1), 1e-3, balanced=False, **views)
    parts = np.split(X, [2, 5], axis=1)
    unit = np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], axis=1)
    kernel = KernelSum((0.6, 0.9, 0.1), (0.4, 0.6, 0.0), (2, 3, 1))
    Y = np.where(y[:, None] == np.array(["a", "b"]), 1.0, -1.0)
    expected = refit(unit, Y, device, None, kernel, 1e-3 * len(X))
    scores = leave_one_group_out(head, X, y, device).scores
    np.testing.assert_allclose(scores, expected, atol=1e-8)

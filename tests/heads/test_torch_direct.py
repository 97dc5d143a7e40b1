"""The direct solver in torch against NumPy's and against refitting: same scores, jitter, errors.

On torch's processor device the code is the one that a GPU runs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_cases import Array, Case, Ints, cases, naive_kernel, refit
from scipy.linalg import LinAlgWarning
from toptune.heads.falkon.closed_form import AllRowsFolds, NystromFolds
from toptune.heads.falkon.direct import Problem, solve_all_rows, solve_nystrom
from toptune.heads.falkon.pairs import AllRowsPairs, NystromPairs
from toptune.heads.falkon.torch_direct import TorchDirect
from toptune.heads.falkon.torch_direct import labelling_losses as torch_losses
from toptune.heads.falkon.torch_folds import TorchSystems
from torch import Tensor

from toptune.errors import InputError, ToptuneError
from toptune.evaluation.evaluate import Units, shuffles
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads import nested
from toptune.heads.falkon import solvers, torch_algebra, torch_folds
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.falkon.tuning import tune_falkon
from toptune.heads.nested import NestedScores, Shuffled
from toptune.heads.rows import group_rows
from toptune.heads.selection import labelling_losses, unit_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CPU = torch.device("cpu")
# NumPy's, whatever a test puts in its place.
DIRECT = solvers.Direct
CANDIDATES: tuple[dict[str, Any], ...] = (
    {"width": 0.7, "penalty": 1e-2},
    {"width": 0.7, "penalty": 1e-1},
    {"width": 1.5, "penalty": 1e-2},
)


@pytest.fixture
def on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the direct solver compute in torch, wherever it would compute."""
    monkeypatch.setattr(solvers, "Direct", lambda: TorchDirect("cpu"))


@pytest.fixture(params=["batched", "one by one"])
def any_batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "one by one":
        monkeypatch.setattr(torch_algebra, "BATCHED_UP_TO", 0)


def some_centres(case: Case, n_groups: int) -> Ints:
    """Rows that are well apart and in more groups than a fold leaves out."""
    centres = case.rng.permutation(len(case.X))[: case.rng.integers(3, max(4, len(case.X)))]
    assume(len(set(case.groups[centres])) > n_groups)
    C = case.X[centres]
    assume(np.linalg.cond(naive_kernel(C, C, case.kernel)) < 1e4)
    return np.asarray(centres, np.int64)


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from([1e-2, 1.0]))
def test_folds_with_all_rows_are_numpys_and_refitted_ones(case: Case, ridge: float) -> None:
    grouping = group_rows(case.groups)
    how: Any = {"kernel": case.kernel, "ridge": ridge}
    found = TorchSystems(CPU).all_rows(case.X, grouping, **how).held_out_scores(case.Y)
    expected = AllRowsFolds.factor(case.X, grouping, **how).held_out_scores(case.Y)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.jitter, expected.jitter)
    naive = refit(case.X, case.Y, case.groups, None, case.kernel, ridge)
    np.testing.assert_allclose(found.scores, naive, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from([0.1, 1.0]), st.booleans())
def test_nystrom_folds_are_numpys_and_refitted_ones(case: Case, ridge: float, keep: bool) -> None:
    centres = some_centres(case, 1)
    grouping = group_rows(case.groups)
    how: Any = {"kernel": case.kernel, "ridge": ridge, "keep_bytes": 10**9 if keep else 0}
    found = TorchSystems(CPU).nystrom(case.X, grouping, centres, **how).held_out_scores(case.Y)
    expected = NystromFolds.factor(case.X, grouping, centres, **how).held_out_scores(case.Y)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9, atol=1e-9)
    assert (found.jitter == 0).all()
    naive = refit(case.X, case.Y, case.groups, centres, case.kernel, ridge)
    np.testing.assert_allclose(found.scores, naive, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(cases, st.booleans(), st.data())
def test_inner_folds_are_numpys(case: Case, nystrom: bool, data: st.DataObject) -> None:
    grouping = group_rows(case.groups)
    n_groups = len(grouping.groups)
    assume(n_groups > 2)
    how: Any = {"kernel": case.kernel, "ridge": 0.1}
    peer: AllRowsPairs | NystromPairs
    if nystrom:
        centres = some_centres(case, 2)
        how["groups_at_once"] = 2
        ours: Any = TorchSystems(CPU).nystrom(case.X, grouping, centres, **how)
        peer = NystromPairs(NystromFolds.factor(case.X, grouping, centres, **how))
    else:
        ours = TorchSystems(CPU).all_rows(case.X, grouping, **how)
        rows = case.X[grouping.order]
        peer = AllRowsPairs.factor(
            lambda: case.kernel.gram_lower(rows) + 0.1 * np.eye(len(rows)), grouping
        )
    start = data.draw(st.integers(0, n_groups - 1))
    block = range(start, data.draw(st.integers(start + 1, n_groups)))
    expected = peer.targets(case.Y).inner(block)
    found = ours.targets(case.Y).inner(block)
    assert found.dtype == torch.float32
    # Both were float64 until they were kept; NaN in each group's own rows.
    np.testing.assert_allclose(found.numpy(), expected, rtol=3e-7, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(cases, st.booleans())
def test_one_model_is_numpys(case: Case, nystrom: bool) -> None:
    how: Any = {"kernel": case.kernel, "ridge": 0.1}
    centres = some_centres(case, 1) if nystrom else None
    found = TorchDirect("cpu").solve(Problem(case.X, centres, **how), case.Y)
    expected = (
        solve_all_rows(case.X, case.Y, **how)
        if centres is None
        else solve_nystrom(case.X, centres, case.Y, **how)
    )
    np.testing.assert_allclose(found.dual_coef, expected.dual_coef, rtol=1e-8, atol=1e-8)
    assert (found.jitter, found.n_iterations) == (0, 0)


# --- the whole procedure: tuning, permutations, fused views


def devices(seed: int, n_classes: int = 2) -> tuple[Array, Any, Ints]:
    """Unequal devices whose rows come in any order; labels go round."""
    rng = np.random.default_rng(seed)
    device = rng.permutation(np.repeat(np.arange(7), [6, 9, 4, 8, 7, 5, 12]))
    X = rng.standard_normal((len(device), 5)) + 0.7 * (device % n_classes)[:, None]
    return X, np.array([f"c{d % n_classes}" for d in device]), device.astype(np.int64)


def both_ways(
    monkeypatch: pytest.MonkeyPatch, head: FalkonClassifier, candidates: Any, n_shuffles: int
) -> list[tuple[NestedScores, Shuffled]]:
    """Tune in NumPy, then in torch."""
    X, y, device = devices(3, n_classes=3)
    units = Units.of(device, y)
    drawn = shuffles(units, n_shuffles, 0)
    assert drawn is not None
    results = []
    for make in (DIRECT, lambda: TorchDirect("cpu")):
        monkeypatch.setattr(solvers, "Direct", make)
        grouping = group_rows(device)
        results.append(
            tune_falkon(
                head, X, y, grouping, units.of_row, candidates, shuffled=drawn.labels[:n_shuffles]
            )
        )
    return results


@pytest.mark.usefixtures("any_batches")
@pytest.mark.parametrize("n_candidates", [1, 3])
@pytest.mark.parametrize(
    ("n_centres", "view_sizes"), [(None, None), (None, (2, 3)), (30, None), (30, (2, 3))]
)
def test_tuning_and_shuffled_labels_are_numpys(
    monkeypatch: pytest.MonkeyPatch,
    n_centres: int | None,
    view_sizes: tuple[int, ...] | None,
    n_candidates: int,
) -> None:
    head = FalkonClassifier(n_centres=n_centres, view_sizes=view_sizes, width=0.8, penalty=1e-2)
    candidates: Any = CANDIDATES[:n_candidates]
    if view_sizes:
        weights = [(0.25, 0.75), (0.6, 0.4), (0.5, 0.5)]
        candidates = [{**c, "view_weights": w} for c, w in zip(candidates, weights, strict=False)]
    (expected, told_numpy), (found, told) = both_ways(monkeypatch, head, candidates, 20)
    np.testing.assert_allclose(found.final_scores, expected.final_scores, atol=1e-9)
    np.testing.assert_allclose(found.final_loss, expected.final_loss, atol=1e-9)
    np.testing.assert_allclose(found.loss, expected.loss, atol=2e-6)
    np.testing.assert_array_equal(found.choice, expected.choice)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-9)
    np.testing.assert_allclose(found.inner_scores, expected.inner_scores, atol=2e-6)
    np.testing.assert_array_equal(found.jitter, expected.jitter)
    np.testing.assert_array_equal(told.predicted, told_numpy.predicted)
    np.testing.assert_allclose(told.mean_scores, told_numpy.mean_scores, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.integers(1, 9), min_size=4, max_size=6),
    n_centres=st.sampled_from([None, 12]),
    fused=st.booleans(),
)
def test_any_devices_under_any_labels_are_told_as_by_numpy(
    seed: int, sizes: list[int], n_centres: int | None, fused: bool
) -> None:
    rng = np.random.default_rng(seed)
    device = rng.permutation(np.repeat(np.arange(len(sizes)), np.array(sizes) + 3))
    X = rng.standard_normal((len(device), 6)) + 0.5 * (device % 2)[:, None]
    head = FalkonClassifier(n_centres=n_centres, view_sizes=(2, 4) if fused else None)
    drawn = device[head.problem(X, device % 2).named_centres]
    assume(len(set(drawn.tolist())) > 2)
    labels = np.stack([rng.permutation(np.arange(len(sizes)) % 2) for _ in range(9)])
    results = []
    for make in (DIRECT, lambda: TorchDirect("cpu")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(solvers, "Direct", make)
            how = (group_rows(device), device, CANDIDATES)
            results.append(tune_falkon(head, X, device % 2, *how, shuffled=labels))
    (expected, told_numpy), (found, told) = results
    assert (expected.jitter == 0).all()
    assert (found.jitter == 0).all()
    np.testing.assert_allclose(found.final_scores, expected.final_scores, atol=1e-9)
    np.testing.assert_allclose(found.loss, expected.loss, atol=2e-6)
    np.testing.assert_allclose(found.final_loss, expected.final_loss, atol=1e-9)
    # Nearer to a tie than float32 rounds, either candidate may be the better one.
    clear = np.diff(np.sort(expected.loss, axis=0), axis=0).min(axis=0) > 1e-5
    np.testing.assert_array_equal(found.choice[clear], expected.choice[clear])
    rows = clear[device]
    np.testing.assert_allclose(found.scores[rows], expected.scores[rows], atol=1e-9)
    np.testing.assert_array_equal(told.predicted[0, rows], told_numpy.predicted[0, rows])
    assert (told.predicted == told_numpy.predicted).mean() > 0.95


def test_losses_of_many_labellings_are_numpys() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(5), [3, 9, 1, 4, 6])
    logits = (4 * rng.standard_normal((4, len(unit), 30))).astype(np.float32)
    # Ties, which are no errors.
    logits[1] = logits[0]
    codes = rng.integers(0, 4, (len(unit), 30))
    weights = unit_weights(unit)
    found = torch_losses(
        torch.from_numpy(logits.copy()), torch.from_numpy(codes), torch.from_numpy(weights)
    )
    np.testing.assert_allclose(found.numpy(), labelling_losses(logits, codes, weights), rtol=1e-6)


@pytest.mark.usefixtures("on_torch")
def test_folds_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, device = devices(2)
    args = (FalkonClassifier(), X, y, group_rows(device), device, CANDIDATES)
    at_once, _ = tune_falkon(*args)
    monkeypatch.setattr(nested, "_INNER_BYTES", 2 * 4 * len(X) * 2)
    in_blocks, _ = tune_falkon(*args)
    np.testing.assert_allclose(at_once.loss, in_blocks.loss, atol=1e-6)
    np.testing.assert_array_equal(at_once.scores, in_blocks.scores)


@pytest.mark.usefixtures("on_torch")
@pytest.mark.parametrize("n_centres", [None, 30])
def test_nothing_of_the_outer_group_reaches_its_fold(n_centres: int | None) -> None:
    X, y, device = devices(3, n_classes=3)
    head = FalkonClassifier(n_centres=n_centres)
    before, _ = tune_falkon(head, X, y, group_rows(device), device, CANDIDATES)
    for group in (0, 4):
        rows = device == group
        changed, labels = X.copy(), y.copy()
        changed[rows] = np.random.default_rng(9).standard_normal((rows.sum(), 5)) * 7
        labels[rows] = "c2" if y[rows][0] == "c0" else "c0"
        after, _ = tune_falkon(head, changed, labels, group_rows(device), device, CANDIDATES)
        np.testing.assert_allclose(after.loss[:, group], before.loss[:, group], atol=2e-6)
        np.testing.assert_allclose(after.inner_scores[group], before.inner_scores[group], atol=2e-6)


@pytest.mark.usefixtures("on_torch")
@pytest.mark.parametrize("n_centres", [None, 30])
def test_a_fitted_head_scores_as_numpys(n_centres: int | None) -> None:
    X, y, _ = devices(4)
    ours = FalkonClassifier(n_centres=n_centres, penalty=1e-2).fit(X, y)
    with pytest.MonkeyPatch.context() as undo:
        undo.setattr(solvers, "Direct", DIRECT)
        numpys = FalkonClassifier(n_centres=n_centres, penalty=1e-2).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(X), numpys.decision_function(X), atol=1e-9)
    assert ours.dual_coef_.flags.c_contiguous


# --- jitter, errors, memory


def test_jitter_is_reported_for_the_folds_that_needed_it() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    # Centres of groups 0 and 1 coincide: only without one of the two the matrix is regular.
    X[10:20] = X[:10]
    systems = TorchSystems(CPU).nystrom(
        X,
        group_rows(np.repeat([0, 1, 2, 3], 10)),
        np.array([*range(20), 21, 32]),
        kernel=KernelSum.single(0.5, 3),
        ridge=1e-3,
    )
    with pytest.warns(LinAlgWarning) as said:
        jitter = systems.held_out_scores(np.ones((40, 1))).jitter
    assert (jitter > 0).tolist() == [False, False, True, True]
    assert all(re.search("normal equation without group [23]", str(w.message)) for w in said)


def test_centres_that_all_lie_in_one_group_are_refused() -> None:
    X, _, device = devices(0)
    centres = np.flatnonzero(device == 2)
    with pytest.raises(InputError, match="all centres lie in group 2; raise n_centres"):
        TorchSystems(CPU).nystrom(
            X, group_rows(device), centres, kernel=KernelSum.single(1, 5), ridge=1.0
        )


@pytest.mark.usefixtures("on_torch")
@pytest.mark.parametrize("n_centres", [None, 30])
@pytest.mark.parametrize("step", ["fit", "folds", "tuning"])
def test_too_little_memory_is_one_line_with_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, n_centres: int | None, step: str
) -> None:
    X, y, device = devices(1)
    head = FalkonClassifier(n_centres=n_centres)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.80 GiB")

    monkeypatch.setattr(torch.linalg, "cholesky_ex", full)
    steps: dict[str, Callable[[], object]] = {
        "fit": lambda: head.fit(X, y),
        "folds": lambda: leave_one_group_out(head, X, y, device),
        "tuning": lambda: tune_falkon(head, X, y, group_rows(device), device, CANDIDATES),
    }
    with pytest.raises(ToptuneError, match=r"not fit into the memory of cpu .*--n-centres.*--dev"):
        steps[step]()


def test_pairs_are_factored_in_few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, ...]] = []
    real = torch.linalg.cholesky_ex

    def counting(A: Tensor, **options: Any) -> Any:
        counted.append(tuple(A.shape))
        return real(A, **options)

    case_X, y, device = devices(5)
    systems = TorchDirect("cpu").folds(
        FalkonClassifier(penalty=1e-2).problem(case_X, y), group_rows(device)
    )
    assert isinstance(systems, torch_folds.AllRowsSystems)
    targets = systems.targets(np.ones((len(y), 2)))
    monkeypatch.setattr(torch.linalg, "cholesky_ex", counting)
    targets.inner(range(7))
    # 7 x 6 / 2 pairs of up to 12 + 9 rows, at once.
    assert counted == [(21, 21, 21)]


# --- where it computes


def test_the_device_decides_and_is_never_changed_silently() -> None:
    X, y, _ = devices(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(solvers.solver_of(FalkonClassifier()), solvers.Direct)
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
    args = (X.astype(np.float32), y, group_rows(device), device)
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

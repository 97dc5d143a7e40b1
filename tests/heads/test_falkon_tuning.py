"""Tuning inside the folds, in NumPy and in torch, against refitting by its definition."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_cases import BOTH, LIBRARIES
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputError
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads.falkon import solvers, tuning
from toptune.heads.falkon.arrays import Arrays
from toptune.heads.falkon.classifier import SHARPNESS, FalkonClassifier
from toptune.heads.falkon.head import PENALTIES, WIDTHS, falkon_candidates, is_recommended
from toptune.heads.falkon.tuning import tune_falkon
from toptune.heads.nested import (
    SHARPENINGS,
    NestedScores,
    Shuffled,
    handicaps,
    labelling_losses,
    selection_loss,
    spread_rows,
    unit_weights,
)
from toptune.heads.rows import Grouping, LabelledRows, group_rows, l2_normalise_views

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CANDIDATES = (
    {"width": 0.7, "penalty": 1e-2},
    {"width": 0.3, "penalty": 1e-3},
    {"width": 1.5, "penalty": 1e-1},
)


class Data(NamedTuple):
    X: NDArray[np.float64]
    y: NDArray[Any]
    grouping: Grouping
    unit: NDArray[np.int64]

    @property
    def rows(self) -> LabelledRows:
        return LabelledRows(self.X, self.y, self.grouping, self.unit)


def tune(arrays: Arrays, *args: Any, **how: Any) -> tuple[NestedScores, Shuffled]:
    """Tune in an array library, wherever the classifier would compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvers, "NUMPY", arrays)
        return tune_falkon(*args, **how)


def make_data(seed: int, sizes: list[int], n_classes: int = 2, n_features: int = 5) -> Data:
    """Groups of unequal sizes, their rows in any order; labels go round."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    rng.shuffle(group)
    X = rng.standard_normal((len(group), n_features))
    X += group[:, None] % n_classes * 0.7
    y = np.array([f"c{g % n_classes}" for g in group])
    return Data(X, y, group_rows(group), group.astype(np.int64))


def centres_outlast_two_groups(head: FalkonClassifier, data: Data) -> bool:
    """Whether some centre is left whichever two groups are left out."""
    if head.n_centres is None:
        return True
    drawn = data.grouping.codes[head.problem(data.X, data.y).named_centres]
    return len(set(drawn.tolist())) > 2


def scores_without(
    head: FalkonClassifier, data: Data, left_out: set[int], rows: NDArray[np.int64], codes: Any
) -> NDArray[np.float64]:
    """Fit to the targets of the rows whose group is not left out, by the definition of DESIGN 3."""
    n, k = len(data.X), len(np.unique(codes))
    Y = np.where(codes[:, None] == np.arange(k), 1.0, -1.0)
    if head.balanced:
        # Every class sums to 0 over the rows that are trained on.
        own = codes[~np.isin(data.grouping.codes, list(left_out))]
        share = [np.mean(own == code) for code in range(k)]
        Y = np.full((n, k), -2 / k)
        for row, code in enumerate(codes):
            Y[row, code] = 2 / k * (1 / share[code] - 1) if share[code] else np.nan
    sizes = head.view_sizes or (data.X.shape[1],)
    weights = head.view_weights or (1 / len(sizes),) * len(sizes)
    normal = l2_normalise_views(data.X, sizes)
    width = head.width
    assert isinstance(width, float)

    def kernel(a: Any, b: Any) -> Any:
        total, start = 0.0, 0
        for size, weight in zip(sizes, weights, strict=True):
            x, z = a[:, start : start + size], b[:, start : start + size]
            squared = ((x[:, None] - z[None]) ** 2).sum(axis=2)
            for scale in head.scales:
                of_scale = np.exp(-squared / (2 * (scale * width) ** 2))
                total = total + weight / len(head.scales) * of_scale
            start += size
        return total

    train = ~np.isin(data.grouping.codes, list(left_out))
    ridge = head.penalty * n
    if head.n_centres is None:
        K = kernel(normal[train], normal[train])
        alpha = np.linalg.solve(K + ridge * np.eye(train.sum()), Y[train])
        return np.asarray(kernel(normal[rows], normal[train]) @ alpha)
    drawn = head.problem(data.X, data.y).named_centres
    C = normal[drawn[train[drawn]]]
    Z = kernel(normal[train], C)
    alpha = np.linalg.solve(Z.T @ Z + ridge * kernel(C, C), Z.T @ Y[train])
    return np.asarray(kernel(normal[rows], C) @ alpha)


def naive(head: FalkonClassifier, data: Data, candidates: Any) -> tuple[NestedScores, float]:
    """Do what `NestedScores` says, one fit after the other.

    Also given is how near it came to a tie, of two classes in a row or two candidates in a fold:
    what is nearer than the rounding of float32 may go either way.
    """
    classes, codes = np.unique(data.y, return_inverse=True)
    n_groups, n, k = len(data.grouping.groups), len(codes), len(classes)
    plain = np.empty((len(candidates), n, k))
    inner = np.full((len(candidates), n_groups, n, k), np.nan)
    for p, candidate in enumerate(candidates):
        tried = clone(head).set_params(**candidate)
        for g in range(n_groups):
            rows = data.grouping.rows(g)
            plain[p, rows] = scores_without(tried, data, {g}, rows, codes)
            for h in set(range(n_groups)) - {g}:
                rows = data.grouping.rows(h)
                inner[p, g, rows] = scores_without(tried, data, {g, h}, rows, codes)
    loss = np.array(
        [[selection_loss(s, codes, data.unit, SHARPNESS) for s in scores] for scores in inner]
    )
    final_loss = np.array([selection_loss(s, codes, data.unit, SHARPNESS) for s in plain])
    choice, final = loss.argmin(axis=0), int(final_loss.argmin())
    scores = plain[choice[data.grouping.codes], np.arange(n)]
    chosen_inner = inner[choice, np.arange(n_groups)]
    in_order = np.sort(inner, axis=3)
    between_classes = np.nanmin(in_order[..., -1] - in_order[..., -2])
    between_candidates = np.diff(np.sort(loss, axis=0), axis=0).min()
    nested_scores = NestedScores(
        loss, final_loss, choice, final, scores, chosen_inner, plain[final], np.zeros(n_groups)
    )
    return nested_scores, float(min(between_classes, between_candidates))


@BOTH
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.integers(1, 7), min_size=4, max_size=6),
    n_centres=st.sampled_from([None, 9]),
    fused=st.booleans(),
    balanced=st.booleans(),
)
def test_tuning_in_closed_form_equals_refitting(
    arrays: Arrays,
    seed: int,
    sizes: list[int],
    n_centres: int | None,
    fused: bool,
    balanced: bool,
) -> None:
    data = make_data(seed, [size + 2 for size in sizes])
    views = (2, 3) if fused else None
    head = FalkonClassifier(n_centres=n_centres, view_sizes=views, balanced=balanced)
    candidates: Any = CANDIDATES
    if fused:
        weights = [(0.25, 0.75), (1.0, 0.0), (0.5, 0.5)]
        scales = [(1.0,), (1.0, 2.0), (1.0,)]
        candidates = [
            {**c, "view_weights": w, "scales": s}
            for c, w, s in zip(CANDIDATES, weights, scales, strict=True)
        ]
    assume(centres_outlast_two_groups(head, data))
    found, _ = tune(arrays, head, data.rows, candidates)
    expected, nearest_tie = naive(head, data, candidates)
    assume(nearest_tie > 1e-5)
    assert found.jitter.max() == 0
    np.testing.assert_allclose(found.final_loss, expected.final_loss, atol=1e-8)
    np.testing.assert_allclose(found.final_scores, expected.final_scores, atol=1e-8)
    # Inner scores, and the losses made of them, are kept as float32.
    np.testing.assert_allclose(found.loss, expected.loss, atol=2e-6)
    np.testing.assert_array_equal(found.choice, expected.choice)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-8)
    np.testing.assert_allclose(found.inner_scores, expected.inner_scores, atol=2e-6)


def test_centres_that_all_lie_in_two_groups_are_refused_before_anything_is_computed() -> None:
    data = make_data(9, [11, 13, 9])
    head = FalkonClassifier(width=0.6, n_centres=2)
    drawn = data.grouping.codes[head.problem(data.X, data.y).named_centres]
    assert len(set(drawn.tolist())) == 2
    first, second = sorted(set(drawn.tolist()))
    with pytest.raises(InputError, match=f"lie in groups {first} and {second}; raise `n_centres`"):
        tune_falkon(head, data.rows, CANDIDATES)


@BOTH
@pytest.mark.parametrize("n_centres", [None, 25])
def test_a_single_candidate_gives_the_plain_folds(arrays: Arrays, n_centres: int | None) -> None:
    data = make_data(1, [9, 4, 6, 7, 5])
    head = FalkonClassifier(width=0.8, penalty=1e-3, n_centres=n_centres)
    found, told = tune(arrays, head, data.rows, [{}])
    plain = leave_one_group_out(head, data.X, data.y, data.grouping.codes)
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-9)
    np.testing.assert_allclose(found.final_scores, plain.scores, atol=1e-9)
    assert (plain.classes[told.predicted[0]] == plain.predictions).all()


@BOTH
@pytest.mark.parametrize("candidates", [CANDIDATES, CANDIDATES[:1]])
@pytest.mark.parametrize("n_centres", [None, 25])
def test_shuffled_labels_go_through_the_whole_procedure(
    arrays: Arrays, n_centres: int | None, candidates: Any
) -> None:
    data = make_data(5, [6, 9, 4, 8, 7, 5], n_classes=3)
    head = FalkonClassifier(n_centres=n_centres)
    rng = np.random.default_rng(0)
    observed = np.arange(6) % 3
    shuffled = np.stack([rng.permutation(observed) for _ in range(7)])
    _, told = tune(arrays, head, data.rows, candidates, shuffled=shuffled)
    for line, labels in enumerate([observed, *shuffled]):
        relabelled = data.rows._replace(y=np.array(["c0", "c1", "c2"])[labels[data.unit]])
        again, alone = tune(arrays, head, relabelled, candidates)
        np.testing.assert_array_equal(told.predicted[line], alone.predicted[0])
        np.testing.assert_array_equal(told.predicted[line], again.scores.argmax(axis=1))
        np.testing.assert_allclose(told.mean_scores[line], alone.mean_scores[0], atol=1e-5)
        for unit in range(6):
            mean = again.scores[data.unit == unit].mean(axis=0)
            np.testing.assert_allclose(told.mean_scores[line, unit], mean, atol=1e-5)


@BOTH
@pytest.mark.parametrize("n_centres", [None, 25])
def test_nothing_of_the_outer_group_reaches_its_fold(arrays: Arrays, n_centres: int | None) -> None:
    data = make_data(3, [6, 9, 4, 8, 7, 5], n_classes=3)
    head = FalkonClassifier(n_centres=n_centres)
    before, _ = tune(arrays, head, data.rows, CANDIDATES)
    for group in range(6):
        rows = data.grouping.rows(group)
        X, y = data.X.copy(), data.y.copy()
        X[rows] = np.random.default_rng(9).standard_normal(X[rows].shape) * 7
        y[rows] = "c2" if y[rows[0]] == "c0" else "c0"
        after, _ = tune(arrays, head, LabelledRows(X, y, data.grouping, data.unit), CANDIDATES)
        # Where the outer group's rows are not looked at, what is left of them is rounding.
        np.testing.assert_allclose(after.loss[:, group], before.loss[:, group], atol=2e-6)
        assert after.choice[group] == before.choice[group]
        np.testing.assert_allclose(after.inner_scores[group], before.inner_scores[group], atol=2e-6)


@pytest.mark.parametrize(("n_centres", "fused"), [(None, False), (100, False), (None, True)])
def test_features_that_only_identify_the_device_score_at_chance(
    n_centres: int | None, fused: bool
) -> None:
    rng = np.random.default_rng(0)
    n_devices, n_windows = 16, 8
    group = np.repeat(np.arange(n_devices), n_windows)
    X = np.eye(n_devices)[group] + 0.02 * rng.random((len(group), n_devices))
    sizes = (7, 9) if fused else (n_devices,)
    head = FalkonClassifier(n_centres=n_centres, view_sizes=sizes)
    accuracies = []
    for seed in range(12):
        labels = np.random.default_rng(seed).permutation(np.arange(n_devices) % 4)
        y = labels[group]
        found, _ = tune_falkon(
            head, LabelledRows(X, y, group_rows(group), group), falkon_candidates(len(sizes))
        )
        accuracies.append((found.scores.argmax(axis=1) == y).mean())
    # Whatever leaks lets 16 of 16 be right; chance is 4. Of 192 devices, three SDs are 18.
    chance, three_sd = 0.25, 3 * np.sqrt(0.25 * 0.75 / (12 * n_devices))
    assert abs(np.mean(accuracies) - chance) < three_sd


@BOTH
def test_folds_in_blocks_give_the_same(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(2, [3, 5, 4, 6, 2])
    args = (FalkonClassifier(), data.rows, CANDIDATES)
    at_once, _ = tune(arrays, *args)
    monkeypatch.setattr(tuning, "_INNER_BYTES", 2 * 4 * len(data.X) * 2)
    in_blocks, _ = tune(arrays, *args)
    np.testing.assert_allclose(at_once.loss, in_blocks.loss, atol=1e-6)
    np.testing.assert_array_equal(at_once.scores, in_blocks.scores)


@BOTH
def test_kernels_that_do_not_fit_are_evaluated_again(
    arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(2, [3, 5, 4, 6, 2])
    head = FalkonClassifier(view_sizes=(2, 3))
    candidates = falkon_candidates(2, penalties=(1e-3, 1e-2))
    args = (head, data.rows, candidates)
    kept, _ = tune(arrays, *args)
    monkeypatch.setattr(Arrays, "kept_bytes", lambda _: 0)
    anew, _ = tune(arrays, *args)
    np.testing.assert_allclose(kept.final_scores, anew.final_scores, atol=1e-10)


def test_candidates_are_every_combination_of_what_is_given() -> None:
    one = falkon_candidates(1)
    assert len(one) == len(WIDTHS) * len(PENALTIES)
    assert all(set(c) == {"width", "penalty"} for c in one)
    two = falkon_candidates(2, widths=(0.4,), penalties=(1e-5, 1e-4))
    assert [(c["width"], c["penalty"], c["view_weights"]) for c in two] == [
        (0.4, 1e-5, (0.5, 0.5)),
        (0.4, 1e-4, (0.5, 0.5)),
    ]
    scales = falkon_candidates(1, scales=((1,), (1, 2)))
    assert [c["scales"] for c in scales] == [(1.0,)] * len(one) + [(1.0, 2.0)] * len(one)
    assert [{k: c[k] for k in ("width", "penalty")} for c in scales] == [*one, *one]
    fixed = falkon_candidates(2, widths=(1,), penalties=(1,), view_weights=((0.3, 0.7),))
    assert fixed == ({"width": 1.0, "penalty": 1.0, "view_weights": (0.3, 0.7)},)


@pytest.mark.parametrize("n_views", [1, 2, 3, 6, 9])
def test_the_recommended_setting_comes_first_and_has_no_handicap(n_views: int) -> None:
    candidates = falkon_candidates(n_views)
    assert (candidates[0]["width"], candidates[0]["penalty"]) == (0.5, 1e-5)
    assert len({tuple(c.items()) for c in candidates}) == len(candidates)
    of_others = 1 / np.sqrt(30)
    found = handicaps([is_recommended(one) for one in candidates], 30)
    assert found.tolist() == pytest.approx([0.0] + [of_others] * (len(candidates) - 1))
    if n_views == 1:
        return
    weights = np.array([c["view_weights"] for c in candidates])
    np.testing.assert_allclose(weights[0], 1 / n_views)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    # Each view can be left out.
    assert (weights == 0).sum() == n_views
    assert (weights == 0).any(axis=0).all()


def test_settings_that_lack_the_recommended_one_compete_as_equals() -> None:
    candidates = falkon_candidates(2, penalties=(1e-4, 1e-3))
    assert handicaps([is_recommended(one) for one in candidates], 30).tolist() == [0, 0]


@BOTH
def test_a_handicap_is_what_a_setting_must_be_better_by(arrays: Arrays) -> None:
    data = make_data(5, [6, 9, 4, 8, 7, 5], n_classes=3)
    free, _ = tune(arrays, FalkonClassifier(), data.rows, CANDIDATES)
    for first in range(len(CANDIDATES)):
        lead = free.loss[first] - np.delete(free.loss, first, axis=0).min(axis=0)
        for margin in (np.abs(lead).min() / 2, np.median(np.abs(lead)), np.abs(lead).max() + 1):
            handicap = np.full(len(CANDIDATES), margin)
            handicap[first] = 0
            found, _ = tune(arrays, FalkonClassifier(), data.rows, CANDIDATES, handicap=handicap)
            np.testing.assert_array_equal(found.choice == first, lead < margin)
            expected = (found.final_loss + handicap).argmin()
            assert found.final_choice == expected
            alone, _ = tune(arrays, FalkonClassifier(), data.rows, [CANDIDATES[expected]])
            np.testing.assert_allclose(found.final_scores, alone.final_scores, atol=1e-9)


def test_weights_of_another_number_of_views_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(0.5, 0.5\) must have one value for each feature set"):
        falkon_candidates(1, view_weights=[(1.0,), (0.5, 0.5)])


def test_bad_arguments_are_refused_before_anything_is_computed() -> None:
    data = make_data(0, [4, 4, 4])
    args = (data.rows,)
    with pytest.raises(InputError, match="got iterative and 3"):
        tune_falkon(FalkonClassifier(solver="iterative"), *args, CANDIDATES)
    with pytest.raises(InputError, match="no candidate"):
        tune_falkon(FalkonClassifier(), *args, [])
    with pytest.raises(InputError, match="penalty must be above 0"):
        tune_falkon(FalkonClassifier(), *args, [*CANDIDATES, {"penalty": -1.0}])
    two = make_data(0, [4, 4])
    with pytest.raises(InputError, match="got direct and 2"):
        tune_falkon(FalkonClassifier(), two.rows, CANDIDATES)


def test_the_loss_is_the_surprise_of_spread_windows_every_unit_once() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat([0, 1, 2], [40, 3, 16])
    codes = rng.integers(0, 3, len(unit))
    scores = rng.standard_normal((len(unit), 3))
    scores[41] = np.nan
    by_factor, errors = [], []
    for factor in SHARPENINGS:
        expected = []
        for u in range(3):
            rows = [i for i in range(len(unit)) if unit[i] == u and not np.isnan(scores[i, 0])]
            count = min(16, len(rows))
            rows = [rows[j * len(rows) // count] for j in range(count)]
            p = np.exp(2 * factor * scores[rows])
            p /= p.sum(axis=1, keepdims=True)
            expected.append(-np.log(p[np.arange(count), codes[rows]]).mean())
            errors.append(np.mean(scores[rows].argmax(axis=1) != codes[rows]))
        by_factor.append(np.mean(expected))
    both = np.mean(errors) + 0.5 * min(by_factor)
    assert selection_loss(scores, codes, unit, 2.0) == pytest.approx(both)
    # Louder or softer scores say the same.
    assert selection_loss(4 * scores, codes, unit, 0.5) == pytest.approx(both)
    assert len(spread_rows(unit)) == 16 + 3 + 16
    assert np.isnan(selection_loss(np.full((4, 2), np.nan), codes[:4], unit[:4]))


def test_losses_of_many_labellings_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(5), [3, 9, 1, 4, 6])
    logits = (4 * rng.standard_normal((4, len(unit), 30))).astype(np.float32)
    # Ties, which are no errors.
    logits[1] = logits[0]
    codes = rng.integers(0, 4, (len(unit), 30))
    expected = [selection_loss(logits[:, :, r].T, codes[:, r], unit) for r in range(codes.shape[1])]
    for arrays in LIBRARIES:
        as_is = arrays.as_is
        weights = as_is(unit_weights(unit))
        found = labelling_losses(as_is(logits.copy()), as_is(codes), weights, arrays.xp)
        np.testing.assert_allclose(arrays.to_host(found), expected, rtol=1e-5)

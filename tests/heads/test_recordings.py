"""Recordings as sets of windows: the classifier, its folds and shuffles against refitting."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

from toptune.errors import InputError
from toptune.evaluation.evaluate import Units, evaluate
from toptune.evaluation.folds import leave_one_group_out
from toptune.evaluation.permutations import Permutations, device_accuracies
from toptune.heads import head_for, head_of
from toptune.heads.base import Candidate
from toptune.heads.nested import HANDICAP, NestedScores, handicaps, selection_loss
from toptune.heads.recordings.classifier import RecordingsClassifier
from toptune.heads.recordings.folds import tune_recordings
from toptune.heads.recordings.head import RIDGES, WIDTHS, RecordingsHead
from toptune.heads.rows import LabelledRows, group_rows, l2_normalise_views

CANDIDATES: tuple[Candidate, ...] = (
    {"width": 0.7, "ridge": 0.01},
    {"width": 0.3, "ridge": 0.1},
    {"width": 0.7, "ridge": 0.001},
)


def make_rows(
    seed: int, units: list[tuple[int, int, int]], n_features: int = 5, distance: float = 0.7
) -> LabelledRows:
    """Windows of units, each given as (group, class, windows), in any order."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(len(units)), [n for _, _, n in units])
    rng.shuffle(unit)
    group, code, _ = np.array(units).T
    X = rng.standard_normal((len(unit), n_features))
    X[np.arange(len(X)), code[unit]] += distance
    X += 0.5 * rng.standard_normal((len(units), n_features))[unit]
    return LabelledRows(X, np.array(list("abcd"))[code[unit]], group_rows(group[unit]), unit)


# (group, class, windows) of each unit. In the last two, leaving out one or two groups leaves
# nothing of a class.
DESIGNS = {
    "unequal groups": [(0, 0, 3), (1, 1, 5), (2, 0, 1), (3, 1, 2), (4, 0, 4), (5, 1, 3)],
    "devices with several labels": [
        (0, 0, 3), (0, 1, 2), (1, 0, 2), (1, 1, 4), (2, 0, 3), (2, 1, 3), (3, 0, 1), (3, 1, 2),
    ],
    "plates of devices": [
        (0, 0, 2), (0, 1, 3), (0, 2, 2), (1, 0, 1), (1, 1, 2), (2, 2, 3), (2, 0, 2), (3, 1, 2),
    ],
    "a class that two groups have": [
        (0, 0, 3), (1, 0, 2), (2, 1, 3), (3, 1, 2), (4, 2, 3), (5, 2, 2), (6, 1, 2),
    ],
    "a class that one group has": [(0, 0, 3), (1, 0, 2), (2, 1, 3), (3, 1, 2), (4, 2, 3)],
}  # fmt: skip


# --- by the definition


def kernel_between(A: Any, B: Any, head: RecordingsClassifier) -> float:
    """Mean over all pairs of windows of two recordings, views summed with their weights."""
    sizes = head.view_sizes or (A.shape[1],)
    weights = head.view_weights or (1 / len(sizes),) * len(sizes)
    widths = head.width if isinstance(head.width, tuple) else (head.width,) * len(sizes)
    A, B = l2_normalise_views(A, sizes), l2_normalise_views(B, sizes)
    total, start = 0.0, 0
    for size, weight, width in zip(sizes, weights, widths, strict=True):
        pairs = [
            np.exp(-((a[start : start + size] - b[start : start + size]) ** 2).sum() / 2 / width**2)
            for a in A
            for b in B
        ]
        total += weight * float(np.mean(pairs))
        start += size
    return total


def spread(rows: list[int], most: int | None) -> list[int]:
    count = min(most or len(rows), len(rows))
    return [rows[j * len(rows) // count] for j in range(count)]


class Refitted:
    """All kernels of one candidate, and models of any recordings by solving anew."""

    def __init__(self, head: RecordingsClassifier, rows: LabelledRows, k: int) -> None:
        self.ridge, self.k = head.ridge, k
        n_units = rows.unit.max() + 1
        learnt = [
            rows.X[spread(np.flatnonzero(rows.unit == u).tolist(), head.windows_per_recording)]
            for u in range(n_units)
        ]
        self.gram = np.array([[kernel_between(a, b, head) for b in learnt] for a in learnt])
        self.windows = np.array(
            [[kernel_between(x[None], b, head) for b in learnt] for x in rows.X]
        )

    def scores(self, train: NDArray[Any], codes: NDArray[Any], rows: Any) -> NDArray[np.float64]:
        """Regress on balanced targets of the training recordings, and score windows."""
        own = codes[train][:, None] == np.arange(self.k)
        shares = np.where(own.any(axis=0), own.mean(axis=0), 1.0)
        targets = (own / (self.k * shares) - 1 / self.k) * 2
        G = self.gram[np.ix_(train, train)]
        alpha = np.linalg.solve(G + self.ridge * np.eye(len(G)), targets)
        return np.asarray(self.windows[rows][:, train] @ alpha)


def by_refitting(
    head: RecordingsClassifier, rows: LabelledRows, candidates: tuple[Candidate, ...]
) -> tuple[NestedScores, float]:
    """Do what `NestedScores` says, one fit after the other; and how near it came to a tie."""
    classes, labels = rows.labellings()
    codes, k, n_units = labels[0], len(classes), labels.shape[1]
    group = np.empty(n_units, np.int64)
    group[rows.unit] = rows.grouping.codes
    n_groups, n = len(rows.grouping.groups), len(rows.y)
    plain = np.empty((len(candidates), n, k))
    inner = np.full((len(candidates), n_groups, n, k), np.nan)
    for p, candidate in enumerate(candidates):
        model = Refitted(clone(head).set_params(**candidate), rows, k)
        for g in range(n_groups):
            own = rows.grouping.rows(g)
            plain[p, own] = model.scores(np.flatnonzero(group != g), codes, own)
            for h in set(range(n_groups)) - {g}:
                train = np.flatnonzero((group != g) & (group != h))
                own = rows.grouping.rows(h)
                inner[p, g, own] = model.scores(train, codes, own)

    def loss(scores: NDArray[Any]) -> float:
        means = np.stack([scores[rows.unit == u].mean(axis=0) for u in range(n_units)])
        return selection_loss(means, codes, np.arange(n_units), 2.0)

    losses = np.array([[loss(fold) for fold in of_candidate] for of_candidate in inner])
    final_loss = np.array([loss(scores) for scores in plain])
    choice, final = losses.argmin(axis=0), int(final_loss.argmin())
    gaps = np.diff(np.sort(np.c_[losses, final_loss], axis=0), axis=0)
    found = NestedScores(
        losses, final_loss, choice, final,
        plain[choice[rows.grouping.codes], np.arange(n)], inner[choice, np.arange(n_groups)],
        plain[final], np.zeros(n_groups),
    )  # fmt: skip
    return found, float(gaps.min())


# --- the classifier


def test_it_passes_the_estimator_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(RecordingsClassifier())
    assert sum(result["status"] == "passed" for result in results) > 40


@pytest.mark.parametrize("most", [2, None])
@pytest.mark.parametrize(
    "params",
    [
        {"width": 0.6},
        {"width": (0.4, 0.9), "view_sizes": (2, 3), "view_weights": (0.3, 0.7)},
        {"view_sizes": (3, 2), "view_weights": (0.0, 1.0)},
    ],
)
def test_windows_are_scored_by_the_definition(params: dict[str, Any], most: int | None) -> None:
    rows = make_rows(0, DESIGNS["plates of devices"])
    head = RecordingsClassifier(**params, ridge=0.05, windows_per_recording=most)
    names = np.array([f"r{9 - u}" for u in rows.unit])
    fitted = head.fit(rows.X, rows.y, unit=names)
    codes = rows.labellings()[1][0]
    expected = Refitted(head, rows, 3).scores(np.arange(8), codes, slice(None))
    np.testing.assert_allclose(fitted.class_scores(rows.X), expected, atol=1e-10)
    assert len(fitted.windows_) == sum(
        min(most or n, n) for _, _, n in DESIGNS["plates of devices"]
    )


def test_the_mean_of_its_windows_scores_is_what_the_recording_scores() -> None:
    rows = make_rows(1, DESIGNS["unequal groups"])
    head = RecordingsClassifier(width=0.6).fit(rows.X, rows.y, unit=rows.unit)
    new = np.random.default_rng(5).standard_normal((7, 5))
    learnt = [rows.X[rows.unit == u] for u in range(6)]
    kernel = np.array([kernel_between(new, windows, head) for windows in learnt])
    expected = kernel @ head.dual_coef_
    np.testing.assert_allclose(head.class_scores(new).mean(axis=0), expected, atol=1e-10)


def test_without_units_every_row_is_a_recording() -> None:
    rows = make_rows(2, DESIGNS["unequal groups"])
    alone = RecordingsClassifier().fit(rows.X, rows.y)
    numbered = RecordingsClassifier().fit(rows.X, rows.y, unit=np.arange(len(rows.y))[::-1])
    assert alone.sizes_.tolist() == [1] * len(rows.y)
    np.testing.assert_allclose(
        alone.class_scores(rows.X), numbered.class_scores(rows.X), atol=1e-10
    )


def test_windows_that_are_one_row_again_and_again_change_nothing() -> None:
    rows = make_rows(3, DESIGNS["plates of devices"])
    once = RecordingsClassifier().fit(rows.X, rows.y, unit=rows.unit)
    repeated = np.repeat(np.arange(len(rows.y)), 3)
    thrice = RecordingsClassifier().fit(
        rows.X[repeated], rows.y[repeated], unit=rows.unit[repeated]
    )
    np.testing.assert_allclose(thrice.class_scores(rows.X), once.class_scores(rows.X), atol=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    rows = make_rows(0, DESIGNS["unequal groups"])
    with pytest.raises(InputError, match="recording 0 has several labels"):
        RecordingsClassifier().fit(rows.X, rows.y, unit=np.zeros(len(rows.y), int))
    with pytest.raises(InputError, match=r"one unit a row, got \(3,\) for 18 rows"):
        RecordingsClassifier().fit(rows.X, rows.y, unit=np.zeros(3))
    bad: list[tuple[dict[str, Any], str]] = [
        ({"ridge": 0.0}, "RecordingsClassifier.ridge must be above 0, got 0.0"),
        ({"width": (0.5, 0.0)}, "RecordingsClassifier.width must be above 0"),
        ({"width": (0.5, 0.5)}, r"RecordingsClassifier.width must have one value a view \(1 of"),
        ({"windows_per_recording": 0}, "windows_per_recording must be a whole number from 1"),
        ({"view_weights": (0.5,)}, "view_weights must be 0 or above and add up to 1"),
        ({"view_sizes": (2, 2)}, "view_sizes adds up to 4, but the rows have 5"),
    ]
    for params, message in bad:
        with pytest.raises(InputError, match=message):
            RecordingsClassifier(**params).fit(rows.X, rows.y)


def test_tensors_bring_it_back_or_say_what_is_wrong() -> None:
    rows = make_rows(0, DESIGNS["plates of devices"])
    X = rows.X.astype(np.float32)
    head = RecordingsClassifier(view_sizes=(2, 3)).fit(X, rows.y, unit=rows.unit)
    tensors, params = head.to_tensors(), {**head.get_params(), "view_sizes": [2, 3]}
    assert tensors["windows"].dtype == np.float32
    again = head_of("recordings").read(tensors, params, head.classes_)
    np.testing.assert_array_equal(again.class_scores(X), head.class_scores(X))
    for name, wrong in (("sizes", tensors["sizes"][1:]), ("dual_coef", tensors["windows"])):
        with pytest.raises(InputError, match="does not fit together"):
            RecordingsClassifier.from_tensors({**tensors, name: wrong}, {}, head.classes_)
    with pytest.raises(InputError, match="no model of the classifier recordings: it has no 'wind"):
        RecordingsClassifier.from_tensors({}, {}, head.classes_)


# --- folds, tuning, shuffles


@pytest.mark.parametrize("design", DESIGNS)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**16), fused=st.booleans(), most=st.sampled_from([2, None]))
def test_tuning_in_closed_form_equals_refitting(
    design: str, seed: int, fused: bool, most: int | None
) -> None:
    rows = make_rows(seed, DESIGNS[design])
    head = RecordingsClassifier(view_sizes=(2, 3) if fused else None, windows_per_recording=most)
    candidates = CANDIDATES
    if fused:
        weights = ((0.25, 0.75), (1.0, 0.0), (0.5, 0.5))
        candidates = tuple(
            {**c, "view_weights": w} for c, w in zip(CANDIDATES, weights, strict=True)
        )
    found, told = tune_recordings(head, rows, candidates)
    expected, nearest_tie = by_refitting(head, rows, candidates)
    assume(nearest_tie > 1e-5)
    np.testing.assert_allclose(found.final_loss, expected.final_loss, atol=2e-6)
    np.testing.assert_allclose(found.loss, expected.loss, atol=2e-6)
    np.testing.assert_array_equal(found.choice, expected.choice)
    assert found.final_choice == expected.final_choice
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-8)
    np.testing.assert_allclose(found.final_scores, expected.final_scores, atol=1e-8)
    np.testing.assert_allclose(found.inner_scores, expected.inner_scores, atol=2e-6)
    for u in range(len(DESIGNS[design])):
        mean = expected.scores[rows.unit == u].mean(axis=0)
        np.testing.assert_allclose(told.mean_scores[0, u], mean, atol=2e-6)


@pytest.mark.parametrize("candidates", [CANDIDATES, CANDIDATES[:1]])
@pytest.mark.parametrize("design", DESIGNS)
def test_shuffled_labels_go_through_the_whole_procedure(
    design: str, candidates: tuple[Candidate, ...]
) -> None:
    rows = make_rows(5, DESIGNS[design])
    head, rng = RecordingsClassifier(), np.random.default_rng(0)
    classes, labels = rows.labellings()
    shuffled = np.stack([rng.permutation(labels[0]) for _ in range(9)])
    _, told = tune_recordings(head, rows, candidates, shuffled=shuffled)
    assert told.mean_scores.shape == (10, len(DESIGNS[design]), len(classes))
    for line, codes in enumerate([labels[0], *shuffled]):
        relabelled = rows._replace(y=classes[codes[rows.unit]])
        again, alone = tune_recordings(head, relabelled, candidates)
        np.testing.assert_allclose(told.mean_scores[line], alone.mean_scores[0], atol=1e-6)
        verdicts = alone.mean_scores[0].argmax(axis=1)
        np.testing.assert_array_equal(told.predicted[line], verdicts[rows.unit])
        # What the permutation test counts are recordings whose mean score names the right class.
        means = np.stack([again.scores[rows.unit == u].mean(axis=0) for u in range(len(codes))])
        counted = device_accuracies(
            told.predicted[line][None], codes[None], rows.unit, len(classes),
            told.mean_scores[line][None],
        )  # fmt: skip
        assert counted == pytest.approx((means.argmax(axis=1) == codes).mean())


def test_nothing_of_the_outer_group_reaches_its_fold() -> None:
    rows = make_rows(3, DESIGNS["plates of devices"])
    before, _ = tune_recordings(RecordingsClassifier(), rows, CANDIDATES)
    for group in range(4):
        own = rows.grouping.rows(group)
        X, y = rows.X.copy(), rows.y.copy()
        X[own] = np.random.default_rng(9).standard_normal(X[own].shape) * 7
        y[own] = np.where(y[own] == "a", "c", "a")
        after, _ = tune_recordings(RecordingsClassifier(), rows._replace(X=X, y=y), CANDIDATES)
        np.testing.assert_allclose(after.loss[:, group], before.loss[:, group], atol=2e-6)
        assert after.choice[group] == before.choice[group]
        np.testing.assert_allclose(after.inner_scores[group], before.inner_scores[group], atol=2e-6)


class Tripwire(NamedTuple):
    n_right: int
    n: int

    @property
    def is_at_chance(self) -> bool:
        low, high = binom.interval(0.999, self.n, 0.25)
        return bool(low <= self.n_right <= high)


@pytest.mark.parametrize("view_sizes", [None, (7, 9)])
def test_features_that_only_identify_the_device_score_at_chance(view_sizes: Any) -> None:
    """Any fold that saw its own device, tuning included, would be right nearly every time."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(16), 8)
    X = np.eye(16)[group] + 0.05 * rng.random((len(group), 16))
    head = RecordingsClassifier(view_sizes=view_sizes)
    n_right = 0
    for seed in range(20):
        codes = np.random.default_rng(seed).permutation(np.arange(16) % 4)
        rows = LabelledRows(X, codes[group], group_rows(group), group)
        _, told = tune_recordings(head, rows, RecordingsHead().combinations({}, 2))
        n_right += int((told.mean_scores[0].argmax(axis=1) == codes).sum())
        if seed == 0:
            seen = clone(head).fit(X, rows.y, unit=group)
            assert (seen.predict(X) == rows.y).all()
    assert Tripwire(n_right, 20 * 16).is_at_chance
    assert not Tripwire(20 * 16 // 2, 20 * 16).is_at_chance


# --- the head


def test_leaving_groups_out_is_refitting_with_the_recordings_of_each_group() -> None:
    rows = make_rows(4, DESIGNS["devices with several labels"])
    group = rows.grouping.codes
    head = RecordingsClassifier(width=0.6)
    found = leave_one_group_out(head, rows.X, rows.y, group)
    for g in range(4):
        train = group != g
        # A group's windows of one label are one recording.
        unit = np.char.add(group[train].astype(str), rows.y[train])
        fitted = clone(head).fit(rows.X[train], rows.y[train], unit=unit)
        expected = fitted.class_scores(rows.X[~train])
        np.testing.assert_allclose(found.scores[~train], expected, atol=1e-9)
    np.testing.assert_array_equal(found.predictions, found.classes[found.scores.argmax(axis=1)])


def test_evaluating_it_tunes_calibrates_and_tests() -> None:
    units = [(g, g % 3, 3) for g in range(12)]
    rows = make_rows(6, units, distance=3.0)
    device = np.array([f"d{u:02}" for u in rows.unit])
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(np.arange(12) % 3) for _ in range(99)])
    head = RecordingsHead()
    found = evaluate(
        head, RecordingsClassifier(), rows.X, rows.y, device, Units.of(device, rows.y),
        head.combinations({}, 1), Permutations(shuffled, 34650, 6, exact=False),
    )  # fmt: skip
    assert found.nested is not None
    assert found.test is not None
    assert found.test.p == pytest.approx(0.01)
    assert found.test.repeats_tuning
    assert found.inverse_temperature is not None
    assert (found.folds.predictions == rows.y).mean() > 0.7
    told = head.problems(RecordingsClassifier(), 2, 6, permuted=True)
    assert [one.split()[0] for one in told] == ["tuning", "permutations"]
    assert head.default_permutations(RecordingsClassifier(), 2) == 0


def test_candidates_begin_with_the_classifiers_own() -> None:
    head = head_for(RecordingsClassifier())
    assert head.name == "recordings"
    found = head.candidates({}, {}, 3, tune=True)
    assert found[0] == {"width": 0.5, "ridge": 0.01}
    assert len(found) == len(WIDTHS) * len(RIDGES)
    assert RecordingsClassifier().get_params() == {
        "width": WIDTHS[0], "ridge": RIDGES[0], "windows_per_recording": None, "view_sizes": None,
        "view_weights": None,
    }  # fmt: skip
    assert head.candidates({"width": 0.3, "ridge": 0.2}, {}, 2, tune=True) == (
        {"width": 0.3, "ridge": 0.2},
    )
    weighted = head.candidates({"width": 0.3}, {"view_weights": [(1.0, 0.0)]}, 2, tune=True)
    assert [c["view_weights"] for c in weighted] == [(1.0, 0.0)] * 3
    with pytest.raises(InputError, match=r"\(1.0, 0.0\) must have one value for each feature set"):
        head.candidates({}, {"view_weights": [(1.0, 0.0)]}, 3, tune=True)
    assert head.candidates({}, {}, 1, tune=False) == ({},)


def test_another_setting_must_be_better_by_more_than_chance() -> None:
    recommended = {"width": 0.5, "ridge": 0.01}
    candidates = (recommended, {"width": 0.3, "ridge": 0.1}, {"width": 0.3, "ridge": 0.001})
    of_others = HANDICAP / 6
    is_recommended = [one == recommended for one in candidates]
    assert handicaps(is_recommended, 36).tolist() == [0.0, of_others, of_others]
    assert handicaps(is_recommended[1:], 36).tolist() == [0.0, 0.0]
    n_departures = 0
    for seed in range(8):
        rows = make_rows(seed, DESIGNS["unequal groups"])
        found, told = tune_recordings(RecordingsClassifier(), rows, candidates)
        handicap = handicaps(is_recommended, 6)
        np.testing.assert_array_equal(found.choice, (found.loss.T + handicap).argmin(axis=1))
        assert found.final_choice == (found.final_loss + handicap).argmin()
        means = np.stack([found.scores[rows.unit == u].mean(axis=0) for u in range(6)])
        np.testing.assert_allclose(told.mean_scores[0], means, atol=1e-6)
        n_departures += int(np.count_nonzero(found.choice != found.loss.argmin(axis=0)))
    assert n_departures > 0


def test_what_cannot_be_tuned_is_refused() -> None:
    rows = make_rows(0, DESIGNS["unequal groups"])
    two = rows._replace(grouping=group_rows(rows.grouping.codes % 2))
    with pytest.raises(InputError, match="three groups, got 2"):
        tune_recordings(RecordingsClassifier(), two, CANDIDATES)
    with pytest.raises(InputError, match="at least one candidate"):
        tune_recordings(RecordingsClassifier(), rows, [])
    with pytest.raises(InputError, match="ridge must be above 0, got -1"):
        tune_recordings(RecordingsClassifier(), rows, [*CANDIDATES, {"ridge": -1.0}])


def test_a_scorer_scores_as_the_classifier_does() -> None:
    rows = make_rows(3, [(0, 0, 4), (1, 1, 5), (2, 0, 3)])
    made = RecordingsClassifier(view_sizes=(2, 3)).fit(rows.X, rows.y, rows.unit)
    scorer = made.scorer()
    np.testing.assert_array_equal(scorer(rows.X), made.class_scores(rows.X))
    with pytest.raises(ValueError, match="features"):
        scorer(rows.X[:, :4])

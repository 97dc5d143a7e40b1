"""The Falkon head against plain kernel ridge regression and against scikit-learn's own checks."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from kernel_cases import BOTH, naive_kernel
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from sklearn.exceptions import SkipTestWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils.estimator_checks import check_estimator

from toptune.errors import InputError
from toptune.heads import head_of
from toptune.heads.falkon.arrays import Arrays
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.kernel import Centres, KernelSum
from toptune.heads.rows import l2_normalise, l2_normalise_views

Array = NDArray[np.float64]


def global_state() -> NDArray[np.uint32]:
    state = np.random.get_state(legacy=False)  # noqa: NPY002  # the global state is what is tested
    return np.array(state["state"]["key"])


def blobs(n: int, d: int, k: int, seed: int = 0) -> tuple[Array, NDArray[np.str_]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(k, size=n)
    X = 2 * rng.standard_normal((k, d))[y] + rng.standard_normal((n, d))
    return X, np.array(list("abcdef"))[y]


@pytest.mark.parametrize(
    ("n_centres", "solver"), [(None, "direct"), (15, "direct"), (15, "iterative")]
)
def test_falkon_passes_the_estimator_checks(n_centres: int | None, solver: str) -> None:
    with warnings.catch_warnings():
        # Checks of the array API are skipped without an environment variable; some checks'
        # data lie on a circle, where a few centres already span everything.
        warnings.simplefilter("ignore", SkipTestWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        results = check_estimator(FalkonClassifier(n_centres=n_centres, solver=solver))
    assert sum(result["status"] == "passed" for result in results) > 40


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_normalised_each_by_itself_and_zeros_stay(dtype: type) -> None:
    X: NDArray[np.floating[Any]] = np.array([[3, 4], [0, 0], [1e-30, 0], [2e30, 2e30]], dtype=dtype)
    rows = l2_normalise(X)
    assert rows.dtype == dtype
    r = math.sqrt(0.5)
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0], [r, r]], rtol=1e-6)
    # X itself is left as it was.
    assert X[0, 0] == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_view_of_a_row_gets_unit_length_by_itself(dtype: type) -> None:
    X: NDArray[np.floating[Any]] = np.array([[3, 4, 5, 0], [0, 0, 0, -2]], dtype=dtype)
    expected = np.array([[0.6, 0.8, 1, 0], [0, 0, 0, -1]])
    rows = l2_normalise_views(X, (2, 1, 1))
    assert rows.dtype == dtype
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    np.testing.assert_array_equal(l2_normalise_views(X), l2_normalise(X))
    np.testing.assert_array_equal(l2_normalise_views(X, (4,)), l2_normalise(X))


@BOTH
@pytest.mark.parametrize(
    "kernel",
    [
        KernelSum.single(0.7, 6),
        KernelSum((0.8, 1.0, 2.0), (0.25, 0.0, 0.75), (3, 2, 1)),
        KernelSum((0.8, 1.0, 2.0), (0.25, 0.0, 0.75), (3, 2, 1), (1.0, 2.0, 0.3)),
    ],
    ids=["one view", "three views", "three Gaussians a view"],
)
def test_views_have_a_gaussian_each_and_their_weighted_sum_is_the_kernel(
    arrays: Arrays, kernel: KernelSum
) -> None:
    rng = np.random.default_rng(8)
    P, Q = rng.standard_normal((1100, 6)), rng.standard_normal((7, 6))
    between = arrays.to_host(Centres(kernel, Q, arrays).kernel_of(P))
    np.testing.assert_allclose(between, naive_kernel(P, Q, kernel), rtol=1e-11)
    lower = np.tril(arrays.to_host(kernel.gram(P, arrays)))
    np.testing.assert_allclose(lower, np.tril(naive_kernel(P, P, kernel)), rtol=1e-11)
    np.testing.assert_allclose(lower.diagonal(), 1, rtol=1e-15)
    if len(kernel.widths) > 1:
        # The view of weight 0 has no say, not even where it is not a number.
        P[:, 3:5] = np.nan
        assert not np.isnan(arrays.to_host(kernel.gram(P, arrays))).any()


def test_a_kernel_of_several_scales_is_the_mean_of_their_gaussians() -> None:
    X, y = blobs(60, 5, 3)
    Y = np.where(y[:, None] == np.array(list("abc")), 1.0, -1.0)
    K = sum(rbf_kernel(X, gamma=1 / (2 * (scale * 0.8) ** 2)) for scale in (1, 2.5)) / 2
    expected = K @ np.linalg.solve(K + 60e-3 * np.eye(60), Y)
    head = FalkonClassifier(0.8, 1e-3, normalise=False, balanced=False, scales=(1, 2.5)).fit(X, y)
    np.testing.assert_allclose(head.decision_function(X), expected, atol=1e-9)


def test_two_scales_are_recommended_and_one_is_what_the_library_has() -> None:
    head = head_of("falkon")
    assert head.make({}).scales == (1.0, 2.0)
    assert head.make({"solver": "falkon"}).scales == (1.0,)
    assert head.make({"scales": (0.5, 3.0)}).scales == (0.5, 3.0)
    # Models of before there were several have no such parameter, and one Gaussian.
    assert FalkonClassifier().scales == (1.0,)


@pytest.mark.parametrize("n_centres", [None, 20])
def test_views_are_normalised_and_weighted_as_constructed(n_centres: int | None) -> None:
    X, y = blobs(70, 7, 3)
    sizes, widths, weights = (2, 4, 1), (0.7, 1.3, 0.4), (0.3, 0.7, 0.0)
    head = FalkonClassifier(
        widths,
        1e-3,
        n_centres,
        view_sizes=sizes,
        view_weights=weights,
        random_state=4,
        balanced=False,
    ).fit(X, y)
    unit: Array = np.concatenate(
        [
            part / np.linalg.norm(part, axis=1, keepdims=True)
            for part in np.split(X, [2, 6], axis=1)
        ],
        axis=1,
    )

    def kernel(P: Array, Q: Array) -> Array:
        first, second = ((P[:, None, s] - Q[None, :, s]) ** 2 for s in (slice(2), slice(2, 6)))
        return np.asarray(
            0.3 * np.exp(-first.sum(axis=2) / (2 * 0.7**2))
            + 0.7 * np.exp(-second.sum(axis=2) / (2 * 1.3**2))
        )

    Y = np.where(y[:, None] == np.array(list("abc")), 1.0, -1.0)
    C = np.asarray(head.centres_, np.float64)
    Z, ridge = kernel(unit, C), 1e-3 * 70
    alpha = np.linalg.solve(Z.T @ Z + ridge * kernel(C, C), Z.T @ Y)
    assert len(C) == (n_centres or 70)
    np.testing.assert_allclose(head.decision_function(X), Z @ alpha, atol=1e-8)


def test_views_are_equal_unless_weighted_and_one_width_is_everyones() -> None:
    X, y = blobs(40, 5, 2)
    plain = FalkonClassifier(0.6, view_sizes=(2, 3)).fit(X, y)
    full = FalkonClassifier((0.6, 0.6), view_sizes=(2, 3), view_weights=(0.5, 0.5)).fit(X, y)
    np.testing.assert_array_equal(plain.decision_function(X), full.decision_function(X))
    one = FalkonClassifier(0.6).fit(X, y).decision_function(X)
    as_view = FalkonClassifier((0.6,), view_sizes=(5,), view_weights=(1,)).fit(X, y)
    np.testing.assert_array_equal(as_view.decision_function(X), one)


def test_all_rows_as_centres_is_kernel_ridge_regression() -> None:
    X, y = blobs(90, 5, 3)
    peer = KernelRidge(kernel="rbf", gamma=1 / (2 * 1.5**2), alpha=1e-3 * len(X))
    peer.fit(X, np.where(y[:, None] == np.array(list("abc")), 1.0, -1.0))
    head = FalkonClassifier(width=1.5, penalty=1e-3, balanced=False, normalise=False).fit(X, y)
    new = blobs(40, 5, 3, seed=5)[0]
    np.testing.assert_allclose(head.decision_function(new), peer.predict(new), atol=1e-10)
    assert head.jitter_ == 0


def test_nystrom_minimises_the_penalised_error_over_the_span_of_its_centres() -> None:
    X, y = blobs(80, 4, 3, seed=2)
    head = FalkonClassifier(width=1.0, penalty=1e-3, balanced=False, n_centres=12).fit(X, y)
    centres = np.asarray(head.centres_, np.float64)
    assert len(np.unique(centres, axis=0)) == 12
    # The same minimum as a least-squares problem: |Z a - Y|^2 + ridge a' B a.
    unit: Array = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert all(np.isclose(unit, centre).all(axis=1).any() for centre in centres)

    def kernel(P: Array, Q: Array) -> Array:
        return np.asarray(np.exp(-0.5 * ((P[:, None] - Q[None]) ** 2).sum(axis=2)))

    root = np.linalg.cholesky(kernel(centres, centres)).T * np.sqrt(1e-3 * 80)
    targets = np.where(y[:, None] == np.array(list("abc")), 1.0, -1.0)
    system = np.concatenate([kernel(unit, centres), root])
    right = np.concatenate([targets, np.zeros((12, 3))])
    alpha = np.linalg.lstsq(system, right, rcond=None)[0]
    np.testing.assert_allclose(head.decision_function(X), kernel(unit, centres) @ alpha, atol=1e-8)


def test_as_many_centres_as_rows_are_all_rows() -> None:
    X, y = blobs(30, 4, 2)
    all_rows = FalkonClassifier().fit(X, y).decision_function(X)
    np.testing.assert_array_equal(
        FalkonClassifier(n_centres=99).fit(X, y).decision_function(X), all_rows
    )


def test_two_classes_have_one_decision_and_it_agrees_with_the_probabilities() -> None:
    X, y = blobs(60, 3, 2)
    head = FalkonClassifier(penalty=1e-3).fit(X, y)
    decision, probability = head.decision_function(X), head.predict_proba(X)
    assert decision.shape == (60,)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    np.testing.assert_array_equal(decision > 0, probability[:, 1] > 0.5)
    np.testing.assert_array_equal(head.predict(X) == "b", decision > 0)


def test_centres_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    X, y = blobs(60, 3, 2)
    before = global_state()
    first, again, other = (
        FalkonClassifier(n_centres=9, random_state=s).fit(X, y).centres_ for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(global_state(), before)


def test_duplicate_centres_are_warned_of_and_solved_with_a_stated_jitter() -> None:
    X, y = blobs(20, 3, 2)
    X, y = np.repeat(X, 3, axis=0), np.repeat(y, 3)
    with pytest.warns(LinAlgWarning, match="was added to its diagonal"):
        head = FalkonClassifier(penalty=1e-2, n_centres=50).fit(X, y)
    assert 0 < head.jitter_ < 1e-9
    # A copy adds nothing to what centres span, so the scores are those of all rows.
    exact = FalkonClassifier(penalty=1e-2).fit(X, y).decision_function(X)
    assert len(np.unique(head.centres_, axis=0)) == 20
    np.testing.assert_allclose(head.decision_function(X), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"width": 0.0}, "FalkonClassifier.width must be above 0, got 0.0"),
        ({"width": float("nan")}, "FalkonClassifier.width must be above 0, got nan"),
        ({"penalty": -1}, "FalkonClassifier.penalty must be above 0, got -1"),
        ({"n_centres": 0}, "FalkonClassifier.n_centres must be a whole number from 1, got 0"),
        ({"width": (0.5, 0.5)}, r"width must have one value a view .1 of view_sizes., got .0.5"),
        ({"width": (0.5, -1), "view_sizes": (1, 2)}, r"width must be above 0, got .0.5, -1"),
        ({"view_sizes": (1, 1)}, "view_sizes adds up to 2, but the rows have 3 features"),
        ({"view_sizes": (3, 0)}, "view_sizes must be whole numbers from 1, got"),
        ({"view_sizes": ()}, "view_sizes must be whole numbers from 1, got"),
        (
            {"view_sizes": (1, 2), "view_weights": (0.5, 0.6)},
            r"view_weights must be 0 or above and add up to 1, got .0.5, 0.6",
        ),
        (
            {"view_sizes": (1, 2), "view_weights": (-0.5, 1.5)},
            "view_weights must be 0 or above and add up to 1",
        ),
        (
            {"view_sizes": (1, 2), "view_weights": (1.0,)},
            r"view_weights must have one value a view .2 of view_sizes., got .1.0",
        ),
        ({"scales": ()}, r"scales must be above 0 and all different, got \(\)"),
        ({"scales": (1, 0)}, r"scales must be above 0 and all different, got \(1, 0\)"),
        ({"scales": (2, 2)}, r"scales must be above 0 and all different, got \(2, 2\)"),
        ({"solver": "magic"}, "solver must be direct, iterative or falkon, got 'magic'"),
        ({"device": "cuda:97"}, "device is 'cuda:97', but torch finds no such device; use cpu"),
        ({"device": "meta"}, "device must be cpu or cuda, got 'meta'"),
        ({"precision": "float32"}, "the solver 'direct' computes in float64, not in float32"),
        ({"precision": "half"}, "precision must be float64 or float32, got 'half'"),
        ({"tolerance": 0}, "tolerance must be above 0, got 0"),
        ({"max_iterations": 0}, "max_iterations must be a whole number from 1, got 0"),
        ({"solver": "iterative"}, "the solver 'iterative' needs `n_centres`"),
        (
            {"solver": "iterative", "n_centres": 5, "device": "gpu"},
            "device must be cpu or cuda, got 'gpu'",
        ),
        (
            {"solver": "iterative", "n_centres": 5, "device": "meta"},
            "device must be cpu or cuda, got 'meta'",
        ),
        ({"n_centres": 3, "random_state": -5}, "random_state must be 0 or above, got -5"),
    ],
)
def test_parameters_out_of_range_are_named(params: dict[str, Any], message: str) -> None:
    X, y = blobs(20, 3, 2)
    with pytest.raises(InputError, match=message):
        head_of("falkon").make(params).fit(X, y)


def test_unknown_heads_and_parameters_are_refused() -> None:
    with pytest.raises(
        InputError, match="there is no classifier 'svm'; there are mlp, falkon, recordings, par"
    ):
        head_of("svm").make({})
    with pytest.raises(
        InputError, match="classifier falkon has no parameter 'sigma'; it has width"
    ):
        head_of("falkon").make({"sigma": 1})


def test_tensors_bring_the_head_back() -> None:
    X, y = blobs(50, 4, 3)
    head = FalkonClassifier(n_centres=20, width=0.8).fit(X.astype(np.float32), y)
    back = FalkonClassifier.from_tensors(head.to_tensors(), head.get_params(), head.classes_)
    np.testing.assert_array_equal(back.predict_proba(X), head.predict_proba(X))
    np.testing.assert_array_equal(back.predict(X), head.predict(X))
    views = FalkonClassifier((0.5, 0.7), view_sizes=(1, 3), view_weights=(0.5, 0.5)).fit(X, y)
    params = json.loads(json.dumps(views.get_params()))
    back = FalkonClassifier.from_tensors(views.to_tensors(), params, views.classes_)
    np.testing.assert_array_equal(back.predict_proba(X), views.predict_proba(X))
    assert back.get_params() == views.get_params()
    with pytest.raises(InputError, match="no model of the classifier falkon"):
        FalkonClassifier.from_tensors({}, {}, head.classes_)
    with pytest.raises(InputError, match="does not fit together"):
        FalkonClassifier.from_tensors(head.to_tensors(), {}, head.classes_[:2])


@pytest.mark.parametrize("n_centres", [None, 20])
def test_balanced_classes_weigh_the_same_however_many_rows_they_have(
    n_centres: int | None,
) -> None:
    X, y = blobs(90, 4, 3)
    rows = np.concatenate(
        [np.flatnonzero(y == c)[:n] for c, n in zip("abc", (24, 18, 6), strict=True)]
    )
    X, y = X[rows], y[rows]
    made: dict[str, Any] = {"width": 0.8, "n_centres": n_centres, "normalise": False}
    head = FalkonClassifier(penalty=1e-2, **made).fit(X, y)
    targets = np.full((48, 3), -2 / 3)
    for column, (name, share) in enumerate(zip("abc", (24 / 48, 18 / 48, 6 / 48), strict=True)):
        targets[y == name, column] = 2 / 3 * (1 / share - 1)
    np.testing.assert_allclose(targets.sum(axis=0), 0, atol=1e-12)
    # Ridge regression is linear in its targets: of one-hot columns the plain model knows scores.
    C = np.asarray(head.centres_, np.float64)

    def kernel(P: Array, Q: Array) -> Array:
        squared = ((P[:, None] - Q[None]) ** 2).sum(axis=2)
        return np.asarray(np.exp(-squared / (2 * 0.8**2)))

    Z, ridge = kernel(X, C), 1e-2 * 48
    if n_centres is None:
        alpha = np.linalg.solve(Z + ridge * np.eye(48), targets)
    else:
        alpha = np.linalg.solve(Z.T @ Z + ridge * kernel(C, C), Z.T @ targets)
    np.testing.assert_allclose(head.decision_function(X), Z @ alpha, atol=1e-8)
    # A smooth model of plain targets does not name the rare class; the balanced one does.
    made["width"] = 20.0
    plain = FalkonClassifier(penalty=10.0, balanced=False, **made).fit(X, y)
    smooth = FalkonClassifier(penalty=10.0, **made).fit(X, y)
    assert (plain.predict(X) == "c").sum() == 0
    assert (smooth.predict(X)[y == "c"] == "c").mean() > 0.5


def test_a_scorer_scores_as_the_classifier_does() -> None:
    rng = np.random.default_rng(2)
    X, y = rng.random((40, 5)).astype(np.float32), np.arange(40) % 3
    made = FalkonClassifier(view_sizes=(2, 3), n_centres=20).fit(X, y)
    scorer = made.scorer()
    np.testing.assert_array_equal(scorer(X), made.class_scores(X))
    with pytest.raises(ValueError, match="features"):
        scorer(X[:, :4])

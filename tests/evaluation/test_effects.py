"""Effect sizes and p-values agree with scipy and with what they are defined to be."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, mannwhitneyu, rankdata, wilcoxon

from toptune.evaluation.effects import (
    Effects,
    ParameterValues,
    cliffs_delta,
    delta_interval,
    effect_sizes,
    mann_whitney_p,
    signed_rank_p,
)

# Few distinct values, so that ties happen.
SIDES = st.lists(st.integers(0, 5).map(float), min_size=2, max_size=6)


def made(
    values: list[list[float]],
    label: str,
    device: list[str] | None = None,
    **columns: list[str],
) -> ParameterValues:
    """Rows of parameters; `label` has a letter a row."""
    array = np.array(values, dtype=float)
    names = tuple(f"p{k}" for k in range(array.shape[1]))
    labels = np.array(list(label))
    return ParameterValues(
        names=names,
        values=array,
        device=np.array(device or [f"d{k}" for k in range(len(array))]),
        label=labels,
        classes=tuple(dict.fromkeys(labels.tolist())),
        columns={name: np.array(column) for name, column in columns.items()},
    )


@given(SIDES, SIDES)
def test_delta_counts_pairs_and_is_the_rank_biserial_correlation(
    first: list[float], second: list[float]
) -> None:
    pairs = list(itertools.product(first, second))
    more, less = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    delta = cliffs_delta(np.array(first), np.array(second))
    assert delta == pytest.approx((more - less) / len(pairs))
    u = mannwhitneyu(first, second).statistic
    assert delta == pytest.approx(2 * u / len(pairs) - 1)


@given(SIDES, SIDES)
def test_p_of_ties_is_the_share_of_all_shuffles(first: list[float], second: list[float]) -> None:
    both, m = first + second, len(first)
    ranks = rankdata(both)
    sums = [ranks[list(rows)].sum() for rows in itertools.combinations(range(len(both)), m)]
    middle = m * (len(both) + 1) / 2
    seen = abs(ranks[:m].sum() - middle)
    expected = np.mean([abs(one - middle) >= seen - 1e-9 for one in sums])
    assert mann_whitney_p(np.array(first), np.array(second)) == pytest.approx(expected)


def test_p_without_ties_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(1, 1, 7), rng.normal(0, 1, 9)
    expected = mannwhitneyu(first, second, method="exact").pvalue
    assert mann_whitney_p(first, second) == pytest.approx(expected)


def test_many_ties_are_shuffled_at_random_always_alike() -> None:
    rng = np.random.default_rng(1)
    first = rng.integers(1, 5, 20).astype(float)
    second = rng.integers(0, 4, 22).astype(float)
    p = mann_whitney_p(first, second)
    assert p == mann_whitney_p(first, second)
    assert p == pytest.approx(mannwhitneyu(first, second, method="asymptotic").pvalue, rel=0.4)


@given(st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=8))
def test_signed_ranks_are_shuffled_by_sign(difference: list[float]) -> None:
    kept = np.array([d for d in difference if d])
    ranks = rankdata(np.abs(kept)) if len(kept) else np.zeros(0)
    seen = abs(np.sign(kept) @ ranks)
    sums = [abs(np.dot(s, ranks)) for s in itertools.product((-1, 1), repeat=len(kept))]
    expected = np.mean([one >= seen - 1e-9 for one in sums])
    assert signed_rank_p(np.array(difference)) == pytest.approx(expected)


def test_signed_ranks_without_ties_are_those_of_scipy() -> None:
    difference = np.array([0.4, -1.2, 3.0, 2.1, 0.9, 5.0])
    assert signed_rank_p(difference) == pytest.approx(wilcoxon(difference, method="exact").pvalue)


@pytest.mark.parametrize(
    ("delta", "n"), [(0.0, (5, 5)), (0.7, (4, 12)), (-0.9, (15, 15)), (1.0, (5, 25))]
)
def test_interval_solves_newcombes_equation(delta: float, n: tuple[int, int]) -> None:
    low, high = delta_interval(delta, n, 0.95)
    assert -1 < low <= delta <= high
    estimate, extra = (delta + 1) / 2, sum(n) / 2 - 1
    ends = [low, *([high] if high < 1 else [])]
    assert len(ends) == 2 or delta == 1.0
    for end in ends:
        t = (end + 1) / 2
        v = t * (1 - t) * (1 + extra * ((1 - t) / (2 - t) + t / (1 + t))) / (n[0] * n[1])
        assert (t - estimate) ** 2 == pytest.approx(1.959964**2 * v, rel=1e-4)
    mirrored = delta_interval(-delta, n, 0.95)
    assert mirrored == pytest.approx((-high, -low))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    truth = 2 * 0.7602 - 1  # P(X > Y) of normals one SD apart
    hits = 0
    for _ in range(2000):
        first, second = rng.normal(1, 1, 8), rng.normal(0, 1, 10)
        low, high = delta_interval(cliffs_delta(first, second), (8, 10), 0.95)
        hits += low <= truth <= high
    assert binomtest(hits, 2000, 0.95).pvalue > 1e-4


def test_each_device_counts_once_with_the_mean_of_its_recordings() -> None:
    # Of d0 five recordings; a culture recorded often must not weigh more.
    values = [[v] for v in (9.0, 1.0, 2.0, 3.0, math.nan, 4.0, 5.0, 6.0)]
    device = ["d0"] * 5 + ["d1", "d2", "d3"]
    rows = made(values, "AAAAAABB", device, batch=["x"] * 4 + ["y", "y", "x", "x"])
    devices = rows.per_device()
    assert devices.device.tolist() == ["d0", "d1", "d2", "d3"]
    assert devices.values[:, 0].tolist() == [3.75, 4, 5, 6]
    assert devices.columns["batch"].tolist() == ["", "y", "x", "x"]
    (contrast,) = effect_sizes(rows).contrasts
    assert (contrast.label, contrast.against, contrast.paired) == ("B", "A", False)
    assert contrast.effects[0].n == (2, 2)
    assert contrast.effects[0].delta == 1
    assert contrast.effects[0].median == (5.5, 3.875)


def test_more_than_two_classes_are_each_compared_with_the_others() -> None:
    rows = made([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]], "BBAACC")
    found = effect_sizes(rows)
    assert [c.label for c in found.contrasts] == ["B", "A", "C"]
    assert [c.effects[0].delta for c in found.contrasts] == [-1, 0, 1]
    assert found.contrasts[0].effects[0].n == (2, 4)
    assert found.largest("p0")[0].label == "B"


def test_undefined_parameters_are_left_out_and_counted() -> None:
    nan = math.nan
    rows = made([[1, nan], [2, nan], [nan, nan], [3, 7], [4, 8], [5, 9]], "AAABBB")
    found = effect_sizes(rows)
    defined, undefined = found.contrasts[0].effects
    assert defined.n == (3, 2)
    assert defined.delta == 1
    assert undefined.n == (3, 0)
    assert math.isnan(undefined.delta)
    assert math.isnan(undefined.p_adjusted)
    assert not undefined.detectable
    assert found.ranked() == ("p0",)
    assert found.n_tests == 1


def test_devices_with_both_labels_are_compared_with_themselves() -> None:
    # Each device rises a little under B; between devices the spread is far larger.
    values, device = [], []
    for k in range(8):
        values += [[100.0 * k, 1.0], [100.0 * k + k + 1, 1.0]]
        device += [f"d{k}"] * 2
    found = effect_sizes(made(values, "AB" * 8, device))
    (contrast,) = found.contrasts
    assert contrast.paired
    rising, constant = contrast.effects
    assert rising.delta == 1
    assert rising.p == pytest.approx(2 / 2**8)
    assert rising.detectable
    assert rising.high == pytest.approx(1)
    assert 0.2 < rising.low < 1
    assert (constant.delta, constant.p) == (0, 1)


def test_doses_of_a_device_count_once_against_one_of_them() -> None:
    values = [[k * 10.0 + dose] for k in range(4) for dose in (0, 1, 3)]
    device = [f"d{k}" for k in range(4) for _ in range(3)]
    found = effect_sizes(made(values, "ABC" * 4, device))
    assert [c.effects[0].delta for c in found.contrasts] == [-1, -1, 1]  # B below mean of A and C
    assert all(c.paired and c.effects[0].n == (4, 4) for c in found.contrasts)


def test_p_values_and_intervals_allow_for_the_number_of_parameters() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(16, 20))
    values[:8, 3] += 10
    found = effect_sizes(made(values.tolist(), "A" * 8 + "B" * 8))
    effects = found.contrasts[0].effects
    p = np.array([one.p for one in effects])
    # Benjamini and Hochberg by their definition.
    order = np.argsort(p)
    expected = np.empty(20)
    for rank, row in enumerate(order):
        expected[row] = min(min(1, p[order[k]] * 20 / (k + 1)) for k in range(rank, 20))
    np.testing.assert_allclose([one.p_adjusted for one in effects], expected)
    assert found.detectable == ("p3",)
    assert found.n_tests == 20
    assert found.confidence == pytest.approx(1 - 0.05 / 20)
    alone = delta_interval(effects[3].delta, (8, 8), 0.95)
    assert effects[3].delta == -1
    assert effects[3].high > alone[1]


def test_false_discoveries_are_as_rare_as_is_said() -> None:
    rng = np.random.default_rng(3)
    claimed = [
        bool(effect_sizes(made(rng.normal(size=(12, 10)).tolist(), "AB" * 6)).detectable)
        for _ in range(200)
    ]
    # Where nothing differs every discovery is false.
    assert binomtest(sum(claimed), 200, 0.05, alternative="greater").pvalue > 1e-3


def test_a_column_can_stand_for_the_classes() -> None:
    batch = ["x", "y", "", "x", "y"]
    rows = made([[1.0], [4.0], [9.0], [2.0], [5.0]], "AABBB", batch=batch)
    found = effect_sizes(rows.by("batch"))
    assert [c.label for c in found.contrasts] == ["y"]
    assert found.contrasts[0].against == "x"
    assert found.contrasts[0].effects[0].delta == 1


@pytest.mark.parametrize("label", ["AAA", "AB"])
def test_too_few_classes_or_devices_give_no_effect(label: str) -> None:
    found: Effects = effect_sizes(made([[1.0]] * len(label), label))
    assert found.ranked() == ()
    assert found.detectable == ()
    assert found.n_tests == 0


def test_effects_are_ranked_by_size_whatever_their_sign() -> None:
    rows: Any = [[0, 5, 1], [1, 4, 3], [2, 1, 2], [3, 0, 4]]
    found = effect_sizes(made(rows, "AABB"))
    assert [(e.parameter, e.delta) for e in found.contrasts[0].ranked()] == [
        ("p0", 1.0), ("p1", -1.0), ("p2", 0.5),
    ]  # fmt: skip

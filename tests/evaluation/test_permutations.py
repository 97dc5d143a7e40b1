"""Shuffled labels against enumeration by itertools, verdicts, and what a p-value promises."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import InputError, ToptuneError
from toptune.evaluation.permutations import (
    device_accuracies,
    exchangeable_blocks,
    p_value,
    permuted_labels,
    strata_of_units,
)
from toptune.evaluation.scores import HeldOutWindows, device_verdicts, score


def naive_arrangements(codes: list[int], blocks: list[int]) -> set[tuple[int, ...]]:
    """All orders of the units' labels that keep each block's own labels in the block."""
    return {
        tuple(codes[i] for i in order)
        for order in permutations(range(len(codes)))
        if all(blocks[i] == block for i, block in zip(order, blocks, strict=True))
    }


def naive_renamings(codes: list[int], arrangements: set[tuple[int, ...]]) -> int:
    """Arrangements that are the observed one with its classes renamed."""
    return sum(
        len(set(zip(codes, other, strict=True))) == len(set(codes)) == len(set(other))
        for other in arrangements
    )


units = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(units, st.integers(0, 5))
def test_few_arrangements_are_enumerated_each_once(drawn: list[tuple[int, int]], gap: int) -> None:
    codes, blocks = ([int(x) for x in part] for part in zip(*drawn, strict=True))
    # Classes and blocks need not be numbered without gaps.
    codes = [c + gap * (c > 0) for c in codes]
    every = naive_arrangements(codes, blocks)
    found = permuted_labels(np.array(codes), np.array(blocks), 720, seed=0)
    assert found.exact
    assert found.n_arrangements == len(every)
    assert found.n_renamings == naive_renamings(codes, every)
    listed = [tuple(row) for row in found.labels.tolist()]
    assert len(listed) == len(every) - 1
    assert {*listed, tuple(codes)} == every
    assert tuple(codes) not in listed
    assert found.smallest_p == pytest.approx(found.n_renamings / len(every))


def test_enumeration_ends_where_arrangements_outnumber_what_was_asked() -> None:
    codes = np.array([0, 0, 0, 1, 1, 1])
    assert permuted_labels(codes, None, 19, seed=0).exact
    drawn = permuted_labels(codes, None, 18, seed=0)
    assert not drawn.exact
    assert drawn.labels.shape == (18, 6)
    # A thousand units in a thousand arrangements are no matter either.
    many = permuted_labels(np.array([0] * 999 + [1]), None, 1000, seed=0)
    assert many.exact
    assert many.labels.shape == (999, 1000)


def test_draws_keep_each_blocks_labels_and_reach_all_arrangements_equally_often() -> None:
    codes, blocks = np.array([0, 0, 1, 2, 0, 1]), np.array([7, 7, 7, 7, 3, 3])
    assert permuted_labels(codes, blocks, 23, seed=5).exact
    drawn = [permuted_labels(codes, blocks, 22, seed=seed).labels for seed in range(400)]
    rows, counts = np.unique(np.concatenate(drawn), axis=0, return_counts=True)
    every = naive_arrangements(codes.tolist(), blocks.tolist())
    assert {tuple(row) for row in rows.tolist()} == every
    expected = 22 * 400 / 24
    # Chi-squared with 23 degrees of freedom: its 99.99 % point.
    assert ((counts - expected) ** 2 / expected).sum() < 58.6


def test_equal_seeds_give_equal_shuffles() -> None:
    codes = np.arange(30) % 5
    first, again, other = (permuted_labels(codes, None, 50, seed).labels for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.dtype == np.int64
    np.testing.assert_array_equal(np.sort(first, axis=1), np.tile(np.sort(codes), (50, 1)))


def test_no_permutations_are_refused() -> None:
    with pytest.raises(InputError, match="permutations must be 1 or more, got 0"):
        permuted_labels(np.array([0, 1]), None, 0, seed=0)


# --- what may be exchanged


def blocks_of(devices: str, strata: str | None = None) -> list[list[int]]:
    """Blocks as sorted lists of their units."""
    found = exchangeable_blocks(
        np.array(devices.split()), None if strata is None else np.array(strata.split())
    )
    assert found.dtype == np.int64
    return sorted(np.flatnonzero(found == block).tolist() for block in set(found.tolist()))


def test_labels_are_shuffled_over_devices_of_one_label_and_within_those_of_several() -> None:
    assert blocks_of("a b c d") == [[0, 1, 2, 3]]
    assert blocks_of("a b a b b") == [[0, 2], [1, 3, 4]]


def test_labels_stay_within_strata() -> None:
    assert blocks_of("a b c d", "x y x y") == [[0, 2], [1, 3]]
    assert blocks_of("a a a b b b", "x x y x y y") == [[0, 1], [2], [3], [4, 5]]


def test_devices_of_one_label_and_of_several_are_mixed_only_with_strata() -> None:
    with pytest.raises(InputError, match=r"device b has several labels and device a one;.*strata"):
        blocks_of("a b b c")
    # A device of several keeps its labels to itself even then.
    assert blocks_of("a b b c", "x x x x") == [[0, 3], [1, 2]]


def test_a_units_stratum_is_that_of_its_windows() -> None:
    unit = np.array([0, 2, 1, 1, 2])
    devices = np.array(["d1", "d2", "d3"])
    found = strata_of_units(unit, np.array(["x", "y", "x", "x", "y"]), devices)
    assert found.tolist() == ["x", "x", "y"]
    with pytest.raises(InputError, match="device d2 is in the strata x and z"):
        strata_of_units(unit, np.array(["x", "y", "x", "z", "y"]), devices)


def test_a_test_that_cannot_become_significant_says_so() -> None:
    def problem(codes: list[int], blocks: list[int] | None = None, n: int = 1000) -> str | None:
        at = None if blocks is None else np.array(blocks)
        return permuted_labels(np.array(codes), at, n, seed=0).problem

    # 20 ways, but the other way round is as good: 0.1.
    assert "20 ways only, of which 2 just rename classes" in str(problem([0, 0, 0, 1, 1, 1]))
    assert "below 0.1 can" in str(problem([0, 0, 0, 1, 1, 1]))
    # Four devices cannot be renamed into three: 1 / 35.
    assert problem([0, 0, 0, 1, 1, 1, 1]) is None
    # Two doses on each of five devices: 2 / 32; on six: 2 / 64.
    assert problem([0, 1] * 5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]) is not None
    assert problem([0, 1] * 6, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]) is None
    # Every device in a stratum of its own: nothing can be shuffled.
    assert "1 ways only" in str(problem([0, 0, 1, 1], [0, 1, 2, 3]))
    assert "18 permutations cannot give a p-value below 0.053" in str(
        problem([0, 1, 2, 3] * 5, n=18)
    )
    assert problem([0, 1, 2, 3] * 5, n=19) is None


# --- accuracies and p-values


def draw_predictions(seed: int) -> tuple[Any, ...]:
    """Few windows a unit, so that ties happen; the last device has two labels."""
    rng = np.random.default_rng(seed)
    r, k = 4, 3
    devices = np.array([f"d{i}" for i in range(6)] + ["d5"])
    codes = np.array([0, 1, 2, 0, 1, 0, 2])
    unit = np.concatenate([np.arange(7), rng.integers(0, 7, 15)])
    # Means of quarters are exact, so that equal means are equal.
    p = rng.integers(0, 3, (r, len(unit), k)) / 4
    predicted = rng.integers(0, k, (r, len(unit)))
    means = np.stack([p[:, unit == u].mean(axis=1) for u in range(7)], axis=1)
    return devices, codes, unit, p, predicted, means


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("with_scores", [True, False])
def test_accuracies_are_those_of_the_verdicts(seed: int, with_scores: bool) -> None:
    devices, codes, unit, p, predicted, means = draw_predictions(seed)
    classes = np.array(list("abc"))
    labels = np.tile(codes, (4, 1))
    found = device_accuracies(predicted, labels, unit, 3, means if with_scores else None)
    for row in range(4):
        probabilities = p[row] if with_scores else np.full_like(p[row], 1 / 3)
        windows = HeldOutWindows(
            classes[codes[unit]],
            classes[predicted[row]],
            probabilities,
            devices[unit],
            devices[unit],
            classes,
        )
        assert len(device_verdicts(windows)) == 7
        assert found[row] == pytest.approx(score(windows).device_accuracy)


def test_accuracies_count_against_each_sets_own_labels() -> None:
    unit = np.array([0, 0, 0, 1])
    predicted = np.array([[2, 2, 0, 1], [2, 2, 0, 1], [0, 1, 0, 2]], np.int8)
    labels = np.array([[2, 1], [1, 2], [0, 1]])
    assert device_accuracies(predicted, labels, unit, 3).tolist() == [1.0, 0.0, 0.5]
    with pytest.raises(ToptuneError, match=r"shape \(3, 4\) are not those of 2 sets"):
        device_accuracies(predicted, labels[:2], unit, 3)


def test_p_value_counts_the_observed_labels_and_ties() -> None:
    assert p_value(0.5, np.array([0.1, 0.5, 0.9])) == 3 / 4
    assert p_value(1.0, np.zeros(999)) == 1 / 1000
    assert p_value(0.5, np.array([])) == 1
    # 0.1 + 0.2 is above 0.3 by rounding only.
    assert p_value(0.1 + 0.2, np.array([0.3, 0.2999])) == 2 / 3
    with pytest.raises(ToptuneError, match="NaN"):
        p_value(0.5, np.array([0.1, np.nan]))


def difference(x: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far the mean of class 1 lies above that of class 0, for each row of labels."""
    ones = labels @ x / labels.sum(axis=1)
    zeros = (1 - labels) @ x / (1 - labels).sum(axis=1)
    above: NDArray[np.float64] = ones - zeros
    return above


@pytest.mark.parametrize("blocks", [[0] * 8, [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3]])
def test_exact_p_values_are_uniform_where_labels_mean_nothing(blocks: list[int]) -> None:
    # Any arrangement is as likely as another, so p <= alpha must not be more frequent than alpha.
    codes = np.array([0, 1] * 4)
    x = np.random.default_rng(0).normal(size=8)
    others = permuted_labels(codes, np.array(blocks), 1000, seed=0).labels
    ps = []
    for observed in [codes, *others]:
        found = permuted_labels(observed, np.array(blocks), 1000, seed=0)
        statistic = float(difference(x, observed[None])[0])
        ps.append(Fraction(p_value(statistic, difference(x, found.labels))).limit_denominator(1000))
    # No two statistics are equal here: every multiple of 1 / arrangements comes once.
    n = len(ps)
    assert sorted(ps) == [Fraction(i, n) for i in range(1, n + 1)]


def test_drawn_p_values_are_uniform_where_labels_mean_nothing() -> None:
    rng = np.random.default_rng(1)
    codes = np.arange(20) % 2
    ps = []
    for seed in range(1000):
        x = rng.normal(size=20)
        labels = permuted_labels(codes, None, 39, seed).labels
        ps.append(p_value(float(difference(x, codes[None])[0]), difference(x, labels)))
    for alpha in (0.05, 0.1, 0.25, 0.5):
        share = np.mean(np.array(ps) <= alpha + 1e-12)
        assert share == pytest.approx(alpha, abs=4 * np.sqrt(alpha * (1 - alpha) / 1000))


def test_shuffling_within_devices_sees_an_effect_that_devices_hide() -> None:
    # Doses shift each device a little, devices differ a lot.
    rng = np.random.default_rng(2)
    devices = np.repeat([f"d{i}" for i in range(8)], 2)
    codes = np.tile([0, 1], 8)
    x = np.repeat(rng.normal(size=8), 2) * 10 + codes + rng.normal(size=16) * 0.1
    within = permuted_labels(codes, exchangeable_blocks(devices), 1000, seed=0)
    assert within.exact
    assert p_value(float(difference(x, codes[None])[0]), difference(x, within.labels)) == 1 / 256
    freely = permuted_labels(codes, None, 1000, seed=0)
    assert p_value(float(difference(x, codes[None])[0]), difference(x, freely.labels)) > 0.2

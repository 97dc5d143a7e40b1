"""Scores against counting by hand and against textbook formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import InputErrors
from toptune.evaluation.scores import (
    HeldOutWindows,
    accuracy_interval,
    device_verdicts,
    majority,
    merge_classes,
    reliability,
    score,
    wilson_interval,
)
from toptune.params import parse_merges


def windows(rows: str, group: dict[str, str] | None = None) -> HeldOutWindows:
    """Rows ``device label prediction``, the named class with probability 0.8."""
    device, label, prediction = np.array([row.split() for row in rows.strip().splitlines()]).T
    classes = np.unique(label)
    probabilities = np.where(prediction[:, None] == classes, 0.8, 0.2 / max(len(classes) - 1, 1))
    groups = np.array([(group or {}).get(name, name) for name in device.tolist()])
    return HeldOutWindows(label, prediction, probabilities, device, groups, classes)


HAND = """
d1 A A
d1 A A
d1 A B
d2 A B
d2 A B
d3 B B
d3 B B
d4 C C
d4 C A
d4 C C
d4 C C
"""


def test_scores_by_hand() -> None:
    scores = score(windows(HAND))
    assert [verdict.prediction for verdict in scores.verdicts] == ["A", "B", "B", "C"]
    shares = [2 / 3, 0, 1, 3 / 4]
    mean = sum(shares) / 4
    assert scores.window_accuracy_mean == pytest.approx(mean)
    sd = math.sqrt(sum((share - mean) ** 2 for share in shares) / 3)
    assert scores.window_accuracy_sd == pytest.approx(sd)
    assert scores.device_accuracy == 3 / 4
    assert scores.balanced_accuracy == pytest.approx((1 / 2 + 1 + 1) / 3)
    # F1 = 2 TP / (2 TP + FP + FN), class by class.
    assert scores.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert scores.window_balanced_accuracy == pytest.approx((2 / 5 + 1 + 3 / 4) / 3)
    assert scores.window_macro_f1 == pytest.approx((4 / 8 + 4 / 7 + 6 / 7) / 3)
    assert scores.chance == 2 / 4
    assert scores.chance_balanced == pytest.approx(1 / 3)
    np.testing.assert_array_equal(scores.window_confusion, [[2, 3, 0], [0, 2, 0], [1, 0, 3]])
    np.testing.assert_array_equal(scores.device_confusion, [[1, 1, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(("right", "n"), [(0, 4), (3, 4), (26, 32), (31, 32), (30, 30)])
def test_wilson_interval_is_the_textbooks(right: int, n: int) -> None:
    rows = [f"d{i:02} {'AB'[i % 2]} {'AB'[(i + (i >= right)) % 2]}" for i in range(n)]
    scores = score(windows("\n".join(rows)))
    z, p = 1.959963984540054, right / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert scores.device_accuracy == p
    assert scores.device_accuracy_ci95 == pytest.approx((middle - half, middle + half), abs=1e-12)


Z = 1.959963984540054


def paired(*shares: str) -> tuple[NDArray[np.bool_], list[str]]:
    """Verdicts of devices, one word a device: ``+-`` is a right and a wrong one."""
    right = [sign == "+" for word in shares for sign in word]
    return np.array(right), [f"d{k}" for k, word in enumerate(shares) for _ in word]


def test_all_right_on_four_devices_is_what_four_units_show() -> None:
    low, high = accuracy_interval(*paired("++", "++", "++", "++"))
    # Wilson's of 4 of 4; eight independent verdicts would have given 0.68.
    assert (low, high) == pytest.approx((4 / (4 + Z**2), 1.0))
    assert low == pytest.approx(0.5101, abs=5e-5)
    assert wilson_interval(1.0, 8)[0] == pytest.approx(0.6756, abs=5e-5)
    assert accuracy_interval(*paired("--", "--", "--", "--")) == pytest.approx((0.0, 1 - low))


def test_one_right_and_one_wrong_on_every_device_is_what_as_many_devices_show() -> None:
    half = Z * math.sqrt(0.25 / 4 + Z**2 / 64) / (1 + Z**2 / 4)
    assert accuracy_interval(*paired("+-", "+-", "-+", "+-")) == pytest.approx(
        (0.5 - half, 0.5 + half)
    )


def test_devices_are_drawn_whole() -> None:
    # How often the wrong device is drawn is binomial, 4 draws at 1/4: never in 32 of 100, three
    # times or more in 5, always in 0.4. So the percentiles are 1 - 3/4 and 1.
    assert accuracy_interval(*paired("++", "++", "++", "--")) == (0.25, 1.0)
    # Of unequal devices the share is one of all verdicts that are drawn: (1 + 3 x 3) / (1 + 3 x 3)
    # at the upper end; at the lower end the device with three wrong ones is drawn each time.
    assert accuracy_interval(*paired("+", "---")) == (0.0, 1.0)


def test_an_error_makes_nothing_surer() -> None:
    # Percentiles alone would say 0.63 to 1, Wilson's of eight 0.53 to 0.98.
    low_and_high = pytest.approx((4 / (4 + Z**2), 1.0))
    assert accuracy_interval(*paired("++", "++", "++", "+-")) == low_and_high


def test_the_bootstrap_is_that_of_a_plain_loop() -> None:
    words = ["+++", "+--", "++-", "---", "+++", "+-+", "++", "+", "--", "+++", "++-", "+++"]
    right, devices = paired(*words)
    random = np.random.default_rng(1)
    shares = []
    for _ in range(20_000):
        drawn = "".join(words[k] for k in random.integers(len(words), size=len(words)))
        shares.append(drawn.count("+") / len(drawn))
    assert accuracy_interval(right, devices) == pytest.approx(
        tuple(np.percentile(shares, [2.5, 97.5])), abs=0.012
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("+-", min_size=1, max_size=4), min_size=1, max_size=9), st.randoms())
def test_an_interval_holds_the_share_and_is_no_narrower_than_of_independent_verdicts(
    words: list[str], random: Any
) -> None:
    right, devices = paired(*words)
    low, high = accuracy_interval(right, devices)
    assert 0 <= low <= right.mean() <= high <= 1
    independent = wilson_interval(float(right.mean()), len(right))
    if len(words) == len(right):
        assert (low, high) == independent
    else:
        assert low <= independent[0] + 1e-12
        assert high >= independent[1] - 1e-12
    # The order of verdicts, and the devices' names, say nothing.
    order = list(range(len(right)))
    random.shuffle(order)
    renamed = [f"x{devices[k]}" for k in order]
    assert accuracy_interval(right[order], renamed) == (low, high)


def test_a_tie_goes_to_the_more_probable_class_then_to_the_first() -> None:
    assert majority(np.array([2, 5, 5]), np.array([0.9, 0.3, 0.4])) == 2
    assert majority(np.array([5, 0, 5]), np.array([0.3, 0.9, 0.3])) == 0
    assert majority(np.array([1, 2, 1]), np.array([0.5, 0.0, 0.5])) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=6, max_size=40), st.randoms())
def test_verdicts_are_the_most_frequent_predictions(
    rows: list[tuple[int, int, int]], random: Any
) -> None:
    device, label, prediction = (
        np.array(list("abc"))[list(part)] for part in zip(*rows, strict=True)
    )
    classes = np.array(list("abc"))
    probabilities = np.array([[random.choice([0.1, 0.2, 0.3]) for _ in "abc"] for _ in rows])
    verdicts = device_verdicts(
        HeldOutWindows(label, prediction, probabilities, device, device, classes)
    )
    assert len(verdicts) == len(set(zip(device.tolist(), label.tolist(), strict=True)))
    for verdict in verdicts:
        mine = [
            i for i in range(len(rows)) if (device[i], label[i]) == (verdict.device, verdict.label)
        ]
        named = [str(prediction[i]) for i in mine]

        def rank(name: str, mine: list[int] = mine, named: list[str] = named) -> tuple[Any, ...]:
            mean = sum(probabilities[i]["abc".index(name)] for i in mine) / len(mine)
            return named.count(name), round(mean, 12)

        assert rank(verdict.prediction) == max(rank(name) for name in "abc")
        assert verdict.votes.tolist() == [named.count(name) for name in "abc"]
        assert verdict.n_windows == len(mine)


def test_a_device_with_several_labels_has_a_verdict_for_each() -> None:
    scores = score(
        windows(
            """
            d1 dose0 dose0
            d1 dose1 dose1
            d1 dose1 dose1
            d1 dose0 dose1
            d1 dose0 dose1
            d2 dose1 dose1
            d2 dose0 dose0
            """
        )
    )
    found = [(v.device, v.label, v.prediction, v.n_windows) for v in scores.verdicts]
    assert found == [
        ("d1", "dose0", "dose1", 3),
        ("d1", "dose1", "dose1", 2),
        ("d2", "dose0", "dose0", 1),
        ("d2", "dose1", "dose1", 1),
    ]
    assert (scores.n_devices, scores.device_accuracy) == (2, 3 / 4)
    # Half of the first device's verdicts are right, all of the second's: drawn twice, 1/2 or 1. As
    # of independent verdicts it would end at 0.30; that two devices are not all wrong, at 0.66.
    assert scores.device_accuracy_ci95 == pytest.approx((wilson_interval(0.75, 4)[0], 1.0))
    # Left out were two devices, not four verdicts.
    assert [(g.group, g.n_windows, g.n_correct) for g in scores.groups] == [
        ("d1", 5, 3),
        ("d2", 2, 2),
    ]


def test_window_accuracy_counts_groups_and_devices_are_within_them() -> None:
    scores = score(windows(HAND, {"d1": "batch1", "d2": "batch1", "d3": "batch2", "d4": "batch2"}))
    assert [group.group for group in scores.groups] == ["batch1", "batch2"]
    assert scores.window_accuracy_mean == pytest.approx((2 / 5 + 5 / 6) / 2)
    assert [verdict.group for verdict in scores.verdicts] == ["batch1"] * 2 + ["batch2"] * 2
    assert scores.device_accuracy == 3 / 4


def test_a_class_never_named_counts_as_zero_without_a_warning() -> None:
    scores = score(windows("d1 A A\nd2 B A\nd3 A A\nd4 B A"))
    assert scores.macro_f1 == pytest.approx((2 * 2 / 6 + 0) / 2)
    assert scores.balanced_accuracy == scores.chance == 0.5


# --- probabilities


def naive_error(
    confidence: list[float], right: list[bool], weights: list[float]
) -> tuple[float, list[int]]:
    """Expected calibration error as Guo et al. write it, bin by bin, and the bins' sizes.

    In 15 bins, or as many as leave five predictions for each.
    """
    total, sizes = 0.0, []
    n_bins = 15 if len(right) >= 75 else max(1, len(right) // 5)
    for m in range(1, n_bins + 1):
        low, high = (m - 1) / n_bins, m / n_bins
        mine = [i for i, c in enumerate(confidence) if low < c <= high or (m == 1 and c == 0)]
        sizes.append(len(mine))
        if mine:
            weight = sum(weights[i] for i in mine)
            mean = sum(weights[i] * confidence[i] for i in mine) / weight
            accuracy = sum(weights[i] * right[i] for i in mine) / weight
            total += weight / sum(weights) * abs(accuracy - mean)
    return total, sizes


def draw_windows(seed: int) -> HeldOutWindows:
    """Six devices of unequal length, of which dev0 has two labels; three classes."""
    rng = np.random.default_rng(seed)
    device = np.repeat([f"dev{i}" for i in range(6)], rng.integers(2, 30, 6))
    classes = np.array(list("abc"))
    number = np.unique(device, return_inverse=True)[1]
    label = classes[np.where(number == 0, np.arange(len(device)) % 2, number % 3)]
    logits = rng.normal(size=(len(device), 3)) + 1.0 * (label[:, None] == classes)
    p = np.exp(rng.uniform(0.2, 5) * logits)
    p /= p.sum(axis=1, keepdims=True)
    if seed % 2:
        # Multiples of a bin's width, 0 and 1: which bin they belong to is a matter of the edges.
        p = np.array([[0, 1, 0], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2], [0.8, 0.2, 0]])[
            rng.integers(0, 4, len(p))
        ]
    return HeldOutWindows(label, classes[p.argmax(axis=1)], p, device, device, classes)


@pytest.mark.parametrize("seed", range(12))
def test_calibration_error_is_that_of_a_naive_loop(seed: int) -> None:
    drawn = draw_windows(seed)
    scores = score(drawn)
    units = list(zip(drawn.device.tolist(), drawn.label.tolist(), strict=True))
    weights = [1 / units.count(unit) for unit in units]
    index = [list("abc").index(name) for name in drawn.prediction.tolist()]
    confidence = [float(p[i]) for p, i in zip(drawn.probabilities, index, strict=True)]
    right = [bool(x) for x in drawn.prediction == drawn.label]
    error, sizes = naive_error(confidence, right, weights)
    assert scores.window_ece == pytest.approx(error, abs=1e-12)
    assert scores.window_reliability.count.tolist() == sizes
    assert scores.window_reliability.share.sum() == pytest.approx(1)

    verdicts = scores.verdicts
    error, sizes = naive_error(
        [float(v.probabilities["abc".index(v.prediction)]) for v in verdicts],
        [v.prediction == v.label for v in verdicts],
        [1.0] * len(verdicts),
    )
    assert len(verdicts) == 7
    assert scores.device_ece == pytest.approx(error, abs=1e-12)
    assert scores.device_reliability.count.tolist() == sizes


@pytest.mark.parametrize("seed", range(4))
def test_brier_score_is_that_of_a_naive_loop(seed: int) -> None:
    drawn = draw_windows(seed)
    scores = score(drawn)
    by_unit: dict[tuple[str, str], list[float]] = {}
    for device, label, p in zip(drawn.device, drawn.label, drawn.probabilities, strict=True):
        squares = [(p[i] - (name == label)) ** 2 for i, name in enumerate("abc")]
        by_unit.setdefault((device, label), []).append(float(sum(squares)))
    expected = np.mean([np.mean(values) for values in by_unit.values()])
    assert scores.window_brier == pytest.approx(expected)
    expected = np.mean(
        [
            sum((v.probabilities[i] - (name == v.label)) ** 2 for i, name in enumerate("abc"))
            for v in scores.verdicts
        ]
    )
    assert scores.device_brier == pytest.approx(expected)


def test_reliability_by_hand() -> None:
    table = reliability(
        np.array([0.0, 0.5, 0.5, 0.9, 1.0]), np.array([False, True, False, True, True]), n_bins=2
    )
    assert table.edges.tolist() == [0, 0.5, 1]
    assert table.count.tolist() == [3, 2]
    np.testing.assert_allclose(table.share, [0.6, 0.4])
    np.testing.assert_allclose(table.confidence, [1 / 3, 0.95])
    np.testing.assert_allclose(table.accuracy, [1 / 3, 1])
    assert table.expected_calibration_error == pytest.approx(0.4 * 0.05)
    empty = reliability(np.array([1 + 1e-12]), np.array([True]), n_bins=2)
    assert empty.count.tolist() == [0, 1]
    assert np.isnan(empty.accuracy[0])
    assert empty.expected_calibration_error == pytest.approx(0, abs=1e-9)


def test_a_verdicts_confidence_is_that_of_the_class_it_names() -> None:
    # Two of three windows say A, but the mean probability of B is larger.
    p = np.array([[0.55, 0.45], [0.55, 0.45], [0.0, 1.0], [0.0, 1.0]])
    device = np.array(["d1", "d1", "d1", "d2"])
    label = np.array(["A", "A", "A", "B"])
    prediction = np.array(["A", "A", "B", "B"])
    scores = score(HeldOutWindows(label, prediction, p, device, device, np.array(["A", "B"])))
    assert scores.verdicts[0].prediction == "A"
    assert scores.device_ece == pytest.approx((1 - 1.1 / 3) / 2)


def merged(labels: str, *merges: str) -> NDArray[np.str_]:
    return merge_classes(labels.split(), parse_merges(merges))


def test_classes_are_merged_under_the_new_name() -> None:
    found = merged("100E0I 75E25I 50E50I 25E75I 0E100I 75E25I", "MIX = 75E25I, 50E50I,25E75I")
    assert found.tolist() == ["100E0I", "MIX", "MIX", "MIX", "0E100I", "MIX"]
    # The new name may be one of those merged, and names may swap.
    assert merged("A B C", "A=A,B").tolist() == ["A", "A", "C"]
    assert merged("A B C D", "X=A,B", "A=C,D").tolist() == ["X", "X", "A", "A"]
    assert merged("A B").tolist() == ["A", "B"]


def test_everything_wrong_with_merges_is_said_at_once() -> None:
    with pytest.raises(InputErrors) as refused:
        parse_merges(["A,B", "X=A,,B", "=A", "Y=A", "Y=B"])
    assert [line.split(" ", 2)[1] for line in refused.value.problems] == [
        "'A,B'",
        "'X=A,,B'",
        "'=A'",
        "gives",
    ]
    with pytest.raises(InputErrors) as refused:
        merged("A B C", "X=A,Z", "C=A,B")
    assert list(refused.value.problems) == [
        "cannot merge class 'Z': there is no such class; there are A, B, C",
        "class 'A' is merged more than once",
        "cannot call merged classes 'C': another class has that name",
    ]

"""Limits of novelty against naive definitions, and what oversteps them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import ToptuneError
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.head import FalkonHead
from toptune.heads.falkon.kernel import KernelSum, Nearness
from toptune.heads.mlp.classifier import MLPClassifier
from toptune.heads.mlp.head import MLPHead
from toptune.heads.parameters.head import ParametersHead
from toptune.heads.parameters.logistic import LogisticClassifier
from toptune.recordings.trains import RecordingFacts
from toptune.runs.novelty import NoveltyLimits, Range, judge, reference_rows, training_limits

TWO_VIEWS = Nearness(KernelSum((0.4, 0.9), (0.3, 0.7), (3, 2), (1.0, 2.0)))


def naive_kernel(x: NDArray[Any], z: NDArray[Any], nearness: Nearness) -> float:
    """Sum over views of weight x mean of Gaussians of normalised parts."""
    kernel, total, first = nearness.kernel, 0.0, 0
    for width, weight, size in zip(kernel.widths, kernel.weights, kernel.view_sizes, strict=True):
        parts = [np.asarray(row[first : first + size], np.float64) for row in (x, z)]
        if nearness.normalise:
            parts = [p / np.sqrt((p**2).sum()) if p.any() else p for p in parts]
        squared = ((parts[0] - parts[1]) ** 2).sum()
        gaussians = [np.exp(-squared / (2 * (scale * width) ** 2)) for scale in kernel.scales]
        total += weight * np.mean(gaussians)
        first += size
    return float(total)


def test_rows_of_parameters_are_compared_as_they_are_and_nan_lies_at_0() -> None:
    rng = np.random.default_rng(1)
    rows = rng.random((12, 4)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    nearness = ParametersHead().nearness(LogisticClassifier(), (4,))
    assert not nearness.normalise
    filled = np.nan_to_num(rows, nan=0.0)
    expected = [max(naive_kernel(x, z, nearness) for z in filled[6:]) for x in filled[:6]]
    np.testing.assert_allclose(nearness.largest(rows[:6], rows[6:]), expected, rtol=1e-6)
    device = np.repeat(np.arange(4), 3)
    limits = training_limits(rows, device, [make_facts()], nearness)
    assert 0 < limits.least_nearness < 1
    again = NoveltyLimits.from_json(limits.to_json(), limits.reference)
    assert not judge(rows[:1], make_facts(), again).unlike_training
    assert judge(rows[:1] + 50, make_facts(), again).unlike_training


def make_rows(seed: int, n: int, d: int = 5) -> NDArray[np.float32]:
    return np.abs(np.random.default_rng(seed).standard_normal((n, d))).astype(np.float32)


def make_facts(name: str = "r", **changes: Any) -> RecordingFacts:
    values: dict[str, Any] = {
        "sampling_rate_hz": 10_000.0, "n_electrodes": 60, "n_spikes": 6_000, "duration_s": 100.0
    }  # fmt: skip
    return RecordingFacts(name=name, **(values | changes))


def make_limits(**changes: Any) -> NoveltyLimits:
    features, device = make_rows(0, 40), np.repeat(np.arange(4), 10)
    limits = training_limits(features, device, [make_facts()], TWO_VIEWS)
    return replace(limits, **changes)


@pytest.mark.parametrize(
    "nearness",
    [
        TWO_VIEWS,
        replace(TWO_VIEWS, normalise=False),
        Nearness(KernelSum((0.4, 0.9), (1.0, 0.0), (3, 2))),
        Nearness(KernelSum((0.4, 0.9), (0.3, 0.7), (3, 2))),
        Nearness.plain((5,)),
        Nearness.plain((2, 2, 1)),
    ],
)
def test_nearness_is_the_largest_kernel_value(nearness: Nearness) -> None:
    X, Z = make_rows(1, 7), make_rows(2, 9)
    X[3] = 0
    expected = [max(naive_kernel(x, z, nearness) for z in Z) for x in X]
    np.testing.assert_allclose(nearness.largest(X, Z), expected, rtol=1e-5)
    np.testing.assert_allclose(nearness.largest(Z, Z), 1.0, atol=1e-6)


def test_falkon_lends_its_kernel_and_the_mlp_a_plain_one() -> None:
    falkon = FalkonClassifier(
        width=(0.3, 0.8), view_sizes=(3, 2), view_weights=(0.25, 0.75), normalise=False
    )
    assert FalkonHead().nearness(falkon, (3, 2)) == Nearness(
        KernelSum((0.3, 0.8), (0.25, 0.75), (3, 2)), normalise=False
    )
    assert FalkonHead().nearness(FalkonClassifier(width=0.7), (5,)) == Nearness(
        KernelSum((0.7,), (1.0,), (5,))
    )
    assert MLPHead().nearness(MLPClassifier(view_sizes=(3, 2)), (3, 2)) == Nearness(
        KernelSum((0.5, 0.5), (0.5, 0.5), (3, 2))
    )


def test_limit_is_learnt_between_devices_never_within_one() -> None:
    rng = np.random.default_rng(4)
    device = np.repeat(["a", "b", "c"], [30, 20, 25])
    features = make_rows(3, 75) + 2 * rng.random((3, 5))[np.repeat([0, 1, 2], [30, 20, 25])]
    features = features.astype(np.float32)
    limits = training_limits(features, device, [make_facts()], TWO_VIEWS, max_reference=24)
    codes = np.unique(device, return_inverse=True)[1]
    rows = reference_rows(codes, 24)
    np.testing.assert_array_equal(limits.reference, features[rows])
    assert limits.reference.dtype == np.float32
    nearest = [
        max(naive_kernel(x, features[row], TWO_VIEWS) for row in rows if device[row] != own)
        for x, own in zip(features, device, strict=True)
    ]
    assert limits.least_nearness == pytest.approx(np.quantile(nearest, 0.01), rel=1e-5)


def test_a_device_far_from_all_others_widens_the_limit_though_it_is_near_itself() -> None:
    features = np.ones((40, 5), np.float32) + 0.01 * make_rows(5, 40)
    device = np.repeat(np.arange(4), 10)
    near = training_limits(features, device, [make_facts()], TWO_VIEWS).least_nearness
    features[30:, 0] = 50.0
    far = training_limits(features, device, [make_facts()], TWO_VIEWS).least_nearness
    assert near > 0.99
    assert far < 0.9


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=9), limit=st.integers(2, 40))
def test_reference_rows_are_spread_evenly_over_devices(sizes: list[int], limit: int) -> None:
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = reference_rows(codes, limit)
    assert rows.tolist() == sorted(set(rows.tolist()))
    taken = np.bincount(codes[rows], minlength=len(sizes)).tolist()
    if len(sizes) > limit:
        assert sorted(taken, reverse=True)[:limit] == [1] * limit == [1] * sum(taken)
        return
    share = max(s for s in range(10) if sum(min(size, s) for size in sizes) <= limit)
    assert taken == [min(size, share) for size in sizes]
    for device, size in enumerate(sizes):
        mine = np.searchsorted(np.flatnonzero(codes == device), rows[codes[rows] == device])
        steps = np.diff([-mine[0] - 1, *mine, 2 * size - 1 - mine[-1]])  # mirrored at the ends
        assert steps.max() - steps.min() <= 2


def test_few_rows_are_all_kept() -> None:
    assert reference_rows(np.array([0, 1, 1, 0, 2]), 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("n_devices", "facts"), [(1, [make_facts()]), (2, [])])
def test_limits_of_too_little_are_refused(n_devices: int, facts: list[RecordingFacts]) -> None:
    device = np.arange(10) % n_devices
    with pytest.raises(ToptuneError, match="need two devices and their recordings"):
        training_limits(make_rows(0, 10), device, facts, TWO_VIEWS)


def test_ranges_are_those_of_the_training_recordings() -> None:
    recordings = [
        make_facts(n_spikes=600),  # 0.1 a second and electrode
        make_facts(n_spikes=24_000, n_electrodes=120, sampling_rate_hz=20_000.0),  # 2
        make_facts(n_spikes=2_950, n_electrodes=59, duration_s=50.0),  # 1
    ]
    limits = training_limits(make_rows(0, 10), np.arange(10) % 2, recordings, TWO_VIEWS)
    assert limits.electrode_rate_hz == pytest.approx((0.1, 2.0))
    assert limits.n_electrodes == (59, 120)
    assert limits.sampling_rates_hz == (10_000.0, 20_000.0)


def test_a_recording_is_unlike_when_more_than_half_its_windows_are() -> None:
    limits = make_limits(least_nearness=0.9)
    near, far = limits.reference[:1], np.array([[-9, 0, 0, 0, -9]], np.float32)
    assert max(naive_kernel(far[0], z, TWO_VIEWS) for z in limits.reference) < 0.9
    half = judge(np.repeat(np.concatenate([near, far]), 3, axis=0), make_facts(), limits)
    assert half.unlike.tolist() == [False] * 3 + [True] * 3
    assert (half.unlike_training, half.warnings) == (False, ())
    more = judge(np.concatenate([near, far, far]), make_facts(), limits)
    assert more.unlike_training
    assert more.warnings == (
        "2 of 3 windows are unlike any window of the training devices: the verdict is an"
        " extrapolation",
    )
    np.testing.assert_allclose(more.nearness[0], 1, atol=1e-6)


@pytest.mark.parametrize(
    ("rate_hz", "unlike"),
    [(0.65, True), (0.68, False), (1.0, False), (4.0, False), (5.9, False), (6.1, True), (0, True)],
)
def test_rates_more_than_half_as_much_outside_the_range_are_unlike(
    rate_hz: float, unlike: bool
) -> None:
    limits = make_limits(electrode_rate_hz=Range(1.0, 4.0))
    facts = make_facts(n_spikes=round(rate_hz * 6000))
    judged = judge(limits.reference[:3], facts, limits)
    assert judged.unlike_training is unlike
    assert not judged.unlike.any()
    expected = f"mean firing rate {rate_hz:.3g} spikes/s per electrode, training had 1 to 4"
    assert [w.startswith(expected) for w in judged.warnings] == [True] * unlike


def test_silence_is_known_where_training_had_silent_recordings() -> None:
    limits = make_limits(electrode_rate_hz=Range(0.0, 4.0))
    assert not judge(limits.reference[:3], make_facts(n_spikes=0), limits).warnings


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"n_electrodes": 58}, "58 electrodes, training had 59 to 60"),
        ({"n_electrodes": 61}, "61 electrodes, training had 59 to 60"),
        ({"n_electrodes": 59}, None),
        ({"sampling_rate_hz": 25_000.0}, "sampled at 25000 Hz, training at 10000 and 20000 Hz"),
        ({"sampling_rate_hz": 20_000.0}, None),
    ],
)
def test_other_electrodes_and_sampling_rates_are_warned_of_by_name(
    changes: dict[str, Any], warning: str | None
) -> None:
    limits = make_limits(
        n_electrodes=Range(59, 60),
        sampling_rates_hz=(10_000.0, 20_000.0),
        electrode_rate_hz=Range(0.5, 2.0),
    )
    judged = judge(limits.reference[:3], make_facts(**changes), limits)
    assert not judged.unlike_training
    assert len(judged.warnings) == (warning is not None)
    assert warning is None or judged.warnings[0].startswith(warning)


def test_limits_come_back_from_json() -> None:
    limits = make_limits()
    text = json.dumps(limits.to_json(), allow_nan=False)
    back = NoveltyLimits.from_json(json.loads(text), limits.reference)
    names = set(limits.__dataclass_fields__) - {"reference"}
    assert {n: getattr(back, n) for n in names} == {n: getattr(limits, n) for n in names}
    rows = make_rows(8, 20)
    np.testing.assert_array_equal(
        judge(rows, make_facts(), back).nearness, judge(rows, make_facts(), limits).nearness
    )
    with pytest.raises(ValueError, match="do not fit the kernel"):
        NoveltyLimits.from_json(json.loads(text), limits.reference[:, :4])


@pytest.mark.parametrize("n", [1, 7, 8, 9, 20])
def test_rows_are_judged_alike_whoever_comes_with_them(n: int) -> None:
    limits = make_limits()
    rows = make_rows(20, n)
    together = limits.nearness_of(rows)
    alone = np.concatenate([limits.nearness_of(rows[k : k + 1]) for k in range(n)])
    np.testing.assert_array_equal(together, alone)
    expected = limits.nearness.largest(rows, limits.reference)
    np.testing.assert_allclose(together, expected, rtol=1e-12)


def test_no_rows_are_judged_too() -> None:
    limits = make_limits()
    assert limits.nearness_of(limits.reference[:0]).shape == (0,)

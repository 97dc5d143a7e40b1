"""PTSD and its noise thresholds against the definition written out, and against planted spikes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import Alignment, Ptsd
from toptune.spikes.noise import mad_sd, noise_thresholds, noise_windows
from toptune.spikes.ptsd import detect_spikes
from toptune.spikes.ptsd_compiled import BLOCK

RATE_HZ = 10_000.0


def naive_ptsd(
    samples: NDArray[np.float32],
    threshold: np.float32,
    lifetime: int,
    refractory: int,
    overshoot: int,
    negative: bool,
) -> list[tuple[int, float]]:
    """The sequential form of the definition, one channel, word for word."""
    n = samples.size
    x = samples - np.float32(samples.astype(np.float64).sum() / n)
    size = np.abs(x)
    spikes = []
    c = 1
    while c <= n - 2:
        if not (size[c] > size[c - 1] and size[c] >= size[c + 1]):
            c += 1
            continue
        window = min(lifetime, n - 1 - c)
        first_low, first_high = (np.argmin, np.argmax) if x[c] > 0 else (np.argmax, np.argmin)
        e = c + int(first_low(x[c : c + window + 1]))
        s = c + int(first_high(x[c : e + 1]))
        if e == c + window and c + window + overshoot < n:
            e = c + int(first_low(x[c : c + window + overshoot + 1]))
        d = np.abs(x[s] - x[e])
        if d < threshold:
            c += 1
            continue
        start_dates = x[s] < x[e] if negative else size[s] > size[e]
        ts = s if start_dates else e
        spikes.append((ts, float(d)))
        c = ts + refractory if (ts + refractory > e and ts + refractory < n) else e + 1
    return spikes


def found_by(
    samples: NDArray[np.float32], ptsd: Ptsd, thresholds: list[float], n_jobs: int = 1
) -> list[list[tuple[int, float]]]:
    spikes = detect_spikes(samples, RATE_HZ, ptsd, np.array(thresholds, np.float32), n_jobs=n_jobs)
    return [
        [
            (int(s), float(d))
            for s, d in zip(
                spikes.sample[spikes.channel == c],
                spikes.peak_to_peak_uv[spikes.channel == c],
                strict=True,
            )
        ]
        for c in range(samples.shape[0])
    ]


@st.composite
def voltages(draw: st.DrawFn) -> NDArray[np.float32]:
    """Few distinct values, so that ties and plateaus happen; quiet stretches to be skipped."""
    channels = draw(st.integers(1, 3))
    n = draw(st.integers(3, 5 * BLOCK + 7))
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.integers(1, 6))
    loud = draw(st.floats(0.02, 1.0))
    rng = np.random.default_rng(seed)
    x = rng.integers(-levels, levels + 1, (channels, n)).astype(np.float32)
    runs = np.repeat(rng.random((channels, n // 8 + 1)) < loud, 8, axis=1)[:, :n]
    plateau = rng.random((channels, n)) < draw(st.floats(0, 0.5))
    plateau[:, 0] = False
    for row, hold in zip(x, plateau, strict=True):
        for t in np.flatnonzero(hold):
            row[t] = row[t - 1]
    return np.where(runs, x, np.float32(0)).astype(np.float32)


@settings(max_examples=400, deadline=None)
@given(
    samples=voltages(),
    threshold=st.floats(0.5, 14),
    lifetime=st.integers(1, 90),
    refractory=st.integers(0, 80),
    overshoot=st.integers(0, 70),
    alignment=st.sampled_from(["largest", "negative"]),
)
def test_detection_equals_the_sequential_definition(
    samples: NDArray[np.float32],
    threshold: float,
    lifetime: int,
    refractory: int,
    overshoot: int,
    alignment: Alignment,
) -> None:
    ptsd = Ptsd(
        lifetime_ms=lifetime / 10,
        refractory_ms=refractory / 10,
        overshoot_ms=overshoot / 10,
        alignment=alignment,
    )
    expected = [
        naive_ptsd(
            row, np.float32(threshold), lifetime, refractory, overshoot, alignment == "negative"
        )
        for row in samples
    ]
    assert found_by(samples, ptsd, [threshold] * samples.shape[0]) == expected


def test_detection_equals_the_definition_on_coloured_noise_with_offset() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 20_000)).cumsum(axis=1) * 0.2 + rng.standard_normal((4, 20_000))
    x = (x + np.array([[0], [1000], [-3000], [5]])).astype(np.float32)
    thresholds = [3.0, 5.0, 4.0, 6.5]
    expected = [
        naive_ptsd(row, np.float32(t), 20, 10, 5, False)
        for row, t in zip(x, thresholds, strict=True)
    ]
    assert sum(map(len, expected)) > 1000
    assert found_by(x, Ptsd(), thresholds, n_jobs=2) == expected


def test_spikes_are_sorted_by_sample_then_channel_whatever_the_threads() -> None:
    x = np.random.default_rng(0).standard_normal((7, 30_000)).astype(np.float32)
    one = detect_spikes(x, RATE_HZ, Ptsd(threshold_sd=5), n_jobs=1)
    two = detect_spikes(x, RATE_HZ, Ptsd(threshold_sd=5), n_jobs=2)
    assert one.sample.size > 100
    keys = list(zip(one.sample.tolist(), one.channel.tolist(), strict=True))
    assert keys == sorted(set(keys))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [a.dtype.name for a in one] == ["int64", "int32", "float32"]


def test_more_spikes_than_the_first_buffer_holds_are_all_returned() -> None:
    x = np.tile(np.array([0, 5, -5, 0], np.float32), 4000)[None]
    ptsd = Ptsd(lifetime_ms=0.1, refractory_ms=0, overshoot_ms=0)
    expected = naive_ptsd(x[0], np.float32(5), 1, 0, 0, False)
    assert len(expected) > 3000
    assert found_by(x, ptsd, [5.0]) == [expected]


def test_noise_is_the_smallest_sd_of_thirty_windows() -> None:
    rng = np.random.default_rng(1)
    n = 95_017
    x = rng.standard_normal((2, n)).astype(np.float32) * np.linspace(1, 3, n, dtype=np.float32)
    x[1] *= 4
    step = round(n / 30)
    for row, got in zip(x, noise_thresholds(x, RATE_HZ, Ptsd()).threshold_uv, strict=True):
        sds = [np.std(row[i * step : i * step + 2000].astype(float), ddof=1) for i in range(30)]
        assert got == np.float32(8 * min(sds))


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (59_999, [(i * 2000, (i + 1) * 2000) for i in range(29)]),
        (60_000, [(i * 2000, (i + 1) * 2000) for i in range(30)]),
        (4_500, [(0, 2000), (2000, 4000)]),
        (1_500, [(0, 1500)]),
    ],
)
def test_short_recordings_use_contiguous_windows(n: int, expected: list[tuple[int, int]]) -> None:
    assert [(w.start, w.stop) for w in noise_windows(n, RATE_HZ)] == expected


def test_mad_is_the_median_deviation_over_0_6745() -> None:
    x = np.random.default_rng(2).normal(3, 7, (2, 5001)).astype(np.float32)
    for row, got in zip(x, mad_sd(x), strict=True):
        middle = sorted(row.tolist())[2500]
        deviations = sorted(abs(v - middle) for v in row.tolist())
        assert got == pytest.approx(deviations[2500] / 0.6745, rel=1e-6)
    got = noise_thresholds(x, RATE_HZ, Ptsd(noise="mad", threshold_sd=5)).threshold_uv
    np.testing.assert_allclose(got, 5 * mad_sd(x), rtol=1e-6)


def test_dead_and_over_noisy_channels_are_told() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((3, 70_000)).astype(np.float32)
    x[1] = 17.0
    x[2] *= 300
    thresholds = noise_thresholds(x, RATE_HZ, Ptsd())
    assert thresholds.dead.tolist() == [False, True, False]
    assert thresholds.noisy.tolist() == [False, False, True]
    assert thresholds.threshold_uv[2] == np.float32(800)
    spikes = detect_spikes(x, RATE_HZ, Ptsd(threshold_sd=4))
    assert set(spikes.channel.tolist()) == {0, 2}


def test_a_fixed_threshold_is_taken_as_it_is() -> None:
    x = np.random.default_rng(5).standard_normal((2, 3000)).astype(np.float32)
    fixed = noise_thresholds(x, RATE_HZ, Ptsd(noise="fixed", threshold_uv=6.5))
    assert fixed.threshold_uv.tolist() == [6.5, 6.5]
    assert found_by(x, Ptsd(), [6.5, 6.5]) == [
        naive_ptsd(row, np.float32(6.5), 20, 10, 5, False) for row in x
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_by_channel(bad: float) -> None:
    x = np.zeros((2, 500), np.float32)
    x[1, 321] = bad
    with pytest.raises(InputError, match="channel 1 holds NaN or infinite"):
        detect_spikes(x, RATE_HZ, Ptsd(), np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: detect_spikes(x[0], RATE_HZ), r"\(channels, samples\)"),
        (lambda x: detect_spikes(x, 0.0), "sampling_rate_hz must be above 0"),
        (lambda x: detect_spikes(x, RATE_HZ, None, np.ones(3, np.float32)), "each of 2 channels"),
        (lambda x: detect_spikes(x, RATE_HZ, None, np.zeros(2, np.float32)), "above 0, got 0.0"),
        (lambda x: detect_spikes(x, 100.0), "less than one sample at 100 Hz"),
    ],
)
def test_bad_arguments_give_one_clear_line(call, message: str) -> None:  # type: ignore[no-untyped-def]  # a lambda a row
    with pytest.raises(InputError, match=message) as error:
        call(np.zeros((2, 100), np.float32))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_a_recording_of_hardly_any_samples_has_no_spikes(n: int) -> None:
    spikes = detect_spikes(np.zeros((2, n), np.float32), RATE_HZ, Ptsd(), np.ones(2, np.float32))
    assert spikes.sample.size == 0

"""PTSD against simulated spikes whose times are known: hits, false positives and doubles."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from known_traces import Traces, simulate_traces

from toptune.params import HighPass, Ptsd
from toptune.spikes.filters import HighPassFilter
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.ptsd import detect_spikes

RATE_HZ = 10_000.0
TOLERANCE = 10  # samples, 1 ms


class Judged(NamedTuple):
    """Shares of the true spikes found, of the found that are false, and found twice."""

    sensitivity: float
    false: float
    doubles: float


def traces(peak_sd: float) -> Traces:
    return simulate_traces(n_channels=20, seconds=60, seed=1, peak_sd=peak_sd)


def judge(given: Traces, *, cutoff_hz: float = 0.0) -> Judged:
    samples = HighPassFilter(HighPass(cutoff_hz=cutoff_hz), RATE_HZ, len(given.samples_uv)).apply(
        given.samples_uv
    )
    found = detect_spikes(samples, RATE_HZ, Ptsd())
    hits = doubles = 0
    for channel in range(len(samples)):
        true = given.spikes.sample[given.spikes.channel == channel]
        mine = found.sample[found.channel == channel]
        near = np.abs(mine[None, :] - true[:, None]) <= TOLERANCE
        hits += int(near.any(axis=1).sum())
        # A spike found again while the first finding is still within reach of the same truth.
        doubles += int(np.maximum(near.sum(axis=1) - 1, 0).sum())
    n_true, n_found = given.spikes.sample.size, found.sample.size
    return Judged(hits / n_true, (n_found - hits - doubles) / n_found, doubles / n_true)


def test_spikes_of_six_point_six_noise_sds_are_found_once_and_little_else_is() -> None:
    judged = judge(traces(6.6))
    assert judged.sensitivity >= 0.90
    assert judged.false <= 0.05
    assert judged.doubles <= 0.001


def test_the_default_filter_keeps_spikes_findable_without_doubles() -> None:
    judged = judge(traces(8.0), cutoff_hz=300.0)
    assert judged.sensitivity >= 0.90
    assert judged.false <= 0.05
    assert judged.doubles <= 0.01


def test_sensitivity_rises_and_false_positives_do_not_as_spikes_grow() -> None:
    judged = [judge(traces(peak_sd)) for peak_sd in (4.0, 4.7, 5.5, 6.6, 8.0)]
    found = [j.sensitivity for j in judged]
    assert found == sorted(found)
    assert found[0] < 0.5
    assert all(b.false <= a.false + 0.005 for a, b in pairwise(judged))


@pytest.mark.parametrize("peak_sd", [4.7, 6.6])
def test_the_noise_estimate_is_at_most_five_percent_low(peak_sd: float) -> None:
    given = traces(peak_sd)
    estimate = noise_thresholds(given.samples_uv, RATE_HZ, Ptsd()).noise_sd_uv
    ratio = estimate / given.noise_sd_uv
    assert 0.95 <= ratio.mean() <= 1.0

"""PTSD against simulated spikes whose times are known: recall, precision and doubles."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from known_traces import Traces, simulate_traces
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from toptune.params import HighPass, Ptsd
from toptune.recordings.mcs import McsRecording
from toptune.recordings.simulated import simulate
from toptune.recordings.spike_npz import read_npz
from toptune.spikes.filters import HighPassFilter
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.ptsd import detect_spikes
from toptune.spikes.streaming import detect_recording

RATE_HZ = 10_000.0
TOLERANCE = 10  # samples, 1 ms


class Judged(NamedTuple):
    """Shares of the true spikes found, of the found that are false, and found twice."""

    sensitivity: float
    false: float
    doubles: float


def traces(peak_sd: float) -> Traces:
    return simulate_traces(n_channels=20, seconds=60, seed=1, peak_sd=peak_sd)


NONE = HighPass(cutoff_hz=0)
EARLIER = HighPass(cutoff_hz=300, order=2)


def judge(given: Traces, highpass: HighPass = NONE) -> Judged:
    samples = HighPassFilter(highpass, RATE_HZ, len(given.samples_uv)).apply(given.samples_uv)
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
    judged = judge(traces(8.0), HighPass())
    assert judged.sensitivity >= 0.90
    assert judged.false <= 0.05
    assert judged.doubles <= 0.001


def test_a_large_spike_is_found_once_behind_the_default_filter_and_twice_behind_order_2() -> None:
    given = simulate_traces(n_channels=10, seconds=30, seed=2, peak_sd=25.0)
    # Most of what is found twice is more than 1 ms behind the true spike, and so counts as false.
    assert judge(given, HighPass()).false <= 0.01
    assert judge(given, EARLIER).false >= 0.3


def recall_and_precision(folder: Path, highpass: HighPass) -> tuple[float, float]:
    """Pair detections with true spikes at most 1 ms away, one with one, as many as possible."""
    n_true = n_found = paired = 0
    for path in sorted(folder.glob("*.h5")):
        with McsRecording(path) as recording:
            found = detect_recording(recording, highpass, n_jobs=1).trains
        true = read_npz(path.with_suffix(".truth.npz"))
        assert true.channel_labels == found.channel_labels
        for channel in range(len(true.channel_labels)):
            ours = found.spikes.sample[found.spikes.channel == channel]
            there = true.spikes.sample[true.spikes.channel == channel]
            near = csr_array(np.abs(ours[:, None] - there[None, :]) <= TOLERANCE)
            paired += int((maximum_bipartite_matching(near, "column") >= 0).sum())
        n_true += len(true.spikes.sample)
        n_found += len(found.spikes.sample)
    assert n_found > 5000
    return paired / n_true, paired / n_found


def test_simulated_cultures_are_detected_with_few_extras_and_no_fewer_spikes_than_before(
    tmp_path: Path,
) -> None:
    simulate(tmp_path, n_devices=3, seconds=15, seed=5)
    recall, precision = recall_and_precision(tmp_path, HighPass())
    earlier = recall_and_precision(tmp_path, EARLIER)
    assert precision >= 0.98
    assert recall >= earlier[0]
    assert earlier[1] < 0.96


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

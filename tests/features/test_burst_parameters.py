"""All parameters against plain definitions, on trains made by hand, and what must not matter."""

from __future__ import annotations

import math
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from burst_data import (
    by_electrode,
    make_trains,
    naive_histogram,
    naive_log_isi,
    naive_max_interval,
    naive_network_bursts,
    naive_threshold_ms,
    per_train,
    spike_trains,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import shared

from toptune.features.burst_features import (
    NAMES,
    recording_parameters,
    window_parameters,
)
from toptune.params import BurstCriteria, Windows
from toptune.recordings.opening import SpikeRecording, open_recording
from toptune.recordings.trains import SpikeTrains

C = BurstCriteria()


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def cv(values: list[float]) -> float:
    if len(values) < 2 or sum(values) <= 0:
        return math.nan
    return float(np.std(values) / np.mean(values))


def of_bursts(
    trains: list[list[int]],
    bursts: list[list[tuple[int, int]]],
    n: int,
    duration_s: float,
    rate_hz: float,
) -> dict[str, float]:
    """Statistics of bursts; trains of n electrodes, stretch by stretch."""
    found = [(t, a, b) for t, of_train in zip(trains, bursts, strict=True) for a, b in of_train]
    interval_s = [
        (t[c] - t[b]) / rate_hz
        for t, of_train in zip(trains, bursts, strict=True)
        for (_, b), (c, _) in pairwise(of_train)
    ]
    a_minute = [sum(map(len, bursts[e::n])) / (duration_s / 60) for e in range(n)]
    n_spikes = sum(map(len, trains))
    return {
        "burst_rate_per_min": sum(a_minute) / n if n else 0.0,
        "bursting_share": mean([float(r >= C.bursting_per_minute) for r in a_minute]),
        "burst_spike_share": sum(b - a + 1 for _, a, b in found) / n_spikes
        if n_spikes
        else math.nan,
        "burst_duration_s": mean([(t[b] - t[a]) / rate_hz for t, a, b in found]),
        "burst_spikes": mean([float(b - a + 1) for _, a, b in found]),
        "burst_interval_s": mean(interval_s),
        "burst_interval_cv": cv(interval_s),
    }


def naive_parameters(trains: SpikeTrains) -> dict[str, float]:
    """What has no test of its own elsewhere."""
    n_all, duration_s = len(trains.channel_labels), trains.duration_s
    rate_hz = trains.sampling_rate_hz
    rates = [len(train) / duration_s for train in by_electrode(trains)]
    active = [e for e, rate in enumerate(rates) if rate >= C.active_hz]
    _, plain = per_train(trains)
    kept = [t for k, t in enumerate(plain) if k % n_all in active]
    n = len(active)
    intervals = [[b - a for t in kept[e::n] for a, b in pairwise(t)] for e in range(n)]
    thresholds = []
    for isi in intervals:
        counts = naive_histogram(isi, rate_hz)
        valley, peak = naive_threshold_ms(counts, C)
        thresholds.append((valley, peak) if counts.sum() >= 3 else (math.nan, False))
    used = [
        math.nan if not peak else C.cutoff_ms if math.isnan(valley) else valley
        for valley, peak in thresholds
    ]
    logs = [math.log(v) for v, _ in thresholds if not math.isnan(v)]
    max_interval = [naive_max_interval(t, C, rate_hz) for t in kept]
    log_isi = [naive_log_isi(t, used[k % n], C, rate_hz) for k, t in enumerate(kept)]
    network, events = naive_network_bursts(kept, log_isi, n, C, rate_hz)
    starts_s = [
        (b.start - a.start) / rate_hz for a, b in pairwise(network) if a.stretch == b.stretch
    ]
    n_spikes = sum(map(len, kept))
    with_log_isi = of_bursts(kept, log_isi, n, duration_s, rate_hz)
    return {
        "firing_rate_hz": mean(rates),
        "active_share": n / n_all,
        "active_rate_hz": mean([rates[e] for e in active]),
        "rate_cv": cv([rates[e] for e in active]),
        **of_bursts(kept, max_interval, n, duration_s, rate_hz),
        **{f"logisi_{k}": v for k, v in with_log_isi.items() if k != "burst_interval_cv"},
        "logisi_threshold_s": math.exp(mean(logs)) / 1000 if logs else math.nan,
        "event_interval_s": float(np.median(events)) / rate_hz if events else math.nan,
        "network_burst_rate_per_min": len(network) / (duration_s / 60),
        "network_burst_duration_s": mean([(b.end - b.start) / rate_hz for b in network]),
        "network_burst_electrodes": mean([len(b.electrodes) / n for b in network]),
        "network_burst_spike_share": sum(b.n_spikes for b in network) / n_spikes
        if n_spikes
        else math.nan,
        "network_burst_interval_s": mean(starts_s),
        "network_burst_interval_cv": cv(starts_s),
    }


@settings(deadline=None, max_examples=100)
@given(spike_trains())
def test_parameters_follow_their_definitions(trains: SpikeTrains) -> None:
    found = recording_parameters(trains)._asdict()
    for name, value in naive_parameters(trains).items():
        assert found[name] == pytest.approx(value, nan_ok=True), name


def test_a_real_culture_is_measured_by_the_definitions(tmp_path: Path) -> None:
    """The first 40 s, which hold both silent and bursting electrodes."""
    archive = shared("data", "cxhp3d", "CxHp3D.tar.gz")
    with tarfile.open(archive) as tar:
        members = [m for m in tar if m.name.split("/")[1:2] == ["1_CxHp3D"]]
        tar.extractall(tmp_path, members=members, filter="data")
    recording = open_recording(tmp_path / "CxHp3D" / "1_CxHp3D")
    assert isinstance(recording, SpikeRecording)
    whole = recording.trains()
    cut = [[s for s in train if s < 400_000] for train in by_electrode(whole)]
    trains = make_trains(cut, 400_000, whole.sampling_rate_hz)
    found = recording_parameters(trains)._asdict()
    for name, value in naive_parameters(trains).items():
        assert found[name] == pytest.approx(value, nan_ok=True), name
    assert not any(math.isnan(value) for value in found.values())
    # What is known of such cultures: they burst, together, several times a minute.
    assert 0.5 < found["active_share"] < 1
    assert 0.5 < found["burst_spike_share"] < 1
    assert 2 < found["network_burst_rate_per_min"] < 60
    assert found["spike_time_tiling"] > 0.2


@settings(deadline=None, max_examples=40)
@given(spike_trains(), st.randoms(use_true_random=False))
def test_the_order_of_electrodes_does_not_matter(trains: SpikeTrains, random: object) -> None:
    electrodes = by_electrode(trains)
    getattr(random, "shuffle")(electrodes)  # noqa: B009  # Hypothesis gives no type for it
    shuffled = make_trains(electrodes, [s.n_samples for s in trains.segments])
    before, after = recording_parameters(trains), recording_parameters(shuffled)
    np.testing.assert_allclose(before, after, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(spike_trains())
def test_a_window_is_a_recording_of_its_own(trains: SpikeTrains) -> None:
    windows = Windows(width_s=2.0, stride_s=0.5)
    values, start_s = window_parameters(trains, windows)
    assert values.shape == (len(start_s), len(NAMES))
    at = 0
    for segment in trains.segments:
        for first in range(0, segment.n_samples - 2_000 + 1, 500):
            low = segment.first_sample + first
            inside = [[s - low for s in t if 0 <= s - low < 2_000] for t in by_electrode(trains)]
            alone = recording_parameters(make_trains(inside, 2_000))
            np.testing.assert_allclose(values[at], alone, rtol=1e-9, atol=1e-12)
            at += 1
    assert at == len(values)


@pytest.mark.parametrize("electrodes", [[[]], [[], []], [[500]], [[500], []]])
def test_silence_has_rates_and_nothing_else(electrodes: list[list[int]]) -> None:
    """At 60 s, a single spike is too little for an active electrode."""
    found = recording_parameters(make_trains(electrodes, 60_000))
    n_spikes = sum(map(len, electrodes))
    known = {name: value for name, value in found._asdict().items() if not math.isnan(value)}
    assert known == {
        "firing_rate_hz": n_spikes / 60 / len(electrodes),
        "active_share": 0.0,
        "burst_rate_per_min": 0.0,
        "logisi_burst_rate_per_min": 0.0,
        "network_burst_rate_per_min": 0.0,
    }


def test_without_electrodes_only_the_network_is_silent() -> None:
    found = recording_parameters(make_trains([], 60_000))._asdict()
    assert {name: v for name, v in found.items() if not math.isnan(v)} == {
        "burst_rate_per_min": 0.0,
        "logisi_burst_rate_per_min": 0.0,
        "network_burst_rate_per_min": 0.0,
    }
    values, _ = window_parameters(make_trains([], 9_000), Windows(width_s=2.0))
    assert values.shape == (2, 30)


def bursting_culture() -> SpikeTrains:
    """Two electrodes with five bursts of ten spikes each, 12 s apart, and a silent one."""
    train = [start + 20 * k for start in range(3_000, 60_000, 12_000) for k in range(10)]
    return make_trains([train, [s + 5 for s in train], []], 60_000)


def test_known_values_of_a_culture_made_by_hand() -> None:
    found = recording_parameters(bursting_culture())
    expected = {
        "firing_rate_hz": 100 / 60 / 3,
        "active_share": 2 / 3,
        "active_rate_hz": 50 / 60,
        "rate_cv": 0.0,
        "burst_rate_per_min": 5.0,
        "bursting_share": 1.0,
        "burst_spike_share": 1.0,
        "burst_duration_s": 0.18,
        "burst_spikes": 10.0,
        "burst_interval_s": 12 - 0.18,
        "burst_interval_cv": 0.0,
        "logisi_burst_rate_per_min": 5.0,
        "logisi_burst_duration_s": 0.18,
        "network_burst_rate_per_min": 5.0,
        "network_burst_duration_s": 0.185,
        "network_burst_electrodes": 1.0,
        "network_burst_spike_share": 1.0,
        "network_burst_interval_s": 12.0,
        "network_burst_interval_cv": 0.0,
        "event_interval_s": 0.005,
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-12), name
    assert 0.02 < found.logisi_threshold_s < 1
    assert found.spike_time_tiling > 0.99
    assert found.count_correlation == pytest.approx(1)


def test_every_parameter_has_its_unit_or_none() -> None:
    units = ("_hz", "_s", "_per_min")
    without = {
        "active_share", "rate_cv", "isi_cv", "isi_cv2", "isi_lv", "bursting_share",
        "burst_spike_share", "burst_spikes", "burst_interval_cv", "logisi_bursting_share",
        "logisi_burst_spike_share", "logisi_burst_spikes", "network_burst_electrodes",
        "network_burst_spike_share", "network_burst_interval_cv", "spike_time_tiling",
        "count_correlation",
    }  # fmt: skip
    assert {name for name in NAMES if not name.endswith(units)} == without


def test_the_documentation_defines_every_parameter() -> None:
    text = (Path(__file__).parents[2] / "docs" / "parameters.md").read_text("utf-8")
    assert [name for name in NAMES if f"`{name}`" not in text] == []
    criteria = BurstCriteria()
    for value in ("0.1 spikes/s", "170 ms", "300 ms", "200 ms", "10 ms", "0.4 bursts", "50 ms"):
        assert value in text
    assert (criteria.start_ms, criteria.end_ms, criteria.between_ms) == (170, 300, 200)

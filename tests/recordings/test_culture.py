"""Simulated cultures: what users and detectors must find in them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import McsPy.McsData
import numpy as np
import pytest
from known_traces import simulate_traces
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.devices import read_devices
from toptune.recordings.mcs import McsRecording
from toptune.recordings.opening import open_recording
from toptune.recordings.simulated import (
    TYPICAL_TEMPLATE,
    simulate,
    simulation_of,
    template_waveform,
)
from toptune.recordings.simulated_network import EXCITATORY_FRACTIONS, Activity, simulate_activity
from toptune.recordings.spike_npz import read_npz
from toptune.spikes.ptsd import detect_spikes

RATE = 10_000.0
SECONDS = 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "new" / "folder"
    simulate(out, n_devices=10, seconds=SECONDS, seed=1, n_jobs=2)
    return out


def counts_of(path: Path) -> NDArray[np.int32]:
    with h5py.File(path) as file:
        streams = file["Data/Recording_0/AnalogStream"].values()
        raw = next(s for s in streams if b"Raw" in s.attrs["Label"])
        values: NDArray[np.int32] = raw["ChannelData"][...]
    return values


# Files


def test_files_are_as_described_and_the_devices_file_passes_its_checks(folder: Path) -> None:
    devices = read_devices(folder / "devices.csv")
    assert devices.labels == ("100E0I", "75E25I", "50E50I", "25E75I", "0E100I")
    assert [row.columns["batch"] for row in devices.rows] == ["B1"] * 5 + ["B2"] * 5
    assert len({row.device for row in devices.rows}) == 10
    expected = {"devices.csv", "simulation.json"} | {
        f"{row.device}{end}" for row in devices.rows for end in (".h5", ".truth.npz")
    }
    assert {path.name for path in folder.iterdir()} == expected


def test_every_file_is_the_same_for_any_number_of_jobs(folder: Path, tmp_path: Path) -> None:
    simulate(tmp_path, n_devices=3, seconds=SECONDS, seed=1, n_jobs=1)
    for path in sorted(tmp_path.iterdir()):
        # Those two tell how many devices there are.
        if path.name not in ("devices.csv", "simulation.json"):
            assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_a_folder_tells_how_it_was_simulated(folder: Path, tmp_path: Path) -> None:
    assert simulation_of(folder) == {"n_devices": 10, "seconds": SECONDS, "seed": 1}
    assert simulation_of(tmp_path) is None
    for content in ("", "[]", '{"kind": "other"}', '{"kind": "toptune simulation", "seed": 1}'):
        (tmp_path / "simulation.json").write_text(content)
        assert simulation_of(tmp_path) is None
    # The command line has no option for the sampling rate.
    simulate(tmp_path / "fast", n_devices=1, seconds=0.1, seed=0, sampling_rate_hz=20_000.0)
    assert simulation_of(tmp_path / "fast") is None


def test_another_seed_gives_another_recording(folder: Path, tmp_path: Path) -> None:
    simulate(tmp_path, n_devices=1, seconds=SECONDS, seed=2)
    name = "D01_100E0I.h5"
    assert (tmp_path / name).read_bytes() != (folder / name).read_bytes()


# McsPyDataTools uses what a newer pint will drop.
@pytest.mark.filterwarnings("ignore:Calling the getitem method:DeprecationWarning")
def test_mcs_own_library_and_toptune_read_the_same_microvolts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(McsPy.McsData, "VERBOSE", False)
    path = folder / "D01_100E0I.h5"
    file = McsPy.McsData.RawData(str(path))
    stream = next(s for s in file.recordings[0].analog_streams.values() if "Raw" in s.label)
    recording = open_recording(path)
    assert isinstance(recording, McsRecording)
    with recording:
        mine = np.concatenate(list(recording.chunks()), axis=1)
        labels = recording.channel_labels
    assert len(labels) == 59
    by_label = {info.label: key for key, info in stream.channel_infos.items()}
    for row in (0, 30, 58):
        volts, _ = stream.get_channel_in_range(by_label[labels[row]])
        np.testing.assert_allclose(mine[row], volts * 1e6, rtol=1e-6)
    file.h5_file.close()


def test_one_electrode_is_the_reference_and_one_is_dead(folder: Path) -> None:
    for path in sorted(folder.glob("*.h5"))[:3]:
        data = counts_of(path)
        flat = np.flatnonzero(np.ptp(data, axis=1) == 0)
        assert data.shape == (60, SECONDS * RATE)
        assert len(flat) == 2
        assert 3 in flat  # the row of Ref, electrode 15
        assert (data[3] == 0).all()
        truth = read_npz(path.with_suffix(".truth.npz"))
        dead = next(row for row in flat if row != 3)
        assert dead - (dead > 3) not in truth.spikes.channel


def test_truth_is_dated_at_the_negative_peaks_in_the_voltage(folder: Path) -> None:
    """Averaged over its spikes, each large spike's trough lies on the very sample, at its size."""
    path = folder / "D01_100E0I.h5"
    truth = read_npz(path.with_suffix(".truth.npz"))
    voltage = np.delete(counts_of(path), 3, axis=0) * 0.059605
    checked = 0
    for channel in range(59):
        mine = truth.spikes.channel == channel
        for swing in np.unique(truth.spikes.peak_to_peak_uv[mine]):
            at = truth.spikes.sample[mine & (truth.spikes.peak_to_peak_uv == swing)]
            at = at[(at > 30) & (at < voltage.shape[1] - 30)]
            if swing < 80 or len(at) < 5:
                continue
            mean = np.mean([voltage[channel, t - 10 : t + 20] for t in at], axis=0)
            assert np.argmin(mean) == 10
            assert np.ptp(mean) == pytest.approx(swing, rel=0.25)
            checked += 1
    assert checked >= 3


def test_existing_files_are_refused_by_name_and_replaced_when_told(tmp_path: Path) -> None:
    simulate(tmp_path, n_devices=1, seconds=0.1, seed=0)
    before = (tmp_path / "D01_100E0I.h5").read_bytes()
    with pytest.raises(InputError, match=r"devices\.csv exists already"):
        simulate(tmp_path, n_devices=1, seconds=0.1, seed=1)
    assert (tmp_path / "D01_100E0I.h5").read_bytes() == before
    simulate(tmp_path, n_devices=1, seconds=0.1, seed=1, overwrite=True)
    assert (tmp_path / "D01_100E0I.h5").read_bytes() != before
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"n_devices": 0}, "n_devices must be 1 or above, got 0"),
        ({"n_jobs": 0}, "n_jobs must be 1 or above, got 0"),
        ({"seed": -1}, "seed must be 0 or above, got -1"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0"),
        ({"seconds": float("nan")}, "seconds must be above 0, got nan"),
        ({"sampling_rate_hz": 500.0}, "sampling_rate_hz must be 5000 or above, got 500"),
        ({"sampling_rate_hz": 30_000.0}, "whole microseconds"),
    ],
)
def test_senseless_parameters_are_refused(
    tmp_path: Path, wrong: dict[str, float], part: str
) -> None:
    good = {"n_devices": 1, "seconds": 0.1, "seed": 0}
    with pytest.raises(InputError, match=part):
        simulate(tmp_path / "out", **(good | wrong))  # type: ignore[arg-type]  # one dict for all types
    assert not (tmp_path / "out").exists()


def test_other_rates_keep_their_time_base(tmp_path: Path) -> None:
    done: list[str] = []
    simulate(
        tmp_path, n_devices=1, seconds=0.5, seed=0, sampling_rate_hz=20_000, on_device=done.append
    )
    assert done == ["D01_100E0I"]
    recording = open_recording(tmp_path / "D01_100E0I.h5")
    assert isinstance(recording, McsRecording)
    with recording:
        assert recording.sampling_rate_hz == 20_000
    assert read_npz(tmp_path / "D01_100E0I.truth.npz").duration_s == 0.5


# The network


class Population(NamedTuple):
    """What a histogram of all spikes shows."""

    bursts_per_min: float
    variation: float


def activity(fraction: float, seed: int, seconds: float = 40.0) -> Activity:
    axis = np.arange(8) * 200.0
    positions = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return simulate_activity(
        np.random.default_rng(seed),
        fraction,
        positions,
        n_samples=round(seconds * RATE),
        sampling_rate_hz=RATE,
    )


def population(found: Activity, seconds: float = 40.0) -> Population:
    """Count the excursions of the 50 ms histogram above five times its median."""
    edges = np.arange(0, seconds + 0.025, 0.05)
    histogram = np.histogram(found.sample / RATE, edges)[0]
    above = np.flatnonzero(histogram > 5 * np.median(histogram))
    bursts = np.sum(np.diff(above, prepend=-100) > 10)
    return Population(bursts * 60 / seconds, histogram.std() / histogram.mean())


@pytest.fixture(scope="module")
def by_class() -> dict[str, list[Population]]:
    return {
        label: [population(activity(fraction, 10 * number + seed)) for seed in range(8)]
        for number, (label, fraction) in enumerate(EXCITATORY_FRACTIONS.items())
    }


def test_inhibition_makes_bursts_rare_and_then_none(by_class: dict[str, list[Population]]) -> None:
    rates = [float(np.mean([p.bursts_per_min for p in found])) for found in by_class.values()]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 12
    assert rates[0] > 1.2 * rates[1] > 1.2 * 1.2 * rates[2]
    assert rates[2] > rates[3] + 1
    assert rates[4] == 0


def test_bursting_classes_vary_more_than_tonic_ones(by_class: dict[str, list[Population]]) -> None:
    variation = [float(np.mean([p.variation for p in found])) for found in by_class.values()]
    assert min(variation[:2]) > variation[2] > variation[3] > variation[4]
    assert variation[4] < 0.5


def test_neighbouring_classes_overlap_but_distant_ones_do_not(
    by_class: dict[str, list[Population]],
) -> None:
    ranges = [
        (min(p.bursts_per_min for p in found), max(p.bursts_per_min for p in found))
        for found in by_class.values()
    ]
    for (low, _), (_, high) in pairwise(ranges):
        assert high >= low
    assert ranges[0][0] > ranges[3][1]


def test_no_neuron_fires_within_its_refractory_time() -> None:
    found = activity(1.0, 3)
    for unit in range(len(found.electrode)):
        train = found.sample[found.unit == unit]
        assert np.all(np.diff(train) >= 0.003 * RATE - 1)
        assert train.size == 0 or (train[0] >= 0 and train[-1] < 40 * RATE)


def test_electrodes_differ_in_their_rates() -> None:
    found = activity(0.0, 4)
    rates = np.bincount(found.electrode[found.unit], minlength=64) / 40
    assert 0.5 < rates.mean() < 8
    assert rates.std() > 0.5 * rates.mean()


# Traces to judge detectors by


def test_noise_has_the_standard_deviation_asked_for() -> None:
    traces = simulate_traces(n_channels=8, seconds=20, seed=0, peak_sd=8, rate_hz=0, noise_sd_uv=4)
    assert len(traces.spikes.sample) == 0
    np.testing.assert_allclose(traces.samples_uv.std(axis=1), 4, rtol=0.02)
    neighbours = np.corrcoef(traces.samples_uv[0, 1:], traces.samples_uv[0, :-1])[0, 1]
    # Yule-Walker: a / (1 - b) for coefficients 0.35 and 0.1.
    assert neighbours == pytest.approx(0.35 / 0.9, abs=0.01)
    across = np.corrcoef(traces.samples_uv) - np.eye(8)
    assert np.abs(across).max() < 0.02


def test_traces_minus_their_noise_are_the_templates_at_the_true_spikes() -> None:
    args = {"n_channels": 3, "seconds": 5, "seed": 5, "noise_sd_uv": 2.0}
    small, large = (simulate_traces(peak_sd=peak, **args) for peak in (10.0, 20.0))  # type: ignore[arg-type]  # one dict for all types
    difference = large.samples_uv - small.samples_uv
    expected = np.zeros_like(difference)
    wave = template_waveform(TYPICAL_TEMPLATE, 20.0, RATE)
    peak_at = int(np.argmin(wave))
    assert wave[peak_at] == pytest.approx(-20)
    for sample, channel in zip(large.spikes.sample, large.spikes.channel, strict=True):
        expected[channel, sample - peak_at : sample - peak_at + len(wave)] += wave
    np.testing.assert_allclose(difference, expected, atol=1e-4)
    np.testing.assert_allclose(large.spikes.peak_to_peak_uv, 2 * np.ptp(wave), rtol=1e-6)
    assert len(large.spikes.sample) > 50


def test_templates_are_biphasic_and_end_at_zero() -> None:
    for rate in (5_000.0, 10_000.0, 25_000.0):
        wave = template_waveform(TYPICAL_TEMPLATE, 50.0, rate)
        assert wave.min() == pytest.approx(-50)
        assert 10 < wave.max() < 30
        assert np.argmax(wave) > np.argmin(wave)
        assert abs(wave[0]) < 0.5
        assert abs(wave[-1]) < 0.5


def test_large_spikes_of_a_simulated_recording_are_found(folder: Path) -> None:
    """Lone true spikes well above threshold are what a detector cannot be excused for missing."""
    path = folder / "D05_0E100I.h5"
    truth = read_npz(path.with_suffix(".truth.npz"))
    voltage = (np.delete(counts_of(path), 3, axis=0) * 0.059605).astype(np.float32)
    found = detect_spikes(voltage, RATE)
    hits = []
    for channel in range(59):
        times = truth.spikes.sample[truth.spikes.channel == channel]
        swings = truth.spikes.peak_to_peak_uv[truth.spikes.channel == channel]
        detections = found.sample[found.channel == channel]
        for time, swing in zip(times, swings, strict=True):
            alone = np.sum(np.abs(times - time) < 60) == 1
            if alone and swing > 80:
                hits.append(bool(np.any(np.abs(detections - time) <= 10)))
    assert len(hits) > 20
    assert np.mean(hits) > 0.95

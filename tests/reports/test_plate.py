"""Plates: wells are listed, chosen, and go from one file to a run that leaves wells out."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import Run, read_csv, read_json

from toptune.errors import InputError
from toptune.params import SpikeSettings
from toptune.recordings.mcs import McsRecording
from toptune.recordings.mcs_writer import McsChannel, McsHeader, McsStream, McsWriter
from toptune.recordings.opening import SpikeRecording, open_recording
from toptune.recordings.spike_csv import read_spike_csv
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.wells import SeveralCulturesError, well_of_plate
from toptune.reports.plate import plate, wells_in
from toptune.runs.verdicts import SEEN
from toptune.spikes.finding import find_spikes

N_WELLS, N_ELECTRODES, SECONDS, RATE = 24, 3, 8, 10_000
SPIKE = np.concatenate([np.linspace(0, -1, 8), np.linspace(-1, 0.6, 9), np.linspace(0.6, 0, 10)])


def wells_counts(seed: int) -> np.ndarray:
    """Noise with spikes, (electrodes of all wells, samples) int32; odd wells fire in bursts."""
    random = np.random.default_rng(seed)
    shape = (N_WELLS * N_ELECTRODES, SECONDS * RATE)
    counts = random.normal(0, 60, shape)
    for row in range(shape[0]):
        well = row // N_ELECTRODES
        starts = np.sort(random.integers(100, shape[1] - 100, 10 + well))
        if well % 2:
            starts = (starts // 20_000) * 20_000 + 1000 + 150 * np.arange(len(starts)) % 9000
        for start in starts:
            counts[row, start : start + len(SPIKE)] += 3000 * SPIKE
    return np.rint(counts).astype(np.int32)


@pytest.fixture(scope="module")
def plate_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 24-well plate; every well has electrodes 12, 21 and 22 and a reference."""
    path = tmp_path_factory.mktemp("plate") / "plate.h5"
    channels = tuple(
        McsChannel(
            label=("12", "21", "22")[k % N_ELECTRODES], channel_id=k, group_id=k // N_ELECTRODES
        )
        for k in range(N_WELLS * N_ELECTRODES)
    )
    stream = McsStream(label="Data Acquisition (1) Electrode Raw Data", channels=channels)
    with McsWriter(path, McsHeader(mea_name="24W300/30G-288", mea_layout="24W")) as writer:
        writer.add_recording().add_stream(stream).write(wells_counts(0))
    return path


def test_a_plate_is_never_read_as_one_culture(plate_file: Path, tmp_path: Path, run: Run) -> None:
    with pytest.raises(SeveralCulturesError, match=r"holds 24 wells, A1, A2, .* and 12 more"):
        open_recording(plate_file)
    for command in (("inspect",), ("detect", "-o", tmp_path / "all.npz")):
        ran = run(command[0], plate_file, *command[1:])
        assert ran.code == 2
        assert "--well" in ran.err
    with pytest.raises(InputError, match="has no well E1; it has A1"):
        open_recording(plate_file, well="E1")


def test_a_well_has_its_own_electrodes_and_samples(plate_file: Path) -> None:
    counts = wells_counts(0)
    for number, name in ((0, "A1"), (8, "B3"), (23, "d06")):
        with McsRecording(plate_file, well=name) as recording:
            assert recording.channel_labels == ("12", "21", "22")
            rows = slice(number * N_ELECTRODES, (number + 1) * N_ELECTRODES)
            expected = counts[rows, 500:900] * np.float32(59605e-6)
            np.testing.assert_allclose(recording.read(500, 900), expected, rtol=1e-6)


def test_wells_are_named_row_by_row() -> None:
    assert [well_of_plate(n, 24) for n in (0, 5, 6, 23)] == ["A1", "A6", "B1", "D6"]
    assert [well_of_plate(n, 96) for n in (0, 11, 12, 95)] == ["A1", "A12", "B1", "H12"]
    assert well_of_plate(24, 24) is None
    assert well_of_plate(0, 5) is None


def test_the_listing_says_what_detection_finds_in_each_well(plate_file: Path) -> None:
    assert wells_in(plate_file)[:7] == ("A1", "A2", "A3", "A4", "A5", "A6", "B1")
    wells = plate(plate_file)
    assert len(wells) == N_WELLS
    one = find_spikes(plate_file, SpikeSettings(well="C2"), stage=lambda *_: None).trains
    listed = next(well for well in wells if well.name == "C2")
    assert (listed.n_spikes, listed.n_electrodes) == (len(one.spikes.sample), N_ELECTRODES)
    assert listed.rate_hz == pytest.approx(len(one.spikes.sample) / SECONDS / N_ELECTRODES)


def test_a_file_of_one_culture_is_no_plate(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("time_s,channel\n0.5,12\n")
    with pytest.raises(InputError, match="holds one culture"):
        plate(tmp_path / "one.csv")


@pytest.mark.usefixtures("tiny_backbones")
def test_from_a_listing_to_a_run_that_leaves_wells_out(
    plate_file: Path, tmp_path: Path, run: Run
) -> None:
    table = tmp_path / "devices.csv"
    assert run("plate", plate_file, "-o", table).code == 0
    rows = read_csv(table)
    assert len(rows) == N_WELLS
    # As it is written, it says which cells are to be filled in.
    ran = run("extract", table, "--store", tmp_path / "s.zarr")
    assert ran.code == 2
    assert "line 2: label is missing" in ran.err
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for k, row in enumerate(rows[:8]):
            writer.writerow({**row, "label": "bursting" if k % 2 else "tonic"})
    tiny = ("--window-s", "4", "--stride-s", "2", "--backbone", "tiny", "--weights", "random")
    ran = run("extract", table, "--store", tmp_path / "s.zarr", *tiny)
    assert ran.code == 0, ran.err
    assert "8 recordings extracted" in ran.out + ran.err
    again = run("extract", table, "--store", tmp_path / "s.zarr", *tiny)
    assert "8 were there already" in again.out + again.err
    assert run("doctor", tmp_path / "s.zarr").code == 0
    out = tmp_path / "run"
    ran = run("fit", tmp_path / "s.zarr", "--head", "falkon", "-o", out, "--permutations", "0")
    assert ran.code == 0, ran.err
    assert read_json(out / "metrics.json")["n_devices"] == 8
    assert {row["device"] for row in read_csv(out / "devices.csv")} == {
        f"plate-{row['well']}" for row in rows[:8]
    }
    # The run's model judges a well that it has not seen.
    ran = run("predict", out / "model", plate_file, "--well", "D6")
    assert ran.code == 0, ran.err
    assert SEEN not in ran.out + ran.err
    ran = run("predict", out / "model", plate_file, "--well", "a02")
    assert SEEN in ran.out + ran.err
    ran = run("why", out / "model", plate_file, "--well", "D6", "-o", tmp_path / "why")
    assert ran.code == 0, ran.err


# --- spike lists


def read_spikes(path: Path, **options: Any) -> SpikeTrains:
    recording = open_recording(path, **options)
    assert isinstance(recording, SpikeRecording)
    return recording.trains()


AXION = (
    "Investigator,,Time (s),Electrode,Amplitude(mV)\r\n"
    "Experiment ID,x,0.5,A1_12,-0.05\r\n"
    ",,0.25,B3_12,0.02\r\n"
    "Well Information,,,,\r\n"
    ",,1.75,A1_21,0.04\r\n"
)


def test_a_list_of_axion_is_read_with_its_units_and_notes(tmp_path: Path) -> None:
    path = tmp_path / "axis.csv"
    path.write_bytes(b"\xef\xbb\xbf" + AXION.encode())
    whole = read_spike_csv(path)
    assert whole.channel_labels == ("A1_12", "A1_21", "B3_12")
    assert whole.spikes.sample.tolist() == [2500, 5000, 17500]
    np.testing.assert_allclose(whole.spikes.peak_to_peak_uv, [20, 50, 40], rtol=1e-6)
    well = read_spikes(path, well="a1", duration_s=3)
    assert well.channel_labels == ("12", "21")
    assert well.spikes.sample.tolist() == [5000, 17500]
    silent = read_spikes(path, well="C6", duration_s=3)
    assert (len(silent.spikes.sample), silent.duration_s) == (0, 3)
    with pytest.raises(InputError, match="has no spike in well C6, only in A1, B3"):
        read_spikes(path, well="C6")


def test_a_list_of_the_multiwell_analyzer_is_in_microseconds_and_picovolts(tmp_path: Path) -> None:
    path = tmp_path / "mw.csv"
    path.write_text(
        "\ufeffChannel ID,Channel Label,Well ID,Well Label,Timestamp [\u00b5s],"
        "Peak-to-peak Amplitude [pV]\n0,12,0,A2,335641,15000000\n1,12,1,A1,1036713,30000000\n",
        encoding="utf-8",
    )
    trains = read_spikes(path, well="A2", duration_s=2)
    assert trains.spikes.sample.tolist() == [3356]
    np.testing.assert_allclose(trains.spikes.peak_to_peak_uv, [15])

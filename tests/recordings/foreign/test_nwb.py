"""NWB files: written by pynwb and read back, and a real one against pynwb's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from foreign_files import counts, read_spikes, read_whole, write_nwb
from needs import shared

from toptune.errors import InputError
from toptune.recordings.opening import open_recording

pytest.importorskip("pynwb", reason="pynwb: not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # what pynwb warns of while it writes


def test_an_electrical_series_is_read_in_microvolts(tmp_path: Path) -> None:
    data = counts(3000, 3)
    scale: dict[str, Any] = {
        "conversion": 2e-7,
        "offset": 1e-5,
        "channel_conversion": [1.0, 2.0, 0.5],
    }
    recording, got = read_whole(write_nwb(tmp_path / "a.nwb", {"Raw": data}, **scale))
    expected = data.T * 0.2 * np.array([[1.0], [2.0], [0.5]]) + 10.0
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-4)
    assert recording.kind == "nwb"
    assert recording.channel_labels == ("E1", "E2", "E3")
    assert recording.sampling_rate_hz == 10_000
    assert [tuple(s) for s in recording.segments] == [(0, 3000, 0.0)]
    assert recording.layout == "MEA60"
    assert recording.date.startswith("2024-05-03")


def test_times_of_samples_give_rate_and_gaps(tmp_path: Path) -> None:
    times = 5.0 + np.arange(2000) / 2500.0
    times[1200:] += 0.5
    recording, got = read_whole(
        write_nwb(tmp_path / "a.nwb", {"Raw": counts(2000, 2)}, timestamps=times)
    )
    assert recording.sampling_rate_hz == 2500
    assert [tuple(s) for s in recording.segments] == [
        (0, 1200, 0.0),
        (1200, 800, pytest.approx(0.98)),
    ]
    assert got.shape == (2, 2000)


def test_what_was_acquired_is_taken_before_what_was_processed(tmp_path: Path) -> None:
    data = counts(900, 2)
    path = write_nwb(
        tmp_path / "a.nwb", {"Raw": data, "LFP": counts(900, 2, seed=1)}, processed=["LFP"],
        conversion=1e-6,
    )  # fmt: skip
    recording, got = read_whole(path)
    assert recording.stream_label == "Raw"
    np.testing.assert_array_equal(got, data.T)
    assert read_whole(path, stream="lfp")[0].stream_label == "LFP"
    path = write_nwb(tmp_path / "b.nwb", {"A": data, "B": data})
    with pytest.raises(InputError, match=r"2 streams could .* choose one of 'A', 'B'"):
        open_recording(path)


def test_wells_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    data = counts(900, 4)
    names = ["A1_11", "A1_12", "B1_11", "B1_12"]
    path = write_nwb(tmp_path / "a.nwb", {"Raw": data}, names=names, conversion=1e-6)
    with pytest.raises(InputError, match="holds 2 wells, A1, B1"):
        open_recording(path)
    np.testing.assert_array_equal(read_whole(path, well="B1")[1], data[:, 2:].T)


def test_compressed_samples_are_read(tmp_path: Path) -> None:
    data = counts(900, 4)
    path = write_nwb(tmp_path / "a.nwb", {"Raw": data}, conversion=1e-6)
    with h5py.File(path, "r+") as file:
        series = file["acquisition/Raw"]
        kept = dict(series["data"].attrs)
        del series["data"]
        how = {"chunks": (128, 2), "compression": "gzip", "shuffle": True}
        series.create_dataset("data", data=data, **how).attrs.update(kept)
    recording, got = read_whole(path)
    np.testing.assert_array_equal(got, data.T)
    assert recording.chunk_samples == 128


def test_units_are_read_as_channels_in_the_time_in_which_they_were_seen(tmp_path: Path) -> None:
    units = {"u1": [0.1, 4.0], "u2": [], "u3": [0.1, 0.25]}
    trains = read_spikes(write_nwb(tmp_path / "a.nwb", units=units))
    assert trains.channel_labels == ("u1", "u2", "u3")
    assert trains.spikes.sample.tolist() == [1000, 1000, 2500, 40_000]
    assert trains.spikes.channel.tolist() == [0, 2, 2, 0]
    assert trains.duration_s == 5
    assert not trains.notes
    both = write_nwb(tmp_path / "b.nwb", {"Raw": counts(900, 2)}, units=units)
    assert read_whole(both)[0].stream_label == "Raw"
    assert len(read_spikes(both, stream="spikes").spikes.sample) == 4


def test_the_units_of_the_real_file_are_those_of_pynwb() -> None:
    from pynwb import NWBHDF5IO

    path = shared("data", "formats", "pynapple_A8604-211122.nwb")
    trains = read_spikes(path)
    with NWBHDF5IO(str(path), "r", load_namespaces=True) as file:
        units = file.read().units
        assert trains.channel_labels == tuple(str(k) for k in units.id[:])
        for row in range(len(units)):
            mine = trains.spikes.sample[trains.spikes.channel == row] / trains.sampling_rate_hz
            np.testing.assert_allclose(mine, np.sort(units["spike_times"][row]), atol=5.1e-5)
    assert len(trains.spikes.sample) == 21_354
    assert "a length of 1088 s is assumed" in trains.notes[0]


def test_a_file_of_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither voltage of electrodes nor spikes"):
        open_recording(write_nwb(tmp_path / "a.nwb"))


def plain_units(path: Path, *, ends: list[int]) -> Path:
    """Write units without most of what the standard asks for, which pynwb does not read."""
    with h5py.File(path, "w") as file:
        file.attrs["nwb_version"] = "2.6.0"
        file["units/spike_times"] = [0.5, 1.0, 0.75]
        file["units/spike_times_index"] = ends
        file["units/id"] = [4, 9]
    return path


def test_units_of_an_incomplete_file_are_read_and_that_is_said(tmp_path: Path) -> None:
    trains = read_spikes(plain_units(tmp_path / "a.nwb", ends=[2, 3]), duration_s=2.0)
    assert trains.channel_labels == ("4", "9")
    assert trains.spikes.sample.tolist() == [5000, 7500, 10_000]
    assert trains.spikes.channel.tolist() == [0, 1, 0]
    assert trains.notes[0].startswith("the file lacks parts of the NWB standard")
    damaged = plain_units(tmp_path / "b.nwb", ends=[2, 30])
    with pytest.raises(InputError, match="index of its spike times is damaged"):
        read_spikes(damaged)

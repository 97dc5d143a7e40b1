"""MaxWell recordings: against what was written, neo's values, and a real file's own table."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from foreign_files import counts, read_spikes, read_whole, write_maxwell
from needs import shared
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.opening import open_recording


@pytest.fixture
def real() -> Path:
    return shared("data", "formats", "maxwell_data.raw.h5")


def test_voltage_is_read_as_neo_reads_it_with_the_electrodes_of_its_rows(tmp_path: Path) -> None:
    rawio = pytest.importorskip("neo.rawio", reason="neo: not installed")
    data = counts(2000, 4)
    path = write_maxwell(tmp_path / "a.raw.h5", {"well000": data})
    recording, got = read_whole(path)
    np.testing.assert_allclose(got, (data.T + 1000) * 6.294, rtol=1e-6)
    reader = rawio.MaxwellRawIO(filename=str(path))
    reader.parse_header()
    neos = reader.rescale_signal_raw_to_float(reader.get_analogsignal_chunk(0, 0), "float64")
    np.testing.assert_allclose(got, neos.T, rtol=1e-6)
    # The table of electrodes is in another order than the rows, by which neo names them.
    assert recording.channel_labels == ("103", "107", "111", "115")
    assert recording.kind == "maxwell"
    assert recording.sampling_rate_hz == 10_000
    assert recording.program == "MaxLab 22.1.2"
    assert recording.chunk_samples == 200


def test_lost_frames_are_gaps_for_voltage_and_spikes(tmp_path: Path) -> None:
    pytest.importorskip("neo", reason="neo: not installed")
    spikes = [(4990, 3), (5010, 3), (6100, 7), (6700, 7), (6850, 11), (6900, 99)]
    path = write_maxwell(
        tmp_path / "a.raw.h5", {"well000": counts(2000, 3)}, gap_after=1500, spikes=spikes
    )
    recording, _ = read_whole(path)
    assert [tuple(s) for s in recording.segments] == [
        (0, 1500, 0.0),
        (1500, 500, pytest.approx(0.23)),
    ]
    trains = read_spikes(path, stream="spikes")
    assert trains.segments == recording.segments
    # 6700 was lost, 4990 is before the first sample, 99 is no electrode.
    assert trains.spikes.sample.tolist() == [10, 1100]
    assert trains.spikes.channel.tolist() == [0, 1]
    assert trains.notes == (
        "1 of 6 spikes are left out: on channels without an electrode",
        "3 of 6 spikes are left out: outside the recorded samples",
    )


def test_wells_and_recordings_are_refused_unless_they_are_chosen(tmp_path: Path) -> None:
    pytest.importorskip("neo", reason="neo: not installed")
    wells = {"well000": counts(500, 2), "well001": counts(700, 2, seed=1)}
    path = write_maxwell(tmp_path / "a.raw.h5", wells, recordings=("rec0000", "rec0001"))
    with pytest.raises(InputError, match="holds 2 wells, well000, well001"):
        open_recording(path)
    with pytest.raises(InputError, match="choose one of 'rec0000', 'rec0001', 'rec0000 spikes'"):
        open_recording(path, well="well001")
    recording, got = read_whole(path, well="well001", stream="rec0001")
    np.testing.assert_allclose(got, (wells["well001"].T + 1000) * 6.294, rtol=1e-6)
    assert recording.stream_label == "well001 rec0001"


def test_spikes_without_voltage_are_read_and_their_length_is_assumed(tmp_path: Path) -> None:
    spikes = [(9000, 3), (19_000, 7), (29_000, 3)]
    path = write_maxwell(tmp_path / "a.h5", {"well000": counts(9, 2)}, raw=False, spikes=spikes)
    trains = read_spikes(path)
    assert trains.spikes.sample.tolist() == [0, 10_000, 20_000]
    assert trains.duration_s == 3
    assert trains.notes[0].startswith("no voltage was kept")
    assert read_spikes(path, duration_s=4.5).duration_s == 4.5


def test_the_real_file_says_which_library_its_compression_needs(
    real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HDF5_PLUGIN_PATH", raising=False)
    with pytest.raises(InputError, match=r"holds 6 wells, well000, .*, well005"):
        open_recording(real)
    said = r"HDF5 filter \(401\).*HDF5_PLUGIN_PATH.*`stream='rec0000 spikes'`"
    with pytest.raises(InputError, match=said):
        open_recording(real, well="well001", stream="rec0000")


def test_a_plugin_is_looked_for_only_where_the_user_names_a_folder(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(h5py.h5z, "filter_avail", asked.append)
    monkeypatch.delenv("HDF5_PLUGIN_PATH", raising=False)
    with pytest.raises(InputError, match="401"):
        open_recording(real, well="well001", stream="rec0000")
    assert not asked
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    with pytest.raises(InputError, match="401"):
        open_recording(real, well="well001", stream="rec0000")
    assert asked == [401]


def test_the_spikes_of_the_real_file_are_those_of_its_table(real: Path) -> None:
    trains = read_spikes(real, well="well001", stream="rec0000 spikes")
    with h5py.File(real) as file:
        group = file["wells/well001/rec0000"]
        table, mapping = group["spikes"][...], group["settings/mapping"][...]
        frames = group["groups/routed/frame_nos"][...].astype(np.int64)
    inside = (table["frameno"] >= frames[0]) & (table["frameno"] <= frames[-1])
    kept = table[inside & np.isin(table["channel"], mapping["channel"])]
    assert len(kept) == 55
    electrodes = dict(zip(mapping["channel"], mapping["electrode"], strict=True))
    expected = sorted(
        (int(row["frameno"] - frames[0]), str(electrodes[row["channel"]])) for row in kept
    )
    labels = [trains.channel_labels[k] for k in trains.spikes.channel]
    assert sorted(zip(trains.spikes.sample.tolist(), labels, strict=True)) == expected
    assert (trains.sampling_rate_hz, trains.n_samples) == (10_000, 10_000)
    assert trains.notes == (
        "5 of 184 spikes are left out: on channels without an electrode",
        "124 of 184 spikes are left out: outside the recorded samples",
    )


def first_version(
    path: Path, data: NDArray[np.int16], spikes: list[tuple[int, int, float]]
) -> Path:
    """Write a file of version 20160704: all rows of the chip, electrodes for some of them."""
    mapping = [("channel", "<i4"), ("electrode", "<i4"), ("x", "<f8"), ("y", "<f8")]
    with h5py.File(path, "w") as file:
        file["version"] = np.array([b"20160704"])
        file["settings/lsb"] = [6.294e-6]
        file["mapping"] = np.array([(5, 105, 0, 0), (-1, 9, 0, 0), (2, 102, 0, 0)], mapping)
        file["sig"] = (data.T.astype(np.int32) + 1000).astype(np.uint16)
        row = [("frameno", "<i8"), ("channel", "<i4"), ("amplitude", "<f4")]
        file["proc0/spikeTimes"] = np.array(spikes, row)
    return path


def test_files_of_the_first_version_are_read_by_the_numbers_of_their_channels(
    tmp_path: Path,
) -> None:
    pytest.importorskip("neo", reason="neo: not installed")
    data = counts(800, 8)
    path = first_version(tmp_path / "a.raw.h5", data, [(30, 2, -5.0), (700, 5, -4.0)])
    recording, got = read_whole(path)
    assert recording.channel_labels == ("105", "102")
    np.testing.assert_allclose(got, (data[:, [5, 2]].T + 1000) * 6.294, rtol=1e-6)
    assert (recording.sampling_rate_hz, recording.program) == (20_000, "MaxLab 20160704")
    trains = read_spikes(path, stream="spikes")
    assert trains.spikes.sample.tolist() == [30, 700]
    assert trains.spikes.channel.tolist() == [1, 0]

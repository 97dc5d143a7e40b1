"""3Brain recordings: real files against neo's values, and written ones with every oddity."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from foreign_files import (
    counts,
    read_spikes,
    read_whole,
    write_brw3,
    write_brw4,
    write_bxr,
    write_bxr2,
)
from needs import package, shared

from toptune.errors import InputError
from toptune.recordings.opening import open_recording
from toptune.reports.overview import overview


@pytest.mark.parametrize(
    ("name", "n_channels", "n_samples", "first"),
    [
        ("biocam_hw3.0_fw1.6.brw", 36, 19_754, "ch20-20"),
        ("biocam_hw3.0_fw1.7.0.12_raw.brw", 100, 5000, "0"),
    ],
)
def test_real_files_are_read_as_neo_reads_them(
    name: str, n_channels: int, n_samples: int, first: str
) -> None:
    package("neo")
    from neo.rawio import BiocamRawIO

    path = shared("data", "formats", name)
    recording, got = read_whole(path)
    assert got.shape == (n_channels, n_samples)
    assert recording.channel_labels[0] == first
    assert recording.sampling_rate_hz == pytest.approx(19_753.77, abs=0.01)
    rawio = BiocamRawIO(filename=str(path))
    rawio.parse_header()
    raw = rawio.get_analogsignal_chunk(0, 0)
    neos = rawio.rescale_signal_raw_to_float(raw, "float64").T
    np.testing.assert_allclose(got, neos, rtol=1e-6, atol=1e-4)
    with h5py.File(path) as file:  # without neo
        if n_channels == 36:
            stored = file["3BData/Raw"][...].reshape(-1, 36).T
            np.testing.assert_allclose(got, stored * (8250 / 4096) - 4125, rtol=1e-5, atol=1e-3)
        else:
            stored = file["Well_A1/Raw"][...].reshape(-1, 100).T
            np.testing.assert_allclose(got, stored * (16_000 / 4095) - 8000, rtol=1e-5, atol=1e-3)


def test_a_real_file_is_summarised_with_its_spikes() -> None:
    package("neo")
    view = overview(shared("data", "formats", "biocam_hw3.0_fw1.6.brw"))
    assert view.summary["kind"] == "biocam"
    assert view.summary["n_channels"] == 36
    assert view.summary["duration_s"] == pytest.approx(1.0, abs=1e-3)
    assert view.traces_uv is not None


@pytest.mark.parametrize("inversion", [1.0, -1.0])
def test_files_of_brainwave_4_are_read(tmp_path: Path, inversion: float) -> None:
    package("neo")
    data = counts(2000, 5)
    recording, got = read_whole(write_brw3(tmp_path / "a.brw", data, inversion=inversion))
    np.testing.assert_allclose(got, inversion * data.T * (8250 / 4096), rtol=1e-5, atol=1e-3)
    assert recording.channel_labels == ("ch1-1", "ch1-2", "ch1-3", "ch1-4", "ch1-5")


def test_electrodes_of_brainwave_5_are_named_by_their_place_on_the_chip(tmp_path: Path) -> None:
    package("neo")
    data = counts(2000, 4)
    recording, got = read_whole(write_brw4(tmp_path / "a.brw", {"A1": data}))
    np.testing.assert_allclose(got, (data.T + 2048) * 2.0 - 4095, rtol=1e-5, atol=1e-3)
    assert recording.channel_labels == ("192", "193", "194", "195")
    assert recording.layout == "CorePlate"


def test_several_wells_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    package("neo")
    data = counts(800, 4)
    path = write_brw4(tmp_path / "a.brw", {"A1": data, "B2": counts(800, 4, seed=1)})
    with pytest.raises(InputError, match="holds 2 wells, A1, B2"):
        open_recording(path)
    np.testing.assert_allclose(
        read_whole(path, well="a01")[1], (data.T + 2048) * 2.0 - 4095, rtol=1e-5, atol=1e-3
    )
    with pytest.raises(InputError, match="neo reads only the first well, A1: export each well"):
        open_recording(path, well="B2")


def test_voltage_around_events_only_is_refused(tmp_path: Path) -> None:
    path = write_brw4(tmp_path / "a.brw", {"A1": counts(50, 4)}, stored="EventsBasedSparseRaw")
    with pytest.raises(InputError, match=r"voltage around events only.* \(\.bxr\)"):
        open_recording(path)


SPIKES = [(100, 0), (250, 2), (250, 0), (39_999, 2)]


def test_spikes_of_brainwave_5_are_read_well_by_well(tmp_path: Path) -> None:
    path = write_bxr(tmp_path / "a.bxr", {"A1": SPIKES, "A2": [(7, 1)]})
    with pytest.raises(InputError, match="holds 2 wells, A1, A2"):
        open_recording(path)
    trains = read_spikes(path, well="A1")
    assert trains.channel_labels == ("0", "1", "2", "3")
    assert trains.spikes.sample.tolist() == [100, 250, 250, 39_999]
    assert trains.spikes.channel.tolist() == [0, 0, 2, 2]
    assert (trains.sampling_rate_hz, trains.duration_s) == (20_000, 2)
    assert read_spikes(path, well="A2").spikes.channel.tolist() == [1]


def test_spikes_of_brainwave_4_are_read_with_silent_electrodes(tmp_path: Path) -> None:
    trains = read_spikes(write_bxr2(tmp_path / "a.bxr", SPIKES[:3]))
    assert trains.channel_labels == ("ch1-1", "ch1-2", "ch1-3", "ch1-4")
    assert trains.spikes.sample.tolist() == [100, 250, 250]
    assert (trains.sampling_rate_hz, trains.duration_s) == (18_000, 2)
    assert not trains.notes


def test_spikes_on_electrodes_that_are_not_listed_are_read_and_that_is_said(
    tmp_path: Path,
) -> None:
    trains = read_spikes(write_bxr(tmp_path / "a.bxr", {"A1": SPIKES}, n_channels=2))
    assert trains.channel_labels == ("0", "2")
    assert trains.notes == (
        "electrodes without a spike are not known: the file does not list them",
    )

"""Recordings that neo reads: against what was written, and against neo's own values."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_files import (
    counts,
    read_spikes,
    read_whole,
    write_continuous,
    write_intan,
    write_intan_folder,
    write_nev,
    write_nex,
    write_nsx,
    write_nsx_ptp,
    write_openephys,
    write_plx,
)
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.foreign.neo_formats import close_neo
from toptune.recordings.opening import SpikeRecording, open_recording

pytest.importorskip("neo", reason="neo: not installed")


def neo_microvolts(
    name: str, stream: int, unit_uv: float = 1.0, **made: Any
) -> NDArray[np.float64]:
    """Let neo itself read a stream of one segment, (channels, samples)."""
    import neo.rawio

    rawio = getattr(neo.rawio, name)(**made)
    rawio.parse_header()
    raw = rawio.get_analogsignal_chunk(0, 0, stream_index=stream)
    scaled = rawio.rescale_signal_raw_to_float(raw, "float64", stream_index=stream)
    close_neo(rawio)
    return np.asarray(scaled.T * unit_uv)


def is_close(got: NDArray[np.float32], microvolts: NDArray[Any]) -> None:
    np.testing.assert_allclose(got, microvolts, rtol=1e-6, atol=1e-4)


# --- Intan


@pytest.mark.parametrize("suffix", [".rhd", ".rhs"])
def test_intan_files_are_read_as_neo_reads_them(tmp_path: Path, suffix: str) -> None:
    data = counts(2560, 3)
    path = write_intan(tmp_path / f"a{suffix}", data)
    recording, got = read_whole(path)
    is_close(got, data.T * 0.195)
    is_close(got, neo_microvolts("IntanRawIO", 0, filename=str(path)))
    assert recording.kind == "intan"
    assert recording.channel_labels == ("A-000", "A-001", "A-002")
    assert recording.sampling_rate_hz == 20_000
    assert recording.program == ("Intan 2.0" if suffix == ".rhd" else "Intan 1.0")
    assert "amplifier" in recording.stream_label


@pytest.mark.parametrize("per_channel", [False, True])
def test_intan_folders_are_read(tmp_path: Path, per_channel: bool) -> None:
    data = counts(1000, 4)
    _, got = read_whole(write_intan_folder(tmp_path / "a", data, per_channel=per_channel))
    is_close(got, data.T * 0.195)
    is_close(got, neo_microvolts("IntanRawIO", 0, filename=str(tmp_path / "a" / "info.rhd")))
    with pytest.raises(InputError, match=r"info\.rhd: .*name the folder, .*a$"):
        open_recording(tmp_path / "a" / "info.rhd")


def test_a_gap_in_an_intan_file_parts_it(tmp_path: Path) -> None:
    data = counts(2560, 2)
    recording, got = read_whole(write_intan(tmp_path / "a.rhd", data, gap_after=1280))
    is_close(got, data.T * 0.195)
    starts = [tuple(segment) for segment in recording.segments]
    assert starts == [(0, 1280, 0.0), (1280, 1280, pytest.approx(0.314))]


# --- Blackrock


def test_blackrock_voltage_is_read_with_its_pauses_and_without_analog_inputs(
    tmp_path: Path,
) -> None:
    first, second = counts(3000, 3), counts(2000, 3, seed=1)
    names = ["elec1", "elec2", "ainp1"]
    path = write_nsx(tmp_path / "a.ns5", [(0, first), (60_000, second)], names=names)
    # A file of another rate and one of spikes beside it are recordings of their own.
    (tmp_path / "a.ns2").write_bytes(b"nonsense")
    (tmp_path / "a.nev").write_bytes(b"nonsense")
    recording, got = read_whole(path)
    is_close(got, np.concatenate([first, second])[:, :2].T * (8191 / 32764))
    assert [tuple(s) for s in recording.segments] == [(0, 3000, 0.0), (3000, 2000, 2.0)]
    assert recording.channel_labels == ("elec1", "elec2")
    assert recording.reference_labels == ("ainp1",)
    assert recording.sampling_rate_hz == 30_000
    (tmp_path / "a.ns2").unlink()
    (tmp_path / "a.nev").unlink()
    is_close(got[:, :3000], neo_microvolts("BlackrockRawIO", 0, filename=str(path))[:2])


def test_blackrock_samples_with_a_time_each_are_parted_at_gaps_only(tmp_path: Path) -> None:
    data = counts(4000, 2)
    times = 1_700_000_000_000_000_000 + (np.arange(4000) * 1e9 / 30_000).astype(np.int64)
    times += np.random.default_rng(0).integers(-3000, 3000, 4000)  # jitter of the clock
    times[2500:] += 10**8
    recording, got = read_whole(write_nsx_ptp(tmp_path / "a.ns6", data, times))
    is_close(got, data.T * 0.25)
    assert [s.n_samples for s in recording.segments] == [2500, 1500]
    assert recording.segments[1].start_s == pytest.approx(2500 / 30_000 + 0.1, abs=2e-5)


def test_blackrock_spikes_are_read_unit_by_unit_without_those_marked_as_noise(
    tmp_path: Path,
) -> None:
    spikes = [(300, 1, 0), (450, 2, 1), (600, 1, 0), (700, 2, 255), (66_000, 2, 2)]
    path = write_nev(tmp_path / "a.nev", spikes)
    trains = read_spikes(path)
    assert trains.channel_labels == ("ch1#0", "ch2#1", "ch2#2")
    assert trains.spikes.sample.tolist() == [300, 450, 600, 66_000]
    assert trains.spikes.channel.tolist() == [0, 1, 0, 2]
    assert trains.sampling_rate_hz == 30_000
    assert trains.duration_s == 3
    assert trains.notes[0] == "1 units that are marked as noise are left out"
    assert "a length of 3 s is assumed from the last spike" in trains.notes[1]
    assert read_spikes(path, duration_s=10.0).duration_s == 10


# --- Open Ephys


def test_open_ephys_folders_are_read_as_neo_reads_them(tmp_path: Path) -> None:
    data = counts(3000, 4)
    names = ["CH1", "CH2", "AUX1", "ADC1"]
    folder = write_openephys(tmp_path / "a", {"Rhythm Data": data}, names=names)
    recording, got = read_whole(folder)
    is_close(got, data[:, :2].T * 0.195)
    stream = neo_microvolts("OpenEphysBinaryRawIO", 0, dirname=str(folder))
    is_close(got, stream[:2])
    assert recording.channel_labels == ("CH1", "CH2")
    assert recording.reference_labels == ("AUX1",)
    assert recording.stream_label == "Record Node 101#Rhythm Data"


def test_lost_samples_of_open_ephys_are_gaps(tmp_path: Path) -> None:
    data = counts(3000, 2)
    recording, _ = read_whole(write_openephys(tmp_path / "a", {"R": data}, gap_after=1200))
    assert [tuple(s) for s in recording.segments] == [
        (0, 1200, 0.0),
        (1200, 1800, pytest.approx(0.14)),
    ]


def test_experiments_of_open_ephys_follow_each_other(tmp_path: Path) -> None:
    first, second = counts(3000, 2), counts(1500, 2, seed=1)
    write_openephys(tmp_path / "a", {"R": first})
    write_openephys(tmp_path / "a", {"R": second}, experiment=2)
    recording, got = read_whole(tmp_path / "a")
    is_close(got, np.concatenate([first, second]).T * 0.195)
    assert [s.n_samples for s in recording.segments] == [3000, 1500]


def test_several_streams_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    data = counts(3000, 2)
    folder = write_openephys(tmp_path / "a", {"AP": data, "LFP": counts(300, 2)})
    with pytest.raises(InputError, match=r"2 streams could hold the raw data: choose one of 'Rec"):
        open_recording(folder)
    with pytest.raises(InputError, match="no stream is named like 'wideband'"):
        open_recording(folder, stream="wideband")
    recording, got = read_whole(folder, stream="#ap")
    assert recording.stream_label == "Record Node 101#AP"
    is_close(got, data.T * 0.195)


@pytest.mark.parametrize("gap_after", [None, 2048])
def test_continuous_files_of_open_ephys_are_read(tmp_path: Path, gap_after: int | None) -> None:
    data = counts(5120, 3)
    folder = write_continuous(tmp_path / "a", data, gap_after=gap_after)
    recording, got = read_whole(folder)
    is_close(got, data.T * 0.195)
    assert recording.channel_labels == ("CH1", "CH2", "CH3")
    if gap_after is None:
        is_close(got, neo_microvolts("OpenEphysRawIO", 0, dirname=str(folder)))
        assert len(recording.segments) == 1
    else:
        starts = [tuple(s) for s in recording.segments]
        assert starts == [(0, 2048, 0.0), (2048, 3072, pytest.approx(4096 / 30_000))]


def test_a_folder_of_open_ephys_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    folder = write_openephys(tmp_path / "a", {"R": counts(3000, 2)})
    (samples,) = folder.rglob("continuous.dat")
    samples.write_bytes(samples.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"2900 samples in continuous\.dat, but 3000 sample num"):
        open_recording(folder)


# --- Plexon

STEP_UV = 5000 / (0.5 * 2**16 * 10 * 100) * 1000


def test_plexon_voltage_is_read_to_its_last_sample(tmp_path: Path) -> None:
    data = counts(330, 3)
    path = write_plx(tmp_path / "a.plx", {"WB": data, "FP": counts(330, 2)})
    recording, got = read_whole(path)
    is_close(got, data.T * STEP_UV)
    # neo itself leaves zeros in the place of the last block.
    neos = neo_microvolts("PlexonRawIO", 1, 1e3, filename=str(path), progress_bar=False)
    is_close(got[:, :300], neos[:, :300])
    assert recording.stream_label == "WB-Wideband"
    assert recording.channel_labels == ("WB01", "WB02", "WB03")
    assert (recording.program, recording.date) == ("Plexon 106", "2024-05-03")


def test_plexon_channels_of_fewer_bits_than_spikes_have_their_own_scale(tmp_path: Path) -> None:
    data = counts(100, 1)
    _, got = read_whole(write_plx(tmp_path / "a.plx", {"WB": data}, slow_bits=12))
    is_close(got, data.T * STEP_UV * 16)


def test_a_pause_in_a_plexon_file_is_a_gap(tmp_path: Path) -> None:
    data = counts(300, 2)
    recording, got = read_whole(write_plx(tmp_path / "a.plx", {"WB": data}, gap_after=150))
    is_close(got, data.T * STEP_UV)
    assert [tuple(s) for s in recording.segments] == [
        (0, 150, 0.0),
        (150, 150, pytest.approx(0.85)),
    ]


def test_plexon_spikes_are_read_where_they_are_meant(tmp_path: Path) -> None:
    spikes = [(400, 1, 0), (800, 1, 1), (1200, 2, 1), (12_000, 1, 0)]
    path = write_plx(tmp_path / "a.plx", {"FP": counts(330, 1)}, spikes=spikes)
    with pytest.raises(InputError, match=r"not known which stream .* 'FP.*', 'spikes' by `stream`"):
        open_recording(path)
    trains = read_spikes(path, stream="spikes")
    assert trains.channel_labels == ("ch1#0", "ch1#1", "ch2#1")
    assert trains.spikes.sample.tolist() == [400, 800, 1200, 12_000]
    assert trains.spikes.channel.tolist() == [0, 1, 2, 0]
    assert trains.sampling_rate_hz == 40_000
    assert trains.duration_s == pytest.approx(0.33)
    only = read_spikes(write_plx(tmp_path / "b.plx", {}, spikes=spikes))
    assert only.spikes.sample.tolist() == [400, 800, 1200, 12_000]


# --- NeuroExplorer


def test_neuroexplorer_neurons_are_read_once(tmp_path: Path) -> None:
    neurons = {"sig001a": [400, 4000], "sig002b": [800, 79_000]}
    path = write_nex(tmp_path / "a.nex", neurons=neurons, waveforms=True)
    trains = read_spikes(path)
    assert trains.channel_labels == ("sig001a", "sig002b")
    assert trains.spikes.sample.tolist() == [400, 800, 4000, 79_000]
    assert (trains.sampling_rate_hz, trains.duration_s) == (40_000, 2)
    assert not trains.notes


def test_neuroexplorer_channels_of_one_rate_are_one_stream(tmp_path: Path) -> None:
    data = counts(900, 2)
    path = write_nex(
        tmp_path / "a.nex",
        neurons={"n": [7]},
        continuous={"AD01": data[:, 0], "AD02": data[:, 1]},
        fragments=[(0, 0), (40_000, 300)],
    )
    with pytest.raises(InputError, match="choose one of 'continuous at 1000 Hz', 'spikes'"):
        open_recording(path)
    recording, got = read_whole(path, stream="continuous")
    is_close(got, data.T * 500.0)
    is_close(got[1:], neo_microvolts("NeuroExplorerRawIO", 1, 1e3, filename=str(path)))
    assert recording.channel_labels == ("AD01", "AD02")
    assert [tuple(s) for s in recording.segments] == [(0, 300, 0.0), (300, 600, 1.0)]


# --- all of them

WRITERS: dict[str, Callable[[Path], Path]] = {
    "rhd": lambda f: write_intan(f / "a.rhd", counts(2560, 3)),
    "rhs": lambda f: write_intan(f / "a.rhs", counts(2560, 3)),
    "nsx": lambda f: write_nsx(f / "a.ns5", [(0, counts(2000, 3))]),
    "nev": lambda f: write_nev(f / "a.nev", [(300, 1, 0)]),
    "plx": lambda f: write_plx(f / "a.plx", {"WB": counts(300, 2)}),
    "nex": lambda f: write_nex(f / "a.nex", neurons={"n": [400, 800]}),
}


def opened_whole(path: Path) -> None:
    """Open a recording as before an extraction, and read its spikes if it holds spikes only."""
    recording = open_recording(path)
    if isinstance(recording, SpikeRecording):
        recording.trains()
        return
    with recording:
        recording.check_whole()


@pytest.mark.parametrize(
    ("kind", "cut"),
    [
        *((kind, 0.1) for kind in WRITERS),
        *((kind, 0.97) for kind in ("rhd", "rhs", "nsx", "plx")),
    ],
)
def test_a_file_that_was_cut_off_is_refused_in_one_line(
    tmp_path: Path, kind: str, cut: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = WRITERS[kind](tmp_path)
    opened_whole(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(InputError) as error:
        opened_whole(path)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("rhd", "a.RHD", "must end in .rhd or .rhs"),
        ("nsx", "a.dat", "must end in .ns1 to .ns6"),
        ("nev", "a.bin", "must end in .nev"),
    ],
)
def test_a_name_that_neo_does_not_know_is_said_and_the_advice_helps(
    tmp_path: Path, kind: str, name: str, says: str
) -> None:
    path = WRITERS[kind](tmp_path)
    other = shutil.copy(path, tmp_path / name)
    with pytest.raises(InputError, match=says):
        open_recording(other)
    open_recording(path)


def test_a_well_cannot_be_chosen_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are of no well"):
        open_recording(WRITERS["rhd"](tmp_path), well="A1")


def test_wells_in_the_names_of_electrodes_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    data = counts(500, 4)
    names = ["A1_11", "A1_12", "A2_11", "A2_12"]
    path = write_nsx(tmp_path / "a.ns5", [(0, data)], names=names)
    with pytest.raises(InputError, match="holds 2 wells, A1, A2"):
        open_recording(path)
    recording, got = read_whole(path, well="A2")
    is_close(got, data[:, 2:].T * (8191 / 32764))
    assert recording.channel_labels == ("A2_11", "A2_12")


def test_two_electrodes_of_one_name_are_told_apart_or_refused(tmp_path: Path) -> None:
    path = write_nsx(tmp_path / "a.ns5", [(0, counts(500, 2))], names=["E", "E"])
    assert read_whole(path)[0].channel_labels == ("1", "2")
    path = write_nex(
        tmp_path / "b.nex",
        neurons={},
        continuous={"A": counts(9, 1)[:, 0], "B": counts(9, 1)[:, 0]},
    )
    path.write_bytes(path.read_bytes().replace(b"B\0\0\0\0\0\0\0", b"A\0\0\0\0\0\0\0"))
    assert read_whole(path)[0].channel_labels == ("0", "1")


def test_endings_in_the_names_of_folders_do_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "a.ns5.nev"
    folder.mkdir()
    assert read_whole(WRITERS["nsx"](folder))[0].n_samples == 2000
    assert len(read_spikes(WRITERS["nev"](folder)).spikes.sample) == 1


def test_a_scale_of_nothing_is_refused(tmp_path: Path) -> None:
    path = write_nsx(tmp_path / "a.ns5", [(0, counts(500, 2))], largest_uv=0)
    with pytest.raises(InputError, match=r"electrode elec1 has a step of 0 uV .* gives no voltage"):
        open_recording(path)

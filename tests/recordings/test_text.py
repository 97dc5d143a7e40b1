"""Tables however spreadsheets and people write them: the same spikes, the same devices."""

from __future__ import annotations

import unicodedata
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toptune.errors import InputError
from toptune.params import OpeningOptions, SpikeSettings
from toptune.recordings.devices import label_doubts, read_devices, same_content
from toptune.recordings.opening import SpikeRecording, open_recording
from toptune.recordings.peak_trains import read_peak_trains
from toptune.recordings.spike_csv import read_spike_csv
from toptune.recordings.trains import SpikeTrains

SPIKES = ((0.0213, "12"), (0.5, "21"), (0.75, "12"), (1.9999, "22"))
ENCODINGS = {"utf-8": "utf-8", "bom": "utf-8-sig", "utf-16": "utf-16", "bare 16": "utf-16-le"}
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "blank": " "}


def read_spikes(path: Path, **options: Any) -> SpikeTrains:
    recording = open_recording(path, **options)
    assert isinstance(recording, SpikeRecording)
    return recording.trains()


def same_spikes(trains: SpikeTrains) -> None:
    assert trains.channel_labels == ("12", "21", "22")
    assert trains.spikes.sample.tolist() == [213, 5000, 7500, 19999]
    assert trains.spikes.channel.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("encoding", "separator", "end"),
    list(product(ENCODINGS.values(), SEPARATORS.values(), ("\n", "\r\n"))),
)
def test_a_table_of_spikes_reads_the_same_in_every_dress(
    tmp_path: Path, encoding: str, separator: str, end: str
) -> None:
    rows = [("Time_S", "CHANNEL"), *((str(t), c) for t, c in SPIKES)]
    lines = [separator.join(row) for row in rows]
    dressed = [lines]
    if separator != " ":
        dressed += [[f"sep={separator}", *lines], [line + 2 * separator for line in lines]]
        dressed += [[separator.join(f'"{cell}"' for cell in row) for row in rows]]
    for k, one in enumerate(dressed):
        path = tmp_path / f"{k}.csv"
        path.write_bytes((end.join(one) + end).encode(encoding))
        same_spikes(read_spikes(path))


@pytest.mark.parametrize(
    ("encoding", "separator", "end"),
    list(product(ENCODINGS.values(), SEPARATORS.values(), ("\n", "\r\n"))),
)
def test_peak_trains_read_the_same_in_every_dress(
    tmp_path: Path, encoding: str, separator: str, end: str
) -> None:
    rows = [("20000", "0"), ("214", "40.25"), ("7501", "8.5e1")]
    (tmp_path / "p").mkdir()
    for name, before in (("p_12", []), ("p_13", [] if separator == " " else [f"sep={separator}"])):
        extra = "" if separator == " " else separator
        lines = [*before, *(separator.join(row) + extra * (name == "p_13") for row in rows)]
        lines[-1] = lines[-1].replace("7501", "7502") if name == "p_13" else lines[-1]
        (tmp_path / "p" / f"{name}.txt").write_bytes((end.join(lines) + end).encode(encoding))
    trains = read_spikes(tmp_path / "p")
    assert trains.channel_labels == ("12", "13")
    assert trains.notes == ("a sampling rate of 10000 Hz is assumed: give `sampling_rate_hz`",)
    assert read_spikes(tmp_path / "p", sampling_rate_hz=10_000).notes == ()
    assert trains.spikes.sample.tolist() == [213, 213, 7500, 7501]
    np.testing.assert_allclose(trains.spikes.peak_to_peak_uv, [40.25, 40.25, 85, 85])


@pytest.mark.parametrize(
    ("encoding", "separator"), list(product(ENCODINGS.values(), SEPARATORS.values()))
)
def test_devices_files_read_the_same_in_every_dress(
    tmp_path: Path, encoding: str, separator: str
) -> None:
    (tmp_path / "a.csv").write_text("time_s,channel\n0.5,1\n")
    rows = [("Recording", "DEVICE", "label", "Batch"), ("a.csv", "Kä", "x", "7")]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "devices.csv").write_bytes(text.encode(encoding))
    (row,) = read_devices(tmp_path / "devices.csv").rows
    assert (row.device, row.label, row.columns, row.line) == ("Kä", "x", {"Batch": "7"}, 2)


def test_decimal_commas_are_read_where_commas_do_not_separate(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_text("time_s;channel\n" + "".join(f"{t};{c}\n".replace(".", ",") for t, c in SPIKES))
    same_spikes(read_spikes(path))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "p_1.txt").write_text("100;0\n7;12,5\n")
    assert read_peak_trains(tmp_path / "p", sampling_rate_hz=1e4).spikes.peak_to_peak_uv == 12.5


@pytest.mark.parametrize(
    ("header", "factor", "options"),
    [
        ("time_ms", 1e3, {}),
        ("time_us", 1e6, {}),
        ("sample", 1e4, {}),
        ("time_s", 1e3, {"time_unit": "ms"}),
        ("time_s", 2e4, {"time_unit": "samples", "sampling_rate_hz": 2e4}),
    ],
)
def test_times_in_other_units(
    tmp_path: Path, header: str, factor: float, options: dict[str, object]
) -> None:
    path = tmp_path / "u.csv"
    path.write_text(
        f"{header},channel\n" + "".join(f"{round(t * factor, 3)},{c}\n" for t, c in SPIKES)
    )
    trains = read_spikes(path, **options)
    seconds = trains.spikes.sample / trains.sampling_rate_hz
    np.testing.assert_allclose(seconds, [t for t, _ in SPIKES], atol=0.5 / trains.sampling_rate_hz)
    if header != "time_s":
        with pytest.raises(InputError, match=r"states time_unit = .* not the s given"):
            read_spikes(path, time_unit="s")


def test_lines_before_the_header_state_what_columns_cannot(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text(
        "# duration_s=90\n# start_s = 3600\n# channels=7,8,9\n\ntime_s,channel\n3600.5,8\n"
    )
    trains = read_spikes(path)
    assert (trains.duration_s, trains.channel_labels) == (90, ("7", "8", "9"))
    assert trains.spikes.sample.tolist() == [5000]
    assert trains.notes == ()
    with pytest.raises(InputError, match=r"states duration_s = 90.0, not the 60"):
        read_spikes(path, duration_s=60)
    path.write_text("# duration_s=long\ntime_s,channel\n1,8\n")
    with pytest.raises(InputError, match="must give a number, got 'long'"):
        read_spikes(path)


def test_a_silent_culture_with_a_length_is_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("# channels=1,2\ntime_s,channel\n")
    trains = read_spike_csv(path, OpeningOptions(duration_s=30.0))
    assert (trains.duration_s, trains.channel_labels) == (30, ("1", "2"))
    assert len(trains.spikes.sample) == 0
    with pytest.raises(InputError, match="give the recording's length by `duration_s`"):
        read_spike_csv(path)


def test_a_line_of_devices_says_how_its_recording_is_opened(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("time_s,channel\n1,A1_1\n2,B1_1\n")
    table = tmp_path / "devices.csv"
    table.write_text(
        "recording,device,label,well,duration_s,time_unit\n"
        "a.csv,a1,x,A1,10,\na.csv,a2,y,B1,,ms\nb.csv,b,x,A1,,\n"
    )
    rows = read_devices(table).rows
    common = SpikeSettings(duration_s=20.0)
    assert [row.settings(common).duration_s for row in rows] == [10, 20, 20]
    assert [row.settings(common).time_unit for row in rows] == [None, "ms", None]
    assert [row.name for row in rows] == ["a.csv [well A1]", "a.csv [well B1]", "b.csv [well A1]"]
    table.write_text(
        "recording,device,label,well,duration_s,time_unit\n"
        "a.csv,a1,x,A1,ten,\na.csv,a2,y,B1,-1,\nb.csv,b,x,A1,,hours\nb.csv,c,x,A1,,\n"
    )
    with pytest.raises(InputError) as error:
        read_devices(table)
    said = str(error.value)
    assert "line 2: duration_s must be a number, got 'ten'" in said
    assert "line 3: OpeningOptions.duration_s must be above 0" in said
    assert "line 4: OpeningOptions.time_unit must be" in said


def test_paths_and_labels_that_look_the_same(tmp_path: Path) -> None:
    folder = tmp_path / unicodedata.normalize("NFD", "Zürich")
    folder.mkdir()
    (folder / unicodedata.normalize("NFD", "Köln.csv")).write_text("time_s,channel\n1,1\n")
    table = tmp_path / "devices.csv"
    table.write_text(unicodedata.normalize("NFC", "recording,device,label\nZürich/Köln.csv,K,x\n"))
    (row,) = read_devices(table).rows
    assert row.recording.exists()
    assert label_doubts(["a", "b", "c"]) == ()
    (alike,) = label_doubts(["Drug", "drug", "drug "])
    assert "Drug and drug and drug  differ only" in alike
    assert "NA reads like a missing value" in label_doubts(["control", "NA"])[0]


def test_the_same_bytes_under_two_devices_are_told(tmp_path: Path) -> None:
    for name, text in (("a", "1,1\n"), ("b", "1,1\n"), ("c", "1,2\n"), ("d", "1,1\n")):
        (tmp_path / f"{name}.csv").write_text("time_s,channel\n" + text)
    table = tmp_path / "devices.csv"
    table.write_text("recording,device,label\na.csv,A,x\nc.csv,C,x\nb.csv,B,y\nd.csv,D,x\n")
    (told,) = same_content(read_devices(table))
    assert "lines 2 and 4 and 5: a.csv and b.csv and d.csv hold the same bytes" in told
    table.write_text("recording,device,label\na.csv,A,x\nb.csv,A,x\nc.csv,C,y\n")
    assert same_content(read_devices(table)) == ()

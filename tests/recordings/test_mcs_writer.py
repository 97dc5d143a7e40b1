"""The MCS writer: against a file of MCS's own, and read back by MCS's own library."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import McsPy.McsData
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import shared
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.mcs_writer import (
    McsChannel,
    McsHeader,
    McsStream,
    McsWriter,
    chunk_samples,
    mea60_channels,
)

RAW = "Data Acquisition (1) Electrode Raw Data"
FILTERED = "Filter (1) Filter Data"
DIGITAL = "Data Acquisition (1) Digital Data"


def counts(n_channels: int, n: int, seed: int = 0) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    return rng.integers(-(2**31), 2**31, (n_channels, n), np.int32)


def linear8(**kwargs: Any) -> tuple[McsChannel, ...]:
    return tuple(McsChannel(label=f"E{k + 1}", channel_id=k, **kwargs) for k in range(8))


def stream_node(file: h5py.File, number: int = 0, recording: int = 0) -> Any:
    return file[f"Data/Recording_{recording}/AnalogStream/Stream_{number}"]


# Against the real file


class Stored(NamedTuple):
    """How a node of an HDF5 file is stored, without its values."""

    kind: str
    chunks: tuple[int, ...] | None
    maxshape: tuple[int | None, ...]
    filters: list[Any]
    attributes: dict[str, Any]


def stored(node: Any) -> Stored:
    attributes: dict[str, Any] = {}
    for name in node.attrs:
        kind = node.attrs.get_id(name).get_type()
        text = isinstance(kind, h5py.h5t.TypeStringID)
        attributes[name] = (
            (kind.get_size(), kind.get_strpad(), kind.get_cset()) if text else kind.dtype.str
        )
    if not isinstance(node, h5py.Dataset):
        return Stored("group", None, (), [], attributes)
    plist = node.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    kind = node.id.get_type()
    size = kind.get_size()
    members = (
        [(kind.get_member_name(i), kind.get_member_offset(i)) for i in range(kind.get_nmembers())]
        if isinstance(kind, h5py.h5t.TypeCompoundID)
        else node.dtype.str
    )
    return Stored(f"{size} {members}", node.chunks, node.maxshape, filters, attributes)


def test_written_files_are_stored_like_a_file_of_mcs(tmp_path: Path) -> None:
    found = sorted(shared("data", "mcs").glob("*.h5"))
    channels = linear8(conversion_factor=381470, exponent=-9)
    header = McsHeader(
        date=datetime(2014, 7, 9, 10, 17, 35),
        date_text="Mittwoch, 9. Juli 2014",
        mea_name="Linear8",
        mea_layout="Linear8",
        program_name="Multi Channel Experimenter",
        program_version="0.9.8.2",
    )
    with McsWriter(tmp_path / "w.h5", header) as writer:
        recording = writer.add_recording()
        streams = (
            McsStream(label=FILTERED, channels=channels, tick_us=2000, source=RAW),
            McsStream(label=RAW, channels=channels, tick_us=2000),
            McsStream(
                label=DIGITAL,
                sub_type="Digital",
                tick_us=2000,
                channels=(
                    McsChannel(
                        label="1", channel_id=8, unit="NoUnit", conversion_factor=0, exponent=0
                    ),
                ),
            ),
        )
        for stream in streams:
            recording.add_stream(stream).write(counts(len(stream.channels), 9800))
    with h5py.File(found[0]) as real, h5py.File(tmp_path / "w.h5") as mine:
        names: list[str] = ["/"]
        mine.visit(names.append)
        assert len(names) == 3 + 1 + 3 * 4
        for name in names:
            assert stored(mine[name]) == stored(real[name]), name
        for name in ("Date", "MeaName", "MeaLayout", "ProgramName", "ProgramVersion"):
            assert mine["Data"].attrs[name] == real["Data"].attrs[name]
        for number in range(3):
            left, right = stream_node(mine, number), stream_node(real, number)
            assert left["InfoChannel"][()].tolist() == right["InfoChannel"][()].tolist()
            for name in ("Label", "DataSubType", "StreamType"):
                assert left.attrs[name] == right.attrs[name]
        source = stream_node(mine, 0).attrs["SourceStreamGUID"]
        assert source == stream_node(mine, 1).attrs["StreamGUID"]


# Read back


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(McsPy.McsData, "VERBOSE", False)


# McsPyDataTools uses what a newer pint will drop.
@pytest.mark.filterwarnings("ignore:Calling the getitem method:DeprecationWarning")
def test_mcs_own_library_reads_what_was_written(tmp_path: Path) -> None:
    channels = (
        McsChannel(label="A", channel_id=7, conversion_factor=59605, ad_zero=0),
        McsChannel(label="B", channel_id=3, conversion_factor=381470, exponent=-9, ad_zero=-12),
    )
    data = np.random.default_rng(0).integers(-900, 900, (2, 20_000)).astype(np.int32)
    with McsWriter(tmp_path / "w.h5", McsHeader(date=datetime(2024, 2, 29, 13, 5))) as writer:
        stream = McsStream(label=RAW, channels=channels, tick_us=50)
        writer.add_recording(label="one").add_stream(stream).write(data)
    file = McsPy.McsData.RawData(str(tmp_path / "w.h5"))
    assert file.date == datetime(2024, 2, 29, 13, 5)
    recording = file.recordings[0]
    assert recording.label == "one"
    assert recording.duration_time.magnitude == 1_000_000
    read = recording.analog_streams[0]
    for row, (channel, step) in enumerate(
        zip(channels, (59605 * 10.0**-12, 381470 * 10.0**-9), strict=True)
    ):
        volts, unit = read.get_channel_in_range(channel.channel_id)
        assert str(unit) == "volt"
        np.testing.assert_array_equal(volts, (data[row] - channel.ad_zero) * step)
    file.h5_file.close()


@settings(max_examples=30)
@given(st.integers(1, 70), st.lists(st.integers(0, 700), max_size=6))
def test_any_division_into_blocks_gives_the_same_data(
    tmp_path_factory: pytest.TempPathFactory, n: int, sizes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("mcs") / "w.h5"
    data = counts(n, sum(sizes))
    channels = tuple(McsChannel(label=str(k), channel_id=k) for k in range(n))
    with McsWriter(path) as writer:
        stream = writer.add_recording().add_stream(McsStream(label=RAW, channels=channels))
        for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            block = data[:, start : start + size].copy()
            stream.write(block)
            # Callers reuse their buffers.
            block[:] = 0
        assert stream.n_samples == data.shape[1]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(stream_node(file)["ChannelData"][...], data)


@pytest.mark.parametrize(("n", "samples"), [(1, 16384), (8, 2048), (60, 273), (20_000, 1)])
def test_chunks_hold_64_kib(n: int, samples: int) -> None:
    assert chunk_samples(n) == samples


def test_gaps_become_rows_of_time_stamps(tmp_path: Path) -> None:
    with McsWriter(tmp_path / "w.h5") as writer:
        stream = writer.add_recording().add_stream(
            McsStream(label=RAW, channels=linear8()), first_time_us=5000
        )
        stream.write(counts(8, 100))
        stream.gap(250)
        stream.write(counts(8, 1))
        stream.gap(10)
        stream.gap(20)
        stream.write(counts(8, 3000))
    with h5py.File(tmp_path / "w.h5") as file:
        stamps = stream_node(file)["ChannelDataTimeStamps"][...]
        assert stamps.tolist() == [[5000, 0, 99], [15_250, 100, 100], [15_380, 101, 3100]]
        assert file["Data/Recording_0"].attrs["Duration"] == 15_380 + 3000 * 100


def test_recordings_and_streams_are_numbered_and_have_guids_of_their_own(tmp_path: Path) -> None:
    with McsWriter(tmp_path / "w.h5") as writer:
        for _ in range(2):
            recording = writer.add_recording()
            for label in ("one", "two"):
                recording.add_stream(McsStream(label=label, channels=linear8()))
    with h5py.File(tmp_path / "w.h5") as file:
        assert list(file["Data"]) == ["Recording_0", "Recording_1"]
        nodes = [stream_node(file, s, r) for r in (0, 1) for s in (0, 1)]
        assert len({node.attrs["StreamGUID"] for node in nodes}) == 4
        assert nodes[0]["ChannelData"].shape == (8, 0)
        assert nodes[0]["ChannelDataTimeStamps"].shape == (0, 3)


def test_a_60_electrode_array_has_no_corners_and_one_reference() -> None:
    labels = [channel.label for channel in mea60_channels()]
    assert len(labels) == len(set(labels)) == 60
    assert labels[3] == "Ref"
    assert not {"11", "18", "81", "88", "15"} & set(labels)
    assert {"12", "87", "47", "78"} < set(labels)


@pytest.mark.parametrize("bad", [counts(7, 5), counts(8, 5)[0], counts(8, 5).astype(np.int64)])
def test_blocks_of_another_shape_or_type_are_refused(tmp_path: Path, bad: NDArray[Any]) -> None:
    with McsWriter(tmp_path / "w.h5") as writer:
        stream = writer.add_recording().add_stream(McsStream(label=RAW, channels=linear8()))
        with pytest.raises(ValueError, match=r"counts must be int32 of shape \(8, samples\)"):
            stream.write(bad)


def test_senseless_streams_are_refused() -> None:
    with pytest.raises(InputError, match="must not be empty"):
        McsStream(label=RAW, channels=())
    with pytest.raises(InputError, match="tick_us must be 1 or above, got 0"):
        McsStream(label=RAW, channels=linear8(), tick_us=0)


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        McsWriter(tmp_path / "w.h5")
    assert (tmp_path / "w.h5").read_bytes() == b"mine"

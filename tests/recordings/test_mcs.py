"""Reading MCS HDF5 files: against McsPyDataTools, and against files written with every oddity."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from needs import shared
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.mcs import McsRecording, check_gains, stretches
from toptune.recordings.mcs_writer import McsChannel, McsStream, McsWriter, mea60_channels
from toptune.recordings.opening import open_recording

RAW = "Data Acquisition (1) Electrode Raw Data"


@pytest.fixture
def real() -> Path:
    return sorted(shared("data", "mcs").glob("*.h5"))[0]


def channels(n: int, **kwargs: Any) -> tuple[McsChannel, ...]:
    return tuple(McsChannel(label=f"E{k}", channel_id=k, **kwargs) for k in range(n))


def counts(n_channels: int, n: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(-40_000, 40_000, (n_channels, n)).astype(np.int32)


def write(path: Path, data: NDArray[np.int32], stream: McsStream | None = None) -> Path:
    stream = stream or McsStream(label=RAW, channels=channels(len(data)))
    with McsWriter(path) as writer:
        writer.add_recording().add_stream(stream).write(data)
    return path


@pytest.mark.filterwarnings("ignore:Calling the getitem method:DeprecationWarning")  # McsPy's own
def test_the_raw_stream_of_the_real_file_equals_mcspydatatools(
    real: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from McsPy import McsData

    with McsRecording(real) as recording:
        got = np.concatenate(list(recording.chunks(1000)), axis=1)
        assert recording.stream_label == RAW
        assert recording.sampling_rate_hz == 500
        assert recording.channel_labels == tuple(f"E{k}" for k in range(1, 9))
    assert capfd.readouterr() == ("", "")
    raw = McsData.RawData(str(real))
    stream = raw.recordings[0].analog_streams[1]
    for channel_id in range(8):
        volts, unit = stream.get_channel_in_range(channel_id, 0, 9800)
        microvolts = (volts * unit).to("microvolt").magnitude
        np.testing.assert_allclose(got[channel_id], microvolts, rtol=1e-6)
    assert got.shape == (8, 9800)
    assert got.dtype == np.float32


def test_the_filtered_stream_of_the_real_file_can_be_chosen_by_part_of_its_label(
    real: Path,
) -> None:
    with McsRecording(real, stream="filter data") as recording:
        assert recording.n_samples == 9850


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_every_range_equals_what_was_written(tmp_path: Path, n_jobs: int) -> None:
    data = counts(60, 2000)
    stream = McsStream(label=RAW, channels=mea60_channels(conversion_factor=59605, ad_zero=7))
    path = write(tmp_path / "a.h5", data, stream)
    labels = [c.label for c in stream.channels]
    kept = [k for k, label in enumerate(labels) if label != "Ref"]
    expected = ((data[kept] - 7.0) * 59605e-6).astype(np.float32)
    with McsRecording(path) as recording, ThreadPoolExecutor(n_jobs) as pool:
        assert recording.channel_labels == tuple(labels[k] for k in kept)
        assert recording.reference_labels == ("Ref",)
        assert recording.chunk_samples == 273
        for start, stop in [(0, 2000), (0, 1), (272, 274), (273, 546), (1999, 2000), (5, 1888)]:
            got = recording.read(start, stop, pool)
            np.testing.assert_allclose(got, expected[:, start:stop], rtol=1e-7)


def test_each_channel_has_its_own_gain_exponent_and_zero(tmp_path: Path) -> None:
    data = counts(3, 500)
    stream = McsStream(
        label=RAW,
        channels=(
            McsChannel(label="A", channel_id=4, conversion_factor=59605, exponent=-12),
            McsChannel(label="B", channel_id=9, conversion_factor=381470, exponent=-12, ad_zero=-3),
            McsChannel(label="C", channel_id=2, conversion_factor=2, exponent=-7, ad_zero=100),
        ),
        tick_us=50,
    )
    with McsRecording(write(tmp_path / "a.h5", data, stream)) as recording:
        assert recording.sampling_rate_hz == 20_000
        got = recording.read(0, 500)
    for row, gain, zero in [(0, 0.059605, 0), (1, 0.38147, -3), (2, 0.2, 100)]:
        np.testing.assert_allclose(got[row], (data[row] - float(zero)) * gain, rtol=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        {"chunks": None},
        {"chunks": (1, 100)},
        {"chunks": (2, 77), "compression": "gzip", "compression_opts": 9},
        {"chunks": (3, 64), "shuffle": True},
        {"chunks": (2, 50), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (3, 50), "compression": "gzip", "dtype": ">i4"},
        {"chunks": (3, 50), "compression": "gzip", "shuffle": True, "dtype": "<i8"},
    ],
)
def test_other_layouts_give_the_same_values(tmp_path: Path, how: dict[str, Any]) -> None:
    data = counts(3, 500)
    path = write(tmp_path / "a.h5", data)
    with h5py.File(path, "r+") as file:
        group = file["Data/Recording_0/AnalogStream/Stream_0"]
        del group["ChannelData"]
        group.create_dataset("ChannelData", data=data, **how)
    with McsRecording(path) as recording:
        np.testing.assert_allclose(recording.read(30, 470), data[:, 30:470] * 0.059605, rtol=1e-6)


def test_chunks_that_were_never_written_read_as_the_fill_value(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", counts(3, 500))
    with h5py.File(path, "r+") as file:
        group = file["Data/Recording_0/AnalogStream/Stream_0"]
        del group["ChannelData"]
        made = group.create_dataset(
            "ChannelData", (3, 500), "<i4", chunks=(3, 100), compression="gzip", fillvalue=-5
        )
        made[:, 100:200] = 8
    with McsRecording(path) as recording:
        got = recording.read(50, 250) / np.float32(0.059605)
    assert sorted(set(np.round(got[:, :50].ravel()))) == [-5]
    assert sorted(set(np.round(got[:, 50:150].ravel()))) == [8]


def test_gap_in_timestamps_splits_the_recording(tmp_path: Path) -> None:
    data = counts(2, 3000)
    with McsWriter(tmp_path / "a.h5") as writer:
        stream = writer.add_recording().add_stream(
            McsStream(label=RAW, channels=channels(2)), first_time_us=100_000
        )
        stream.write(data[:, :1000])
        stream.gap(2_000_000)
        stream.write(data[:, 1000:])
    with McsRecording(tmp_path / "a.h5") as recording:
        assert [tuple(s) for s in recording.segments] == [(0, 1000, 0.0), (1000, 2000, 2.1)]
        assert [c.shape[1] for c in recording.chunks(700)] == [700, 300, 700, 700, 600]


def test_time_stamps_that_follow_each_other_are_no_gap(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", counts(2, 3000))
    with h5py.File(path, "r+") as file:
        group = file["Data/Recording_0/AnalogStream/Stream_0"]
        del group["ChannelDataTimeStamps"]
        group["ChannelDataTimeStamps"] = np.array(
            [[0, 0, 999], [100_000, 1000, 1999], [200_000, 2000, 2999]], np.int64
        )
    with McsRecording(path) as recording:
        assert [tuple(s) for s in recording.segments] == [(0, 3000, 0.0)]


def test_every_recording_of_a_file_is_read_and_none_is_joined_to_another(tmp_path: Path) -> None:
    first, second = counts(2, 1000), counts(2, 600, seed=1)
    with McsWriter(tmp_path / "a.h5") as writer:
        for data in (first, second):
            writer.add_recording().add_stream(McsStream(label=RAW, channels=channels(2))).write(
                data
            )
    with McsRecording(tmp_path / "a.h5") as recording:
        assert [tuple(s) for s in recording.segments] == [(0, 1000, 0.0), (1000, 600, 0.1)]
        got = recording.read(900, 1200)
    expected = np.concatenate([first, second], axis=1)[:, 900:1200] * 0.059605
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def two_streams(path: Path, first: str, second: str, **kwargs: Any) -> Path:
    with McsWriter(path) as writer:
        recording = writer.add_recording()
        recording.add_stream(McsStream(label=first, channels=channels(2))).write(counts(2, 400))
        recording.add_stream(McsStream(label=second, channels=channels(2), **kwargs)).write(
            counts(2, 500)
        )
    return path


def test_a_stream_computed_from_another_is_not_raw_whatever_its_name(tmp_path: Path) -> None:
    path = two_streams(tmp_path / "a.h5", "Electrodes", "Smoothed", source="Electrodes")
    with McsRecording(path) as recording:
        assert recording.stream_label == "Electrodes"


def test_an_ambiguous_stream_is_refused_by_name(tmp_path: Path) -> None:
    path = two_streams(tmp_path / "a.h5", "Headstage A", "Headstage B")
    with pytest.raises(InputError, match=r"choose one of 'Headstage A', 'Headstage B' by `stream`"):
        McsRecording(path)
    with McsRecording(path, stream="b") as recording:
        assert recording.n_samples == 500
    with pytest.raises(InputError, match="2 electrode streams are named like 'Headstage'"):
        McsRecording(path, stream="Headstage")
    with pytest.raises(InputError, match="no electrode stream is named like 'wrong'"):
        McsRecording(path, stream="wrong")


def edit(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def _stream(file: Any) -> Any:
    return file["Data/Recording_0/AnalogStream/Stream_0"]


def _set_info(field: str, value: object) -> Callable[[Path], None]:
    def change(file: Any) -> None:
        info = _stream(file)["InfoChannel"]
        rows = info[...]
        rows[field] = value
        info[...] = rows

    return edit(change)


def _set_stamps(rows: list[list[int]]) -> Callable[[Path], None]:
    def change(file: Any) -> None:
        del _stream(file)["ChannelDataTimeStamps"]
        _stream(file)["ChannelDataTimeStamps"] = np.array(rows, np.int64)

    return edit(change)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, "the file is cut off"),
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\nnonsense"), "cannot be read as HDF5"),
        (lambda p: p.write_bytes(b"just text, nothing else"), "not a recording toptune knows"),
        (lambda p: p.unlink(), "no such file"),
        (edit(lambda f: f.__delitem__("Data")), "not a recording as MCS's programs write it"),
        (edit(lambda f: f.attrs.__delitem__("McsHdf5ProtocolType")), "ProtocolType"),
        (edit(lambda f: f["Data"].__delitem__("Recording_0")), "holds no Recording_N"),
        (edit(lambda f: _stream(f).create_group("Extra")), "AssertionError"),
        (edit(lambda f: _stream(f).attrs.__setitem__("DataSubType", b"Auxiliary")), "no electrode"),
        (edit(lambda f: _stream(f).attrs.__setitem__("Label", b"Filter Data")), "`highpass_hz=0`"),
        (_set_info("Unit", b"Pa"), "in Pa, not in volts"),
        (_set_info("Unit", b"bogus"), "in bogus, not in volts"),
        (_set_info("Tick", 0), "one above 0 is needed"),
        (_set_info("Tick", [100, 200]), r"ticks of \[100, 200\] us"),
        (_set_info("RowIndex", [0, 7]), "does not fit its InfoChannel"),
        (_set_info("Label", b"Ref"), "no electrode beside the reference"),
        (_set_stamps([[0, 0, 5000]]), "row .0, 0, 5000. does not follow sample 0 of 3000"),
        (_set_stamps([[0, 0, 1999]]), "end at sample 2000, the data at 3000"),
        (_set_stamps([[0, 0, 999], [1, 1001, 2999]]), "does not follow sample 1000"),
    ],
)
def test_a_faulty_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, spoil: Callable[[Path], None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "culture.h5", counts(2, 3000))
    spoil(path)
    with pytest.raises(InputError, match=message) as error:
        open_recording(path)
    assert "culture.h5" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_flipped_bit_in_the_samples_is_refused_never_returned(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", counts(2, 30_000))
    with h5py.File(path) as file:
        info = _stream(file)["ChannelData"].id.get_chunk_info(1)
    data = bytearray(path.read_bytes())
    data[info.byte_offset + info.size // 2] ^= 0x10
    path.write_bytes(data)
    with (
        McsRecording(path) as recording,
        pytest.raises(InputError, match=r"a\.h5: the data from sample 8192 on are damaged"),
    ):
        recording.read(0, 30_000)


def test_a_file_whose_end_is_lost_while_open_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", counts(2, 30_000))
    copy = tmp_path / "b.h5"
    shutil.copy(path, copy)
    with McsRecording(copy) as recording:
        with copy.open("r+b") as file:
            file.truncate(20_000)
        with pytest.raises(InputError, match=r"b\.h5: .* damaged .*the file ends inside a chunk"):
            recording.read(0, 30_000)


def test_a_file_that_ends_inside_a_chunk_is_found_by_its_index(tmp_path: Path) -> None:
    path = write(tmp_path / "r.h5", counts(4, 30_000))
    with h5py.File(path) as file:
        dataset = file["Data/Recording_0/AnalogStream/Stream_0/ChannelData"]
        chunks: list[Any] = []
        dataset.id.chunk_iter(chunks.append)
        end = max(chunk.byte_offset + chunk.size for chunk in chunks)
        first = min(chunk.byte_offset for chunk in chunks)
    with McsRecording(path) as recording:
        recording.check_whole()
        # Cut off while it is open, since the library itself looks at a file's length when it opens.
        for n_bytes in (end - 1, first + 1):
            with path.open("r+b") as stream:
                stream.truncate(n_bytes)
            with pytest.raises(InputError, match=r"r\.h5: .*the file ends inside a chunk"):
                recording.check_whole()


def test_gains_of_any_sane_size_are_let_through() -> None:
    check_gains(Path("a.h5"), ("A", "B"), np.array([1e-9, 1e6]), np.array([0.0, -32768.0]))


@pytest.mark.parametrize(
    ("gain", "zero"),
    [(0.0, 0.0), (-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0), (1.0, np.nan), (1.0, np.inf)],
)
def test_a_gain_that_gives_no_voltage_names_its_electrode(gain: float, zero: float) -> None:
    with pytest.raises(InputError, match=r"a\.h5: electrode B has a step"):
        check_gains(Path("a.h5"), ("A", "B"), np.array([1.0, gain]), np.array([0.0, zero]))


def test_stretches_are_first_index_length_and_time() -> None:
    table = np.array([[100, 0, 9], [900, 10, 29]], np.int64)
    assert stretches(Path("a.h5"), "Recording_0", table, 30) == ((0, 10, 100), (10, 20, 900))

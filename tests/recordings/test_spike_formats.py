"""Spike files: real peak trains, round trips, and every refusal with file and line."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import shared
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.opening import SpikeRecording, open_recording, recognise
from toptune.recordings.peak_trains import read_peak_text, read_peak_trains
from toptune.recordings.spike_npz import read_npz, write_npz
from toptune.recordings.trains import Segment, SpikeTrains, natural_key, sort_spikes


def read_spikes(path: Path, **given: float) -> SpikeTrains:
    opened = open_recording(path, **given)  # type: ignore[arg-type]  # a rate, a duration
    assert isinstance(opened, SpikeRecording)
    return opened.trains()


def kind_of(path: Path) -> str | None:
    found = recognise(path)
    return None if found is None else found[1]


def write_trains(folder: Path, **trains: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for label, text in trains.items():
        (folder / f"ptrain_x_{label}.txt").write_text(text)
    return folder


def write_mat(path: Path, vector: Any, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"peak_train": vector, **more})


def sparse_column(n: int, entries: dict[int, float]) -> Any:
    rows = np.array(list(entries), np.int64)
    values = np.array(list(entries.values()), float)
    return scipy.sparse.csc_matrix((values, (rows, np.zeros(len(rows), np.int64))), shape=(n, 1))


# Real peak trains


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = shared("data", "cxhp3d", "CxHp3D.tar.gz")
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(archive) as tar:
        device = sorted({m.name.split("/")[1] for m in tar if m.isfile()})[0]
        members = [m for m in tar if m.name.split("/")[1:2] == [device]]
        tar.extractall(folder, members=members, filter="data")
    return folder


def test_real_peak_trains_equal_what_numpy_reads(real: Path) -> None:
    trains = read_spikes(real)
    assert len(trains.channel_labels) == 60
    assert trains.channel_labels[:3] == ("A02", "A03", "A05")
    assert trains.channel_labels[-1] == "O06"
    for row in (0, 17, 59):
        file = next(real.rglob(f"*_{trains.channel_labels[row]}.txt"))
        table = np.loadtxt(file)
        mine = trains.spikes.channel == row
        assert trains.n_samples == table[0, 0]
        np.testing.assert_array_equal(trains.spikes.sample[mine], table[1:, 0].astype(int) - 1)
        np.testing.assert_array_equal(
            trains.spikes.peak_to_peak_uv[mine], table[1:, 1].astype(np.float32)
        )


def test_real_peak_trains_last_twenty_minutes_at_the_default_rate(real: Path) -> None:
    trains = read_spikes(real)
    assert trains.sampling_rate_hz == 10_000
    assert trains.duration_s == pytest.approx(1200, abs=1)
    assert len(trains.segments) == 1
    assert np.isnan(trains.threshold_uv).all()


# Peak trains as text


def test_spikes_are_sorted_by_sample_then_channel_and_zero_based(tmp_path: Path) -> None:
    write_trains(
        tmp_path, B10="100 0\n1 5\n50 6\n", B2="100 0\n50 7\n100 8\n", A1="   1.0e+02\t0.0e+00\n"
    )
    trains = read_spikes(tmp_path, sampling_rate_hz=20_000)
    assert trains.channel_labels == ("A1", "B2", "B10")
    assert trains.spikes.sample.tolist() == [0, 49, 49, 99]
    assert trains.spikes.channel.tolist() == [2, 1, 2, 1]
    assert trains.spikes.peak_to_peak_uv.tolist() == [5, 7, 6, 8]
    assert trains.segments == (Segment(0, 100, 0.0),)
    assert trains.duration_s == 0.005


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"100 0\r\n7 2.5\r\n", id="windows line ends"),
        pytest.param(b"100 0\n7 2.5", id="no line end at the end"),
        pytest.param(b"100 0\n7 2.5\n\n \n", id="blank end"),
        pytest.param(b"+100 0\n+7 2.5\n", id="signs, which only the slow way reads"),
        pytest.param(b"1.000000000000000000e2 0\n7 2.5000000000000000000\n", id="many digits"),
        pytest.param(b"100. 0.\n7. 25E-1\n", id="other number forms"),
        pytest.param(b"100 0 \n  7\t 2.5 \t\n", id="blanks around"),
    ],
)
def test_any_way_to_write_the_numbers_reads_the_same(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x_A1.txt").write_bytes(text)
    train = read_peak_text(tmp_path / "x_A1.txt")
    assert train.n_samples == 100
    assert train.sample.tolist() == [6]
    assert train.peak_to_peak_uv.tolist() == [2.5]


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 10**9), unique=True, max_size=30).map(sorted),
    st.sampled_from(["{:.7e}", "{!r}", "{:.3f}", "{:.17g}", "{:e}"]),
    st.data(),
)
def test_every_amplitude_is_read_as_python_reads_it(
    tmp_path_factory: pytest.TempPathFactory, index: list[int], form: str, data: st.DataObject
) -> None:
    amplitude = data.draw(st.lists(st.floats(0.01, 1e30), min_size=len(index), max_size=len(index)))
    written = [form.format(value) for value in amplitude]
    lines = [f"{10**9} 0", *(f"{i} {a}" for i, a in zip(index, written, strict=True))]
    path = tmp_path_factory.mktemp("train") / "x_A1.txt"
    path.write_text("\n".join(lines))
    train = read_peak_text(path)
    assert (train.sample + 1).tolist() == index
    expected = np.array([float(a) for a in written], np.float32)
    np.testing.assert_array_equal(train.peak_to_peak_uv, expected)


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        pytest.param("", None, "the file is empty", id="empty"),
        pytest.param(" \n\n", None, "the file is empty", id="blank"),
        pytest.param("7 2\n8 3\n", 1, "must be 'n_samples 0'", id="first line missing"),
        pytest.param("0 0\n", 1, "must be 'n_samples 0'", id="no samples"),
        pytest.param("-5 0\n", 1, "must be 'n_samples 0'", id="negative length"),
        pytest.param("10.5 0\n", 1, "must be 'n_samples 0'", id="broken length"),
        pytest.param("100 0\n7 2\nspike 3\n", 3, "expected two numbers", id="text"),
        pytest.param("100 0\n7 2\n\n9 3\n", 3, "expected two numbers", id="blank line inside"),
        pytest.param("100 0\n7\n", 2, "expected two numbers", id="missing column"),
        pytest.param("100 0\n7 2 3\n", 2, "expected two numbers", id="third column"),
        pytest.param("100 0\n7,,2\n", 2, "expected two numbers", id="commas"),
        pytest.param("100 0\n1_0 2\n", 2, "expected two numbers", id="underscore"),
        pytest.param("100 0\n7 2\n8 NaN\n", 3, "amplitude", id="NaN"),
        pytest.param("100 0\n7 inf\n", 2, "amplitude", id="infinite"),
        pytest.param("100 0\nnan 2\n", 2, "whole number", id="NaN index"),
        pytest.param("100 0\n7 -2\n", 2, "above 0, got -2", id="negative amplitude"),
        pytest.param("100 0\n7 0\n", 2, "above 0, got 0", id="no amplitude"),
        pytest.param("100 0\n0 2\n", 2, "index 0 is outside 1..100", id="index zero"),
        pytest.param("100 0\n-3 2\n", 2, "index -3 is outside", id="negative index"),
        pytest.param("100 0\n7 2\n101 2\n", 3, "index 101 is outside", id="beyond the end"),
        pytest.param("100 0\n7.5 2\n", 2, "whole number, got 7.5", id="between samples"),
        pytest.param("100 0\n9 2\n7 2\n", 3, "7 comes after 9", id="unsorted"),
        pytest.param("100 0\n9 2\n9 2\n", 3, "9 repeats 9", id="duplicate"),
    ],
)
def test_a_faulty_electrode_is_refused_with_file_and_line(
    tmp_path: Path, text: str, line: int | None, part: str
) -> None:
    write_trains(tmp_path, A1="100 0\n1 5\n", A2=text)
    with pytest.raises(InputError) as caught:
        read_spikes(tmp_path)
    message = str(caught.value)
    where = "ptrain_x_A2.txt" + (f", line {line}:" if line else ":")
    assert where in message
    assert part in message
    assert "\n" not in message


def test_electrodes_of_different_lengths_are_refused(tmp_path: Path) -> None:
    write_trains(tmp_path, A1="100 0\n", A2="101 0\n")
    with pytest.raises(
        InputError,
        match=r"A2\.txt: the recording has 101 samples here but 100",
    ):
        read_spikes(tmp_path)


def test_any_folder_above_exactly_one_peak_train_folder_will_do(tmp_path: Path) -> None:
    inner = write_trains(tmp_path / "1_CxCx" / "2020_PeakDetection" / "ptrain", A1="100 0\n1 5\n")
    (tmp_path / "readme.txt").write_text("about these data\n")
    for path in (inner, inner.parent, tmp_path):
        assert kind_of(path) == "peak_trains_text"
        assert read_spikes(path).channel_labels == ("A1",)


def test_several_peak_train_folders_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("d1", "d2"):
        write_trains(tmp_path / name, A1="100 0\n")
    with pytest.raises(InputError, match=r"2 folders of peak trains .*\(d1, d2\): name one"):
        read_spikes(tmp_path)


@pytest.mark.parametrize(
    "text", [pytest.param("1 5\n2 6\n", id="no first line"), pytest.param("hello", id="text")]
)
def test_a_folder_without_peak_trains_is_refused(tmp_path: Path, text: str) -> None:
    write_trains(tmp_path, A1=text)
    assert kind_of(tmp_path) is None
    with pytest.raises(InputError, match=r"not a recording toptune knows: .*peak trains"):
        read_spikes(tmp_path)
    with pytest.raises(InputError, match="no peak trains in this folder"):
        read_peak_trains(tmp_path, sampling_rate_hz=10_000)


@pytest.mark.parametrize(
    ("stems", "labels"),
    [
        (("a_01_x", "a_02_x"), ("1_x", "2_x")),
        (("e1", "e2"), ("e1", "e2")),
        (("p_7", "p_12"), ("7", "12")),
        (("run_1_", "run_2_"), ("1_", "2_")),
    ],
)
def test_labels_are_what_tells_the_files_apart(
    tmp_path: Path, stems: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    for stem in stems:
        (tmp_path / f"{stem}.txt").write_text("100 0\n")
    assert read_spikes(tmp_path).channel_labels == labels


def test_natural_order_counts_digits_as_numbers() -> None:
    labels = ["A10", "A2", "B1", "10", "9", "A02b"]
    assert sorted(labels, key=natural_key) == ["9", "10", "A2", "A02b", "A10", "B1"]


# Peak trains as .mat


def test_mat_and_text_give_the_same_spikes(tmp_path: Path) -> None:
    text = write_trains(tmp_path / "t", A1="1000 0\n3 5.5\n900 7\n", A2="1000 0\n")
    artifact = sparse_column(1000, {5: 1.0})
    write_mat(
        tmp_path / "m" / "p_A1.mat", sparse_column(1000, {2: 5.5, 899: 7.0}), artifact=artifact
    )
    write_mat(tmp_path / "m" / "p_A2.mat", sparse_column(1000, {}))
    assert kind_of(tmp_path / "m") == "peak_trains_mat"
    mat, txt = read_spikes(tmp_path / "m"), read_spikes(text)
    assert_same(mat, txt)


@pytest.mark.parametrize("shape", [(1000, 1), (1, 1000)])
def test_dense_mat_vectors_are_read_too(tmp_path: Path, shape: tuple[int, int]) -> None:
    dense = np.zeros(shape)
    dense.reshape(-1)[[2, 899]] = 5.5, 7.0
    write_mat(tmp_path / "p_A1.mat", dense)
    trains = read_spikes(tmp_path)
    assert trains.n_samples == 1000
    assert trains.spikes.sample.tolist() == [2, 899]


def write_mat73(path: Path, fill: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        fill(file)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


def test_mat_version_73_sparse_is_read(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        group = file.create_group("peak_train")
        group.attrs["MATLAB_sparse"] = np.uint64(1000)
        group["data"] = np.array([5.5, 7.0])
        group["ir"] = np.array([2, 899], np.uint64)
        group["jc"] = np.array([0, 2], np.uint64)

    def fill_empty(file: h5py.File) -> None:
        group = file.create_group("peak_train")
        group.attrs["MATLAB_sparse"] = np.uint64(1000)
        group["jc"] = np.array([0, 0], np.uint64)

    write_mat73(tmp_path / "p_A1.mat", fill)
    write_mat73(tmp_path / "p_A2.mat", fill_empty)
    trains = read_spikes(tmp_path)
    assert trains.n_samples == 1000
    assert trains.spikes.sample.tolist() == [2, 899]
    assert trains.spikes.channel.tolist() == [0, 0]
    assert trains.spikes.peak_to_peak_uv.tolist() == [5.5, 7.0]


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({"other": np.zeros((5, 1))}, "no variable peak_train in it, only other"),
        ({"peak_train": np.zeros((5, 2))}, "must be n_samples x 1, got 5 x 2"),
        ({"peak_train": "text"}, "not a vector of numbers"),
        ({"peak_train": np.array([[0], [1j]])}, "not a vector of numbers"),
        ({"peak_train": np.array([[0], [np.nan]])}, "sample 2: an amplitude must be a finite"),
        ({"peak_train": np.array([[0], [0], [-4.0]])}, "sample 3: .* got -4"),
    ],
)
def test_faulty_mat_files_are_refused_by_name(
    tmp_path: Path, variables: dict[str, Any], part: str
) -> None:
    scipy.io.savemat(tmp_path / "p_A1.mat", variables)
    with pytest.raises(InputError, match=rf"p_A1\.mat.*{part}"):
        read_spikes(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 130, 180])
def test_truncated_mat_files_are_refused(tmp_path: Path, keep: int) -> None:
    write_mat(tmp_path / "p_A1.mat", sparse_column(1000, {2: 5.5}))
    write_mat(tmp_path / "p_A2.mat", sparse_column(1000, {i: 1.0 + i for i in range(50)}))
    whole = (tmp_path / "p_A2.mat").read_bytes()
    (tmp_path / "p_A2.mat").write_bytes(whole[:keep])
    with pytest.raises(InputError, match=r"p_A2\.mat"):
        read_spikes(tmp_path)


def test_text_and_mat_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_trains(tmp_path, A1="100 0\n")
    write_mat(tmp_path / "ptrain_x_A2.mat", sparse_column(100, {1: 2.0}))
    with pytest.raises(InputError, match="mixed"):
        read_spikes(tmp_path)


# CSV


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "spikes.csv"
    path.write_text(text)
    return path


def test_csv_lines_may_come_in_any_order_and_labels_sort_naturally(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "time_s,channel\n1.5,E10\n0.25,E2\n1.5,E2\n0,E10\n")
    assert kind_of(path) == "csv"
    trains = read_spikes(path, sampling_rate_hz=1000)
    assert trains.channel_labels == ("E2", "E10")
    assert trains.spikes.sample.tolist() == [0, 250, 1500, 1500]
    assert trains.spikes.channel.tolist() == [1, 0, 0, 1]
    assert np.isnan(trains.spikes.peak_to_peak_uv).all()


@pytest.mark.parametrize(
    ("last", "duration_s"), [("1.5", 2.0), ("2", 3.0), ("1.99999", 3.0), ("0", 1.0)]
)
def test_csv_lasts_until_the_next_whole_second_unless_told(
    tmp_path: Path, last: str, duration_s: float
) -> None:
    path = write_csv(tmp_path, f"time_s,channel\n{last},A\n")
    assert read_spikes(path, sampling_rate_hz=1000).duration_s == duration_s
    assert read_spikes(path, duration_s=7.5).duration_s == 7.5


def test_csv_amplitudes_semicolons_bom_and_unknown_columns(tmp_path: Path) -> None:
    path = tmp_path / "spikes.txt"
    text = 'unit;peak_to_peak_uv;channel;time_s\n3;12.5;"A 1";0.5\n\n4;20;B;0.25\n'
    path.write_bytes(text.encode("utf-8-sig"))
    trains = read_spikes(path)
    assert trains.channel_labels == ("A 1", "B")
    assert trains.spikes.peak_to_peak_uv.tolist() == [20, 12.5]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param("time_s,channel\n", "no spikes in it", id="no spikes"),
        pytest.param("time_s,channel\n1,A\n-1,A\n", "line 3: time_s .* got -1", id="negative"),
        pytest.param("time_s,channel\nnan,A\n", "line 2: time_s .* got nan", id="NaN"),
        pytest.param("time_s,channel\ninf,A\n", "line 2: time_s .* got inf", id="infinite"),
        pytest.param("time_s,channel\n1,A\nx,A\n", "line 3: time_s must be a number", id="text"),
        pytest.param("time_s;channel\n1,5;A\n1.5;A\n", "line 3: .*decimals", id="decimal comma"),
        pytest.param("time_s,channel\n1,\n", "line 2: channel is missing", id="no channel"),
        pytest.param("time_s,channel\n1\n", "line 2: 1 columns", id="ragged"),
        pytest.param("time_s,channel\n1e300,A\n", "line 2: 1e\\+300 s is later than", id="huge"),
        pytest.param(
            "time_s,channel,peak_to_peak\n1,A,5\n", "line 1: unknown column .*is it", id="misspelt"
        ),
        pytest.param(
            "time_s,channel,peak_to_peak_uv\n1,A,-5\n", "line 2: peak_to_peak_uv", id="amplitude"
        ),
        pytest.param("time_s,channel,time_s\n1,A,1\n", "line 1: more than one", id="twice"),
        pytest.param('time_s,channel\n1,"A\n', "not a CSV table", id="open quote"),
    ],
)
def test_faulty_csv_is_refused_with_its_line(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(InputError, match=rf"spikes\.csv.*{part}") as caught:
        read_spikes(write_csv(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_csv_spike_beyond_the_duration_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "time_s,channel\n1,A\n10,A\n2,A\n")
    with pytest.raises(InputError, match="line 3: 10 s lies beyond the recording's 10 s"):
        read_spikes(path, duration_s=10)
    assert read_spikes(path, duration_s=10.001).n_samples == 100_010


# NPZ


@st.composite
def spike_trains(draw: st.DrawFn) -> SpikeTrains:
    labels = draw(
        st.lists(
            st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1),
            min_size=1,
            max_size=5,
            unique=True,
        )
    )
    rate = draw(st.sampled_from([500.0, 10_000.0, 12_207.03125, 20_000.0]))
    lengths = draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=3))
    segments: list[Segment] = []
    first, start_s = 0, 0.0
    for length in lengths:
        start_s += draw(st.floats(0, 100))
        segments.append(Segment(first, length, start_s))
        first += length
        start_s += length / rate
    n = draw(st.integers(0, 20))
    spikes = sort_spikes(
        np.array(draw(st.lists(st.integers(0, first - 1), min_size=n, max_size=n)), np.int64),
        np.array(draw(st.lists(st.integers(0, len(labels) - 1), min_size=n, max_size=n)), np.int32),
        np.array(
            draw(st.lists(st.floats(0, 1e4, width=32) | st.just(np.nan), min_size=n, max_size=n)),
            np.float32,
        ),
    )
    threshold = draw(
        st.lists(
            st.floats(0, 1e3, width=32) | st.sampled_from([np.nan, np.inf]),
            min_size=len(labels),
            max_size=len(labels),
        )
    )
    return SpikeTrains(
        spikes=spikes,
        channel_labels=tuple(labels),
        sampling_rate_hz=rate,
        segments=tuple(segments),
        threshold_uv=np.array(threshold, np.float32),
    )


def assert_same(a: SpikeTrains, b: SpikeTrains) -> None:
    arrays: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (a.spikes.sample, b.spikes.sample),
        (a.spikes.channel, b.spikes.channel),
        (a.spikes.peak_to_peak_uv, b.spikes.peak_to_peak_uv),
    ]
    for left, right in arrays:
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert a.channel_labels == b.channel_labels
    assert a.sampling_rate_hz == b.sampling_rate_hz
    assert a.segments == b.segments
    np.testing.assert_array_equal(a.threshold_uv, b.threshold_uv)


@settings(max_examples=60)
@given(spike_trains())
def test_npz_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, trains: SpikeTrains
) -> None:
    # A name without .npz: kinds are told by content.
    path = tmp_path_factory.mktemp("npz") / "spikes.bin"
    write_npz(trains, path)
    assert kind_of(path) == "npz"
    assert_same(read_spikes(path), trains)
    assert [p.name for p in path.parent.iterdir()] == ["spikes.bin"]


def good_arrays() -> dict[str, Any]:
    return {
        "sample": np.array([5, 9], np.int64),
        "channel": np.array([1, 0], np.int32),
        "peak_to_peak_uv": np.array([50, 60], np.float32),
        "channel_labels": np.array(["A", "B"]),
        "sampling_rate_hz": 1000.0,
        "duration_s": 2.0,
        "threshold_uv": np.array([np.nan, 30], np.float32),
    }


def test_npz_without_segments_is_one_segment(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **good_arrays())
    assert read_npz(tmp_path / "x.npz").segments == (Segment(0, 2000, 0.0),)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"sample": None}, "no array sample"),
        ({"threshold_uv": None}, "no array threshold_uv"),
        ({"segment": np.zeros((1, 3))}, "unknown array segment"),
        ({"sample": np.array([5, 2000])}, r"sample\[1\] is 2000, outside 0\.\.1999"),
        ({"sample": np.array([-1, 5])}, r"sample\[0\] is -1"),
        ({"sample": np.array([5.0, 6.0])}, "sample must be a list of whole numbers"),
        ({"sample": np.array([5])}, "peak_to_peak_uv must be a list of 1 numbers"),
        ({"channel": np.array([0])}, "2 spikes in sample but 1 in channel"),
        ({"channel": np.array([0, 2])}, r"channel\[1\] is 2, outside 0\.\.1"),
        ({"peak_to_peak_uv": np.array([1, np.inf])}, r"peak_to_peak_uv\[1\] is inf"),
        ({"peak_to_peak_uv": np.array([-1, 1.0])}, r"peak_to_peak_uv\[0\] is -1"),
        ({"peak_to_peak_uv": np.array(["a", "b"])}, "must be a list of 2 numbers"),
        ({"threshold_uv": np.zeros(3)}, "threshold_uv must be a list of 2 numbers"),
        ({"threshold_uv": np.array([1, -np.inf])}, r"threshold_uv\[1\] is -inf, but must be"),
        ({"threshold_uv": np.array([1, 1e300])}, r"threshold_uv\[1\] is 1e\+300, but must be"),
        ({"channel_labels": np.array(["A", "A"])}, "different names"),
        ({"channel_labels": np.array([1, 2])}, "list of names"),
        ({"sampling_rate_hz": 0.0}, "sampling_rate_hz must be finite and above 0"),
        ({"sampling_rate_hz": np.nan}, "sampling_rate_hz must be finite and above 0"),
        ({"sampling_rate_hz": np.ones(2)}, "sampling_rate_hz must be one number"),
        ({"duration_s": -1.0}, "duration_s must be finite and above 0"),
        ({"segments": np.zeros((1, 2))}, "segments must be rows"),
        ({"segments": np.array([[0, 2000, np.nan]])}, "segments must be finite"),
        ({"segments": np.array([[0, 1999.5, 0]])}, "not whole"),
        ({"segments": np.array([[1, 2000, 0]])}, "from sample 0 on"),
        ({"segments": np.array([[0, 1000, 0], [1000, 1000, 0.5]])}, "overlap"),
        ({"segments": np.array([[0, 1000, 0]])}, "last 1 s, not 2 s"),
        ({"sample": np.array([5, "x"], object)}, "not a readable NPZ file"),
    ],
)
def test_faulty_npz_is_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    arrays = {k: v for k, v in (good_arrays() | change).items() if v is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=rf"x\.npz: .*{part}") as caught:
        read_npz(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9, 0.99])
def test_truncated_npz_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **good_arrays())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"x\.npz: (not a readable NPZ|the file is empty)"):
        read_spikes(path)


def test_a_flipped_bit_in_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **good_arrays())
    data = bytearray(path.read_bytes())
    at = data.index(np.array([5, 9], np.int64).tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a readable NPZ"):
        read_spikes(path)


# Any kind


def test_files_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    cases: dict[str, bytes] = {
        "empty": b"",
        "text": b"hello\n",
        "binary": bytes(range(256)),
        "typo.csv": b"time,channel\n1,A\n",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name) is None
        with pytest.raises(InputError, match=f"{name}: "):
            read_spikes(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_spikes(tmp_path / "nope")


def test_rate_and_duration_given_must_agree_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **good_arrays())
    assert read_spikes(path, sampling_rate_hz=1000, duration_s=2).n_samples == 2000
    with pytest.raises(InputError, match="sampled at 1000 Hz, not at the 10000 Hz"):
        read_spikes(path, sampling_rate_hz=10_000)
    with pytest.raises(InputError, match="lasts 2 s, not the 3 s"):
        read_spikes(path, duration_s=3)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_senseless_rate_or_duration_is_refused(tmp_path: Path, value: float) -> None:
    path = write_csv(tmp_path, "time_s,channel\n1,A\n")
    with pytest.raises(InputError, match="sampling_rate_hz must be above 0"):
        read_spikes(path, sampling_rate_hz=value)
    with pytest.raises(InputError, match="duration_s must be above 0"):
        read_spikes(path, duration_s=value)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 3)), min_size=1),
    st.sampled_from([500.0, 10_000.0, 12_207.03125, 30_000.0]),
)
def test_csv_times_of_samples_give_the_samples_back(
    tmp_path_factory: pytest.TempPathFactory, spikes: list[tuple[int, int]], rate: float
) -> None:
    path = tmp_path_factory.mktemp("csv") / "s.csv"
    lines = [f"{sample / rate!r},E{channel}" for sample, channel in spikes]
    path.write_text("\n".join(["time_s,channel", *lines]))
    trains = read_spikes(path, sampling_rate_hz=rate)
    labels = [trains.channel_labels[c] for c in trains.spikes.channel]
    expected = sorted((sample, f"E{channel}") for sample, channel in spikes)
    assert list(zip(trains.spikes.sample.tolist(), labels, strict=True)) == expected

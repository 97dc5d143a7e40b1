"""Recordings that must be refused: MCS files, peak trains, CSV, NPZ, and what is none of them."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse
from bad_case import Case, detect, info, info_as, mcs, mcs_bytes, replace, stamps, stream_of, text
from small_data import RAW, write_mcs

# --- what is no file of any kind


def _folder(path: str) -> Any:
    return lambda folder: (folder / path).mkdir()


NO_FILE = (
    detect("a file that is not there", lambda _: None, "no.h5", "no such file"),
    text("an empty file", "a.h5", b"", "the file is empty"),
    detect("a folder without recordings", _folder("a.h5"), "a.h5", "not a recording"),
    detect("a pipe", lambda f: os.mkfifo(f / "a.h5"), "a.h5", "neither a file nor a folder"),
    detect("a device of the system", lambda _: None, "/dev/zero", "neither a file nor a folder"),
    detect("a name too long for a file", lambda _: None, "x" * 300, "no file can have this name"),
    detect("a link to nowhere", lambda f: (f / "a").symlink_to("gone"), "a", "no such file"),
    detect("a link to itself", lambda f: (f / "a").symlink_to("a"), "a", "no such file"),
    text("a program", "a.h5", b"\x7fELF\x02\x01\x01" + bytes(500), "not a recording toptune knows"),
    text("random bytes", "a", np.random.default_rng(0).bytes(5000), "not a recording"),
)

# --- MCS


def _two_streams(f: Path) -> None:
    write_mcs(f / "a.h5", seed=0, seconds=0.2, streams=2)


def _delete(place: str) -> Any:
    def edit(file: Any) -> None:
        node = file if place.startswith("/") else stream_of(file)
        del node[place]

    return edit


def _attribute(name: str, value: object, where: str = "") -> Any:
    def edit(file: Any) -> None:
        (file[where] if where else stream_of(file)).attrs[name] = value

    return edit


def _huge_shape(file: Any) -> None:
    replace("ChannelData", shape=(4, 10**12), dtype="<i4", chunks=(4, 4096), compression="gzip")(
        file
    )


def _bomb(name: str, shape: tuple[int, int], dtype: str) -> Any:
    """A chunk of 32 kB that inflates to 24 MB of zeros."""

    def edit(file: Any) -> None:
        how = {"shape": shape, "dtype": dtype, "chunks": shape, "compression": "gzip"}
        replace(name, fletcher32=name == "ChannelData", **how)(file)
        stored = zlib.compress(bytes(24 * 2**20), 1)
        stream_of(file)[name].id.write_direct_chunk((0, 0), stored)

    return edit


def _references(file: Any) -> None:
    data = np.full((4, 2000), file["Data"].ref, h5py.ref_dtype)
    replace("ChannelData", data=data)(file)


def _external(file: Any) -> None:
    replace(
        "ChannelData",
        shape=(4, 2000),
        dtype="<i4",
        external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)],
    )(file)


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=(4, 2000), dtype="<i4")
    layout[...] = h5py.VirtualSource("b.h5", "x", shape=(4, 2000))
    del stream_of(file)["ChannelData"]
    stream_of(file).create_virtual_dataset("ChannelData", layout)


def _link(place: str, link: Any) -> Any:
    def edit(file: Any) -> None:
        if place in file:
            del file[place]
        file[place] = link

    return edit


def _beginning(n: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:n]


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _endless_heap(data: bytes) -> bytes:
    """Texts in a heap whose first object has no number and no length."""
    at = data.index(b"GCOL\x01\0\0\0") + 16
    return data[:at] + bytes(16) + data[at + 16 :]


STREAM = "Data/Recording_0/AnalogStream/Stream_0"
MCS = (
    *(
        mcs_bytes(f"MCS cut after {cut}", _beginning(cut), "copy it again")
        for cut in (9, 100, 1000, 2000)
    ),
    mcs_bytes("MCS cut in half", _half, "is cut off"),
    mcs_bytes("MCS with only its signature", lambda d: d[:8] + bytes(500), "cannot be read"),
    mcs_bytes("MCS with an endless heap", _endless_heap, "texts at byte"),
    mcs("MCS without Data", _delete("/Data"), "not a recording as MCS's programs write it"),
    mcs("MCS without recordings", _delete("/Data/Recording_0"), "no Recording_N"),
    mcs("MCS without streams", _delete("/Data/Recording_0/AnalogStream"), "no electrode stream"),
    mcs("MCS without InfoChannel", _delete("InfoChannel"), "not a recording as MCS's"),
    mcs("MCS without samples", _delete("ChannelData"), "not a recording as MCS's"),
    mcs("MCS without time stamps", _delete("ChannelDataTimeStamps"), "not a recording as MCS's"),
    mcs(
        "MCS stream of an unknown kind", _attribute("DataSubType", b"Video"), "no electrode stream"
    ),
    mcs("MCS stream that is filtered", _attribute("Label", b"Filter Data"), "--highpass-hz 0"),
    mcs("MCS of no protocol", _attribute("McsHdf5ProtocolVersion", 0, "/"), "export it again"),
    mcs("MCS with a broken name", _attribute("Label", b"\xff\xfe\xfa"), "cannot be printed"),
    detect("MCS with two raw streams", _two_streams, "a.h5", "choose one of", "--stream"),
    Case(
        "MCS and a stream that is not there",
        lambda f: write_mcs(f / "a.h5", seed=0, seconds=0.2),
        ("detect", "a.h5", "-o", "out.npz", "--stream", "Electrode Data 7"),
        ("a.h5", "'Electrode Data 7'", RAW),
    ),
    mcs("MCS in pascal", info("Unit", b"Pa"), "in Pa, not in volts"),
    mcs("MCS with a tick of 0", info("Tick", 0), "ticks of [0] us"),
    mcs("MCS with a negative tick", info("Tick", -100), "ticks of [-100] us"),
    mcs("MCS with different ticks", info("Tick", [100, 100, 50, 100]), "ticks of [50, 100] us"),
    mcs("MCS with a tick of an hour", info("Tick", 3_600_000_000), "more than 7 days"),
    mcs("MCS with a step of 0", info("ConversionFactor", 0), "electrode E0", "no voltage"),
    mcs("MCS with a step of NaN", info_as("<f8", "ConversionFactor", np.nan), "no voltage"),
    mcs("MCS with an endless exponent", info("Exponent", 400), "no voltage"),
    mcs("MCS whose rows have no tick", info_as(None, "Tick", 0), "KeyError: 'Tick'"),
    mcs("MCS whose rows have no name", info_as(None, "Label", 0), "KeyError: 'Label'"),
    mcs("MCS with a row twice", info("RowIndex", [0, 1, 1, 3]), "does not fit its InfoChannel"),
    mcs("MCS with a row too many", info("RowIndex", [0, 1, 2, 7]), "does not fit its InfoChannel"),
    mcs("MCS with a negative row", info("RowIndex", [0, 1, 2, -1]), "does not fit its InfoChannel"),
    mcs(
        "MCS with a channel twice", info("ChannelID", [0, 1, 1, 3]), "does not fit its InfoChannel"
    ),
    mcs("MCS with a name twice", info("Label", b"E1"), "4 electrodes of array 0 are called 'E1'"),
    mcs("MCS of the reference only", info("Label", b"Ref"), "no electrode beside the reference"),
    mcs(
        "MCS samples of one dimension",
        replace("ChannelData", data=np.zeros(2000, np.int32)),
        "where rows of whole numbers are needed",
    ),
    mcs(
        "MCS samples of three dimensions",
        replace("ChannelData", data=np.zeros((4, 20, 100), np.int32)),
        "where rows of whole numbers are needed",
    ),
    mcs(
        "MCS samples of floats",
        replace("ChannelData", data=np.zeros((4, 2000))),
        "float64 of shape (4, 2000)",
    ),
    mcs(
        "MCS samples of text",
        replace("ChannelData", data=np.full((4, 2000), b"x")),
        "where rows of whole numbers are needed",
    ),
    mcs("MCS samples that are references", _references, "where rows of whole numbers are needed"),
    mcs("MCS time stamps of no time", stamps(), "ChannelDataTimeStamps has shape (0,)"),
    mcs("MCS time stamps short", stamps((0, 0, 999)), "end at sample 1000, the data at 2000"),
    mcs("MCS time stamps beyond", stamps((0, 0, 5000)), "does not follow sample 0 of 2000"),
    mcs("MCS time stamps unsorted", stamps((0, 1000, 1999), (9, 0, 999)), "does not follow"),
    mcs("MCS time stamps negative", stamps((-5, 0, 1999)), "does not follow sample 0"),
    mcs("MCS time stamps overlap", stamps((0, 0, 999), (50, 1000, 1999)), "overlap in time"),
    mcs("MCS time stamps of years", stamps((0, 0, 999), (10**15, 1000, 1999)), "than 7 days"),
    mcs("MCS of a million million samples", _huge_shape, "claims 16000000000000 bytes"),
    mcs("MCS bomb in the samples", _bomb("ChannelData", (4, 2000), "<i4"), "inflates to more than"),
    mcs(
        "MCS bomb in the time stamps",
        _bomb("ChannelDataTimeStamps", (100, 3), "<i8"),
        "inflates to more than",
    ),
    mcs(
        "MCS chunks of a gigabyte",
        replace(
            "ChannelData", shape=(4, 2**27), dtype="<i4", chunks=(4, 2**26), compression="gzip"
        ),
        "has chunks of 1073741824 bytes",
    ),
    mcs(
        "MCS with another filter",
        replace("ChannelData", data=np.zeros((4, 2000), np.int32), compression="lzf"),
        "filter 32000",
        "h5repack",
    ),
    mcs("MCS with samples in another file", _external, "are in other files"),
    mcs("MCS with virtual samples", _virtual, "are in other files"),
    *(
        mcs(f"MCS with {what} link at {place}", _link(place, link), "links are not followed")
        for what, link in (
            ("an external", h5py.ExternalLink("b.h5", "/")),
            ("a soft", h5py.SoftLink("/Data")),
        )
        for place in (
            "Extra",
            "Data/Recording_1",
            "Data/Recording_0/Extra",
            f"{STREAM}/ChannelData",
        )
    ),
)

# --- peak trains


def trains(name: str, content: str | bytes, *says: str) -> Case:
    """One electrode's file beside a good one."""

    def make(folder: Path) -> None:
        (folder / "p").mkdir()
        (folder / "p" / "p_1.txt").write_text("1000 0\n10 50\n")
        data = content.encode() if isinstance(content, str) else content
        (folder / "p" / "p_2.txt").write_bytes(data)

    return Case(name, make, ("detect", "p", "-o", "out.npz"), ("p_2.txt", *says))


PEAK_TEXT = (
    trains("peak train that is empty", "", "the file is empty"),
    trains("peak train without header", "10 50\n20 60\n", "'n_samples 0'"),
    trains("peak train of no samples", "0 0\n", "'n_samples 0'"),
    trains("peak train of endless samples", "1e300 0\n", "'n_samples 0'"),
    trains("peak train of other length", "900 0\n", "900 samples here but 1000"),
    trains("peak train with text", "1000 0\nspike 4\n", "line 2", "expected two numbers"),
    trains("peak train with one column", "1000 0\n10\n", "line 2", "expected two numbers"),
    trains("peak train with three columns", "1000 0\n1 2 3\n", "line 2"),
    trains("peak train with commas", "1000 0\n10,5 50\n", "line 2", "'10,5 50'"),
    trains("peak train with index 0", "1000 0\n0 50\n", "line 2", "outside 1..1000"),
    trains("peak train with a negative index", "1000 0\n-4 50\n", "line 2", "outside 1..1000"),
    trains("peak train beyond the end", "1000 0\n1001 50\n", "line 2", "outside 1..1000"),
    trains("peak train between samples", "1000 0\n10.5 50\n", "line 2", "whole number"),
    trains("peak train unsorted", "1000 0\n20 5\n10 5\n", "line 3", "10 comes after 20"),
    trains("peak train with a spike twice", "1000 0\n10 5\n10 5\n", "line 3", "repeats 10"),
    trains("peak train with NaN", "1000 0\n10 nan\n", "line 2", "amplitude"),
    trains("peak train with infinity", "1000 0\n10 inf\n", "line 2", "amplitude"),
    trains("peak train with a mark inside", b"1000 0\n\xef\xbb\xbf10 5\n", "line 2"),
    trains("peak train in UTF-32", "1000 0\n10 5\n".encode("utf-32"), "not plain text"),
    trains("peak train with zero bytes", b"1000 0\n10 5\n\0\0\0\0\n", "not plain text"),
    trains("peak train with a number of 5000 digits", f"1000 0\n{'9' * 5000} 5\n", "line 2"),
    text(
        "peak train of a month",
        "p/p_1.txt",
        "99999999999 0\n10 50\n",
        "more than 7 days",
        command=("detect", "p", "-o", "out.npz"),
    )._replace(says=("p", "more than 7 days")),
)


def mat(name: str, fill: Any, *says: str) -> Case:
    """One electrode's .mat file beside a good one; `fill` writes it."""

    def make(folder: Path) -> None:
        (folder / "m").mkdir()
        good = scipy.sparse.csc_matrix(([50.0], ([9], [0])), (1000, 1))
        scipy.io.savemat(folder / "m" / "p_1.mat", {"peak_train": good})
        fill(folder / "m" / "p_2.mat")

    return Case(name, make, ("detect", "m", "-o", "out.npz"), ("p_2.mat", *says))


def mat5(**variables: Any) -> Any:
    return lambda path: scipy.io.savemat(path, variables, do_compression=True)


def mat5_of_length(n: int) -> Any:
    """Say of a short dense vector that it is long."""

    def write(path: Path) -> None:
        scipy.io.savemat(path, {"peak_train": np.zeros((0, 1))})
        data = path.read_bytes()
        path.write_bytes(
            data.replace(bytes(4) + b"\1\0\0\0", n.to_bytes(4, "little") + b"\1\0\0\0")
        )

    return write


def mat73(fill: Any) -> Any:
    def write(path: Path) -> None:
        with h5py.File(path, "w", userblock_size=512) as file:
            fill(file)
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))

    return write


def sparse73(jc: list[int], ir: list[int], rows: int = 1000) -> Any:
    def fill(file: Any) -> None:
        group = file.create_group("peak_train")
        group.attrs["MATLAB_sparse"] = np.uint64(rows)
        group["data"] = np.full(len(ir), 50.0)
        group["ir"] = np.array(ir, np.uint64)
        group["jc"] = np.array(jc, np.uint64)

    return mat73(fill)


def columns_out_of_order(path: Path) -> None:
    """A sparse row whose columns' ends do not rise: SciPy would write beyond its arrays."""
    row = scipy.sparse.csc_matrix(([1.0, 2.0], ([0, 0], [3, 5])), (1, 1000))
    scipy.io.savemat(path, {"peak_train": row})
    data = path.read_bytes()
    ends = row.indptr.astype("<i4").tobytes()
    wrong = row.indptr.astype("<i4").copy()
    wrong[4] = 10**9
    path.write_bytes(data.replace(ends, wrong.tobytes()))


def mat_bomb(declared: int, inflated: int) -> Any:
    """Write a variable of zeros that says to be that long, and is."""

    def write(path: Path) -> None:
        head = np.array([14, declared, 6, 8, 6, 0, 5, 8, 1000, 1, 1, 10], "<u4").tobytes()
        data = zlib.compress(head + b"peak_train".ljust(16, b"\0") + bytes(inflated), 1)
        header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\x01IM"
        path.write_bytes(header + np.array([15, len(data)], "<u4").tobytes() + data)

    return write


def _cut_short(path: Path) -> None:
    mat5(peak_train=_dense([1]))(path)
    path.write_bytes(path.read_bytes()[:-9])


def _dense(values: Any) -> Any:
    return np.array(values, float).reshape(-1, 1)


PEAK_MAT = (
    mat("mat without peak_train", mat5(other=_dense([1])), "no variable peak_train", "only other"),
    mat("mat of two columns", mat5(peak_train=np.zeros((500, 2))), "got 500 x 2"),
    mat("mat of text", mat5(peak_train="spikes"), "not a vector of numbers"),
    mat("mat of a cell", mat5(peak_train=np.array([[1], "x"], object)), "not a vector of numbers"),
    mat("mat of a struct", mat5(peak_train={"a": 1}), "not a vector of numbers"),
    mat("mat of complex numbers", mat5(peak_train=_dense([0, 1]) * 1j), "not a vector of numbers"),
    mat("mat with NaN", mat5(peak_train=_dense([0, np.nan])), "sample 2: an amplitude"),
    mat("mat with a negative amplitude", mat5(peak_train=_dense([0, 0, -4])), "sample 3"),
    mat("mat of other length", mat5(peak_train=_dense(np.zeros(900))), "900 samples here but 1000"),
    mat("mat cut short", _cut_short, "damaged MATLAB"),
    mat("mat with columns out of order", columns_out_of_order, "damaged MATLAB file"),
    mat("mat that is 2 GB by its own account", mat_bomb(2**31 - 8, 0), "2147483640 bytes"),
    mat("mat that inflates to more than it says", mat_bomb(9000, 2**24), "as long as it says"),
    mat(
        "mat with more samples than memory",
        mat5_of_length(2**30),
        "not sparse and would take 8589934592 bytes",
    ),
    mat("mat 7.3 without peak_train", mat73(lambda f: f.create_group("x")), "only x"),
    mat("mat 7.3 whose columns do not fit", sparse73([0, 10**12], [5]), "does not fit ir"),
    mat("mat 7.3 with a row beyond", sparse73([0, 1], [1000]), "out of order or range"),
    mat("mat 7.3 of absurd length", sparse73([0, 1], [5], 2**62), "samples here but 1000"),
    mat(
        "mat 7.3 with a soft link", mat73(_link("peak_train", h5py.SoftLink("/x"))), "not followed"
    ),
    mat(
        "mat 7.3 with a link to a file",
        mat73(_link("peak_train", h5py.ExternalLink("/etc/passwd", "/"))),
        "links are not followed",
    ),
    mat(
        "mat 7.3 of absurd shape",
        mat73(lambda f: f.create_dataset("peak_train", (1, 10**13), "f8", chunks=(1, 10**4))),
        "bytes in shape (1, 10000000000000)",
    ),
)


# --- CSV


def csv(name: str, content: str | bytes, *says: str) -> Case:
    return text(name, "c.csv", content, *says)


CSV = (
    csv("CSV without header", "0.5,E1\n0.7,E2\n", "not a recording toptune knows"),
    csv("CSV without spikes", "time_s,channel\n", "no spikes in it"),
    csv("CSV with a misspelt column", "time_s,channel,peak_to_peak\n1,A,5\n", "is it peak_to_"),
    csv("CSV with a column twice", "time_s,channel,time_s\n1,A,1\n", "more than one column time_s"),
    csv("CSV with a negative time", "time_s,channel\n1,A\n-1,A\n", "line 3", "got -1"),
    csv("CSV with NaN", "time_s,channel\nnan,A\n", "line 2", "got nan"),
    csv("CSV with infinity", "time_s,channel\ninf,A\n", "line 2", "got inf"),
    csv("CSV with text", "time_s,channel\nearly,A\n", "line 2", "'early'"),
    csv("CSV with two decimal marks", "time_s;channel\n1,5;A\n2.5;A\n", "line 3", "decimals"),
    csv("CSV with underscores", "time_s,channel\n1_000,A\n", "line 2", "'1_000'"),
    csv("CSV with other digits", "time_s,channel\n\u0663,A\n", "line 2", "must be a number"),
    csv("CSV with times in ms", "time_s,channel\n900000,A\n", "line 2", "in which unit"),
    csv("CSV without a channel", "time_s,channel\n1,\n", "line 2", "channel is missing"),
    csv("CSV with a ragged line", "time_s,channel\n1,A\n2\n", "line 3", "1 columns"),
    csv("CSV with an open quote", 'time_s,channel\n1,"A\n2,B\n', "not a CSV table"),
    csv("CSV with an endless cell", f"time_s,channel\n1,{'x' * 200_000}\n", "not a CSV table"),
    csv("CSV in half UTF-16", "time_s,channel\n1,A\n".encode("utf-16")[:-1], "not UTF-16"),
    csv("CSV in Latin-1", "time_s,channel\n1,Stra\xdfe\n".encode("latin-1"), "not UTF-8"),
    csv("CSV with two columns of times", "time_s,time_ms,channel\n1,1,A\n", "both give times"),
    csv("CSV that states no number", "# duration_s=x\ntime_s,channel\n1,A\n", "must give a number"),
    csv("CSV that states no length", "# duration_s=-5\ntime_s,channel\n1,A\n", "must be above 0"),
    csv("CSV beyond its length", "# duration_s=5\ntime_s,channel\n9,A\n", "line 3", "beyond the"),
    csv("CSV before its start", "# start_s=5\ntime_s,channel\n1,A\n", "line 3", "before the start"),
    csv("CSV of several wells", "time_s,channel\n1,A1_1\n2,B1_1\n", "holds 2 wells, A1, B1"),
    csv(
        "spike list without an electrode", "Time (s),Electrode\n0.5,\n", "line 2", "channel is miss"
    ),
    csv(
        "spike list without a well",
        "Timestamp [\u00b5s],Channel Label,Well Label\n5,12,\n",
        "line 2",
    ),
    csv("CSV with zero bytes", b"time_s,channel\n1\0,A\n", "line 2"),
    csv(
        "CSV with an amplitude of NaN", "time_s,channel,peak_to_peak_uv\n1,A,nan\n", "line 2", "nan"
    ),
    csv(
        "CSV with more channels than any array",
        "time_s,channel\n" + "".join(f"1,{k}\n" for k in range(100_001)),
        "more than 100000 channels",
    ),
)

# --- NPZ


def npz(name: str, *says: str, **change: Any) -> Case:
    """Spikes as `toptune detect` writes them, with some arrays changed; None takes one away."""

    def make(folder: Path) -> None:
        good: dict[str, Any] = {
            "sample": np.array([10, 20]), "channel": np.array([0, 1], np.int32),
            "peak_to_peak_uv": np.array([50.0, 60.0], np.float32),
            "channel_labels": np.array(["A", "B"]), "sampling_rate_hz": 1e4, "duration_s": 1.0,
            "threshold_uv": np.zeros(2, np.float32), "segments": np.array([[0.0, 10_000, 0]]),
        }  # fmt: skip
        arrays = {k: v for k, v in {**good, **change}.items() if v is not None}
        np.savez(folder / "n.npz", **arrays)

    return detect(name, make, "n.npz", *says)


class Harmful:
    """What must never be loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch harmed",)


def _member(name: str, content: bytes) -> Any:
    def make(folder: Path) -> None:
        _GOOD_NPZ.make(folder)
        with zipfile.ZipFile(folder / "n.npz", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)

    return make


def _npz_of(name: str, header: str, size: int) -> Any:
    """Replace a member by one with that header and as many zeros, compressed."""

    def make(folder: Path) -> None:
        _GOOD_NPZ.make(folder)
        with zipfile.ZipFile(folder / "n.npz") as old:
            kept = {n: old.read(n) for n in old.namelist() if n != name}
        text = header.ljust(117) + "\n"
        magic = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode()
        with zipfile.ZipFile(folder / "n.npz", "w", zipfile.ZIP_DEFLATED) as new:
            for n, data in kept.items():
                new.writestr(n, data)
            new.writestr(name, magic + bytes(size))

    return make


_GOOD_NPZ = npz("good")
NPZ = (
    npz("NPZ without labels", "no array channel_labels", channel_labels=None),
    npz("NPZ with an unknown array", "unknown array more", more=np.zeros(3)),
    npz("NPZ with pickled objects", "not a readable NPZ", sample=np.array([Harmful(), 1], object)),
    npz("NPZ with pickled labels", "not a readable NPZ", channel_labels=np.array(["A", 1], object)),
    npz("NPZ with samples as floats", "list of whole numbers", sample=np.array([1.0, 2.0])),
    npz("NPZ with samples of two dimensions", "whole numbers", sample=np.zeros((2, 2), np.int64)),
    npz("NPZ with a sample beyond", "sample[1] is 10000", sample=np.array([1, 10_000])),
    npz("NPZ with a negative sample", "sample[0] is -1", sample=np.array([-1, 5])),
    npz("NPZ with a channel beyond", "channel[0] is 2", channel=np.array([2, 0])),
    npz("NPZ of different lengths", "2 spikes in sample but 3", channel=np.array([0, 0, 1])),
    npz("NPZ with infinite amplitudes", "peak_to_peak_uv[0]", peak_to_peak_uv=[np.inf, 1.0]),
    npz("NPZ with a label twice", "different names", channel_labels=np.array(["A", "A"])),
    npz("NPZ with labels as numbers", "list of names", channel_labels=np.array([1, 2])),
    npz("NPZ with a rate of NaN", "sampling_rate_hz must be", sampling_rate_hz=np.nan),
    npz("NPZ with an endless rate", "not between 0 and", sampling_rate_hz=1e300, segments=None),
    npz("NPZ of a thousand years", "more than 7 days", duration_s=3e10, segments=None),
    npz("NPZ without a sample", "holds no sample", "n.npz", duration_s=1e-9, segments=None,
        sample=np.zeros(0, int), channel=np.zeros(0, int), peak_to_peak_uv=np.zeros(0)),
    npz("NPZ with segments that overlap", "overlap in time", duration_s=2.0,
        segments=[[0, 10_000, 0], [10_000, 10_000, 0.5]]),
    npz("NPZ with segments of text", "segments must be rows", segments=np.array([["a", "b", "c"]])),
    detect(
        "NPZ with a path that leaves the archive",
        _member("../../harmed.npy", b"x"),
        "n.npz",
        "unknown array ../../harmed",
    ),
    detect("NPZ bomb", _npz_of("sample.npy", "{'descr': '<i8', 'fortran_order': False, "
           "'shape': (9437184,), }", 72 * 2**20), "n.npz", "would inflate to"),
    detect("NPZ of absurd shape", _npz_of("sample.npy", "{'descr': '<i8', 'fortran_order': False, "
           "'shape': (1000000000000,), }", 800), "n.npz", "of shape (1000000000000,)"),
    detect("NPZ with code in a header", _npz_of("sample.npy", "__import__('os').system('touch x')",
           800), "n.npz", "not a readable NPZ file"),
    detect("an archive of other things", lambda f: zipfile.ZipFile(f / "n.npz", "w").writestr(
        "letter.txt", "hello"), "n.npz", "not a recording"),
)  # fmt: skip

CASES = (*NO_FILE, *MCS, *PEAK_TEXT, *PEAK_MAT, *CSV, *NPZ)

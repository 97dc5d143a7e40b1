"""Recordings of other programs that must be refused; the cases skip where a library is missing."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from bad_case import Case, detect
from foreign_files import (
    counts,
    write_brw3,
    write_brw4,
    write_bxr,
    write_intan,
    write_intan_folder,
    write_maxwell,
    write_nev,
    write_nex,
    write_nsx,
    write_nwb,
    write_openephys,
    write_plx,
)
from needs import package


def foreign(name: str, path: str, write: Callable[[Path], Any], *says: str) -> Case:
    """Write a recording that neo would read."""

    def make(folder: Path) -> None:
        package("neo")
        write(folder / path)

    return detect(name, make, path, *says)


def changed(
    write: Callable[[Path], Any], change: Callable[[bytes], bytes]
) -> Callable[[Path], None]:
    """Write a good file, and spoil its bytes."""

    def make(path: Path) -> None:
        write(path)
        path.write_bytes(change(path.read_bytes()))

    return make


def edited(write: Callable[[Path], Any], edit: Callable[[Any], object]) -> Callable[[Path], None]:
    """Write a good HDF5 file, and spoil it."""

    def make(path: Path) -> None:
        write(path)
        with h5py.File(path, "r+") as file:
            edit(file)

    return make


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + value + data[at + len(value) :]


def as_number(place: str, value: Any) -> Callable[[Any], None]:
    """Replace a dataset."""

    def edit(file: Any) -> None:
        del file[place]
        file[place] = value

    return edit


def rhd(path: Path) -> None:
    write_intan(path, counts(512, 3))


def ns5(path: Path) -> None:
    write_nsx(path, [(0, counts(500, 3))])


def nev(path: Path) -> None:
    write_nev(path, [(300, 1, 0), (600, 2, 1)])


def plx(path: Path) -> None:
    write_plx(path, {"WB": counts(300, 2)})


def nex(path: Path) -> None:
    write_nex(path, neurons={"n": [400, 800]})


def maxwell(path: Path) -> None:
    write_maxwell(path, {"well000": counts(600, 3)}, spikes=[(5100, 3)])


def brw(path: Path) -> None:
    write_brw3(path, counts(500, 4))


def bxr(path: Path) -> None:
    write_bxr(path, {"A1": [(5, 0), (9, 2)]})


def _description(text: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_openephys(path, {"R": counts(300, 3)})
        (place,) = path.rglob("structure.oebin")
        place.write_text(text)

    return make


def _shorter_samples(path: Path) -> None:
    write_openephys(path, {"R": counts(300, 2)})
    (place,) = path.rglob("continuous.dat")
    place.write_bytes(place.read_bytes()[:-40])


def _huge(place: str) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        del file[place]
        shape = (3, 10**12)
        file.create_dataset(place, shape, "<u2", chunks=(3, 200), compression="gzip")

    return edit


NEO = (
    foreign("Intan cut in its header", "a.rhd", changed(rhd, cut(0.05)), "Intan's RHX that cannot"),
    foreign("Intan cut in its samples", "a.rhd", changed(rhd, cut(0.9)), "Intan's RHX that cannot"),
    foreign("Intan at 0 Hz", "a.rhd", changed(rhd, put(8, bytes(4))), "a.rhd"),
    foreign("Intan under another name", "a.bin", rhd, "must end in .rhd or .rhs"),
    foreign("Intan without samples", "a.rhd", changed(rhd, lambda d: d[:-5000]), "cannot be read"),
    foreign(
        "Intan whose header is named for its folder",
        "info.rhd",
        lambda path: write_intan_folder(path.parent, counts(100, 2)),
        "name the folder",
    ),
    foreign("Blackrock cut off", "a.ns5", changed(ns5, cut(0.8)), "cannot be read"),
    foreign("Blackrock of no channels", "a.ns5", changed(ns5, put(310, bytes(4))), "cannot be"),
    foreign("Blackrock with endless headers", "a.ns5", changed(ns5, put(10, b"\xff" * 4)),
            "a.ns5"),
    foreign(
        "Blackrock of no scale", "a.ns5",
        lambda path: write_nsx(path, [(0, counts(500, 2))], largest_uv=0), "gives no voltage",
    ),
    foreign(
        "Blackrock with two wells", "a.ns5",
        lambda path: write_nsx(path, [(0, counts(500, 2))], names=["A1_1", "A2_1"]),
        "holds 2 wells, A1, A2", "--well",
    ),
    foreign("Blackrock spikes cut in their header", "a.nev", changed(nev, cut(0.3)), "cannot be"),
    foreign("Blackrock spikes under another name", "a.dat", nev, "must end in .nev"),
    foreign(
        "Blackrock spikes of none", "a.nev", lambda path: write_nev(path, []),
        "neither voltage of electrodes nor spikes",
    ),
    foreign("Plexon cut off", "a.plx", changed(plx, cut(0.99)), "cannot be read"),
    foreign("Plexon of an absurd number of channels", "a.plx",
            changed(plx, put(148, b"\xff\xff\xff\x3f")), "cannot be read"),
    foreign(
        "Plexon of two streams", "a.plx",
        lambda path: write_plx(path, {"FP": counts(99, 1), "AB": counts(99, 1)}),
        "choose one of 'AB', 'FPl-Low Pass Filtered'", "--stream",
    ),
    foreign("NeuroExplorer cut off", "a.nex", changed(nex, cut(0.7)), "that cannot be read"),
    foreign("NeuroExplorer of an absurd number of variables", "a.nex",
            changed(nex, put(280, b"\xff\xff\xff\x3f")), "that cannot be read"),
    foreign("NeuroExplorer without a clock", "a.nex", changed(nex, put(264, bytes(8))), "a.nex"),
    foreign("Open Ephys without a description", "a", _description(""), "not a description"),
    foreign("Open Ephys nested without end", "a", _description("[" * 100_000), "not a description"),
    foreign(
        "Open Ephys that leads elsewhere", "a",
        _description('{"continuous": [{"folder_name": "../../../x/"}]}'),
        "names a folder outside the recording",
    ),
    foreign(
        "Open Ephys of an absolute folder", "a",
        _description('{"continuous": [{"folder_name": "/etc/"}]}'),
        "names a folder outside the recording",
    ),
    foreign("Open Ephys that was cut off", "a", _shorter_samples, "the recording was cut off"),
    foreign(
        "Open Ephys of two streams", "a",
        lambda path: write_openephys(path, {"A": counts(99, 1), "B": counts(99, 1)}),
        "2 streams could hold the raw data", "--stream",
    ),
)  # fmt: skip

RAW = "data_store/data0000/groups/routed/raw"
FRAMES = "data_store/data0000/groups/routed/frame_nos"
VARIABLES = "3BRecInfo/3BRecVars"
HDF5 = (
    foreign(
        "MaxWell of two wells", "a.raw.h5",
        lambda path: write_maxwell(path, {"well000": counts(90, 2), "well001": counts(90, 2)}),
        "holds 2 wells, well000, well001", "--well",
    ),
    foreign("MaxWell with a link to a file", "a.raw.h5",
            edited(maxwell, lambda f: f.__setitem__("x", h5py.ExternalLink("b.h5", "/"))),
            "links are not followed"),
    foreign("MaxWell of a million million samples", "a.raw.h5", edited(maxwell, _huge(RAW)),
            "claims 6000000000000 bytes"),
    foreign("MaxWell with other frame numbers", "a.raw.h5",
            edited(maxwell, as_number(FRAMES, np.arange(9, dtype=np.uint64))),
            "was not closed properly"),
    foreign("MaxWell without a mapping", "a.raw.h5",
            edited(maxwell, lambda f: f.__delitem__("data_store/data0000/settings/mapping")),
            "a recording of MaxWell's MaxLab that cannot be read"),
    foreign("MaxWell at a rate of NaN", "a.raw.h5",
            edited(maxwell, as_number("data_store/data0000/settings/sampling", [np.nan])),
            "a.raw.h5"),
    foreign("MaxWell cut off", "a.raw.h5", changed(maxwell, cut(0.6)), "is cut off"),
    foreign("MaxWell of no step", "a.raw.h5",
            edited(maxwell, as_number("data_store/data0000/settings/lsb", [0.0])),
            "gives no voltage"),
    foreign("3Brain without its rate", "a.brw",
            edited(brw, lambda f: f.__delitem__(f"{VARIABLES}/SamplingRate")), "cannot be read"),
    foreign("3Brain of no frames", "a.brw",
            edited(brw, as_number(f"{VARIABLES}/NRecFrames", np.array([0]))), "a.brw"),
    foreign("3Brain of an absurd number of frames", "a.brw",
            edited(brw, as_number(f"{VARIABLES}/NRecFrames", np.array([10**9]))), "a.brw"),
    foreign("3Brain of several wells", "a.brw",
            lambda path: write_brw4(path, {"A1": counts(90, 4), "A2": counts(90, 4)}),
            "holds 2 wells, A1, A2", "--well"),
    foreign("3Brain of events only", "a.brw",
            lambda path: write_brw4(path, {"A1": counts(90, 4)}, stored="EventsBasedSparseRaw"),
            "around events only"),
    foreign("3Brain spikes of different lengths", "a.bxr",
            edited(bxr, as_number("Well_A1/SpikeChIdxs", np.zeros(5, np.int32))),
            "2 times of spikes, but 5 channels"),
    foreign("3Brain spikes before the start", "a.bxr",
            edited(bxr, as_number("Well_A1/SpikeTimes", np.array([-70_000, 4]))),
            "before the start"),
    foreign("3Brain spikes of a thousand years", "a.bxr",
            edited(bxr, as_number("Well_A1/SpikeTimes", np.array([4, 10**15]))), "a.bxr"),
    foreign("3Brain with a description that is none", "a.bxr",
            edited(bxr, as_number("ExperimentSettings", np.array([b"{"]))), "cannot be read"),
    foreign("3Brain with a soft link", "a.bxr",
            edited(bxr, lambda f: f.__setitem__("x", h5py.SoftLink("/TOC"))),
            "links are not followed"),
)  # fmt: skip


def nwb(
    name: str, edit: Callable[[Any], object], *says: str, units: bool = False, **told: Any
) -> Case:
    """Write an NWB file of voltage or units by pynwb, and spoil it."""

    def make(folder: Path) -> None:
        package("pynwb")
        spikes = {"u": [0.1, 0.2], "v": [0.3]}
        what: dict[str, Any] = {"units": spikes} if units else {"series": {"Raw": counts(300, 2)}}
        with h5py.File(write_nwb(folder / "a.nwb", **what, **told), "r+") as file:
            edit(file)

    return detect(name, make, "a.nwb", *says)


def _nan_series(file: Any) -> None:
    kept = dict(file["acquisition/Raw/data"].attrs)
    del file["acquisition/Raw/data"]
    file["acquisition/Raw/data"] = np.full((300, 2), np.nan, np.float32)
    file["acquisition/Raw/data"].attrs.update(kept)


def _bomb(file: Any) -> None:
    """Put a chunk of 32 kB that inflates to 24 MB of zeros among the samples."""
    kept = dict(file["acquisition/Raw/data"].attrs)
    del file["acquisition/Raw/data"]
    how: dict[str, Any] = {"chunks": (300, 2), "compression": "gzip"}
    data = file.create_dataset("acquisition/Raw/data", (300, 2), "<i2", **how)
    data.id.write_direct_chunk((0, 0), zlib.compress(bytes(24 * 2**20), 1))
    data.attrs.update(kept)


def _number(place: str, name: str, value: object) -> Callable[[Any], None]:
    return lambda file: file[place].attrs.__setitem__(name, value)


NWB = (
    nwb("NWB without content", lambda f: f.__delitem__("acquisition/Raw"), "neither voltage"),
    nwb("NWB without a session", lambda f: f.__delitem__("session_start_time"), "cannot be read"),
    nwb("NWB without samples", lambda f: f.__delitem__("acquisition/Raw/data"), "a.nwb"),
    nwb("NWB of samples that are NaN", _nan_series, "no voltage"),
    nwb("NWB bomb in the samples", _bomb, "inflates to more than"),
    nwb("NWB of no step", _number("acquisition/Raw/data", "conversion", 0.0), "gives no voltage"),
    nwb("NWB of an endless step", _number("acquisition/Raw/data", "conversion", np.inf),
        "gives no voltage"),
    nwb("NWB at 0 Hz", _number("acquisition/Raw/starting_time", "rate", 0.0), "0 Hz"),
    nwb("NWB at NaN Hz", _number("acquisition/Raw/starting_time", "rate", np.nan), "nan Hz"),
    nwb("NWB with a link to a file",
        lambda f: f.__setitem__("acquisition/x", h5py.ExternalLink("b.h5", "/")),
        "links are not followed"),
    nwb("NWB with times that do not rise", lambda _: None, "do not rise",
        timestamps=np.zeros(300)),
    nwb("NWB units of damaged index",
        lambda f: f["units/spike_times_index"].__setitem__(0, 200), "index of its spike times",
        units=True),
    nwb("NWB units at times of NaN", lambda f: f["units/spike_times"].__setitem__(0, np.nan),
        "not finite", units=True),
    nwb("NWB units before the start", lambda f: f["units/spike_times"].__setitem__(0, -3.0),
        "before the start", units=True),
    nwb("NWB units after a thousand years",
        lambda f: f["units/spike_times"].__setitem__(0, 3e10), "more than 7 days", units=True),
)  # fmt: skip

CASES = (*NEO, *HDF5, *NWB)

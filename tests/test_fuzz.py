"""Readers on files that were mutated: no crash, no hang, little memory, no errors but ours.

Each input is read by a child process (`fuzz_child`), which may be killed for it.
``TOPTUNE_FUZZ=20000 pytest tests/test_fuzz.py`` tries that many of each kind, and
``TOPTUNE_FUZZ_SEED=1`` others. What was found and mended is in the catalogue of bad input.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from bad_recordings import mat73, sparse73
from foreign_files import (
    counts,
    write_brw3,
    write_brw4,
    write_bxr,
    write_bxr2,
    write_intan,
    write_maxwell,
    write_nev,
    write_nex,
    write_nsx,
    write_nsx_ptp,
    write_nwb,
    write_openephys,
    write_plx,
)
from fuzzing import SLACK_KIB, Reader, Reply, mutated, mutated_json
from needs import package
from safetensors.torch import save_file

from toptune.recordings.mcs_writer import McsChannel, McsStream, McsWriter
from toptune.recordings.spike_csv import read_spike_csv
from toptune.recordings.spike_npz import write_npz

SHARED = Path(__file__).parents[2] / "shared" / "data"
HERE = Path(__file__).parent
N_INPUTS = int(os.environ.get("TOPTUNE_FUZZ", "60"))
SEED = int(os.environ.get("TOPTUNE_FUZZ_SEED", "0"))

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux: limits and peaks of memory are its own"
)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as made:
        yield made


# --- files to begin with


def mcs_seeds(folder: Path) -> list[bytes]:
    counts = np.random.default_rng(0).integers(-1000, 1000, (3, 500)).astype(np.int32)
    channels = tuple(McsChannel(label=f"E{k}", channel_id=k) for k in range(3))
    with McsWriter(folder / "a.h5") as writer:
        for gap in (False, True):
            stream = writer.add_recording().add_stream(McsStream(label="Raw", channels=channels))
            stream.write(counts[:, :200])
            if gap:
                stream.gap(5000)
            stream.write(counts[:, 200:])
    shutil.copy(folder / "a.h5", folder / "b.h5")
    with h5py.File(folder / "b.h5", "r+") as file:  # what goes through the library
        group = file["Data/Recording_0/AnalogStream/Stream_0"]
        del group["ChannelData"]
        how = {"chunks": (3, 64), "compression": "gzip", "fletcher32": True}
        group.create_dataset("ChannelData", data=counts, **how)
    # Small files twice: they are mostly structure.
    written = [(folder / name).read_bytes() for name in ("a.h5", "b.h5", "a.h5", "b.h5")]
    return written + [path.read_bytes() for path in sorted((SHARED / "mcs").glob("*.h5"))]


def peak_text_seeds(_: Path) -> list[bytes]:
    plain = "2000 0\n" + "".join(f"{10 * k + 1} {20 + k / 7:.4f}\n" for k in range(100))
    seeds = [b"2000 0\n", plain.encode(), b" 2.0e+03 0\r\n 1.5e+02  4.2e+01\r\n"]
    seeds += [
        plain.replace(" ", ",").encode(),
        "\n".join(plain.replace(" ", ";").splitlines()[:20]).encode("utf-16"),
    ]
    archive = SHARED / "cxhp3d" / "CxHp3D.tar.gz"
    if archive.exists():
        with tarfile.open(archive) as tar:
            for member in tar:
                data = tar.extractfile(member) if member.isfile() else None
                if data is not None and member.name.endswith(".txt") and member.size < 50_000:
                    return [*seeds, data.read()]
    return seeds


def mat_seeds(folder: Path) -> list[bytes]:
    column = scipy.sparse.csc_matrix(([5.5, 7.0, 8.0], ([2, 9, 900], [0, 0, 0])), (1000, 1))
    other = np.arange(50.0)
    for number, (matrix, squeeze) in enumerate(
        [(column, False), (column, True), (column.T.tocsc(), False), (column.toarray(), False)]
    ):
        variables = {"artifact": other, "peak_train": matrix}
        scipy.io.savemat(folder / f"{number}.mat", variables, do_compression=squeeze)
    sparse73([0, 3], [2, 9, 900])(folder / "8.mat")
    mat73(lambda file: file.create_dataset("peak_train", data=column.toarray().T))(folder / "9.mat")
    return [path.read_bytes() for path in sorted(folder.glob("*.mat"))]


def csv_seeds(_: Path) -> list[bytes]:
    rows = "".join(f"{k / 40:.4f},E{k % 7},{30 + k}\n" for k in range(200))
    return [
        b"time_s,channel,peak_to_peak_uv\n" + rows.encode(),
        b"\xef\xbb\xbftime_s;channel\r\n0.5;A1\r\n1.25;A2\r\n",
        b'time_s,channel\n0.1,"A,1"\n0.2,"B 2"\n',
        "sep=\t\n# duration_s=9\nTime_ms\tChannel\tWell\n5,5\t1\tA1\n6,25\t2\tA1\n".encode(
            "utf-16"
        ),
        b"Investigator,,Time (s),Electrode,Amplitude(mV)\nx,,0.5,A1_11,-0.05\n,,1.5,A1_12,0.02\n",
    ]


def npz_seeds(folder: Path) -> list[bytes]:
    (folder / "c.csv").write_bytes(csv_seeds(folder)[0])
    write_npz(read_spike_csv(folder / "c.csv"), folder / "n.npz")
    with np.load(folder / "n.npz") as arrays:
        np.savez_compressed(folder / "m.npz", **arrays)
    return [(folder / name).read_bytes() for name in ("n.npz", "m.npz")]


def devices_seeds(folder: Path) -> list[bytes]:
    for k in range(8):  # beside the devices file
        (folder.parent / f"r{k}.h5").touch()
        (folder.parent / f"a {k}.h5").touch()
    rows = "".join(f"r{k}.h5,D{k},{'AB'[k % 2]},b{k % 3}\n" for k in range(8))
    return [
        b"recording,device,label,batch\n" + rows.encode(),
        "\ufeffrecording;device;label\r\n".encode()
        + "".join(f'"a {k}.h5";D{k};{"xy"[k % 2]}\r\n' for k in range(4)).encode(),
    ]


def weights_seeds(folder: Path) -> list[bytes]:
    state = {"conv.weight": torch.arange(24.0).view(2, 3, 4), "n": torch.tensor(3)}
    save_file(state, folder / "w.safetensors", {"backbone": "x", "mean": "[0.5, 0.5, 0.5]"})
    half = {"a": torch.ones(3, dtype=torch.float16), "b": torch.zeros(0)}
    save_file(half, folder / "v.safetensors")
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def pth_seeds(folder: Path) -> list[bytes]:
    state = {"conv.weight": torch.arange(24.0).view(2, 3, 4), "n": torch.tensor(3)}
    torch.save(state, folder / "w.pth")
    torch.save({"state_dict": state}, folder / "v.pth", _use_new_zipfile_serialization=False)
    return [(folder / name).read_bytes() for name in ("w.pth", "v.pth")]


def foreign_seeds(*names: str) -> Callable[[Path], list[bytes]]:
    """Write files of other programs."""

    def write(folder: Path) -> list[bytes]:
        package("neo")
        package("pynwb")
        warnings.simplefilter("ignore")  # what pynwb warns of while it writes
        return [FOREIGN[name](folder / name).read_bytes() for name in names]

    return write


FOREIGN: dict[str, Callable[[Path], Path]] = {
    "a.rhd": lambda path: write_intan(path, counts(512, 3), gap_after=256),
    "a.rhs": lambda path: write_intan(path, counts(512, 2)),
    "a.ns5": lambda path: write_nsx(path, [(0, counts(200, 3)), (60_000, counts(90, 3))]),
    "b.ns5": lambda path: write_nsx_ptp(path, counts(200, 2), 10**18 + np.arange(200) * 33_333),
    "a.nev": lambda path: write_nev(path, [(30 * k, 1 + k % 3, k % 2) for k in range(60)]),
    "a.plx": lambda path: write_plx(path, {"WB": counts(330, 2)}, gap_after=150),
    "b.plx": lambda path: write_plx(path, {}, spikes=[(40 * k, 1 + k % 2, 0) for k in range(60)]),
    "a.nex": lambda path: write_nex(path, neurons={"a": [400, 800], "b": [4000]}, waveforms=True),
    "b.nex": lambda path: write_nex(path, neurons={}, continuous={"AD1": counts(99, 1)[:, 0]}),
    "a.raw.h5": lambda path: write_maxwell(path, {"well000": counts(900, 3)}, gap_after=500),
    "b.raw.h5": lambda path: write_maxwell(path, {"w": counts(9, 2)}, raw=False, spikes=[(7, 3)]),
    "a.brw": lambda path: write_brw3(path, counts(200, 4)),
    "b.brw": lambda path: write_brw4(path, {"A1": counts(200, 4)}),
    "a.bxr": lambda path: write_bxr(path, {"A1": [(5, 0), (9, 2)]}),
    "b.bxr": lambda path: write_bxr2(path, [(5, 0), (9, 2)]),
    "a.nwb": lambda path: write_nwb(path, {"Raw": counts(300, 2)}),
    "b.nwb": lambda path: write_nwb(path, units={"u": [0.1, 0.2], "v": [0.3]}),
}


def oebin_seeds(folder: Path) -> list[bytes]:
    package("neo")
    write_openephys(folder / "o", {"R": counts(300, 3)}, names=["CH1", "CH2", "ADC1"])
    return [path.read_bytes() for path in (folder / "o").rglob("structure.oebin")]


def write_oebin(folder: Path, data: bytes) -> Path:
    """Put a description into a folder of Open Ephys."""
    if not (folder / "o").exists():
        write_openephys(folder / "o", {"R": counts(300, 3)}, names=["CH1", "CH2", "ADC1"])
    (place,) = (folder / "o").rglob("structure.oebin")
    place.write_bytes(data)
    return folder / "o"


# --- inputs made of them


def whole(name: str) -> Callable[[Path, bytes], Path]:
    """Write one file."""

    def write(folder: Path, data: bytes) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path.parent if path.parent != folder else path

    return write


KINDS: dict[str, tuple[str, Callable[[Path], list[bytes]], Callable[[Path, bytes], Path]]] = {
    "mcs": ("recording", mcs_seeds, whole("a.h5")),
    "peak text": ("recording", peak_text_seeds, whole("p/p_1.txt")),
    "mat": ("recording", mat_seeds, whole("p/p_1.mat")),
    "csv": ("recording", csv_seeds, whole("c.csv")),
    "npz": ("recording", npz_seeds, whole("n.npz")),
    "Intan": ("recording", foreign_seeds("a.rhd"), whole("a.rhd")),
    "Intan with stimuli": ("recording", foreign_seeds("a.rhs"), whole("a.rhs")),
    "Blackrock": ("recording", foreign_seeds("a.ns5", "b.ns5"), whole("a.ns5")),
    "Blackrock spikes": ("recording", foreign_seeds("a.nev"), whole("a.nev")),
    "Plexon": ("recording", foreign_seeds("a.plx", "b.plx"), whole("a.plx")),
    "NeuroExplorer": ("recording", foreign_seeds("a.nex", "b.nex"), whole("a.nex")),
    "Open Ephys": ("recording", oebin_seeds, write_oebin),
    "MaxWell": ("recording", foreign_seeds("a.raw.h5", "b.raw.h5"), whole("a.raw.h5")),
    "3Brain": ("recording", foreign_seeds("a.brw", "b.brw", "a.bxr", "b.bxr"), whole("a.brw")),
    "NWB": ("recording", foreign_seeds("a.nwb", "b.nwb"), whole("a.nwb")),
    "devices": ("devices", devices_seeds, whole("devices.csv")),
    "safetensors": ("weights", weights_seeds, whole("w.safetensors")),
    "pth": ("weights", pth_seeds, whole("w.pth")),
}


def rule_broken(reply: Reply, n_bytes: int) -> str:
    """Say what is wrong with a reply; empty where nothing is."""
    if reply.outcome not in ("read", "refused"):
        return f"{reply.outcome}: {reply.detail}"
    if reply.grown_kib > SLACK_KIB + 4 * n_bytes // 1024:
        return f"{reply.grown_kib} KiB of memory for {n_bytes} bytes: {reply.detail}"
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(kind: str, tmp_path: Path, reader: Reader) -> None:
    target, make_seeds, write = KINDS[kind]
    (tmp_path / "seeds").mkdir()
    (tmp_path / "p").mkdir()
    seeds = make_seeds(tmp_path / "seeds")
    for data in seeds:  # also loads what is loaded at the first use
        reply = reader.read(target, write(tmp_path, data))
        assert reply.outcome == "read", reply
    found = []
    outcomes = set()
    for number in range(N_INPUTS):
        data = mutated(seeds, random.Random(f"{kind} {SEED} {number}"))
        reply = reader.read(target, write(tmp_path, data))
        outcomes.add(reply.outcome)
        broken = rule_broken(reply, len(data))
        if broken:
            found.append(f"{kind}, seed {SEED}, input {number}: {broken}")
            reader.read(target, write(tmp_path, seeds[0]))
    assert not found, "\n".join(found)
    assert "refused" in outcomes


# --- stores and models: folders, whose JSON is mutated as JSON


def golden_store() -> Path:
    return HERE.parent / "store" / "golden.zarr"


def golden_model() -> Path:
    return HERE / "golden_models" / "falkon"


@pytest.mark.parametrize(("target", "golden"), [("store", golden_store), ("model", golden_model)])
def test_mutated_folders_are_read_or_refused(
    target: str, golden: Callable[[], Path], tmp_path: Path, reader: Reader
) -> None:
    work = shutil.copytree(golden(), tmp_path / "work")
    files = sorted(path for path in work.rglob("*") if path.is_file())
    assert reader.read(target, work).outcome == "read"
    found = []
    for number in range(N_INPUTS):
        rng = random.Random(f"{target} {SEED} {number}")
        path = rng.choice(files)
        before = path.read_bytes()
        path.write_bytes(_changed(path, before, rng))
        broken = rule_broken(reader.read(target, work), sum(f.stat().st_size for f in files))
        if broken:
            found.append(f"{target}, seed {SEED}, input {number} ({path.name}): {broken}")
        path.write_bytes(before)
    assert not found, "\n".join(found)


def _changed(path: Path, before: bytes, rng: random.Random) -> bytes:
    if path.suffix == ".json" and rng.random() < 0.7:
        return json.dumps(mutated_json(json.loads(before), rng)).encode()
    return mutated([before], rng)


# --- the harness itself


def test_the_harness_sees_crashes_hangs_errors_and_memory(tmp_path: Path) -> None:
    def of(code: str, limit_s: float = 60.0) -> Reply:
        with Reader(time_limit_s=limit_s) as reader:
            path = tmp_path / "code.py"
            path.write_text(code)
            return reader.read("code", path)

    assert of("").outcome == "read"
    assert of("import os; os.abort()").outcome == "died"
    assert of("while True: pass", 3.0).outcome == "hung"
    assert of("{}['x']").outcome == "escaped"
    assert of("from toptune.errors import InputError; raise InputError('x')").outcome == "refused"
    grown = of("x = b'x' * 200_000_000; del x")
    assert rule_broken(grown, 1000).endswith("KiB of memory for 1000 bytes: ")


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_change_nearly_every_input(kind: str, tmp_path: Path) -> None:
    seeds = KINDS[kind][1](tmp_path)
    made: list[Any] = [mutated(seeds, random.Random(number)) for number in range(50)]
    assert sum(data not in seeds for data in made) >= 45
    assert len(set(made)) >= 40

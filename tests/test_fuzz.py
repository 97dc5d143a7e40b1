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
from fuzzing import SLACK_KIB, Reader, Reply, mutated, mutated_json
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

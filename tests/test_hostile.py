"""What files from strangers must not get: code run, other files read, memory without end."""

from __future__ import annotations

import ast
import importlib.util
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bad_case import Case
from bad_foreign import CASES as FOREIGN
from bad_models import CASES as MODELS
from bad_recordings import CASES as RECORDINGS
from bad_recordings import Harmful
from fuzzing import SLACK_KIB, Reader

from toptune.backbones.weights import read_weights
from toptune.errors import InputError
from toptune.recordings.opening import SpikeRecording, open_recording

PACKAGE = Path(__file__).parents[1] / "toptune"

# Names that run what a file holds, or what a text says.
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


# Arguments of tasks, which come over Dask's connection: who may send on it may run any program
# there (docs/cluster.md), and Dask itself reads what comes as pickles. No file is read so.
FROM_DASK = {"client.py": "pickle.dumps", "worker.py": "pickle.loads"}


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Say of each unsafe call or import what and where it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
            found = [f"imports {n}" for n in names if n.split(".")[0] in PICKLES]
        elif isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            found = list(unsafe_call(ast.unparse(node.func), given))
        else:
            continue
        yield from (f"line {node.lineno}: {what}" for what in found)


def unsafe_call(called: str, given: dict[str | None, str]) -> Iterator[str]:
    if called in RUNS_CODE or called.split(".")[0] in PICKLES:
        yield called
    if called == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    reads_arrays = called.startswith("np.") and called.endswith((".load", ".read_array"))
    if reads_arrays and given.get("allow_pickle") != "False":
        yield f"{called} without allow_pickle=False"
    if "True" in (given.get("allow_pickle"), given.get("shell")):
        yield f"{called} with {given}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_in_the_package_unpickles_or_runs_text(path: Path) -> None:
    found = list(unsafe(ast.parse(path.read_text("utf-8"))))
    if path.parent.name == "cluster" and path.name in FROM_DASK:
        allowed = ("imports pickle", FROM_DASK[path.name])
        found = [what for what in found if what.partition(": ")[2] not in allowed]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "eval('1')", "import torch; torch.load('x')",
        "torch.load('x', weights_only=False)", "np.load('x')", "np.load('x', allow_pickle=True)",
        "f(shell=True)", "pickle.loads(b'')", "np.lib.format.read_array(f)",
    ],
)  # fmt: skip
def test_the_check_sees_what_is_unsafe(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


def test_code_in_files_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = 0
    for case in (*RECORDINGS, *MODELS):
        if "pickled" not in case.name and "code" not in case.name:
            continue
        case.make(tmp_path)
        files = [p for p in tmp_path.iterdir() if p.suffix in (".npz", ".pth")]
        for path in files:
            with pytest.raises(InputError):
                read_weights(path) if path.suffix == ".pth" else _read(path)
            path.unlink()
        seen += len(files)
    assert seen >= 4
    assert not (tmp_path / "harmed").exists()
    # The very object does harm where a careless reader meets it.
    np.save(tmp_path / "x.npy", np.array([Harmful()], object), allow_pickle=True)
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert (tmp_path / "harmed").exists()


def _read(path: Path) -> None:
    recording = open_recording(path)
    assert isinstance(recording, SpikeRecording)
    recording.trains()


def _recordings() -> list[Case]:
    """List the malformed recordings; those of other programs where their libraries are there."""
    libraries = all(importlib.util.find_spec(name) for name in ("neo", "pynwb"))
    return [*RECORDINGS, *(FOREIGN if libraries else ())]


def _hungry() -> list[Case]:
    words = ("bomb", "absurd", "million million", "gigabyte", "GB", "inflates", "endless", "device")
    return [c for c in _recordings() if any(word in c.name for word in words)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux: peaks of memory are its")
def test_what_claims_much_memory_is_refused_without_taking_it(tmp_path: Path) -> None:
    cases = _hungry()
    assert len(cases) >= 14
    with Reader() as reader:
        for path in _good_files(tmp_path):  # loads what is loaded at the first use
            assert reader.read("recording", path).outcome in ("read", "refused")
        for number, case in enumerate(cases):
            folder = tmp_path / str(number)
            folder.mkdir()
            case.make(folder)
            path = folder / case.command[1]
            reply = reader.read("recording", path)
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            assert reply.outcome == "refused", (case.name, reply)
            assert reply.grown_kib <= SLACK_KIB + 4 * size // 1024, (case.name, reply)


def _good_files(folder: Path) -> list[Path]:
    made, cases = [], _recordings()
    libraries = [
        c.name for c in FOREIGN if c in cases and c.name.endswith(("of no step", "cut off"))
    ]
    for name in (*libraries, "MCS without samples", "mat with NaN", "mat 7.3 without peak_train",
                 "NPZ without labels", "CSV without spikes", "peak train unsorted"):  # fmt: skip
        (case,) = [c for c in cases if c.name == name]
        (folder / name).mkdir()
        case.make(folder / name)
        made.append(folder / name / case.command[1])
    return made


def test_an_archive_is_never_unpacked_to_disk(tmp_path: Path) -> None:
    (case,) = [c for c in RECORDINGS if "leaves the archive" in c.name]
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    case.make(inner)
    with zipfile.ZipFile(inner / "n.npz") as archive:
        assert "../../harmed.npy" in archive.namelist()
    with pytest.raises(InputError, match="unknown array"):
        _read(inner / "n.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in inner.iterdir()] == ["n.npz"]

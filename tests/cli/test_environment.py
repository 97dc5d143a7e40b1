"""Every command does its work on a machine that offers nothing: no home, no rights, no Unicode."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import every_command
import pytest
from needs import missing

import toptune
from toptune.cli.app import app

ROOT = Path(toptune.__file__).parents[1]
TESTS = Path(every_command.__file__).parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows: it has no such rights")

# Give up what root may do beyond the bits of files and folders (prctl, PR_CAPBSET_DROP).
WITHOUT_RIGHTS = """
import ctypes, os, sys
if os.geteuid() == 0:
    for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, right, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
# Said by commands of how long they took, or of the machine.
TIMES = re.compile(r"\b\d[\d.,e+-]* ?(m?s|min|GiB free)\b")


class Ran(NamedTuple):
    """What became of all commands in one environment."""

    codes: dict[str, int]
    out: dict[str, str]
    err: dict[str, str]
    files: list[str]  # written, beside what was there


def start(program: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start Python without rights and without what this environment says."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_RIGHTS, *program],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run_all(folder: Path, package: Path, **environment: str) -> Ran:
    """Run all commands in a folder of inputs."""
    folder.mkdir(parents=True)
    every_command.write_inputs(folder)
    before = set(folder.rglob("*"))
    printed = folder.parent / f"{folder.name}-printed"
    printed.mkdir()
    path = os.pathsep.join(map(str, (package, TESTS)))
    program = [str(TESTS / "every_command.py"), str(printed)]
    done = start(program, folder, PYTHONPATH=path, **environment)
    said = {p.name: p.read_text("utf-8") for p in sorted(printed.iterdir())}
    assert done.returncode == 0, (done.stderr, said)
    out, err = (
        {name: said[f"{name}.{stream}"] for name in every_command.COMMANDS}
        for stream in ("out", "err")
    )
    written = {*folder.rglob("*")} - before
    files = sorted(str(path.relative_to(folder)) for path in written if path.is_file())
    return Ran(json.loads(said["codes.json"]), out, err, files)


def read_only_copy(folder: Path) -> Path:
    """Copy the package, as another user could have installed it."""
    for name in ("toptune", "kernels", "store"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with a folder for temporary files, and nothing else of any use."""
    folder = tmp_path_factory.mktemp("hostile")
    home, temporary = folder / "home", folder / "tmp"
    temporary.mkdir()
    home.mkdir(mode=0o555)
    return {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "MPLBACKEND": "module://no_such_notebook.backend_inline",
        "NUMBA_CACHE_DIR": str(home / "numba"),
        "package": str(read_only_copy(folder / "package")),
    }


def plain(text: str, folder: Path) -> str:
    """Leave out times, the folder, and how wide a table with longer or shorter times is."""
    timeless = TIMES.sub("T", text.replace(str(folder), "FOLDER"))
    narrow = re.sub(r"-+", "-", re.sub(r" *(\||\n|$) *", r"\1", timeless)).lstrip()
    return re.sub(r"\|\d+\|$", "|T|", narrow, flags=re.MULTILINE)  # the column of seconds


def test_every_command_is_run() -> None:
    commands = {c.callback.__name__ for c in app.registered_commands if c.callback}
    assert set(every_command.COMMANDS) == commands


@pytest.mark.thorough
def test_every_command_does_the_same_in_a_hostile_environment(
    hostile: dict[str, str], tmp_path: Path
) -> None:
    try_it = "import pathlib, sys; pathlib.Path(sys.argv[1], 'x').touch()"
    if start(["-c", try_it, hostile["HOME"]], tmp_path).returncode == 0:
        missing("root", "its rights cannot be given up here")
    friendly = {"HOME": str(tmp_path / "home"), "PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}
    (tmp_path / "home").mkdir()
    expected = run_all(tmp_path / "a" / "work", ROOT, **friendly)
    package = Path(hostile["package"])
    environment = {name: text for name, text in hostile.items() if name != "package"}
    found = run_all(tmp_path / "b" / "work", package, **environment)

    assert expected.codes == dict.fromkeys(every_command.COMMANDS, 0), expected.err
    assert found.codes == expected.codes, found.err
    assert found.files == expected.files
    for name in set(every_command.COMMANDS) - {"doctor", "bench", "demo"}:
        for stream in ("out", "err"):
            a, b = getattr(expected, stream)[name], getattr(found, stream)[name]
            assert plain(b, tmp_path / "b") == plain(a, tmp_path / "a"), (name, stream)
    for name in ("doctor", "bench", "demo"):
        told, wanted = json.loads(found.out[name]), json.loads(expected.out[name])
        assert set(told) == set(wanted)
    # The same packages are there, and nothing was written where it should not have been.
    states = [
        {c["name"]: c["state"] for c in json.loads(ran.out["doctor"])["checks"]}
        for ran in (expected, found)
    ]
    assert states[0] == states[1]
    assert list(Path(hostile["HOME"]).iterdir()) == []
    assert not any(path.name == "__pycache__" for path in package.rglob("*"))


def test_the_machine_code_is_kept_for_the_next_command(
    hostile: dict[str, str], tmp_path: Path
) -> None:
    program = (
        "from toptune.machine.caches import private_folder\n"
        "from toptune.features import bursts\n"
        "print(bursts._max_interval._cache.cache_path)\n"
    )
    environment = {name: text for name, text in hostile.items() if name != "package"}
    done = start(["-c", program], tmp_path, PYTHONPATH=hostile["package"], **environment)
    assert done.returncode == 0, done.stderr
    if os.access(hostile["HOME"], os.W_OK) and os.geteuid() != 0:
        missing("root", "the folder can be written")
    assert done.stdout.startswith(hostile["TMPDIR"])

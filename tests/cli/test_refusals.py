"""What is refused at once: paths, existing results and options, before anything heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from toptune.backbones.weights import read_weights
from toptune.cli import options
from toptune.cli.app import app
from toptune.errors import InputError, InputErrors
from toptune.runs.model import read_model
from toptune.runs.reading import read_run
from toptune.store.feature_store import FeatureStore

# CuPy is not among them: Zarr loads it where it is installed.
HEAVY = ("torch", "torchvision", "timm", "sklearn", "openvino", "matplotlib", "numba")
FIT = ("fit", "there", "--head", "falkon", "-o")
EXTRACT = ("extract", "devices.csv", "--store", "new.zarr")

REFUSED = (
    ("demo", "--out", "there"),
    ("demo", "--weights", "no.pth"),
    ("simulate", "file.csv"),
    ("simulate", "."),
    ("inspect", "no.h5"),
    ("inspect", "file.csv", "--png", "file.csv"),
    ("inspect", "file.csv", "--png", "no/new.png"),
    ("inspect", "file.csv", "--png", "there"),
    ("inspect", "file.csv", "--threshold-sd", "0"),
    ("plate", "no.h5"),
    ("plate", "file.csv", "-o", "there"),
    ("detect", "no.h5", "-o", "new.npz"),
    ("detect", "file.csv", "-o", "file.csv"),
    ("detect", "file.csv", "-o", "there"),
    ("detect", "file.csv", "-o", "new.npz", "--noise", "fixed"),
    ("extract", "no.csv", "--store", "new.zarr"),
    ("extract", "file.csv", "--store", "new.zarr"),
    (*EXTRACT, "--weights", "no.pth"),
    (*EXTRACT, "--backbone", "efficientnet_b00"),
    (*EXTRACT, "--backbone", "timm:resnet1"),
    (*EXTRACT, "--weights", "file.csv"),
    (*EXTRACT, "--window-s", "0"),
    (*EXTRACT, "--batch-size", "0"),
    ("extract", "devices.csv", "--store", "there"),
    ("extract", "devices.csv", "--store", "file.csv"),
    (*FIT, "there"),
    (*FIT, "there", "--overwrite"),
    (*FIT, "new"),
    ("fit", "no.zarr", "--head", "falkon", "-o", "new"),
    ("fit", "no.zarr", "--head", "svm", "-o", "new"),
    ("fit", "no.zarr", "--head", "mlp", "-o", "new", "--width", "1"),
    ("fit", "no.zarr", "--head", "mlp", "-o", "new", "--learning-rate", "0"),
    ("fit", "no.zarr", "--head", "mlp", "-o", "new", "--set", "hidden=3"),
    ("predict", "there", "file.csv"),
    ("predict", "model", "no.csv"),
    ("predict", "model", "file.csv", "-o", "there"),
    ("stream", "there", "file.csv"),
    ("stream", "model", "no.h5"),
    ("stream", "model", "file.csv", "-o", "there"),
    ("stream", "model", "file.csv", "--serve", "0.0.0.0:8000"),
    ("stream", "model", "file.csv", "--speed", "fast"),
    ("stream", "model", "file.csv", "--thresholds", "no.json"),
    ("sweep", "devices.csv", "no-grid", "-o", "new"),
    ("sweep", "devices.csv", "table1", "-o", "new", "--set", "window_s=0"),
    ("sweep", "devices.csv", "table1", "-o", "new", "--set", "backbone=resnet0"),
    ("sweep", "no.csv", "table1", "-o", "new"),
    ("bench", "--backbone", "resnet0"),
    ("sweep", "devices.csv", "table1", "-o", "there"),
    ("report", "no"),
    ("report", "there"),
    ("report", "there", "-o", "no/new.html"),
    ("why", "there", "file.csv", "-o", "new"),
    ("why", "model", "no.csv", "-o", "new"),
    ("why", "model", "file.csv", "-o", "there"),
    ("doctor", "no.zarr"),
    ("doctor", "--remove-damaged"),
    ("detect",),
    ("nonsense",),
)

PROGRAM = """
import json, sys
from toptune.cli.app import main
loaded = {}
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["toptune", *arguments]
    try:
        main()
    except SystemExit as stop:
        heavy = [name for name in json.loads(HEAVY) if name in sys.modules]
        loaded[" ".join(arguments)] = [stop.code, heavy]
print(json.dumps(loaded))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, a folder that is nothing of toptune's, and what looks like a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    (tmp_path / "file.csv").write_text("time_s,channel\n0.5,E1\n")
    (tmp_path / "devices.csv").write_text("recording,device,label\nfile.csv,d1,A\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    return tmp_path


def test_refusals_load_nothing_heavy_and_leave_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    program = f"HEAVY = {json.dumps(HEAVY)!r}{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(REFUSED)],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = json.loads(done.stdout)
    assert len(loaded) == len(REFUSED)
    assert {command: found for command, found in loaded.items() if found != [2, []]} == {}
    assert sorted(folder.rglob("*")) == before


def test_every_command_is_among_the_refusals() -> None:
    commands = {c.callback.__name__ for c in app.registered_commands if c.callback}
    assert {arguments[0] for arguments in REFUSED} >= commands


@pytest.mark.parametrize(
    ("light", "whole"),
    [
        (lambda: options.require_store(Path("no.zarr")), lambda: FeatureStore("no.zarr")),
        (lambda: options.require_model(Path("there")), lambda: read_model("there")),
        (lambda: options.require_run(Path("no")), lambda: read_run("no")),
        (lambda: options.require_run(Path("there")), lambda: read_run("there")),
        (lambda: options.require_weights("no.pth"), lambda: read_weights("no.pth")),
        (lambda: options.require_weights("file.csv"), lambda: read_weights("file.csv")),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_refused_at_once_reads_as_what_the_library_says(
    light: Callable[[], object], whole: Callable[[], object]
) -> None:
    with pytest.raises(InputError) as at_once:
        light()
    with pytest.raises(InputError) as later:
        whole()
    assert str(at_once.value) == str(later.value)


@pytest.mark.usefixtures("folder")
def test_recordings_that_are_not_there_are_all_named() -> None:
    with pytest.raises(InputErrors, match=r"(?s)no\.h5: no such file or folder.*neither\.h5"):
        options.require_recordings([Path("no.h5"), Path("file.csv"), Path("neither.h5")])

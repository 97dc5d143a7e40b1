"""The catalogue of bad input: each gives one line that names the culprit, exit code 2, and nothing.

Every entry runs through the real command line in a folder with a good data set, in which it spoils
or adds one thing. Afterwards the folder is as it was.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import bad_foreign
import bad_models
import bad_parameters
import bad_recordings
import bad_stores
import bad_tables
import pytest
from bad_case import EXTRACT, FIT, Case
from small_data import install_tiny_backbones

from toptune.cli.app import main

CASES = (
    *bad_recordings.CASES,
    *bad_foreign.CASES,
    *bad_tables.CASES,
    *bad_stores.CASES,
    *bad_models.CASES,
    *bad_parameters.CASES,
)

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    # Warnings are for the terminal; here they would take the place of the error.
    pytest.mark.filterwarnings("default"),
]


def write_data_set(folder: Path) -> None:
    """Six devices of two classes, three seconds of spikes each."""
    rows = ["recording,device,label,batch"]
    for k in range(6):
        spikes = "".join(f"{0.01 * j:.2f},E{j % (2 + k % 2)}\n" for j in range(1, 290, 1 + k % 2))
        (folder / f"r{k}.csv").write_text(f"time_s,channel\n{spikes}2.99,E9\n")
        rows.append(f"r{k}.csv,dev{k},{'AB'[k % 2]},b{k % 3}")
    (folder / "devices.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, its store ``s.zarr`` and a ``run`` with a model; look, do not touch."""
    folder = tmp_path_factory.mktemp("good")
    write_data_set(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_tiny_backbones(monkeypatch)
        monkeypatch.chdir(folder)
        for command in (EXTRACT, FIT):
            renamed = {"n.zarr": "s.zarr", "new-run": "run"}
            arguments = ["toptune", *(renamed.get(part, part) for part in command)]
            monkeypatch.setattr("sys.argv", arguments)
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code
    return folder


def copy_for(case: Case, good: Path, folder: Path) -> Path:
    """Copy what a case can meet: stores are many files."""
    wanted = {"fit": {"s.zarr"}, "predict": {"run"}}.get(case.command[0], set())
    left_out = {"s.zarr", "run"} - wanted - set(case.command)
    return shutil.copytree(good, folder, ignore=lambda *_: left_out)


def snapshot(folder: Path) -> dict[str, tuple[int, ...] | str]:
    """All that lies in a folder; what is written again has another time."""
    found: dict[str, tuple[int, ...] | str] = {}
    for place in sorted(folder.rglob("*")):
        name = place.relative_to(folder).as_posix()
        if place.is_symlink():
            found[name] = f"link to {place.readlink()}"
        elif place.is_dir():
            found[name] = "folder"
        else:
            status = place.stat()
            found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_bad_input_is_one_line_and_leaves_nothing(
    case: Case,
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = copy_for(case, good, tmp_path / "work")
    monkeypatch.chdir(folder)
    install_tiny_backbones(monkeypatch)
    # What else weights might fit is looked for among 25 networks, all built for it.
    monkeypatch.setattr("toptune.backbones.loading.WELL_KNOWN", ("mobilenet_v2", "resnet18"))
    case.make(folder)
    before = snapshot(folder)
    monkeypatch.setattr("sys.argv", ["toptune", *case.command])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    told = [line for line in err.splitlines() if not line.startswith("WARNING")]
    assert stop.value.code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert len(told) == 1, err
    for part in case.says:
        assert part in told[0]
    assert len(told[0]) < 700
    assert snapshot(folder) == before


def test_the_catalogue_is_long_and_every_entry_has_its_name() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 400


@pytest.mark.parametrize("name", ["r0.csv", "devices.csv"])
def test_a_file_that_may_not_be_read_is_named(
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root: may read every file, whatever its permissions")
    folder = shutil.copytree(good, tmp_path / "work")
    monkeypatch.chdir(folder)
    install_tiny_backbones(monkeypatch)
    (folder / name).chmod(0)
    monkeypatch.setattr("sys.argv", ["toptune", *EXTRACT])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert name in capfd.readouterr().err

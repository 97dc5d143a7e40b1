"""Recordings of other programs are recognised by content, and libraries are not needed for that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from foreign_files import (
    counts,
    write_brw3,
    write_bxr,
    write_maxwell,
    write_openephys,
)
from small_data import write_mcs

from toptune.errors import InputError
from toptune.recordings.foreign import recognition
from toptune.recordings.foreign.recognition import file_kind, folder_kind
from toptune.recordings.opening import open_recording, recognise


def magic(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data + bytes(100))


def nwb(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["nwb_version"] = "2.7.0"


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("intan", magic(b"\x02\x27\x91\xc6")),
        ("intan", magic(b"\xac\x27\x91\xd6")),
        ("blackrock", magic(b"NEURALCD")),
        ("blackrock_events", magic(b"BREVENTS")),
        ("plexon", magic(b"PLEX")),
        ("neuroexplorer", magic(b"NEX1")),
        ("nwb", nwb),
        ("maxwell", lambda path: write_maxwell(path, {"well000": counts(50, 2)})),
        ("biocam", lambda path: write_brw3(path, counts(50, 2))),
        ("biocam", lambda path: write_bxr(path, {"A1": []})),
        (None, lambda path: write_mcs(path, seed=0, seconds=0.1)),
        (None, magic(b"\x89HDF\r\n\x1a\n")),
        (None, magic(b"something")),
    ],
)
def test_files_are_recognised_by_content(
    tmp_path: Path, kind: str | None, write: Callable[[Path], Any]
) -> None:
    write(tmp_path / "a.bin")
    assert file_kind(tmp_path / "a.bin") == kind


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("intan", "info.rhs"),
        ("openephys", "Record Node 101/experiment1/recording1/structure.oebin"),
        ("openephys_continuous", "100_CH1.continuous"),
        (None, "deep/er/than/any/recording/structure.oebin"),
        (None, "p_1.txt"),
    ],
)
def test_folders_are_recognised_by_the_names_in_them(
    tmp_path: Path, kind: str | None, name: str
) -> None:
    place = tmp_path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    assert folder_kind(tmp_path) == kind


def test_a_huge_folder_is_not_searched_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognition, "_MOST_ENTRIES", 50)
    for k in range(60):
        (tmp_path / f"{k}.txt").touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "structure.oebin").touch()
    assert folder_kind(tmp_path) is None


def test_a_missing_library_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "neo.rawio", None)
    monkeypatch.setitem(sys.modules, "pynwb", None)
    write_brw3(tmp_path / "a.brw", counts(50, 2))
    write_openephys(tmp_path / "b", {"R": counts(50, 2)})
    nwb(tmp_path / "c.nwb")
    for name, library in (("a.brw", "neo"), ("b", "neo"), ("c.nwb", "pynwb")):
        with pytest.raises(InputError) as error:
            open_recording(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert f"read through {library} (" in str(error.value)
        assert str(error.value).endswith("pip install 'toptune[formats]'")


def test_recognising_loads_no_library(tmp_path: Path) -> None:
    write_openephys(tmp_path / "b", {"R": counts(50, 2)})
    magic(b"PLEX")(tmp_path / "a.plx")
    nwb(tmp_path / "c.nwb")
    code = (
        "import sys; from pathlib import Path; from toptune.recordings.opening import recognise\n"
        f"print([recognise(Path({str(tmp_path)!r}) / n)[1] for n in ('a.plx', 'b', 'c.nwb')])\n"
        "print([m for m in ('neo', 'pynwb', 'quantities', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['plexon', 'openephys', 'nwb']", "[]"]


def test_mcs_files_are_still_those_of_mcs(tmp_path: Path) -> None:
    found = recognise(write_mcs(tmp_path / "a.h5", seed=0, seconds=0.1))
    assert found is not None
    assert found[1] == "mcs"


def test_a_description_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    folder = write_openephys(tmp_path / "a", {"R": counts(50, 2)})
    (place,) = folder.rglob("structure.oebin")
    place.write_text(place.read_text().replace("R/", "../../../../../secret/"))
    with pytest.raises(InputError, match="names a folder outside the recording"):
        open_recording(folder)


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    from toptune.recordings.voltage import scaled

    one = np.ones(1)
    np.testing.assert_array_equal(
        scaled(tmp_path, np.array([[2.0]]), 3 * one, one), np.array([[7.0]], np.float32)
    )
    for value in (np.nan, np.inf, 1e300):
        with pytest.raises(InputError, match="no voltage"):
            scaled(tmp_path, np.array([[value]]), one, one)

"""Small inputs of real users' problems: each behaves as the sentence beside it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from needs import shared
from results import Run, read_csv, read_json

TINY = ("--window-s", "5", "--stride-s", "5", "--backbone", "tiny", "--weights", "random")


class Case:
    """A case's folder, copied, and the command line in it."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder = folder
        self.run = run

    def ok(self, *arguments: object) -> str:
        ran = self.run(*arguments)
        assert ran.code == 0, ran.err
        return str(ran.out + ran.err)

    def refused(self, *arguments: object) -> str:
        ran = self.run(*arguments)
        assert ran.code == 2, ran.err
        assert "Traceback" not in ran.err
        assert "copy it again" not in ran.err
        return str(ran.err)

    def extract(self, *more: object, table: str = "devices.csv") -> str:
        return self.ok("extract", table, "--store", "s.zarr", *TINY, "--overwrite", *more)


CASES: dict[str, Callable[[Case], None]] = {}


def case(check: Callable[[Case], None]) -> Callable[[Case], None]:
    CASES[check.__name__.replace("_", "-")] = check
    return check


@case
def csv_clock_starts_late(c: Case) -> None:
    said = c.ok("inspect", "late.csv")
    assert "no spike in the first 3600 s" in said
    assert "--start-s" in said
    said = c.ok("inspect", "late.csv", "--start-s", "3600", "--duration-s", "60")
    assert "no spike in the first" not in said
    assert "duration_s  60" in said


@case
def csv_length_is_last_spike(c: Case) -> None:
    for command in (("inspect",), ("detect", "-o", "w.npz")):
        said = c.ok(command[0], "w.csv", *command[1:])
        assert "a length of 44 s is assumed from the last spike" in said
    said = c.ok("inspect", "w.csv", "--duration-s", "58")
    assert "assumed" not in said
    assert "duration_s  58" in said


@case
def csv_right_columns_other_dress(c: Case) -> None:
    n = {name: c.ok("inspect", name) for name in ("caps.csv", "sep.csv", "tab.csv")}
    assert all("n_spikes  85" in said for said in n.values())
    # The tabs of devices.csv are read, too: what is refused is its only class and device.
    assert "only one class, x" in c.extract()


@case
def csv_silent_culture(c: Case) -> None:
    assert "--duration-s" in c.refused("inspect", "silent.csv")
    text = Path("devices.csv").read_text()
    lines = text.splitlines()
    more = [f"{line},{'60' if 'silent' in line else ''}" for line in lines[1:]]
    Path("devices.csv").write_text("\n".join([lines[0] + ",duration_s", *more]))
    assert "silent.csv: no spikes in it" in c.extract()


@case
def csv_times_in_ms(c: Case) -> None:
    said = c.ok("inspect", "ms.csv")
    assert "lasts 83 hours" in said
    assert "--time-unit" in said
    said = c.ok("inspect", "ms.csv", "--time-unit", "ms")
    assert "hours" not in said
    assert "duration_s  300" in said


@case
def hdf5_locked(c: Case) -> None:
    hold = "import h5py,sys; f=h5py.File('r.h5','r+'); print('held',flush=True); sys.stdin.read()"
    environment = {k: v for k, v in os.environ.items() if k != "HDF5_USE_FILE_LOCKING"}
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            said = c.refused("inspect", "r.h5")
        finally:
            holder.stdin.close()
    assert "HDF5_USE_FILE_LOCKING=FALSE" in said
    c.ok("inspect", "r.h5")


@case
def hdf5_of_other_programs(c: Case) -> None:
    ran = c.run("inspect", "units.nwb")  # with the extra it may be read
    assert "Traceback" not in ran.err
    assert "copy it again" not in ran.err
    assert ran.code == 0 or "NWB" in ran.err


@case
def labels_differ_by_case(c: Case) -> None:
    said = c.extract()
    assert "differ only in capitals" in said
    assert "--merge" in said or "`merge=" in said
    said = c.ok("fit", "s.zarr", "--head", "parameters", "-o", "run", "--permutations", "0")
    assert any("capitals" in text for text in read_json(Path("run/metrics.json"))["warnings"])
    merges = ("--merge", "control=Control,control", "--merge", "drug=Drug,drug")
    c.ok("fit", "s.zarr", "--head", "parameters", "-o", "two", "--permutations", "0", *merges)
    assert read_json(Path("two/metrics.json"))["classes"] == ["control", "drug"]
    assert "reads like a missing value" in c.extract(table="na.csv")


@case
def mcs_spikes_only_export(c: Case) -> None:
    said = c.refused("inspect", "spikes_only.h5")
    assert "electrode raw data" in said


@case
def mcs_two_arrays_one_file(c: Case) -> None:
    for command in (("inspect",), ("detect", "-o", "out.npz")):
        said = c.refused(command[0], "two_arrays.h5", *command[1:])
        assert "2 arrays, 0, 1" in said
        assert "--well" in said
    assert "n_channels  3" in c.ok("inspect", "two_arrays.h5", "--well", "1")
    c.ok("plate", "two_arrays.h5", "-o", "both.csv")
    assert [row["well"] for row in read_csv(Path("both.csv"))] == ["0", "1"]


@case
def merge_label_with_comma(c: Case) -> None:
    c.extract()
    said = c.refused(
        "fit", "s.zarr", "--head", "parameters", "-o", "run", "--merge", "a=ctrl, 0 nM,10/5"
    )
    assert "double quotes" in said
    merge = ("--merge", 'a="ctrl, 0 nM",10/5')
    c.ok("fit", "s.zarr", "--head", "parameters", "-o", "run", "--permutations", "0", *merge)
    assert read_json(Path("run/params.json"))["merge"] == {"a": ["ctrl, 0 nM", "10/5"]}
    assert '"ctrl, 0 nM"' in c.ok("report", "run") + Path("run/report.html").read_text().replace(
        "&#34;", '"'
    ).replace("&quot;", '"')


@case
def notebook_mplbackend(_: Case) -> None:
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "-m", "toptune", "inspect", "a.csv", "--png", "a.png"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("a.png").stat().st_size > 1000


@case
def one_recording_two_devices(c: Case) -> None:
    said = c.extract()
    assert "a0.csv and copy.csv hold the same bytes" in said
    assert "lines 2 and " in said
    c.ok("fit", "s.zarr", "--head", "parameters", "-o", "run", "--permutations", "0")
    assert any("same bytes" in text for text in read_json(Path("run/metrics.json"))["warnings"])


@case
def paired_devices_count_twice(c: Case) -> None:
    c.extract()
    c.ok("fit", "s.zarr", "--head", "parameters", "-o", "run", "--permutations", "0")
    metrics = read_json(Path("run/metrics.json"))
    assert (metrics["n_devices"], metrics["n_verdicts"]) == (4, 8)
    # All are right: what four units show.
    assert metrics["device_accuracy_ci95"] == pytest.approx([0.51, 1], abs=0.005)


@case
def path_composed_otherwise(c: Case) -> None:
    listed = read_csv(Path("devices.csv"))[0]["recording"]
    (there,) = Path().glob("K*.csv")
    there.rename(unicodedata.normalize("NFD", there.name))
    Path("devices.csv").write_text(
        f"recording,device,label\n{unicodedata.normalize('NFC', listed)},K1,control\n"
    )
    assert "1 recording extracted" in c.extract()


@case
def peak_trains_one_odd_length(c: Case) -> None:
    said = c.refused("inspect", "ptrain")
    assert "1 of 6 files" in said
    assert "ptrain_22.txt" in said
    assert "--odd-electrodes leave_out" in said
    said = c.ok("inspect", "ptrain", "--odd-electrodes", "leave_out")
    assert "n_channels  5" in said
    assert "ptrain_22.txt was left out" in said


@case
def peak_trains_with_a_copy(c: Case) -> None:
    said = c.refused("inspect", "ptrain")
    assert "ptrain_1_12 - Copy.txt: is a copy of ptrain_1_12.txt" in said
    assert "n_channels  3" in c.ok("inspect", "ptrain", "--odd-electrodes", "leave_out")


@case
def spike_lists_of_instruments(c: Case) -> None:
    for name, wells in (("axion", 2), ("multiwell", 2), ("plate_renamed", 3)):
        assert f"holds {wells} wells, A1, " in c.refused("inspect", f"{name}.csv")
        assert "--well" in c.refused("detect", f"{name}.csv", "-o", "out.npz")
        assert "n_channels  2" in c.ok("inspect", f"{name}.csv", "--well", "A1")
    # 335641 us in the list of one program are 0.33564 s in that of another.
    c.ok("detect", "multiwell.csv", "--well", "A2", "-o", "m.npz")
    c.ok("detect", "axion.csv", "--well", "B3", "-o", "a.npz")


@case
def spycode_commas(c: Case) -> None:
    (folder,) = (path for path in Path().iterdir() if path.is_dir())
    said = c.ok("inspect", folder)
    assert "n_channels  5" in said
    assert "012" in said


@pytest.mark.usefixtures("tiny_backbones")
def test_the_scaffolds_with_commas_are_extracted_and_fitted(tmp_path: Path, run: Run) -> None:
    shutil.unpack_archive(shared("data", "scaffolds", "scaffolds.tar.gz"), tmp_path, filter="data")
    folder = tmp_path / "scaffolds"
    wide = ("--window-s", "120", "--stride-s", "120", "--backbone", "tiny", "--weights", "random")
    store = tmp_path / "s.zarr"
    ran = run("extract", folder / "devices.csv", "--store", store, *wide)
    assert ran.code == 0, ran.err
    assert "25 recordings extracted" in ran.out
    # Two of the study's recordings are one: found in the real data.
    assert "lines 11 and 12: " in ran.out
    assert "hold the same bytes" in ran.out
    assert "25 recordings: a sampling rate of 10000 Hz is assumed" in ran.out
    out = tmp_path / "run"
    ran = run("fit", store, "--head", "parameters", "-o", out, "--permutations", "0", "--no-tune")
    assert ran.code == 0, ran.err
    metrics = read_json(out / "metrics.json")
    assert metrics["n_devices"] == 25
    assert metrics["classes"] == ["beads", "ecm", "geltrex", "sponge"]


def test_every_case_is_walked() -> None:
    folders = {path.name for path in shared("cases").iterdir() if path.is_dir()}
    assert folders == set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.usefixtures("tiny_backbones")
def test_a_case_behaves_as_it_should(
    name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "case"
    shutil.copytree(shared("cases", name), folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    monkeypatch.chdir(folder)
    CASES[name](Case(folder, run))


@pytest.mark.usefixtures("tiny_backbones")
def test_a_recording_with_nearly_no_spikes_is_warned_of(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.csv").write_text("# duration_s=300\ntime_s,channel\n0.5,1\n1.5,1\n")
    (tmp_path / "devices.csv").write_text("recording,device,label\na.csv,A,x\n")
    ran = run("extract", tmp_path / "devices.csv", "--store", tmp_path / "s.zarr", *TINY)
    assert ran.code == 0
    assert "note: a.csv: 59 of 60 windows hold no spike" in ran.out + ran.err


def test_an_empty_hdf5_file_is_called_empty(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "r.h5"
    h5py.File(path, "w").close()
    assert "holds nothing" in run("inspect", path).err

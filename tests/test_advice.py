"""Every refusal of a recording says what to do, and doing it helps."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import Run

from toptune.recordings.mcs_writer import McsChannel, McsStream, McsWriter

RAW = "Data Acquisition (1) Electrode Raw Data"
TABLE = "time_s,channel\n0.5,12\n1.5,13\n2.5,12\n"


@dataclass(frozen=True)
class Advice:
    """A refusal, and what its message tells the user to do."""

    name: str
    make: Callable[[Path], Any]
    recording: str
    says: str  # what the message advises, as the user reads it
    more: tuple[str, ...] = ()  # options that the advice adds
    mend: Callable[[Path], Any] = lambda _: None  # what the user does to files
    then: str = ""  # the recording after that, if it is another

    def __str__(self) -> str:
        return self.name


def text(content: str | bytes, name: str = "r.csv") -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def trains(*files: tuple[str, str], folder: str = "p") -> Callable[[Path], Any]:
    def make(parent: Path) -> None:
        for name, content in files:
            text(content, f"{folder}/{name}")(parent)

    return make


def mcs(*streams: tuple[str, dict[str, Any]], groups: int = 1) -> Callable[[Path], Any]:
    """Write streams with spikes on two electrodes of each array."""

    def make(folder: Path) -> None:
        random = np.random.default_rng(0)
        with McsWriter(folder / "r.h5") as writer:
            recording = writer.add_recording()
            for label, told in streams:
                channels = tuple(
                    McsChannel(label=str(12 + k % 2), channel_id=k, group_id=k // 2)
                    for k in range(2 * groups)
                )
                stream = McsStream(label=label, channels=channels, **told)
                counts = random.normal(0, 100, (2 * groups, 20_000)).round().astype(np.int32)
                recording.add_stream(stream).write(counts)

    return make


def all_at_once(*makes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "r.zip", "w") as archive:
        archive.writestr("r.csv", TABLE)


def unzip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "r.zip") as archive:
        archive.extractall(folder)


A, B, LONGER, SILENT = "1000 0\n7 40\n", "1000 0\n9 30\n", "2000 0\n9 30\n", "1000 0\n"
THREE = (("e_1.txt", A), ("e_2.txt", B), ("e_3.txt", LONGER))

ADVICE = (
    Advice("no header", text("0.5,12\n1.5,13\n"), "r.csv", "add a first line",
           mend=text("time_s,channel\n0.5,12\n1.5,13\n")),
    Advice("another header", text(TABLE.replace("time_s", "t")), "r.csv",
           "begins with time_s,channel", mend=text(TABLE)),
    Advice("a list of recordings", text("recording,device,label\na.h5,d1,x\n"), "r.csv",
           "name the recordings themselves", mend=text(TABLE)),
    Advice("an old encoding", text("time_s,channel\n1,Stra\xdfe\n".encode("latin-1")), "r.csv",
           "save the table as 'CSV UTF-8'", mend=text("time_s,channel\n1,Stra\xdfe\n")),
    Advice("silent", text("time_s,channel\n"), "r.csv", "--duration-s", ("--duration-s", "60")),
    Advice("milliseconds", text("time_s,channel\n700000,1\n"), "r.csv", "--time-unit",
           ("--time-unit", "ms")),
    Advice("wells", text("time_s,channel\n1,A1_1\n2,B1_1\n"), "r.csv", "choose one by --well",
           ("--well", "B1")),
    Advice("a silent well", text("time_s,channel\n1,A1_1\n2,B1_1\n"), "r.csv", "--duration-s",
           ("--well", "C1", "--duration-s", "10")),
    Advice("stated otherwise", all_at_once(text("time_ms,channel\n1,1\n")), "r.csv",
           "leave --time-unit out"),
    Advice("an archive", zipped, "r.zip", "unpack it", mend=unzip, then="r.csv"),
    Advice("a file of another length", trains(*THREE), "p", "--odd-electrodes leave_out",
           ("--odd-electrodes", "leave_out")),
    Advice("a copy", trains(("e_1.txt", A), ("e_2.txt", B), ("e_1 (2).txt", A)), "p",
           "--odd-electrodes leave_out", ("--odd-electrodes", "leave_out")),
    Advice("a copy, removed", trains(("e_1.txt", A), ("e_2.txt", B), ("e_1 - Copy.txt", A)), "p",
           "remove what does not belong", mend=lambda f: (f / "p" / "e_1 - Copy.txt").unlink()),
    Advice("a copy, called so before", trains(("e_1.txt", SILENT), ("e_2.txt", A),
           ("Copy of e_1.txt", SILENT)),
           "p", "--odd-electrodes leave_out", ("--odd-electrodes", "leave_out")),
    Advice("two folders", all_at_once(trains(("e_1.txt", A), folder="p/a"),
           trains(("e_1.txt", B), folder="p/b")), "p", "name one", then="p/b"),
    Advice("two arrays", mcs((RAW, {}), groups=2), "r.h5", "choose one by --well",
           ("--well", "1")),
    Advice("two raw streams", mcs((RAW, {}), (RAW.replace("1", "2"), {})), "r.h5", "by --stream",
           ("--stream", "(2)")),
    Advice("a filtered stream", mcs(("Filter Data (1)", {})), "r.h5", "--highpass-hz 0",
           ("--stream", "Filter", "--highpass-hz", "0")),
    Advice("a low rate", mcs((RAW, {"tick_us": 2000})), "r.h5", "cut-off",
           ("--highpass-hz", "50")),
)  # fmt: skip
WRONG: dict[str, Sequence[str]] = {
    "a silent well": ("--well", "C1"),
    "stated otherwise": ("--time-unit", "s"),
}


@pytest.mark.parametrize("advice", ADVICE, ids=str)
def test_doing_what_a_refusal_says_helps(
    advice: Advice, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    advice.make(tmp_path)
    for command in (("inspect",), ("detect", "-o", "o.npz")):
        ran = run(command[0], advice.recording, *command[1:], *WRONG.get(advice.name, ()))
        assert ran.code == 2
        assert advice.says in ran.err
        assert "copy it again" not in ran.err
    advice.mend(tmp_path)
    mended = (advice.then or advice.recording, *advice.more)
    ran = run("detect", mended[0], "-o", "o.npz", *mended[1:])
    assert ran.code == 0, ran.err
    # What detect writes, inspect reads.
    assert run("inspect", "o.npz").code == 0


def test_a_locked_file_opens_as_its_refusal_says(tmp_path: Path) -> None:
    mcs((RAW, {}))(tmp_path)
    hold = "import h5py,sys; f=h5py.File('r.h5','r+'); print(flush=True); sys.stdin.read()"
    environment = {k: v for k, v in os.environ.items() if k != "HDF5_USE_FILE_LOCKING"}
    inspect = [sys.executable, "-m", "toptune", "inspect", "r.h5"]

    def inspected(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            inspect,
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )

    with subprocess.Popen(
        [sys.executable, "-c", hold],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=environment,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        refused, read = inspected(), inspected(HDF5_USE_FILE_LOCKING="FALSE")
        holder.stdin.close()
    assert refused.returncode == 2
    assert "HDF5_USE_FILE_LOCKING=FALSE" in refused.stderr
    assert read.returncode == 0, read.stderr


@pytest.mark.parametrize(
    ("first_bytes", "says"),
    [
        (b"MCSSTRM \x01\x00", "MC_DataManager"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), "save the table as 'CSV UTF-8'"),
        (b"%PDF-1.4", "export the table itself"),
        (b"AxionBio", "export its spike list as CSV"),
    ],
)
def test_files_of_other_programs_are_called_what_they_are(
    tmp_path: Path, run: Run, first_bytes: bytes, says: str
) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(first_bytes)
    ran = run("inspect", path)
    assert ran.code == 2
    assert says in ran.err

"""Devices files that must be refused, all by ``toptune extract``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bad_case import EXTRACT, Case

HEAD = "recording,device,label\n"
GOOD = HEAD + "".join(f"r{k}.csv,dev{k},{'AB'[k % 2]}\n" for k in range(6))


def table(name: str, content: str | bytes, *says: str) -> Case:
    """Replace devices.csv."""

    def make(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / "devices.csv").write_bytes(data)

    return Case(name, make, EXTRACT, ("devices.csv", *says))


def edited(name: str, old: str, new: str, *says: str) -> Case:
    assert old in GOOD
    return table(name, GOOD.replace(old, new, 1), *says)


def instead(name: str, make: Callable[[Path], object], *says: str) -> Case:
    """Put something else where devices.csv was."""

    def replace(folder: Path) -> None:
        (folder / "devices.csv").unlink()
        make(folder / "devices.csv")

    return Case(name, replace, EXTRACT, ("devices.csv", *says))


CASES = (
    instead("no devices file", lambda _: None, "no such file"),
    instead("a folder as devices file", lambda p: p.mkdir(), "is a folder"),
    instead("a pipe as devices file", os.mkfifo, "neither a file nor a folder"),
    table("devices: empty", "", "the file is empty"),
    table("devices: only a header", HEAD, "no recordings in it"),
    table("devices: no header", GOOD.removeprefix(HEAD), "line 1", "no column recording"),
    edited("devices: no label column", ",label", ",class", "line 1", "no column label"),
    table("devices: bars", GOOD.replace(",", "|"), "line 1", "no column"),
    edited("devices: column twice", ",label", ",label,label", "line 1", "is there twice"),
    edited("devices: column without a name", ",label", ",,label", "line 1", "column 3 has no name"),
    edited("devices: column with a break", "label", '"la\nbel"', "line 1", "no column"),
    edited("devices: cell missing", "r1.csv,dev1,B", "r1.csv,dev1", "line 3", "2 columns"),
    edited("devices: cell too many", "r1.csv,dev1,B", "r1.csv,dev1,B,x", "line 3", "4 columns"),
    edited("devices: no recording", "r1.csv,dev1", ",dev1", "line 3", "recording is missing"),
    edited("devices: no device", "dev1,B", ",B", "line 3", "device is missing"),
    edited("devices: no label", "dev1,B", "dev1,", "line 3", "label is missing"),
    edited("devices: blank label", "dev1,B", "dev1,  ", "line 3", "label is missing"),
    edited("devices: label of one space", "dev1,B", "dev1,\u00a0", "line 3", "label is missing"),
    edited("devices: label with a break", "dev1,B", 'dev1,"B\nC"', "line 3", "label has a line"),
    edited("devices: device with a zero byte", "dev1", "dev\0", "line 3", "device has"),
    edited("devices: recording with a zero byte", "r1.csv", "r1\0.csv", "line 3", "recording has"),
    edited("devices: label that steers terminals", "dev1,B", "dev1,\x1b[2J", "line 3", "label has"),
    edited("devices: label with a mark", "dev1,B", "dev1,B\u200b", "line 3", "'\\u200b'"),
    edited("devices: recording is not there", "r1.csv", "x.csv", "line 3", "no such recording"),
    edited(
        "devices: recording of a long name", "r1.csv", "x" * 5000, "line 3", "no such recording"
    ),
    edited("devices: recording twice", "r1.csv,dev1,B", "r3.csv,dev1,B", "already in line 3"),
    edited("devices: recording twice by way", "r1.csv,dev1,B", "./r3.csv,dev1,B", "line 5"),
    edited("devices: recording with two labels", "r1.csv,dev1,B", "r2.csv,dev1,B", "two labels"),
    edited("devices: recording is a folder of none", "r1.csv", ".", "line 3", "not a recording"),
    edited("devices: recording is this table", "r1.csv", "devices.csv", "line 3"),
    table("devices: open quote", GOOD + '"r9.csv,dev9,A\n', "line 8", "not a CSV table"),
    table("devices: quote inside", GOOD + '"r9"x.csv,dev9,A\n', "line 8", "not a CSV table"),
    table("devices: endless cell", GOOD + "x" * 200_000 + ",a,A\n", "not a CSV table"),
    table("devices: half UTF-16", GOOD.encode("utf-16")[:-1], "not UTF-16"),
    table("devices: Latin-1", GOOD.replace("A\n", "\xe4\n").encode("latin-1"), "line 2", "not UTF"),
    table("devices: zeros", bytes(500), "devices.csv"),
)

"""One entry of the catalogue of bad input: how it is made, which command meets it, what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from small_data import write_mcs


class Case(NamedTuple):
    """A malformed input, made in a folder that holds a good data set (see `test_bad_input`)."""

    name: str  # what is wrong
    make: Callable[[Path], object]  # spoils or writes files there
    command: Sequence[str]  # what is run there
    says: tuple[str, ...]  # parts of the one line that must come of it: the culprit first


def detect(name: str, make: Callable[[Path], object], recording: str, *says: str) -> Case:
    """Meet a recording by ``toptune detect``."""
    return Case(name, make, ("detect", recording, "-o", "out.npz"), (recording, *says))


# --- MCS files


def mcs(name: str, edit: Callable[[Any], object], *says: str) -> Case:
    """Open a good MCS file for writing, and spoil it."""

    def make(folder: Path) -> None:
        with h5py.File(write_mcs(folder / "a.h5", seed=0, seconds=0.2), "r+") as file:
            edit(file)

    return detect(name, make, "a.h5", *says)


def mcs_bytes(name: str, change: Callable[[bytes], bytes], *says: str) -> Case:
    """Spoil the bytes of a good MCS file."""

    def make(folder: Path) -> None:
        path = write_mcs(folder / "a.h5", seed=0, seconds=0.2)
        path.write_bytes(change(path.read_bytes()))

    return detect(name, make, "a.h5", *says)


def stream_of(file: Any) -> Any:
    return file["Data/Recording_0/AnalogStream/Stream_0"]


def info(field: str, value: object) -> Callable[[Any], None]:
    """Set a column of InfoChannel."""

    def edit(file: Any) -> None:
        rows = stream_of(file)["InfoChannel"][...]
        rows[field] = value
        stream_of(file)["InfoChannel"][...] = rows

    return edit


def stamps(*rows: tuple[int, int, int]) -> Callable[[Any], None]:
    """Replace ChannelDataTimeStamps."""
    return replace("ChannelDataTimeStamps", data=np.array(rows, np.int64))


def replace(name: str, **how: Any) -> Callable[[Any], None]:
    """Make a dataset of a stream anew, attributes kept."""

    def edit(file: Any) -> None:
        stream = stream_of(file)
        attributes = dict(stream[name].attrs)
        del stream[name]
        made = stream.create_dataset(name, **how)
        made.attrs.update(attributes)

    return edit


def info_as(dtype: Any, field: str, value: object) -> Callable[[Any], None]:
    """Give a column of InfoChannel another type; None takes it away."""

    def edit(file: Any) -> None:
        old = stream_of(file)["InfoChannel"][...]
        kept = [(n, old.dtype[n]) for n in old.dtype.names if n != field]
        types = kept if dtype is None else [*kept, (field, dtype)]
        rows = np.empty(old.shape, types)
        for name, _ in kept:
            rows[name] = old[name]
        if dtype is not None:
            rows[field] = value
        # With the old types of texts, which NumPy alone does not keep.
        replace("InfoChannel", data=rows)(file)

    return edit


# --- other files


def text(
    name: str, path: str, content: str | bytes, *says: str, command: Sequence[str] | None = None
) -> Case:
    """Write a file with some content."""

    def make(folder: Path) -> None:
        place = folder / path
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    where = path.split("/")[0]
    return Case(name, make, command or ("detect", where, "-o", "out.npz"), (path, *says))


EXTRACT = (
    "extract", "devices.csv", "--store", "n.zarr", "--window-s", "1", "--stride-s", "1",
    "--backbone", "tiny", "--weights", "random",
)  # fmt: skip
FIT = (
    *("fit", "s.zarr", "--head", "falkon", "--features", "histogram"),
    *("--no-tune", "--permutations", "0", "-o", "new-run"),
)
PREDICT = ("predict", "run/model", "r0.csv", "-o", "told")


def options(name: str, command: Sequence[str], *says: str) -> Case:
    """Run a command on good files with a bad option."""
    return Case(name, lambda _: None, command, says)

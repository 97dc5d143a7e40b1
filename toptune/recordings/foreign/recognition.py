"""Recordings of other programs, recognised by content and opened through libraries for them.

Nothing of these libraries is imported to recognise a file. They come with ``toptune[formats]``;
where one is missing, the refusal says so.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toptune.errors import InputError, ToptuneError
from toptune.machine.interruption import heed_interrupt
from toptune.machine.remote import for_hdf5
from toptune.params import OpeningOptions
from toptune.recordings.unknown import is_hdf5

if TYPE_CHECKING:
    from toptune.recordings.opening import SpikeRecording
    from toptune.recordings.voltage import VoltageReader

#: What installs the libraries.
EXTRA = "pip install 'toptune[formats]'"
_MAGIC = (
    (b"\x02\x27\x91\xc6", "intan"),  # .rhd
    (b"\xac\x27\x91\xd6", "intan"),  # .rhs
    (b"NEURALSG", "blackrock"),  # .nsX of version 2.1
    (b"NEURALCD", "blackrock"),  # of versions 2.2 and 2.3
    (b"BRSMPGRP", "blackrock"),  # of version 3.0
    (b"NEURALEV", "blackrock_events"),  # .nev
    (b"BREVENTS", "blackrock_events"),
    (b"PLEX", "plexon"),
    (b"NEX1", "neuroexplorer"),
)
# How deep a folder is searched, and how many entries are looked at.
_DEEPEST, _MOST_ENTRIES = 5, 20_000
_MOST_NAMES = 10_000


def file_kind(path: Path) -> str | None:
    """Tell which program wrote a file, by its first bytes or its HDF5 groups."""
    if is_hdf5(path):
        return _hdf5_kind(path)
    with path.open("rb") as file:
        head = file.read(8)
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def _hdf5_kind(path: Path) -> str | None:
    import h5py

    from toptune.recordings.hdf5_guard import DAMAGE

    try:
        with h5py.File(for_hdf5(path), "r") as file:
            if "nwb_version" in file.attrs:
                return "nwb"
            # Names that are not Unicode are bytes.
            names = {name for name in islice(file, _MOST_NAMES) if isinstance(name, str)}
    except InputError:
        raise
    except DAMAGE:
        return None  # the reader of MCS files says what is wrong with it
    if {"wells", "data_store"} & names or {"sig", "mapping"} <= names:
        return "maxwell"
    if "3BRecInfo" in names or any(name.startswith("Well_") for name in names):
        return "biocam"
    return None


def folder_kind(path: Path) -> str | None:
    """Tell which program wrote a folder, by the names in it and below."""
    for name in ("info.rhd", "info.rhs"):
        if (path / name).is_file():
            return "intan"
    for name in _names_below(path):
        if name == "structure.oebin":
            return "openephys"
        if name.endswith(".continuous"):
            return "openephys_continuous"
    return None


def _names_below(top: Path) -> Iterator[str]:
    """List the files of a folder and below it, level by level, up to a limit."""
    level, seen = [top], 0
    for _ in range(_DEEPEST):
        below: list[Path] = []
        for folder in level:
            with os.scandir(folder) as entries:
                for entry in entries:
                    seen += 1
                    if seen > _MOST_ENTRIES:
                        return
                    if entry.is_dir(follow_symlinks=False):
                        below.append(Path(entry.path))
                    else:
                        yield entry.name
        level = below


def open_foreign(path: Path, kind: str, options: OpeningOptions) -> VoltageReader | SpikeRecording:
    """Open what `file_kind` or `folder_kind` recognised."""
    if kind == "nwb":
        from toptune.recordings.foreign.nwb import open_nwb

        return open_nwb(path, options)
    if kind == "maxwell":
        from toptune.recordings.foreign.maxwell import open_maxwell

        return open_maxwell(path, options)
    if kind == "biocam":
        from toptune.recordings.foreign.biocam import open_biocam

        return open_biocam(path, options)
    from toptune.recordings.foreign.neo_formats import open_neo

    return open_neo(path, kind, options)


def library(path: Path, what: str, module: str) -> Any:
    """Import a library that a file needs, or say how it is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InputError(
            f"{path}: {what}, which is read through {name} ({error}): {EXTRA}"
        ) from None


@contextmanager
def reading(path: Path, problem: str) -> Iterator[None]:
    """Turn whatever a library raises into one line that names the file; its warnings are hushed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ToptuneError:
        raise
    except Exception as error:  # noqa: BLE001  # what libraries raise for damaged files has no end
        heed_interrupt(error)
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: {problem} ({type(error).__name__}: {said or 'no reason given'}): is it whole?"
            " export it again from the program that recorded it"
        ) from None

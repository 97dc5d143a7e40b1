"""Folders of SpyCode peak trains, one text or .mat file an electrode.

What enters: a folder whose files are peak trains, or any folder above exactly one such folder,
and the sampling rate, which these files do not hold.
What leaves: `SpikeTrains` in samples and microvolts, electrodes in natural order of their labels.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Literal

import numpy as np

from toptune.errors import InputError
from toptune.recordings.peak_mat import looks_like_mat, read_peak_mat
from toptune.recordings.peak_text import PeakTrain, looks_like_peak_text, read_peak_text
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes

PeakKind = Literal["peak_trains_text", "peak_trains_mat"]

_READERS: dict[PeakKind, Callable[[Path], PeakTrain]] = {
    "peak_trains_text": read_peak_text,
    "peak_trains_mat": read_peak_mat,
}


# A folder named by mistake may be the whole disk. The largest arrays have 26,400 electrodes.
_MOST_FILES = 100_000


def natural_key(label: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key by which ``2`` comes before ``10`` and ``A2`` before ``A10``."""
    parts = re.split(r"(\d+)", label)
    # Python refuses to read numbers of more than 4,300 digits.
    return tuple((0, int(p)) if p.isdecimal() and len(p) < 1000 else (1, p) for p in parts if p)


def sniff_peak_folder(folder: Path) -> PeakKind | None:
    """Which kind of peak trains a folder, or one below it, holds; None if none.

    Only contents count: one file that opens like a peak train is enough.
    """
    for _, kind in _peak_folders(folder):
        return kind
    return None


def read_peak_trains(path: Path, *, sampling_rate_hz: float) -> SpikeTrains:
    """Read a folder of peak trains.

    Parameters
    ----------
    path
        The folder that holds the electrodes' files, or a folder above exactly one such folder.
    sampling_rate_hz
        Samples a second; peak trains do not tell.

    Raises
    ------
    InputError
        No or several such folders, text and .mat files mixed, a file among them that is no
        peak train, electrodes of different lengths, or a faulty file (with its line).
    """
    folder, kind = _the_peak_folder(path)
    files = _electrode_files(folder, kind)
    with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1)) as pool:
        trains = list(pool.map(_READERS[kind], files))
    for file, train in zip(files, trains, strict=True):
        if train.n_samples != trains[0].n_samples:
            raise InputError(
                f"{file}: the recording has {train.n_samples} samples here but "
                f"{trains[0].n_samples} in {files[0].name}; one folder is one recording"
            )
    return _combined(_labels([file.stem for file in files]), trains, sampling_rate_hz)


def _peak_folders(path: Path) -> Iterator[tuple[Path, PeakKind]]:
    seen = 0
    for where, subfolders, names in os.walk(path):
        seen += len(names) + 1
        if seen > _MOST_FILES:
            raise InputError(
                f"{path}: more than {_MOST_FILES} files lie in and below this folder: name the"
                " folder of one recording's electrodes"
            )
        # So that the walk, and with it every message, does not depend on the file system.
        subfolders.sort(key=natural_key)
        kind = _kind_of_any(Path(where), sorted(names))
        if kind is not None:
            yield Path(where), kind


def _kind_of_any(folder: Path, names: list[str]) -> PeakKind | None:
    for name in names:
        kind = _kind(folder / name)
        if kind is not None:
            return kind
    return None


def _kind(file: Path) -> PeakKind | None:
    if file.name.startswith(".") or not file.is_file():
        return None
    if looks_like_peak_text(file):
        return "peak_trains_text"
    return "peak_trains_mat" if looks_like_mat(file) else None


def _the_peak_folder(path: Path) -> tuple[Path, PeakKind]:
    found = list(_peak_folders(path))
    if not found:
        raise InputError(
            f"{path}: no peak trains in this folder; it needs one text file (first line "
            "'n_samples 0') or one .mat file (sparse vector peak_train) per electrode"
        )
    if len(found) > 1:
        names = ", ".join(str(folder.relative_to(path)) for folder, _ in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            f"{path}: {len(found)} folders of peak trains lie in here ({names}{more}); name one"
        )
    return found[0]


def _electrode_files(folder: Path, kind: PeakKind) -> list[Path]:
    """All files that claim to be electrodes: those with a suffix that a peak train has here.

    A damaged electrode must be refused by its reader, so contents cannot decide here.
    """
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    kinds = {file: _kind(file) for file in files}
    for file, other in kinds.items():
        if other not in (None, kind):
            raise InputError(f"{file}: text and .mat peak trains are mixed in one folder")
    suffixes = {file.suffix.lower() for file, k in kinds.items() if k == kind}
    return [file for file in files if file.suffix.lower() in suffixes]


def _labels(stems: Sequence[str]) -> list[str]:
    """Electrode labels: what follows the last ``_``; else what the names do not share."""
    labels = [stem.rsplit("_", 1)[-1] for stem in stems]
    if max(Counter(labels).values()) > 1 or not all(labels):
        first, last = min(stems), max(stems)
        same = (a == b for a, b in zip(first, last, strict=False))
        shared = len(list(takewhile(bool, same)))
        labels = [stem[shared:] for stem in stems]
    return labels if all(labels) else list(stems)


def _combined(labels: list[str], trains: list[PeakTrain], sampling_rate_hz: float) -> SpikeTrains:
    order = sorted(range(len(labels)), key=lambda i: natural_key(labels[i]))
    trains = [trains[i] for i in order]
    spikes = sort_spikes(
        np.concatenate([t.sample for t in trains]),
        np.repeat(np.arange(len(trains), dtype=np.int32), [len(t.sample) for t in trains]),
        np.concatenate([t.peak_to_peak_uv for t in trains]),
    )
    return SpikeTrains(
        spikes=spikes,
        channel_labels=tuple(labels[i] for i in order),
        sampling_rate_hz=sampling_rate_hz,
        segments=(Segment(0, trains[0].n_samples, 0.0),),
        threshold_uv=np.full(len(trains), np.nan, np.float32),
    )

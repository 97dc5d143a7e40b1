"""What is looked at in an MCS file before and while McsPyDataTools reads it.

An open file or its tables enter; nothing leaves but an error that names the culprit, or tables that
were checked. McsPyDataTools reads every analog stream's tables whole, without looking.
"""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.hdf5_guard import (
    check_all_heaps,
    check_heaps,
    check_links,
    check_stored,
    has_variable_text,
)

# The tables of an analog stream, which are read whole. The largest arrays have 26,400 electrodes, a
# file with a gap every 12 ms for 20 minutes as many stretches.
_TABLES = {"InfoChannel": 30_000, "ChannelDataTimeStamps": 100_000}
_TABLE_BYTES = 16 * 2**20


def check_structure(file: Any, path: Path) -> None:
    """Look at all that McsPyDataTools will read, which it does without looking."""
    check_links(file, path)
    data = file.get("Data")
    streams = _groups(data, "Recording_*/AnalogStream/Stream_*")
    if any(map(has_variable_text, (file, *_groups(data, ""), *streams))):
        check_all_heaps(path)
    for stream in streams:
        for name, rows in _TABLES.items():
            table = stream.get(name)
            if not isinstance(table, h5py.Dataset):
                continue
            check_stored(table, path, _TABLE_BYTES)
            check_heaps(table, path)
            if table.ndim and table.shape[0] > rows:
                raise InputError(
                    f"{path}: {table.name} has {table.shape[0]} rows, more than the {rows} of any"
                    " recording: export the file again"
                )
        if isinstance(stream.get("ChannelData"), h5py.Dataset):
            check_stored(stream["ChannelData"], path)


def _groups(top: Any, pattern: str) -> list[Any]:
    """Find groups below `top` whose path fits; what is no group is left to the reader."""
    found = [top] if isinstance(top, h5py.Group) else []
    for part in filter(None, pattern.split("/")):
        names = [(g, n) for g in found for n in g if fnmatchcase(n, part)]
        found = [g[n] for g, n in names if g.get(n, getclass=True) is h5py.Group]
    return found


def check_rows(path: Path, dataset: Any, rows: list[int]) -> None:
    """See that the samples are counts and that InfoChannel tells of each row once."""
    if dataset.ndim != 2 or dataset.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {dataset.name} holds {dataset.dtype} of shape {dataset.shape}, where rows of"
            " whole numbers are needed: export the raw data again"
        )
    if sorted(rows) != list(range(dataset.shape[0])):
        raise InputError(
            f"{path}: {dataset.name} of shape {dataset.shape} does not fit its InfoChannel, which"
            f" tells of rows {_shortened(rows)}: export the file again"
        )


def check_different(path: Path, infos: list[Any]) -> None:
    """Refuse two electrodes of one name on one array; other arrays of a file may have it too."""
    counts = Counter((int(i.get_field("GroupID")), str(i.label).strip()) for i in infos)
    (group, label), n = counts.most_common(1)[0]
    if n > 1:
        raise InputError(
            f"{path}: {n} electrodes of array {group} are called {label!r}: export the file again"
        )


def check_gains(
    path: Path, labels: tuple[str, ...], gain_uv: NDArray[np.float64], zero: NDArray[np.float64]
) -> None:
    """See that every electrode's counts become microvolts."""
    ok = np.isfinite(gain_uv) & (gain_uv > 0) & np.isfinite(zero)
    if not ok.all():
        k = int(np.argmin(ok))
        raise InputError(
            f"{path}: electrode {labels[k]} has a step of {gain_uv[k]:g} uV around {zero[k]:g}"
            " (ConversionFactor, Exponent, ADZero), which gives no voltage: export the file again"
        )


def _shortened(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def stretches(
    path: Path, name: str, table: NDArray[np.int64], n_samples: int
) -> tuple[tuple[int, int, int], ...]:
    """Rows of ChannelDataTimeStamps (first time in us, first index, last index), checked."""
    table = np.asarray(table)
    if table.ndim != 2 or table.shape[1] != 3:
        raise InputError(f"{path}: {name}: ChannelDataTimeStamps has shape {table.shape}")
    if n_samples == 0:
        raise InputError(f"{path}: {name}: the stream holds no samples")
    expected = 0
    for time_us, first, last in table.tolist():
        if first != expected or last < first or last >= n_samples or time_us < 0:
            raise InputError(
                f"{path}: {name}: ChannelDataTimeStamps row ({time_us}, {first}, {last}) does not"
                f" follow sample {expected} of {n_samples}: the file was not closed properly"
            )
        expected = last + 1
    if expected != n_samples:
        raise InputError(
            f"{path}: {name}: ChannelDataTimeStamps end at sample {expected}, the data at"
            f" {n_samples}: the file was not closed properly"
        )
    return tuple((first, last - first + 1, time_us) for time_us, first, last in table.tolist())

"""Peak trains as SpyCode writes them: a folder with one text or .mat file per electrode.

A text file's first line is ``n_samples 0``; every other line is ``sample_index amplitude_uV``, with
indices that count from 1 and rise, and blanks, a comma, a semicolon or a tab between the two
numbers. The .mat form is read by `toptune.recordings.peak_mat`. Neither
states the sampling rate.

A compiled parser reads plainly written numbers at hundreds of MB/s. At anything else it stops, and
Python's own ``float`` reads the text again, line by line: it either understands the text or names
the faulty line. So the fast parser needs no error messages, and accepts nothing that Python would
refuse.
"""

from __future__ import annotations

import io
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.threads import compiled
from toptune.params import OddElectrodes
from toptune.recordings.peak_mat import looks_like_mat, read_peak_mat
from toptune.recordings.text import encoding_of
from toptune.recordings.trains import PeakTrain, Segment, SpikeTrains, natural_key, sort_spikes

PeakKind = Literal["peak_trains_text", "peak_trains_mat"]

# A folder named by mistake may be the whole disk. The largest arrays have 26,400 electrodes.
_MOST_FILES = 100_000


def sniff_peak_folder(folder: Path) -> PeakKind | None:
    """Return the kind of peak trains that a folder, or one below it, holds; None if it has none.

    Only contents count: one file that begins like a peak train is enough.
    """
    for _, kind in _peak_folders(folder):
        return kind
    return None


def read_peak_trains(
    path: Path, *, sampling_rate_hz: float, odd_electrodes: OddElectrodes = "refuse"
) -> SpikeTrains:
    """Read a folder that holds the electrodes' files, or one above exactly one such folder.

    Text and .mat files must not be mixed. Files of another length than most, and copies of another
    file, are refused or left out. Messages name the file, and the line of a text file. Peak trains
    do not state their sampling rate.
    """
    folder, kind = _the_peak_folder(path)
    files = _electrode_files(folder, kind)
    read = read_peak_text if kind == "peak_trains_text" else read_peak_mat
    with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1)) as pool:
        trains = list(pool.map(read, files))
    odd = {**_copies(files, trains), **_of_other_length(files, trains)}
    if odd and odd_electrodes == "refuse":
        one = next(iter(odd))
        raise InputError(
            f"{files[one]}: {odd[one]}; {len(odd)} of {len(files)} files"
            f" {'is' if len(odd) == 1 else 'are'} such: remove what does"
            " not belong to this recording, or leave those out by `odd_electrodes='leave_out'`"
        )
    kept = [k for k in range(len(files)) if k not in odd]
    found = _combined(
        _labels([files[k].stem for k in kept]), [trains[k] for k in kept], sampling_rate_hz
    )
    left_out = (f"{files[k].name} was left out: {why}" for k, why in odd.items())
    return replace(found, notes=tuple(left_out))


# What file managers add to the name of a copy, in several languages.
_COPY = re.compile(
    r"(?:(?:copy of|kopie von|copie de|copia de|copia di) )?"
    r"(?P<name>.+?)(?: ?- ?(?:copy|kopie|copia|copie)| (?:copy|kopie|copia|copie))?(?: ?\(\d+\))?",
    re.IGNORECASE,
)


def _copies(files: Sequence[Path], trains: Sequence[PeakTrain]) -> dict[int, str]:
    """Say of which file each copy is one, by its name or by its spikes."""
    found: dict[int, str] = {}
    first: dict[object, int] = {}
    # The name without an addition comes first, so that it is the one that is kept.
    for k in sorted(range(len(files)), key=lambda k: (len(files[k].stem), files[k].stem)):
        stem, train = files[k].stem, trains[k]
        match = _COPY.fullmatch(stem)
        named = first.get(match["name"]) if match and match["name"] != stem else None
        # Silent electrodes are alike; others never have the same spikes to the last digit.
        spikes = (train.sample.tobytes(), train.peak_to_peak_uv.tobytes())
        same = first.setdefault(spikes, k) if len(train.sample) else k
        first.setdefault(stem, k)
        if named is not None or same != k:
            of = files[same if named is None else named].name
            found[k] = f"is a copy of {of}, by its {'spikes' if same != k else 'name'}"
    return found


def _of_other_length(files: Sequence[Path], trains: Sequence[PeakTrain]) -> dict[int, str]:
    """Say which files have another length than most."""
    counts = Counter(train.n_samples for train in trains).most_common()
    (usual, n), *others = counts
    if others and 2 * n <= len(files):
        k = next(k for k, train in enumerate(trains) if train.n_samples != trains[0].n_samples)
        raise InputError(
            f"{files[k]}: the recording has {trains[k].n_samples} samples here but"
            f" {trains[0].n_samples} in {files[0].name}, and no length is that of most of its"
            f" {len(files)} files: one folder must hold one recording"
        )
    return {
        k: f"has {train.n_samples} samples, most files {usual}"
        for k, train in enumerate(trains)
        if train.n_samples != usual
    }


def _peak_folders(path: Path) -> Iterator[tuple[Path, PeakKind]]:
    seen = 0
    for where, subfolders, names in os.walk(path):
        seen += len(names) + 1
        if seen > _MOST_FILES:
            raise InputError(
                f"{path}: more than {_MOST_FILES} files are in and below this folder: name the"
                " folder that holds the electrodes of one recording"
            )
        # The order of the walk, and of names in messages, must not depend on the file system.
        subfolders.sort(key=natural_key)
        folder = path / Path(where).relative_to(os.fspath(path))
        kinds = (_kind(folder / name) for name in sorted(names))
        kind = next((kind for kind in kinds if kind is not None), None)
        if kind is not None:
            yield folder, kind


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
            f"{path}: there are {len(found)} folders of peak trains in it ({names}{more}): name one"
        )
    return found[0]


def _electrode_files(folder: Path, kind: PeakKind) -> list[Path]:
    """List the files of electrodes: all with the suffixes that recognised peak trains have.

    Contents cannot decide, since the reader must refuse a damaged file, not overlook it.
    """
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    kinds = {file: _kind(file) for file in files}
    for file, other in kinds.items():
        if other not in (None, kind):
            raise InputError(f"{file}: text and .mat peak trains are mixed in one folder")
    suffixes = {file.suffix.lower() for file, k in kinds.items() if k == kind}
    return [file for file in files if file.suffix.lower() in suffixes]


def _labels(stems: Sequence[str]) -> list[str]:
    """Label electrodes by what follows the last ``_``, or by what their names do not share."""
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


_NUMBER = rb"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
_BETWEEN = rb"(?:[ \t]*[,;][ \t]*|[ \t]+)"
_ZERO = rb"[+-]?0+(?:[.,]0*)?(?:[eE][+-]?\d+)?"
_FIRST_LINE = re.compile(rb"[ \t]*" + _NUMBER + _BETWEEN + _ZERO + rb"[ \t,;]*")
# Long enough for two numbers of any sane width, short enough to read from every file of a folder.
_HEAD_BYTES = 256


def looks_like_peak_text(path: Path) -> bool:
    """Tell whether a file's first line is ``n_samples 0``: two numbers, the second one zero."""
    with path.open("rb") as file:
        text, _ = _plain(file.read(_HEAD_BYTES))
    line = text.split(b"\n", 1)[0].rstrip(b"\r")
    return _FIRST_LINE.fullmatch(line) is not None


def read_peak_text(path: Path) -> PeakTrain:
    """Read one electrode's file; a message about its content names the line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    data, n_before = _plain(data)
    values, complete = _parse_fast(data)
    if not complete:
        values = _parse_slow(data, path, n_before)
    del data  # as large as the numbers read from it
    return _checked(values, path, n_before)


def _plain(data: bytes) -> tuple[bytes, int]:
    """Return a text in UTF-8 without what spreadsheets put before it, and the lines left out."""
    encoding = encoding_of(data[:4])
    if encoding != "utf-8":
        data = data.decode(encoding, "replace").encode()
    if data[:4].lower() != b"sep=":
        return data, 0
    return data.partition(b"\n")[2], 1


def _parse_fast(data: bytes) -> tuple[NDArray[np.float64], bool]:
    buffer = np.frombuffer(data, np.uint8)
    values = np.empty((data.count(b"\n") + 1, 2))
    n_lines = _parse_bytes(buffer, values, _POWERS)
    return values[: max(n_lines, 0)], n_lines >= 0


# Powers of ten up to 10**22 and whole numbers up to 2**53 are exact in float64, and the product or
# quotient of two exact numbers is correctly rounded, hence equal to what float() returns (Clinger
# 1990, "How to read floating point numbers accurately"). Other numbers are left to float().
_POWERS = 10.0 ** np.arange(23)


# The electrodes of a folder are read in threads.
@compiled()
def _parse_bytes(data: Any, values: Any, powers: Any) -> int:  # noqa: C901  # a state machine over bytes; cut up it compiles to slower code
    """Fill `values` (lines, 2); return the number of lines, or -1 at anything unusual."""
    n = data.size
    # Blank lines are allowed at the end only.
    while n > 0 and (data[n - 1] == 10 or data[n - 1] == 13 or data[n - 1] == 32):
        n -= 1
    if n == 0:
        return -1
    at = 0
    row = 0
    while at < n:
        for column in range(2):
            while at < n and (data[at] == 32 or data[at] == 9):
                at += 1
            mantissa = np.int64(0)
            n_digits = 0
            scale = 0
            point = False
            while at < n and (48 <= data[at] <= 57 or (data[at] == 46 and not point)):
                if data[at] == 46:
                    point = True
                else:
                    mantissa = mantissa * 10 + (data[at] - 48)
                    n_digits += 1
                    scale -= point
                at += 1
            # 15 digits stay below 2**53.
            if n_digits == 0 or n_digits > 15:
                return -1
            if at < n and (data[at] == 101 or data[at] == 69):
                at += 1
                negative = False
                if at < n and (data[at] == 43 or data[at] == 45):
                    negative = data[at] == 45
                    at += 1
                exponent = 0
                start = at
                while at < n and 48 <= data[at] <= 57:
                    exponent = exponent * 10 + (data[at] - 48)
                    at += 1
                if at == start or at - start > 3:
                    return -1
                scale += -exponent if negative else exponent
            if scale > 22 or scale < -22:
                return -1
            if scale >= 0:
                values[row, column] = mantissa * powers[scale]
            else:
                values[row, column] = mantissa / powers[-scale]
            if column == 0:
                start = at
                while at < n and (data[at] == 32 or data[at] == 9):
                    at += 1
                if at < n and (data[at] == 44 or data[at] == 59):
                    at += 1
                if at == start:
                    return -1
        # Rising indices need ever more digits, so the table cannot outgrow the file by much.
        if row > 1 and values[row, 0] <= values[row - 1, 0]:
            return -1
        while at < n and (data[at] == 32 or data[at] == 9 or data[at] == 13):
            at += 1
        if at < n and data[at] != 10:
            return -1
        at += 1
        row += 1
    return row


def _parse_slow(data: bytes, path: Path, n_before: int) -> NDArray[np.float64]:
    if not data.strip():
        raise InputError(f"{path}: the file is empty; the first line must be 'n_samples 0'")
    if b"\0" in data[:_HEAD_BYTES]:
        raise InputError(f"{path}: not plain text: export the peak train again as text")
    values = array("d")
    for number, line in enumerate(io.BytesIO(data.rstrip()), 1 + n_before):
        # Unpacking raises ValueError where a line does not have exactly two cells.
        try:
            first, second = (_number(cell) for cell in _cells(line))
        except ValueError:
            shown = line[:60].decode("utf-8", "replace").strip()
            raise InputError(
                f"{path}, line {number}: expected two numbers, got {shown!r}"
            ) from None
        values.extend((first, second))
        # A faulty file is refused here, at the fault, and not read to its end.
        if len(values) > 4 and not first > values[-4]:
            _checked(np.frombuffer(values).reshape(-1, 2), path, n_before)
    return np.frombuffer(values).reshape(-1, 2)


_SPLIT = re.compile(_BETWEEN)


def _cells(line: bytes) -> list[bytes]:
    """Split a line; beside semicolons and tabs, a comma marks decimals."""
    line = line.strip(b" \t\r\n,;")
    if re.search(rb"[;\t]", line):
        line = line.replace(b",", b".")
    return _SPLIT.split(line)


def _number(cell: bytes) -> float:
    # float() also accepts 1_000, which no program writes on purpose.
    if b"_" in cell:
        raise ValueError(cell)
    return float(cell)


def _checked(values: NDArray[np.float64], path: Path, n_before: int) -> PeakTrain:
    n, zero = values[0]
    # Up to 2**53 every whole number is a float64.
    if not (math.isfinite(n) and 1 <= n < 2**53 and n == int(n) and zero == 0):
        raise InputError(
            f"{path}, line {1 + n_before}: the first line must be 'n_samples 0',"
            f" got '{n:g} {zero:g}'"
        )
    index, amplitude = values[1:, 0], values[1:, 1]
    ok = (index >= 1) & (index <= n) & (index == np.floor(index))
    ok &= np.isfinite(amplitude) & (amplitude > 0)
    ok[1:] &= index[1:] > index[:-1]
    if not ok.all():
        i = int(np.argmin(ok))
        before = index[i - 1] if i else 0.0
        problem = _what_is_wrong(index[i], amplitude[i], before, int(n))
        raise InputError(f"{path}, line {i + 2 + n_before}: {problem}")
    return PeakTrain(int(n), index.astype(np.int64) - 1, amplitude.astype(np.float32))


def _what_is_wrong(index: float, amplitude: float, before: float, n: int) -> str:
    if not math.isfinite(index) or index != int(index):
        return f"a sample index must be a whole number, got {index:g}"
    if not 1 <= index <= n:
        return f"sample index {index:.0f} is outside 1..{n}"
    if not math.isfinite(amplitude) or amplitude <= 0:
        return f"an amplitude must be a finite number above 0, got {amplitude:g}"
    kind = "repeats" if index == before else "comes after"
    return f"sample index {index:.0f} {kind} {before:.0f}; indices must rise"

"""The devices file: the device and the label of each recording.

It is a CSV file with the columns ``recording,device,label`` and any further ones, with paths
relative to itself. All its problems are reported at once, each with its line.
"""

from __future__ import annotations

import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from toptune.errors import InputError, InputErrors
from toptune.machine.fingerprint import file_sha256, quick_digest, require_regular, stamp_of
from toptune.machine.remote import RemotePath, as_path, look_at, release
from toptune.params import OpeningOptions, SpikeSettings, write_merge
from toptune.recordings.text import TableError, TableHead, decoded, read_head

_REQUIRED = ("recording", "device", "label")
# Columns that say how a recording is opened, as the options of the same names do for all.
_OPENING = tuple(one.name for one in fields(OpeningOptions))
_NUMBERS = ("sampling_rate_hz", "duration_s", "start_s")
_WHICH = ("stream", "well")  # those that choose one recording of several in a file
# Control characters, invisible marks of direction and byte order, surrogates, line and paragraph
# separators.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """One recording."""

    line: int  # in the file
    recording: Path
    written: str  # its path as the file writes it
    device: str
    label: str  # the device's class
    columns: dict[str, str]  # the further columns by name
    # What the line says of how its recording is opened, by the names of `OpeningOptions`.
    opening: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the recording: its path, and which of several in the file it is."""
        parts = [f"{of} {self.opening[of]}" for of in _WHICH if of in self.opening]
        return f"{self.written} [{', '.join(parts)}]" if parts else self.written

    def settings(self, common: SpikeSettings) -> SpikeSettings:
        """Give the settings of a whole store as they are for this recording."""
        return replace(common, **self.opening)


@dataclass(frozen=True, kw_only=True)
class DevicesFile:
    """A checked devices file, with its rows in the file's order."""

    path: Path
    rows: tuple[DeviceRow, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of their first appearance."""
        return tuple(dict.fromkeys(row.label for row in self.rows))

    @property
    def thin_classes(self) -> tuple[str, ...]:
        """Why devices cannot be left out with these labels, each reason with its lines.

        Not an error of the file itself, since classes may be merged when a classifier is trained.
        """
        if len(self.labels) < 2:
            return (f"{self.path}: only one class, {self.labels[0]}: classification needs two",)
        problems = []
        for label in self.labels:
            rows = [row for row in self.rows if row.label == label]
            devices = {row.device for row in rows}
            if len(devices) == 1:
                lines = ", ".join(str(row.line) for row in rows)
                problems.append(
                    f"{self.path}, line {lines}: class {label} has only one device, "
                    f"{devices.pop()}: leaving it out leaves none to train with"
                )
        return tuple(problems)


# What programs and people write where a cell has no value.
_MISSING = ("na", "n/a", "nan", "none", "null", "nil", "-", "?", "missing")


def label_doubts(labels: Iterable[str]) -> tuple[str, ...]:
    """Warn of classes that differ only in capitals or blanks, and of those that mean no class."""
    by_text: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        by_text.setdefault(" ".join(label.casefold().split()), []).append(label)
    found = [
        f"classes {' and '.join(same)} differ only in capitals or blanks: if they are one class,"
        f" write them alike in devices.csv, or train with `merge={write_merge(same[0], same)}`"
        for same in by_text.values()
        if len(same) > 1
    ]
    found += [
        f"class {same[0]} reads like a missing value: leave those lines out if they have no class"
        for text, same in by_text.items()
        if text in _MISSING
    ]
    return tuple(found)


def same_content(devices: DevicesFile) -> tuple[str, ...]:
    """Warn of recordings with the same bytes that count as several devices or classes.

    Only those whose sizes and then ends agree are read whole.
    """
    alike = [[row for row in devices.rows if _exists(row.recording)]]
    for digest in (_sizes, quick_digest, file_sha256):
        rows_of: dict[tuple[str, ...], list[DeviceRow]] = {}
        for row in (row for rows in alike for row in rows):
            part = (str(row.opening.get(name, "")) for name in _WHICH)
            rows_of.setdefault((digest(row.recording), *part), []).append(row)
            release(row.recording)
        alike = [rows for rows in rows_of.values() if len(rows) > 1]
    return tuple(
        f"{devices.path}, lines {' and '.join(str(row.line) for row in rows)}:"
        f" {' and '.join(row.name for row in rows)} hold the same bytes as"
        f" {' and '.join(f'{row.device} ({row.label})' for row in rows)}: left out, one is still"
        " learnt from the other; leave lines out, unless the recordings are silent"
        for rows in alike
        if len({(row.device, row.label) for row in rows}) > 1
    )


def _sizes(path: Path) -> str:
    return str(sorted(size for _, size, _ in stamp_of(path)))


def read_devices(path: Path) -> DevicesFile:
    """Read and check a devices file.

    Its path and those in it may be URLs. `toptune.recordings.text` says how it may be written.
    Blank lines, spaces around cells, empty columns at the end and capitals in the names of columns
    do not matter. A device may have several recordings and labels. Columns with the names of
    `OpeningOptions`, such as ``well`` and ``duration_s``, say how a line's recording is opened.

    Raises
    ------
    InputErrors
        Lists all problems of rows, with their lines.
    InputError
        The file cannot be read, or its header lacks a needed column.
    """
    path = as_path(path)
    require_regular(path, folder=False)
    head, table = _table(path, _text(path))
    header = [_column(name) for name in head.header]
    _check_header(path, head.line, header)
    rows: list[DeviceRow] = []
    problems: list[str] = []
    try:
        for line, cells in table:
            try:
                problem = _problem(cells, header)
                if problem:
                    raise InputError(problem)
                rows.append(_row(path.parent, line, dict(zip(header, cells, strict=True))))
            except InputError as error:
                problems.append(f"{path}, line {line}: {error}")
    except TableError as error:
        raise InputError(f"{path}, line {error.line}: {error}") from None
    if not rows and not problems:
        raise InputError(f"{path}: no recordings in it, only the header")
    look_at(row.recording for row in rows)
    devices = DevicesFile(path=path, rows=tuple(rows))
    problems += _missing(devices) + _repeated(devices)
    if problems:
        raise InputErrors(problems)
    return devices


def _text(path: Path) -> str:
    try:
        return decoded(path, path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _table(path: Path, text: str) -> tuple[TableHead, Iterator[tuple[int, list[str]]]]:
    """Split the table into its head and its rows, each with the line that it starts on."""
    stream = io.StringIO(text.lstrip("\ufeff"), newline="")
    # Most likely what is meant where no separator gives the columns that are needed.
    fallbacks = (has_required_columns, lambda header: len(header) > 1, bool)
    for known in fallbacks:
        stream.seek(0)
        head = read_head(stream, known)
        if head is not None:
            return head, head.rows(stream)
    raise InputError(f"{path}: the file is empty; it needs {','.join(_REQUIRED)}")


def has_required_columns(header: Sequence[str]) -> bool:
    """Whether a row of a table is the header of a devices file."""
    return set(_REQUIRED) <= {name.casefold() for name in header}


def _column(name: str) -> str:
    """Write a column's name in one way; capitals do not matter in those toptune knows."""
    name = _composed(name)
    return name.casefold() if name.casefold() in (*_REQUIRED, *_OPENING) else name


def _check_header(path: Path, line: int, header: list[str]) -> None:
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise InputError(
            f"{path}, line {line}: no column {', '.join(missing)}; the header is "
            f"{','.join(header)!r:.200} and needs {','.join(_REQUIRED)}"
        )
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        shown = f"column {repeated[0]!r:.80} is there twice"
        raise InputError(
            f"{path}, line {line}: {shown if repeated[0] else 'columns without a name'}"
        )
    if "" in header:
        raise InputError(f"{path}, line {line}: column {header.index('') + 1} has no name")


def _problem(cells: list[str], header: list[str]) -> str:
    """Say what is wrong with a row, if anything."""
    if len(cells) != len(header):
        return f"{len(cells)} columns, but the header has {len(header)}"
    needed = {name: cells[header.index(name)] for name in _REQUIRED}
    empty = [name for name, cell in needed.items() if not cell]
    if empty:
        return f"{', '.join(empty)} is missing"
    # Line breaks and control characters would break tables and messages.
    for name, cell in needed.items():
        bad = next((c for c in cell if unicodedata.category(c) in _UNPRINTABLE), None)
        if bad is not None:
            return f"{name} has a line break or another character that cannot be shown, {bad!r}"
    return ""


def _row(folder: Path, line: int, values: dict[str, str]) -> DeviceRow:
    # Names that look the same are the same, however the keyboard composed them. Paths are left as
    # they are, since file systems distinguish the forms.
    same = {n: _composed(v) for n, v in values.items()}
    return DeviceRow(
        line=line,
        recording=_resolved(folder, values["recording"]),
        written=values["recording"],
        device=same["device"],
        label=same["label"],
        columns={name: value for name, value in same.items() if name not in _REQUIRED},
        opening=_opening(same),
    )


def _opening(values: dict[str, str]) -> dict[str, Any]:
    """Read the columns that say how a recording is opened; empty cells say nothing."""
    opening: dict[str, Any] = {name: values[name] for name in _OPENING if values.get(name)}
    for name in _NUMBERS:
        if name in opening:
            try:
                opening[name] = float(opening[name])
            except ValueError:
                raise InputError(f"{name} must be a number, got {opening[name]!r:.80}") from None
    OpeningOptions(**opening)  # refuses what is out of range
    return opening


def _composed(text: str) -> str:
    spaces = (" " if unicodedata.category(c) == "Zs" else c for c in text)
    return unicodedata.normalize("NFC", "".join(spaces))


def _resolved(folder: Path, written: str) -> Path:
    given = as_path(written)
    path = given if isinstance(given, RemotePath) else folder / given
    if isinstance(path, RemotePath):
        resolved: Path = path.resolve()
        return resolved
    try:
        return (path if path.exists() else _composed_otherwise(path)).resolve()
    except (OSError, RuntimeError):  # links in a circle, or a name too long: there is no such file
        return path


def _composed_otherwise(path: Path) -> Path:
    """Find a path whose accents are composed otherwise on disk, as after a Mac's zip."""
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        here = found / part
        if not here.exists() and found.is_dir():
            same = [one for one in found.iterdir() if _composed(one.name) == _composed(part)]
            here = same[0] if len(same) == 1 else here
        found = here
    return found


def _missing(devices: DevicesFile) -> list[str]:
    return [
        f"{devices.path}, line {row.line}: no such recording: {row.written[:200]} "
        "(paths are relative to this file)"
        for row in devices.rows
        if not _exists(row.recording)
    ]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _repeated(devices: DevicesFile) -> list[str]:
    problems = []
    first: dict[tuple[Any, ...], DeviceRow] = {}
    for row in devices.rows:
        before = first.setdefault((row.recording, *map(row.opening.get, _WHICH)), row)
        if before is row:
            continue
        where = f"{devices.path}, line {row.line}: recording {row.name}"
        if before.label != row.label:
            problems.append(
                f"{where} has two labels, {before.label} (line {before.line}) and {row.label}"
            )
        else:
            problems.append(f"{where} is already in line {before.line}")
    return problems

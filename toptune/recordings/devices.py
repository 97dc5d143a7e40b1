"""The devices file: the device and the label of each recording.

It is a CSV file with the columns ``recording,device,label`` and any further ones, with paths
relative to itself. All its problems are reported at once, each with its line.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toptune.errors import InputError, InputErrors
from toptune.machine.fingerprint import require_regular

_REQUIRED = ("recording", "device", "label")
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


def read_devices(path: Path) -> DevicesFile:
    """Read and check a devices file.

    It is UTF-8 with or without a byte-order mark. Columns are separated by commas, or by
    semicolons, as German spreadsheets do. Blank lines and spaces around cells are ignored. A device
    may have several recordings and labels.

    Raises
    ------
    InputErrors
        Lists all problems of rows, with their lines.
    InputError
        The file cannot be read, or its header lacks a needed column.
    """
    path = Path(path)
    require_regular(path, folder=False)
    table = _records(path, _text(path))
    try:
        header = [_composed(name) for name in next(table)[1]]
    except StopIteration:
        raise InputError(f"{path}: the file is empty; it needs {','.join(_REQUIRED)}") from None
    _check_header(path, header)
    rows: list[DeviceRow] = []
    problems: list[str] = []
    for line, cells in table:
        problem = _problem(cells, header)
        if problem:
            problems.append(f"{path}, line {line}: {problem}")
        else:
            rows.append(_row(path.parent, line, dict(zip(header, cells, strict=True))))
    if not rows and not problems:
        raise InputError(f"{path}: no recordings in it, only the header")
    devices = DevicesFile(path=path, rows=tuple(rows))
    problems += _missing(devices) + _repeated(devices)
    if problems:
        raise InputErrors(problems)
    return devices


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        # -sig: spreadsheets begin the file with a byte-order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8 text; save the table as 'CSV UTF-8'"
        ) from None


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with the line that it starts on."""
    first = text.split("\n", 1)[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    before = 0
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            if any(cells):
                yield before + 1, cells
            before = reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}, line {before + 1}: not a CSV table ({error})") from None


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise InputError(
            f"{path}, line 1: no column {', '.join(missing)}; the header is "
            f"{','.join(header)!r:.200} and needs {','.join(_REQUIRED)}"
        )
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        shown = f"column {repeated[0]!r:.80} is there twice"
        raise InputError(f"{path}, line 1: {shown if repeated[0] else 'columns without a name'}")
    if "" in header:
        raise InputError(f"{path}, line 1: column {header.index('') + 1} has no name")


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
        recording=_resolved(folder / values["recording"]),
        written=values["recording"],
        device=same["device"],
        label=same["label"],
        columns={name: value for name, value in same.items() if name not in _REQUIRED},
    )


def _composed(text: str) -> str:
    spaces = (" " if unicodedata.category(c) == "Zs" else c for c in text)
    return unicodedata.normalize("NFC", "".join(spaces))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle, or a name too long: there is no such file
        return path


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
    first: dict[Path, DeviceRow] = {}
    for row in devices.rows:
        before = first.setdefault(row.recording, row)
        if before is row:
            continue
        where = f"{devices.path}, line {row.line}: recording {row.written}"
        if before.label != row.label:
            problems.append(
                f"{where} has two labels, {before.label} (line {before.line}) and {row.label}"
            )
        else:
            problems.append(f"{where} is already in line {before.line}")
    return problems

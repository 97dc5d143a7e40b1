"""Spikes as a table, one spike per line in any order, as users and instruments write them.

toptune's own form has the columns ``time_s,channel`` and, optionally, ``peak_to_peak_uv`` and
``well``; ``time_ms``, ``time_us`` or ``sample`` may stand in the place of ``time_s``. The spike
lists of Axion's AxIS and of MCS's Multiwell-Analyzer are read as they are exported. Capitals in
column names do not matter; `toptune.recordings.text` says how tables may be written.

Lines ``# name=value`` before the header state what a table cannot say otherwise: ``time_unit``,
``sampling_rate_hz``, ``duration_s``, ``start_s`` and ``channels`` (names of all electrodes).
"""

from __future__ import annotations

import difflib
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import LONGEST_S, OpeningOptions, TimeUnit
from toptune.recordings.text import TableError, TableHead, encoding_of, not_text, read_head
from toptune.recordings.trains import (
    DEFAULT_SAMPLING_RATE_HZ,
    Segment,
    SpikeTrains,
    assumed_rate,
    length_of_spikes,
    natural_key,
    sort_spikes,
)
from toptune.recordings.wells import SILENT, well_name

# The largest arrays have 26,400 electrodes.
_MOST_CHANNELS = 100_000
_OWN = ("time_s", "channel")
_AMPLITUDE = "peak_to_peak_uv"
_UNITS: dict[str, TimeUnit] = {
    "time_s": "s", "time_ms": "ms", "time_us": "us", "sample": "samples",
}  # fmt: skip
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}
_STATED = ("time_unit", "sampling_rate_hz", "duration_s", "start_s")


@dataclass(frozen=True)
class _Columns:
    """Where the columns of a table stand, and their units."""

    kind: str
    time: int
    channel: int
    well: int | None = None
    amplitude: int | None = None
    unit: TimeUnit | None = None  # of times; None where the user may say otherwise
    amplitude_uv: float = 1.0  # microvolts in a unit of the amplitude
    # Lines without a time and a channel belong to a block of notes beside the spikes.
    has_notes: bool = False


def _columns(header: Sequence[str]) -> _Columns | None:
    """Recognise a table by its header; None if it is of another kind."""
    names = [name.strip().strip('"').casefold().replace("\u03bc", "\u00b5") for name in header]
    where = {name: k for k, name in reversed(list(enumerate(names)))}
    if {"time (s)", "electrode"} <= where.keys():  # Axion
        return _Columns(
            "axion_spike_list", where["time (s)"], where["electrode"],
            amplitude=where.get("amplitude(mv)", where.get("amplitude (mv)")),
            unit="s", amplitude_uv=1e3, has_notes=True,
        )  # fmt: skip
    if {"timestamp [\u00b5s]", "channel label", "well label"} <= where.keys():  # MCS
        return _Columns(
            "mcs_spike_list", where["timestamp [\u00b5s]"], where["channel label"],
            well=where["well label"], amplitude=where.get("peak-to-peak amplitude [pv]"),
            unit="us", amplitude_uv=1e-6,
        )  # fmt: skip
    times = [name for name in _UNITS if name in where]
    if "channel" not in where or not times:
        return None
    # A column time_s may hold other units by mistake, which `time_unit` then puts right.
    unit = None if times[0] == "time_s" else _UNITS[times[0]]
    return _Columns(
        "csv", where[times[0]], where["channel"], where.get("well"), where.get(_AMPLITUDE), unit
    )


def spike_table_kind(path: Path) -> str | None:
    """Tell by its header which kind of table of spikes a text file is; None if it is none."""
    try:
        # What is no text further down is refused when it is read, with its line.
        with _text(path, errors="replace") as stream:
            head = read_head(stream, lambda header: _columns(header) is not None)
    except UnicodeError:
        return None
    found = None if head is None else _columns(head.header)
    return None if found is None else found.kind


def read_spike_csv(path: Path, options: OpeningOptions | None = None) -> SpikeTrains:
    """Read a table of spikes; messages name the line.

    Times are rounded to the nearest sample. Several spikes of a channel at the same sample are
    kept, as several units may fire at once. Channels are sorted in the natural order of their
    names; amplitudes are NaN if the table has none. Columns that are not known are ignored, but one
    that looks like a misspelt ``peak_to_peak_uv`` is refused. Without a stated length, the
    recording ends with the second of its last spike.
    """
    table = _Table(path)
    facts = _agreed(table, options or OpeningOptions())
    rate = float(facts.sampling_rate_hz or DEFAULT_SAMPLING_RATE_HZ)
    time_s = _seconds(table, facts, rate)
    notes: tuple[str, ...] = ()
    duration_s = facts.duration_s
    if duration_s is None:
        # Rounded to a sample first, which may be that of the next second.
        last_s = float(np.rint(time_s.max() * rate) / rate) if len(time_s) else None
        duration_s, note = length_of_spikes(path, last_s)
        notes = (note,)
    if facts.time_unit == "samples" and facts.sampling_rate_hz is None:
        notes = (*notes, assumed_rate(rate))
    sample = np.rint(time_s * rate).astype(np.int64)
    n_samples = round(duration_s * rate)
    _refuse(table, time_s, sample >= n_samples, f"lies beyond the recording's {duration_s:g} s")
    channel, labels = _natural_channels(table)
    return SpikeTrains(
        spikes=sort_spikes(sample, channel, np.frombuffer(table.amplitude).astype(np.float32)),
        channel_labels=labels or ("1",),
        sampling_rate_hz=rate,
        segments=(Segment(0, n_samples, 0.0),),
        threshold_uv=np.full(max(1, len(labels)), np.nan, np.float32),
        notes=notes if labels else (*notes, SILENT),
    )


@contextmanager
def _text(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    with path.open("rb") as file:
        encoding = encoding_of(file.read(4))
    # -sig: a byte-order mark is no part of the first column's name.
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    with path.open(encoding=encoding, errors=errors, newline="") as stream:
        yield stream


@dataclass
class _Table:
    """The columns of the file, one element per spike, in arrays that grow compactly."""

    path: Path
    time: array[float] = field(default_factory=lambda: array("d"))
    amplitude: array[float] = field(default_factory=lambda: array("d"))
    channel: array[int] = field(default_factory=lambda: array("i"))
    line: array[int] = field(default_factory=lambda: array("q"))
    labels: dict[str, int] = field(default_factory=dict)
    decimal: str = ""  # the mark of this table, once a number has shown it

    def __post_init__(self) -> None:
        try:
            with _text(self.path) as stream:
                head = read_head(stream, lambda header: _columns(header) is not None)
                if head is None:
                    raise InputError(f"{self.path}, line 1: no columns {' and '.join(_OWN)}")
                self.head = head
                self._read(head, stream)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: {not_text(error.encoding)}") from None
        except TableError as error:
            raise self._error(error.line, str(error)) from None

    def _read(self, head: TableHead, stream: TextIO) -> None:
        columns = self.columns = _checked_columns(self.path, head)
        for name in head.values.get("channels", "").replace(";", ",").split(","):
            if name.strip():
                self.labels.setdefault(name.strip(), len(self.labels))
        needed = max(columns.time, columns.channel, columns.well or 0)
        for line, cells in head.rows(stream):
            if columns.has_notes and not any(cells[columns.time : columns.time + 1]):
                continue
            if len(cells) <= needed or (len(cells) != len(head.header) and not columns.has_notes):
                raise self._error(
                    line, f"{len(cells)} columns, but the header has {len(head.header)}"
                )
            self.time.append(self._time(line, cells[columns.time]))
            self.amplitude.append(self._amplitude(line, cells))
            label = self._label(line, cells)
            self.channel.append(self.labels.setdefault(label, len(self.labels)))
            if len(self.labels) > _MOST_CHANNELS:
                raise self._error(
                    line, f"more than {_MOST_CHANNELS} channels: is it a column of names?"
                )
            self.line.append(line)

    def _label(self, line: int, cells: list[str]) -> str:
        at = self.columns
        label = cells[at.channel].strip()
        if not label:
            raise self._error(line, "channel is missing")
        if at.well is None:
            return label
        well = cells[at.well].strip()
        if not well:
            raise self._error(line, "well is missing")
        return f"{well_name(well)}_{label}"

    def _time(self, line: int, cell: str) -> float:
        name = self.head.header[self.columns.time]
        value = self._number(line, name, cell)
        if not 0 <= value < math.inf:
            raise self._error(line, f"{name} must be a finite number from 0 up, got {cell.strip()}")
        return value

    def _amplitude(self, line: int, cells: list[str]) -> float:
        at = self.columns.amplitude
        if at is None or at >= len(cells):
            return math.nan
        name = self.head.header[at]
        value = self._number(line, name, cells[at])
        if self.columns.kind != "csv":
            # Instruments give the sign of the larger peak, too.
            value = abs(value) or math.nan
        elif not 0 < value < math.inf:
            raise self._error(line, f"{name} must be finite and above 0, got {cells[at].strip()}")
        return value * self.columns.amplitude_uv

    def _number(self, line: int, name: str, cell: str) -> float:
        """Read a number; a comma may mark decimals where commas do not separate columns."""
        text = cell
        if self.head.separator != "," and cell.count(",") == 1 and "." not in cell:
            text = cell.replace(",", ".")
        # float() also accepts 1_000 and digits of other scripts, which no program writes.
        try:
            value = float(text if cell.isascii() and "_" not in cell else "no number")
        except ValueError:
            hint = " (decimals need a point)" if "," in cell else ""
            raise self._error(
                line, f"{name} must be a number, got {cell.strip()[:40]!r}{hint}"
            ) from None
        self._check_decimal(line, cell)
        return value

    def _check_decimal(self, line: int, cell: str) -> None:
        """Refuse 1,500 beside 1.5, where a comma may not mark decimals after all."""
        mark = "," if "," in cell else "." if "." in cell else self.decimal
        if self.decimal and mark != self.decimal:
            raise self._error(
                line,
                f"{cell.strip()} has decimals after {mark!r}, other numbers after {self.decimal!r}",
            )
        self.decimal = mark

    def _error(self, line: int, problem: str) -> InputError:
        return InputError(f"{self.path}, line {line}: {problem}")


def _checked_columns(path: Path, head: TableHead) -> _Columns:
    columns = _columns(head.header)
    assert columns is not None  # the header was found by its columns
    names = Counter(name.casefold() for name in head.header)
    where = f"{path}, line {head.line}"
    for at in (columns.time, columns.channel, columns.well, columns.amplitude):
        if at is not None and names[head.header[at].casefold()] > 1:
            raise InputError(f"{where}: more than one column {head.header[at]}")
    if columns.kind == "csv":
        times = [name for name in head.header if name.casefold() in _UNITS]
        if len(times) > 1:
            raise InputError(f"{where}: columns {' and '.join(times)} both give times: keep one")
        if columns.amplitude is None:
            for name in difflib.get_close_matches(_AMPLITUDE, map(str.casefold, head.header), n=1):
                raise InputError(f"{where}: unknown column {name}; is it {_AMPLITUDE}?")
    return columns


def _agreed(table: _Table, options: OpeningOptions) -> OpeningOptions:
    """Join what the file states and what the user says, which must not contradict it."""
    stated: dict[str, Any] = {n: table.head.values[n] for n in _STATED if n in table.head.values}
    for name in stated.keys() - {"time_unit"}:
        try:
            stated[name] = float(stated[name])
        except ValueError:
            raise InputError(
                f"{table.path}: the line '# {name}=' must give a number, got {stated[name]!r:.60}"
            ) from None
    if table.columns.unit is not None:
        stated["time_unit"] = table.columns.unit
    given = {name: getattr(options, name) for name in _STATED}
    for name, value in stated.items():
        if given[name] is not None and given[name] != value:
            raise InputError(
                f"{table.path}: states {name} = {value}, not the {given[name]} given: leave"
                f" `{name}` out"
            )
    try:
        return OpeningOptions(**{**given, **stated})
    except InputError as error:
        raise InputError(f"{table.path}: {error}") from None


def _seconds(table: _Table, facts: OpeningOptions, rate: float) -> NDArray[np.float64]:
    """Return the spikes' times in seconds since the recording's start, (n,) float64."""
    unit = facts.time_unit or "s"
    # Division by a whole number is exact where multiplication by 0.001 is not.
    time_s = np.frombuffer(table.time) / (rate if unit == "samples" else _PER_SECOND[unit])
    start_s = facts.start_s or 0.0
    _refuse(table, time_s, time_s < start_s, f"is before the start at {start_s:g} s")
    late = f"is later than {LONGEST_S:g} s: in which unit are the times? give it by `time_unit`"
    _refuse(table, time_s, time_s - start_s > LONGEST_S, late)
    return np.asarray(time_s - start_s)


def _refuse(
    table: _Table, time_s: NDArray[np.float64], bad: NDArray[np.bool_], problem: str
) -> None:
    if bad.any():
        i = int(np.argmax(bad))
        raise InputError(f"{table.path}, line {table.line[i]}: {time_s[i]:g} s {problem}")


def _natural_channels(table: _Table) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    labels = sorted(table.labels, key=natural_key)
    row_of = np.empty(len(labels), np.int32)
    for row, label in enumerate(labels):
        row_of[table.labels[label]] = row
    return row_of[np.frombuffer(table.channel, np.int32)], tuple(labels)

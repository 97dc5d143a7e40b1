"""Spikes as a CSV table: ``time_s,channel`` and, optionally, ``peak_to_peak_uv``.

The file is in UTF-8, with one spike per line in any order, times in seconds since the recording's
start and channels by any label. Channels are sorted in the natural order of their labels, and
amplitudes are NaN if the file has none.
"""

from __future__ import annotations

import csv
import difflib
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.trains import LONGEST_S, Segment, SpikeTrains, natural_key, sort_spikes

_REQUIRED = ("time_s", "channel")
_AMPLITUDE = "peak_to_peak_uv"
_HEAD_BYTES = 4096
# The largest arrays have 26,400 electrodes.
_MOST_CHANNELS = 100_000


def looks_like_spike_csv(path: Path) -> bool:
    """Tell whether a file's first line is a header with ``time_s`` and ``channel``."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).split(b"\n", 1)[0]
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    names = [name.strip().strip('"') for name in text.split(_delimiter(text))]
    return all(name in names for name in _REQUIRED)


def read_spike_csv(
    path: Path, *, sampling_rate_hz: float, duration_s: float | None = None
) -> SpikeTrains:
    """Read a table of spikes.

    Columns are separated by commas or semicolons. Other columns are ignored, but one that looks
    like a misspelt ``peak_to_peak_uv`` is refused. Times are rounded to the nearest sample. Several
    spikes of a channel at the same sample are kept, as several units may fire at once. The duration
    is, if None, the last spike's time rounded up to a whole second. Messages name the line.
    """
    table = _Table(path)
    if not table.time_s:
        raise InputError(f"{path}: no spikes in it, only the header")
    time_s = np.frombuffer(table.time_s)
    late = f"is later than {LONGEST_S:g} s: times are in seconds"
    _refuse(path, table, time_s > LONGEST_S, time_s, late)
    sample = np.rint(time_s * sampling_rate_hz).astype(np.int64)
    if duration_s is None:
        duration_s = math.floor(sample.max() / sampling_rate_hz) + 1.0
    n_samples = round(duration_s * sampling_rate_hz)
    beyond = f"lies beyond the recording's {duration_s:g} s"
    _refuse(path, table, sample >= n_samples, time_s, beyond)
    channel, labels = _natural_channels(table)
    return SpikeTrains(
        spikes=sort_spikes(sample, channel, np.frombuffer(table.amplitude).astype(np.float32)),
        channel_labels=labels,
        sampling_rate_hz=sampling_rate_hz,
        segments=(Segment(0, n_samples, 0.0),),
        threshold_uv=np.full(len(labels), np.nan, np.float32),
    )


@dataclass
class _Table:
    """The columns of the file, one element per spike, in arrays that grow compactly."""

    path: Path
    time_s: array[float] = field(default_factory=lambda: array("d"))
    amplitude: array[float] = field(default_factory=lambda: array("d"))
    channel: array[int] = field(default_factory=lambda: array("i"))
    line: array[int] = field(default_factory=lambda: array("q"))
    labels: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                first = file.readline()
                file.seek(0)
                reader = csv.reader(file, delimiter=_delimiter(first), strict=True)
                self._read(_numbered(reader))
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: not UTF-8 text; save it as 'CSV UTF-8'") from None
        except csv.Error as error:
            raise InputError(f"{self.path}: not a CSV table ({error})") from None

    def _read(self, records: Iterator[tuple[int, list[str]]]) -> None:
        header = _checked_header(self.path, next(records, (1, []))[1])
        at_time, at_channel = (header.index(name) for name in _REQUIRED)
        at_amplitude = header.index(_AMPLITUDE) if _AMPLITUDE in header else -1
        for line, cells in records:
            if len(cells) != len(header):
                raise self._error(line, f"{len(cells)} columns, but the header has {len(header)}")
            label = cells[at_channel].strip()
            if not label:
                raise self._error(line, "channel is missing")
            self.time_s.append(self._number(line, "time_s", cells[at_time]))
            known = at_amplitude >= 0
            self.amplitude.append(
                self._number(line, _AMPLITUDE, cells[at_amplitude]) if known else math.nan
            )
            self.channel.append(self.labels.setdefault(label, len(self.labels)))
            if len(self.labels) > _MOST_CHANNELS:
                raise self._error(
                    line, f"more than {_MOST_CHANNELS} channels: is it a column of names?"
                )
            self.line.append(line)

    def _number(self, line: int, name: str, cell: str) -> float:
        try:
            # float() also accepts 1_000 and digits of other scripts, which no program writes.
            value = float(cell if cell.isascii() and "_" not in cell else "no number")
        except ValueError:
            hint = " (decimals need a point)" if "," in cell else ""
            shown = f"{cell.strip()[:40]!r}{hint}"
            raise self._error(line, f"{name} must be a number, got {shown}") from None
        zero = value == 0 and name == "time_s"
        if not (0 < value < math.inf or zero):
            rule = "finite and above 0" if name == _AMPLITUDE else "a finite number from 0 up"
            raise self._error(line, f"{name} must be {rule}, got {cell.strip()}")
        return value

    def _error(self, line: int, problem: str) -> InputError:
        return InputError(f"{self.path}, line {line}: {problem}")


def _delimiter(first_line: str) -> str:
    return ";" if ";" in first_line and "," not in first_line else ","


def _numbered(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not blank, each with the line that it ends on."""
    for record in reader:
        if any(cell.strip() for cell in record):
            yield reader.line_num, record  # type: ignore[attr-defined]  # csv.reader's own type is private


def _checked_header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    for name in _REQUIRED:
        if header.count(name) != 1:
            shown = "no column" if name not in header else "more than one column"
            raise InputError(f"{path}, line 1: {shown} {name}; it needs {','.join(_REQUIRED)}")
    if header.count(_AMPLITUDE) > 1:
        raise InputError(f"{path}, line 1: more than one column {_AMPLITUDE}")
    if _AMPLITUDE not in header:
        for name in difflib.get_close_matches(_AMPLITUDE, header, n=1):
            raise InputError(f"{path}, line 1: unknown column {name}; is it {_AMPLITUDE}?")
    return header


def _refuse(
    path: Path, table: _Table, bad: NDArray[np.bool_], time_s: NDArray[np.float64], problem: str
) -> None:
    if bad.any():
        i = int(np.argmax(bad))
        raise InputError(f"{path}, line {table.line[i]}: {time_s[i]:g} s {problem}")


def _natural_channels(table: _Table) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    labels = sorted(table.labels, key=natural_key)
    row_of = np.empty(len(labels), np.int32)
    for row, label in enumerate(labels):
        row_of[table.labels[label]] = row
    return row_of[np.frombuffer(table.channel, np.int32)], tuple(labels)

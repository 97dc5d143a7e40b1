"""MCS HDF5 files of protocol RawData, as microvolts.

McsPyDataTools reads the structure. It reads tables whole, prints, and asserts on what it does not
expect, so all that it will read is checked first. The samples are read by `hdf5_chunks`, with each
channel's own ConversionFactor, Exponent, ADZero and Tick, and without the reference electrode.
"""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.remote import as_path, for_hdf5
from toptune.recordings.hdf5_guard import (
    check_all_heaps,
    check_heaps,
    check_links,
    check_stored,
    has_variable_text,
    open_hdf5,
)
from toptune.recordings.trains import Segment, check_labels, check_length, natural_key
from toptune.recordings.unknown import is_hdf5
from toptune.recordings.voltage import OpenFile
from toptune.recordings.wells import choose, in_well, rows_of_culture, well_name, well_of_plate

if TYPE_CHECKING:
    from toptune.recordings.hdf5_chunks import ChunkedVoltage

_REFERENCE = re.compile(r"^(ref|reference|gnd|ground)\b", re.IGNORECASE)
# As in 24W300/30G-288, a plate of 24 wells.
_PLATE = re.compile(r"(?<!\d)(6|12|24|48|72|96)\s?-?W", re.IGNORECASE)
_FILTERED = re.compile(r"filter", re.IGNORECASE)
# What McsPyDataTools raises for files it does not expect.
_SURPRISES = (
    AssertionError, AttributeError, KeyError, IndexError, MemoryError, OSError, OverflowError,
    RuntimeError, TypeError, UnicodeDecodeError, ValueError,
)  # fmt: skip
# The most rows of the tables of an analog stream, which are read whole. The largest arrays have
# 26,400 electrodes; a gap every 12 ms for 20 minutes makes 100,000 stretches.
_TABLES = {"InfoChannel": 30_000, "ChannelDataTimeStamps": 100_000}
_TABLE_BYTES = 16 * 2**20


def is_mcs(path: Path) -> bool:
    """Tell whether a file is MCS's, or an HDF5 file that is damaged or locked: opening tells."""
    if not is_hdf5(path):
        return False
    try:
        with h5py.File(for_hdf5(path), "r") as file:
            return "McsHdf5ProtocolType" in file.attrs or "Data" in file
    except (OSError, RuntimeError, KeyError):
        return True


class Channels(NamedTuple):
    """The samples of a stream (rows, samples), and (n,) each electrode's row and scale."""

    dataset: Any
    rows: NDArray[np.int64]
    gain_uv: NDArray[np.float64]  # microvolts = (value - zero) * gain_uv
    zero: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Part:
    """One Recording_N of the file: its samples, and the index of its first sample among all."""

    name: str
    voltage: ChunkedVoltage
    first_sample: int
    # First index, number of samples, time of the first in microseconds.
    stretches: tuple[tuple[int, int, int], ...]
    start_us: int


class McsRecording(OpenFile):
    """An open MCS recording: a context manager, and a `VoltageRecording`.

    Parameters
    ----------
    path
        An HDF5 file written by MCS's program, or in its format.
    stream
        Label of the electrode stream to read, or a part that no other label has; needed where not
        exactly one stream holds raw data.

    Raises
    ------
    InputError
        The file is damaged or not an MCS recording, or not exactly one stream could be meant; the
        message names the streams.
    """

    kind = "mcs"
    notes: tuple[str, ...] = ()  # what was assumed or left out: nothing

    def __init__(self, path: Path, stream: str | None = None, well: str | None = None) -> None:
        self.path = as_path(path)
        self._well = well
        self.well: str | None = None  # what was chosen of several
        self._file = self._open()
        try:
            self._read_structure(stream)
        except InputError:
            self.close()
            raise
        except _SURPRISES as error:
            self.close()
            raise InputError(
                f"{self.path}: an HDF5 file, but not a recording as MCS's programs write it"
                f" ({type(error).__name__}: {' '.join(str(error).split()) or 'unexpected layout'}):"
                " export it again from the program that recorded it"
            ) from None

    def _open(self) -> Any:
        return open_hdf5(self.path)

    def _read_structure(self, stream: str | None) -> None:
        check_structure(self._file, self.path)
        raw = _mcspy_raw_data(self.path)
        try:
            self.program = f"{raw.program_name} {raw.program_version}".strip()
            self.date = raw.clr_date
            self.layout = raw.mea_name
            check_labels(self.path, (self.program, self.date, self.layout))
            recordings = raw.recordings or {}
            if not recordings:
                raise InputError(f"{self.path}: the file holds no Recording_N")
            chosen = [
                (f"Recording_{number}", recordings[number].timestamp, _analog(recordings[number]))
                for number in sorted(recordings)
            ]
            label = choose_stream(self.path, chosen[0][0], chosen[0][2], stream)
            self.stream_label = label
            self._parts = self._read_parts(label, chosen)
        finally:
            raw.h5_file.close()
        self.segments = _segments(self.path, self._parts, self.sampling_rate_hz)
        check_length(self.path, self.segments, self.sampling_rate_hz)
        self.n_samples = sum(p.voltage.n_samples for p in self._parts)

    def _read_parts(self, label: str, chosen: list[tuple[str, Any, list[Any]]]) -> list[_Part]:
        parts: list[_Part] = []
        first_sample = 0
        for name, timestamp_us, streams in chosen:
            matching = [s for s in streams if s.label.strip() == label]
            if len(matching) != 1:
                raise InputError(
                    f"{self.path}: {name} has {len(matching)} streams named {label!r}, where one is"
                    " needed: choose another by `stream`"
                )
            # Imported here, so that recognising a file does not load compiled code.
            from toptune.recordings.hdf5_chunks import ChunkedVoltage

            channels = self._read_stream(name, matching[0], first=not parts)
            voltage = ChunkedVoltage(channels.dataset, self.path, *channels[1:])
            rows = stretches(self.path, name, matching[0].timestamp_index, voltage.n_samples)
            parts.append(_Part(name, voltage, first_sample, rows, int(timestamp_us)))
            first_sample += voltage.n_samples
        return parts

    def _read_stream(self, name: str, stream: Any, *, first: bool) -> Channels:
        infos = sorted(stream.channel_infos.values(), key=lambda info: int(info.row_index))
        labels = [str(info.label).strip() for info in infos]
        used = [k for k, label in enumerate(labels) if not _REFERENCE.match(label)]
        if not used:
            raise InputError(f"{self.path}: {name} has no electrode beside the reference")
        used = self._of_one_culture(infos, used)
        dataset = self._file[stream.channel_data.name]
        rows = np.array([int(infos[k].row_index) for k in used], np.int64)
        _check_rows(self.path, dataset, [int(info.row_index) for info in infos])
        _check_different(self.path, [infos[k] for k in used])
        units = {str(infos[k].get_field("Unit")).strip() for k in used}
        if units != {"V"}:
            raise InputError(
                f"{self.path}: stream {stream.label.strip()!r} is in {'/'.join(sorted(units))},"
                " not in volts: choose an electrode stream by `stream`"
            )
        ticks = {int(infos[k].get_field("Tick")) for k in used}
        if len(ticks) != 1 or min(ticks) < 1:
            raise InputError(
                f"{self.path}: the channels of {stream.label.strip()!r} have ticks of"
                f" {sorted(ticks)} us, where one above 0 is needed"
            )
        chosen = [labels[k] for k in used]
        electrodes = tuple(chosen if self.well is None else map(in_well, chosen))
        check_labels(self.path, (*labels, stream.label))
        rate = 1e6 / ticks.pop()
        if first:
            self.channel_labels, self.sampling_rate_hz = electrodes, rate
            self.reference_labels = tuple(label for label in labels if _REFERENCE.match(label))
        elif (electrodes, rate) != (self.channel_labels, self.sampling_rate_hz):
            raise InputError(
                f"{self.path}: {name} has other electrodes or another rate than the first recording"
                " of the file: split the file, one recording each"
            )
        fields = [
            [float(infos[k].get_field(f)) for k in used]
            for f in ("ConversionFactor", "Exponent", "ADZero")
        ]
        factor, exponent, zero = np.array(fields)
        with np.errstate(over="ignore", invalid="ignore"):
            # The exponent is that of volts; a volt is 10**6 microvolts.
            gain_uv = factor * 10.0 ** (exponent + 6)
        check_gains(self.path, electrodes, gain_uv, zero)
        return Channels(dataset, rows, gain_uv, zero)

    def _of_one_culture(self, infos: list[Any], used: list[int]) -> list[int]:
        """Return those electrodes that belong to the well or array that is meant."""
        arrays: dict[str, list[int]] = {}
        for k in used:
            arrays.setdefault(self._array_name(int(infos[k].get_field("GroupID"))), []).append(k)
        if len(arrays) == 1 and well_name(self._well) not in arrays:
            self.well = self._well
            labels = [str(infos[k].label).strip() for k in used]
            return [used[row] for row in rows_of_culture(self.path, labels, self._well)]
        kind = "array" if min(arrays).isdecimal() else "well"
        self.well = choose(self.path, kind, sorted(arrays, key=natural_key), self._well)
        return arrays[self.well]

    def _array_name(self, group: int) -> str:
        """Name an array: a well where the file says on which plate, else by its number."""
        plate = _PLATE.search(self.layout)
        return (well_of_plate(group, int(plate[1])) if plate else None) or str(group)

    @property
    def chunk_samples(self) -> int:
        """Samples that are stored together; reading in multiples of it is fastest."""
        return self._parts[0].voltage.chunk_samples

    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Fill `out` (channels, samples) float32 with microvolts from sample `start` on."""
        stop = start + out.shape[1]
        if start < 0 or stop > self.n_samples:
            raise InputError(f"{self.path}: samples {start} to {stop} are not in the recording")
        for part in self._parts:
            low = max(start, part.first_sample)
            high = min(stop, part.first_sample + part.voltage.n_samples)
            if low < high:
                view = out[:, low - start : high - start]
                part.voltage.read_into(view, low - part.first_sample, pool)

    def check_whole(self) -> None:
        """Refuse a truncated file, without reading its samples."""
        for part in self._parts:
            part.voltage.check_whole()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _mcspy_raw_data(path: Path) -> Any:
    from McsPy import McsData

    # The library prints every stream otherwise.
    McsData.VERBOSE = False
    # Where opening fails, its __del__ would complain on the terminal that there is none.
    McsData.RawData.h5_file = None
    return McsData.RawData(for_hdf5(path))


def _analog(recording: Any) -> list[Any]:
    streams = recording.analog_streams or {}
    return [streams[number] for number in sorted(streams)]


def choose_stream(path: Path, name: str, streams: list[Any], wanted: str | None) -> str:
    """Return the label of the electrode stream meant: the one named, or the only raw one."""
    electrode = [s for s in streams if s.data_subtype.strip() == "Electrode"]
    labels = [str(s.label).strip() for s in electrode]
    listed = ", ".join(repr(label) for label in labels)
    if not electrode:
        others = ", ".join(repr(s.label.strip()) for s in streams) or "none at all"
        raise InputError(
            f"{path}: {name} has no electrode stream (it has {others}): the voltage was not"
            " exported; export the recording again with its electrode raw data ticked"
        )
    if wanted is not None:
        exact = [label for label in labels if label == wanted.strip()]
        found = exact or [label for label in labels if wanted.strip().lower() in label.lower()]
        if len(found) != 1:
            which = f"{len(found)} electrode streams are" if found else "no electrode stream is"
            raise InputError(f"{path}: {which} named like {wanted!r}; there are {listed}")
        return found[0]
    present = {s.stream_guid for s in streams}
    raw = [
        str(s.label).strip()
        for s in electrode
        if s.source_stream_guid not in present and not _FILTERED.search(s.label)
    ]
    if len(raw) == 1:
        return raw[0]
    if raw:
        listed = ", ".join(repr(label) for label in raw)
        raise InputError(
            f"{path}: {len(raw)} electrode streams could hold the raw data: choose one of {listed}"
            " by `stream`"
        )
    raise InputError(
        f"{path}: no electrode stream holds raw data, only {listed}: to use a filtered one, name it"
        " by `stream` and turn toptune's filter off by `highpass_hz=0`"
    )


def _segments(path: Path, parts: list[_Part], sampling_rate_hz: float) -> tuple[Segment, ...]:
    """Join stretches that follow one another without a gap; time 0 is that of the first sample.

    Some programs count the time of every Recording_N from 0. One that would start before the end of
    the previous one starts at that end instead, as a segment of its own.
    """
    tick_us = 1e6 / sampling_rate_hz
    segments: list[Segment] = []
    origin_us = parts[0].start_us + parts[0].stretches[0][2]
    for part in parts:
        shift_us = 0.0
        begins_part = True
        for first, count, time_us in part.stretches:
            start_us = part.start_us + time_us - origin_us + shift_us
            if segments:
                last = segments[-1]
                end_us = (last.start_s + last.n_samples / sampling_rate_hz) * 1e6
                if begins_part and start_us < end_us:
                    shift_us = end_us - start_us
                    start_us = end_us
                if not begins_part and abs(start_us - end_us) < tick_us:
                    segments[-1] = last._replace(n_samples=last.n_samples + count)
                    continue
                if start_us < end_us:
                    raise InputError(
                        f"{path}: {part.name}: by ChannelDataTimeStamps the samples from"
                        f" {time_us / 1e6:g} s on overlap in time with those before: export the"
                        " file again"
                    )
            segments.append(Segment(part.first_sample + first, count, start_us / 1e6))
            begins_part = False
    return tuple(segments)


def check_structure(file: Any, path: Path) -> None:
    """Check all that McsPyDataTools will read, which it reads unchecked."""
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
                    f"{path}: {table.name} has {table.shape[0]} rows, more than the {rows} that"
                    " a recording can have: export the file again"
                )
        if isinstance(stream.get("ChannelData"), h5py.Dataset):
            check_stored(stream["ChannelData"], path)


def _groups(top: Any, pattern: str) -> list[Any]:
    """Find the groups below `top` whose path matches; other objects are left to the reader."""
    found = [top] if isinstance(top, h5py.Group) else []
    for part in filter(None, pattern.split("/")):
        names = [(g, n) for g in found for n in g if fnmatchcase(n, part)]
        found = [g[n] for g, n in names if g.get(n, getclass=True) is h5py.Group]
    return found


def _check_rows(path: Path, dataset: Any, rows: list[int]) -> None:
    """Check that the samples are whole numbers and that InfoChannel describes each row once."""
    if dataset.ndim != 2 or dataset.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {dataset.name} holds {dataset.dtype} of shape {dataset.shape}, where rows of"
            " whole numbers are needed: export the raw data again"
        )
    if sorted(rows) != list(range(dataset.shape[0])):
        raise InputError(
            f"{path}: {dataset.name} of shape {dataset.shape} does not fit its InfoChannel, which"
            f" describes rows {_shortened(rows)}: export the file again"
        )


def _check_different(path: Path, infos: list[Any]) -> None:
    """Refuse two electrodes with the same name on one array."""
    counts = Counter((int(i.get_field("GroupID")), str(i.label).strip()) for i in infos)
    (group, label), n = counts.most_common(1)[0]
    if n > 1:
        raise InputError(
            f"{path}: {n} electrodes of array {group} are called {label!r}: export the file again"
        )


def check_gains(
    path: Path, labels: tuple[str, ...], gain_uv: NDArray[np.float64], zero: NDArray[np.float64]
) -> None:
    """Check that every electrode's counts can be turned into microvolts."""
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
    """Check the rows of ChannelDataTimeStamps: first time in us, first index, last index.

    Returns first index, number of samples and first time of each.
    """
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

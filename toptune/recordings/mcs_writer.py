"""MCS HDF5 recordings written as the program of Multi Channel Systems lays them out.

A file has protocol ``RawData`` version 1: groups, attributes, fixed-length padded strings, chunk
shapes and filters as in files of MCS's own program. Samples are ADC counts, of which
(count - ad_zero) x conversion_factor x 10^(exponent + 6) are microvolts; they are written block by
block, so that a recording of any length fits into memory.

Chunks are shuffled and deflated here and handed to HDF5 as they are, since HDF5's own zlib would
take ten times as long as the simulation itself.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from toptune.errors import InputError

# As MCS's program declares it for each of its data sets.
_GZIP_LEVEL = 5
_CHUNK_BYTES = 64 * 1024
_NO_SOURCE = "00000000-0000-0000-0000-000000000000"
_ASCII = h5py.string_dtype("ascii")
_FILTER = [("FilterType", _ASCII), ("FilterCutOffFrequency", _ASCII), ("FilterOrder", "<i4")]
_INFO_CHANNEL = np.dtype(
    [
        *((name, "<i4") for name in ("ChannelID", "RowIndex", "GroupID")),
        *((name, _ASCII) for name in ("Label", "RawDataType", "Unit")),
        *((name, "<i4") for name in ("Exponent", "ADZero")),
        *((name, "<i8") for name in ("Tick", "ConversionFactor")),
        *((f"{kind}Pass{name}", dtype) for kind in ("High", "Low") for name, dtype in _FILTER),
    ]
)


@dataclass(frozen=True, kw_only=True)
class McsChannel:
    """One row of a stream; one ADC step is conversion_factor x 10^exponent units."""

    label: str  # the electrode's name; "Ref" marks the reference electrode
    channel_id: int  # the number by which other streams refer to it
    conversion_factor: int = 59605  # an MEA2100's, as the exponent
    exponent: int = -12
    unit: str = "V"
    ad_zero: int = 0  # the count at zero volts
    group_id: int = 0  # which array of a multi-array amplifier it belongs to


@dataclass(frozen=True, kw_only=True)
class McsStream:
    """An analog stream."""

    label: str  # what it is, such as "Data Acquisition (1) Electrode Raw Data"
    channels: tuple[McsChannel, ...]  # in the order of the rows
    tick_us: int = 100  # microseconds from one sample to the next
    sub_type: str = "Electrode"  # or "Auxiliary" or "Digital"
    # Label of the stream of the same recording that it was computed from; None for acquired data.
    source: str | None = None

    def __post_init__(self) -> None:
        if not self.channels:
            raise InputError(f"McsStream.channels of {self.label!r} must not be empty")
        if self.tick_us < 1:
            raise InputError(f"McsStream.tick_us must be 1 or above, got {self.tick_us}")


@dataclass(frozen=True, kw_only=True)
class McsHeader:
    """The header of a file; the defaults describe a simulated 60-electrode array.

    `date_text` is written as it is, in any language; ``YYYY-MM-DD`` if None.
    """

    date_text: str | None = None
    date: datetime = datetime(2026, 1, 1)
    mea_name: str = "60MEA200/30iR"
    mea_layout: str = "60MEA"
    program_name: str = "toptune simulate"
    program_version: str = "1"
    comment: str = ""


def _write_info_channel(group: Any, stream: McsStream) -> None:
    """Write the table by which counts become volts, one row per channel."""
    rows = [
        (
            *(channel.channel_id, row, channel.group_id),
            *(channel.label, "Int", channel.unit),
            *(channel.exponent, channel.ad_zero, stream.tick_us, channel.conversion_factor),
            # No hardware filter, written as the program does.
            *("", "-1", -1, "", "-1", -1),
        )
        for row, channel in enumerate(stream.channels)
    ]
    info = group.create_dataset("InfoChannel", data=np.array(rows, _INFO_CHANNEL))
    info.attrs.create("InfoVersion", 1, dtype=np.int32)


def _write_text(node: Any, name: str, text: str, width: int = 0) -> None:
    """Write a fixed-length string attribute; with a `width`, padded and ended by CR LF."""
    data = text.encode()
    if width:
        data = data.ljust(width) + b"\r\n"
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(max(1, len(data)))
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    attribute = h5py.h5a.create(node.id, name.encode(), kind, space)
    attribute.write(np.array(data, f"S{max(1, len(data))}"), kind)


def mea60_channels(conversion_factor: int = 59605, ad_zero: int = 0) -> tuple[McsChannel, ...]:
    """Describe a 60-electrode array: 8 x 8 without the corners, with 15 as the reference.

    A label is the column, then the row, both counted from 1.
    """
    labels = [
        f"{column}{row}"
        for column in range(1, 9)
        for row in range(1, 9)
        if not (column in (1, 8) and row in (1, 8))
    ]
    return tuple(
        McsChannel(
            label="Ref" if label == "15" else label,
            channel_id=number,
            conversion_factor=conversion_factor,
            ad_zero=ad_zero,
        )
        for number, label in enumerate(labels)
    )


class McsWriter:
    """A file being written, which must not exist; use it in a ``with`` statement.

    The GUIDs are made from `identity`: equal names give equal GUIDs.
    """

    def __init__(
        self, path: Path, header: McsHeader | None = None, *, identity: str = "toptune"
    ) -> None:
        self._identity = identity
        self._file = h5py.File(path, "x")
        self._recordings: list[RecordingWriter] = []
        self._write_header(header or McsHeader())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for recording in self._recordings:
                    recording.finish()
        finally:
            self._file.close()

    def add_recording(self, label: str = "", comment: str = "") -> RecordingWriter:
        """Begin the next ``Recording_N``."""
        number = len(self._recordings)
        group = self._file.create_group(f"Data/Recording_{number}")
        _write_text(group, "Comment", comment)
        _write_text(group, "Label", label)
        group.attrs.create("RecordingID", number, dtype=np.int32)
        _write_text(group, "RecordingType", "")
        group.attrs.create("TimeStamp", 0, dtype=np.int64)
        recording = RecordingWriter(group, f"{self._identity}/{number}")
        self._recordings.append(recording)
        return recording

    def _write_header(self, header: McsHeader) -> None:
        _write_text(self._file, "McsHdf5ProtocolType", "RawData")
        self._file.attrs.create("McsHdf5ProtocolVersion", 1, dtype=np.int32)
        data = self._file.create_group("Data")
        _write_text(data, "Comment", header.comment)
        _write_text(data, "Date", header.date_text or f"{header.date:%Y-%m-%d}")
        since = header.date - datetime(1, 1, 1)  # local time, without zone
        ticks = (since.days * 86_400 + since.seconds) * 10_000_000 + since.microseconds * 10
        data.attrs.create("DateInTicks", ticks, dtype=np.int64)
        _write_text(data, "FileGUID", _guid(self._identity))
        _write_text(data, "MeaLayout", header.mea_layout, 38)
        _write_text(data, "MeaName", header.mea_name, 40)
        _write_text(data, "MeaSN", "")
        _write_text(data, "ProgramName", header.program_name, 36)
        _write_text(data, "ProgramVersion", header.program_version, 33)


class RecordingWriter:
    """One ``Recording_N``; `McsWriter.add_recording` makes it."""

    def __init__(self, group: Any, identity: str) -> None:
        self._group = group
        self._identity = identity
        self._streams: list[StreamWriter] = []

    def add_stream(self, stream: McsStream, *, first_time_us: int = 0) -> StreamWriter:
        """Begin the next analog stream, whose first sample was taken at `first_time_us`."""
        group = self._group.create_group(f"AnalogStream/Stream_{len(self._streams)}")
        _write_text(group, "DataSubType", stream.sub_type)
        _write_text(group, "Label", stream.label, 42)
        source = _NO_SOURCE if stream.source is None else self._stream_guid(stream.source)
        _write_text(group, "SourceStreamGUID", source)
        _write_text(group, "StreamGUID", self._stream_guid(stream.label))
        group.attrs.create("StreamInfoVersion", 1, dtype=np.int32)
        _write_text(group, "StreamType", "Analog")
        writer = StreamWriter(group, stream, first_time_us)
        self._streams.append(writer)
        return writer

    def finish(self) -> None:
        """Write what is known only at the end: streams' last samples and the duration."""
        for stream in self._streams:
            stream.finish()
        end_us = max((stream.end_us for stream in self._streams), default=0)
        self._group.attrs.create("Duration", end_us, dtype=np.int64)

    def _stream_guid(self, label: str) -> str:
        return _guid(f"{self._identity}/{label}")


class StreamWriter:
    """One analog stream; `RecordingWriter.add_stream` makes it."""

    def __init__(self, group: Any, stream: McsStream, first_time_us: int) -> None:
        n = len(stream.channels)
        self._group = group
        self._tick_us = stream.tick_us
        self._data = _create(group, "ChannelData", (n, 0), np.int32, (n, chunk_samples(n)))
        self._pending = np.empty((n, 0), np.int32)
        self._n_written = 0
        # First time stamp and first index; the last index is known when the next part begins.
        self._parts = [(first_time_us, 0)]
        _write_info_channel(group, stream)

    @property
    def n_samples(self) -> int:
        """Samples written so far."""
        return self._n_written + self._pending.shape[1]

    @property
    def end_us(self) -> int:
        """Time of the next sample if no gap follows, in microseconds."""
        time_us, index = self._parts[-1]
        return time_us + (self.n_samples - index) * self._tick_us

    def write(self, counts: NDArray[np.int32]) -> None:
        """Append a block of (channels, samples) ADC counts, int32."""
        n = self._data.shape[0]
        if counts.dtype != np.int32 or counts.ndim != 2 or counts.shape[0] != n:
            raise ValueError(
                f"counts must be int32 of shape ({n}, samples), "
                f"got {counts.dtype} of shape {counts.shape}"
            )
        # The rest is copied, since callers reuse blocks; the whole block only if something waits.
        block = np.concatenate([self._pending, counts], axis=1) if self._pending.size else counts
        width = self._data.chunks[1]
        whole = block.shape[1] // width * width
        self._data.resize(self._n_written + whole, axis=1)
        for start in range(0, whole, width):
            self._write_chunk(self._n_written + start, block[:, start : start + width])
        self._n_written += whole
        self._pending = block[:, whole:].copy()

    def gap(self, microseconds: int) -> None:
        """Leave a gap of this length before the next sample."""
        if microseconds < 1:
            raise ValueError(f"a gap must last 1 microsecond or longer, got {microseconds}")
        resumed_us = self.end_us + microseconds
        if self.n_samples == self._parts[-1][1]:
            self._parts.pop()
        self._parts.append((resumed_us, self.n_samples))

    def finish(self) -> None:
        """Write the last, partial chunk and the time stamps."""
        n, width = self._data.chunks
        rest = self._pending.shape[1]
        if rest:
            self._data.resize(self._n_written + rest, axis=1)
            padded = np.zeros((n, width), np.int32)
            padded[:, :rest] = self._pending
            self._write_chunk(self._n_written, padded)
        self._write_time_stamps()

    def _write_chunk(self, start: int, counts: NDArray[np.int32]) -> None:
        # HDF5's shuffle filter: all first bytes, then all second bytes, and so on.
        shuffled = np.ascontiguousarray(counts).view(np.uint8).reshape(-1, 4).T.tobytes()
        # Level 1 is ten times as fast as zlib's level 5, and its files are a fifth larger.
        self._data.id.write_direct_chunk((0, start), bytes(isal_zlib.compress(shuffled, 1)))

    def _write_time_stamps(self) -> None:
        ends = [index for _, index in self._parts[1:]] + [self.n_samples]
        rows = [
            (time_us, first, end - 1)
            for (time_us, first), end in zip(self._parts, ends, strict=True)
        ]
        table = np.array([row for row in rows if row[2] >= row[1]], np.int64).reshape(-1, 3)
        stamps = _create(
            self._group, "ChannelDataTimeStamps", table.shape, np.int64, (2730, 3), grows_along=0
        )
        stamps[...] = table
        for column, name in enumerate(("FirstTimeStamp", "FirstIndex", "LastIndex")):
            _write_text(stamps, f"Column-{column}", name)


def chunk_samples(n_channels: int) -> int:
    """Return the samples per channel that MCS's program puts into a chunk of 64 KiB."""
    return max(1, _CHUNK_BYTES // (4 * n_channels))


def _create(
    group: Any,
    name: str,
    shape: tuple[int, int],
    dtype: type[np.integer[Any]],
    chunks: tuple[int, int],
    grows_along: int = 1,
) -> Any:
    maxshape = tuple(None if axis == grows_along else size for axis, size in enumerate(shape))
    return group.create_dataset(
        name,
        shape,
        dtype,
        chunks=chunks,
        maxshape=maxshape,
        compression="gzip",
        compression_opts=_GZIP_LEVEL,
        shuffle=True,
    )


def _guid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"toptune:{name}"))

"""Writing MCS HDF5 recordings as the program of Multi Channel Systems lays them out.

What enters: descriptions of streams and channels, and blocks of ADC counts, (channels, samples)
int32, so that a recording of any length never lies in memory.
What leaves: a file of protocol ``RawData`` version 1: groups, attributes, fixed-length padded
strings, chunk shapes and filters as in a file of MCS's own; microvolts are
(count - ad_zero) x conversion_factor x 10^(exponent + 6).

Chunks are shuffled and deflated here and handed to HDF5 as they are, since HDF5's own zlib would
take ten times as long as the simulation itself.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from toptune.recordings.mcs_format import McsHeader, McsStream, write_info_channel, write_text

Compressor = Literal["isal", "zlib"]

# What the program declares for each of its data sets.
GZIP_LEVEL = 5
_CHUNK_BYTES = 64 * 1024
_NO_SOURCE = "00000000-0000-0000-0000-000000000000"

# The same deflate format from both. isal's level 1 is ten times as fast and a fifth larger.
_DEFLATE: dict[Compressor, Callable[[bytes], bytes]] = {
    "isal": lambda data: bytes(isal_zlib.compress(data, 1)),
    "zlib": lambda data: zlib.compress(data, GZIP_LEVEL),
}


class McsWriter:
    """A file being written; use it in a ``with`` statement.

    Parameters
    ----------
    path
        Where to; must not exist.
    header
        What the file says about itself.
    identity
        Names the file's GUIDs: equal names, equal GUIDs.
    compressor
        ``isal`` for speed, ``zlib`` for the very sizes that MCS's program gets.
    """

    def __init__(
        self,
        path: Path,
        header: McsHeader | None = None,
        *,
        identity: str = "toptune",
        compressor: Compressor = "isal",
    ) -> None:
        self._identity = identity
        self._deflate = _DEFLATE[compressor]
        self._file = h5py.File(path, "x")
        self._n_recordings = 0
        self._open: list[RecordingWriter] = []
        self._write_header(header or McsHeader())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                for recording in self._open:
                    recording.finish()
        finally:
            self._file.close()

    def add_recording(self, label: str = "", comment: str = "") -> RecordingWriter:
        """Begin the next ``Recording_N``."""
        number = self._n_recordings
        self._n_recordings += 1
        group = self._file.create_group(f"Data/Recording_{number}")
        write_text(group, "Comment", comment)
        write_text(group, "Label", label)
        group.attrs.create("RecordingID", number, dtype=np.int32)
        write_text(group, "RecordingType", "")
        group.attrs.create("TimeStamp", 0, dtype=np.int64)
        recording = RecordingWriter(group, f"{self._identity}/{number}", self._deflate)
        self._open.append(recording)
        return recording

    def _write_header(self, header: McsHeader) -> None:
        write_text(self._file, "McsHdf5ProtocolType", "RawData")
        self._file.attrs.create("McsHdf5ProtocolVersion", 1, dtype=np.int32)
        data = self._file.create_group("Data")
        write_text(data, "Comment", header.comment)
        write_text(data, "Date", header.date_text or f"{header.date:%Y-%m-%d}")
        since = header.date - datetime(1, 1, 1)  # local time, without zone
        ticks = (since.days * 86_400 + since.seconds) * 10_000_000 + since.microseconds * 10
        data.attrs.create("DateInTicks", ticks, dtype=np.int64)
        write_text(data, "FileGUID", _guid(self._identity))
        write_text(data, "MeaLayout", header.mea_layout, 38)
        write_text(data, "MeaName", header.mea_name, 40)
        write_text(data, "MeaSN", "")
        write_text(data, "ProgramName", header.program_name, 36)
        write_text(data, "ProgramVersion", header.program_version, 33)


class RecordingWriter:
    """One ``Recording_N``; `McsWriter.add_recording` makes it."""

    def __init__(self, group: Any, identity: str, deflate: Callable[[bytes], bytes]) -> None:
        self._group = group
        self._identity = identity
        self._deflate = deflate
        self._streams: list[StreamWriter] = []

    def add_stream(self, stream: McsStream, *, first_time_us: int = 0) -> StreamWriter:
        """Begin the next analog stream, whose first sample was taken at `first_time_us`."""
        group = self._group.create_group(f"AnalogStream/Stream_{len(self._streams)}")
        write_text(group, "DataSubType", stream.sub_type)
        write_text(group, "Label", stream.label, 42)
        source = _NO_SOURCE if stream.source is None else self._stream_guid(stream.source)
        write_text(group, "SourceStreamGUID", source)
        write_text(group, "StreamGUID", self._stream_guid(stream.label))
        group.attrs.create("StreamInfoVersion", 1, dtype=np.int32)
        write_text(group, "StreamType", "Analog")
        writer = StreamWriter(group, stream, first_time_us, self._deflate)
        self._streams.append(writer)
        return writer

    def finish(self) -> None:
        """Write what is known only at the end."""
        for stream in self._streams:
            stream.finish()
        end_us = max((stream.end_us for stream in self._streams), default=0)
        self._group.attrs.create("Duration", end_us, dtype=np.int64)

    def _stream_guid(self, label: str) -> str:
        return _guid(f"{self._identity}/{label}")


class StreamWriter:
    """One analog stream; `RecordingWriter.add_stream` makes it."""

    def __init__(
        self,
        group: Any,
        stream: McsStream,
        first_time_us: int,
        deflate: Callable[[bytes], bytes],
    ) -> None:
        n = len(stream.channels)
        self._group = group
        self._tick_us = stream.tick_us
        self._deflate = deflate
        self._data = _create(group, "ChannelData", (n, 0), np.int32, (n, chunk_samples(n)))
        self._pending = np.empty((n, 0), np.int32)
        self._n_written = 0
        # first time stamp, first index; the last index is known when the next one begins
        self._parts = [(first_time_us, 0)]
        write_info_channel(group, stream)

    @property
    def n_samples(self) -> int:
        """Samples written so far."""
        return self._n_written + self._pending.shape[1]

    @property
    def end_us(self) -> int:
        """When the next sample would be taken, if there is no gap."""
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
        # A copy only where something waits; what remains is copied, since callers reuse blocks.
        block = np.concatenate([self._pending, counts], axis=1) if self._pending.size else counts
        width = self._data.chunks[1]
        whole = block.shape[1] // width * width
        self._data.resize(self._n_written + whole, axis=1)
        for start in range(0, whole, width):
            self._write_chunk(self._n_written + start, block[:, start : start + width])
        self._n_written += whole
        self._pending = block[:, whole:].copy()

    def gap(self, microseconds: int) -> None:
        """Let time pass without samples."""
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
        self._data.id.write_direct_chunk((0, start), self._deflate(shuffled))

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
            write_text(stamps, f"Column-{column}", name)


def chunk_samples(n_channels: int) -> int:
    """How many samples of each channel MCS's program puts into a chunk of 64 KiB."""
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
        compression_opts=GZIP_LEVEL,
        shuffle=True,
    )


def _guid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"toptune:{name}"))

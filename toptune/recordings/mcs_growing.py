"""MCS HDF5 files that are still being written, in HDF5's mode for one writer and many readers.

The writer opens the file with the newest format, creates all groups and tables, starts the mode
(SWMR), and flushes after each piece. Data of a piece are complete when its size shows in the file.
A row of ChannelDataTimeStamps with the time and the index of the first sample after a gap is
written before that sample; its last index does not matter while the file grows.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.remote import RemotePath
from toptune.recordings.hdf5_guard import DAMAGE, DEFLATE, InflationGuard, filter_codes
from toptune.recordings.mcs import Channels, McsRecording, check_structure, choose_stream
from toptune.recordings.trains import check_labels

# Of the superblock: its signature, its versions with flags, where they stand, and the flag that a
# file is being written so that others may read it.
_SIGNATURE, _WITH_FLAGS, _FLAGS_AT, _SWMR_WRITE = b"\x89HDF\r\n\x1a\n", (2, 3), 11, 0x04


def is_being_written(path: Path) -> bool:
    """Tell whether a file says of itself that a writer has it open and lets others read."""
    with path.open("rb") as file:
        head = file.read(_FLAGS_AT + 1)
    return (
        len(head) > _FLAGS_AT
        and head.startswith(_SIGNATURE)
        and head[8] in _WITH_FLAGS
        and bool(head[_FLAGS_AT] & _SWMR_WRITE)
    )


class GrowingMcs(McsRecording):
    """An MCS recording whose samples grow in number; read through the HDF5 library.

    Parameters
    ----------
    path, stream, well
        As of `McsRecording`. Exactly one ``Recording_N`` may be in the file.

    Raises
    ------
    InputError
        As of `McsRecording`.
    """

    _channels: Channels
    _stamps: Any | None = None

    def _open(self) -> Any:
        if isinstance(self.path, RemotePath):
            raise InputError(
                f"{self.path}: is still being written: follow it where it is written, or wait until"
                " it is whole"
            )
        try:
            return h5py.File(self.path, "r", libver="latest", swmr=True)
        except OSError as error:
            text = " ".join(str(error).split())
            raise InputError(f"{self.path}: cannot be read while it is written ({text})") from None

    def _read_structure(self, stream: str | None) -> None:
        check_structure(self._file, self.path)
        data = self._file["Data"]
        self.program = " ".join(
            text for text in (_text(data, "ProgramName"), _text(data, "ProgramVersion")) if text
        )
        self.date, self.layout = _text(data, "Date"), _text(data, "MeaName")
        check_labels(self.path, (self.program, self.date, self.layout))
        names = [name for name in data if name.startswith("Recording_")]
        if len(names) != 1:
            raise InputError(
                f"{self.path}: has {len(names)} recordings, of which only one could be growing"
            )
        analog = data[names[0]].get("AnalogStream", {})
        streams = [_Stream(group) for group in analog.values()]
        self.stream_label = choose_stream(self.path, names[0], streams, stream)
        (chosen,) = (one for one in streams if one.label.strip() == self.stream_label)
        self._channels = self._read_stream(names[0], chosen, first=True)
        self._stamps = chosen.group.get("ChannelDataTimeStamps")
        self._guard = InflationGuard(self._channels.dataset, self.path)
        self._deflated = DEFLATE in filter_codes(self._channels.dataset)
        self._parts = []
        self.segments = ()
        self.n_samples = 0

    def grown(self) -> int:
        """Look again how many samples there are."""
        dataset = self._channels.dataset
        try:
            dataset.refresh()
            self.n_samples = max(self.n_samples, int(dataset.shape[1]))
        except DAMAGE as error:
            raise self._unreadable(error) from None
        return self.n_samples

    def starts(self) -> list[tuple[int, int]]:
        """List what is known of gaps: index and time (in microseconds) of the sample after each.

        The first is that of the recording's first sample.
        """
        if self._stamps is None:
            return []
        try:
            self._stamps.refresh()
            table = np.asarray(self._stamps[...], np.int64)
        except DAMAGE as error:
            raise self._unreadable(error) from None
        if table.ndim != 2 or (table.size and table.shape[1] != 3):
            raise InputError(f"{self.path}: ChannelDataTimeStamps has shape {table.shape}")
        return [(int(first), int(time_us)) for time_us, first, _ in table.tolist()]

    def whole_until(self, start: int, stop: int) -> int:
        """Return how far samples [start, stop) are stored: a size may show before its data."""
        dataset = self._channels.dataset
        if dataset.chunks is None:
            return stop
        row_step, step = dataset.chunks
        for column in range(start // step * step, stop, step):
            for row in range(0, dataset.shape[0], row_step):
                try:
                    info = dataset.id.get_chunk_info_by_coord((row, column))
                except DAMAGE:
                    return max(start, column)
                if info.byte_offset is None:
                    return max(start, column)
                if self._deflated:
                    self._guard.check_chunk(info)
        return stop

    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Fill `out` (channels, samples) float32 with microvolts from sample `start` on."""
        del pool  # the library reads in one thread
        dataset, rows, gain_uv, zero = self._channels
        try:
            raw = dataset[:, start : start + out.shape[1]]
        except DAMAGE as error:
            raise self._unreadable(error) from None
        out[...] = (raw[rows] - zero[:, None]) * gain_uv[:, None]

    @property
    def chunk_samples(self) -> int:
        """Samples that are stored together."""
        chunks = self._channels.dataset.chunks
        return int(chunks[1]) if chunks else 4096

    def is_same_file(self) -> bool:
        """Tell whether the path still leads to the file that is open."""
        there = self.path.stat()
        here = os.fstat(self._file.id.get_vfd_handle())
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def _unreadable(self, error: Exception) -> InputError:
        said = " ".join(str(error).split())
        return InputError(f"{self.path}: cannot be read while it is written ({said})")


class _Stream:
    """A stream's group, with the names that McsPyDataTools gives what is in it."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.label = _text(group, "Label")
        self.data_subtype = _text(group, "DataSubType")
        self.stream_guid = _text(group, "StreamGUID")
        self.source_stream_guid = _text(group, "SourceStreamGUID")

    @property
    def channel_data(self) -> Any:
        return self.group["ChannelData"]

    @property
    def channel_infos(self) -> dict[int, _Info]:
        table = self.group["InfoChannel"][...]
        return {int(row["ChannelID"]): _Info(row) for row in table}


class _Info:
    """A row of InfoChannel."""

    def __init__(self, row: Any) -> None:
        self._row = row
        self.row_index = int(row["RowIndex"])
        self.label = self.get_field("Label")

    def get_field(self, name: str) -> Any:
        value = self._row[name]
        return value.decode("utf-8") if isinstance(value, bytes) else value


def _text(node: Any, name: str) -> str:
    value = node.attrs.get(name, "")
    return str(value.decode("utf-8") if isinstance(value, bytes) else value).strip()

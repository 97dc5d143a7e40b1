"""Fast reading of chunked HDF5 samples, in threads and straight into microvolts.

The HDF5 library inflates one chunk after another behind one lock. Here the library only says where
the chunks are; threads read them from the file, inflate them with ISA-L, undo HDF5's byte shuffle
and scale the values, all without the interpreter's lock. Data of other types than int32, or with
other filters, are read by the library and give the same values.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal import igzip_lib, isal_zlib
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.remote import OpenBytes, is_in_ranges
from toptune.machine.threads import channel_slices, compiled, in_threads
from toptune.recordings.hdf5_guard import (
    DAMAGE,
    DEFLATE,
    SHUFFLE,
    check_inflation,
    chunks_of,
    filter_codes,
)

# Raised for damaged data. The stub of isal declares its exception as an instance.
_DAMAGE: tuple[type[Exception], ...] = (isal_zlib.IsalError, EOFError, ValueError)  # type: ignore[assignment]

# The most float32 samples of all channels to hold at once. Chunks as wide as a recording are
# inflated again for each part that is read.
_MOST_BYTES = 64 * 2**20


class _Chunk(NamedTuple):
    row: int
    column: int
    byte_offset: int
    size: int


class ChunkedVoltage:
    """A dataset of raw samples (rows, samples) in an open file, read as microvolts in any ranges.

    The file at `path` is also read beside the library. `rows`, `gain_uv` and `zero` (channels,) are
    each channel's row and scale: microvolts = (value - zero) * gain_uv, rounded once to float32.
    """

    def __init__(
        self,
        dataset: Any,
        path: Path,
        rows: NDArray[np.int64],
        gain_uv: NDArray[np.float64],
        zero: NDArray[np.float64],
    ) -> None:
        self._dataset = dataset
        self._path = path
        self._rows = rows
        self._gain_uv = gain_uv
        self._zero = zero
        self.n_samples = int(dataset.shape[1])
        filters = _filters(dataset)
        self._fast = filters is not None
        self._shuffled, self._deflated = filters or (False, False)
        self._index: dict[tuple[int, int], _Chunk] | None = None
        self._seen = False

    @property
    def chunk_samples(self) -> int:
        """Samples per chunk of the file; reading in multiples of it inflates nothing twice."""
        if not self._dataset.chunks:
            return 4096
        widest = max(1, _MOST_BYTES // (4 * self._rows.size))
        return min(int(self._dataset.chunks[1]), widest)

    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Fill `out` (channels, samples) float32 with microvolts from sample `start` on.

        A damaged or truncated chunk is an InputError that names the file and the sample.
        """
        stop = start + out.shape[1]
        if not self._fast:
            self._read_by_library(out, start, stop)
            return
        row_step, step = self._dataset.chunks
        channel_of_row = np.full(-(-self._dataset.shape[0] // row_step) * row_step, -1, np.int64)
        channel_of_row[self._rows] = np.arange(self._rows.size)
        corners = [
            (row, column)
            for column in range(start // step * step, stop, step)
            for row in range(0, self._dataset.shape[0], row_step)
        ]
        self._find_chunks(corners)
        if not self._fast:  # as a chunk has just told
            self._read_by_library(out, start, stop)
            return
        with OpenBytes(self._path) as file:

            def some(which: slice) -> None:
                for corner in corners[which]:
                    self._read_chunk(file, corner, channel_of_row, out, start)

            # Few large tasks: with a task per chunk, threads would mostly wait for the interpreter.
            in_threads(pool, some, channel_slices(len(corners), pool))

    def _read_by_library(self, out: NDArray[np.float32], start: int, stop: int) -> None:
        if not self._seen:
            check_inflation(self._dataset, self._path)
            self._seen = True
        try:
            raw = self._dataset[:, start:stop]
        except OSError as error:
            raise self._damaged(start, str(error)) from None
        out[...] = (raw[self._rows] - self._zero[:, None]) * self._gain_uv[:, None]

    def check_whole(self) -> None:
        """Refuse a truncated file by the index of its chunks, without reading samples.

        In a file that is read in ranges the index is left alone, which lies all over it: whoever
        needs all samples reads a copy.
        """
        if not self._fast or is_in_ranges(self._path):
            return
        if self._index is None:
            self._index = self._read_index()
        n_bytes = self._path.stat().st_size
        for chunk in self._index.values():
            if chunk.byte_offset + chunk.size > n_bytes:
                raise self._damaged(chunk.column, "the file ends inside a chunk")

    def _find_chunks(self, corners: list[tuple[int, int]]) -> None:
        if is_in_ranges(self._path):
            self._index = self._look_up(corners)
        elif self._index is None:
            self._index = self._read_index()

    def _read_index(self) -> dict[tuple[int, int], _Chunk]:
        try:
            stored = chunks_of(self._dataset)
        except DAMAGE as error:
            raise self._index_damaged(error) from None
        return self._indexed(stored)

    def _look_up(self, corners: list[tuple[int, int]]) -> dict[tuple[int, int], _Chunk]:
        """Find some chunks, without the rest of the index, which is all over the file."""
        known = self._index or {}
        try:
            infos = [
                self._dataset.id.get_chunk_info_by_coord(corner)
                for corner in corners
                if corner not in known
            ]
        except DAMAGE as error:
            raise self._index_damaged(error) from None
        written = [info for info in infos if info.byte_offset is not None]
        return {**known, **self._indexed(written)}

    def _indexed(self, stored: list[Any]) -> dict[tuple[int, int], _Chunk]:
        index: dict[tuple[int, int], _Chunk] = {}
        # Deflate makes incompressible bytes hardly any longer.
        most = 2 * math.prod(self._dataset.chunks) * 4 + 1024
        for info in stored:
            if info.filter_mask != 0:  # a filter was skipped for this chunk: left to the library
                self._fast = False
            row, column = info.chunk_offset
            if info.size > most:
                raise self._damaged(column, f"a chunk claims to take {info.size} bytes")
            index[row, column] = _Chunk(row, column, info.byte_offset, info.size)
        return index

    def _index_damaged(self, error: Exception) -> Exception:
        # A server's own error says more.
        return error if isinstance(error, InputError) else self._damaged(0, str(error))

    def _read_chunk(
        self,
        file: OpenBytes,
        corner: tuple[int, int],
        channel_of_row: NDArray[np.int64],
        out: NDArray[np.float32],
        start: int,
    ) -> None:
        row_step, step = self._dataset.chunks
        row, column = corner
        channels = channel_of_row[row : row + row_step]
        n_bytes = row_step * step * 4
        assert self._index is not None
        chunk = self._index.get(corner)
        if chunk is None:  # never written: HDF5 defines it as the fill value
            fill = np.int32(self._dataset.fillvalue)
            raw = np.full(row_step * step, fill, "<i4").view(np.uint8)
            shuffled = False
        else:
            raw = self._inflate(file, chunk, n_bytes, column)
            shuffled = self._shuffled
        _scale_chunk(raw, shuffled, step, channels, self._gain_uv, self._zero, out, column - start)

    def _inflate(
        self, file: OpenBytes, chunk: _Chunk, n_bytes: int, column: int
    ) -> NDArray[np.uint8]:
        stored = file.pread(chunk.size, chunk.byte_offset)
        if len(stored) != chunk.size:
            raise self._damaged(column, "the file ends inside a chunk")
        if not self._deflated:
            plain = stored
        else:
            # Bounded, so that a malicious chunk cannot take more memory than a chunk holds.
            inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
            try:
                plain = inflater.decompress(stored, n_bytes + 1)
            except _DAMAGE as error:
                raise self._damaged(column, str(error)) from None
            if not inflater.eof:
                raise self._damaged(column, "the compressed data end too early")
        if len(plain) != n_bytes:
            raise self._damaged(column, f"a chunk holds {len(plain)} bytes instead of {n_bytes}")
        return np.frombuffer(plain, np.uint8)

    def _damaged(self, sample: int, why: str) -> InputError:
        return InputError(
            f"{self._path}: the data from sample {sample} on are damaged ({why}):"
            " copy the file again from its source"
        )


def _filters(dataset: Any) -> tuple[bool, bool] | None:
    """Return (shuffled, deflated) where this module can read the layout; None otherwise."""
    plain = (
        hasattr(os, "pread")
        and dataset.chunks is not None
        and dataset.dtype == np.dtype("<i4")
        and dataset.file.userblock_size == 0
        and hasattr(dataset.id, "chunk_iter")
    )
    if not plain:
        return None
    codes = filter_codes(dataset)
    if codes not in ([], [SHUFFLE], [DEFLATE], [SHUFFLE, DEFLATE]):
        return None
    return SHUFFLE in codes, DEFLATE in codes


@compiled()
def _scale_chunk(
    raw: NDArray[np.uint8],
    shuffled: bool,
    step: int,
    channels: NDArray[np.int64],
    gain_uv: NDArray[np.float64],
    zero: NDArray[np.float64],
    out: NDArray[np.float32],
    column: int,
) -> None:
    """Write a chunk's rows to their channels in `out`, as far as its columns reach.

    A row whose channel is -1 is left out.
    """
    values = raw.size // 4
    begin = max(0, -column)
    end = min(step, out.shape[1] - column)
    for row in range(channels.size):
        channel = channels[row]
        if channel < 0:
            continue
        gain, offset = gain_uv[channel], zero[channel]
        line = out[channel, column + begin : column + end]
        base = row * step + begin
        if shuffled:  # HDF5's shuffle stores all first bytes, then all second bytes, ...
            b0 = raw[base : base + end - begin]
            b1 = raw[values + base : values + base + end - begin]
            b2 = raw[2 * values + base : 2 * values + base + end - begin]
            b3 = raw[3 * values + base : 3 * values + base + end - begin]
            for t in range(end - begin):
                # Cast at every step: Numba widens integers to 64 bits, which do not vectorise.
                low = np.uint32(np.uint32(b0[t]) | np.uint32(np.uint32(b1[t]) << np.uint32(8)))
                high = np.uint32(np.uint32(b2[t]) | np.uint32(np.uint32(b3[t]) << np.uint32(8)))
                word = np.uint32(low | np.uint32(high << np.uint32(16)))
                line[t] = (np.float64(np.int32(word)) - offset) * gain
        else:
            words = raw.view(np.int32)[base : base + end - begin]
            for t in range(end - begin):
                line[t] = (np.float64(words[t]) - offset) * gain

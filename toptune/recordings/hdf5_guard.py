"""Checks of HDF5 files from elsewhere, before the HDF5 library reads them.

The library follows links into other files, loads filters from plugins, allocates the memory that a
shape or a compressed chunk claims, and walks heaps in circles. So links at every level, the storage
of data and their size in memory are checked first. These checks are kept by hand, since no library
offers them.
"""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.remote import fetch_whole, for_hdf5, is_in_ranges

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3  # HDF5's registered filter numbers
_FILTERS = {DEFLATE: "gzip", SHUFFLE: "shuffle", FLETCHER32: "fletcher32"}
#: What data may take in memory, however small the file is.
ROOM_BYTES = 16 * 2**20
#: The most for one chunk, which is always held whole.
CHUNK_BYTES = 64 * 2**20
#: The most that deflate can shrink: 258 bytes into 2 bits.
MOST_DEFLATED = 1032

_LINKS = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "a link to another file"}
#: What the library raises for damaged files.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, OverflowError)
_HEAP, _HEAP_HEADER, _OBJECT_HEADER = b"GCOL\x01\0\0\0", 16, 16
_TEXT_BYTES = 2**16  # the longest text, as the longest attribute
_VLEN_BYTES = 16  # length (4), address of the heap (8), index in the heap (4)


class _Vlen(NamedTuple):
    """Where a stored row of a table holds the addresses of variable-length values."""

    offsets: tuple[int, ...]
    row_bytes: int


def open_hdf5(path: Path) -> Any:
    """Open a file for reading, as h5py does; one that is damaged or locked is an InputError."""
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        return h5py.File(for_hdf5(path), "r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        text = " ".join(str(error).split())
        if "unable to lock" in text:
            raise InputError(
                f"{path}: another program has this file open, or it lies on a drive without locks:"
                " close it there, or set the environment variable HDF5_USE_FILE_LOCKING=FALSE if"
                " nothing writes to it"
            ) from None
        cause = "is cut off" if "truncated" in text else "cannot be read as HDF5"
        raise InputError(f"{path}: the file {cause} ({text}): copy it again") from None


def check_links(file: Any, path: Path, *, soft: bool = False) -> None:
    """Refuse external and user-defined links anywhere in an open h5py file.

    Links to other places of the file itself are refused, too, unless `soft`.
    """

    def see(name: bytes, info: Any) -> str | None:
        if info.type == h5py.h5l.TYPE_HARD or (soft and info.type == h5py.h5l.TYPE_SOFT):
            return None
        kind = _LINKS.get(info.type, "a user-defined link")
        return f"{name.decode('utf-8', 'replace')!r} is {kind}"

    with reading_may_fail(path, "its groups cannot be walked"):
        found = file.id.links.visit(see, info=True)
    if found:
        raise InputError(
            f"{path}: {found}, and links are not followed: copy the data into the file itself"
        )


def check_stored(
    dataset: Any, path: Path, limit_bytes: int | None = None, *, allowed: Sequence[int] = ()
) -> None:
    """Refuse data of a filter other than `_FILTERS`, outside the file, or larger than it can hold.

    `allowed` lists further filters that may be used.

    Data that are read whole may take `limit_bytes` in memory, and no compressed chunk of them may
    inflate to more than a chunk.
    """
    name = dataset.name
    with reading_may_fail(path, f"{name} cannot be read"):
        plist = dataset.id.get_create_plist()
        layout = plist.get_layout()
        if layout == h5py.h5d.VIRTUAL or plist.get_external_count() > 0:
            raise InputError(
                f"{path}: the data of {name} are in other files, which are not read: copy them"
                " into the file itself, for example by h5repack"
            )
        _check_filters(plist, path, name, allowed)
        _check_size(dataset, path, layout)
        if limit_bytes is not None:
            check_whole(dataset, path, limit_bytes)


def check_whole(dataset: Any, path: Path, limit_bytes: int) -> None:
    """Refuse data that take more than `limit_bytes`, by their shape or when inflated."""
    declared = _declared_bytes(dataset)
    if declared > limit_bytes:
        raise InputError(
            f"{path}: {dataset.name} claims {declared} bytes of memory, more than the"
            f" limit of {limit_bytes}: the file is damaged, or not a recording"
        )
    check_inflation(dataset, path)


def check_inflation(dataset: Any, path: Path) -> None:
    """Refuse a compressed chunk that inflates to more than a chunk holds.

    The library would inflate it without a limit before checking its size.
    """
    InflationGuard(dataset, path).check(0, dataset.shape[0] if dataset.shape else 0)


class InflationGuard:
    """`check_inflation` for data that are read in ranges: each chunk once, before it is read."""

    def __init__(self, dataset: Any, path: Path) -> None:
        self._dataset = dataset
        self._path = path
        self._left: dict[int, list[Any]] | None = None  # by their first row

    def check(self, start: int, stop: int) -> None:
        """Check the chunks of rows [start, stop)."""
        if self._left is None:
            self._left = self._doubtful()
        if not self._left:
            return
        step = self._dataset.chunks[0]
        for row in range(start // step * step, stop, step):
            for info in self._left.pop(row, ()):
                self.check_chunk(info)

    def _doubtful(self) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        if DEFLATE in filter_codes(self._dataset):
            for info in chunks_of(self._dataset):
                if info.size * MOST_DEFLATED > ROOM_BYTES:
                    found.setdefault(info.chunk_offset[0], []).append(info)
        return found

    def check_chunk(self, info: Any) -> None:
        """Check one chunk, by where it is stored."""
        name, path = self._dataset.name, self._path
        chunk_bytes = math.prod(self._dataset.chunks) * self._dataset.dtype.itemsize
        _, stored = self._dataset.id.read_direct_chunk(info.chunk_offset)
        inflater = zlib.decompressobj()
        try:
            n = len(inflater.decompress(stored, chunk_bytes + 1))
        except zlib.error as error:
            raise damaged(path, f"{name} cannot be inflated", error) from None
        if n > chunk_bytes:
            raise InputError(
                f"{path}: a chunk of {name} inflates to more than the {chunk_bytes}"
                " bytes of a chunk: copy the file again from its source"
            )


def chunks_of(dataset: Any) -> list[Any]:
    """List all stored chunks, with offsets, sizes and filter masks."""
    found: list[Any] = []
    dataset.id.chunk_iter(found.append)
    return found


def filter_codes(dataset: Any) -> list[int]:
    """List the numbers of a dataset's filters, in the order of writing."""
    plist = dataset.id.get_create_plist()
    return [int(plist.get_filter(i)[0]) for i in range(plist.get_nfilters())]


def check_heaps(dataset: Any, path: Path) -> None:
    """Refuse texts of variable length in a heap that the library could not read safely.

    Such texts are in heaps of the file. In a heap with an object of length 0, HDF5 2.0 loops
    forever, and with an object beyond the heap's end it reads outside the heap.
    `dataset` is a table that passed `check_stored`.
    """
    vlen = _vlen_of(dataset.id.get_type())
    if vlen is None:
        return
    if dataset.file.id.get_create_plist().get_sizes() != (8, 8):
        raise InputError(f"{path}: addresses in the file do not have 8 bytes: repack it (h5repack)")
    offset = dataset.id.get_offset()
    if offset is None:  # chunked or compact, which no MCS program writes: check all heaps
        check_all_heaps(path)
        return
    n = math.prod(dataset.shape)
    if n * vlen.row_bytes != dataset.id.get_storage_size():
        raise InputError(f"{path}: {dataset.name} is not stored as a table: copy the file again")
    with path.open("rb") as stream:
        stream.seek(offset)
        rows = np.frombuffer(stream.read(n * vlen.row_bytes), np.uint8)
        table = rows.reshape(n, vlen.row_bytes)
        addresses = {a for at in vlen.offsets for a in _addresses(path, table, at)}
        for address in sorted(addresses):
            stream.seek(address)
            _check_heap(path, stream.read(_HEAP_HEADER), stream, address)


def check_all_heaps(path: Path) -> None:
    """Check every heap of a file, wherever it is, for which all of it is read."""
    fetch_whole(path)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_HEAP)
        while at >= 0:
            stream.seek(at)
            _check_heap(path, stream.read(_HEAP_HEADER), stream, at)
            at = data.find(_HEAP, at + 1)


def check_texts(file: Any, path: Path) -> None:
    """Refuse values of variable length, in any dataset, that are longer than what a heap holds.

    The library believes the length that stands beside a text's address, and reads that far.
    """
    heaps: dict[int, NDArray[np.int64]] = {}

    def see(_: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            _check_texts_of(node, path, heaps)

    with reading_may_fail(path, "its texts cannot be found"):
        file.visititems(see)


def _check_texts_of(dataset: Any, path: Path, heaps: dict[int, NDArray[np.int64]]) -> None:
    kind = dataset.id.get_type()
    vlen = _vlen_of(kind)
    if vlen is None:
        return
    item_bytes = 1
    if not isinstance(kind, h5py.h5t.TypeCompoundID):
        # Encoded, the fourth byte says what is of variable length: a list or a text. The library
        # crashes on others. The size of an item stands where its type is encoded.
        encoded = kind.encode()
        item_bytes = max(1, int.from_bytes(encoded[14:18], "little"))
        if encoded[3] & 0xF > 1:
            raise damaged(path, f"{dataset.name} cannot be read", "its type is unknown")
    for table in _stored_rows(dataset, path, vlen):
        for at in vlen.offsets:
            _check_references(path, table[:, at : at + _VLEN_BYTES], item_bytes, heaps)


def _stored_rows(dataset: Any, path: Path, vlen: _Vlen) -> Iterator[NDArray[np.uint8]]:
    """Give the rows of a dataset as they are stored, (n, bytes), piece by piece."""
    check_stored(dataset, path)
    codes = filter_codes(dataset)
    if dataset.chunks is None:
        offset, size = dataset.id.get_offset(), int(dataset.id.get_storage_size())
        if offset is None:  # nothing was written, or it is so small that it lies in the header
            return
        with path.open("rb") as stream:
            stream.seek(offset)
            stored = stream.read(size)
        yield np.frombuffer(stored, np.uint8).reshape(-1, vlen.row_bytes)
        return
    if SHUFFLE in codes:  # by a size that the file does not say; nothing writes texts like this
        return
    n_bytes = math.prod(dataset.chunks) * vlen.row_bytes
    for info in chunks_of(dataset):
        _, stored = dataset.id.read_direct_chunk(info.chunk_offset)
        if DEFLATE in codes:
            stored = zlib.decompressobj().decompress(stored, n_bytes)
        rows = np.frombuffer(stored, np.uint8)[:n_bytes]
        yield rows.reshape(-1, vlen.row_bytes)


def _check_references(
    path: Path, column: NDArray[np.uint8], item_bytes: int, heaps: dict[int, NDArray[np.int64]]
) -> None:
    """Check lengths against heaps: length (4 bytes), address of the heap (8), index in it (4)."""
    lengths, indices = (
        np.ascontiguousarray(column[:, at : at + 4]).view("<u4").ravel().astype(np.int64)
        for at in (0, 12)
    )
    places = np.ascontiguousarray(column[:, 4:12]).view("<u8").ravel()
    for place in np.unique(places[lengths > 0]).tolist():
        if place not in heaps:
            with path.open("rb") as stream:
                if place + _HEAP_HEADER > path.stat().st_size:
                    raise _bad_heap(path, place)
                stream.seek(place)
                heaps[place] = _check_heap(path, stream.read(_HEAP_HEADER), stream, place)
        sizes = heaps[place]
        here = (places == place) & (lengths > 0)
        known = indices[here] < len(sizes)
        if not known.all() or (lengths[here] > sizes[indices[here]] // item_bytes).any():
            raise _bad_heap(path, place)


def has_variable_text(node: Any) -> bool:
    """Tell whether an attribute of a group or dataset has variable length, and so is in a heap."""
    kinds = (node.attrs.get_id(name).get_type() for name in node.attrs)
    return any(_vlen_of(kind) is not None for kind in kinds)


@contextmanager
def reading_may_fail(path: Path, what: str) -> Iterator[None]:
    """Turn what the library raises for a damaged file into an InputError that says `what` failed.

    An InputError passes as it is: that of a check, or of the server from which the file is read.
    """
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        raise damaged(path, what, error) from None


def damaged(path: Path, what: str, error: object) -> InputError:
    """Make a one-line error that says that a file is damaged."""
    return InputError(
        f"{path}: {what} ({' '.join(str(error).split()) or type(error).__name__}): the file is"
        " damaged, copy it again from its source"
    )


def _check_filters(plist: Any, path: Path, name: str, allowed: Sequence[int]) -> None:
    codes = [int(plist.get_filter(i)[0]) for i in range(plist.get_nfilters())]
    strange = [c for c in codes if c not in _FILTERS and c not in allowed]
    if strange or len(set(codes)) < len(codes):
        what = f"filter {strange[0]}" if strange else "the same filter twice"
        raise InputError(
            f"{path}: {name} is stored with {what}; known are {', '.join(_FILTERS.values())},"
            " each once: repack the file (h5repack -f GZIP=6)"
        )


def _check_size(dataset: Any, path: Path, layout: int) -> None:
    file_bytes = path.stat().st_size
    declared, stored = _declared_bytes(dataset), _stored_bytes(dataset, path, layout, file_bytes)
    if layout == h5py.h5d.CHUNKED:
        chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if chunk > CHUNK_BYTES:
            raise InputError(
                f"{path}: {dataset.name} has chunks of {chunk} bytes, more than {CHUNK_BYTES}:"
                f" repack the file with smaller ones (h5repack)"
            )
        # Chunks that were never written take no space, but only so many are plausible.
        most = stored * MOST_DEFLATED + ROOM_BYTES
    else:
        most = stored + ROOM_BYTES
        offset = dataset.id.get_offset()
        if offset is not None and offset + declared > file_bytes:
            raise InputError(f"{path}: the file ends inside {dataset.name}: copy it again")
    if declared > most or stored > file_bytes:
        raise InputError(
            f"{path}: {dataset.name} claims {declared} bytes in shape {dataset.shape}, of which"
            f" {stored} are stored in a file of {file_bytes}: the file is damaged, or not a"
            " recording"
        )


def _stored_bytes(dataset: Any, path: Path, layout: int, file_bytes: int) -> int:
    """Count what is stored; at most, where that is read in ranges and lies all over the file."""
    if layout == h5py.h5d.CHUNKED and is_in_ranges(path):
        return file_bytes
    return int(dataset.id.get_storage_size())


def _declared_bytes(dataset: Any) -> int:
    return math.prod(dataset.shape or (0,)) * int(dataset.dtype.itemsize)


def _vlen_of(kind: Any) -> _Vlen | None:
    """Find the variable-length values in a stored row; None if there are none.

    The library describes types as they are in memory, where such a value is a pointer. In the file
    it takes 16 bytes, which moves what follows it.
    """
    if isinstance(kind, h5py.h5t.TypeVlenID) or (
        isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    ):
        return _Vlen((0,), _VLEN_BYTES)
    if not isinstance(kind, h5py.h5t.TypeCompoundID):
        return None
    at: list[int] = []
    moved = 0
    members = range(kind.get_nmembers())
    for i in sorted(members, key=kind.get_member_offset):
        member = kind.get_member_type(i)
        inner = _vlen_of(member)
        if inner is not None:
            at += [kind.get_member_offset(i) + moved + o for o in inner.offsets]
            moved += inner.row_bytes - member.get_size()
    return _Vlen(tuple(at), kind.get_size() + moved) if at else None


def _addresses(path: Path, table: Any, at: int) -> Iterator[int]:
    """List the heaps that a column of texts points to: length (4 bytes), address (8), index (4)."""
    column = np.ascontiguousarray(table[:, at : at + 12])
    lengths = column[:, :4].copy().view("<u4").ravel()
    places = column[:, 4:].copy().view("<u8").ravel()
    # The library allocates a text's memory before it looks for the text.
    if lengths.max(initial=0) > _TEXT_BYTES:
        raise InputError(
            f"{path}: a text claims {lengths.max()} bytes, more than {_TEXT_BYTES}: copy the file"
            " again from its source"
        )
    return (int(p) for p, n in zip(places, lengths, strict=True) if n)


def _check_heap(path: Path, header: bytes, stream: Any, address: int) -> NDArray[np.int64]:
    """Check a heap; return the size of each object by its index, 0 where there is none."""
    size = int.from_bytes(header[8:16], "little")
    end = path.stat().st_size
    if header[:8] != _HEAP or not _HEAP_HEADER < size <= end - address:
        raise _bad_heap(path, address)
    heap = stream.read(size - _HEAP_HEADER)
    sizes = np.zeros(2**16, np.int64)
    at = 0
    while at + _OBJECT_HEADER <= len(heap):
        index = int.from_bytes(heap[at : at + 2], "little")
        length = int.from_bytes(heap[at + 8 : at + 16], "little")
        # The length of free space (index 0) includes its header; objects' lengths do not, and they
        # are padded to 8 bytes.
        step = length if index == 0 else _OBJECT_HEADER + -(-length // 8) * 8
        if step < _OBJECT_HEADER or at + step > len(heap):
            raise _bad_heap(path, address)
        sizes[index] = length if index else 0
        at += step
    return sizes


def _bad_heap(path: Path, address: int) -> InputError:
    return InputError(
        f"{path}: the texts at byte {address} are damaged: copy the file again from its source"
    )

"""The .mat form of SpyCode's peak trains: one MATLAB file per electrode.

The file, of version 5 to 7 or 7.3 (which is HDF5), holds the sparse vector ``peak_train``: as long
as the recording, with the amplitude in microvolts at each spike.

A compressed variable may inflate a thousandfold, and a nested one makes SciPy call itself without
end. So the elements of a version-5 file are walked here, inflating no more than their headers, and
SciPy gets only the one variable, once it has been checked. Source: MAT-File Format, The MathWorks,
chapter 1, "MAT-File Header Format" to "Array Formats".
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.interruption import heed_interrupt
from toptune.recordings.hdf5_guard import check_links, check_stored
from toptune.recordings.trains import PeakTrain

_VARIABLE = "peak_train"
# MATLAB's numbers for its classes: sparse, then double to uint64.
_SPARSE = 5
_NUMERIC = range(5, 16)
# What MATLAB writes into the first bytes of its files, 7.3 included.
_MAGICS = (b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file")

# The most memory for a vector that is not sparse: 33 million samples.
_DENSE_BYTES = 256 * 2**20
# The most for each part of a sparse one, beyond four times the file's size.
_SPARSE_BYTES = 64 * 2**20

_HEADER_BYTES, _TAG_BYTES = 128, 8
_COMPRESSED, _MATRIX = 15, 14
# Flags, up to 32 dimensions and a name of 63 letters are well within it.
_HEAD_BYTES = 1024
_COMPLEX = 0x08


def looks_like_mat(path: Path) -> bool:
    """Tell whether a file begins as MATLAB's files do."""
    with path.open("rb") as file:
        return file.read(len(_MAGICS[0])) in _MAGICS


def read_peak_mat(path: Path) -> PeakTrain:
    """Read one electrode's file, whose amplitudes must be finite numbers above 0."""
    try:
        if not looks_like_mat(path):
            raise InputError(f"{path}: not a MATLAB file (or an empty or damaged one)")
        reader = _from_hdf5 if h5py.is_hdf5(path) else _from_version_5
        n_samples, sample, amplitude = reader(path)
    except InputError:
        raise
    # For damaged files every library has its own errors, down to zlib.error and IndexError.
    except Exception as error:
        heed_interrupt(error)
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged MATLAB file ({text}): copy it again") from error
    return _checked(path, n_samples, sample, amplitude)


def _from_version_5(path: Path) -> tuple[int, NDArray[np.int64], NDArray[Any]]:
    # The other variables, such as `artifact`, may be as long as the recording and are not read.
    import scipy.io
    import scipy.sparse

    variable = find_variable(path)
    if variable.matrix_class not in _NUMERIC or variable.is_complex:
        raise _no_vector(path)
    n = _vector_length(path, variable.shape)
    if variable.matrix_class != _SPARSE and n * 8 > _DENSE_BYTES:
        raise InputError(
            f"{path}: {_VARIABLE} is not sparse and would take {n * 8} bytes, more than"
            f" {_DENSE_BYTES}: save it as sparse({_VARIABLE})"
        )
    vector = scipy.io.loadmat(io.BytesIO(variable.alone()), variable_names=[_VARIABLE])[_VARIABLE]
    if scipy.sparse.issparse(vector):
        # SciPy writes beyond its arrays where the columns' ends do not rise.
        vector.check_format(full_check=True)
    elif np.asarray(vector).dtype.kind not in "fiub" or tuple(vector.shape) != variable.shape:
        raise _no_vector(path)
    entries = scipy.sparse.coo_array(vector)
    entries.sum_duplicates()
    rows, columns = entries.coords
    # A vector: either all rows or all columns are 0.
    sample = np.asarray(rows, np.int64) + np.asarray(columns, np.int64)
    order = np.argsort(sample)
    return n, sample[order], entries.data[order]


def _from_hdf5(path: Path) -> tuple[int, NDArray[np.int64], NDArray[Any]]:
    with h5py.File(path, "r") as file:
        check_links(file, path)
        if _VARIABLE not in file:
            raise _no_variable(path, _VARIABLE, [n for n in file if not n.startswith("#")])
        node = file[_VARIABLE]
        if isinstance(node, h5py.Group):
            return _sparse_from_hdf5(path, node)
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "fiub":
            raise _no_vector(path)
        n = _vector_length(path, node.shape)
        check_stored(node, path, _DENSE_BYTES)
        dense = node[...].reshape(-1)
        sample = np.flatnonzero(dense)
        return n, sample, dense[sample]


def _sparse_from_hdf5(path: Path, group: Any) -> tuple[int, NDArray[np.int64], NDArray[Any]]:
    """Read compressed columns: `jc` (columns + 1,), and `ir` and `data` unless all is zero."""
    if "MATLAB_sparse" not in group.attrs or "jc" not in group:
        raise _no_vector(path)
    n_rows = int(group.attrs["MATLAB_sparse"])
    jc = _vector(path, group, "jc").astype(np.int64)
    n = _vector_length(path, (n_rows, len(jc) - 1))
    if "data" not in group:
        return n, np.empty(0, np.int64), np.empty(0)
    data, ir = _vector(path, group, "data"), _vector(path, group, "ir")
    counts = np.diff(jc)
    if not len(data) == len(ir) == jc[-1] or jc[0] != 0 or (counts < 0).any():
        raise InputError(f"{path}: damaged MATLAB file (jc of {_VARIABLE} does not fit ir)")
    return n, ir.astype(np.int64) + np.repeat(np.arange(len(counts)), counts), data


def _vector(path: Path, group: Any, name: str) -> NDArray[Any]:
    node = group[name]
    if not isinstance(node, h5py.Dataset) or node.ndim != 1 or node.dtype.kind not in "fiub":
        raise _no_vector(path)
    check_stored(node, path, _SPARSE_BYTES + 4 * path.stat().st_size)
    return np.asarray(node[...])


def _vector_length(path: Path, shape: tuple[int, ...]) -> int:
    if len(shape) != 2 or 1 not in shape or 0 in shape:
        size = " x ".join(map(str, shape))
        raise InputError(f"{path}: {_VARIABLE} must be n_samples x 1, got {size}")
    return max(shape)


def _no_vector(path: Path) -> InputError:
    return InputError(f"{path}: {_VARIABLE} is not a vector of numbers")


def _checked(
    path: Path, n_samples: int, sample: NDArray[np.int64], amplitude: NDArray[Any]
) -> PeakTrain:
    if np.iscomplexobj(amplitude) or amplitude.dtype.kind not in "fiub":
        raise _no_vector(path)
    if len(sample) and (sample[0] < 0 or sample[-1] >= n_samples or np.any(np.diff(sample) <= 0)):
        raise InputError(f"{path}: damaged MATLAB file (rows of {_VARIABLE} out of order or range)")
    ok = np.isfinite(amplitude) & (amplitude > 0)
    if not ok.all():
        i = int(np.argmin(ok))
        raise InputError(
            f"{path}, sample {sample[i] + 1}: an amplitude must be a finite number above 0, "
            f"got {amplitude[i]:g}"
        )
    return PeakTrain(n_samples, sample.astype(np.int64), amplitude.astype(np.float32))


class _Variable(NamedTuple):
    """A variable of a MATLAB file of version 5 to 7."""

    name: str
    matrix_class: int  # MATLAB's: 5 sparse, 6 double, 7 single, 8 to 15 whole numbers
    is_complex: bool
    shape: tuple[int, ...]  # as declared
    file_header: bytes  # the file's first 128 bytes
    element: bytes  # its bytes, inflated; empty until it is the variable that is wanted

    def alone(self) -> bytes:
        """Return the bytes of a file that holds this variable only."""
        return self.file_header + self.element


def find_variable(path: Path, name: str = _VARIABLE) -> _Variable:
    """Find a variable by its name, and inflate it if that is not too much."""
    names = []
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        if order is None:
            raise InputError(f"{path}: damaged MATLAB file (no byte order): copy it again")
        for kind, data in _elements(path, stream, order):
            found = _parse(path, header, order, kind, data)
            if found is not None and found.name == name:
                return found._replace(element=_inflated(path, order, kind, data))
            names += [found.name] if found is not None and found.name else []
    raise _no_variable(path, name, names)


def _no_variable(path: Path, name: str, names: list[str]) -> InputError:
    """Make the error that says which variables the file has instead."""
    found = ", ".join(names[:8]) or "nothing"
    return InputError(f"{path}: no variable {name} in it, only {found}")


def _elements(path: Path, stream: Any, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the bytes, tag included, of each element; refuse a truncated one."""
    end = path.stat().st_size
    while len(tag := stream.read(_TAG_BYTES)) == _TAG_BYTES:
        kind, size = struct.unpack(f"{order}II", tag)
        if size > end - stream.tell():
            raise InputError(
                f"{path}: damaged MATLAB file (it ends inside a variable): copy it again"
            )
        yield kind, tag + stream.read(size)
        # All elements but compressed ones are padded to a multiple of eight bytes.
        if kind != _COMPRESSED:
            stream.seek(-size % 8, 1)


def _inflated(path: Path, order: str, kind: int, data: bytes) -> bytes:
    """Inflate an element, to no more than its own tag announces."""
    if kind != _COMPRESSED:
        return data
    inflater = zlib.decompressobj()
    tag = inflater.decompress(data[_TAG_BYTES:], _TAG_BYTES)
    size = struct.unpack(f"{order}II", tag)[1]
    most = 4 * path.stat().st_size + _DENSE_BYTES
    if size > most:
        raise InputError(
            f"{path}: a variable would take {size} bytes, more than {most}: save it as a sparse"
            " vector"
        )
    plain = tag + inflater.decompress(inflater.unconsumed_tail, size + 1)
    if len(plain) != size + _TAG_BYTES:
        raise InputError(f"{path}: damaged MATLAB file (a variable is not as long as it says)")
    return plain


def _parse(path: Path, header: bytes, order: str, kind: int, data: bytes) -> _Variable | None:
    """Read a variable's header; return None for elements of other kinds."""
    if kind == _COMPRESSED:
        head = zlib.decompressobj().decompress(data[_TAG_BYTES:], _HEAD_BYTES)
    else:
        head = data[:_HEAD_BYTES]
    try:
        if struct.unpack_from(f"{order}I", head)[0] != _MATRIX:
            return None
        flags, at = _sub_element(head, order, _TAG_BYTES)
        dimensions, at = _sub_element(head, order, at)
        name, _ = _sub_element(head, order, at)
        word = struct.unpack_from(f"{order}I", flags)[0]
        shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    except struct.error:
        raise InputError(
            f"{path}: damaged MATLAB file (a variable without header): copy it again"
        ) from None
    text = name.decode("utf-8", "replace")
    return _Variable(text, word & 0xFF, bool(word >> 8 & _COMPLEX), shape, header, b"")


def _sub_element(head: bytes, order: str, at: int) -> tuple[bytes, int]:
    """Return the bytes of the element at `at`, and where the next one begins.

    An element of up to four bytes lies within its tag.
    """
    first, size = struct.unpack_from(f"{order}II", head, at)
    if first >> 16:
        return head[at + 4 : at + 4 + (first >> 16)], at + _TAG_BYTES
    start = at + _TAG_BYTES
    if size > len(head) - start:
        raise struct.error
    return head[start : start + size], start + -(-size // 8) * 8

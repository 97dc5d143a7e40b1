"""The .mat form of one electrode's SpyCode peak train.

What enters: a MATLAB file (version 5 to 7, or 7.3, which is HDF5) with the sparse vector
``peak_train``: as long as the recording, amplitudes in microvolts where spikes are.
What leaves: the number of samples, 0-based sample indices and amplitudes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.hdf5_guard import check_links, check_stored
from toptune.recordings.mat_elements import DENSE_BYTES, SPARSE_BYTES, find_variable, no_variable
from toptune.recordings.peak_text import PeakTrain

_VARIABLE = "peak_train"
# MATLAB's numbers for its classes: sparse, then double to uint64.
_SPARSE = 5
_NUMERIC = range(5, 16)
# What MATLAB writes into the first bytes of its files, 7.3 included.
_MAGICS = (b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file")


def looks_like_mat(path: Path) -> bool:
    """Whether a file opens as MATLAB's do."""
    with path.open("rb") as file:
        return file.read(len(_MAGICS[0])) in _MAGICS


def read_peak_mat(path: Path) -> PeakTrain:
    """Read one electrode's file.

    Raises
    ------
    InputError
        Not a readable MATLAB file, no ``peak_train``, not a real vector, or an amplitude that is
        not a finite number above 0.
    """
    try:
        if not looks_like_mat(path):
            raise InputError(f"{path}: not a MATLAB file (or an empty or damaged one)")
        reader = _from_hdf5 if h5py.is_hdf5(path) else _from_version_5
        n_samples, sample, amplitude = reader(path)
    except InputError:
        raise
    # Every library has its own errors for damaged files, down to zlib.error and IndexError.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged MATLAB file ({text}): copy it again") from error
    return _checked(path, n_samples, sample, amplitude)


def _from_version_5(path: Path) -> tuple[int, NDArray[np.int64], NDArray[Any]]:
    # Of the variables only the one: `artifact` and whatever else may be as long as the recording.
    variable = find_variable(path, _VARIABLE)
    if variable.matrix_class not in _NUMERIC or variable.is_complex:
        raise _no_vector(path)
    n = _vector_length(path, variable.shape)
    _check_room(path, n * 8 if variable.matrix_class != _SPARSE else 0)
    vector = scipy.io.loadmat(io.BytesIO(variable.alone()), variable_names=[_VARIABLE])[_VARIABLE]
    if scipy.sparse.issparse(vector):
        # SciPy writes beyond its arrays where the columns' ends do not rise.
        vector.check_format(full_check=True)
    elif np.asarray(vector).dtype.kind not in "fiub" or tuple(vector.shape) != variable.shape:
        raise _no_vector(path)
    entries = scipy.sparse.coo_array(vector)
    entries.sum_duplicates()
    rows, columns = entries.coords
    # One of the two is all zero.
    sample = np.asarray(rows, np.int64) + np.asarray(columns, np.int64)
    order = np.argsort(sample)
    return n, sample[order], entries.data[order]


def _from_hdf5(path: Path) -> tuple[int, NDArray[np.int64], NDArray[Any]]:
    with h5py.File(path, "r") as file:
        check_links(file, path)
        if _VARIABLE not in file:
            raise no_variable(path, _VARIABLE, [n for n in file if not n.startswith("#")])
        node = file[_VARIABLE]
        if isinstance(node, h5py.Group):
            return _sparse_from_hdf5(path, node)
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "fiub":
            raise _no_vector(path)
        n = _vector_length(path, node.shape)
        check_stored(node, path, DENSE_BYTES)
        dense = node[...].reshape(-1)
        sample = np.flatnonzero(dense)
        return n, sample, dense[sample]


def _sparse_from_hdf5(path: Path, group: Any) -> tuple[int, NDArray[np.int64], NDArray[Any]]:
    """Compressed columns: `jc` (columns + 1,), and, unless empty, `ir` and `data`."""
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
    check_stored(node, path, SPARSE_BYTES + 4 * path.stat().st_size)
    return np.asarray(node[...])


def _check_room(path: Path, dense_bytes: int) -> None:
    if dense_bytes > DENSE_BYTES:
        raise InputError(
            f"{path}: {_VARIABLE} is not sparse and would take {dense_bytes} bytes, more than"
            f" {DENSE_BYTES}: save it as sparse({_VARIABLE})"
        )


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
        raise InputError(f"{path}: {_VARIABLE} is not a vector of numbers")
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

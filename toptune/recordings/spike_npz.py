"""Spikes in toptune's own NPZ form, as ``toptune detect`` and ``toptune simulate`` write them.

The file holds, per spike, ``sample`` (int64), ``channel`` (int32) and ``peak_to_peak_uv`` (float32;
NaN if unknown); per channel ``channel_labels`` and ``threshold_uv`` (float32; NaN if none was used,
infinite for a dead channel); ``sampling_rate_hz`` and ``duration_s``; and optionally ``segments``
(k, 3) of first_sample, n_samples, start_s. Without it, the recording is one segment.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.interruption import heed_interrupt
from toptune.machine.remote import as_path, local_output
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes

_NAMES = (
    *("sample", "channel", "peak_to_peak_uv", "channel_labels", "sampling_rate_hz", "duration_s"),
    "threshold_uv",
)
_OPTIONAL = "segments"
_Arrays: TypeAlias = dict[str, NDArray[Any]]
# The most that compressed arrays may take beyond four times the file's size.
_ROOM_BYTES = 64 * 2**20


def looks_like_npz(path: Path) -> bool:
    """Tell whether a file is an archive that holds an array called ``sample``."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "sample.npy" in archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError):
        # Truncated: the name of the first array stands before its contents, at the file's start.
        with path.open("rb") as file:
            return b".npy" in file.read(64)


def write_npz(trains: SpikeTrains, path: Path) -> None:
    """Write spikes so that `read_npz` returns them exactly; the file appears once complete."""
    path = local_output(path)
    part = path.with_name(path.name + ".part")
    spikes = trains.spikes
    # An open file, since numpy would append .npz to a name.
    with part.open("wb") as file:
        np.savez(
            file,
            sample=spikes.sample,
            channel=spikes.channel,
            peak_to_peak_uv=spikes.peak_to_peak_uv,
            channel_labels=np.array(trains.channel_labels, np.str_),
            sampling_rate_hz=np.float64(trains.sampling_rate_hz),
            duration_s=np.float64(trains.duration_s),
            threshold_uv=trains.threshold_uv,
            segments=np.array(trains.segments, np.float64).reshape(-1, 3),
        )
    part.replace(path)


def read_npz(path: Path) -> SpikeTrains:
    """Read what `write_npz` wrote, or another program in the same form.

    A damaged file, a missing or unknown array, and a value out of range are InputErrors.
    """
    path = as_path(path)
    arrays = _load(path)
    rate = _positive(path, arrays, "sampling_rate_hz")
    duration_s = _positive(path, arrays, "duration_s")
    labels = _channel_labels(path, arrays["channel_labels"])
    segments = _segments(path, arrays.get(_OPTIONAL), rate, duration_s)
    sample = _indices(path, arrays, "sample", segments[-1].first_sample + segments[-1].n_samples)
    channel = _indices(path, arrays, "channel", len(labels))
    amplitude = _microvolts(path, arrays, "peak_to_peak_uv", len(sample))
    if len(channel) != len(sample):
        raise InputError(f"{path}: {len(sample)} spikes in sample but {len(channel)} in channel")
    return SpikeTrains(
        spikes=sort_spikes(sample, channel.astype(np.int32), amplitude),
        channel_labels=labels,
        sampling_rate_hz=rate,
        segments=segments,
        threshold_uv=_microvolts(path, arrays, "threshold_uv", len(labels), infinite=True),
    )


def _load(path: Path) -> _Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            return {name: _array(archive, info) for name, info in members.items()}
    except InputError:
        raise
    # numpy and zipfile raise many kinds of errors for files that are damaged or hold objects.
    except Exception as error:
        heed_interrupt(error)
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable NPZ file ({text}): write it again") from error


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by the arrays' names; refuse unknown or missing ones unread."""
    listed = archive.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in listed}
    unknown = [n for n in members if n not in (*_NAMES, _OPTIONAL)]
    if unknown:
        shown = ", ".join(unknown[:8])
        raise InputError(f"{path}: unknown array {shown[:200]} in this NPZ file")
    missing = [name for name in _NAMES if name not in members]
    if missing:
        raise InputError(f"{path}: no array {', '.join(missing)} in this NPZ file")
    if len(members) < len(listed):
        raise InputError(f"{path}: an array is in this NPZ file twice: write it again")
    # zipfile reads no more of a member than the archive's directory says.
    promised = sum(info.file_size for info in listed)
    most = 4 * path.stat().st_size + _ROOM_BYTES
    if promised > most:
        raise InputError(
            f"{path}: its arrays would inflate to {promised} bytes, more than {most}: write them"
            " uncompressed (np.savez)"
        )
    return members


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(stream)
    # NumPy allocates what the header claims before it reads any data.
    if dtype.hasobject or dtype.fields or math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{info.filename} is {dtype} of shape {shape} in {info.file_size} bytes")
    with archive.open(info) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _positive(path: Path, arrays: _Arrays, name: str) -> float:
    array = arrays[name]
    if array.shape != () or array.dtype.kind not in "iuf":
        raise InputError(f"{path}: {name} must be one number")
    value = float(array)
    if not 0 < value < math.inf:
        raise InputError(f"{path}: {name} must be finite and above 0, got {value:g}")
    return value


def _channel_labels(path: Path, array: NDArray[Any]) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind != "U" or not len(array):
        raise InputError(f"{path}: channel_labels must be a list of names")
    labels = tuple(str(label) for label in array)
    if len(set(labels)) < len(labels) or "" in labels:
        raise InputError(f"{path}: channel_labels must be different names, none of them empty")
    return labels


def _indices(path: Path, arrays: _Arrays, name: str, limit: int) -> NDArray[np.int64]:
    array = arrays[name]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{path}: {name} must be a list of whole numbers")
    bad = (array < 0) | (array >= limit)
    if bad.any():
        i = int(np.argmax(bad))
        raise InputError(f"{path}: {name}[{i}] is {array[i]}, outside 0..{limit - 1}")
    return array.astype(np.int64)


def _microvolts(
    path: Path, arrays: _Arrays, name: str, length: int, *, infinite: bool = False
) -> NDArray[np.float32]:
    array = arrays[name]
    if array.shape != (length,) or array.dtype.kind not in "iuf":
        raise InputError(f"{path}: {name} must be a list of {length} numbers")
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    # NaN, which stands for unknown, is let through; so is infinity where it marks a dead channel.
    bad = (values < 0) | (np.isinf(values) & ~(infinite & np.isinf(array)))
    if bad.any():
        i = int(np.argmax(bad))
        rule = "from 0 up" if infinite else "finite and from 0 up"
        raise InputError(f"{path}: {name}[{i}] is {array[i]:g}, but must be {rule}")
    return values


def _segments(
    path: Path, array: NDArray[Any] | None, rate: float, duration_s: float
) -> tuple[Segment, ...]:
    if array is None:
        return (Segment(0, round(duration_s * rate), 0.0),)
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iuf" or not len(array):
        raise InputError(f"{path}: segments must be rows of first_sample, n_samples, start_s")
    table = array.astype(np.float64)
    first, length, start = table.T
    if not (np.isfinite(table).all() and (start >= 0).all() and (length >= 1).all()):
        raise InputError(f"{path}: segments must be finite, n_samples above 0, start_s from 0 up")
    if not np.array_equal(length, np.floor(length)):
        raise InputError(f"{path}: segments hold a number of samples that is not whole")
    if not np.array_equal(first, np.concatenate([[0.0], np.cumsum(length)[:-1]])):
        raise InputError(f"{path}: segments must follow one another from sample 0 on")
    # Half a sample of tolerance, since some programs round start_s.
    if np.any(np.diff(start) < length[:-1] / rate - 0.5 / rate):
        raise InputError(f"{path}: segments overlap in time")
    if abs(length.sum() / rate - duration_s) > 0.5 / rate:
        raise InputError(f"{path}: segments last {length.sum() / rate:g} s, not {duration_s:g} s")
    return tuple(
        Segment(int(f), int(n), float(s)) for f, n, s in zip(first, length, start, strict=True)
    )

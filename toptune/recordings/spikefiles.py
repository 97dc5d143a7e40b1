"""Spikes that were detected elsewhere or before: peak trains, CSV and NPZ.

What enters: a folder of SpyCode peak trains, a CSV file with ``time_s,channel``, or the NPZ file
that ``toptune detect`` writes. What leaves: `SpikeTrains`, in samples and microvolts.

Kinds are told by content, never by file name.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from toptune.errors import InputError
from toptune.params import FASTEST_HZ
from toptune.recordings.peak_trains import PeakKind, read_peak_trains, sniff_peak_folder
from toptune.recordings.spike_csv import looks_like_spike_csv, read_spike_csv
from toptune.recordings.spike_npz import looks_like_npz, read_npz, write_npz
from toptune.recordings.trains import LONGEST_S, SpikeTrains, check_labels, check_length

__all__ = ["SpikeFileKind", "read_npz", "read_spikes", "sniff", "write_npz"]

SpikeFileKind = PeakKind | Literal["csv", "npz"]

# What the peak trains in circulation were sampled with (SpyCode's default; the paper's rate too).
DEFAULT_SAMPLING_RATE_HZ = 10_000.0


def sniff(path: Path) -> SpikeFileKind | None:
    """Which kind of spike file lies there, by content; None if none that is known."""
    path = Path(path)
    try:
        if path.is_dir():
            return sniff_peak_folder(path)
        if looks_like_npz(path):
            return "npz"
        return "csv" if looks_like_spike_csv(path) else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_spikes(
    path: Path, *, sampling_rate_hz: float | None = None, duration_s: float | None = None
) -> SpikeTrains:
    """Read a spike file or folder of any known kind.

    Parameters
    ----------
    path
        A folder of peak trains (or above exactly one), a CSV or an NPZ file.
    sampling_rate_hz
        Samples a second; 10 kHz unless given. NPZ files hold theirs, and must agree.
    duration_s
        Length of the recording. A CSV file does not tell: without it the last spike's time,
        rounded up to the next whole second, is taken. Other kinds tell, and must agree.

    Raises
    ------
    InputError
        The file is of no known kind, faulty, or disagrees with the rate or duration given.
    """
    path = Path(path)
    _check_given("sampling_rate_hz", sampling_rate_hz, FASTEST_HZ)
    _check_given("duration_s", duration_s, LONGEST_S)
    kind = sniff(path)
    rate = DEFAULT_SAMPLING_RATE_HZ if sampling_rate_hz is None else float(sampling_rate_hz)
    try:
        if kind == "csv":
            trains = read_spike_csv(path, sampling_rate_hz=rate, duration_s=duration_s)
        elif kind == "npz":
            trains = read_npz(path)
        elif path.is_dir():
            trains = read_peak_trains(path, sampling_rate_hz=rate)
        else:
            raise InputError(_unknown(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    check_length(path, trains.segments, trains.sampling_rate_hz)
    check_labels(path, trains.channel_labels)
    _check_agreement(path, trains, sampling_rate_hz, duration_s)
    return trains


def _check_given(name: str, value: float | None, most: float) -> None:
    if value is not None and not 0 < value <= most:
        raise InputError(f"{name} must be above 0 and at most {most:g}, got {value!r}")


def _check_agreement(
    path: Path, trains: SpikeTrains, sampling_rate_hz: float | None, duration_s: float | None
) -> None:
    rate = trains.sampling_rate_hz
    if sampling_rate_hz is not None and rate != sampling_rate_hz:
        raise InputError(
            f"{path}: sampled at {rate:g} Hz, not at the {sampling_rate_hz:g} Hz given"
        )
    if duration_s is not None and abs(trains.duration_s - duration_s) * rate >= 1:
        raise InputError(f"{path}: lasts {trains.duration_s:g} s, not the {duration_s:g} s given")


def _unknown(path: Path) -> str:
    if path.stat().st_size == 0:
        return f"{path}: the file is empty"
    if zipfile.is_zipfile(path):
        return f"{path}: an archive, but not spikes as toptune detect writes them (NPZ)"
    return (
        f"{path}: not a spike file; known are CSV with the header time_s,channel, "
        "NPZ from toptune detect, and folders of SpyCode peak trains"
    )

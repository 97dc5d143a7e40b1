"""Recordings of Multi Channel Systems: HDF5 files of protocol RawData.

A file enters; microvolts leave, with the electrodes' names, the rate and the gaps. McsPyDataTools
reads the structure; the samples are read in ranges by `toptune.recordings.mcs_chunks`, with each
channel's own ConversionFactor, Exponent, ADZero and Tick, the reference electrode left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.mcs_checks import (
    check_different,
    check_gains,
    check_rows,
    check_structure,
    stretches,
)
from toptune.recordings.mcs_chunks import ChunkedVoltage
from toptune.recordings.trains import Segment, check_labels, check_length

_REFERENCE = re.compile(r"^(ref|reference|gnd|ground)\b", re.IGNORECASE)
_FILTERED = re.compile(r"filter", re.IGNORECASE)
# What McsPyDataTools raises on files it does not expect: it asserts, indexes and decodes freely.
_SURPRISES = (
    AssertionError, AttributeError, KeyError, IndexError, MemoryError, OSError, OverflowError,
    RuntimeError, TypeError, UnicodeDecodeError, ValueError,
)  # fmt: skip


def is_mcs(path: Path) -> bool:
    """Tell by content whether a file is an HDF5 file (what else is wrong, opening it says)."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class _Part:
    """One Recording_N of the file: its samples, and where they begin among all."""

    name: str
    voltage: ChunkedVoltage
    first_sample: int
    stretches: tuple[tuple[int, int, int], ...]  # first index, samples, microseconds at the first
    start_us: int


class McsRecording:
    """An open MCS recording: a context manager, and a `VoltageRecording`.

    Parameters
    ----------
    path
        An HDF5 file written by MCS's program (or in its format).
    stream
        Label of the electrode stream to read, or an unmistakable part of it; needed where the
        file has none or several that hold raw data.

    Raises
    ------
    InputError
        No MCS recording, a damaged one, or no or several streams that could be meant: one line
        that names them.
    """

    kind = "mcs"

    def __init__(self, path: Path, stream: str | None = None) -> None:
        self.path = Path(path)
        self._file = _open_hdf5(self.path)
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
                " copy it again, or export it again from the program that recorded it"
            ) from None

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
            label = _choose_stream(self.path, chosen[0][0], chosen[0][2], stream)
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
                    " needed: choose another with --stream"
                )
            voltage = self._read_stream(name, matching[0], first=not parts)
            rows = stretches(self.path, name, matching[0].timestamp_index, voltage.n_samples)
            parts.append(_Part(name, voltage, first_sample, rows, int(timestamp_us)))
            first_sample += voltage.n_samples
        return parts

    def _read_stream(self, name: str, stream: Any, *, first: bool) -> ChunkedVoltage:
        infos = sorted(stream.channel_infos.values(), key=lambda info: int(info.row_index))
        labels = [str(info.label).strip() for info in infos]
        used = [k for k, label in enumerate(labels) if not _REFERENCE.match(label)]
        if not used:
            raise InputError(f"{self.path}: {name} has no electrode beside the reference")
        dataset = self._file[stream.channel_data.name]
        rows = np.array([int(infos[k].row_index) for k in used], np.int64)
        check_rows(self.path, dataset, [int(info.row_index) for info in infos])
        check_different(self.path, [infos[k] for k in used])
        units = {str(infos[k].get_field("Unit")).strip() for k in used}
        if units != {"V"}:
            raise InputError(
                f"{self.path}: stream {stream.label.strip()!r} is in {'/'.join(sorted(units))},"
                " not in volts: choose an electrode stream with --stream"
            )
        ticks = {int(infos[k].get_field("Tick")) for k in used}
        if len(ticks) != 1 or min(ticks) < 1:
            raise InputError(
                f"{self.path}: the channels of {stream.label.strip()!r} have ticks of"
                f" {sorted(ticks)} us, where one above 0 is needed"
            )
        electrodes = tuple(labels[k] for k in used)
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
            # Exponent is that of volts; microvolts are six orders more.
            gain_uv = factor * 10.0 ** (exponent + 6)
        check_gains(self.path, electrodes, gain_uv, zero)
        return ChunkedVoltage(dataset, self.path, rows, gain_uv, zero)

    @property
    def chunk_samples(self) -> int:
        """Samples that lie together in the file; reading in multiples of it is fastest."""
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

    def read(self, start: int, stop: int, pool: Executor | None = None) -> NDArray[np.float32]:
        """Give samples [start, stop) of all channels: (channels, samples) float32 microvolts."""
        out = np.empty((len(self.channel_labels), stop - start), np.float32)
        self.read_into(out, start, pool)
        return out

    def chunks(self, n_samples: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Go through the recording; a chunk never spans a gap.

        Parameters
        ----------
        n_samples
            Most samples a chunk; about a million values where None.

        Yields
        ------
        (channels, samples) float32
            Microvolts.
        """
        step = n_samples or max(1, 1_000_000 // len(self.channel_labels))
        for segment in self.segments:
            end = segment.first_sample + segment.n_samples
            for start in range(segment.first_sample, end, step):
                yield self.read(start, min(start + step, end))

    def check_whole(self) -> None:
        """Refuse a file that is cut off, without reading its samples."""
        for part in self._parts:
            part.voltage.check_whole()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _open_hdf5(path: Path) -> Any:
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        text = " ".join(str(error).split())
        cause = "is cut off" if "truncated" in text else "cannot be read as HDF5"
        raise InputError(f"{path}: the file {cause} ({text}): copy it again") from None


def _mcspy_raw_data(path: Path) -> Any:
    from McsPy import McsData

    # The library prints every stream it meets.
    McsData.VERBOSE = False
    return McsData.RawData(str(path))


def _analog(recording: Any) -> list[Any]:
    streams = recording.analog_streams or {}
    return [streams[number] for number in sorted(streams)]


def _choose_stream(path: Path, name: str, streams: list[Any], wanted: str | None) -> str:
    """Label of the one electrode stream that is meant; by name, or as the only raw one."""
    electrode = [s for s in streams if s.data_subtype.strip() == "Electrode"]
    labels = [str(s.label).strip() for s in electrode]
    listed = ", ".join(repr(label) for label in labels)
    if not electrode:
        others = ", ".join(repr(s.label.strip()) for s in streams) or "none at all"
        raise InputError(f"{path}: {name} has no electrode stream (it has {others})")
    if wanted is not None:
        exact = [label for label in labels if label == wanted.strip()]
        found = exact or [label for label in labels if wanted.strip().lower() in label.lower()]
        if len(found) != 1:
            which = "no" if not found else f"{len(found)}"
            raise InputError(
                f"{path}: {which} electrode stream is named like {wanted!r}; there are {listed}"
            )
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
            " with --stream"
        )
    raise InputError(
        f"{path}: no electrode stream holds raw data, only {listed}: if a filtered one is meant,"
        " name it with --stream and turn our filter off with --highpass-hz 0"
    )


def _segments(path: Path, parts: list[_Part], sampling_rate_hz: float) -> tuple[Segment, ...]:
    """Join stretches that follow each other without a gap; time 0 is the first sample's.

    A Recording_N whose time stamp lies before the end of the one before (some programs count each
    from 0) starts where that one ended; it is a segment of its own all the same.
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
                        f"{path}: {part.name}: ChannelDataTimeStamps has samples from"
                        f" {time_us / 1e6:g} s on that were recorded before those in front of them"
                        " ended: export the file again"
                    )
            segments.append(Segment(part.first_sample + first, count, start_us / 1e6))
            begins_part = False
    return tuple(segments)

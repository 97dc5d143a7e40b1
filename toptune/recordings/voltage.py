"""What readers of voltage through other libraries share.

These are ranges and chunks in bounded memory, the choice of a stream and of a culture, stretches
between gaps, and checks of scales and names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.trains import Segment, check_labels, check_length
from toptune.recordings.wells import rows_of_culture

#: What a stream of spikes that were detected by the recording's program is called.
SPIKES = "spikes"

# The most values of a file to hold at once, beside what the caller holds.
_MOST_VALUES = 2 * 2**20
# Of whole samples of a file that is not stored in chunks.
_CHUNK_SAMPLES = 4096
_MOST_SEGMENTS = 100_000
_STAMPS = 2**20
# Beyond these, microvolts would not fit float32.
_LARGEST_GAIN_UV, _LARGEST_OFFSET_UV = 1e12, 1e15


class Stretch(NamedTuple):
    """Samples without a gap, and when they were recorded by the file's clock."""

    first: int  # index of the first sample in the file
    n_samples: int
    start_s: float


class OpenFile(ABC):
    """An open recording: a context manager whose voltage is read in ranges."""

    path: Path
    channel_labels: tuple[str, ...]
    segments: tuple[Segment, ...]

    @abstractmethod
    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Fill `out` (channels, samples) float32 with microvolts from sample `start` on."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def read(self, start: int, stop: int, pool: Executor | None = None) -> NDArray[np.float32]:
        """Return samples [start, stop) of all channels: (channels, samples) float32 microvolts."""
        out = np.empty((len(self.channel_labels), stop - start), np.float32)
        self.read_into(out, start, pool)
        return out

    def chunks(self, n_samples: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield the recording in order, (channels, samples) float32 microvolts at a time.

        A chunk never spans a gap, and has at most `n_samples`, or a million values if None.
        """
        step = n_samples or max(1, 1_000_000 // len(self.channel_labels))
        for segment in self.segments:
            end = segment.first_sample + segment.n_samples
            for start in range(segment.first_sample, end, step):
                yield self.read(start, min(start + step, end))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VoltageReader(OpenFile):
    """Voltage read through another library: a `VoltageRecording`.

    A reader sets the attributes, calls `_set_segments`, and fills ranges within a segment.
    """

    kind: str
    program: str = ""
    date: str = ""
    layout: str = ""
    stream_label: str
    #: Channels of the stream that are left out, since they are no electrodes.
    reference_labels: tuple[str, ...] = ()
    #: What was assumed or left out, one line each.
    notes: tuple[str, ...] = ()
    sampling_rate_hz: float
    n_samples: int
    chunk_samples: int
    #: Channels that are read together, whether they are used or not.
    width: int

    @abstractmethod
    def _fill(self, out: NDArray[np.float32], segment: int, start: int) -> None:
        """Fill `out` (channels, samples) with microvolts from a segment's sample `start` on."""

    def _set_segments(self, stretches: Sequence[Stretch], chunk_samples: int | None = None) -> None:
        """Take over where the samples are; names and the rate are there already."""
        self.segments = segments_of(self.path, stretches, self.sampling_rate_hz)
        check_length(self.path, self.segments, self.sampling_rate_hz)
        named = (self.program, self.date, self.layout, self.stream_label)
        check_labels(self.path, (*self.channel_labels, *self.reference_labels, *named))
        self.n_samples = sum(segment.n_samples for segment in self.segments)
        self._firsts = [segment.first_sample for segment in self.segments]
        widest = max(1, _MOST_VALUES // self.width)
        self.chunk_samples = max(1, min(chunk_samples or _CHUNK_SAMPLES, widest))

    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Fill `out` (channels, samples) float32 with microvolts from sample `start` on."""
        del pool  # the libraries read in one thread
        origin, stop = start, start + out.shape[1]
        if start < 0 or stop > self.n_samples:
            raise InputError(f"{self.path}: samples {start} to {stop} are not in the recording")
        step = max(1, _MOST_VALUES // self.width)
        number = bisect_right(self._firsts, start) - 1
        while start < stop:
            segment = self.segments[number]
            end = min(stop, segment.first_sample + segment.n_samples)
            for low in range(start, end, step):
                high = min(low + step, end)
                self._fill(out[:, low - origin : high - origin], number, low - segment.first_sample)
            start, number = end, number + 1

    def check_whole(self) -> None:
        """Refuse a truncated file by reading the last sample of the last segment."""
        self.read(self.n_samples - 1, self.n_samples)


def scaled(
    path: Path, raw: NDArray[Any], gain_uv: NDArray[np.float64], offset_uv: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Turn stored values (samples, channels) into microvolts (channels, samples) float32."""
    values = raw.T.astype(np.float64)
    values *= gain_uv[:, None]
    values += offset_uv[:, None]
    with np.errstate(over="ignore"):
        microvolts = values.astype(np.float32)
    if raw.dtype.kind == "f" and not np.isfinite(microvolts).all():
        raise InputError(f"{path}: some of its samples are no voltage: export the file again")
    return microvolts


def choose_stream(path: Path, names: Sequence[str], raw: Sequence[str], wanted: str | None) -> str:
    """Return which stream is meant: the one named, the only raw one, or the only one.

    `names` lists all streams, `raw` those that may hold unfiltered voltage of electrodes.
    """
    if not names:
        raise InputError(f"{path}: holds neither voltage of electrodes nor spikes")
    listed = ", ".join(repr(name) for name in names)
    if wanted is not None:
        text = wanted.strip()
        exact = [name for name in names if name == text]
        found = exact or [name for name in names if text.lower() in name.lower()]
        if len(found) != 1:
            which = f"{len(found)} streams are" if found else "no stream is"
            raise InputError(f"{path}: {which} named like {wanted!r}; there are {listed}")
        return found[0]
    only = raw or names
    if len(only) == 1:
        return only[0]
    many = f"{len(raw)} streams could hold" if raw else "it is not known which stream holds"
    raise InputError(f"{path}: {many} the raw data: choose one of {listed} by `stream`")


def different(path: Path, *candidates: Sequence[str]) -> tuple[str, ...]:
    """Return the first list of names that are all different; refuse where none is."""
    for names in candidates:
        if len(set(names)) == len(names) and all(names):
            return tuple(names)
    (label, n), *_ = Counter(candidates[0]).most_common(1)
    raise InputError(f"{path}: {n} electrodes are called {label!r}: rename them, and export again")


def culture(
    path: Path, labels: Sequence[str], wanted: str | None
) -> tuple[list[int], tuple[str, ...]]:
    """Return the rows and names of one culture's electrodes; see `rows_of_culture`."""
    rows = rows_of_culture(path, labels, wanted)
    return rows, tuple(labels[row] for row in rows)


def check_scale(
    path: Path,
    labels: Sequence[str],
    gain_uv: NDArray[np.float64],
    offset_uv: NDArray[np.float64],
) -> None:
    """Refuse scales that give no voltage."""
    ok = np.isfinite(gain_uv) & (gain_uv != 0) & (abs(gain_uv) < _LARGEST_GAIN_UV)
    ok &= np.isfinite(offset_uv) & (abs(offset_uv) < _LARGEST_OFFSET_UV)
    if not ok.all():
        k = int(np.argmin(ok))
        raise InputError(
            f"{path}: electrode {labels[k]} has a step of {gain_uv[k]:g} uV from {offset_uv[k]:g}"
            " uV on, which gives no voltage: export the file again"
        )


def segments_of(
    path: Path, stretches: Sequence[Stretch], sampling_rate_hz: float
) -> tuple[Segment, ...]:
    """Place stretches in time; time 0 is that of the first sample.

    Some programs start their clock anew after a pause. A stretch that would start before the end of
    the previous one starts at that end instead.
    """
    if len(stretches) > _MOST_SEGMENTS:
        raise InputError(
            f"{path}: has more than {_MOST_SEGMENTS} gaps: export it again from its program"
        )
    if not stretches or not 0 < sampling_rate_hz < np.inf:
        raise InputError(f"{path}: holds no sample at {sampling_rate_hz:g} Hz")
    found: list[Segment] = []
    shift_s = -stretches[0].start_s
    first = 0
    for stretch in stretches:
        start_s = stretch.start_s + shift_s
        if found:
            end_s = found[-1].start_s + found[-1].n_samples / sampling_rate_hz
            if start_s < end_s:
                shift_s += end_s - start_s
                start_s = end_s
        if not np.isfinite(start_s):
            raise InputError(f"{path}: starts at {start_s} s by its clock: export it again")
        found.append(Segment(first, stretch.n_samples, start_s))
        first += stretch.n_samples
    return tuple(found)


def between_gaps(
    stamps: Callable[[int, int], NDArray[Any]], n: int, sampling_rate_hz: float
) -> list[Stretch]:
    """Split `n` samples where their numbers, `stamps(start, stop)`, do not follow each other."""
    if n == 0:
        return []
    firsts = [0]
    numbers = [float(stamps(0, 1)[0])]
    for low in range(0, n, _STAMPS):
        begin = max(0, low - 1)
        here = stamps(begin, min(low + _STAMPS, n)).astype(np.float64)
        jumps = np.flatnonzero(~(np.abs(np.diff(here) - 1) < 0.5)) + 1
        firsts += (begin + jumps).tolist()
        numbers += here[jumps].tolist()
        if len(firsts) > _MOST_SEGMENTS:
            break  # `segments_of` refuses it
    ends = [*firsts[1:], n]
    return [
        Stretch(first, end - first, number / sampling_rate_hz)
        for first, end, number in zip(firsts, ends, numbers, strict=True)
    ]

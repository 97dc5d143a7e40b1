"""The spikes of one recording, detected in voltage or read from a file, and facts about it.

Samples are 0-based indices into the recording's stored samples, amplitudes are peak-to-peak in
microvolts, and times are in seconds since the recording's start.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toptune.errors import InputError
from toptune.machine.display import SHOWN_ROWS, count, summary_html, summary_line
from toptune.params import FASTEST_HZ, LONGEST_S

# Control characters, surrogates, line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


class Spikes(NamedTuple):
    """Spikes sorted by sample, then channel."""

    sample: NDArray[np.int64]  # (n,), 0-based index into the recording's stored samples
    channel: NDArray[np.int32]  # (n,), row of the channel
    peak_to_peak_uv: NDArray[np.float32]  # (n,), amplitude in microvolts

    def at(self, rows: slice | NDArray[np.bool_]) -> Spikes:
        """Take some of them."""
        return Spikes(self.sample[rows], self.channel[rows], self.peak_to_peak_uv[rows])

    def __repr__(self) -> str:
        return summary_line("Spikes", self._facts())

    def _repr_html_(self) -> str:
        shown = zip(*(column[:SHOWN_ROWS].tolist() for column in self), strict=True)
        return summary_html("Spikes", self._facts(), self._fields, shown, n_rows=len(self.sample))

    def _facts(self) -> list[str]:
        if not len(self.sample):
            return ["no spikes"]
        channels = count(len(np.unique(self.channel)), "channel")
        return [
            f"{count(len(self.sample), 'spike')} on {channels}",
            f"samples {self.sample[0]} to {self.sample[-1]}",
        ]


class Segment(NamedTuple):
    """A stretch of a recording without a gap, whose ends detection and windows never cross."""

    first_sample: int  # its index among the recording's stored samples
    n_samples: int
    start_s: float  # time of the first sample in seconds since the recording's start


@dataclass(frozen=True, kw_only=True, eq=False)
class SpikeTrains:
    """All spikes of a recording, with its electrodes, rate and segments."""

    spikes: Spikes
    channel_labels: tuple[str, ...]  # the electrodes' names as the recording gives them
    sampling_rate_hz: float  # samples per second
    segments: tuple[Segment, ...]  # in order; together they hold all samples
    # (channels,): the peak-to-peak thresholds of detection; NaN if none is known, infinite for a
    # dead channel.
    threshold_uv: NDArray[np.float32]
    # What was assumed or left out when the spikes were read, one line each; not kept in a store.
    notes: tuple[str, ...] = ()

    @property
    def n_samples(self) -> int:
        """Stored samples per channel, without gaps."""
        return sum(s.n_samples for s in self.segments)

    @property
    def duration_s(self) -> float:
        """Recorded time in seconds, without gaps."""
        return self.n_samples / self.sampling_rate_hz

    @classmethod
    def from_arrays(
        cls,
        times_s: ArrayLike,
        channels: ArrayLike | Sequence[object],
        *,
        duration_s: float | None = None,
        sampling_rate_hz: float | None = None,
        channel_labels: Sequence[object] | None = None,
        peak_to_peak_uv: ArrayLike | None = None,
        well: str | None = None,
    ) -> SpikeTrains:
        """Make spike trains of times and channels.

        Parameters
        ----------
        times_s : (n,)
            When each spike was, in seconds since the recording's start, or as a quantity of time.
            Of one channel they must ascend; channels may follow one another or be mixed.
        channels : (n,)
            The channel of each spike: a name, or a whole number, which is taken as a name.
        duration_s
            Length of the recording in seconds. Needed: silence after the last spike counts.
        sampling_rate_hz
            Of the recording. Times are rounded to its samples. Where it is not given, 10,000 Hz are
            assumed, and a note says so.
        channel_labels
            All channels in their order, so that silent ones are there. Those with spikes, in
            natural order, where it is not given.
        peak_to_peak_uv : (n,), optional
            Amplitudes in microvolts, above 0; NaN where unknown.
        well
            The culture to take, where the channels' names are of several wells (``A1_11``).

        Returns
        -------
        SpikeTrains
            One segment; `threshold_uv` is NaN.

        Raises
        ------
        InputError
            Lengths that differ; no duration; a time that is NaN, negative, after the end, or before
            an earlier one of its channel; a channel that is not in `channel_labels`; names that
            repeat; several wells of which none is chosen.
        """
        from toptune.recordings.conversion import from_arrays

        return from_arrays(
            times_s,
            channels,
            duration_s=duration_s,
            sampling_rate_hz=sampling_rate_hz,
            channel_labels=channel_labels,
            peak_to_peak_uv=peak_to_peak_uv,
            well=well,
        )

    @classmethod
    def from_neo(
        cls, block: Any, *, sampling_rate_hz: float | None = None, well: str | None = None
    ) -> SpikeTrains:
        """Take the spike trains of a neo Block, Segment, or list of SpikeTrain.

        Parameters
        ----------
        block
            Lazily read spike trains are loaded. Each segment of a Block becomes a segment, from the
            earliest ``t_start`` to the latest ``t_stop`` of its trains, in any unit of time. One
            that would start before the one before it ends starts at that end.
        sampling_rate_hz
            Times are rounded to samples of this rate; where it is not given, to those that the
            trains state, and else to 10,000 Hz, with a note. neo's own default of 1 Hz states
            nothing.
        well
            The culture to take, where the trains' names are of several wells (``A1_11``).

        Returns
        -------
        SpikeTrains
            A channel per train, by its ``name``, else by an annotation such as ``channel_name`` or
            ``id``, else by its number; amplitudes and thresholds are NaN.

        Raises
        ------
        InputError
            There are no spike trains; times that are NaN, outside their segment, or that go back;
            names that repeat; rates that differ; several wells of which none is chosen.
        """
        from toptune.recordings.conversion import from_neo

        return from_neo(block, sampling_rate_hz=sampling_rate_hz, well=well)

    @classmethod
    def from_spikeinterface(
        cls,
        sorting: Any,
        *,
        duration_s: float | Sequence[float] | None = None,
        well: str | None = None,
    ) -> SpikeTrains:
        """Take the units of a SpikeInterface sorting as channels.

        Parameters
        ----------
        sorting
            Each of its segments becomes a segment.
        duration_s
            Length in seconds; a list where there are several segments. Needed unless the sorting
            has its recording registered.
        well
            The units to take, by their property ``well`` or ``group``, or by names such as
            ``A1_11``, where they are of several cultures.

        Returns
        -------
        SpikeTrains
            A channel per unit, by its id; amplitudes and thresholds are NaN.

        Raises
        ------
        InputError
            No unit, no length, spikes outside the recording or out of order, several wells or
            groups of which none is chosen.
        """
        from toptune.recordings.conversion import from_spikeinterface

        return from_spikeinterface(sorting, duration_s=duration_s, well=well)

    def __repr__(self) -> str:
        return summary_line("SpikeTrains", self._facts())

    def _repr_html_(self) -> str:
        counts = np.bincount(self.spikes.channel, minlength=len(self.channel_labels))
        rows = (
            (label, int(n), f"{n / self.duration_s:.3g}")
            for label, n in zip(self.channel_labels, counts, strict=True)
        )
        header = ("channel", "spikes", "rate (1/s)")
        facts = [*self._facts(), *(f"note: {note}" for note in self.notes)]
        return summary_html("SpikeTrains", facts, header, rows, n_rows=len(self.channel_labels))

    def _facts(self) -> list[str]:
        spikes = count(len(self.spikes.sample), "spike")
        facts = [
            f"{spikes} on {count(len(self.channel_labels), 'channel')}",
            f"{self.duration_s:g} s at {self.sampling_rate_hz:g} Hz",
        ]
        return facts if len(self.segments) == 1 else [*facts, f"{len(self.segments)} segments"]


class PeakTrain(NamedTuple):
    """Spikes of one electrode, as a file of that electrode holds them."""

    n_samples: int  # length of the recording
    sample: NDArray[np.int64]  # (n,), 0-based, strictly rising
    peak_to_peak_uv: NDArray[np.float32]  # (n,), amplitude in microvolts


def natural_key(label: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key by which ``2`` comes before ``10`` and ``A2`` before ``A10``."""
    parts = re.split(r"(\d+)", label)
    # Python refuses to read numbers of more than 4,300 digits.
    return tuple((0, int(p)) if p.isdecimal() and len(p) < 1000 else (1, p) for p in parts if p)


def check_length(path: Path, segments: Sequence[Segment], sampling_rate_hz: float) -> None:
    """Refuse recordings with no sample, and those that claim an impossible length."""
    if not 0 < sampling_rate_hz <= FASTEST_HZ:
        raise InputError(
            f"{path}: sampled at {sampling_rate_hz:g} Hz, not between 0 and {FASTEST_HZ:g} Hz"
        )
    if sum(s.n_samples for s in segments) < 1:
        raise InputError(f"{path}: holds no sample at {sampling_rate_hz:g} Hz")
    last = segments[-1]
    end_s = last.start_s + last.n_samples / sampling_rate_hz
    if end_s > LONGEST_S:
        raise InputError(
            f"{path}: claims to last {end_s:g} s at {sampling_rate_hz:g} Hz, more than"
            f" {LONGEST_S / 86_400:g} days: are its times, number of samples and rate right?"
        )


def check_labels(path: Path, labels: Sequence[str]) -> None:
    """Refuse names of electrodes with characters that cannot be printed."""
    for label in labels:
        if any(unicodedata.category(c) in _UNPRINTABLE for c in label):
            raise InputError(
                f"{path}: {label!r:.80} has a character that cannot be printed: rename it"
            )


def check_spikes(trains: SpikeTrains) -> None:
    """Refuse spikes outside the recording, or on channels that it does not have."""
    sample, channel = trains.spikes.sample, trains.spikes.channel
    if len(sample) == 0:
        return
    low, high, n = int(sample.min()), int(sample.max()), trains.n_samples
    if low < 0 or high >= n:
        raise InputError(
            f"a spike at sample {low if low < 0 else high} lies outside the recording's {n} samples"
        )
    low, high, n = int(channel.min()), int(channel.max()), len(trains.channel_labels)
    if low < 0 or high >= n:
        raise InputError(
            f"a spike is on channel {low if low < 0 else high}, the recording has {n} channels"
        )


def check_trains(source: Path, trains: SpikeTrains) -> None:
    """Refuse spikes that are out of order or range, since compiled code does not check."""
    check_length(source, trains.segments, trains.sampling_rate_hz)
    sample, channel, amplitude = trains.spikes
    n_channels = len(trains.channel_labels)
    stops = np.cumsum([0, *(s.n_samples for s in trains.segments)])
    rules = (
        (sample.dtype == np.int64 and channel.dtype == np.int32, "types"),
        (sample.shape == channel.shape == amplitude.shape and sample.ndim == 1, "lengths"),
        (trains.threshold_uv.shape == (n_channels,) and n_channels > 0, "channels"),
        ([s.first_sample for s in trains.segments] == stops[:-1].tolist(), "segments"),
        (all(s.n_samples > 0 and s.start_s >= 0 for s in trains.segments), "segments"),
    )
    wrong = [what for ok, what in rules if not ok]
    if not wrong and sample.size:
        in_order = bool((np.diff(sample) >= 0).all())
        inside = sample[0] >= 0 and sample[-1] < stops[-1] and channel.min() >= 0
        if not (in_order and inside and channel.max() < n_channels):
            wrong = ["order or range of the spikes"]
    if wrong:
        raise InputError(f"{source} is damaged ({wrong[0]}): extract again into a new store")


#: The rate of most spike files in circulation: SpyCode's default.
DEFAULT_SAMPLING_RATE_HZ = 10_000.0


def length_of_spikes(source: Path, last_s: float | None) -> tuple[float, str]:
    """Give the length of a recording whose file does not state it, and say that it is assumed.

    It ends with the second of its last spike; one without spikes is refused.
    """
    if last_s is None:
        raise InputError(
            f"{source}: no spikes in it: if the culture was silent, give the recording's length by"
            " `duration_s`"
        )
    length_s = math.floor(last_s) + 1.0
    return length_s, (
        f"a length of {length_s:g} s is assumed from the last spike: give `duration_s`"
    )


def assumed_rate(rate_hz: float) -> str:
    """Say that times follow from a rate that nobody has given."""
    return f"a sampling rate of {rate_hz:g} Hz is assumed: give `sampling_rate_hz`"


def doubts(trains: SpikeTrains) -> tuple[str, ...]:
    """Say what a recording's times cannot well be, one line each, and how to put it right."""
    n = len(trains.spikes.sample)
    if not n:
        return ()
    found = []
    length_s, first_s = end_s(trains), float(spike_times_s(trains)[0])
    rate = n / (trains.duration_s * len(trains.channel_labels))
    if first_s > max(60.0, length_s / 2):
        found.append(
            f"no spike in the first {first_s:.0f} s of {length_s:g} s: if the recording starts"
            " later on its clock, give its start by `start_s`"
        )
    if length_s > _LONG_S and rate < _SILENT_HZ:
        found.append(
            f"lasts {length_s / 3600:.0f} hours at {rate:.2g} spikes/s per electrode: are its times"
            " milliseconds or sample numbers? give their unit by `time_unit`"
        )
    return tuple(found)


# Hours at a rate that no living culture has.
_LONG_S, _SILENT_HZ = 6 * 3600.0, 0.01


def sort_spikes(
    sample: NDArray[np.int64], channel: NDArray[np.int32], peak_to_peak_uv: NDArray[np.float32]
) -> Spikes:
    """Sort spikes by sample, then channel."""
    order = np.lexsort((channel, sample))
    return Spikes(sample[order], channel[order], peak_to_peak_uv[order])


def join_spikes(parts: Sequence[Spikes]) -> Spikes:
    """Put together spikes that were found one part after the other; parts may overlap in time."""
    if not parts:
        return Spikes(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    return sort_spikes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def spike_times_s(trains: SpikeTrains) -> NDArray[np.float64]:
    """Return the time of each spike in seconds since the recording's start, (n,) float64."""
    firsts = np.array([s.first_sample for s in trains.segments])
    starts = np.array([s.start_s for s in trains.segments])
    which = np.searchsorted(firsts, trains.spikes.sample, side="right") - 1
    since = (trains.spikes.sample - firsts[which]) / trains.sampling_rate_hz
    return np.asarray(starts[which] + since)


def end_s(trains: SpikeTrains) -> float:
    """Return the recording's length in seconds, gaps included."""
    last = trains.segments[-1]
    return last.start_s + last.n_samples / trains.sampling_rate_hz


@dataclass(frozen=True, kw_only=True)
class RecordingFacts:
    """How a recording was made, and how many spikes it has; trained models carry these facts."""

    name: str  # for messages
    sampling_rate_hz: float
    n_electrodes: int  # including silent and dead ones
    n_spikes: int
    duration_s: float  # recorded time without gaps

    @classmethod
    def of(cls, name: str, trains: SpikeTrains) -> RecordingFacts:
        """Count a recording's spikes."""
        return cls(
            name=name,
            sampling_rate_hz=trains.sampling_rate_hz,
            n_electrodes=len(trains.channel_labels),
            n_spikes=len(trains.spikes.sample),
            duration_s=trains.duration_s,
        )

    @property
    def electrode_rate_hz(self) -> float:
        """Spikes/s per electrode, as the mean over all electrodes."""
        return self.n_spikes / (self.n_electrodes * self.duration_s)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Where a backbone's weights came from, to find them again."""

    path: str | None = None  # the weights file, if there was one; it may have been moved since
    seed: int | None = None  # of random weights; None for others

    def to_json(self) -> dict[str, Any]:
        """Plain values, which ``WeightsSource(**values)`` reads back."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """The recordings and the weights behind a table of features."""

    recordings: tuple[RecordingFacts, ...]  # in the order of the table's recordings
    # For each view of the table; None if the store, made by an earlier toptune, does not say.
    weights: tuple[WeightsSource | None, ...]

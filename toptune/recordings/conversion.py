"""Spike trains from what other Python packages hold: arrays, neo and SpikeInterface.

No package is imported. Objects are told by the methods they have, quantities are asked to rescale
themselves, and what else they are made of does not matter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toptune.errors import InputError
from toptune.machine.display import count
from toptune.params import FASTEST_HZ, LONGEST_S, OpeningOptions
from toptune.recordings.opening import SpikeRecording
from toptune.recordings.trains import (
    DEFAULT_SAMPLING_RATE_HZ,
    SpikeTrains,
    assumed_rate,
    natural_key,
    sort_spikes,
)
from toptune.recordings.voltage import Stretch, segments_of
from toptune.recordings.wells import choose, shown, wells_of

#: Properties of a SpikeInterface object that may say which culture a channel or unit is of.
CULTURES = ("well", "group")
# Where a neo spike train may say which electrode or unit it is of, if its name does not.
_ANNOTATIONS = ("channel_name", "channel", "electrode", "channel_id", "unit_id", "id")


# --- arrays


def from_arrays(
    times_s: ArrayLike,
    channels: ArrayLike | Sequence[object],
    *,
    duration_s: float | None,
    sampling_rate_hz: float | None,
    channel_labels: Sequence[object] | None,
    peak_to_peak_uv: ArrayLike | None,
    well: str | None,
) -> SpikeTrains:
    """See `SpikeTrains.from_arrays`."""
    if duration_s is None:
        raise InputError(
            "spike times do not say how long their recording is, and what is after the last spike"
            " counts: give its length in seconds as `duration_s`"
        )
    rate, notes = _rate(sampling_rate_hz)
    length_s = _above_0("duration_s", duration_s, LONGEST_S)
    times = _numbers("times_s", times_s, "s")
    labels, channel = _channels(channels, channel_labels)
    if len(channel) != len(times):
        raise InputError(
            f"times_s has {len(times)} spikes and channels {len(channel)}: both need one value per"
            " spike"
        )
    sample, n_samples = to_samples("times_s", times, length_s, rate)
    _refuse_unsorted("times_s", times, channel, labels)
    amplitude = np.full(len(times), np.nan, np.float32)
    if peak_to_peak_uv is not None:
        amplitude = _amplitudes(peak_to_peak_uv, len(times))
    trains = SpikeTrains(
        spikes=sort_spikes(sample, channel, amplitude),
        channel_labels=labels,
        sampling_rate_hz=rate,
        segments=segments_of(Path("arrays"), [Stretch(0, n_samples, 0.0)], rate),
        threshold_uv=np.full(len(labels), np.nan, np.float32),
        notes=notes,
    )
    silent_s = length_s if channel_labels is None else None
    return _checked(Path("arrays"), "arrays", trains, well, silent_s)


def to_samples(
    what: str, times_s: NDArray[np.float64], length_s: float, sampling_rate_hz: float
) -> tuple[NDArray[np.int64], int]:
    """Round times to samples, and give the recording's number of samples.

    Times that are not finite, before 0 or after the end are refused. `what` names them in messages.
    """
    n_samples = max(1, round(length_s * sampling_rate_hz))
    # Half a sample's tolerance: the end, too, was rounded to a sample by whoever wrote it.
    late_s = length_s + 0.5 / sampling_rate_hz
    for bad, problem in (
        (~np.isfinite(times_s), "is no time: leave it out"),
        (times_s < 0, "is before the recording's start: subtract the time at which it starts"),
        (
            times_s > late_s,
            f"is after the recording's end at {length_s:g} s: are the times in seconds, and is the"
            " length right?",
        ),
    ):
        if bad.any():
            k = int(np.argmax(bad))
            raise InputError(f"{what}[{k}], {times_s[k]:g} s, {problem}")
    sample = np.rint(times_s * sampling_rate_hz).astype(np.int64)
    return np.minimum(sample, n_samples - 1), n_samples


def _refuse_unsorted(
    what: str,
    times_s: NDArray[np.float64],
    channel: NDArray[np.int32],
    labels: Sequence[str],
) -> None:
    """Refuse times of a channel that go back, as they do where recordings were joined."""
    order = np.argsort(channel, kind="stable")
    back = (np.diff(times_s[order]) < 0) & (np.diff(channel[order]) == 0)
    if back.any():
        k = int(np.argmax(back))
        before, after = int(order[k]), int(order[k + 1])
        raise InputError(
            f"{what}[{after}], {times_s[after]:g} s, comes after {what}[{before}],"
            f" {times_s[before]:g} s, on channel {labels[channel[after]]}: if these are several"
            " recordings, convert each alone; otherwise sort the spikes by time"
        )


def _numbers(what: str, values: Any, unit: str) -> NDArray[np.float64]:
    """Give numbers as (n,) float64; quantities in `unit`, and others as they are."""
    try:
        array = np.asarray(in_unit(values, unit))
        numbers = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be numbers ({' '.join(str(error).split())})") from None
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise InputError(
            f"{what} must be a list of numbers, got {array.dtype} of shape {array.shape}"
        )
    return numbers


def in_unit(value: Any, unit: str) -> Any:
    """Give the numbers of a quantity in a unit; what is no quantity is given back."""
    rescale = getattr(value, "rescale", None)
    if rescale is None:
        return value
    try:
        return rescale(unit).magnitude
    except ValueError as error:
        raise InputError(f"{' '.join(str(error).split())}: give it the right unit") from None


def _amplitudes(values: ArrayLike, n: int) -> NDArray[np.float32]:
    numbers = _numbers("peak_to_peak_uv", values, "uV")
    if len(numbers) != n:
        raise InputError(f"peak_to_peak_uv has {len(numbers)} values for {n} spikes")
    bad = (numbers <= 0) | np.isinf(numbers)
    if bad.any():
        k = int(np.argmax(bad))
        raise InputError(
            f"peak_to_peak_uv[{k}] is {numbers[k]:g}; it must be above 0, or NaN where unknown"
        )
    return numbers.astype(np.float32)


def _channels(
    channels: Any, labels: Sequence[object] | None
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Give the names of all channels, and the row of each spike's."""
    try:
        array = np.asarray(channels)
    except ValueError:
        array = np.empty((0, 0))
    if array.ndim != 1:
        raise InputError("channels must be a list of names or numbers, one per spike")
    # Spikes are many, names few: each is looked at once.
    try:
        found, code = np.unique(array, return_inverse=True)
    except TypeError:  # names and numbers mixed
        found, code = np.unique([_label("channels", v) for v in array], return_inverse=True)
    there = [_label("channels", value) for value in found.tolist()]
    if labels is None:
        known = tuple(sorted(set(there), key=natural_key))
        if not known:
            raise InputError(
                "there is no spike, and so no channel: name all channels by `channel_labels`"
            )
    else:
        known = tuple(_label("channel_labels", value) for value in labels)
        refuse_repeated("channel_labels", "channels", known)
    row = {label: k for k, label in enumerate(known)}
    unknown = [label for label in there if label not in row]
    if unknown:
        raise InputError(f"channel {unknown[0]} of channels is not in channel_labels")
    rows = np.array([row[label] for label in there], np.int32)
    return known, rows[code]


def _label(what: str, value: object) -> str:
    """Write a channel's name or number as text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise InputError(f"{what} must be names or whole numbers, got {value!r:.80}")
    return str(value).strip()


def refuse_repeated(where: str, what: str, labels: Sequence[str]) -> None:
    """Refuse names that stand more than once: several cultures, or a copy of an electrode."""
    repeated = [label for label, n in Counter(labels).items() if n > 1]
    if repeated:
        raise InputError(
            f"{where}: {what} called {repeated[0]} are there {labels.count(repeated[0])} times:"
            " give each a name of its own, and leave copies out"
        )


def _rate(sampling_rate_hz: float | None) -> tuple[float, tuple[str, ...]]:
    """Give the rate of samples, and a note where it is assumed."""
    if sampling_rate_hz is not None:
        return _above_0("sampling_rate_hz", sampling_rate_hz, FASTEST_HZ), ()
    rate = DEFAULT_SAMPLING_RATE_HZ
    return rate, (assumed_rate(rate),)


def _above_0(name: str, value: Any, most: float) -> float:
    try:
        number = float(in_unit(value, "s" if name == "duration_s" else "Hz"))
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number <= most:
        raise InputError(f"`{name}` must be above 0 and at most {most:g}, got {value!r:.80}")
    return number


def _checked(
    name: Path,
    kind: str,
    trains: SpikeTrains,
    well: str | None,
    duration_s: float | None = None,
) -> SpikeTrains:
    """Check spikes as those of files are; of several cultures one must be chosen.

    With the length, a well without spikes may be chosen: only what has spikes was named.
    """
    wells = wells_of(trains.channel_labels)
    if well is not None and wells and duration_s is None:
        choose(name, "well", list(wells), well)
    options = OpeningOptions(well=well, duration_s=duration_s)
    return SpikeRecording(name, kind, options, lambda *_: trains).trains()


def _joined(
    name: Path,
    sample: Sequence[NDArray[np.int64]],
    channel: Sequence[NDArray[np.int32]],
    labels: tuple[str, ...],
    rate: float,
    stretches: Sequence[Stretch],
    notes: tuple[str, ...] = (),
) -> SpikeTrains:
    """Put the spikes of electrodes and segments together; amplitudes are unknown."""
    samples = np.concatenate(sample)
    unknown = np.full(len(samples), np.nan, np.float32)
    return SpikeTrains(
        spikes=sort_spikes(samples, np.concatenate(channel), unknown),
        channel_labels=labels,
        sampling_rate_hz=rate,
        segments=segments_of(name, stretches, rate),
        threshold_uv=np.full(len(labels), np.nan, np.float32),
        notes=notes,
    )


# --- neo


def from_neo(source: Any, *, sampling_rate_hz: float | None, well: str | None) -> SpikeTrains:
    """See `SpikeTrains.from_neo`."""
    name = Path(object_name(source))
    return _checked(name, "neo", _neo_trains(name, source, sampling_rate_hz), well)


def _neo_trains(name: Path, source: Any, sampling_rate_hz: float | None) -> SpikeTrains:
    """Convert neo's spike trains, of however many cultures."""
    parts = [_loaded(trains) for trains in _neo_parts(name, source)]
    rate, notes = _neo_rate(name, parts, sampling_rate_hz)
    named = _neo_labels(name, parts)
    labels = tuple(dict.fromkeys(label for part in named for label in part))
    row = {label: k for k, label in enumerate(labels)}
    sample: list[NDArray[np.int64]] = []
    channel: list[NDArray[np.int32]] = []
    stretches: list[Stretch] = []
    first = 0
    for number, (trains, names) in enumerate(zip(parts, named, strict=True)):
        start_s, length_s, note = _neo_span(number, trains, rate)
        notes += note
        n_samples = 1
        for train, label in zip(trains, names, strict=True):
            what = f"{name}: times of spike train {label}"
            times = _numbers(what, train, "s") - start_s
            found, n_samples = to_samples(what, times, length_s, rate)
            row_of = np.full(len(found), row[label], np.int32)
            _refuse_unsorted(what, times, row_of, labels)
            sample.append(found + first)
            channel.append(row_of)
        stretches.append(Stretch(first, n_samples, start_s))
        first += n_samples
    return _joined(name, sample, channel, labels, rate, stretches, notes)


def _neo_parts(name: Path, source: Any) -> list[list[Any]]:
    """List the spike trains of each segment."""
    if hasattr(source, "spiketrains"):
        parts = [list(source.spiketrains)]
    elif all(hasattr(one, "spiketrains") for one in getattr(source, "segments", [None])):
        parts = [list(segment.spiketrains) for segment in source.segments]
    elif isinstance(source, Sequence) and not isinstance(source, str):
        parts = [list(source)]
    else:
        raise InputError(f"{name}: is no neo Block or Segment, and no list of neo spike trains")
    if not parts:
        raise InputError(f"{name}: has no segment")
    for number, trains in enumerate(parts):
        if not all(hasattr(train, "t_stop") for train in trains) or not trains:
            raise InputError(
                f"{name}: segment {number} holds no spike trains: to find spikes in its voltage,"
                " give it to `open_recording` or `predict`"
            )
    return parts


def _loaded(trains: Sequence[Any]) -> list[Any]:
    """Load spike trains that neo reads lazily."""
    return [train.load() if hasattr(train, "load") else train for train in trains]


def _neo_rate(
    name: Path, parts: Sequence[Sequence[Any]], given: float | None
) -> tuple[float, tuple[str, ...]]:
    """Give the rate that was given, or the one that all trains state."""
    if given is not None:
        return _rate(given)
    stated = {
        float(in_unit(train.sampling_rate, "Hz"))
        for trains in parts
        for train in trains
        if getattr(train, "sampling_rate", None) is not None
    }
    # neo states 1 Hz where nobody gave a rate, and readers of files 0 or NaN.
    stated = {rate for rate in stated if 1 < rate <= FASTEST_HZ}
    if len(stated) > 1:
        listed = ", ".join(f"{rate:g}" for rate in sorted(stated))
        raise InputError(
            f"{name}: its spike trains state sampling rates of {listed} Hz: give one by"
            " `sampling_rate_hz`"
        )
    return (stated.pop(), ()) if stated else _rate(None)


def _neo_span(
    number: int, trains: Sequence[Any], rate: float
) -> tuple[float, float, tuple[str, ...]]:
    """Give a segment's start and length in seconds; trains that end apart are noted."""
    starts = [float(in_unit(train.t_start, "s")) for train in trains]
    stops = [float(in_unit(train.t_stop, "s")) for train in trains]
    note: tuple[str, ...] = ()
    if (max(stops) - min(stops)) * rate >= 1 or (max(starts) - min(starts)) * rate >= 1:
        note = (
            f"spike trains of segment {number} start at {min(starts):g} to {max(starts):g} s and"
            f" end at {min(stops):g} to {max(stops):g} s: the earliest and the latest are taken",
        )
    return min(starts), max(stops) - min(starts), note


def _neo_labels(name: Path, parts: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Name the trains of each segment: by names, else annotations; by numbers if there are none."""

    def annotation(key: str) -> Callable[[Any], object]:
        return lambda train: (getattr(train, "annotations", None) or {}).get(key)

    ways = [lambda train: getattr(train, "name", None), *map(annotation, _ANNOTATIONS)]
    repeated: list[list[str]] = []
    for way in ways:
        named = [[_text(way(train)) for train in trains] for trains in parts]
        if all(all(names) for names in named):
            if all(len(set(names)) == len(names) for names in named):
                return named
            repeated = repeated or named
    for names in repeated:
        refuse_repeated(str(name), "spike trains", names)
    if len({len(trains) for trains in parts}) > 1:
        raise InputError(
            f"{name}: its segments have {' and '.join(str(len(p)) for p in parts)} spike trains"
            " without names: give each electrode's trains one name"
        )
    return [[str(k) for k in range(len(trains))] for trains in parts]


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return "" if value is None else str(value).strip()


# --- SpikeInterface


def from_spikeinterface(
    sorting: Any, *, duration_s: float | Sequence[float] | None, well: str | None
) -> SpikeTrains:
    """See `SpikeTrains.from_spikeinterface`."""
    name = Path(object_name(sorting))
    if not hasattr(sorting, "get_unit_spike_train"):
        raise InputError(f"{name}: is no SpikeInterface sorting: it has no get_unit_spike_train")
    rate = _above_0("sampling_frequency", sorting.get_sampling_frequency(), FASTEST_HZ)
    units = list(sorting.get_unit_ids())
    if not units:
        raise InputError(f"{name}: has no unit: give its recording to `open_recording`")
    labels = tuple(_label(f"{name}: unit_ids", unit) for unit in units)
    refuse_repeated(str(name), "units", labels)
    rows, chosen = one_group(name, sorting, "units", len(units), well)
    units, labels = [units[row] for row in rows], tuple(labels[row] for row in rows)
    lengths = _sorting_samples(name, sorting, duration_s, rate)
    stretches: list[Stretch] = []
    sample: list[NDArray[np.int64]] = []
    channel: list[NDArray[np.int32]] = []
    first = 0
    for number, n_samples in enumerate(lengths):
        for k, unit in enumerate(units):
            frames = np.asarray(sorting.get_unit_spike_train(unit_id=unit, segment_index=number))
            _check_frames(f"{name}: unit {labels[k]}", frames, n_samples)
            sample.append(frames.astype(np.int64) + first)
            channel.append(np.full(len(frames), k, np.int32))
        stretches.append(Stretch(first, n_samples, start_time_s(sorting, number)))
        first += n_samples
    trains = _joined(name, sample, channel, labels, rate, stretches)
    return _checked(name, "spikeinterface", trains, None if chosen else well)


def _check_frames(what: str, frames: NDArray[Any], n_samples: int) -> None:
    if frames.ndim != 1 or frames.dtype.kind not in "iu":
        raise InputError(f"{what}: its spikes must be numbers of samples, got {frames.dtype}")
    if not len(frames):
        return
    if frames.min() < 0 or frames.max() >= n_samples:
        k = int(np.argmax((frames < 0) | (frames >= n_samples)))
        raise InputError(
            f"{what}: its spike {k} is at sample {frames[k]}, outside the recording's {n_samples}"
            " samples: is its length right?"
        )
    back = frames[1:] < frames[:-1]
    if back.any():
        k = int(np.argmax(back))
        raise InputError(
            f"{what}: its spikes are not in the order of time: sample {frames[k + 1]} comes after"
            f" {frames[k]}"
        )


def _sorting_samples(
    name: Path, sorting: Any, duration_s: float | Sequence[float] | None, rate: float
) -> list[int]:
    """Give the number of samples of each segment: as given, or of the recording it belongs to."""
    n_segments = int(sorting.get_num_segments())
    if duration_s is not None:
        given = list(duration_s) if isinstance(duration_s, Sequence) else [duration_s]
        if len(given) != n_segments:
            raise InputError(
                f"{name}: has {count(n_segments, 'segment')}, but `duration_s` gives {len(given)}:"
                " give a list with one of each"
            )
        return [max(1, round(_above_0("duration_s", one, LONGEST_S) * rate)) for one in given]
    if not getattr(sorting, "has_recording", lambda: False)():
        raise InputError(
            f"{name}: does not know how long its recording is: give its length in seconds as"
            " `duration_s`, or register the recording (sorting.register_recording)"
        )
    return [int(sorting.get_num_samples(segment_index=k)) for k in range(n_segments)]


def start_time_s(source: Any, segment: int) -> float:
    """Give the time at which a segment of a SpikeInterface object starts; 0 if it does not say."""
    ask = getattr(source, "get_start_time", None)
    start = None if ask is None else ask(segment_index=segment)
    return 0.0 if start is None else float(start)


def one_group(
    name: Path, source: Any, what: str, n: int, wanted: str | None
) -> tuple[list[int], bool]:
    """Return the rows of one culture, by a property that says which each channel or unit is of.

    Also tells whether the property decided. Several cultures of which none is chosen are refused,
    naming them.
    """
    for key in CULTURES:
        values = source.get_property(key) if key in source.get_property_keys() else None
        groups = [] if values is None else [_text(value) for value in np.asarray(values).tolist()]
        names = sorted(set(groups), key=natural_key)
        if len(names) > 1 and wanted is None:
            raise InputError(
                f"{name}: its {what} are of {len(names)} {key}s, {shown(names)}, each assumed to"
                " be a culture of its own: choose one by `well`, or, if all are one culture, say so"
                f" by set_property({key!r}, [0] * {n})"
            )
        if wanted is not None and (len(names) > 1 or wanted in names):
            chosen = choose(name, key, names, wanted)
            return [row for row, group in enumerate(groups) if group == chosen], True
    return list(range(n)), False


# --- names


def object_name(source: Any) -> str:
    """Name an object for messages: its package, its kind and, if it has one, its name."""
    kind = type(source)
    package = {"neo": "neo", "spikeinterface": "SpikeInterface"}.get(
        kind.__module__.partition(".")[0]
    )
    title = " ".join(part for part in (package, kind.__name__) if part)
    given = getattr(source, "name", None)
    if isinstance(given, str) and given.strip() and given != kind.__name__:
        return f"{title} {given.strip()!r:.80}"
    return title

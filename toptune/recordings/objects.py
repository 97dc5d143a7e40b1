"""Recordings that are objects of neo or SpikeInterface, opened as files are.

No package is imported; objects are told by the methods they have. Voltage is asked for in the
ranges that are needed, so that memory is bounded however long the recording is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, ToptuneError
from toptune.machine.interruption import heed_interrupt
from toptune.params import OpeningOptions
from toptune.recordings.conversion import (
    from_neo,
    from_spikeinterface,
    in_unit,
    object_name,
    one_group,
    refuse_repeated,
    start_time_s,
)
from toptune.recordings.opening import OpenVoltage, SpikeRecording, open_recording
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.voltage import (
    Stretch,
    VoltageReader,
    between_gaps,
    choose_stream,
    culture,
)

_KNOWN = (
    "a path, a neo Block, Segment or AnalogSignal, a SpikeInterface recording or sorting, or"
    " SpikeTrains"
)


@dataclass(frozen=True, eq=False)
class NamedRecording:
    """A path or an object that `open_recording` opens, with a name of its own for messages."""

    source: Any
    name: str

    def __str__(self) -> str:
        return self.name


def is_recording_object(source: Any) -> bool:
    """Tell whether an object is a recording, rather than several or something else."""
    return (
        isinstance(source, SpikeTrains | NamedRecording)
        or _is_spikeinterface(source)
        or _is_sorting(source)
        or _is_neo(source)
    )


def open_object(source: Any, options: OpeningOptions) -> OpenVoltage | SpikeRecording:
    """Open a recording that is no path; see `open_recording`."""
    name = object_name(source)
    if isinstance(source, NamedRecording):
        name, source = source.name, source.source
    if isinstance(source, str | PathLike):
        return open_recording(source, **options.opening)
    path = Path(name)
    if isinstance(source, SpikeTrains):
        return SpikeRecording(path, "trains", options, lambda *_: source)
    if _is_spikeinterface(source):
        with _asking(path, "cannot be read"):
            return SpikeInterfaceVoltage(path, source, options.well)
    if _is_sorting(source):
        return _open_sorting(path, source, options)
    if _is_neo(source):
        return _open_neo(path, source, options)
    if isinstance(source, np.ndarray):
        raise InputError(
            "an array is no recording: of times of spikes, `SpikeTrains.from_arrays` makes one; in"
            " microvolts, `detect_spikes` finds spikes"
        )
    raise InputError(f"{name} is no recording: give {_KNOWN}")


def _is_spikeinterface(source: Any) -> bool:
    return hasattr(source, "get_traces") and hasattr(source, "get_num_segments")


def _is_sorting(source: Any) -> bool:
    return hasattr(source, "get_unit_spike_train") and hasattr(source, "get_num_segments")


def _is_neo(source: Any) -> bool:
    return hasattr(source, "spiketrains") or _is_block(source) or _is_signal(source)


def _is_block(source: Any) -> bool:
    # A group of neo's has both.
    parts = None if hasattr(source, "spiketrains") else getattr(source, "segments", None)
    return parts is not None and all(hasattr(part, "spiketrains") for part in parts)


def _is_signal(source: Any) -> bool:
    """Tell an AnalogSignal, in memory or to be loaded."""
    holds = hasattr(source, "magnitude") or hasattr(source, "load")
    return holds and hasattr(source, "sampling_rate") and len(getattr(source, "shape", ())) == 2


@contextmanager
def _asking(path: Path, problem: str) -> Iterator[None]:
    """Turn whatever an object raises into one line that names it."""
    try:
        yield
    except ToptuneError:
        raise
    except Exception as error:  # what objects of other packages raise has no end
        heed_interrupt(error)
        said = " ".join(str(error).split())[:200] or "no reason given"
        raise InputError(f"{path}: {problem} ({type(error).__name__}: {said})") from error


def _open_sorting(path: Path, sorting: Any, options: OpeningOptions) -> SpikeRecording:
    """Let a sorting's units be read when they are needed."""

    def read(path: Path, _options: OpeningOptions) -> SpikeTrains:
        with _asking(path, "its spikes cannot be read"):
            return from_spikeinterface(sorting, duration_s=options.duration_s, well=options.well)

    return SpikeRecording(path, "spikeinterface", replace(options, well=None), read)


def _open_neo(path: Path, source: Any, options: OpeningOptions) -> VoltageReader | SpikeRecording:
    """Open neo's voltage; its spike trains where there is none."""
    with _asking(path, "cannot be read"):
        parts, notes = _neo_signals(path, source, options.stream)
        if any(parts):
            return NeoSignals(path, parts, notes, options.well)

    def read(path: Path, _options: OpeningOptions) -> SpikeTrains:
        rate = options.sampling_rate_hz
        with _asking(path, "its spikes cannot be read"):
            return from_neo(source, sampling_rate_hz=rate, well=options.well)

    return SpikeRecording(path, "neo", replace(options, well=None), read)


# --- SpikeInterface


class SpikeInterfaceVoltage(VoltageReader):
    """A SpikeInterface recording: ``get_traces`` in microvolts, range by range.

    Parameters
    ----------
    path
        Its name, for messages.
    recording
        The recording, with gains, or of floats that are microvolts.
    well
        The channels to read, by their property ``well`` or ``group``, or by names such as A1_11.
    """

    kind = "spikeinterface"

    def __init__(self, path: Path, recording: Any, well: str | None = None) -> None:
        self.path = path
        self.program, self.stream_label = object_name(recording).partition(" '")[0], ""
        self._recording = recording
        self.sampling_rate_hz = float(recording.get_sampling_frequency())
        ids = list(recording.get_channel_ids())
        labels = tuple(str(one).strip() for one in ids)
        if not labels:
            raise InputError(f"{path}: has no channel")
        refuse_repeated(str(path), "channels", labels)
        rows, chosen = one_group(path, recording, "channels", len(ids), well)
        ids, labels = [ids[row] for row in rows], tuple(labels[row] for row in rows)
        rows, self.channel_labels = culture(path, labels, None if chosen else well)
        kept = [ids[row] for row in rows]
        self._ids = None if len(kept) == len(recording.get_channel_ids()) else kept
        self.width = len(self.channel_labels)
        self._asked, self.notes = _in_microvolts(path, recording)
        self._places: list[tuple[int, int]] = []
        stretches: list[Stretch] = []
        for number in range(int(recording.get_num_segments())):
            for stretch in _stretches(recording, number, self.sampling_rate_hz):
                self._places.append((number, stretch.first))
                stretches.append(stretch)
        self._set_segments(stretches)

    def _fill(self, out: NDArray[np.float32], segment: int, start: int) -> None:
        number, first = self._places[segment]
        begin, end = first + start, first + start + out.shape[1]
        with _asking(self.path, f"samples {begin} to {end} of segment {number} cannot be read"):
            traces = self._recording.get_traces(
                segment_index=number,
                start_frame=begin,
                end_frame=end,
                channel_ids=self._ids,
                **self._asked,
            )
            out[:] = np.asarray(traces).T

    def close(self) -> None:
        """Leave the recording as it is: it is its owner's."""


def _in_microvolts(path: Path, recording: Any) -> tuple[dict[str, bool], tuple[str, ...]]:
    """Say how to ask for microvolts, and what is assumed; refuse a recording without gains."""
    told = inspect.signature(recording.get_traces).parameters
    # It was called return_scaled before SpikeInterface 0.103.
    word = next((name for name in ("return_in_uV", "return_scaled") if name in told), None)
    asks = ("has_scaleable_traces", "has_scaled_traces", "has_scaled")
    has_gains = next((getattr(recording, name) for name in asks if hasattr(recording, name)), None)
    notes: tuple[str, ...] = ()
    if getattr(recording, "is_filtered", lambda: False)():
        notes = (
            "it says that it was filtered before: `highpass_hz=0` does not filter it once more",
        )
    if word is not None and has_gains is not None and has_gains():
        return {word: True}, notes
    if np.dtype(recording.get_dtype()).kind == "f":
        assumed = (
            "its values are assumed to be microvolts, since it has no gains: set_channel_gains"
        )
        return {}, (*notes, f"{assumed} and set_channel_offsets give it some")
    raise InputError(
        f"{path}: has no gains, so that its values are no microvolts: give it those of its"
        " amplifier by set_channel_gains and set_channel_offsets"
    )


def _stretches(recording: Any, number: int, rate: float) -> list[Stretch]:
    """Split a segment where its times, if it has any of its own, leave a gap."""
    n = int(recording.get_num_samples(segment_index=number))
    if not getattr(recording, "has_time_vector", lambda **_: False)(segment_index=number):
        return [Stretch(0, n, start_time_s(recording, number))]
    times = recording.get_times(segment_index=number)
    return between_gaps(lambda low, high: np.asarray(times[low:high]) * rate, n, rate)


# --- neo


class NeoSignals(VoltageReader):
    """Voltage of neo, in memory or read lazily, range by range and in microvolts.

    Parameters
    ----------
    path
        Its name, for messages.
    parts
        The signals of each segment: one with all channels, or several with one each.
    notes
        What the user should know.
    well
        The culture to read, where the channels' names are of several.
    """

    kind = "neo"

    def __init__(
        self,
        path: Path,
        parts: Sequence[Sequence[Any]],
        notes: tuple[str, ...],
        well: str | None = None,
    ) -> None:
        self.path, self.notes = path, notes
        self.program, self.stream_label = "neo", _name_of(parts[0][0])
        self.sampling_rate_hz, labels = _alike(path, parts)
        refuse_repeated(str(path), "channels", labels)
        rows, self.channel_labels = culture(path, labels, well)
        self._rows = np.array(rows)
        self.width = len(labels)
        self._parts = parts
        self._gains_uv = [[_microvolts(signal) or 1.0 for signal in part] for part in parts]
        self._set_segments([Stretch(0, int(part[0].shape[0]), _start_s(part[0])) for part in parts])

    def _fill(self, out: NDArray[np.float32], segment: int, start: int) -> None:
        stop = start + out.shape[1]
        signals, gains = self._parts[segment], self._gains_uv[segment]
        with _asking(self.path, f"samples {start} to {stop} of segment {segment} cannot be read"):
            values = [_values(signal, start, stop) for signal in signals]
            if len(values) == 1:
                np.multiply(values[0].T[self._rows], gains[0], out=out, casting="unsafe")
                return
            for row, column in enumerate(self._rows.tolist()):
                np.multiply(values[column][:, 0], gains[column], out=out[row], casting="unsafe")

    def close(self) -> None:
        """Leave the signals as they are: they are their owner's."""


def _values(signal: Any, start: int, stop: int) -> NDArray[Any]:
    """Give samples [start, stop) of a signal, (samples, channels), in its own unit."""
    if hasattr(signal, "load"):
        rate, origin = signal.sampling_rate, signal.t_start
        # Ends are given as times, which neo rounds to samples.
        times = (origin + (start / rate).rescale("s"), origin + (stop / rate).rescale("s"))
        values = np.asarray(signal.load(time_slice=times, strict_slicing=False).magnitude)
    else:
        values = signal.magnitude[start:stop]
    if len(values) != stop - start:
        raise InputError(f"got {len(values)} samples where {stop - start} are")
    return values


def _neo_signals(
    path: Path, source: Any, stream: str | None
) -> tuple[list[list[Any]], tuple[str, ...]]:
    """List the voltage signals of each segment that are to be read; none where there are spikes.

    Where a segment holds several, one must be chosen by its name, unless each is a channel.
    """
    if _is_signal(source):
        if _microvolts(source) is None:
            raise InputError(
                f"{path}: is in {_unit_of(source)}, not in volts: give it units of voltage, or"
                " another signal"
            )
        return [[source]], _assumed([source])
    segments = list(source.segments) if _is_block(source) else [source]
    if not segments:
        raise InputError(f"{path}: has no segment")
    found = [[s for s in one.analogsignals if _microvolts(s) is not None] for one in segments]
    n_trains = sum(len(one.spiketrains) for one in segments)
    if not any(found):
        if n_trains:
            return [], ()
        others = {_unit_of(s) or "" for one in segments for s in one.analogsignals}
        units = f" (only signals in {', '.join(sorted(others))})" if others else ""
        raise InputError(f"{path}: holds neither voltage{units} nor spike trains")
    empty = [number for number, signals in enumerate(found) if not signals]
    if empty:
        raise InputError(
            f"{path}: segment {empty[0]} holds no voltage, others do: open its segments one by one"
        )
    notes: tuple[str, ...] = ()
    if n_trains:
        notes = ("its spike trains are not used: SpikeTrains.from_neo takes them",)
    parts = [_one_stream(path, signals, stream) for signals in found]
    return parts, (*notes, *_assumed(parts[0]))


def _assumed(signals: Sequence[Any]) -> tuple[str, ...]:
    if any(_unit_of(signal) is None for signal in signals):
        return ("its values are assumed to be microvolts, since it has no units",)
    return ()


def _one_stream(path: Path, signals: list[Any], wanted: str | None) -> list[Any]:
    """Choose the signal that is meant among several of a segment."""
    first = signals[0]
    same = {(signal.shape, float(in_unit(signal.sampling_rate, "Hz"))) for signal in signals}
    if len(signals) > 1 and wanted is None and len(same) == 1 and first.shape[1] == 1:
        return signals
    names = [_name_of(signal) for signal in signals]
    if len(set(names)) < len(names) or not all(names):
        names = [f"signal {number}" for number in range(len(signals))]
    return [signals[names.index(choose_stream(path, names, names, wanted))]]


def _alike(path: Path, parts: Sequence[Sequence[Any]]) -> tuple[float, tuple[str, ...]]:
    """Give the rate and the channels' names, which all segments must share."""
    found = [(float(in_unit(part[0].sampling_rate, "Hz")), _labels(part)) for part in parts]
    for number, one in enumerate(found):
        if one != found[0]:
            raise InputError(
                f"{path}: segment {number} has other channels or another sampling rate than segment"
                " 0: open its segments one by one"
            )
    return found[0]


def _labels(signals: Sequence[Any]) -> tuple[str, ...]:
    """Name the channels as the signals do, else by their numbers."""
    noted = [getattr(signal, "array_annotations", None) or {} for signal in signals]
    found = [
        [_plain(name) for notes in noted for name in notes[key]]
        for key in ("channel_names", "channel_ids")
        if all(key in notes for notes in noted)
    ]
    if len(signals) > 1:
        found.append([_name_of(signal) for signal in signals])
    named = [names for names in found if all(names)]
    different = [names for names in named if len(set(names)) == len(names)]
    numbers = [str(k) for k in range(sum(signal.shape[1] for signal in signals))]
    # Names that repeat are given back to be refused.
    return tuple((*different, *named, numbers)[0])


def _plain(value: object) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()


def _name_of(signal: Any) -> str:
    name = getattr(signal, "name", None)
    return "" if name is None else str(name).strip()


def _start_s(signal: Any) -> float:
    start = getattr(signal, "t_start", None)
    return 0.0 if start is None else float(in_unit(start, "s"))


def _unit_of(signal: Any) -> str | None:
    units = getattr(signal, "units", None)
    return None if units is None else str(getattr(units, "dimensionality", units))


def _microvolts(signal: Any) -> float | None:
    """Give the microvolts in a signal's unit; None if that is no voltage, 1 if there is none."""
    units = getattr(signal, "units", None)
    if units is None:
        return 1.0
    try:
        return float(in_unit(units, "uV"))
    except (InputError, TypeError, ValueError):
        return None

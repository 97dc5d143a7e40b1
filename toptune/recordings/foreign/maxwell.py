"""Recordings of MaxWell's MaxOne and MaxTwo: voltage through neo, and their tables of spikes.

A file holds the recordings rec0000, rec0001, ... of one or several wells. Its voltage is often
compressed by a filter of MaxWell's own, which no Python package brings; the spikes are not.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import OpeningOptions
from toptune.recordings.foreign.neo_formats import NeoFormat, close_neo, parsed, voltage_of
from toptune.recordings.foreign.neo_spikes import Span, unit_trains
from toptune.recordings.foreign.neo_voltage import (
    Facts,
    NeoChannel,
    NeoPart,
    NeoStream,
    NeoVoltage,
)
from toptune.recordings.foreign.recognition import reading
from toptune.recordings.hdf5_guard import (
    check_inflation,
    check_links,
    check_stored,
    filter_codes,
    open_hdf5,
)
from toptune.recordings.opening import SpikeRecording
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.voltage import (
    SPIKES,
    Stretch,
    between_gaps,
    choose_stream,
    different,
    segments_of,
)
from toptune.recordings.wells import choose

_LOG = logging.getLogger(__name__)

_WHAT = "a recording of MaxWell's MaxLab"
#: MaxWell's compression among HDF5's filters.
_FILTER = 401
_TABLE_BYTES = 16 * 2**20
_SPIKES_BYTES = 2**30
# Of files of the first version, which state none.
_OLD_RATE_HZ = 20_000.0


@dataclass(frozen=True)
class _Place:
    """Where a recording of a well is in the file; the first version has only one."""

    well: str
    recording: str
    group: str

    @property
    def is_old(self) -> bool:
        return not self.group

    @property
    def raw(self) -> str:
        return "sig" if self.is_old else f"{self.group}/groups/routed/raw"

    @property
    def spikes(self) -> str:
        return "proc0/spikeTimes" if self.is_old else f"{self.group}/spikes"

    @property
    def mapping(self) -> str:
        return "mapping" if self.is_old else f"{self.group}/settings/mapping"


def open_maxwell(path: Path, options: OpeningOptions) -> NeoVoltage | SpikeRecording:
    """Open a well's recording: its voltage, or its spikes where they are meant."""
    with open_hdf5(path) as file, reading(path, f"{_WHAT} that cannot be read"):
        check_links(file, path, soft=True)
        places = _places(file)
        wells = sorted({place.well for place in places})
        if not wells:
            raise InputError(f"{path}: {_WHAT} without a well")
        well = choose(path, "well", wells, options.well)
        here = [place for place in places if place.well == well]
        names = {place.recording: place for place in here if place.raw in file}
        raw = list(names)
        for place in here:
            if place.spikes in file:
                names[SPIKES if len(here) == 1 else f"{place.recording} {SPIKES}"] = place
        chosen = choose_stream(path, list(names), raw, options.stream)
        place = names[chosen]
        if chosen not in raw:
            # The well has been chosen.
            left = replace(options, well=None, stream=None)
            return SpikeRecording(path, "maxwell", left, partial(_read_spikes, place))
        spikes = next((name for name in names if name not in raw and names[name] == place), None)
        _check_raw(path, file[place.raw], spikes)
        form = _MaxWell(path, file, place)
    rawio = parsed(form)
    try:
        with reading(path, f"{_WHAT} that cannot be read"):
            (stream,) = form.streams(rawio)
        return voltage_of(form, rawio, stream, chunk_samples=form.chunk_samples)
    except BaseException:
        close_neo(rawio)
        raise


def _places(file: Any) -> list[_Place]:
    wells = file.get("wells")
    if not isinstance(wells, h5py.Group):
        return [_Place("well000", "rec0000", "")] if "mapping" in file else []
    return [
        _Place(well, recording, f"wells/{well}/{recording}")
        for well in wells
        for recording in wells[well]
    ]


def _check_raw(path: Path, dataset: Any, spikes: str | None) -> None:
    """Refuse voltage that cannot be decoded."""
    if _FILTER not in filter_codes(dataset):
        check_stored(dataset, path)
        check_inflation(dataset, path)
        return
    folder = os.environ.get("HDF5_PLUGIN_PATH")
    # Asking loads the plugin, so it is asked only where the user named the folder.
    if not folder or not h5py.h5z.filter_avail(_FILTER):
        other = f"; the spikes in it need none: `stream={spikes!r}`" if spikes else ""
        raise InputError(
            f"{path}: its voltage is compressed by MaxWell's own HDF5 filter ({_FILTER}), which no"
            " Python package brings: install MaxWell's decompression library (libcompression), and"
            f" name its folder in the environment variable HDF5_PLUGIN_PATH{other}"
        )
    check_stored(dataset, path, allowed=(_FILTER,))
    _LOG.warning("%s: MaxWell's decompression library is loaded from %s", path, folder)


def _electrodes(path: Path, file: Any, place: _Place) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """List the recorded channels' numbers and electrodes, in the order of the rows of voltage."""
    table = file[place.mapping]
    check_stored(table, path, _TABLE_BYTES)
    rows = table[...]
    electrode_of = {
        int(c): int(e) for c, e in zip(rows["channel"], rows["electrode"], strict=True) if c >= 0
    }
    routed = file.get(f"{place.group}/groups/routed/channels") if place.group else None
    if routed is None:
        channels = list(electrode_of)
    else:
        check_stored(routed, path, _TABLE_BYTES)
        channels = [int(c) for c in routed[...].ravel()]
    electrodes = [str(electrode_of.get(c, f"channel {c}")) for c in channels]
    names = different(path, electrodes, [f"channel {c}" for c in channels])
    return np.array(channels, np.int64), names


def _stretches(path: Path, file: Any, place: _Place, rate: float) -> list[Stretch]:
    """Find the samples between gaps, and their times by the frame numbers."""
    frames = file.get(f"{place.group}/groups/routed/frame_nos") if place.group else None
    n = int(file[place.raw].shape[1]) if place.raw in file else None
    if frames is None:
        return [Stretch(0, n or 0, 0.0)]
    check_stored(frames, path)
    check_inflation(frames, path)
    if n is not None and frames.shape != (n,):
        raise InputError(
            f"{path}: {n} samples, but frame numbers of shape {frames.shape}: the file was not"
            " closed properly"
        )
    return between_gaps(lambda start, stop: np.asarray(frames[start:stop]), len(frames), rate)


def _rate(path: Path, file: Any, place: _Place) -> float:
    if place.is_old:
        return _OLD_RATE_HZ
    stated = file[f"{place.group}/settings/sampling"]
    check_stored(stated, path, _TABLE_BYTES)
    return float(stated[...].ravel()[0])


class _MaxWell(NeoFormat):
    kind, what, reader = "maxwell", _WHAT, "MaxwellRawIO"

    def __init__(self, path: Path, file: Any, place: _Place) -> None:
        super().__init__(path)
        self._place = place
        self._channels, self._names = _electrodes(path, file, place)
        self._stretches = _stretches(path, file, place, _rate(path, file, place))
        dataset = file[place.raw]
        self._n_rows = int(dataset.shape[0])
        self.chunk_samples = int(dataset.chunks[1]) if dataset.chunks else None
        version = file.get("mxw_version", file.get("version"))
        check_stored(version, path, _TABLE_BYTES)
        self._program = version[...].ravel()[0].decode("ascii", "replace")

    def make(self, reader: Any) -> Any:
        # Its advice about plugins is printed among what a command prints.
        vars(library_of(reader))["print"] = lambda *_: None
        return reader(filename=os.fspath(self.path), rec_name=self._place.recording)

    def facts(self, rawio: Any) -> Facts:
        del rawio
        return Facts(kind=self.kind, program=f"MaxLab {self._program}")

    def streams(self, rawio: Any) -> list[NeoStream]:
        (of_well,) = [s for s in super().streams(rawio) if s.name == self._place.well]
        # Files of the first version store all channels, in the order of their numbers.
        columns: Sequence[int] = (
            self._channels.tolist() if self._place.is_old else range(len(self._names))
        )
        if max(columns, default=0) >= self._n_rows or (
            not self._place.is_old and len(columns) != self._n_rows
        ):
            raise InputError(
                f"{self.path}: {self._n_rows} rows of voltage for {len(columns)} channels: the file"
                " is damaged"
            )
        like = of_well.channels[0]
        channels = tuple(
            NeoChannel(name, name, like.stream, column, like.gain_uv, like.offset_uv)
            for name, column in zip(self._names, columns, strict=True)
        )
        return [
            replace(
                of_well,
                name=f"{self._place.well} {self._place.recording}",
                channels=channels,
                width=self._n_rows,
            )
        ]

    def parts(self, rawio: Any, stream: NeoStream) -> list[NeoPart]:
        del rawio, stream
        return [NeoPart(0, 0, stretch) for stretch in self._stretches]


def library_of(of: type) -> Any:
    """Return the module in which a class is defined."""
    import sys

    return sys.modules[of.__module__]


def _read_spikes(place: _Place, path: Path, options: OpeningOptions) -> SpikeTrains:
    """Read the spikes that MaxLab found; their amplitudes are not peak to peak, and left out."""
    with open_hdf5(path) as file, reading(path, f"{_WHAT} whose spikes cannot be read"):
        check_links(file, path, soft=True)
        table = file[place.spikes]
        check_stored(table, path, _SPIKES_BYTES)
        frame, channel = (np.asarray(table[name], np.int64) for name in ("frameno", "channel"))
        numbers, names = _electrodes(path, file, place)
        rate = _rate(path, file, place)
        stretches = _stretches(path, file, place, rate)
    order = np.argsort(numbers, kind="stable")
    at = np.minimum(np.searchsorted(numbers[order], channel), len(numbers) - 1)
    row = order[at]
    known = numbers[row] == channel
    notes = _left_out(~known, "on channels without an electrode")
    if stretches[0].n_samples == 0:  # no voltage was kept
        trains = _of_unknown_length(path, frame, row, known, names, rate, options)
        return replace(trains, notes=(*notes, *trains.notes))
    sample, inside = _samples(frame, stretches, rate)
    notes += _left_out(known & ~inside, "outside the recorded samples")
    kept = known & inside
    n_samples = sum(stretch.n_samples for stretch in stretches)
    times = [sample[kept & (row == k)] / rate for k in range(len(names))]
    trains = unit_trains(
        path, times, names, rate, Span(0.0, n_samples / rate), replace(options, start_s=None)
    )
    segments = segments_of(path, stretches, rate)
    return replace(trains, segments=segments, notes=(*notes, *trains.notes))


def _samples(
    frame: NDArray[np.int64], stretches: Sequence[Stretch], rate: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Turn frame numbers into numbers of stored samples; tell which of them are stored."""
    firsts = np.array([round(s.start_s * rate) for s in stretches])
    which = np.maximum(np.searchsorted(firsts, frame, side="right") - 1, 0)
    since = frame - firsts[which]
    lengths = np.array([s.n_samples for s in stretches])
    begins = np.array([s.first for s in stretches])
    return begins[which] + since, (since >= 0) & (since < lengths[which])


def _of_unknown_length(
    path: Path,
    frame: NDArray[np.int64],
    row: NDArray[np.int64],
    known: NDArray[np.bool_],
    names: Sequence[str],
    rate: float,
    options: OpeningOptions,
) -> SpikeTrains:
    start_s = float(frame.min()) / rate if len(frame) else 0.0
    times = [frame[known & (row == k)] / rate for k in range(len(names))]
    trains = unit_trains(path, times, names, rate, Span(start_s, None), options)
    note = "no voltage was kept: the recording is taken to start with its first spike"
    return replace(trains, notes=(note, *trains.notes) if options.start_s is None else trains.notes)


def _left_out(out: NDArray[np.bool_], why: str) -> tuple[str, ...]:
    n = int(out.sum())
    return (f"{n} of {len(out)} spikes are left out: {why}",) if n else ()

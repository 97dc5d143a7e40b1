"""Recordings of 3Brain's BioCAM: voltage (.brw) through neo, and spikes in the results (.bxr)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import OpeningOptions
from toptune.recordings.foreign.neo_formats import NeoFormat, close_neo, parsed, voltage_of
from toptune.recordings.foreign.neo_spikes import Span, unit_trains
from toptune.recordings.foreign.neo_voltage import Facts, NeoVoltage
from toptune.recordings.foreign.recognition import reading
from toptune.recordings.hdf5_guard import (
    check_heaps,
    check_inflation,
    check_links,
    check_stored,
    open_hdf5,
)
from toptune.recordings.opening import SpikeRecording
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.voltage import SPIKES, choose_stream
from toptune.recordings.wells import choose

_WHAT = "a recording of 3Brain's BrainWave"
_TABLE_BYTES = 16 * 2**20
_SPIKES_BYTES = 2**30
_VOLTAGE = "Raw"
_WELL = "Well_"
# Descriptions of the experiment, and where each has the rate.
_RATES = {
    "ExperimentSettings": ("TimeConverter", "FrameRate"),
    "ExperimentInfo": ("SignalConverter", "SampleToTimeConverter", "FrameRateHertz"),
}


@dataclass(frozen=True)
class _Place:
    """Where a well is in the file; the files of BrainWave 4 hold one without a name."""

    group: str  # empty in files of BrainWave 4

    @property
    def raw(self) -> str:
        return f"{self.group}/Raw" if self.group else "3BData/Raw"

    @property
    def spike_times(self) -> str:
        return f"{self.group}/SpikeTimes" if self.group else "3BResults/3BChEvents/SpikeTimes"

    @property
    def spike_channels(self) -> str:
        return f"{self.group}/SpikeChIdxs" if self.group else "3BResults/3BChEvents/SpikeChIDs"


def open_biocam(path: Path, options: OpeningOptions) -> NeoVoltage | SpikeRecording:
    """Open a well: its voltage, or its spikes where they are meant."""
    with open_hdf5(path) as file, reading(path, f"{_WHAT} that cannot be read"):
        check_links(file, path)
        wells = sorted(name for name in file if name.startswith(_WELL))
        place = _Place(_chosen(path, wells, options))
        raw = [_VOLTAGE] if place.raw in file else []
        if not raw and place.group and f"{place.group}/EventsBasedSparseRaw" in file:
            raise InputError(
                f"{path}: holds the voltage around events only, in which noise cannot be estimated:"
                " export its raw data, or open the spikes that BrainWave found in it (.bxr)"
            )
        names = [*raw, *([SPIKES] if place.spike_times in file else [])]
        chosen = choose_stream(path, names, raw, options.stream)
        if chosen == SPIKES:
            # The well has been chosen.
            left = replace(options, well=None, stream=None)
            return SpikeRecording(path, "biocam", left, partial(_read_spikes, place))
        if place.group and place.group != wells[0]:
            raise InputError(
                f"{path}: neo reads only the first well, {wells[0].removeprefix(_WELL)}: export"
                " each well as a file of its own"
            )
        _check(path, file)
        form = _BioCam(path, file, place)
    rawio = parsed(form)
    try:
        with reading(path, f"{_WHAT} that cannot be read"):
            (stream,) = form.streams(rawio)
        return voltage_of(form, rawio, stream, labels=form.labels(len(stream.channels)))
    except BaseException:
        close_neo(rawio)
        raise


def _chosen(path: Path, wells: Sequence[str], options: OpeningOptions) -> str:
    """Return the group of the well that is meant."""
    names = [well.removeprefix(_WELL) for well in wells]
    if names:
        return _WELL + choose(path, "well", names, options.well)
    if options.well is not None:
        raise InputError(f"{path}: is not of several wells: leave `well` out")
    return ""


def _check(path: Path, file: Any) -> None:
    """Check all that neo will read, which it reads unchecked."""
    groups = [file] + [file[name] for name in file if name.startswith(_WELL)]
    for place in ("3BData", "3BRecInfo/3BRecVars", "3BRecInfo/3BMeaStreams/Raw"):
        group = file.get(place)
        groups += [group] if isinstance(group, h5py.Group) else []
    for group in groups:
        for name in group:
            dataset = group[name]
            if not isinstance(dataset, h5py.Dataset):
                continue
            whole = name != _VOLTAGE
            check_stored(dataset, path, _TABLE_BYTES if whole else None)
            if whole:
                check_heaps(dataset, path)
            else:
                check_inflation(dataset, path)


def _numbers(path: Path, file: Any, place: str, limit: int = _TABLE_BYTES) -> NDArray[Any]:
    """Read a dataset of numbers whole."""
    check_stored(file[place], path, limit)
    return np.asarray(file[place][...]).ravel()


def _described(path: Path, file: Any) -> tuple[str, Any]:
    """Return the description of the experiment that files of BrainWave 5 hold, and its name."""
    for name in _RATES:
        if name in file:
            check_stored(file[name], path, _TABLE_BYTES)
            check_heaps(file[name], path)
            return name, json.loads(np.atleast_1d(file[name][...])[0])
    return "", {}


def _rate(path: Path, file: Any) -> float:
    if "3BRecInfo/3BRecVars/SamplingRate" in file:
        return float(_numbers(path, file, "3BRecInfo/3BRecVars/SamplingRate")[0])
    name, said = _described(path, file)
    for key in _RATES.get(name, ()):
        said = said[key]
    return float(said if name else file.attrs["SamplingRate"])


class _BioCam(NeoFormat):
    kind, what, reader = "biocam", _WHAT, "BiocamRawIO"

    def __init__(self, path: Path, file: Any, place: _Place) -> None:
        super().__init__(path)
        self._well = place.group.removeprefix(_WELL)
        stored = f"{place.group}/StoredChIdxs"
        self._stored = _numbers(path, file, stored) if place.group and stored in file else None
        said = _described(path, file)[1]
        self._date = str(said.get("ExperimentDateTime", ""))
        self._layout = str(said.get("MeaPlate", {}).get("Model", ""))

    def facts(self, rawio: Any) -> Facts:
        del rawio
        return Facts(
            kind=self.kind, program="3Brain BrainWave", date=self._date, layout=self._layout
        )

    def labels(self, n: int) -> list[str] | None:
        """Name the electrodes by their numbers on the chip; None where neo names them.

        In files of BrainWave 5 neo counts rows and columns of a square, wherever they are.
        """
        if self._stored is None:
            return None
        if len(self._stored) != n:
            raise InputError(f"{self.path}: {n} channels, but {len(self._stored)} are listed")
        return [str(int(number)) for number in self._stored]


def _read_spikes(place: _Place, path: Path, options: OpeningOptions) -> SpikeTrains:
    """Read the spikes that BrainWave found; amplitudes are not in the file."""
    with open_hdf5(path) as file, reading(path, f"{_WHAT} whose spikes cannot be read"):
        check_links(file, path)
        frame = _numbers(path, file, place.spike_times, _SPIKES_BYTES).astype(np.int64)
        channel = _numbers(path, file, place.spike_channels, _SPIKES_BYTES).astype(np.int64)
        rate = _rate(path, file)
        first, last = _frames(path, file)
        electrodes = _electrodes(path, file, place)
    if len(frame) != len(channel):
        raise InputError(f"{path}: {len(frame)} times of spikes, but {len(channel)} channels")
    fired = np.unique(channel).tolist()
    notes: tuple[str, ...] = ()
    if not set(fired) <= electrodes.keys():
        electrodes = {number: str(number) for number in fired}
        notes = ("electrodes without a spike are not known: the file does not list them",)
    numbers = sorted(electrodes)
    order = np.argsort(channel, kind="stable")
    begins = np.searchsorted(channel[order], [*numbers, numbers[-1] + 1 if numbers else 0])
    times = [frame[order[begin:end]] / rate for begin, end in pairwise(begins)]
    span = Span(first / rate, None if last is None else last / rate)
    trains = unit_trains(path, times, [electrodes[k] for k in numbers], rate, span, options)
    return replace(trains, notes=(*notes, *trains.notes))


def _frames(path: Path, file: Any) -> tuple[int, int | None]:
    """Return the recording's first frame and the one after its last, None if it is not said."""
    if "3BRecInfo/3BRecVars/NRecFrames" in file:
        return 0, int(_numbers(path, file, "3BRecInfo/3BRecVars/NRecFrames")[0])
    if "TOC" in file:
        toc = _numbers(path, file, "TOC")
        if len(toc):
            return int(toc[0]), int(toc[-1])
    return 0, None


def _electrodes(path: Path, file: Any, place: _Place) -> dict[int, str]:
    """List all recorded electrodes, by their numbers in the table of spikes."""
    if place.group:
        stored = f"{place.group}/StoredChIdxs"
        found = _numbers(path, file, stored).tolist() if stored in file else []
        return {int(number): str(int(number)) for number in found}
    chs = "3BRecInfo/3BMeaStreams/Raw/Chs"
    if chs not in file:
        return {}
    rows = _numbers(path, file, chs)
    return {
        k: f"ch{int(r)}-{int(c)}"
        for k, (r, c) in enumerate(zip(rows["Row"], rows["Col"], strict=True))
    }

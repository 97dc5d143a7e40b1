"""NWB files through pynwb: voltage of an ElectricalSeries, or spike times of units.

The structure is read by pynwb, samples and times by h5py, in pieces.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.caches import give_pynwb_a_folder
from toptune.params import OpeningOptions
from toptune.recordings.foreign.neo_spikes import Span, unit_trains
from toptune.recordings.foreign.recognition import library, reading
from toptune.recordings.hdf5_guard import (
    InflationGuard,
    check_all_heaps,
    check_inflation,
    check_links,
    check_stored,
    check_texts,
    open_hdf5,
)
from toptune.recordings.opening import SpikeRecording, spike_rate_hz
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.voltage import (
    SPIKES,
    Stretch,
    VoltageReader,
    between_gaps,
    check_scale,
    choose_stream,
    culture,
    different,
    scaled,
)

_WHAT = "an NWB file"
_TABLE_BYTES = 64 * 2**20
_SPIKES_BYTES = 2**31
# Columns of the table of electrodes that name them, the first that is there.
_NAMES = ("channel_name", "electrode_name", "label", "name")
_FIRST_STAMPS = 100_000


def open_nwb(path: Path, options: OpeningOptions) -> NwbVoltage | SpikeRecording:
    """Open an NWB file: its voltage, or its units where they are meant."""
    _check(path)
    pynwb = _pynwb(path)
    try:
        file, content = _content(path, pynwb)
    except InputError:
        if _has_units_only(path):
            return SpikeRecording(path, "nwb", options, _read_plain_units)
        raise
    try:
        with reading(path, f"{_WHAT} that cannot be read"):
            series = _series(content, pynwb.ecephys.ElectricalSeries)
            acquired = {id(one) for one in content.acquisition.values()}
            raw = [name for name, one in series.items() if id(one) in acquired]
            units = [SPIKES] if content.units is not None and len(content.units) else []
            chosen = choose_stream(path, [*series, *units], raw, options.stream)
            if chosen in series:
                return NwbVoltage(path, file, content, chosen, series[chosen], options.well)
    except BaseException:
        file.close()
        raise
    file.close()
    return SpikeRecording(path, "nwb", options, _read_units)


def _check(path: Path) -> None:
    """Refuse what pynwb or HDF5 could not read safely."""
    # Nearly all texts of NWB have variable length.
    check_all_heaps(path)
    with open_hdf5(path) as file:
        check_links(file, path, soft=True)
        check_texts(file, path)


def _pynwb(path: Path) -> Any:
    give_pynwb_a_folder()
    return library(path, _WHAT, "pynwb")


def _content(path: Path, pynwb: Any) -> tuple[Any, Any]:
    """Open a file by pynwb; give what closes it, and its content."""
    file = None
    try:
        with reading(path, f"{_WHAT} that cannot be read"):
            file = pynwb.NWBHDF5IO(os.fspath(path), "r", load_namespaces=True)
            return file, file.read()
    except InputError:
        if file is not None:
            file.close()
        raise


def _series(content: Any, of: Any) -> dict[str, Any]:
    """List all series of voltage by their names, which are paths where a name is not enough."""
    found = [one for one in content.objects.values() if isinstance(one, of)]
    found.sort(key=lambda one: str(one.name))
    names = [str(one.name) for one in found]
    return {
        name if names.count(name) == 1 else f"{one.parent.name}/{name}": one
        for name, one in zip(names, found, strict=True)
    }


class NwbVoltage(VoltageReader):
    """The voltage of an ElectricalSeries of an open NWB file."""

    kind = "nwb"

    def __init__(
        self, path: Path, file: Any, content: Any, name: str, series: Any, well: str | None
    ) -> None:
        self.path, self.stream_label, self._file = path, name, file
        self.date = content.session_start_time.isoformat()
        self.layout = ", ".join(sorted(str(device) for device in content.devices))
        self._data = self._checked(series.data)
        n, self.width = self._data.shape[0], self._data.shape[1] if self._data.ndim == 2 else 1
        names = _names(series, self.width)
        if names is not None and len(names) != self.width:
            raise InputError(
                f"{path}: {name} has {self.width} channels for {len(names)} electrodes: export it"
                " again"
            )
        numbers = [str(k) for k in range(self.width)]
        rows, self.channel_labels = culture(path, different(path, names or numbers, numbers), well)
        gain_uv = np.full(self.width, float(series.conversion) * 1e6)
        if series.channel_conversion is not None:
            gain_uv = gain_uv * np.asarray(series.channel_conversion[...], np.float64)
        self._rows, self._gain_uv = np.array(rows), gain_uv[rows]
        self._offset_uv = np.full(len(rows), float(series.offset or 0.0) * 1e6)
        check_scale(path, self.channel_labels, self._gain_uv, self._offset_uv)
        self._stretches = self._timed(series, n)
        self._set_segments(self._stretches, self._data.chunks[0] if self._data.chunks else None)

    def _checked(self, data: Any) -> Any:
        if not isinstance(data, h5py.Dataset) or data.ndim not in (1, 2):
            raise InputError(
                f"{self.path}: {self.stream_label} holds no rows of samples: export it again"
            )
        if data.dtype.kind not in "iuf":
            raise InputError(f"{self.path}: {self.stream_label} holds {data.dtype}, not voltage")
        check_stored(data, self.path)
        self._guard = InflationGuard(data, self.path)
        return data

    def _timed(self, series: Any, n: int) -> list[Stretch]:
        """Set the rate, and find the samples between gaps where every sample has its time."""
        if series.rate is not None:
            self.sampling_rate_hz = float(series.rate)
            return [Stretch(0, n, float(series.starting_time or 0.0))] if n else []
        stamps = series.timestamps
        if not isinstance(stamps, h5py.Dataset) or stamps.shape != (n,):
            raise InputError(
                f"{self.path}: {self.stream_label} states neither its rate nor a time for each of"
                " its samples: export it again"
            )
        check_stored(stamps, self.path)
        check_inflation(stamps, self.path)
        step_s = float(np.median(np.diff(stamps[:_FIRST_STAMPS]))) if n > 1 else np.nan
        if not step_s > 0:
            raise InputError(f"{self.path}: the times of {self.stream_label} do not rise")
        # Times in seconds have only so many digits.
        rate = self.sampling_rate_hz = round(1 / step_s, 3)
        return between_gaps(lambda low, high: np.asarray(stamps[low:high]) * rate, n, rate)

    def _fill(self, out: NDArray[np.float32], segment: int, start: int) -> None:
        first = self._stretches[segment].first + start
        with reading(self.path, f"its samples from {first} on cannot be read"):
            self._guard.check(first, first + out.shape[1])
            raw = self._data[first : first + out.shape[1]].reshape(out.shape[1], -1)[:, self._rows]
        out[...] = scaled(self.path, raw, self._gain_uv, self._offset_uv)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _names(series: Any, n: int) -> list[str] | None:
    """Name the electrodes by a column of their table, or by their numbers in it."""
    region = series.electrodes
    if region is None:
        return None
    rows = [int(row) for row in np.asarray(region.data[...]).ravel()[: n + 1]]
    table = region.table
    for column in (name for name in _NAMES if name in table.colnames):
        values = [str(table[column].data[row]) for row in rows]
        if len(set(values)) == len(values) and all(values):
            return values
    return [str(table.id.data[row]) for row in rows]


def _read_units(path: Path, options: OpeningOptions) -> SpikeTrains:
    """Read the spike times of all units, each unit as a channel."""
    _check(path)
    file, content = _content(path, _pynwb(path))
    try:
        with reading(path, f"{_WHAT} whose units cannot be read"):
            units = content.units
            index = units.spike_times_index
            if index is None:
                raise InputError(f"{path}: its units have no spike times")
            times = _unit_times(path, index.data, index.target.data)
            labels, observed = _unit_labels(path, units), _observed(path, units)
            resolution_s = float(units.resolution or 0.0)
    finally:
        file.close()
    rate = round(1 / resolution_s, 3) if resolution_s > 0 else spike_rate_hz(options)
    return unit_trains(path, times, labels, rate, observed, options)


def _has_units_only(path: Path) -> bool:
    """Tell whether a file that pynwb does not read holds units, and no acquired voltage."""
    with open_hdf5(path) as file, reading(path, f"{_WHAT} that cannot be read"):
        return {"spike_times", "spike_times_index"} <= {*file.get("units", ())} and not len(
            file.get("acquisition", ())
        )


def _read_plain_units(path: Path, options: OpeningOptions) -> SpikeTrains:
    """Read the spike times of a file that lacks other parts of the standard."""
    _check(path)
    with open_hdf5(path) as file, reading(path, f"{_WHAT} whose units cannot be read"):
        units = file["units"]
        times = _unit_times(path, units["spike_times_index"], units["spike_times"])
        ids = _whole(path, units["id"]) if "id" in units else range(len(times))
        labels = different(path, [str(int(k)) for k in ids])
        if len(labels) != len(times):
            raise InputError(f"{path}: {len(times)} units, but {len(labels)} numbers of units")
    trains = unit_trains(path, times, labels, spike_rate_hz(options), Span(0.0, None), options)
    note = "the file lacks parts of the NWB standard: only the times of its units were read"
    return replace(trains, notes=(note, *trains.notes))


def _unit_times(path: Path, index: Any, data: Any) -> list[NDArray[np.float64]]:
    ends = _whole(path, index).astype(np.int64)
    times = _whole(path, data).astype(np.float64)
    if len(ends) and (ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] != len(times)):
        raise InputError(f"{path}: the index of its spike times is damaged: export it again")
    return np.split(times, ends[:-1]) if len(ends) else []


def _unit_labels(path: Path, units: Any) -> tuple[str, ...]:
    numbers = [str(int(k)) for k in _whole(path, units.id.data)]
    if "unit_name" in units.colnames:
        names = [str(units["unit_name"].data[k]) for k in range(len(numbers))]
        return different(path, names, numbers)
    return different(path, numbers)


def _observed(path: Path, units: Any) -> Span:
    """Give the time in which units were observed, where the file says so."""
    with suppress(AttributeError, KeyError):
        intervals = _whole(path, units.obs_intervals_index.target.data)
        if intervals.size:
            return Span(float(intervals.min()), float(intervals.max()))
    return Span(0.0, None)


def _whole(path: Path, data: Any) -> NDArray[Any]:
    """Read a column whole."""
    if isinstance(data, h5py.Dataset):
        check_stored(data, path, _SPIKES_BYTES)
    return np.asarray(data[...] if isinstance(data, h5py.Dataset) else data)

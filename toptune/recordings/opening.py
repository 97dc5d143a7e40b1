"""Recordings of every format, recognised by content and opened: voltage or spikes.

A format is added here, as one entry of `FORMATS`, and in a module of its own beside this one. Its
module is imported only when a file may be of that format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.fingerprint import require_regular
from toptune.machine.remote import RemotePath, as_path, fetch_whole
from toptune.params import OddElectrodes, OpeningOptions, TimeUnit
from toptune.recordings.trains import (
    DEFAULT_SAMPLING_RATE_HZ,
    Segment,
    SpikeTrains,
    assumed_rate,
    check_labels,
    check_length,
    doubts,
)
from toptune.recordings.unknown import what_it_is
from toptune.recordings.wells import one_culture

if TYPE_CHECKING:
    from toptune.recordings.mcs import McsRecording


def spike_rate_hz(options: OpeningOptions) -> float:
    """Give the samples per second of spikes whose file does not state a rate."""
    given = options.sampling_rate_hz
    return DEFAULT_SAMPLING_RATE_HZ if given is None else float(given)


class VoltageRecording(Protocol):
    """Voltage that can be read in ranges."""

    @property
    def path(self) -> Path:
        """Its file or folder, for messages."""

    @property
    def channel_labels(self) -> tuple[str, ...]:
        """The electrodes' names, in the order of the rows."""

    @property
    def sampling_rate_hz(self) -> float:
        """Samples per second."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Gap-free stretches, in order."""

    @property
    def n_samples(self) -> int:
        """Samples per channel, over all segments."""

    @property
    def chunk_samples(self) -> int:
        """Samples that are stored together; reading in multiples of it is fastest."""

    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Fill `out` (channels, samples) float32 with microvolts from sample `start` on."""

    def read(self, start: int, stop: int, pool: Executor | None = None) -> NDArray[np.float32]:
        """Return samples [start, stop): (channels, samples) float32 microvolts."""

    def chunks(self, n_samples: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield all samples in order; a chunk never spans a gap."""


class OpenVoltage(VoltageRecording, Protocol):
    """Voltage in an open file: a context manager that also says what the file says of itself."""

    @property
    def kind(self) -> str:
        """The format."""

    @property
    def stream_label(self) -> str:
        """The stream that is read."""

    @property
    def reference_labels(self) -> tuple[str, ...]:
        """Channels of the stream that are left out: references, and inputs beside electrodes."""

    @property
    def program(self) -> str:
        """What recorded it; empty if the file does not say."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed or left out, one line each."""

    @property
    def date(self) -> str:
        """When it was recorded, as the file writes it; empty if it does not say."""

    @property
    def layout(self) -> str:
        """The array; empty if the file does not say."""

    def check_whole(self) -> None:
        """Refuse a truncated file, without reading all of its samples."""

    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        """Return the recording itself."""

    def __exit__(self, *_: object) -> None:
        """Close the file."""


@dataclass(frozen=True, eq=False)
class SpikeRecording:
    """A recording that holds spikes only, in a file or folder of a kind that `reader` reads."""

    path: Path
    kind: str
    options: OpeningOptions
    reader: Callable[[Path, OpeningOptions], SpikeTrains]

    def trains(self) -> SpikeTrains:
        """Read the spikes; the file must agree with the rate and the duration given."""
        path, options = self.path, self.options
        fetch_whole(path)
        try:
            trains = self.reader(path, options)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        check_length(path, trains.segments, trains.sampling_rate_hz)
        check_labels(path, trains.channel_labels)
        rate, wanted_s = trains.sampling_rate_hz, options.duration_s
        if options.sampling_rate_hz is not None and rate != options.sampling_rate_hz:
            raise InputError(
                f"{path}: sampled at {rate:g} Hz, not at the {options.sampling_rate_hz:g} Hz given"
            )
        if wanted_s is not None and abs(trains.duration_s - wanted_s) * rate >= 1:
            raise InputError(f"{path}: lasts {trains.duration_s:g} s, not the {wanted_s:g} s given")
        trains = one_culture(path, trains, options.well, length_given=wanted_s is not None)
        # Spikes from memory may have been doubted before.
        return replace(trains, notes=tuple(dict.fromkeys((*trains.notes, *doubts(trains)))))


@dataclass(frozen=True)
class Format:
    """A format of recordings, in a file or a folder."""

    description: str  # for the message that lists the known formats
    # Looks at the content and returns the name of the kind, None where it is another format. It
    # reads little, and does not judge whether the rest is sound.
    recognise: Callable[[Path], str | None]
    open: Callable[[Path, str, OpeningOptions], OpenVoltage | SpikeRecording]
    is_folder: bool = False
    # Whether libraries open it, which need a copy of what is named by a URL.
    needs_copy: bool = False


def _recognise_mcs(path: Path) -> str | None:
    from toptune.recordings.mcs import is_mcs

    return "mcs" if is_mcs(path) else None


def _open_mcs(path: Path, _kind: str, options: OpeningOptions) -> McsRecording:
    from toptune.recordings.mcs import McsRecording

    return McsRecording(path, options.stream, options.well)


def _recognise_foreign(path: Path) -> str | None:
    from toptune.recordings.foreign.recognition import file_kind, folder_kind

    return folder_kind(path) if path.is_dir() else file_kind(path)


def _open_foreign(path: Path, kind: str, options: OpeningOptions) -> OpenVoltage | SpikeRecording:
    from toptune.recordings.foreign.recognition import open_foreign

    return open_foreign(path, kind, options)


def _recognise_npz(path: Path) -> str | None:
    from toptune.recordings.spike_npz import looks_like_npz

    return "npz" if looks_like_npz(path) else None


def _read_npz(path: Path, _options: OpeningOptions) -> SpikeTrains:
    from toptune.recordings.spike_npz import read_npz

    return read_npz(path)


def _recognise_table(path: Path) -> str | None:
    from toptune.recordings.spike_csv import spike_table_kind

    return spike_table_kind(path)


def _read_table(path: Path, options: OpeningOptions) -> SpikeTrains:
    from toptune.recordings.spike_csv import read_spike_csv

    return read_spike_csv(path, options)


def _recognise_peak_trains(path: Path) -> str | None:
    from toptune.recordings.peak_trains import sniff_peak_folder

    return sniff_peak_folder(path)


def _read_peak_trains(path: Path, options: OpeningOptions) -> SpikeTrains:
    from toptune.recordings.peak_trains import read_peak_trains

    trains = read_peak_trains(
        path,
        sampling_rate_hz=spike_rate_hz(options),
        odd_electrodes=options.odd_electrodes,
    )
    if options.sampling_rate_hz is not None:
        return trains
    return replace(trains, notes=(*trains.notes, assumed_rate(trains.sampling_rate_hz)))


def _spikes(
    reader: Callable[[Path, OpeningOptions], SpikeTrains],
) -> Callable[[Path, str, OpeningOptions], SpikeRecording]:
    """Open a format that holds spikes only, by what reads them."""
    return lambda path, kind, options: SpikeRecording(path, kind, options, reader)


#: All formats; the first that recognises a path opens it. MCS recognises every HDF5 file, to say
#: what is wrong with a damaged one: further formats based on HDF5 come before it.
FORMATS = (
    Format(
        "recordings of MaxWell, 3Brain, Intan, Blackrock, Plexon and NeuroExplorer, NWB files",
        _recognise_foreign,
        _open_foreign,
        needs_copy=True,
    ),
    Format("folders of Open Ephys and Intan", _recognise_foreign, _open_foreign, is_folder=True),
    Format("MCS HDF5 files", _recognise_mcs, _open_mcs),
    Format(
        "folders of SpyCode peak trains (.txt or .mat)",
        _recognise_peak_trains,
        _spikes(_read_peak_trains),
        is_folder=True,
    ),
    Format("spikes as NPZ, as toptune writes them", _recognise_npz, _spikes(_read_npz)),
    Format(
        "spikes as CSV (time_s,channel) or as the lists of Axion's and MCS's plate readers",
        _recognise_table,
        _spikes(_read_table),
    ),
)


def recognise(path: Path) -> tuple[Format, str] | None:
    """Return the format of a file or folder and its kind, by content; None if none is known."""
    try:
        for one in FORMATS:
            if one.is_folder == path.is_dir():
                kind = one.recognise(path)
                if kind is not None:
                    return one, kind
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    return None


def open_recording(
    path: Path | str | Any,
    *,
    stream: str | None = None,
    well: str | None = None,
    sampling_rate_hz: float | None = None,
    duration_s: float | None = None,
    start_s: float | None = None,
    time_unit: TimeUnit | None = None,
    odd_electrodes: OddElectrodes = "refuse",
) -> OpenVoltage | SpikeRecording:
    """Open a recording of any known format, recognised by its content.

    Parameters
    ----------
    path
        A path or a URL (``s3://bucket/a.h5``): an MCS HDF5 file, a folder of SpyCode peak trains
        (or one above exactly one such folder), spikes as CSV or NPZ, or a recording of another
        program (docs/formats.md). Or an object: a neo Block, Segment or AnalogSignal, a
        SpikeInterface recording or sorting, or `SpikeTrains`. Voltage is then read from the object
        in ranges, as microvolts by its own units or gains. Spikes are taken from neo where there is
        no voltage.
    stream, well, sampling_rate_hz, duration_s, start_s, time_unit, odd_electrodes
        See `OpeningOptions`. A file that states the same itself must agree.

    Raises
    ------
    InputError
        Nothing is at the path, or nothing known; the message lists the known formats. Of an object:
        it holds neither voltage in a known unit nor spikes, or several cultures or signals of which
        none is chosen.
    """
    options = OpeningOptions(
        stream=stream,
        well=well,
        sampling_rate_hz=sampling_rate_hz,
        duration_s=duration_s,
        start_s=start_s,
        time_unit=time_unit,
        odd_electrodes=odd_electrodes,
    )
    if not isinstance(path, str | PathLike):
        from toptune.recordings.objects import open_object

        return open_object(path, options)
    path = as_path(path)
    require_regular(path)
    if isinstance(path, RemotePath) and path.is_dir():
        fetch_whole(path)
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    found = recognise(path)
    if found is None:
        known = ", ".join(one.description for one in FORMATS)
        raise InputError(
            f"{path}: not a recording toptune knows: {what_it_is(path)}; it reads {known}"
        )
    one, kind = found
    if one.needs_copy:
        fetch_whole(path)
    return one.open(path, kind, options)

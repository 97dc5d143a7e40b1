"""How neo's raw readers are opened, format by format, and what they leave to be done.

Of most formats neo passes over gaps between samples, or fills them. Here they are found, so that
detection and windows never cross them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import LONGEST_S, OpeningOptions
from toptune.recordings.foreign.neo_spikes import Span, neo_trains
from toptune.recordings.foreign.neo_voltage import (
    Facts,
    NeoPart,
    NeoStream,
    NeoVoltage,
    joined,
    streams_of,
    whole_segments,
)
from toptune.recordings.foreign.recognition import library, reading
from toptune.recordings.opening import SpikeRecording
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.voltage import SPIKES, Stretch, between_gaps, choose_stream

# Inputs beside the electrodes, by the names that recording programs give them.
_NO_ELECTRODE = re.compile(r"(ainp|audio|analog|aux|adc|vdd|supply|sync)[\s_-]*\d*", re.IGNORECASE)
# Up to this long, a pause of a Blackrock clock is jitter.
_JITTER_MS = 1.0
_JSON_BYTES = 16 * 2**20
_RECORD = 1024  # samples in a record of a .continuous file


class NeoFormat:
    """A format that neo reads: how it is opened, and what neo leaves to be done."""

    kind: ClassVar[str]
    what: ClassVar[str]  # for messages
    reader: ClassVar[str]  # neo's class
    unit: ClassVar[str | None] = None  # of channels to which neo gives none

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what neo would not recognise, or would read outside the recording."""

    def make(self, reader: Any) -> Any:
        """Make neo's reader."""
        return reader(filename=os.fspath(self.path))

    def repair(self, rawio: Any) -> None:
        """Put right what neo gets wrong, once the header is parsed."""

    def facts(self, rawio: Any) -> Facts:
        """Say what the file says of itself."""
        del rawio
        return Facts(kind=self.kind)

    def streams(self, rawio: Any) -> list[NeoStream]:
        """List the streams of voltage."""
        return streams_of(rawio, is_electrode=is_electrode, unit=self.unit)

    def is_raw(self, name: str) -> bool:
        """Tell whether a stream may hold unfiltered voltage of electrodes."""
        del name
        return True

    def parts(self, rawio: Any, stream: NeoStream) -> list[NeoPart]:
        """Find a stream's samples between gaps."""
        return whole_segments(rawio, stream.channels[0].stream)

    def units(self, rawio: Any) -> list[int]:
        """List the units, or channels of spikes, by their numbers in neo's header."""
        return list(range(rawio.spike_channels_count()))

    def span(self, rawio: Any) -> Span:
        """Say when the spikes' recording starts and ends."""
        return Span(float(rawio.segment_t_start(0, 0)), float(rawio.segment_t_stop(0, 0)))


def is_electrode(name: str) -> bool:
    """Tell by its name whether a channel is an electrode, and no input beside them."""
    return _NO_ELECTRODE.fullmatch(name) is None


class _Intan(NeoFormat):
    kind, what, reader = "intan", "a recording of Intan's RHX", "IntanRawIO"

    def _header(self) -> Path:
        if not self.path.is_dir():
            return self.path
        return next(p for n in ("info.rhd", "info.rhs") if (p := self.path / n).is_file())

    def check(self) -> None:
        if self.path.is_file() and self.path.suffix not in (".rhd", ".rhs"):
            raise InputError(
                f"{self.path}: a recording of Intan's RHX, whose name must end in .rhd or .rhs for"
                " neo to read it: rename it"
            )
        if self.path.is_file() and self.path.stem == "info":
            raise InputError(
                f"{self.path}: the header of a recording whose samples are in files beside it:"
                f" name the folder, {self.path.parent}"
            )

    def make(self, reader: Any) -> Any:
        rawio = reader(filename=os.fspath(self._header()), ignore_integrity_checks=True)
        # It would hold all sample numbers in memory; `parts` checks them piece by piece.
        rawio._assert_timestamp_continuity = lambda: None
        return rawio

    def facts(self, rawio: Any) -> Facts:
        info = rawio._global_info
        return Facts(
            kind=self.kind, program=f"Intan {info['major_version']}.{info['minor_version']}"
        )

    def is_raw(self, name: str) -> bool:
        return "amplifier channel" in name.lower() and not name.startswith("DC")

    def parts(self, rawio: Any, stream: NeoStream) -> list[NeoPart]:
        held = rawio._raw_data["timestamp"]
        stamps = held[0] if isinstance(held, list) else held
        n = int(rawio.get_signal_size(0, 0, stream.channels[0].stream))
        if stamps.size != n:
            raise InputError(
                f"{self.path}: {n} samples, but {stamps.size} sample numbers: the recording was cut"
                " off"
            )
        found = between_gaps(_flat(stamps), n, stream.sampling_rate_hz)
        return [NeoPart(0, 0, stretch) for stretch in found]


def _flat(blocks: NDArray[Any]) -> Callable[[int, int], NDArray[Any]]:
    """Give ranges of an array in order, of blocks (n, block) or of single numbers."""
    size = blocks.shape[1] if blocks.ndim == 2 else 1

    def of(start: int, stop: int) -> NDArray[Any]:
        first = start // size
        piece = blocks[first : -(-stop // size)].reshape(-1)
        return np.asarray(piece[start - first * size : stop - first * size])

    return of


class _Blackrock(NeoFormat):
    kind, what, reader = "blackrock", "voltage of Blackrock's Central", "BlackrockRawIO"

    def check(self) -> None:
        if not re.fullmatch(r"\.ns[1-6]", self.path.suffix):
            raise InputError(
                f"{self.path}: {self.what}, whose name must end in .ns1 to .ns6 for neo to read it:"
                " rename it"
            )

    def make(self, reader: Any) -> Any:
        number = int(self.path.suffix[-1])
        with self.path.open("rb") as file:
            # The scale of version 2.1 is in the .nev file beside it.
            old = file.read(8) == b"NEURALSG"
        beside = self.path.with_suffix(".nev")
        if old and beside.is_file():
            nev = os.fspath(beside)
        else:
            nev = str(Path(os.fspath(self.path)).with_suffix(".nev"))
        rawio = reader(
            filename=os.fspath(self.path),
            # Endings in the names of folders would be taken for those of files.
            nsx_override=os.fspath(self.path),
            nev_override=nev,
            nsx_to_load=number,
            load_nev=old,
            gap_tolerance_ms=_JITTER_MS,
        )
        rawio._avail_nsx = [number]  # the others are recordings of their own
        return rawio

    def streams(self, rawio: Any) -> list[NeoStream]:
        found = super().streams(rawio)
        if not found:
            raise InputError(
                f"{self.path}: no unit of voltage is known of its channels: if it is of version"
                " 2.1, put the .nev file of the same recording beside it"
            )
        return found


class _BlackrockEvents(NeoFormat):
    kind, what, reader = "blackrock_events", "spikes of Blackrock's Central", "BlackrockRawIO"

    def check(self) -> None:
        if self.path.suffix != ".nev":
            raise InputError(
                f"{self.path}: {self.what}, whose name must end in .nev for neo to read it: rename"
                " it"
            )

    def make(self, reader: Any) -> Any:
        rawio = reader(
            filename=os.fspath(self.path), nev_override=os.fspath(self.path), nsx_to_load="all"
        )
        rawio._avail_nsx = []  # voltage beside it is a recording of its own
        return rawio

    def streams(self, rawio: Any) -> list[NeoStream]:
        del rawio
        return []

    def units(self, rawio: Any) -> list[int]:
        names = [str(name) for name in rawio.header["spike_channels"]["name"]]
        kept = [k for k, name in enumerate(names) if not name.endswith("#255")]
        if len(kept) < len(names):
            self.notes = (f"{len(names) - len(kept)} units that are marked as noise are left out",)
        return kept

    def span(self, rawio: Any) -> Span:
        first_s = float(rawio.segment_t_start(0, 0))
        # Since version 3.0 the clock may be that of the day, in nanoseconds.
        return Span(first_s if first_s > LONGEST_S else 0.0, None)


class _OpenEphys(NeoFormat):
    kind, what = "openephys", "a recording of the Open Ephys GUI"
    reader = "OpenEphysBinaryRawIO"

    def check(self) -> None:
        for place in self.path.rglob("structure.oebin"):
            if place.stat().st_size > _JSON_BYTES:
                raise InputError(f"{place}: larger than {_JSON_BYTES} bytes: is it damaged?")
            with reading(place, "not a description of a recording"):
                said = json.loads(place.read_text("utf-8"))
                names = [
                    str(entry["folder_name"])
                    for what in ("continuous", "events")
                    for entry in said.get(what, [])
                ]
            for name in names:
                if ".." in Path(name).parts or Path(name).is_absolute():
                    raise InputError(f"{place}: names a folder outside the recording: {name!r:.80}")

    def make(self, reader: Any) -> Any:
        return reader(dirname=os.fspath(self.path))

    def is_raw(self, name: str) -> bool:
        return not name.endswith(("SYNC", "_ADC"))

    def parts(self, rawio: Any, stream: NeoStream) -> list[NeoPart]:
        index = stream.channels[0].stream
        number = int(rawio.header["signal_streams"][index]["id"])
        found = []
        for whole in whole_segments(rawio, index):
            folder = Path(
                rawio._sig_streams[whole.block][whole.segment][number]["raw_filename"]
            ).parent
            names = [folder / name for name in ("sample_numbers.npy", "timestamps.npy")]
            stamps = np.load(
                next(p for p in names if p.is_file()), mmap_mode="r", allow_pickle=False
            )
            n = whole.stretch.n_samples
            if stamps.shape != (n,):
                raise InputError(
                    f"{folder}: {n} samples in continuous.dat, but {len(stamps)} sample numbers:"
                    " the recording was cut off"
                )
            of = partial(_times, stamps, stream.sampling_rate_hz if stamps.dtype.kind == "f" else 1)
            stretches = between_gaps(of, n, stream.sampling_rate_hz)
            found += [whole._replace(stretch=stretch) for stretch in stretches]
        return found

    def units(self, rawio: Any) -> list[int]:
        del rawio
        return []


def _times(stamps: NDArray[Any], scale: float, start: int, stop: int) -> NDArray[Any]:
    return np.asarray(stamps[start:stop] * scale)


class _OpenEphysContinuous(_OpenEphys):
    kind, what = "openephys_continuous", "a recording of the Open Ephys GUI (.continuous)"
    reader = "OpenEphysRawIO"

    def check(self) -> None:
        pass

    def is_raw(self, name: str) -> bool:
        return name.endswith("CH")

    def parts(self, rawio: Any, stream: NeoStream) -> list[NeoPart]:
        index = stream.channels[0].stream
        ids = rawio.header["signal_channels"]["stream_id"]
        rows = np.flatnonzero(ids == rawio.header["signal_streams"][index]["id"])
        found = []
        for whole in whole_segments(rawio, index):
            records = rawio._sigs_memmap[whole.segment]
            stamps = np.asarray(records[rows[0]]["timestamp"])
            if any(not np.array_equal(records[row]["timestamp"], stamps) for row in rows[1:]):
                raise InputError(
                    f"{self.path}: electrodes have gaps at different times: it cannot be read as"
                    " one recording"
                )
            # neo counts the samples of gaps, too, which it fills with zeros.
            begins = np.flatnonzero(np.diff(stamps, prepend=stamps[0] - _RECORD - 1) != _RECORD)
            ends = np.append(begins[1:], len(stamps))
            for begin, end in zip(begins, ends, strict=True):
                first, n = int(stamps[begin] - stamps[0]), int(end - begin) * _RECORD
                start_s = int(stamps[begin]) / stream.sampling_rate_hz
                found.append(whole._replace(stretch=Stretch(first, n, start_s)))
        return found


class _Plexon(NeoFormat):
    kind, what, reader = "plexon", "a recording of Plexon (.plx)", "PlexonRawIO"
    unit = "mV"  # neo's gains are in millivolts, as the header's largest magnitudes are

    def make(self, reader: Any) -> Any:
        return reader(filename=os.fspath(self.path), progress_bar=False)

    def repair(self, rawio: Any) -> None:
        # neo reads zeros in the place of a channel's last block, unless another follows it.
        for channel, blocks in rawio._data_blocks[5].items():
            total = int(blocks["size"].sum()) // 2
            last = np.array([(0, 0, 0, total)], blocks.dtype)
            rawio._data_blocks[5][channel] = np.append(blocks, last)

    def _header(self, rawio: Any) -> Any:
        layout = library(self.path, self.what, "neo.rawio.plexonrawio").GlobalHeader
        del rawio
        return np.fromfile(self.path, np.dtype(layout), count=1)[0]

    def facts(self, rawio: Any) -> Facts:
        header = self._header(rawio)
        day = "-".join(f"{int(header[key]):02d}" for key in ("Year", "Month", "Day"))
        return Facts(kind=self.kind, program=f"Plexon {int(header['Version'])}", date=day)

    def streams(self, rawio: Any) -> list[NeoStream]:
        header = self._header(rawio)
        # neo takes the number of bits of spikes for that of continuous channels.
        bits = int(header["BitsPerSpikeSample"]) - int(header["BitsPerSlowSample"])
        factor = 2.0**bits if int(header["Version"]) >= 103 else 1.0
        return [
            replace(
                stream,
                channels=tuple(c._replace(gain_uv=c.gain_uv * factor) for c in stream.channels),
            )
            for stream in super().streams(rawio)
        ]

    def is_raw(self, name: str) -> bool:
        return name.startswith("WB")

    def parts(self, rawio: Any, stream: NeoStream) -> list[NeoPart]:
        blocks = [rawio._data_blocks[5][int(c.identity)][:-1] for c in stream.channels]
        first = blocks[0]
        if any(not np.array_equal(b["timestamp"], first["timestamp"]) for b in blocks[1:]):
            raise InputError(
                f"{self.path}: channels of {stream.name!r} have gaps at different times: it cannot"
                " be read as one recording"
            )
        ticks_hz = float(rawio._global_ssampling_rate)
        first = first[first["size"] > 0]
        step = ticks_hz / stream.sampling_rate_hz
        length = first["size"] // 2 * step
        late = first["timestamp"][1:] - (first["timestamp"] + length)[:-1]
        begins = np.append(0, np.flatnonzero(abs(late) > step) + 1)
        total = int(first["size"].sum()) // 2
        ends = [*(int(first["cumsum"][k]) for k in begins[1:]), total]
        return [
            NeoPart(
                0,
                0,
                Stretch(
                    int(first["cumsum"][k]),
                    end - int(first["cumsum"][k]),
                    int(first["timestamp"][k]) / ticks_hz,
                ),
            )
            for k, end in zip(begins, ends, strict=True)
        ]

    def span(self, rawio: Any) -> Span:
        last_s = float(self._header(rawio)["LastTimestamp"]) / float(rawio._global_ssampling_rate)
        end_s = float(rawio.segment_t_stop(0, 0))
        return Span(0.0, max(end_s, last_s if np.isfinite(last_s) else 0.0))


class _NeuroExplorer(NeoFormat):
    kind, what, reader = "neuroexplorer", "a NeuroExplorer file (.nex)", "NeuroExplorerRawIO"

    def streams(self, rawio: Any) -> list[NeoStream]:
        groups: dict[tuple[float, tuple[Stretch, ...]], list[NeoStream]] = {}
        for stream in super().streams(rawio):
            found = tuple(self._fragments(rawio, stream))
            groups.setdefault((stream.sampling_rate_hz, found), []).append(stream)
        names = [f"continuous at {rate:g} Hz" for rate, _ in groups]
        return [
            joined(streams, name if names.count(name) == 1 else f"{name}, {streams[0].name}")
            for name, streams in zip(names, groups.values(), strict=True)
        ]

    def is_raw(self, name: str) -> bool:
        del name
        return False  # field potentials and wide-band signals are stored in the same way

    def _fragments(self, rawio: Any, stream: NeoStream) -> list[Stretch]:
        channel = stream.channels[0]
        entity = rawio._entity_headers[int(channel.identity)]
        n, at, total = int(entity["n"]), int(entity["offset"]), int(entity["NPointsWave"])
        stored = rawio._memmap[at : at + 8 * max(n, 0)]
        if n < 1 or len(stored) != 8 * n or total < 1:
            raise InputError(f"{self.path}: {channel.name} has no samples, or is cut off")
        ticks, firsts = stored.view("<i4").astype(np.int64).reshape(2, n)
        ends = np.append(firsts[1:], total)
        if firsts[0] != 0 or (ends <= firsts).any():
            raise InputError(f"{self.path}: the pieces of {channel.name} are out of order")
        starts_s = ticks / float(rawio.global_header["freq"])
        pieces = zip(firsts.tolist(), ends.tolist(), starts_s.tolist(), strict=True)
        return [Stretch(first, end - first, start_s) for first, end, start_s in pieces]

    def parts(self, rawio: Any, stream: NeoStream) -> list[NeoPart]:
        return [NeoPart(0, 0, stretch) for stretch in self._fragments(rawio, stream)]

    def units(self, rawio: Any) -> list[int]:
        # A neuron's waveforms are a variable of their own, with the neuron's times.
        with_waveforms = [str(unit) != "" for unit in rawio.header["spike_channels"]["wf_units"]]
        neurons = [k for k, wave in enumerate(with_waveforms) if not wave]
        return neurons or list(range(len(with_waveforms)))


_FORMATS: dict[str, type[NeoFormat]] = {
    one.kind: one
    for one in (
        *(_Intan, _Blackrock, _BlackrockEvents, _OpenEphys, _OpenEphysContinuous, _Plexon),
        _NeuroExplorer,
    )
}


def open_neo(path: Path, kind: str, options: OpeningOptions) -> NeoVoltage | SpikeRecording:
    """Open a recording that neo reads: its voltage, or its spikes where they are meant."""
    form = _FORMATS[kind](path)
    form.check()
    rawio = parsed(form)
    try:
        with reading(path, f"{form.what} that cannot be read"):
            streams, units = form.streams(rawio), form.units(rawio)
        names = [stream.name for stream in streams]
        raw = [name for name in names if form.is_raw(name)]
        chosen = choose_stream(path, [*names, *([SPIKES] if units else [])], raw, options.stream)
        if chosen in names:
            return voltage_of(form, rawio, streams[names.index(chosen)], well=options.well)
    except BaseException:
        close_neo(rawio)
        raise
    close_neo(rawio)
    return SpikeRecording(path, kind, options, partial(_read_spikes, _FORMATS[kind]))


def parsed(form: NeoFormat) -> Any:
    """Make neo's reader and let it parse the header."""
    module = library(form.path, form.what, "neo.rawio")
    rawio = None
    try:
        with reading(form.path, f"{form.what} that cannot be read"):
            rawio = form.make(getattr(module, form.reader))
            rawio.parse_header()
            form.repair(rawio)
    except InputError:
        close_neo(rawio)
        raise
    return rawio


def voltage_of(
    form: NeoFormat,
    rawio: Any,
    stream: NeoStream,
    *,
    well: str | None = None,
    labels: Sequence[str] | None = None,
    chunk_samples: int | None = None,
) -> NeoVoltage:
    """Make a recording of a stream of a parsed file, which it closes at its end."""
    with reading(form.path, f"{form.what} that cannot be read"):
        return NeoVoltage(
            form.path,
            form.facts(rawio),
            rawio,
            stream,
            form.parts(rawio, stream),
            well=well,
            labels=labels,
            chunk_samples=chunk_samples,
            close=partial(close_neo, rawio),
        )


def _read_spikes(of: type[NeoFormat], path: Path, options: OpeningOptions) -> SpikeTrains:
    form = of(path)
    rawio = parsed(form)
    try:
        with reading(path, f"{form.what} whose spikes cannot be read"):
            trains = neo_trains(path, rawio, form.units(rawio), form.span(rawio), options)
    finally:
        close_neo(rawio)
    return replace(trains, notes=(*form.notes, *trains.notes))


def close_neo(rawio: Any) -> None:
    """Close the files that neo's readers keep open, which have no other end than their own."""
    for name in ("_hdf5_analogsignal_buffers", "_memmap_analogsignal_buffers", "_nsx_fids"):
        _close(getattr(rawio, name, None))
    for name in ("h5_file", "_filehandle"):
        _close(getattr(rawio, name, None))


def _close(held: Any) -> None:
    for one in list(held.values()) if isinstance(held, dict) else []:
        _close(one)
    if not isinstance(held, dict) and hasattr(held, "close"):
        held.close()

"""Voltage through neo's raw readers, as microvolts by the file's own gain, offset and unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.recordings.foreign.recognition import reading
from toptune.recordings.voltage import (
    Stretch,
    VoltageReader,
    check_scale,
    culture,
    different,
    scaled,
)

#: Microvolts in a unit of voltage, as the readers write it.
MICROVOLTS = {"nV": 1e-3, "uV": 1.0, "\u00b5V": 1.0, "\u03bcV": 1.0, "mV": 1e3, "V": 1e6}


class NeoChannel(NamedTuple):
    """A channel: where neo has it, and its scale."""

    name: str
    identity: str
    stream: int  # index of neo's stream
    column: int  # in that stream
    gain_uv: float
    offset_uv: float


class NeoPart(NamedTuple):
    """Samples without a gap, in one of neo's segments."""

    block: int
    segment: int
    stretch: Stretch


@dataclass(frozen=True, kw_only=True)
class NeoStream:
    """Channels with the same samples; in some files each is a stream of neo's own."""

    name: str
    sampling_rate_hz: float
    channels: tuple[NeoChannel, ...]
    left_out: tuple[str, ...]  # names of channels that are no electrodes
    width: int  # channels that neo reads together


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a file says of itself."""

    kind: str
    program: str = ""
    date: str = ""
    layout: str = ""


class NeoVoltage(VoltageReader):
    """A stream of a file that neo has opened.

    Parameters
    ----------
    path, facts, rawio
        The file, what it says of itself, and neo's reader, whose header is parsed.
    stream, parts
        Which channels, and where their samples are.
    well
        The culture to read, where the channels are of several.
    labels
        The electrodes' names, where neo does not give them.
    chunk_samples
        Samples that the file stores together; None if it does not matter.
    close
        Closes what neo opened.
    """

    def __init__(
        self,
        path: Path,
        facts: Facts,
        rawio: Any,
        stream: NeoStream,
        parts: Sequence[NeoPart],
        *,
        well: str | None = None,
        labels: Sequence[str] | None = None,
        chunk_samples: int | None = None,
        close: Callable[[], None],
    ) -> None:
        self.path, self.kind = path, facts.kind
        self.program, self.date, self.layout = facts.program, facts.date, facts.layout
        self.stream_label = stream.name
        self.sampling_rate_hz = stream.sampling_rate_hz
        self.reference_labels = stream.left_out
        self.width = stream.width
        self._rawio, self._close = rawio, close
        names = labels or different(
            path, [c.name for c in stream.channels], [c.identity for c in stream.channels]
        )
        rows, self.channel_labels = culture(path, different(path, names), well)
        channels = [stream.channels[row] for row in rows]
        self._gain_uv = np.array([c.gain_uv for c in channels])
        self._offset_uv = np.array([c.offset_uv for c in channels])
        check_scale(path, self.channel_labels, self._gain_uv, self._offset_uv)
        self._sources = _sources(channels)
        self._parts = tuple(parts)
        self._set_segments([part.stretch for part in parts], chunk_samples)

    def _fill(self, out: NDArray[np.float32], segment: int, start: int) -> None:
        part = self._parts[segment]
        first = part.stretch.first + start
        with reading(self.path, f"its samples from {first} on cannot be read"):
            for stream, (rows, columns) in self._sources.items():
                raw = self._rawio.get_analogsignal_chunk(
                    block_index=part.block,
                    seg_index=part.segment,
                    i_start=first,
                    i_stop=first + out.shape[1],
                    stream_index=stream,
                )[:, columns]
                gain, offset = self._gain_uv[rows], self._offset_uv[rows]
                out[rows] = scaled(self.path, raw, gain, offset)

    def close(self) -> None:
        """Close the file."""
        self._close()


def _sources(channels: Sequence[NeoChannel]) -> dict[int, tuple[Any, Any]]:
    """Group channels by neo's stream: their rows here, and their columns there."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for row, channel in enumerate(channels):
        rows, columns = found.setdefault(channel.stream, ([], []))
        rows.append(row)
        columns.append(channel.column)
    return {s: (np.array(rows), np.array(columns)) for s, (rows, columns) in found.items()}


def streams_of(
    rawio: Any, *, is_electrode: Callable[[str], bool], unit: str | None = None
) -> list[NeoStream]:
    """List the streams of a parsed file that hold voltage.

    `unit` is that of channels to which neo gives none.
    """
    header = rawio.header
    found = []
    for index, stream in enumerate(header["signal_streams"]):
        channels = header["signal_channels"]
        mine = channels[channels["stream_id"] == stream["id"]]
        kept = []
        for column, channel in enumerate(mine):
            micro = MICROVOLTS.get(str(channel["units"]) or unit or "")
            name = str(channel["name"]).strip()
            if micro is None or not is_electrode(name):
                continue
            gain, offset = float(channel["gain"]) * micro, float(channel["offset"]) * micro
            identity = str(channel["id"]).strip()
            kept.append(NeoChannel(name, identity, index, column, gain, offset))
        if kept:
            columns = {channel.column for channel in kept}
            found.append(
                NeoStream(
                    name=str(stream["name"]).strip() or str(stream["id"]).strip(),
                    sampling_rate_hz=float(mine["sampling_rate"][0]),
                    channels=tuple(kept),
                    left_out=tuple(
                        str(c["name"]).strip() for k, c in enumerate(mine) if k not in columns
                    ),
                    width=len(mine),
                )
            )
    return found


def whole_segments(rawio: Any, stream: int) -> list[NeoPart]:
    """Take every one of neo's segments of a stream as samples without a gap."""
    found = []
    for block in range(rawio.block_count()):
        for segment in range(rawio.segment_count(block)):
            n = int(rawio.get_signal_size(block, segment, stream))
            start_s = float(rawio.get_signal_t_start(block, segment, stream))
            if n:
                found.append(NeoPart(block, segment, Stretch(0, n, start_s)))
    return found


def joined(streams: Sequence[NeoStream], name: str) -> NeoStream:
    """Make one stream of several with the same samples."""
    return replace(
        streams[0],
        name=name,
        channels=tuple(channel for stream in streams for channel in stream.channels),
        left_out=tuple(label for stream in streams for label in stream.left_out),
        width=sum(stream.width for stream in streams),
    )

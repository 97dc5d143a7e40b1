"""What an MCS HDF5 file is made of: headers, streams, channels, and how they are stored.

What enters: descriptions. What leaves: the compound types and fixed-length, padded strings that
MCS's own program writes. Microvolts are (count - ad_zero) x conversion_factor x 10^(exponent + 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import h5py
import numpy as np

from toptune.errors import InputError

_ASCII = h5py.string_dtype("ascii")
_INFO_CHANNEL = np.dtype(
    [
        ("ChannelID", "<i4"),
        ("RowIndex", "<i4"),
        ("GroupID", "<i4"),
        ("Label", _ASCII),
        ("RawDataType", _ASCII),
        ("Unit", _ASCII),
        ("Exponent", "<i4"),
        ("ADZero", "<i4"),
        ("Tick", "<i8"),
        ("ConversionFactor", "<i8"),
        ("HighPassFilterType", _ASCII),
        ("HighPassFilterCutOffFrequency", _ASCII),
        ("HighPassFilterOrder", "<i4"),
        ("LowPassFilterType", _ASCII),
        ("LowPassFilterCutOffFrequency", _ASCII),
        ("LowPassFilterOrder", "<i4"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class McsChannel:
    """One row of a stream.

    Parameters
    ----------
    label
        The electrode's name; ``Ref`` marks the reference electrode.
    channel_id
        The number by which other streams refer to it.
    conversion_factor, exponent, unit
        One ADC step is conversion_factor x 10^exponent units. The defaults are an MEA2100's.
    ad_zero
        The count at zero volts.
    group_id
        Which array of a multi-array amplifier it belongs to.
    """

    label: str
    channel_id: int
    conversion_factor: int = 59605
    exponent: int = -12
    unit: str = "V"
    ad_zero: int = 0
    group_id: int = 0


@dataclass(frozen=True, kw_only=True)
class McsStream:
    """An analog stream.

    Parameters
    ----------
    label
        What it is, such as ``Data Acquisition (1) Electrode Raw Data``.
    channels
        In the order of the rows.
    tick_us
        Microseconds from one sample to the next.
    sub_type
        ``Electrode``, ``Auxiliary`` or ``Digital``.
    source
        Label of the stream of the same recording that it was computed from; None for acquired data.
    """

    label: str
    channels: tuple[McsChannel, ...]
    tick_us: int = 100
    sub_type: str = "Electrode"
    source: str | None = None

    def __post_init__(self) -> None:
        if not self.channels:
            raise InputError(f"McsStream.channels of {self.label!r} must not be empty")
        if self.tick_us < 1:
            raise InputError(f"McsStream.tick_us must be 1 or above, got {self.tick_us}")


@dataclass(frozen=True, kw_only=True)
class McsHeader:
    """What a file says about itself; the defaults describe a simulated 60-electrode array.

    `date_text` stands in the file as it is, in whatever language; ``YYYY-MM-DD`` if None.
    """

    date_text: str | None = None
    date: datetime = datetime(2026, 1, 1)
    mea_name: str = "60MEA200/30iR"
    mea_layout: str = "60MEA"
    program_name: str = "toptune simulate"
    program_version: str = "1"
    comment: str = ""


def write_info_channel(group: Any, stream: McsStream) -> None:
    """Write the table that tells counts into volts, a row a channel."""
    rows = [
        (
            *(channel.channel_id, row, channel.group_id),
            *(channel.label, "Int", channel.unit),
            *(channel.exponent, channel.ad_zero, stream.tick_us, channel.conversion_factor),
            # No hardware filter, as the program writes it.
            *("", "-1", -1, "", "-1", -1),
        )
        for row, channel in enumerate(stream.channels)
    ]
    info = group.create_dataset("InfoChannel", data=np.array(rows, _INFO_CHANNEL))
    info.attrs.create("InfoVersion", 1, dtype=np.int32)


def write_text(node: Any, name: str, text: str, width: int = 0) -> None:
    """Write a fixed-length string attribute; with a `width`, padded and ended by CR LF."""
    data = text.encode()
    if width:
        data = data.ljust(width) + b"\r\n"
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(max(1, len(data)))
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    attribute = h5py.h5a.create(node.id, name.encode(), kind, space)
    attribute.write(np.array(data, f"S{max(1, len(data))}"), kind)


def mea60_channels(conversion_factor: int = 59605, ad_zero: int = 0) -> tuple[McsChannel, ...]:
    """Describe a 60-electrode array: 8 x 8 without corners, 15 being the reference.

    Labels are column, then row, counted from 1.
    """
    labels = [
        f"{column}{row}"
        for column in range(1, 9)
        for row in range(1, 9)
        if not (column in (1, 8) and row in (1, 8))
    ]
    return tuple(
        McsChannel(
            label="Ref" if label == "15" else label,
            channel_id=number,
            conversion_factor=conversion_factor,
            ad_zero=ad_zero,
        )
        for number, label in enumerate(labels)
    )

"""Programs that write recordings as they are made; the tests run them in processes of their own.

    python live_writers.py raw PATH RATE SECONDS [KILLED_AT_S]
    python live_writers.py hdf5 PATH RATE SECONDS [GAP_AT_S]
    python live_writers.py lsl CONFIG NAME RATE SECONDS [CHANNELS]

Each writes in real time. Every channel's values are the number of the sample and the channel:
10 x number + channel, so that a reader can tell which samples it has.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_CHANNELS = 4
PIECE_S = 0.02


def values(first: int, n: int, n_channels: int = N_CHANNELS) -> NDArray[np.int64]:
    """What the samples are: (n, channels)."""
    return 10 * np.arange(first, first + n)[:, None] + np.arange(n_channels)


def in_time(rate: float, seconds: float) -> Iterator[tuple[int, int]]:
    """Give the first sample and the number of samples of each piece, when it is due."""
    begun_s, step = time.monotonic(), max(1, round(PIECE_S * rate))
    for first in range(0, round(rate * seconds), step):
        n = min(step, round(rate * seconds) - first)
        time.sleep(max(0.0, begun_s + (first + n) / rate - time.monotonic()))
        yield first, n


def raw_frames(first: int, n: int) -> bytes:
    """Samples with their numbers."""
    frames = np.zeros(n, [("number", "<u4"), ("values", "<i4", (N_CHANNELS,))])
    frames["number"] = np.arange(first, first + n)
    frames["values"] = values(first, n)
    return frames.tobytes()


def begun() -> None:
    """Say that it begins."""
    sys.stdout.write("begun\n")
    sys.stdout.flush()


def write_raw(path: Path, rate: float, seconds: float) -> None:
    begun()
    with path.open("ab", buffering=0) as file:
        for first, n in in_time(rate, seconds):
            file.write(raw_frames(first, n))


def _copy(old: Any, new: Any) -> None:
    """Write groups, attributes and the table of channels anew: old ones may not be written on."""
    for name, value in old.attrs.items():
        new.attrs[name] = value
    for name, node in old.items() if hasattr(old, "items") else ():
        if name == "InfoChannel":
            _copy(node, new.create_dataset(name, data=node[...]))
        elif not name.startswith("ChannelData"):
            _copy(node, new.create_group(name))


def growing_file(path: Path, rate: float, n_channels: int = N_CHANNELS) -> tuple[Any, Any, Any]:
    """Begin an MCS file that others may read while it is written: file, samples, time stamps."""
    import h5py

    from toptune.recordings.mcs_writer import McsChannel, McsStream, McsWriter

    closed = path.with_suffix(".template")
    closed.unlink(missing_ok=True)
    channels = tuple(
        McsChannel(label=f"E{k}", channel_id=k, conversion_factor=1, exponent=-6)
        for k in range(n_channels)
    )
    raw = McsStream(label="Electrode Raw Data", channels=channels, tick_us=round(1e6 / rate))
    with McsWriter(closed) as writer:
        writer.add_recording().add_stream(raw).write(np.zeros((n_channels, 1), np.int32))
    file = h5py.File(path, "w", libver="latest")
    with h5py.File(closed, "r") as template:
        _copy(template, file)
    closed.unlink()
    stream = file["Data/Recording_0/AnalogStream/Stream_0"]
    data = stream.create_dataset(
        "ChannelData", (n_channels, 0), "<i4", maxshape=(n_channels, None),
        chunks=(n_channels, 256), compression="gzip", shuffle=True,
    )  # fmt: skip
    stamps = stream.create_dataset(
        "ChannelDataTimeStamps", (0, 3), "<i8", maxshape=(None, 3), chunks=(64, 3)
    )
    file.swmr_mode = True
    return file, data, stamps


def add_start(stamps: Any, time_us: int, index: int) -> None:
    """Say when a sample was taken that follows a gap."""
    stamps.resize(stamps.shape[0] + 1, axis=0)
    stamps[-1] = (time_us, index, index)
    stamps.flush()


def add_samples(data: Any, first: int, n: int) -> None:
    data.resize(first + n, axis=1)
    data[:, first:] = values(first, n, data.shape[0]).T
    data.flush()


def write_hdf5(path: Path, rate: float, seconds: float, gap_at_s: float | None = None) -> None:
    """Write; with a gap of a second, of which samples are not in the file."""
    file, data, stamps = growing_file(path, rate)
    add_start(stamps, 0, 0)
    begun()
    for first, n in in_time(rate, seconds):
        if gap_at_s is not None and first <= gap_at_s * rate < first + n:
            add_start(stamps, round((first / rate + 1) * 1e6), first)
        add_samples(data, first, n)
    file.close()


def write_lsl(
    config: str, name: str, rate: float, seconds: float, n_channels: int = N_CHANNELS
) -> None:
    os.environ["LSLAPICFG"] = config
    import pylsl

    info = pylsl.StreamInfo(name, "ephys", n_channels, rate, "float32", f"rig of {name}")
    channels = info.desc().append_child("channels")
    for k in range(n_channels):
        channel = channels.append_child("channel")
        channel.append_child_value("label", f"E{k}")
        channel.append_child_value("unit", "microvolts")
    outlet = pylsl.StreamOutlet(info, 0, 30)
    begun()
    outlet.wait_for_consumers(20.0)
    for first, n in in_time(rate, seconds):
        outlet.push_chunk(values(first, n, n_channels).astype(np.float32))
    time.sleep(0.5)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "raw":
        write_raw(Path(rest[0]), float(rest[1]), float(rest[2]))
    elif what == "hdf5":
        gap = float(rest[3]) if len(rest) > 3 else None
        write_hdf5(Path(rest[0]), float(rest[1]), float(rest[2]), gap)
    else:
        number = int(rest[4]) if len(rest) > 4 else N_CHANNELS
        write_lsl(rest[0], rest[1], float(rest[2]), float(rest[3]), number)

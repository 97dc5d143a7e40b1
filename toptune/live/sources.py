"""Sources by their names: a recording, a file that grows, a stream, standard input."""

from __future__ import annotations

import stat
from os import PathLike
from pathlib import Path
from typing import Any

from toptune.errors import InputError
from toptune.live.blocks import Source
from toptune.live.replay import Replay, Speed
from toptune.machine.remote import as_path
from toptune.params import OpeningOptions, Waiting
from toptune.recordings.opening import SpikeRecording, open_recording

#: What stands for standard input.
STANDARD_INPUT = "-"


def open_source(
    source: Source | str | PathLike[str] | Any,
    *,
    speed: Speed | None = None,
    header: str | PathLike[str] | None = None,
    opening: OpeningOptions | None = None,
    waiting: Waiting | None = None,
) -> Source:
    """Open a source of live voltage.

    Parameters
    ----------
    source
        One of

        - a path to a recording of any format, or an object that `open_recording` takes: it is
          replayed;
        - an MCS HDF5 file that is being written (SWMR), or a raw file with a header: it is read
          from its beginning, and waited for;
        - ``lsl:NAME``, a stream of the Lab Streaming Layer; ``lsl:`` for the only one there is;
        - ``-``, raw samples from standard input, or a named pipe, with a header;
        - a `Source`, which is given back as it is.
    speed
        How fast a recording is replayed: seconds a second, 1 if None, or ``max``. A raw file for
        which it is given is taken as complete, and replayed.
    header
        The TOML file that says how raw samples are laid out (`toptune.live.raw`). Of a raw file,
        that with its name and ``.toml`` if None.
    opening
        Stream, well and so on of a recording.
    waiting
        How long what does not come is waited for.

    Raises
    ------
    InputError
        Nothing is there, or nothing that holds voltage; or what was given does not apply to it.
    MissingPackagesError
        A stream is meant, and pylsl is not installed.
    """
    if isinstance(source, Source):
        return source
    given, wait = opening or OpeningOptions(), waiting or Waiting()
    head = None if header is None else Path(header)
    if isinstance(source, str) and source.startswith("lsl:"):
        _refuse(source, speed=speed, header=header)
        from toptune.live.lsl import PREFIX, LslSource

        return LslSource(source.removeprefix(PREFIX), wait)
    if isinstance(source, str | PathLike):
        live = _live(str(source), speed, head, given, wait)
        if live is not None:
            return live
    where = as_path(source) if isinstance(source, str | PathLike) else source
    _refuse(where, header=header)
    recording = open_recording(where, **given.opening)
    if isinstance(recording, SpikeRecording):
        raise InputError(
            f"{recording.path}: holds spikes and no voltage, which is what comes live: `predict`"
            " gives its verdicts"
        )
    return Replay(recording, speed=1.0 if speed is None else speed)


def _live(
    name: str, speed: Speed | None, header: Path | None, opening: OpeningOptions, waiting: Waiting
) -> Source | None:
    """Open standard input, a pipe, or a file that grows or has a header; None for others."""
    from toptune.live.raw import RawRecording, RawStream, header_beside

    if name == STANDARD_INPUT:
        _refuse(name, speed=speed)
        return RawStream(None, _needed(name, header), waiting)
    path = as_path(name)
    if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
        _refuse(name, speed=speed)
        return RawStream(path, _needed(name, header), waiting)
    if not path.is_file():
        return None
    if header is None and _grows(path):
        _refuse(name, speed=speed)
        from toptune.live.growing import GrowingHdf5

        return GrowingHdf5(path, waiting, stream=opening.stream, well=opening.well)
    header = header or header_beside(path)
    if header is None:
        return None
    if speed is not None:
        return Replay(RawRecording(path, header), speed=speed)
    return RawStream(path, header, waiting)


def _grows(path: Path) -> bool:
    from toptune.recordings.mcs_growing import is_being_written

    try:
        return is_being_written(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _needed(name: str, header: Path | None) -> Path:
    if header is None:
        what = "standard input" if name == STANDARD_INPUT else name
        raise InputError(f"{what}: say by `header` how its samples are laid out")
    return header


def _refuse(source: object, **given: object) -> None:
    """Refuse what does not apply to a source."""
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{source}: `{name}` does not apply to it, got {value}")

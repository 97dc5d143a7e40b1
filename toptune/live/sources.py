"""Sources by their names: a recording, a file that grows, a stream, standard input."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from toptune.errors import InputError
from toptune.live.blocks import Source
from toptune.live.replay import Replay, Speed
from toptune.params import OpeningOptions
from toptune.recordings.opening import SpikeRecording, open_recording


def open_source(
    source: Source | str | PathLike[str] | Any,
    *,
    speed: Speed | None = None,
    opening: OpeningOptions | None = None,
) -> Source:
    """Open a source of live voltage.

    Parameters
    ----------
    source
        A path to a recording of any format, or an object that `open_recording` takes: it is
        replayed. A `Source` is given back as it is.
    speed
        How fast a recording is replayed: seconds a second, 1 if None, or ``max``.
    opening
        Stream, well and so on of a recording.

    Raises
    ------
    InputError
        Nothing is there, or nothing that holds voltage.
    """
    if isinstance(source, Source):
        return source
    where = Path(source) if isinstance(source, str | PathLike) else source
    given = opening or OpeningOptions()
    recording = open_recording(where, **vars(given))
    if isinstance(recording, SpikeRecording):
        raise InputError(
            f"{recording.path}: holds spikes and no voltage, which is what comes live: `predict`"
            " gives its verdicts"
        )
    return Replay(recording, speed=1.0 if speed is None else speed)

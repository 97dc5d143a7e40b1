"""A recording as a source: its samples come as they would have come from the amplifier."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Literal, Self

from toptune.errors import InputError
from toptune.live.blocks import Block, Note, SourceInfo
from toptune.recordings.opening import VoltageRecording

Speed = float | Literal["max"]
"""Seconds of a recording a second; ``max`` does not wait."""

# What comes at once: little where it is waited for, more where it is not.
_WAITED_S, _AT_ONCE_S = 0.05, 1.0
# The most values (channels x samples) at once.
_MOST_VALUES = 2_000_000


class Replay:
    """The samples of a recording, at a speed.

    A gap of the recording is a gap of the source. Each stretch begins at its own time
    (`Block.begins_s`), so that windows are those of the recording itself.

    Parameters
    ----------
    recording
        Any voltage that can be read in ranges; it is closed with the source.
    speed
        1 for the speed of the recording, 20 for 20 seconds a second, ``max`` for as fast as it is
        asked for.

    Raises
    ------
    InputError
        The speed is not above 0.
    """

    def __init__(self, recording: VoltageRecording, *, speed: Speed = 1.0) -> None:
        if speed != "max" and not 0 < speed < float("inf"):
            raise InputError(f"`speed` must be above 0 or 'max', got {speed}")
        self._recording = recording
        self._speed = speed
        self._closing = threading.Event()
        self.info = SourceInfo(
            name=recording.path.name,
            channel_labels=recording.channel_labels,
            sampling_rate_hz=recording.sampling_rate_hz,
            n_samples=recording.n_samples,
        )

    def read(self) -> Iterator[Block | Note]:
        """Give all samples; of gaps a note each.

        Blocks received late since they were asked for late have the time when they were due.
        """
        rate = self.info.sampling_rate_hz
        begun_s = time.monotonic()
        end = 0
        for number, segment in enumerate(self._recording.segments):
            place = max(end, round(segment.start_s * rate))
            if place > end:
                text = f"{place - end:,} samples ({(place - end) / rate:.3g} s) were not recorded"
                yield Note(at_s=end / rate, kind="gap", text=text, n_samples=place - end)
            for at, n in self._steps(segment.n_samples):
                first = segment.first_sample + at
                samples = self._recording.read(first, first + n)
                received_s = self._wait_until(begun_s, (place + at + n) / rate)
                if self._closing.is_set():
                    return
                yield Block(
                    first_sample=place + at,
                    samples=samples,
                    received_s=received_s,
                    begins_s=segment.start_s if number and not at else None,
                )
            end = place + segment.n_samples

    def _steps(self, n_samples: int) -> Iterator[tuple[int, int]]:
        """Divide a stretch: the first sample and the number of samples of each step."""
        rate, chunk = self.info.sampling_rate_hz, self._recording.chunk_samples
        if self._speed == "max":
            step = max(1, round(_AT_ONCE_S * rate) // chunk) * chunk
        else:
            step = round(_WAITED_S * rate * max(1.0, self._speed))
        step = max(1, min(step, _MOST_VALUES // self.info.n_channels))
        for at in range(0, n_samples, step):
            yield at, min(step, n_samples - at)

    def _wait_until(self, begun_s: float, at_s: float) -> float:
        """Wait for the time of the recording; give when it was."""
        if self._speed == "max":
            return time.monotonic()
        due_s = begun_s + at_s / self._speed
        self._closing.wait(max(0.0, due_s - time.monotonic()))
        return due_s

    def close(self) -> None:
        """Close the recording."""
        self._closing.set()
        close = getattr(self._recording, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

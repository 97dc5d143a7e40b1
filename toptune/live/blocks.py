"""What a source of live voltage gives: who it is, blocks of samples in order, and notes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

NoteKind = Literal[
    "gap", "late", "doubled", "out of order", "stopped", "resumed", "clock", "changed", "assumed",
    "disk",
]  # fmt: skip
"""What a note is about.

==============  ====================================================================================
gap             samples that never came; the next block begins after them
late            samples that came after their place had been given up as a gap; they were dropped
doubled         samples that had come before; they were dropped
out of order    samples that came before earlier ones; they were put in their place
stopped         nothing has come for a while, or the source has ended before its time
resumed         samples come again
clock           the source's clock does not run as it says, or was set anew
assumed         what the source does not say of itself, and what was assumed
changed         the channels or the sampling rate are others than at the beginning; the source ends
disk            results cannot be written
==============  ====================================================================================
"""


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What is known of a source before its first sample.

    Parameters
    ----------
    name
        What the source is called on the screen: a file's name, a stream's name.
    channel_labels
        The electrodes' names, in the order of the rows of its blocks.
    sampling_rate_hz
        The nominal sampling rate.
    n_samples
        The samples it will give in all, or None where that is not known.
    """

    name: str
    channel_labels: tuple[str, ...]
    sampling_rate_hz: float
    n_samples: int | None = None

    @property
    def n_channels(self) -> int:
        """How many rows a block has."""
        return len(self.channel_labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """Successive samples of all channels.

    Parameters
    ----------
    first_sample
        The place of the first sample on the source's own count, which begins at 0. It is never
        smaller than the end of the block before; where it is larger, the samples between are lost.
    samples
        (n_channels, n) float32 in microvolts, as they were recorded (not filtered); n is at least
        1.
    received_s
        `time.monotonic()` when the last of the samples was at hand.
    begins_s
        Where a stretch begins whose time is known better than by its place: the time of its first
        sample, in seconds since the source's first. Filter and windows start anew with it, even
        where no sample is lost. None for all other blocks.
    """

    first_sample: int
    samples: NDArray[np.float32]
    received_s: float
    begins_s: float | None = None

    @property
    def stop_sample(self) -> int:
        """The place after the last sample."""
        return self.first_sample + int(self.samples.shape[1])


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that happened to a source, or to what was made of it.

    Parameters
    ----------
    at_s
        When, in seconds since the source's first sample.
    kind
        What it is about (`NoteKind`).
    text
        One line for the user.
    n_samples
        The samples (of each channel) that were lost or dropped; 0 where none were.
    """

    at_s: float
    kind: NoteKind
    text: str
    n_samples: int = 0


@runtime_checkable
class Source(Protocol):
    """Blocks of voltage in order, without doubled samples, from wherever they come.

    What a source had to drop, reorder or wait for is in its notes. `read` is called once.
    """

    @property
    def info(self) -> SourceInfo:
        """The source's name, channels and rate."""

    def read(self) -> Iterator[Block | Note]:
        """Give blocks and notes as they come, until the source ends.

        Raises
        ------
        InputError
            If what comes cannot be read.
        """

    def close(self) -> None:
        """Let go of the file or the stream; what was not read is lost."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

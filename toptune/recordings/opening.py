"""Recordings of every kind, opened by content: voltage or spikes.

A path enters. What leaves either gives voltage, (channels, samples) float32 microvolts in ranges
and chunks, or gives `SpikeTrains` that were detected elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.fingerprint import require_regular
from toptune.recordings.mcs import McsRecording, is_mcs
from toptune.recordings.spikefiles import read_spikes, sniff
from toptune.recordings.trains import Segment, SpikeTrains


class VoltageRecording(Protocol):
    """Voltage that can be read in ranges."""

    @property
    def path(self) -> Path:
        """Where it lies, for messages."""

    @property
    def channel_labels(self) -> tuple[str, ...]:
        """The electrodes' names, in the order of the rows."""

    @property
    def sampling_rate_hz(self) -> float:
        """Samples a second."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Stretches between gaps."""

    @property
    def n_samples(self) -> int:
        """Samples a channel, over all segments."""

    @property
    def chunk_samples(self) -> int:
        """Samples that lie together; reading in multiples of it is fastest."""

    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Fill `out` (channels, samples) float32 with microvolts from sample `start` on."""

    def read(self, start: int, stop: int, pool: Executor | None = None) -> NDArray[np.float32]:
        """Give samples [start, stop): (channels, samples) float32 microvolts."""

    def chunks(self, n_samples: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Go through all samples; a chunk never spans a gap."""


@dataclass(frozen=True)
class SpikeRecording:
    """A recording of which only the spikes are at hand.

    Parameters
    ----------
    path
        Peak trains (folder), CSV or NPZ.
    kind
        Which of them.
    sampling_rate_hz
        Rate for kinds that do not tell; None for the usual 10 kHz.
    """

    path: Path
    kind: str
    sampling_rate_hz: float | None = None

    def trains(self) -> SpikeTrains:
        """Read the spikes."""
        return read_spikes(self.path, sampling_rate_hz=self.sampling_rate_hz)


@dataclass(frozen=True, eq=False)
class ArrayRecording:
    """Voltage in memory, as one gap-free `VoltageRecording`.

    Parameters
    ----------
    samples_uv : (channels, samples) float32
        Microvolts.
    sampling_rate_hz
        Samples a second.
    segments
        Stretches between gaps; all samples in one where None.
    path
        A name for messages.
    """

    samples_uv: NDArray[np.float32]
    sampling_rate_hz: float
    gaps: tuple[Segment, ...] | None = None
    path: Path = Path("<memory>")

    @property
    def channel_labels(self) -> tuple[str, ...]:
        """Channels are numbered."""
        return tuple(str(k) for k in range(self.samples_uv.shape[0]))

    @property
    def n_samples(self) -> int:
        """Samples a channel."""
        return int(self.samples_uv.shape[1])

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Stretches between gaps."""
        return self.gaps or (Segment(0, self.n_samples, 0.0),)

    @property
    def chunk_samples(self) -> int:
        """Any range is as good as any other."""
        return 1

    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Copy microvolts from sample `start` on."""
        del pool
        out[...] = self.samples_uv[:, start : start + out.shape[1]]

    def read(self, start: int, stop: int, pool: Executor | None = None) -> NDArray[np.float32]:
        """Copy samples [start, stop)."""
        del pool
        return self.samples_uv[:, start:stop].copy()

    def chunks(self, n_samples: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Go through all samples; a chunk never spans a gap."""
        step = n_samples or max(1, 1_000_000 // max(1, self.samples_uv.shape[0]))
        for segment in self.segments:
            end = segment.first_sample + segment.n_samples
            for start in range(segment.first_sample, end, step):
                yield self.read(start, min(start + step, end))


def open_recording(
    path: Path | str, *, stream: str | None = None, sampling_rate_hz: float | None = None
) -> McsRecording | SpikeRecording:
    """Open a recording of any known kind, recognised by its content.

    Parameters
    ----------
    path
        An MCS HDF5 file, a folder of SpyCode peak trains, or spikes as CSV or NPZ.
    stream
        Label of the electrode stream, for MCS files that have several.
    sampling_rate_hz
        For spikes whose file does not tell; 10 kHz where None.

    Raises
    ------
    InputError
        There is nothing at the path, or nothing known; the message lists what is known.
    """
    path = Path(path)
    try:
        require_regular(path)
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        if path.is_file() and is_mcs(path):
            return McsRecording(path, stream)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    kind = sniff(path)
    if kind is None:
        raise InputError(
            f"{path}: not a recording toptune knows: MCS HDF5 files, folders of SpyCode peak"
            " trains (.txt or .mat), spikes as CSV (time_s,channel) or NPZ"
        )
    return SpikeRecording(path, kind, sampling_rate_hz)

"""Voltage in memory as a recording, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toptune.recordings.trains import Segment


@dataclass(frozen=True, eq=False)
class ArrayRecording:
    """Voltage in memory, as a `VoltageRecording`."""

    samples_uv: NDArray[np.float32]  # (channels, samples)
    sampling_rate_hz: float
    gaps: tuple[Segment, ...] | None = None  # the segments; one with all samples if None
    path: Path = Path("<memory>")  # a name for messages

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

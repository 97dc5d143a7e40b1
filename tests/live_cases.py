"""Voltage in memory as a live source, and a recording with gaps, for tests."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from toptune.live.blocks import Block, Note, SourceInfo
from toptune.recordings.trains import Segment


class ArraySource:
    """Samples in memory, (channels, n) float32 microvolts, in blocks of the given lengths.

    The lengths are taken in turn. `segments` are gap-free stretches; a block never spans a gap.
    """

    def __init__(
        self,
        samples_uv: NDArray[np.float32],
        sampling_rate_hz: float,
        lengths: Sequence[int] = (1000,),
        segments: Sequence[Segment] | None = None,
    ) -> None:
        self.samples_uv = samples_uv
        self.segments = segments or [Segment(0, samples_uv.shape[1], 0.0)]
        self.lengths = lengths
        self.closed = False
        labels = tuple(str(k) for k in range(len(samples_uv)))
        self.info = SourceInfo(
            name="<memory>", channel_labels=labels, sampling_rate_hz=sampling_rate_hz
        )

    def read(self) -> Iterator[Block | Note]:
        """Give all of it."""
        turn = 0
        for segment in self.segments:
            place = round(segment.start_s * self.info.sampling_rate_hz)
            at = 0
            while at < segment.n_samples:
                n = min(self.lengths[turn % len(self.lengths)], segment.n_samples - at)
                turn += 1
                first = segment.first_sample + at
                yield Block(
                    first_sample=place + at,
                    samples=self.samples_uv[:, first : first + n].copy(),
                    received_s=time.monotonic(),
                    begins_s=None if at else segment.start_s,
                )
                at += n

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cut(n_samples: int, parts: Sequence[float], gaps_s: Sequence[float]) -> tuple[Segment, ...]:
    """Divide samples at some parts of their number, with gaps of some seconds, at 10 kHz."""
    edges = [0, *sorted({round(part * n_samples) for part in parts} - {0, n_samples}), n_samples]
    segments, start_s = [], 0.0
    for k, (first, end) in enumerate(pairwise(edges)):
        segments.append(Segment(first, end - first, start_s))
        start_s = round(start_s + (end - first) / 1e4 + gaps_s[k % len(gaps_s)], 4)
    return tuple(segments)


def voltage(
    seed: int, n_samples: int, n_channels: int = 4, every: int = 900
) -> NDArray[np.float32]:
    """Make noise with spikes, and a dead last channel."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 5, (n_channels, n_samples)).astype(np.float32)
    for row in x:
        for at in rng.integers(0, max(1, n_samples - 4), n_samples // every):
            row[at : at + 4] += np.array([-90, -40, 60, 30], np.float32)[: n_samples - at]
    x[-1] = 7
    return x

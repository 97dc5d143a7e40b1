"""Verdicts as a session gives them, of windows that were made up, and a disk that is full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from toptune.live.blocks import SourceInfo
from toptune.live.board import Board, Header
from toptune.live.engine import LiveVerdict

CLASSES = ("100E0I", "75E25I", "0E100I")
RATE_HZ = 10_000.0
WIDTH_S, STRIDE_S, BIN_S = 2.0, 1.0, 0.01


def make_header(
    *, classes: Sequence[str] = CLASSES, name: str = "lsl:MEA", model: str = "run"
) -> Header:
    labels = tuple(f"E{k}" for k in range(60))
    source = SourceInfo(name=name, channel_labels=labels, sampling_rate_hz=RATE_HZ)
    return Header(
        source=source, model=model, classes=tuple(classes), width_s=WIDTH_S, stride_s=STRIDE_S
    )


def make_board(**header: object) -> Board:
    return Board(make_header(**header))  # type: ignore[arg-type]  # what a header has


def make_verdicts(
    codes: Sequence[int],
    *,
    classes: Sequence[str] = CLASSES,
    begin_s: float = 0.0,
    unlike: Sequence[int] = (),
    n_dropped: int = 0,
    latency_s: float = 0.05,
) -> Iterator[LiveVerdict]:
    """One window after the other; each bin of a window has as many spikes as its second."""
    votes, total = np.zeros(len(classes), np.int64), np.zeros(len(classes))
    for k, code in enumerate(codes):
        probabilities = np.full(len(classes), 0.2 / (len(classes) - 1))
        probabilities[code] = 0.8
        votes[code] += 1
        total += probabilities
        start_s = begin_s + k * STRIDE_S
        seconds = start_s + np.arange(round(WIDTH_S / BIN_S)) * BIN_S
        counts = np.floor(seconds + 1e-9).astype(np.int64)
        yield LiveVerdict(
            start_s=start_s,
            stop_s=start_s + WIDTH_S,
            classes=tuple(classes),
            scores=np.log(probabilities),
            probabilities=probabilities,
            code=code,
            nearness=0.9,
            unlike=k in unlike,
            unlike_training=len(unlike) > len(codes) / 2,
            warnings=("spikes are rare",) if len(unlike) > len(codes) / 2 else (),
            counts=counts,
            bin_s=BIN_S,
            n_spikes=int(counts.sum()),
            n_dropped=n_dropped,
            latency_s=latency_s,
            votes=votes.copy(),
            mean_probabilities=total / (k + 1),
        )


@contextmanager
def files_no_longer_than(n_bytes: int) -> Iterator[None]:
    """Let writes fail as on a full disk."""
    resource = pytest.importorskip("resource", reason="resource: not on this system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

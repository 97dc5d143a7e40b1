"""What a live recording has come to, in bounded memory, for whatever shows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.live.blocks import Note, SourceInfo
from toptune.live.engine import CalibrationProgress, LiveVerdict

#: Windows of which the probabilities are shown: an hour of verdicts every 5 s.
SHOWN_WINDOWS = 720
SHOWN_NOTES = 100
# Windows further apart than this many strides are not connected by a line.
_GAP_STRIDES = 1.5
# As many columns as the histogram of the last window has on a page.
_COLUMNS = 240

State = Literal["calibrating", "filling", "running", "stopped", "ended"]


class Moment(NamedTuple):
    """One window's verdict in short."""

    stop_s: float
    probabilities: tuple[float, ...]
    code: int
    unlike: bool
    follows: bool  # the window one stride after that of the moment before


class Latency(NamedTuple):
    """From a window's last sample to its verdict, in seconds."""

    last: float
    p95: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class Header:
    """What does not change while a recording goes on."""

    source: SourceInfo
    model: str  # as the user named it
    classes: tuple[str, ...]
    width_s: float  # of a window
    stride_s: float


class Board:
    """The latest verdict, what came before it, and what happened to the source.

    It holds the last `SHOWN_WINDOWS` windows and `SHOWN_NOTES` notes, however long the recording.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self.state: State = "calibrating"
        self.calibration: CalibrationProgress | None = None
        self.verdict: LiveVerdict | None = None
        self.n_windows = 0
        self.moments: deque[Moment] = deque(maxlen=SHOWN_WINDOWS)
        self.notes: deque[Note] = deque(maxlen=SHOWN_NOTES)
        self.n_notes = 0
        self._noted_gaps = 0
        self._latencies_s: deque[float] = deque(maxlen=SHOWN_WINDOWS)
        self._worst_s = 0.0

    def take(self, event: LiveVerdict | Note | CalibrationProgress) -> None:
        """Add what came from a session."""
        if isinstance(event, LiveVerdict):
            self._take_verdict(event)
        elif isinstance(event, Note):
            self._take_note(event)
        else:
            self.calibration = event
            if self.state in ("calibrating", "filling"):
                self.state = "calibrating" if event.done_s < event.span_s else "filling"

    def end(self) -> None:
        """Note that nothing more will come."""
        self.state = "ended"

    def _take_verdict(self, verdict: LiveVerdict) -> None:
        before = self.verdict
        stride_s = self.header.stride_s
        step_s = 0.0 if before is None else verdict.start_s - before.start_s
        self.verdict, self.state = verdict, "running"
        self.n_windows += 1
        self.moments.append(
            Moment(
                stop_s=verdict.stop_s,
                probabilities=tuple(verdict.probabilities.tolist()),
                code=verdict.code,
                unlike=verdict.unlike,
                follows=before is not None and step_s <= _GAP_STRIDES * stride_s,
            )
        )
        self._latencies_s.append(verdict.latency_s)
        self._worst_s = max(self._worst_s, verdict.latency_s)

    def _take_note(self, note: Note) -> None:
        self.notes.append(note)
        self.n_notes += 1
        if note.kind == "gap":
            self._noted_gaps += note.n_samples
        if note.kind == "stopped":
            self.state = "stopped"
        elif note.kind == "resumed":
            self.state = "running" if self.verdict is not None else "filling"

    @property
    def classes(self) -> tuple[str, ...]:
        """The model's classes, in the order of all probabilities."""
        return self.header.classes

    @property
    def code(self) -> int | None:
        """The class of most windows so far; None before the first verdict."""
        if self.verdict is None:
            return None
        return self.verdict.recording_code

    @property
    def n_dropped(self) -> int:
        """Samples (of each channel) that were lost since the start."""
        # A verdict tells of all that came before it, and a gap may have come after it.
        return max(self._noted_gaps, 0 if self.verdict is None else self.verdict.n_dropped)

    @property
    def latency(self) -> Latency | None:
        """Of the last windows; the worst is that of all. None before the first verdict."""
        if not self._latencies_s:
            return None
        p95 = float(np.quantile(self._latencies_s, 0.95))
        return Latency(self._latencies_s[-1], p95, self._worst_s)

    def to_json(self) -> dict[str, Any]:
        """Plain values of all that is shown."""
        source, verdict = self.header.source, self.verdict
        return {
            "state": self.state,
            "source": source.name,
            "n_channels": source.n_channels,
            "sampling_rate_hz": source.sampling_rate_hz,
            "model": self.header.model,
            "width_s": self.header.width_s,
            "stride_s": self.header.stride_s,
            "classes": list(self.classes),
            "calibration": None
            if self.calibration is None
            else {"done_s": self.calibration.done_s, "span_s": self.calibration.span_s},
            "verdict": None if verdict is None else verdict_json(verdict),
            "histogram": None if verdict is None else _window_json(verdict),
            "history": {
                "stop_s": [round(m.stop_s, 3) for m in self.moments],
                "probabilities": [[round(p, 4) for p in m.probabilities] for m in self.moments],
                "unlike": [m.unlike for m in self.moments],
                "follows": [m.follows for m in self.moments],
            },
            "latency_s": None if self.latency is None else self.latency._asdict(),
            "n_dropped": self.n_dropped,
            "n_notes": self.n_notes,
            "notes": [note_json(note) for note in self.notes],
        }


def _window_json(verdict: LiveVerdict) -> dict[str, Any]:
    columns = in_columns(verdict.counts, _COLUMNS)
    return {"column_s": columns_s(verdict, len(columns)), "counts": columns.tolist()}


def verdict_json(verdict: LiveVerdict) -> dict[str, Any]:
    """Plain values of a window's verdict, and of all windows so far."""
    code = verdict.recording_code
    classes = verdict.classes
    return {
        "start_s": verdict.start_s,
        "stop_s": verdict.stop_s,
        "prediction": verdict.prediction,
        "probability": verdict.probability,
        "probabilities": dict(zip(classes, verdict.probabilities.tolist(), strict=True)),
        "nearness": verdict.nearness,
        "unlike": bool(verdict.unlike),
        "n_spikes": int(verdict.counts.sum()),
        "latency_s": verdict.latency_s,
        "n_samples_lost": verdict.n_dropped,
        "so_far": {
            "prediction": classes[code],
            "probability": float(verdict.mean_probabilities[code]),
            "n_windows": int(verdict.votes.sum()),
            "windows": dict(zip(classes, verdict.votes.tolist(), strict=True)),
            "probabilities": dict(zip(classes, verdict.mean_probabilities.tolist(), strict=True)),
            "unlike_training": verdict.unlike_training,
            "warnings": list(verdict.warnings),
        },
    }


def note_json(note: Note) -> dict[str, Any]:
    """Plain values of a note."""
    return {
        "at_s": note.at_s,
        "kind": note.kind,
        "text": note.text,
        "n_samples": note.n_samples,
    }


def in_columns(counts: NDArray[np.int64], n_columns: int) -> NDArray[np.int64]:
    """Add up successive bins, so that at most `n_columns` are left, all but the last as wide."""
    per_column = -(-len(counts) // n_columns)
    if per_column <= 1:
        return counts
    return np.add.reduceat(counts, np.arange(0, len(counts), per_column))


def columns_s(verdict: LiveVerdict, n_columns: int) -> float:
    """Give the width in seconds of the columns that `in_columns` made of a window."""
    return verdict.bin_s * -(-len(verdict.counts) // max(1, n_columns))


def runs(moments: Sequence[Moment]) -> list[list[Moment]]:
    """Part windows where one is missing."""
    parts: list[list[Moment]] = []
    for moment in moments:
        if not parts or not moment.follows:
            parts.append([])
        parts[-1].append(moment)
    return parts


def clock(seconds: float) -> str:
    """Write a time of a recording as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""A live recording in a terminal: probabilities over time, the last window, latency, lost samples.

Everything fits a terminal of 80 columns and 24 lines, and is drawn in place. Where the output is no
terminal, `verdict_line` and `note_line` say the same in a line each.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from toptune.live.blocks import Note
from toptune.live.board import Board, clock, columns_s, in_columns
from toptune.live.engine import LiveVerdict
from toptune.machine.display import count, one_or

# Eighths of a block, and what stands for them where there are only ASCII characters.
_BLOCKS, _ASCII = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", " ..::==##"
_HISTOGRAM_LINES = 4
_SHOWN_CLASSES, _SHOWN_NOTES = 6, 4
_NAME_WIDTH = 18


def verdict_line(verdict: LiveVerdict) -> str:
    """Say a window's verdict in one line, and what all windows so far say."""
    told = [
        f"{clock(verdict.start_s)} - {clock(verdict.stop_s)}: {verdict.prediction}"
        f" (probability {verdict.probability:.2f})"
        + (", a window UNLIKE those of training" if verdict.unlike else ""),
        _so_far(verdict)
        + (", a recording UNLIKE those of training" if verdict.unlike_training else ""),
        f"latency {_milliseconds(verdict.latency_s)}",
    ]
    if verdict.n_dropped:
        told.append(lost(verdict.n_dropped))
    return "; ".join(told)


def note_line(note: Note) -> str:
    """Say in one line what happened to a source."""
    return f"{clock(note.at_s)} {note.kind}: {note.text}"


def lost(n_samples: int) -> str:
    """Say how many samples of each electrode were lost."""
    return f"{n_samples:,} {one_or(n_samples, 'sample', 'samples')} lost"


def _so_far(verdict: LiveVerdict) -> str:
    code = verdict.recording_code
    return (
        f"so far {verdict.recording_prediction} in {verdict.votes[code]} of"
        f" {count(int(verdict.votes.sum()), 'window')}"
        f" (mean probability {verdict.mean_probabilities[code]:.2f})"
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s"


class Screen:
    """Shows a board in a terminal until the block ends, and then leaves the terminal as it was."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._console = console
        self._live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="ellipsis"
        )

    def __enter__(self) -> Self:
        self._live.start()
        self.show()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self) -> None:
        """Draw the board as it is now."""
        ascii_only = self._console.options.ascii_only
        drawn = draw(self._board, self._console.width, ascii_only=ascii_only)
        self._live.update(drawn, refresh=True)


def draw(board: Board, width: int, *, ascii_only: bool = False) -> Group:
    """Draw a board in lines of at most `width` columns, 24 at most."""
    # A line that fills the last column would make some terminals break it.
    return Group(*_Drawing(board, min(width, 100) - 1, ascii_only).lines())


class _Drawing:
    """The lines of one picture of a board."""

    def __init__(self, board: Board, width: int, ascii_only: bool) -> None:
        self._board = board
        self._width = width
        self._levels = _ASCII if ascii_only else _BLOCKS
        self._rule = "-" if ascii_only else "\u2500"

    def lines(self) -> Iterator[Text]:
        yield from self._head()
        verdict = self._board.verdict
        if verdict is not None:
            yield self._titled("probability of each class, window by window")
            yield from self._classes(verdict)
            yield from self._window(verdict)
            yield self._line(self._figures(verdict))
        yield from self._notes()
        yield self._line("Ctrl-C ends it.", "dim")

    def _line(self, text: str, style: str = "") -> Text:
        clean = "".join(c if c.isprintable() else "?" for c in text)
        made = Text(clean, style=style, no_wrap=True, overflow="ellipsis")
        made.truncate(self._width, overflow="ellipsis" if self._levels is _BLOCKS else "crop")
        return made

    def _titled(self, text: str) -> Text:
        return self._line(f"{self._rule * 2} {text} ".ljust(self._width, self._rule), "dim")

    def _head(self) -> Iterator[Text]:
        board, source = self._board, self._board.header.source
        told = f"{source.name}, {count(source.n_channels, 'electrode')}"
        yield self._line(f"{told}, {source.sampling_rate_hz:g} Hz; model {board.header.model}")
        yield self._line(*self._state())

    def _state(self) -> tuple[str, str]:
        board = self._board
        if board.state == "stopped":
            return "The source has stopped: waiting for it to go on.", "bold red"
        verdict = board.verdict
        if verdict is None:
            return self._before_the_first(), "bold"
        return f"{clock(verdict.stop_s)}  {_so_far(verdict)}", "bold"

    def _before_the_first(self) -> str:
        board, width = self._board, f"{self._board.header.width_s:g} s"
        if board.state == "filling":
            return f"Thresholds are set: the first verdict comes when a window of {width} is full."
        done = board.calibration
        if done is None:
            return "Waiting for the first samples."
        return (
            f"Learning thresholds: {done.done_s:.0f} of {done.span_s:g} s; then a window of"
            f" {width} has to fill."
        )

    def _classes(self, verdict: LiveVerdict) -> Iterator[Text]:
        board = self._board
        order = np.argsort(-verdict.mean_probabilities, kind="stable")
        shown = sorted(order[:_SHOWN_CLASSES].tolist())
        name_width = min(_NAME_WIDTH, max(len(board.classes[k]) for k in shown))
        # Name, blank, probability of four columns, blank; the rest is the course.
        n_columns = max(8, self._width - name_width - 6)
        for code in shown:
            mine = code == verdict.code
            row = self._line(f"{board.classes[code][:name_width]:<{name_width}} ")
            row.append(f"{verdict.probabilities[code]:.2f} ", "bold" if mine else "")
            row.append(self._course(code, n_columns), "cyan" if mine else "")
            yield row
        left = len(board.classes) - len(shown)
        if left:
            yield self._line(f"and {left} less probable so far", "dim")

    def _course(self, code: int, n_columns: int) -> str:
        """Draw a probability, a column for each window, a blank where windows are missing."""
        columns: list[str] = []
        for moment in self._board.moments:
            if columns and not moment.follows:
                columns.append(" ")
            columns.append(self._level(moment.probabilities[code]))
        return "".join(columns[-n_columns:])

    def _level(self, share: float) -> str:
        # Never blank: that is where no window is.
        return self._levels[max(1, min(8, round(8 * share)))]

    def _window(self, verdict: LiveVerdict) -> Iterator[Text]:
        columns = in_columns(verdict.counts, self._width)
        most = int(columns.max(initial=0))
        span_s = columns_s(verdict, len(columns))
        yield self._titled(
            f"{clock(verdict.start_s)} - {clock(verdict.stop_s)}: {verdict.prediction}"
            f" {verdict.probability:.2f}; spikes, up to {most:,} in {span_s:.2g} s"
        )
        heights = columns * (8 * _HISTOGRAM_LINES / max(1, most))
        for line in range(_HISTOGRAM_LINES - 1, -1, -1):
            inside = np.clip(np.rint(heights) - 8 * line, 0, 8).astype(int)
            yield self._line("".join(self._levels[k] for k in inside.tolist()))
        if verdict.unlike_training:
            told = verdict.warnings[0] if verdict.warnings else "see the report"
            yield self._line(f"UNLIKE anything in training: {told}.", "bold red")
        elif verdict.unlike:
            yield self._line("This window is UNLIKE those of training.", "bold red")

    def _figures(self, verdict: LiveVerdict) -> str:
        board = self._board
        n_spikes = int(verdict.counts.sum())
        told = [f"{n_spikes:,} {one_or(n_spikes, 'spike', 'spikes')}"]
        latency = board.latency
        if latency is not None:
            told.append(
                f"latency {_milliseconds(latency.last)} (95 % below {_milliseconds(latency.p95)})"
            )
        rate = board.header.source.sampling_rate_hz
        n = board.n_dropped
        told.append(f"{lost(n)}" + (f" ({n / rate:.3g} s)" if n else ""))
        return ", ".join(told)

    def _notes(self) -> Iterator[Text]:
        board = self._board
        if not board.notes:
            return
        yield self._titled(count(board.n_notes, "note"))
        shown = list(islice(reversed(board.notes), _SHOWN_NOTES))
        for note in reversed(shown):
            style = "red" if note.kind in ("stopped", "changed", "disk") else "yellow"
            yield self._line(note_line(note), style)

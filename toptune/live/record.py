"""A live recording on disk: a folder as `predict` writes it, which grows while the verdicts come.

Every verdict and every note is in its table before it is shown, so that a process that is killed
loses none of them; what sums them up is written anew at most once a second, and forced to the disk.
The folder holds windows.csv, verdicts.csv, predictions.json, notes.csv and live.json from the
beginning, thresholds.json from when they are known, and report.html at the end. A disk that is
full, or cannot be written, ends nothing: what is missing is kept in memory, and written when there
is room.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from toptune.live.blocks import Note
from toptune.live.board import Board, Header, clock
from toptune.live.detection import Calibration
from toptune.live.engine import LiveVerdict
from toptune.machine.display import count
from toptune.machine.durable import sync, sync_tree, write_whole, writing
from toptune.pictures.thumbnails import HistogramThumbnail, draw_counts
from toptune.reports.page import Block, Section, Table, Text, render
from toptune.reports.predictions import NAME, predictions_page
from toptune.runs.folder import PREDICTIONS, csv_text, json_text, require_target
from toptune.runs.model import Model
from toptune.runs.verdicts import (
    VERDICTS_TABLE,
    WINDOWS_TABLE,
    Predictions,
    prediction_mark,
    verdict_table,
    window_header,
    window_row,
    window_rows,
)

FORMAT = 1
NOTES_TABLE, LIVE_FILE, THRESHOLDS_FILE = "notes.csv", "live.json", "thresholds.json"

# What sums up is not written more often than this, in seconds: forcing it out takes a disk long.
_SAVE_EVERY_S = 1.0
_MOST_BINS = 2_000
_SHOWN_NOTES = 200


class Record:
    """A folder into which a live recording is written.

    A folder of predictions that is there is replaced with `overwrite`. `predictions` are those
    before the first window, as `LiveSession.result` gives them.

    Raises
    ------
    InputError
        The folder exists and must not be replaced.
    StorageError
        It cannot be made.
    """

    def __init__(
        self,
        out: Path,
        model: Model,
        predictions: Predictions,
        header: Header,
        *,
        overwrite: bool = False,
    ) -> None:
        require_target(out, overwrite=overwrite, kind=PREDICTIONS)
        self.path = out
        self._model = model
        self._header = header
        self._mark = prediction_mark(predictions.model)
        self._activity = _Activity()
        self._calibration: Calibration | None = None
        self._n_windows = 0
        self._saved_s = 0.0
        self._trouble = False
        with writing(out):
            if out.exists():
                shutil.rmtree(out)
            out.mkdir(parents=True)
            self._windows = GrowingTable(out / WINDOWS_TABLE, window_header(header.classes))
            self._notes = GrowingTable(out / NOTES_TABLE, ["at_s", "kind", "n_samples", "text"])
            self._write_sums(predictions, Board(header))
            sync_tree(out)
            sync(out.parent)

    def calibration(self, calibration: Calibration) -> Note | None:
        """Write the thresholds, which another stream can be given."""
        self._calibration = calibration
        return self._attempt(self._write_calibration, 0.0)

    def verdict(self, verdict: LiveVerdict) -> Note | None:
        """Add a window; gives a note where the disk begins to refuse."""
        self._activity.add(verdict)
        self._n_windows += 1
        self._windows.add(
            window_row(
                self._header.source.name,
                verdict.start_s,
                verdict.prediction,
                verdict.probabilities,
                verdict.nearness,
                verdict.unlike,
            )
        )
        return self._attempt(self._windows.flush, verdict.stop_s)

    def note(self, note: Note) -> Note | None:
        """Add a note; gives another where the disk begins to refuse."""
        self._notes.add([float(note.at_s), note.kind, note.n_samples, note.text])
        return self._attempt(self._notes.flush, note.at_s)

    @property
    def is_due(self) -> bool:
        """Whether `save` has not been called for a second."""
        return time.monotonic() - self._saved_s >= _SAVE_EVERY_S

    def save(self, predictions: Predictions, board: Board) -> Note | None:
        """Write what sums up the windows so far, and force everything to the disk.

        Gives a note where the disk begins to refuse, or takes again what it refused before.
        """
        at_s = 0.0 if board.verdict is None else board.verdict.stop_s
        had_trouble = self._trouble
        note = self._attempt(lambda: self._write_all(predictions, board), at_s)
        # Not counting what it took: a slow disk is not to take all the time.
        self._saved_s = time.monotonic()
        if had_trouble and not self._trouble:
            text = f"{self.path} can be written again; nothing is missing from it"
            return Note(at_s=at_s, kind="disk", text=text)
        return note

    def finish(self, predictions: Predictions, board: Board) -> Path:
        """Write everything and the report; gives the report's path.

        Raises
        ------
        StorageError
            It cannot be written.
        """
        # A verdict that was found, but interrupted before it could be given.
        for row in itertools.islice(window_rows(predictions), self._n_windows, None):
            self._windows.add(row)
        with writing(self.path):
            self._write_all(predictions, board)
            page = predictions_page(
                predictions,
                self._model,
                [self._activity.drawn()] * len(predictions.recordings),
                [_section(board)],
            )
            write_whole(self.path / NAME, render(page))
        return self.path / NAME

    def close(self) -> None:
        """Close the tables; what the disk refused is lost."""
        self._windows.close()
        self._notes.close()

    def _write_all(self, predictions: Predictions, board: Board) -> None:
        for table in (self._windows, self._notes):
            table.flush()
            table.sync()
        self._write_calibration()
        self._write_sums(predictions, board)
        self._trouble = False

    def _write_calibration(self) -> None:
        """Write the thresholds where they are known and not written yet."""
        if self._calibration is not None:
            text = json_text(self._calibration.to_json())
            write_whole(self.path / THRESHOLDS_FILE, text)
            self._calibration = None

    def _write_sums(self, predictions: Predictions, board: Board) -> None:
        marked = {**self._mark, **predictions.to_json()}
        write_whole(self.path / PREDICTIONS.marker, json_text(marked))
        write_whole(self.path / VERDICTS_TABLE, csv_text(verdict_table(predictions)))
        write_whole(self.path / LIVE_FILE, json_text(_live_json(board)))

    def _attempt(self, write: Callable[[], None], at_s: float) -> Note | None:
        """Write, and say so where that fails for the first time."""
        try:
            write()
        except OSError as error:
            if self._trouble:
                return None
            self._trouble = True
            cause = error.strerror or str(error)
            text = (
                f"{self.path} cannot be written ({cause}): verdicts go on, and are written there"
                " when that is fixed"
            )
            return Note(at_s=at_s, kind="disk", text=text)
        return None


class GrowingTable:
    """A CSV file to which rows are added; whole rows are in it at any time, or none of a row."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self._file = path.open("xb", buffering=0)
        self._n_bytes = 0  # of whole rows
        self._pending: list[str] = []
        try:
            self.add(header)
            self.flush()
        except BaseException:
            self._file.close()
            raise

    def add(self, row: Sequence[Any]) -> None:
        """Add a row, which `flush` writes."""
        self._pending.append(csv_text([row]))

    def flush(self) -> None:
        """Hand the rows to the system; where it refuses, an OSError, and none is lost."""
        left = memoryview("".join(self._pending).encode())
        n_bytes = len(left)
        self._file.seek(self._n_bytes)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._n_bytes)
            raise
        self._n_bytes += n_bytes
        self._pending.clear()

    def sync(self) -> None:
        """Force the rows to the disk."""
        sync(Path(self._file.name))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Activity:
    """Spikes of a whole recording, in at most 2,000 bins, which double in length as it grows."""

    def __init__(self) -> None:
        self._counts = np.zeros(_MOST_BINS, dtype=np.int64)
        self._per_bin = 1  # bins of a verdict in each of these
        self._n = 0  # bins of verdicts that are in these
        self._bin_s = 0.0

    def add(self, verdict: LiveVerdict) -> None:
        """Add those bins of a window that come after all windows before it."""
        self._bin_s = verdict.bin_s
        first = round(verdict.start_s / verdict.bin_s)
        end = first + len(verdict.counts)
        fresh = verdict.counts[max(0, self._n - first) :]
        self._n = max(self._n, end)
        while self._n > _MOST_BINS * self._per_bin:
            self._counts = np.append(
                self._counts.reshape(-1, 2).sum(axis=1), np.zeros(_MOST_BINS // 2, dtype=np.int64)
            )
            self._per_bin *= 2
        place = np.arange(end - len(fresh), end) // self._per_bin
        np.add.at(self._counts, place, fresh)

    def drawn(self) -> HistogramThumbnail:
        """Draw them."""
        n = -(-self._n // self._per_bin)
        return draw_counts(self._counts[:n], self._bin_s * self._per_bin)


def _live_json(board: Board) -> dict[str, Any]:
    """Say where the verdicts came from, and what happened on the way."""
    header, latency = board.header, board.latency
    source = header.source
    return {
        "kind": "toptune live",
        "format": FORMAT,
        "toptune_version": version("toptune"),
        "ended": board.state == "ended",
        "source": source.name,
        "n_channels": source.n_channels,
        "sampling_rate_hz": source.sampling_rate_hz,
        "model": header.model,
        "width_s": header.width_s,
        "stride_s": header.stride_s,
        "n_windows": board.n_windows,
        "n_samples_lost": board.n_dropped,
        "n_notes": board.n_notes,
        "latency_s": None if latency is None else latency._asdict(),
    }


def _section(board: Board) -> Section:
    """Say in a report how the recording came in."""
    return Section(title="While it was recorded", blocks=tuple(_blocks(board)))


def _blocks(board: Board) -> Iterator[Block]:
    source, latency, lost = board.header.source, board.latency, board.n_dropped
    told = (
        f"{source.name} gave {count(source.n_channels, 'electrode')} at"
        f" {source.sampling_rate_hz:g} Hz. "
        + (
            f"{count(lost, 'sample')} of each electrode were lost."
            if lost
            else "No sample was lost."
        )
    )
    if latency is not None:
        told += (
            f" From the last sample of a window to its verdict it took less than"
            f" {1000 * latency.p95:.0f} ms in 95\u202f% of the last windows, and"
            f" {1000 * latency.worst:.0f} ms at most."
        )
    yield Text(text=told)
    if not board.n_notes:
        return
    shown = list(board.notes)[-_SHOWN_NOTES:]
    more = f"; the last {len(shown)} of {board.n_notes}" if board.n_notes > len(shown) else ""
    yield Table(
        caption=f"What happened to the source{more}. Also in {NOTES_TABLE}.",
        header=("time", "kind", "what"),
        rows=tuple((clock(note.at_s), note.kind, note.text) for note in shown),
    )

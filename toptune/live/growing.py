"""An MCS HDF5 file that is still being written, as a source."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from toptune.errors import InputError
from toptune.live.blocks import SourceInfo
from toptune.live.ordering import Ordering, Piece
from toptune.live.receiving import Received, Said
from toptune.params import Waiting
from toptune.recordings.mcs_growing import GrowingMcs, is_being_written

# How often the file is looked at.
_POLL_S = 0.05
# What is read at once.
_AT_ONCE_S = 0.5


class GrowingHdf5(Received):
    """The samples of an MCS file from its beginning, and those that are added.

    It ends when the writer closes the file, when another file takes its place, or when nothing was
    added for long. Gaps are those of the table ChannelDataTimeStamps.

    Parameters
    ----------
    path
        A file whose writer lets others read (SWMR; see `toptune.recordings.mcs_growing`).
    stream, well
        Which of several streams or cultures; see `OpeningOptions`.
    waiting
        How long what does not come is waited for.

    Raises
    ------
    InputError
        The file cannot be read, or is laid out otherwise.
    """

    def __init__(
        self, path: Path, waiting: Waiting, *, stream: str | None = None, well: str | None = None
    ) -> None:
        self._file = GrowingMcs(path, stream, well)
        info = SourceInfo(
            name=path.name,
            channel_labels=self._file.channel_labels,
            sampling_rate_hz=self._file.sampling_rate_hz,
        )
        self._given = 0  # samples of the file
        self._stop = 0  # the number after them, by the file's times
        self._starts: list[tuple[int, int]] = []
        super().__init__(
            info, Ordering(info.sampling_rate_hz, patience_s=waiting.patience_s), waiting
        )
        self._begin()

    def _pieces(self) -> Iterator[Piece | Said]:
        seen = 0
        while not self._closing.is_set():
            path = self._file.path
            try:
                closed = not is_being_written(path)
                replaced = not self._file.is_same_file()
            except OSError:  # moved away: what is open can still be read
                closed = replaced = False
            before, seen = seen, self._file.grown()
            # What showed at the last look is surely stored by now.
            whole = seen if closed else self._file.whole_until(self._given, before)
            yield from self._until(whole)
            if replaced:
                yield Said("changed", "another file has taken its place: the source ends")
                return
            if closed and self._given >= seen:
                return
            if self._given >= before:
                self._closing.wait(_POLL_S)

    def _until(self, stop: int) -> Iterator[Piece | Said]:
        yield from self._new_starts()
        step = max(1, int(_AT_ONCE_S * self.info.sampling_rate_hz))
        while self._given < stop and not self._closing.is_set():
            ahead = [index for index, _ in self._starts if index > self._given]
            end = min([stop, self._given + step, *ahead])
            self._stop = max(self._stop, self._number(self._given))
            yield self._piece(end)

    def _piece(self, end: int) -> Piece:
        samples = self._file.read(self._given, end)
        piece = Piece(self._stop, samples, time.monotonic())
        self._stop += end - self._given
        self._given = end
        return piece

    def _number(self, index: int) -> int:
        """Give the number of a sample by the last time that is known before it."""
        known = [(i, t) for i, t in self._starts if i <= index]
        if not known:
            return index
        (at, time_us), origin_us = known[-1], self._starts[0][1]
        rate = self.info.sampling_rate_hz
        return round((time_us - origin_us) * rate / 1e6) + index - at

    def _new_starts(self) -> Iterator[Said]:
        starts = self._file.starts()
        for index, time_us in starts[len(self._starts) :]:
            last = self._starts[-1] if self._starts else (0, time_us)
            if index < last[0] or time_us < last[1]:
                raise InputError(
                    f"{self._file.path}: ChannelDataTimeStamps go back at sample {index}"
                )
            self._starts.append((index, time_us))
            if 0 < index < self._given:
                yield Said(
                    "clock",
                    f"a gap before sample {index} was written after {self._given} samples had been"
                    " read: those between were taken to follow without it",
                )

    def _let_go(self) -> None:
        self._file.close()

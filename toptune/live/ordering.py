"""Pieces with sample numbers, brought into order: what all live sources share.

A piece may come late, twice, before an earlier one, or never. Pieces that are ahead are held for a
short while; then what is missing before them is given up as a gap.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.live.blocks import Block, Note, NoteKind

# Numbers that fall back further, or leap further ahead, were set anew by the source.
_MOST_BACK_S, _MOST_AHEAD_S = 10.0, 3600.0
# The most gaps to remember, by which a late sample is told from a doubled one.
_MOST_GAPS = 256
# Of a kind that happens again and again, a note comes at most this often.
_EVERY_S = 1.0


class Piece(NamedTuple):
    """Samples as a source sent them."""

    first: int  # the source's own number of the first
    samples: NDArray[np.float32]  # (n_channels, n) in microvolts
    received_s: float  # time.monotonic()

    @property
    def stop(self) -> int:
        """The number after the last sample."""
        return self.first + int(self.samples.shape[1])

    def part(self, start: int, stop: int) -> Piece:
        """Cut out the samples of these numbers."""
        samples = self.samples[:, start - self.first : stop - self.first]
        return Piece(start, samples, self.received_s)


class Ordering:
    """Bring pieces into order, and say what was lost.

    The first piece's first sample becomes place 0.

    Parameters
    ----------
    sampling_rate_hz
        Samples a second.
    patience_s
        How long missing samples are waited for, by the clock or by the samples that came after
        them, whichever is sooner.
    """

    def __init__(self, sampling_rate_hz: float, *, patience_s: float) -> None:
        self._rate = sampling_rate_hz
        self._patience_s = patience_s
        self._shift: int | None = None  # a piece's place is its number and this
        self._next = 0  # the place after all that were given or given up
        self._held: list[Piece] = []  # by place, disjoint, all beyond `_next`
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_MOST_GAPS)
        self._without_value = 0
        self._received_s = 0.0
        self._repeated = _Repeated()

    @property
    def place(self) -> int:
        """The place after all samples that were given or given up."""
        return self._next

    @property
    def at_s(self) -> float:
        """The same in seconds."""
        return self._next / self._rate

    def put(self, piece: Piece) -> list[Block | Note]:
        """Take a piece; give what is in order now."""
        out: list[Block | Note] = []
        if self._shift is None:
            self._shift = -piece.first
        if not self._plausible(piece):
            out += self._number_anew(piece)
        piece = piece._replace(first=piece.first + self._shift)
        for part in self._with_values(piece):
            self._hold(part)
        out += self._ready()
        while self._impatient(piece.received_s):
            out += self._give_up()
        self._received_s = piece.received_s
        return out + self._repeated.notes(piece.received_s, self.at_s)

    def waited(self, now_s: float) -> list[Block | Note]:
        """Give up what has been missing for too long, where nothing comes."""
        out: list[Block | Note] = []
        while self._held and now_s - self._held_since() >= self._patience_s:
            out += self._give_up()
        return out + self._repeated.notes(now_s, self.at_s)

    def finish(self) -> list[Block | Note]:
        """Give all that is held: nothing comes any more."""
        out: list[Block | Note] = []
        while self._held:
            out += self._give_up()
        return out + self._repeated.notes(np.inf, self.at_s)

    def reordered(self, n_samples: int) -> None:
        """Count samples that were put in their place before they came here."""
        self._repeated.add("out of order", n_samples)

    # --- numbers

    def _plausible(self, piece: Piece) -> bool:
        assert self._shift is not None
        ahead_s = (piece.first + self._shift - self._next) / self._rate
        return -_MOST_BACK_S <= ahead_s <= _MOST_AHEAD_S

    def _number_anew(self, piece: Piece) -> list[Block | Note]:
        """Let a piece follow all others after the time that has passed since they came."""
        out = self.finish()
        assert self._shift is not None
        expected = self._next - self._shift
        n = max(1, round((piece.received_s - self._received_s) * self._rate))
        out.append(
            Note(
                at_s=self.at_s,
                kind="clock",
                text=f"the source counts anew: sample {piece.first} after {expected - 1}; by the"
                f" clock here, {n / self._rate:.3g} s are missing",
                n_samples=n,
            )
        )
        self._gaps.append((self._next, self._next + n))
        self._next += n
        self._shift = self._next - piece.first
        return out

    # --- what is held

    def _with_values(self, piece: Piece) -> list[Piece]:
        """Leave out samples of which an electrode has no value; they are missing like others."""
        finite = np.isfinite(piece.samples).all(axis=0)
        if finite.all():
            return [piece]
        self._without_value += int((~finite).sum())
        edges = np.flatnonzero(np.diff(np.concatenate(([False], finite, [False]))))
        return [
            piece.part(piece.first + int(start), piece.first + int(stop))
            for start, stop in edges.reshape(-1, 2)
        ]

    def _hold(self, piece: Piece) -> None:
        """Hold what is new of a piece; count the rest as late or doubled."""
        early = min(piece.stop, self._next)
        if piece.first < early:
            late = sum(
                max(0, min(stop, early) - max(start, piece.first)) for start, stop in self._gaps
            )
            # What comes a second time late is doubled, but no longer told apart.
            self._repeated.add("late", late)
            self._repeated.add("doubled", early - piece.first - late)
        start = max(piece.first, self._next)
        new: list[Piece] = []
        for held in self._held:
            if start < min(held.first, piece.stop):
                new.append(piece.part(start, min(held.first, piece.stop)))
            self._repeated.add("doubled", min(piece.stop, held.stop) - max(start, held.first))
            start = max(start, held.stop)
        # All that is put before something held has come after it.
        self._repeated.add("out of order", sum(one.samples.shape[1] for one in new))
        if start < piece.stop:
            new.append(piece.part(start, piece.stop))
        self._held = sorted([*self._held, *new], key=lambda one: one.first)

    def _ready(self) -> list[Block | Note]:
        out: list[Block | Note] = []
        while self._held and self._held[0].first == self._next:
            piece = self._held.pop(0)
            self._next = piece.stop
            out.append(
                Block(first_sample=piece.first, samples=piece.samples, received_s=piece.received_s)
            )
        return out

    def _held_since(self) -> float:
        return min(piece.received_s for piece in self._held)

    def _impatient(self, now_s: float) -> bool:
        if not self._held:
            return False
        n_held = sum(piece.samples.shape[1] for piece in self._held)
        by_samples = n_held >= self._patience_s * self._rate
        return by_samples or now_s - self._held_since() >= self._patience_s

    def _give_up(self) -> list[Block | Note]:
        """Take what is missing before the first held piece as lost."""
        first = self._held[0].first
        n = first - self._next
        text = f"{n:,} samples ({n / self._rate:.3g} s) never came"
        if self._without_value:
            text = f"{n:,} samples ({n / self._rate:.3g} s) never came or have no value"
        note = Note(at_s=self.at_s, kind="gap", text=text, n_samples=n)
        self._without_value = 0
        self._gaps.append((self._next, first))
        self._next = first
        return [note, *self._ready()]


class _Repeated:
    """Counts of what happens again and again, told at most once in a while."""

    _TEXTS: tuple[tuple[NoteKind, str], ...] = (
        ("late", "{} samples came after they had been given up, and were dropped"),
        ("doubled", "{} samples came twice, and were dropped once"),
        ("out of order", "{} samples came before earlier ones, and were put in their place"),
    )

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._told_s: dict[str, float] = {}

    def add(self, kind: NoteKind, n: int) -> None:
        if n > 0:
            self._counts[kind] = self._counts.get(kind, 0) + n

    def notes(self, now_s: float, at_s: float) -> list[Block | Note]:
        found: list[Block | Note] = []
        for kind, text in self._TEXTS:
            if self._counts.get(kind) and now_s - self._told_s.get(kind, -np.inf) >= _EVERY_S:
                n = self._counts.pop(kind)
                self._told_s[kind] = now_s
                lost = 0 if kind == "out of order" else n
                found.append(Note(at_s=at_s, kind=kind, text=text.format(f"{n:,}"), n_samples=lost))
        return found

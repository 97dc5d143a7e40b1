"""Samples with time stamps, placed by them: what of a stream was lost, doubled or late.

Time stamps are not exact. A program that gives the time at which it sends is late where the machine
is busy, and then sends much at once; and the amplifier's clock does not run as this machine's. So a
line is kept of when the next sample is due. It follows the stamps slowly where they are later, and
at once where they are earlier, since no sample is sent before it was taken. Samples within
`TOLERANCE_S` of the line follow those before. If samples are stamped later, that may be a delay or
a gap. It is a delay if soon others come on time again, since then nothing can have been lost; else
it is a gap, of the least delay seen. What is stamped no later than what came before it was sent out
of order, or twice.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.live.blocks import Block, Note
from toptune.live.ordering import Ordering, Piece

#: How far stamps may be off.
TOLERANCE_S = 0.02
# How slowly the line follows the stamps.
_FOLLOWS_S = 0.5
# Over what time the true rate is measured, with the least delays of how much of it at both ends;
# from which difference on it is said, or too much; and how often it is said.
_MEASURED_S, _LONGEST_S, _ENDS_S, _SAID, _TOO_MUCH = 20, 60, 5, 0.001, 0.02
_SAID_EVERY_S = 60.0
# Stamps that fall back further were set anew.
_MOST_BACK_S = 10.0


class Stamped(NamedTuple):
    """Samples as they came, each with its time."""

    samples: NDArray[np.float32]  # (n_channels, n) in microvolts
    stamps_s: NDArray[np.float64]  # (n,), on one clock
    received_s: float  # time.monotonic()

    def part(self, start: int, stop: int) -> Stamped:
        """Cut out some of the samples."""
        return Stamped(self.samples[:, start:stop], self.stamps_s[start:stop], self.received_s)

    @property
    def n(self) -> int:
        """How many samples there are."""
        return int(self.stamps_s.size)

    @property
    def first_s(self) -> float:
        """When the first was taken."""
        return float(self.stamps_s[0])

    @property
    def last_s(self) -> float:
        """When the last was taken."""
        return float(self.stamps_s[-1])


class StampedOrdering:
    """Place samples by their time stamps, then bring them into order; see the module.

    Parameters
    ----------
    sampling_rate_hz
        The rate that the stream says.
    patience_s
        How long it is waited to tell a delay from a gap, and for missing samples.
    """

    def __init__(self, sampling_rate_hz: float, *, patience_s: float) -> None:
        self._rate = sampling_rate_hz
        self._period_s = 1.0 / sampling_rate_hz
        self._patience_s = patience_s
        self._ordering = Ordering(sampling_rate_hz, patience_s=patience_s)
        self._due_s: float | None = None  # the stamp that the next sample should have
        self._number = 0  # of the next sample
        self._doubted: list[Stamped] = []  # stamped too late, in the order in which they came
        # Since when there is no progress, and by how much the last of them was too late then.
        self._doubted_since = (0.0, 0.0)
        self._last: Stamped | None = None  # that which came last
        self._measured = _Rate(sampling_rate_hz)

    @property
    def at_s(self) -> float:
        """The time of the recording up to which all was given or given up."""
        return self._ordering.at_s

    def put(self, piece: Stamped) -> list[Block | Note]:
        """Take samples; give what is in order now."""
        out: list[Block | Note] = []
        for run in self._runs(piece):
            out += self._place(run)
        if self._doubted and not self._catches_up(piece.received_s):
            out += self._believe()
        return out + self._measured.notes(self.at_s)

    def waited(self, now_s: float) -> list[Block | Note]:
        """Give up what has been missing for too long."""
        out: list[Block | Note] = []
        if self._doubted and not self._catches_up(now_s):
            out += self._believe()
        return out + self._ordering.waited(now_s)

    def finish(self) -> list[Block | Note]:
        """Give all that is held."""
        return [*self._believe(), *self._ordering.finish()]

    def _catches_up(self, now_s: float) -> bool:
        """Tell whether it is too early to take a delay for a gap, which does not become less.

        By the clock alone, since what was kept back comes all at once.
        """
        since_s, delay_s = self._doubted_since
        if now_s - since_s < self._patience_s:
            return True
        assert self._due_s is not None
        before_s = sum(one.n for one in self._doubted[:-1]) * self._period_s
        self._doubted_since = (now_s, self._doubted[-1].first_s - before_s - self._due_s)
        return self._doubted_since[1] < delay_s - TOLERANCE_S

    def _runs(self, piece: Stamped) -> list[Stamped]:
        """Divide samples where their stamps leap."""
        leaps = np.abs(np.diff(piece.stamps_s) - self._period_s) > TOLERANCE_S
        edges = [0, *(np.flatnonzero(leaps) + 1).tolist(), piece.n]
        return [piece.part(a, b) for a, b in pairwise(edges) if a < b]

    def _place(self, run: Stamped) -> list[Block | Note]:
        if self._due_s is None:
            self._due_s = run.first_s
        before, self._last = self._last, run
        delay_s = run.first_s - self._due_s
        in_turn = before is None or run.last_s > before.last_s
        if not self._doubted and self._follows(before, run, delay_s):
            return self._follow(run, delay_s)
        if delay_s < -_MOST_BACK_S:
            return self._anew(run, before)
        waiting_s = sum(one.n for one in self._doubted) * self._period_s
        if self._doubted and in_turn and delay_s - waiting_s <= TOLERANCE_S:
            # On time after all that is doubted: that was only delayed.
            doubted, self._doubted = self._doubted, []
            followed = [found for one in doubted for found in self._follow(one, 0.0)]
            return followed + self._follow(run, delay_s - waiting_s)
        if delay_s < -TOLERANCE_S:
            number = self._number + round(delay_s * self._rate)
            return self._ordering.put(Piece(number, run.samples, run.received_s))
        if self._doubted and delay_s <= TOLERANCE_S:
            return self._fill(run, delay_s)
        if not self._doubted:
            self._doubted_since = (run.received_s, delay_s)
        self._doubted.append(run)
        return []

    def _follows(self, before: Stamped | None, run: Stamped, delay_s: float) -> bool:
        """Tell whether samples follow those before, by the line or by these."""
        if abs(delay_s) <= TOLERANCE_S:
            return True
        if before is None or delay_s < -_MOST_BACK_S:
            return False
        if delay_s < 0:
            return run.last_s > before.last_s
        return abs(run.first_s - before.last_s - self._period_s) <= TOLERANCE_S

    def _fill(self, run: Stamped, delay_s: float) -> list[Block | Note]:
        """Put in its place what is due, and then what came before its time."""
        doubted, self._doubted = self._doubted, []
        self._ordering.reordered(run.n)
        out = self._follow(run, delay_s)
        for one in sorted(doubted, key=lambda one: one.first_s):
            out += self._place(one)
        return out

    def _follow(self, run: Stamped, delay_s: float) -> list[Block | Note]:
        """Let samples follow those before, and the line their stamps."""
        assert self._due_s is not None
        self._measured.add(run)
        took_s = run.n * self._period_s
        slowly = min(1.0, took_s / _FOLLOWS_S)
        self._due_s += took_s + delay_s * (1.0 if delay_s < -TOLERANCE_S else slowly)
        piece = Piece(self._number, run.samples, run.received_s)
        self._number += run.n
        return self._ordering.put(piece)

    def _anew(self, run: Stamped, before: Stamped | None) -> list[Block | Note]:
        """Begin a new line: the clock was set back."""
        assert self._due_s is not None
        out = self._believe()
        missing_s = 0.0 if before is None else run.received_s - before.received_s
        n = max(1, round(missing_s * self._rate) - run.n)
        text = (
            f"time stamps go back by {self._due_s - run.first_s:.3g} s: by the clock here,"
            f" {n / self._rate:.3g} s are missing"
        )
        out.append(Note(at_s=self.at_s, kind="clock", text=text))
        self._due_s = run.first_s
        self._number += n
        self._measured = self._measured.anew()
        return out + self._follow(run, 0.0)

    def _believe(self) -> list[Block | Note]:
        """Take a delay for a gap."""
        out: list[Block | Note] = []
        while self._doubted:
            assert self._due_s is not None
            doubted = sorted(self._doubted, key=lambda run: run.first_s)
            self._doubted = []
            before = np.cumsum([0, *(run.n for run in doubted[:-1])]) * self._period_s
            delays = np.array([run.first_s for run in doubted]) - before - self._due_s
            # The least is that of samples which came on time, so that no more is missing before.
            on_time = int(delays.argmin())
            gap_s = float(delays[on_time])
            self._due_s += gap_s
            self._number += round(gap_s * self._rate)
            self._measured = self._measured.anew()
            for run in doubted[: on_time + 1]:
                self._last = run
                out += self._follow(run, 0.0)
            for run in doubted[on_time + 1 :]:
                out += self._place(run)
        return out


class _Rate:
    """The rate by the stamps of samples that follow each other: by how their least delay grows."""

    def __init__(self, sampling_rate_hz: float, said_s: float = -np.inf) -> None:
        self._rate = sampling_rate_hz
        self._said_s = said_s
        self._n = 0
        # Of each second of samples, the least of stamp - number / rate, and number / rate there.
        self._delays_s: deque[tuple[float, float]] = deque(maxlen=_LONGEST_S)
        self._second = -1

    def anew(self) -> _Rate:
        """Begin again, after a gap."""
        return _Rate(self._rate, self._said_s)

    def add(self, run: Stamped) -> None:
        """Take samples that follow those before."""
        here_s = self._n / self._rate
        delay = (run.first_s - here_s, here_s)
        if int(here_s) != self._second:
            self._second = int(here_s)
            self._delays_s.append(delay)
        else:
            self._delays_s[-1] = min(delay, self._delays_s[-1])
        self._n += run.n

    def notes(self, at_s: float) -> list[Block | Note]:
        """Say if it differs, once in a while; far from what the stream says, it is changed."""
        if len(self._delays_s) < _MEASURED_S:
            return []
        delays = list(self._delays_s)
        (first_s, from_s), (last_s, to_s) = min(delays[:_ENDS_S]), min(delays[-_ENDS_S:])
        rate = self._rate / max(1e-3, 1 + (last_s - first_s) / (to_s - from_s))
        off = rate / self._rate - 1
        if abs(off) > _TOO_MUCH:
            text = f"{rate:,.0f} samples come a second, not {self._rate:,.0f}: the source ends"
            return [Note(at_s=at_s, kind="changed", text=text)]
        if abs(off) < _SAID or at_s - self._said_s < _SAID_EVERY_S:
            return []
        self._said_s = at_s
        text = (
            f"by its time stamps {rate:,.1f} samples come a second, not {self._rate:,.0f}"
            f" ({100 * off:+.2f} %): times are counted in its samples"
        )
        return [Note(at_s=at_s, kind="clock", text=text)]

"""Which windows of a recording that goes on are complete, and the spikes in them.

Windows lie where `toptune.recordings.windows` places those of the whole recording, and those of
several views are matched as `match_windows` matches them: a window is given as soon as no later one
could take its place. Only the spikes that a coming window may hold are kept.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.features.table import SAME_S, leading_kind, match_windows
from toptune.live.detection import CertainSpikes
from toptune.params import Windows
from toptune.recordings.trains import Segment, Spikes, SpikeTrains, join_spikes

# A stretch can be cut where a bin begins on a whole sample; of at most so many bins one does.
_MOST_BINS_APART = 2**20


class LiveWindow(NamedTuple):
    """A complete window of one view."""

    stretch: int  # number of the stretch that holds it
    number: int  # which of the stretch's windows it is
    start_s: float  # seconds since the source's first sample


class Cut(NamedTuple):
    """A piece of a stretch as a recording of its own, and windows of it."""

    trains: SpikeTrains
    rows: list[int]


class LiveWindows:
    """Finds complete windows while spikes come in.

    Parameters
    ----------
    windows
        Of each view.
    channel_labels, sampling_rate_hz
        Of the source.

    Attributes
    ----------
    lead : int
        The view with the widest windows, which verdicts are about.
    n_spikes, n_samples : int
        Spikes found, and samples searched, so far.
    """

    def __init__(
        self, windows: Sequence[Windows], channel_labels: tuple[str, ...], sampling_rate_hz: float
    ) -> None:
        self._labels = channel_labels
        self._rate = sampling_rate_hz
        self._views = [_View(one, sampling_rate_hz) for one in windows]
        self._widths = [one.width_s for one in windows]
        self._strides = [one.stride_s for one in windows]
        self.lead = leading_kind(self._widths)
        self._stretches: dict[int, _Stretch] = {}
        self._finished = False
        self.n_spikes = self.n_samples = 0

    @property
    def leading(self) -> Windows:
        """The windows that verdicts are about."""
        return self._views[self.lead].windows

    @property
    def _latest(self) -> _Stretch:
        return self._stretches[max(self._stretches)]

    def start_stretch(self, number: int, start_s: float) -> None:
        """Begin a stretch that starts some seconds after the source's first sample."""
        self._stretches[number] = _Stretch(number, start_s)

    def add(self, found: CertainSpikes) -> None:
        """Take what was found in a stretch; stretches follow each other."""
        stretch = self._stretches[found.stretch]
        self.n_spikes += len(found.spikes.sample)
        self.n_samples += found.known_to - stretch.known_to
        stretch.add(found)
        for view in self._views:
            view.complete(stretch)

    def finish(self) -> None:
        """Note that no more comes."""
        self._finished = True

    def take(self) -> Iterator[tuple[LiveWindow, ...]]:
        """Give the windows that are decided, one of each view, in the order of time."""
        waiting = self._views[self.lead].waiting
        while waiting and all(self._is_decided(view, waiting[0]) for view in self._views):
            lead = waiting[0]
            starts = [
                np.array([w.start_s for w in ([lead] if k == self.lead else view.waiting)])
                for k, view in enumerate(self._views)
            ]
            rows = match_windows(starts, self._widths, self._strides)
            if len(rows[self.lead]):
                yield tuple(
                    lead if k == self.lead else view.waiting[int(row[0])]
                    for k, (view, row) in enumerate(zip(self._views, rows, strict=True))
                )
            waiting.popleft()
            self._forget_windows()

    def cut(self, view: int, windows: Sequence[LiveWindow]) -> list[Cut]:
        """Cut out windows of a view, in order: of each stretch one piece that holds them."""
        cuts: list[Cut] = []
        for stretch in sorted({w.stretch for w in windows}):
            numbers = [w.number for w in windows if w.stretch == stretch]
            first = self._views[view].origin(min(numbers))
            rows = [number - first.window for number in numbers]
            trains = self._stretches[stretch].trains_from(first.sample, self._labels, self._rate)
            cuts.append(Cut(trains, rows))
        return cuts

    def histogram(self, window: LiveWindow) -> NDArray[np.int64]:
        """Count the spikes of all electrodes in each bin of a leading window."""
        ((trains, (row,)),) = self.cut(self.lead, [window])
        view = self._views[self.lead]
        bins = np.floor(trains.spikes.sample / view.per_bin).astype(np.int64)
        bins -= row * view.windows.stride_bins
        inside = bins[(bins >= 0) & (bins < view.windows.width_bins)]
        return np.bincount(inside, minlength=view.windows.width_bins)

    def last_sample(self, window: LiveWindow) -> int:
        """Tell after which sample of its stretch a leading window is over."""
        view = self._views[self.lead]
        last_bin = window.number * view.windows.stride_bins + view.windows.width_bins
        return math.ceil(last_bin * view.per_bin)

    def next_end(self, stretch: int) -> tuple[int, int]:
        """Tell when the next leading window is over, given the latest stretch with known spikes.

        Returns the number of its stretch, or of the one that it cannot precede, and a sample of it
        as `last_sample` gives it.
        """
        view = self._views[self.lead]
        if view.waiting:
            return view.waiting[0].stretch, self.last_sample(view.waiting[0])
        if stretch not in self._stretches or self._stretches[stretch].ended:
            return stretch + 1, 0
        return stretch, self.last_sample(view.next_window(stretch))

    def forget(self) -> None:
        """Drop the spikes that no coming window holds."""
        latest = self._latest
        for number, stretch in list(self._stretches.items()):
            firsts = [
                view.origin(index).sample
                for view in self._views
                for index in view.needed(stretch, is_open=not latest.ended and stretch is latest)
            ]
            if firsts:
                stretch.forget(min(firsts))
            elif stretch.ended and stretch is not latest:
                del self._stretches[number]

    def _is_decided(self, view: _View, lead: LiveWindow) -> bool:
        """Whether no later window of a view can be the one nearest to a leading window."""
        if view is self._views[self.lead] or self._finished:
            return True
        centre = lead.start_s + self._widths[self.lead] / 2
        next_s = view.next_centre_s(self._latest, self._rate)
        reach = max(view.windows.stride_s, self._strides[self.lead]) / 2
        nearest = min(
            (abs(w.start_s + view.windows.width_s / 2 - centre) for w in view.waiting),
            default=math.inf,
        )
        return next_s - centre >= min(nearest, reach + 2 * SAME_S)

    def _forget_windows(self) -> None:
        """Drop the windows of the other views that are nearest to no coming leading window."""
        lead = self._views[self.lead]
        half = lead.windows.width_s / 2
        if lead.waiting:
            next_s = lead.waiting[0].start_s + half
        else:
            next_s = lead.next_centre_s(self._latest, self._rate)
        for view in self._views:
            if view is not lead:
                view.forget_before(next_s)


class _Origin(NamedTuple):
    """Where a stretch can be cut so that windows and bins stay what they are."""

    window: int  # number of the window that begins there
    sample: int


class _View:
    """The windows of one view."""

    def __init__(self, windows: Windows, sampling_rate_hz: float) -> None:
        self.windows = windows
        self.per_bin = sampling_rate_hz * windows.bin_ms / 1000
        self.waiting: deque[LiveWindow] = deque()
        self._next = 0  # index of the latest stretch's next window
        self._stretch = 0
        # Bins from one possible cut to the next; 0: none but the stretch's start.
        apart = Fraction(self.per_bin).denominator
        self._apart = math.lcm(apart, windows.stride_bins) if apart <= _MOST_BINS_APART else 0

    def complete(self, stretch: _Stretch) -> None:
        """Note the windows that are complete in a stretch."""
        if stretch.number != self._stretch:
            self._stretch, self._next = stretch.number, 0
        # The very division by which windows of a whole recording are counted.
        n_bins = math.floor(stretch.known_to / self.per_bin)
        w = self.windows
        n_windows = max(0, (n_bins - w.width_bins) // w.stride_bins + 1)
        for index in range(self._next, n_windows):
            start_s = stretch.start_s + index * w.stride_s
            self.waiting.append(LiveWindow(stretch.number, index, start_s))
        self._next = max(self._next, n_windows)

    def next_centre_s(self, latest: _Stretch, sampling_rate_hz: float) -> float:
        """Tell before which time no window to come has its centre."""
        half = self.windows.width_s / 2
        # The stretch may end any time, and another begin.
        next_s = latest.start_s + latest.known_to / sampling_rate_hz
        if not latest.ended:
            number = self._next if latest.number == self._stretch else 0
            next_s = min(next_s, latest.start_s + number * self.windows.stride_s)
        return next_s + half

    def next_window(self, stretch: int) -> LiveWindow:
        """Name the next window of the latest stretch, without its time."""
        return LiveWindow(stretch, self._next if stretch == self._stretch else 0, math.nan)

    def needed(self, stretch: _Stretch, *, is_open: bool) -> Iterator[int]:
        """Give the indices of the earliest windows of a stretch that may still be asked for."""
        if self.waiting:
            yield from (w.number for w in self.waiting if w.stretch == stretch.number)
        if is_open:
            yield self._next if stretch.number == self._stretch else 0

    def forget_before(self, centre_s: float) -> None:
        """Drop windows, but for the last one before a time."""
        half = self.windows.width_s / 2
        while len(self.waiting) > 1 and self.waiting[1].start_s + half <= centre_s:
            self.waiting.popleft()

    def origin(self, index: int) -> _Origin:
        """Find the last possible cut before a window."""
        if not self._apart:
            return _Origin(0, 0)
        bins = index * self.windows.stride_bins // self._apart * self._apart
        return _Origin(bins // self.windows.stride_bins, round(bins * self.per_bin))


@dataclass(eq=False)
class _Stretch:
    """The spikes of a stretch, from `_first` on."""

    number: int
    start_s: float
    known_to: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self._first = 0
        self._spikes = join_spikes([])
        self._new: list[Spikes] = []

    def add(self, found: CertainSpikes) -> None:
        self.known_to, self.ended = found.known_to, found.ended
        if len(found.spikes.sample):
            self._new.append(found.spikes)

    def trains_from(self, first: int, labels: tuple[str, ...], rate_hz: float) -> SpikeTrains:
        """Give what is known from a sample on as a recording."""
        self._settle()
        begin, end = np.searchsorted(self._spikes.sample, [first, self.known_to])
        spikes = self._spikes.at(slice(begin, end))
        return SpikeTrains(
            spikes=spikes._replace(sample=spikes.sample - first),
            channel_labels=labels,
            sampling_rate_hz=rate_hz,
            segments=(Segment(0, self.known_to - first, 0.0),),
            threshold_uv=np.full(len(labels), np.nan, np.float32),
        )

    def forget(self, before: int) -> None:
        """Drop the spikes before a sample."""
        if before > self._first:
            self._settle()
            kept = int(np.searchsorted(self._spikes.sample, before))
            # A copy, so that the others are let go.
            self._spikes = join_spikes([self._spikes.at(slice(kept, None))])
            self._first = before

    def _settle(self) -> None:
        """Sort in the spikes that are new."""
        if self._new:
            # Nearly in order already, which a stable sort makes use of.
            self._spikes = join_spikes([self._spikes, *self._new])
            self._new = []

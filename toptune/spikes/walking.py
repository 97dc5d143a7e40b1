"""PTSD in voltage that comes block by block, of which nobody knows yet where it ends.

`CarriedWalk` carries the state of all channels from block to block. It keeps only the samples that
the next candidate may still read, a few milliseconds, and finds the spikes that `detect_spikes`
finds in the whole.
"""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from toptune.machine.threads import channel_slices, compiled, in_threads
from toptune.recordings.trains import Spikes, join_spikes, sort_spikes
from toptune.spikes.ptsd import PtsdSamples
from toptune.spikes.ptsd_compiled import (
    BLOCK,
    Float32,
    Found,
    Ints,
    Keys,
    Rule,
    Scratch,
    reach_spans,
    walk_span,
)

#: With fewer values (channels x samples) threads would wait longer than they work.
VALUES_FOR_THREADS = 200_000
# Spikes of a channel, in one block, that there is room for at first.
_ROOM = 64


class CarriedWalk:
    """The walk over one gap-free stretch of filtered voltage, all channels.

    Parameters
    ----------
    times
        The rule's times in samples.
    mean_uv, threshold_uv : (channels,) float32
        What is subtracted, and the peak-to-peak threshold; infinite for a channel without spikes.
    pool
        Threads.

    Attributes
    ----------
    n_samples : int
        Samples that have come.
    known_to : int
        All spikes before this sample have been returned; of later ones there may be more.
    """

    def __init__(
        self, times: PtsdSamples, mean_uv: Float32, threshold_uv: Float32, pool: Executor | None
    ) -> None:
        self._times = times
        self._means = np.ascontiguousarray(mean_uv, np.float32)
        self._thresholds = np.ascontiguousarray(threshold_uv, np.float32)
        self._pool = pool
        n_channels = len(self._means)
        self._held = np.empty((n_channels, 0), np.float32)
        self._first = 0  # number of the first sample in `_held`
        self._state = np.tile(np.array([1, 0], np.int64), (n_channels, 1))
        self.n_samples = 0
        self.known_to = 0

    def push(self, samples_uv: Float32) -> Spikes:
        """Take the next samples, (channels, n), and return the spikes that are certain now."""
        self._append(samples_uv)
        # A candidate reads as far as its reach. That its refractory time ends before the stretch
        # does changes what follows, so this must be known, too.
        reach = self._times.lifetime + self._times.overshoot + self._times.refractory
        return self._walk_to(self.n_samples - reach)

    def end(self) -> Spikes:
        """Return the spikes that are left where the stretch ends here."""
        return self._walk_to(self.n_samples)

    def _append(self, samples_uv: Float32) -> None:
        kept = self.n_samples - self._first
        n = samples_uv.shape[1]
        if kept + n > self._held.shape[1]:
            grown = np.empty((len(self._held), 2 * kept + n), np.float32)
            grown[:, :kept] = self._held[:, :kept]
            self._held = grown
        self._held[:, kept : kept + n] = samples_uv
        self.n_samples += n

    def _walk_to(self, limit: int) -> Spikes:
        """Walk candidates up to, not including, a sample; forget what no later one reads."""
        begin = self.known_to
        if limit <= begin:
            return join_spikes([])
        values = len(self._held) * (limit - begin)
        pool = self._pool if values >= VALUES_FOR_THREADS else None
        parts = in_threads(
            pool,
            lambda rows: self._walk_rows(rows, begin, limit),
            channel_slices(len(self._held), pool),
        )
        self.known_to = limit
        # The sample before a candidate tells whether it is a peak.
        self._forget(max(0, limit - 1))
        channel, sample, uv = (np.concatenate(column) for column in zip(*parts, strict=True))
        return sort_spikes(sample, channel, uv)

    def _walk_rows(
        self, rows: slice, begin: int, limit: int
    ) -> tuple[NDArray[np.int32], Ints, Float32]:
        times, state = self._times, self._state[rows]
        scratch = Scratch.for_reach(times.lifetime + times.overshoot)
        sample = np.empty((len(state), _ROOM), np.int64)
        uv = np.empty((len(state), _ROOM), np.float32)
        row = 0
        while True:
            row = _walk(
                self._held[rows], self._first, self.n_samples, begin, limit, row, *times,
                self._means[rows], self._thresholds[rows], state, sample, uv, *scratch,
            )  # fmt: skip
            if row == len(state):
                break
            sample, uv = (np.concatenate([a, np.empty_like(a)], axis=1) for a in (sample, uv))
        found = np.arange(sample.shape[1]) < state[:, 1:]
        channel = np.repeat(np.arange(rows.start, rows.stop, dtype=np.int32), state[:, 1])
        state[:, 1] = 0
        return channel, sample[found], uv[found]

    def _forget(self, before: int) -> None:
        gone = before - self._first
        kept = self.n_samples - before
        if gone > 0:
            self._held[:, :kept] = self._held[:, gone : gone + kept].copy()
            self._first = before


@compiled()
def _walk(
    x: Float32,
    shift: int,
    n: int,
    begin: int,
    end: int,
    row: int,
    lifetime: int,
    refractory: int,
    overshoot: int,
    negative: bool,
    means: Float32,
    thresholds: Float32,
    state: Ints,
    sample: Ints,
    uv: Float32,
    values: Float32,
    keys: Keys,
    marks: NDArray[np.uint8],
    words: Ints,
) -> int:
    """Walk candidates [begin, end) of the channels from `row` on; x[:, i - shift] is sample i.

    Returns the channel whose room for spikes is full, from which to go on with more, or the number
    of channels.
    """
    scratch = Scratch(values, keys, marks, words)
    reach = lifetime + overshoot
    for c in range(row, len(x)):
        if not np.isfinite(thresholds[c]):
            continue
        rule = Rule(lifetime, refractory, overshoot, negative, means[c], thresholds[c])
        found = Found(state[c], sample[c], uv[c])
        for b in range(begin, end, BLOCK):
            stop = min(b + BLOCK, end)
            last = min(stop + reach, n)
            if stop <= state[c, 0] or not reach_spans(
                x[c], b - shift, last - shift, np.float32(np.inf), np.float32(-np.inf), rule
            ):
                continue
            if not walk_span(x[c], shift, n, max(b, 1), stop, rule, found, scratch):
                return c
    return len(x)

"""Spike trains for tests, and naive definitions of bursts: plain Python, one train at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.features.electrodes import ElectrodeTrains, whole_recording
from toptune.params import BurstCriteria
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes

RATE_HZ = 1000
Train = list[int]

# Milliseconds at and beside every limit, so that ties happen.
_STEPS = (0, 1, 2, 5, 9, 10, 11, 50, 51, 99, 100, 101, 170, 171, 199, 200, 300, 301, 700, 1500)


def make_trains(
    electrodes: Sequence[Sequence[int]],
    n_samples: int | Sequence[int],
    rate_hz: float = RATE_HZ,
    gap_s: float = 3.0,
) -> SpikeTrains:
    """Put trains of samples together; several lengths are segments with gaps between them."""
    lengths = [n_samples] if isinstance(n_samples, int) else list(n_samples)
    first = [sum(lengths[:k]) for k in range(len(lengths))]
    sample = np.array([s for train in electrodes for s in train], dtype=np.int64)
    channel = np.repeat(np.arange(len(electrodes)), [len(t) for t in electrodes]).astype(np.int32)
    return SpikeTrains(
        spikes=sort_spikes(sample, channel, np.full(len(sample), np.nan, np.float32)),
        channel_labels=tuple(f"E{k}" for k in range(len(electrodes))),
        sampling_rate_hz=rate_hz,
        segments=tuple(
            Segment(a, n, a / rate_hz + gap_s * k)
            for k, (a, n) in enumerate(zip(first, lengths, strict=True))
        ),
        threshold_uv=np.full(len(electrodes), np.nan, np.float32),
    )


def by_electrode(trains: SpikeTrains) -> list[Train]:
    """Samples of each electrode."""
    sample, channel = trains.spikes.sample, trains.spikes.channel
    return [sample[channel == e].tolist() for e in range(len(trains.channel_labels))]


@st.composite
def spike_trains(draw: st.DrawFn, max_electrodes: int = 4) -> SpikeTrains:
    """Few distinct intervals, ties, silence, single spikes, one segment or two."""
    lengths = draw(st.sampled_from(([60_000], [9_000], [7_000, 12_000])))
    electrodes = []
    for _ in range(draw(st.integers(1, max_electrodes))):
        start = draw(st.sampled_from((0, 1, 700, 5_990)))
        steps = draw(st.lists(st.sampled_from(_STEPS), max_size=40))
        samples = itertools.accumulate(steps, initial=start)
        kept = [s for s in samples if s < sum(lengths)]
        electrodes.append(kept if draw(st.integers(0, 5)) else [])
    return make_trains(electrodes, lengths)


def per_train(trains: SpikeTrains) -> tuple[ElectrodeTrains, list[Train]]:
    """Give a whole recording in both forms: as the product takes it, and as plain lists."""
    cut = whole_recording(trains)
    bounds = cut.bounds.tolist()
    return cut, [cut.sample[a:b].tolist() for a, b in itertools.pairwise(bounds)]


# --- naive definitions


def naive_max_interval(train: Train, c: BurstCriteria, rate_hz: float) -> list[tuple[int, int]]:
    """(first, last) spike of each burst, by MC_Rack's manual: find, merge, remove."""

    def ms(a: int, b: int) -> float:
        return (train[b] - train[a]) * 1000 / rate_hz

    found, i = [], 0
    while i + 1 < len(train):
        if ms(i, i + 1) <= c.start_ms:
            j = i + 1
            while j + 1 < len(train) and ms(j, j + 1) <= c.end_ms:
                j += 1
            found.append((i, j))
            i = j
        else:
            i += 1
    merged: list[tuple[int, int]] = []
    for a, b in found:
        if merged and ms(merged[-1][1], a) < c.between_ms:
            merged[-1] = (merged[-1][0], b)
        else:
            merged.append((a, b))
    return [(a, b) for a, b in merged if ms(a, b) >= c.duration_ms and b - a + 1 >= c.min_spikes]


def naive_histogram(intervals: Sequence[int], rate_hz: float) -> NDArray[np.float64]:
    """Counts in 70 bins of a tenth of a decade from 0.1 ms on."""
    edges = [10.0 ** (k / 10 - 1) * rate_hz / 1000 for k in range(71)]
    counts = np.zeros(70)
    for interval in intervals:
        for k in range(70):
            if edges[k] <= interval < edges[k + 1]:
                counts[k] += 1
    return counts


def naive_smooth(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit a straight line to each bin's five nearest, weighted by the tri-cube of the distance."""
    return np.round(_lines(len(counts)) @ counts, 9)


@lru_cache
def _lines(n: int) -> NDArray[np.float64]:
    """Value of each bin's line at the bin, for a count of one in each bin."""
    values = np.zeros((n, n))
    for k in range(n):
        used = sorted(sorted(range(n), key=lambda i: abs(i - k))[:5])
        x = np.array(used, dtype=float) - k
        w = (1 - (abs(x) / abs(x).max()) ** 3) ** 3
        for one in used:
            line = np.polyfit(x, [float(i == one) for i in used], 1, w=np.sqrt(w))
            values[k, one] = line[1]
    return values


def naive_threshold_ms(counts: NDArray[np.float64], c: BurstCriteria) -> tuple[float, bool]:
    """Valley (NaN without one), and whether there is a peak below the cut-off."""
    y = naive_smooth(counts)
    x = [10.0 ** (k / 10 - 1) for k in range(70)]
    maxima = []
    for k in range(1, 69):
        after = next((y[j] for j in range(k + 1, 70) if y[j] != y[k]), None)
        if y[k] > y[k - 1] and after is not None and after < y[k]:
            maxima.append(k)
    peaks: list[int] = []
    for k in sorted(maxima, key=lambda k: (-y[k], k)):
        if all(abs(k - other) > 2 for other in peaks):
            peaks.append(k)
    short = [k for k in peaks if x[k] < c.cutoff_ms]
    if not short:
        return math.nan, False
    first = max(short, key=lambda k: (y[k], -k))
    for later in sorted(k for k in peaks if k > first):
        valley = min(range(first, later + 1), key=lambda k: (y[k], k))
        if y[later] > 0 and 1 - y[valley] / math.sqrt(y[first] * y[later]) >= c.void:
            return (x[valley] if x[valley] <= c.longest_ms else math.nan), True
    return math.nan, True


def naive_log_isi(
    train: Train, threshold_ms: float, c: BurstCriteria, rate_hz: float
) -> list[tuple[int, int]]:
    """Find runs of intervals up to the threshold that hold a burst by the cut-off alone."""

    def runs(limit_ms: float) -> list[tuple[int, int]]:
        found, start = [], 0
        for i in range(1, len(train) + 1):
            if i == len(train) or (train[i] - train[i - 1]) * 1000 / rate_hz > limit_ms:
                found.append((start, i - 1))
                start = i
        return [(a, b) for a, b in found if b - a + 1 >= c.min_spikes]

    if math.isnan(threshold_ms) or not train:
        return []
    cores = runs(min(threshold_ms, c.cutoff_ms))
    return [(a, b) for a, b in runs(threshold_ms) if any(a <= p and q <= b for p, q in cores)]


def naive_sttc(a: Train, b: Train, reach: int, n_samples: int) -> float:
    """Compute the spike time tiling coefficient of two trains in one stretch, by its formula."""

    def tiled(train: Train) -> float:
        covered: set[int] = set()
        for s in train:
            covered.update(range(max(0, s - reach), min(n_samples, s + reach)))
        return len(covered) / n_samples

    def near(these: Train, those: Train) -> float:
        return sum(any(abs(s - t) <= reach for t in those) for s in these) / len(these)

    def term(p: float, t: float) -> float:
        return (p - t) / (1 - p * t) if p * t < 1 else 1.0

    return (term(near(a, b), tiled(b)) + term(near(b, a), tiled(a))) / 2


class NaiveNetworkBurst(NamedTuple):
    """A network burst, in samples."""

    stretch: int
    start: int
    end: int
    electrodes: set[int]
    n_spikes: int


def naive_network_bursts(
    trains: list[Train],
    bursts: list[list[tuple[int, int]]],
    n_electrodes: int,
    c: BurstCriteria,
    rate_hz: float,
) -> tuple[list[NaiveNetworkBurst], list[int]]:
    """Group burst events, and give the intervals between them; trains of stretches in turn."""
    by_stretch = [
        sorted(
            (trains[k][a], k % n_electrodes, trains[k][b], b - a + 1)
            for k in range(first, first + n_electrodes)
            for a, b in bursts[k]
        )
        for first in range(0, len(trains), max(1, n_electrodes))
    ]
    intervals = [b[0] - a[0] for events in by_stretch for a, b in itertools.pairwise(events)]
    threshold_ms, _ = naive_threshold_ms(naive_histogram(intervals, rate_hz), c)
    threshold_ms = c.cutoff_ms if math.isnan(threshold_ms) else threshold_ms
    found = []
    for stretch, events in enumerate(by_stretch):
        groups: list[list[tuple[int, int, int, int]]] = []
        for event in events:
            if groups and (event[0] - groups[-1][-1][0]) * 1000 / rate_hz <= threshold_ms:
                groups[-1].append(event)
            else:
                groups.append([event])
        for group in groups:
            electrodes = {e for _, e, _, _ in group}
            if len(electrodes) >= 2 and len(electrodes) >= c.network_share * n_electrodes:
                end, n_spikes = max(g[2] for g in group), sum(g[3] for g in group)
                found.append(NaiveNetworkBurst(stretch, group[0][0], end, electrodes, n_spikes))
    return found, intervals

"""Why a model gives a verdict: which windows, seconds and electrodes contributed to it.

The spikes of a short stretch are taken away, for stretches all over the recording, and every window
that holds the stretch is judged again: how much less probable does the verdict's class get? The
same is done with the spikes of each electrode, in a few windows.

This is occlusion (Zeiler & Fergus 2014, Visualizing and understanding convolutional networks, ECCV)
over time and electrodes: spikes are removed instead of pixels in a grey square, and the rest is
drawn and described by the very code that made the model's features. A window without any spike to
remove is not judged again: it is what it was. On a histogram whose count axis
is each window's own maximum, the other bursts grow when the highest one is taken away: that is what
the model would see, and so is another order of electrodes in a sorted raster or in a matrix of
correlations. The count axis `recording` stays where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from toptune.errors import InputError
from toptune.features.extractor import StageReporter, unwatched
from toptune.params import Windows
from toptune.recordings.trains import Spikes, SpikeTrains
from toptune.recordings.windows import SegmentBins, window_starts
from toptune.runs.predictor import FoundRecording, MatchedWindows, Predictor
from toptune.runs.verdicts import RecordingPrediction

# Gaps in a window's width, and by how much of itself each moves on.
_STRETCHES = 12
_STEPS = 2
# Electrodes, or groups of them, whose spikes are removed one after the other.
_GROUPS = 64


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """Which spikes are removed: those in a gap that slides, and those of each electrode."""

    stretch_s: float | None = None  # the gap's length; a twelfth of the widest window where None
    step_s: float | None = None  # how far it moves on; half its length where None
    # In how many windows the spikes of each electrode are removed; 0 leaves electrodes out.
    electrode_windows: int = 4

    def __post_init__(self) -> None:
        for name in ("stretch_s", "step_s"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"Occlusion.{name} must be above 0, got {value!r}")
        if self.electrode_windows < 0:
            raise InputError(
                f"Occlusion.electrode_windows must be 0 or above, got {self.electrode_windows}"
            )


class ElectrodeDrops(NamedTuple):
    """How much less probable a class gets without each electrode."""

    labels: tuple[str, ...]  # of all electrodes
    # (k,): the windows in which electrodes were left out: the one with the largest probability of
    # the class, and others spread over the recording
    rows: NDArray[np.int64]
    n_spikes: NDArray[np.int64]  # (k, electrodes): that were removed
    # (electrodes,): number of the group that was left out together; each electrode is its own group
    # unless there are too many; -1 where an electrode has no spike in these windows
    group: NDArray[np.int64]
    drop: NDArray[np.float64]  # (k, electrodes): of the electrode's group; 0 without a spike
    score_drop: NDArray[np.float64]  # (k, electrodes): likewise

    @property
    def mean_drop(self) -> NDArray[np.float64]:
        """Mean over the windows, (electrodes,)."""
        return np.asarray(self.drop.mean(axis=0))

    @property
    def in_groups(self) -> bool:
        """Whether several electrodes were left out together."""
        active = self.group[self.group >= 0]
        return len(np.unique(active)) < len(active)


class Explanation(NamedTuple):
    """What contributed to a recording's verdict."""

    prediction: RecordingPrediction  # the verdict, and every window's probabilities
    code: int  # the class that is explained
    # (m,): the windows that were given gaps: adjacent ones, so that together they cover all that
    # windows hold of the recording; the last; and the one with the largest probability of the class
    rows: NDArray[np.int64]
    strongest: int  # position of that one among `rows`
    offset_s: NDArray[np.float64]  # (p,): from a window's start to the gap's
    stretch_s: float  # the gap's length
    probability: NDArray[np.float64]  # (m, p): of the class, without the spikes in the gap
    score: NDArray[np.float64]  # (m, p): likewise
    n_silent: int  # of these m x p gaps, those without a spike, which change nothing
    electrodes: ElectrodeDrops | None  # None where they were not asked for

    @property
    def start_s(self) -> NDArray[np.float64]:
        """Start of each explained window, (m,)."""
        return self.prediction.start_s[self.rows]

    @property
    def drop(self) -> NDArray[np.float64]:
        """How much less probable the class gets without the spikes in the gap, (m, p)."""
        whole = self.prediction.probabilities[self.rows, self.code]
        return np.asarray(whole[:, None] - self.probability)

    @property
    def score_drop(self) -> NDArray[np.float64]:
        """The same of the class's score, (m, p)."""
        whole = self.prediction.scores[self.rows, self.code]
        return np.asarray(whole[:, None] - self.score)


def importance(explained: Explanation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean drop in probability of all gaps that hold a time.

    Gives `time_s`, (t,), middles of the pieces between the gaps' ends, in seconds since the
    recording's start, and the drop, (t,); only of pieces that a gap holds.
    """
    begin = (explained.start_s[:, None] + explained.offset_s).ravel()
    end = begin + explained.stretch_s
    edges = np.unique(np.round(np.concatenate([begin, end]), 6))
    time_s = (edges[:-1] + edges[1:]) / 2
    inside = (begin <= time_s[:, None]) & (time_s[:, None] < end)
    held = inside.any(axis=1)
    inside = inside[held]
    return time_s[held], (inside * explained.drop.ravel()).sum(axis=1) / inside.sum(axis=1)


def explain(
    predictor: Predictor,
    recording: FoundRecording,
    *,
    occlusion: Occlusion | None = None,
    of_class: str | None = None,
    stage: StageReporter = unwatched,
) -> Explanation:
    """Judge a recording, whose spikes were found with the model's settings, and explain a class.

    `occlusion` says which spikes are removed; `of_class` is what to explain, the verdict where
    None.

    Raises
    ------
    InputError
        No window fits, the model knows no such class, or the gap is longer than a window.
    """
    classes = predictor.model.classes
    if of_class is not None and of_class not in classes:
        raise InputError(f"the model knows no class {of_class!r}; it knows {', '.join(classes)}")
    matched = predictor.match(recording.name, recording.trains)
    lead = predictor.extractors[matched.lead].windows
    if lead is None:
        raise InputError(
            "the model looks at burst parameters of whole recordings: there are no windows to"
            " explain; parameters.csv of its run tells what it weighs"
        )
    # Products this small are slower on several threads, and very much so on a busy machine.
    with threadpool_limits(limits=1, user_api="blas"):
        return _explain(
            predictor, recording, matched, lead, occlusion or Occlusion(), of_class, stage
        )


def _explain(
    predictor: Predictor,
    recording: FoundRecording,
    matched: MatchedWindows,
    lead: Windows,
    occlusion: Occlusion,
    of_class: str | None,
    stage: StageReporter,
) -> Explanation:
    classes = predictor.model.classes
    bin_s = lead.bin_ms / 1000
    stretch, offsets = _stretches(occlusion, lead.width_bins, bin_s)
    prediction = predictor.predict(recording, stage)
    code = prediction.code if of_class is None else classes.index(of_class)
    tiles = _tiles(matched.start_s, lead.width_s)
    best = int(prediction.probabilities[:, code].argmax())
    rows = np.unique([*tiles, best]).astype(np.int64)
    thinned = _ThinnedWindows(predictor, recording.trains, matched, lead, prediction, code)
    gaps = [thinned.gap(row, offset, stretch) for row in rows.tolist() for offset in offsets]
    probability, score = thinned.judge(gaps, "gaps", stage)
    shape = (len(rows), len(offsets))
    return Explanation(
        prediction=prediction,
        code=code,
        rows=rows,
        strongest=int(np.flatnonzero(rows == best)[0]),
        offset_s=(offsets * bin_s).astype(np.float64),
        stretch_s=stretch * bin_s,
        probability=probability.reshape(shape),
        score=score.reshape(shape),
        n_silent=sum(not gap.removes for gap in gaps),
        electrodes=_electrodes(thinned, rows, best, occlusion.electrode_windows, stage),
    )


def _electrodes(
    thinned: _ThinnedWindows,
    rows: NDArray[np.int64],
    best: int,
    n_windows: int,
    stage: StageReporter,
) -> ElectrodeDrops | None:
    """Leave out each electrode in the window `best` and in some others of `rows`."""
    if not n_windows:
        return None
    chosen = spread(rows, best, n_windows)
    n_spikes = np.stack([thinned.counts(row) for row in chosen.tolist()])
    group = group_by_rate(n_spikes.sum(axis=0), _GROUPS)
    n_groups = int(group.max(initial=-1)) + 1
    variants = [
        thinned.without(row, group == number)
        for row in chosen.tolist()
        for number in range(n_groups)
    ]
    probability, score = thinned.judge(variants, "electrodes", stage)

    def of_electrodes(whole: NDArray[np.float64], values: NDArray[np.float64]) -> Any:
        drop = np.zeros((len(chosen), n_groups + 1))  # the last is for those without a group
        drop[:, :n_groups] = whole[chosen, thinned.code, None] - values.reshape(-1, n_groups)
        return drop[:, group]

    return ElectrodeDrops(
        labels=thinned.trains.channel_labels,
        rows=chosen,
        n_spikes=n_spikes,
        group=group,
        drop=of_electrodes(thinned.prediction.probabilities, probability),
        score_drop=of_electrodes(thinned.prediction.scores, score),
    )


def spread(rows: NDArray[np.int64], best: int, n: int) -> NDArray[np.int64]:
    """Choose `n` of some ascending rows: `best`, which is among them, and others evenly spread."""
    others = rows[rows != best]
    n_others = min(n - 1, len(others))
    # Middles of equal parts, so that neither the first nor the last is taken by itself.
    at = ((np.arange(n_others) + 0.5) * len(others) / max(1, n_others)).astype(np.int64)
    return np.sort(np.append(others[at], best))


def group_by_rate(n_spikes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Group electrodes, (electrodes,), by their spikes, into at most `most` groups.

    Each with a spike is its own group where there are no more than `most`. Otherwise electrodes of
    similar rates are together, with about the same number of spikes in each group, so that the most
    active ones are the most alone. Gives the number of each electrode's group, -1 without a spike.
    """
    order = np.argsort(-n_spikes, kind="stable")
    order = order[n_spikes[order] > 0]
    group = np.full(len(n_spikes), -1, dtype=np.int64)
    if len(order) <= most:
        group[np.sort(order)] = np.arange(len(order))
        return group
    before = np.cumsum(n_spikes[order]) - n_spikes[order]
    part = before * most // n_spikes.sum()
    group[order] = np.unique(part, return_inverse=True)[1]
    return group


def _stretches(occlusion: Occlusion, width: int, bin_s: float) -> tuple[int, NDArray[np.int64]]:
    """Length and offsets of the gap in whole bins; the last ends with the window."""
    wanted = occlusion.stretch_s
    stretch = max(1, round(width / _STRETCHES if wanted is None else wanted / bin_s))
    if stretch > width:
        raise InputError(
            f"Occlusion.stretch_s must be at most the model's window of {width * bin_s:g} s,"
            f" got {wanted!r}"
        )
    step = occlusion.step_s
    bins = max(1, round(stretch / _STEPS if step is None else step / bin_s))
    offsets = np.arange(0, width - stretch + 1, bins)
    # What is left over at the end gets a stretch of its own.
    return stretch, np.unique([*offsets.tolist(), width - stretch]).astype(np.int64)


def _tiles(start_s: NDArray[np.float64], width_s: float) -> list[int]:
    """Rows of windows that follow each other without overlap, from the first on, and the last."""
    rows: list[int] = []
    free_s = -np.inf
    for row, start in enumerate(start_s.tolist()):
        if start >= free_s - 1e-6:
            rows.append(row)
            free_s = start + width_s
    return sorted({*rows, len(start_s) - 1})


class _Variant(NamedTuple):
    """A window without some of its spikes."""

    row: int  # which window
    kept: NDArray[np.int64]  # the spikes that are left in and around it
    removes: bool  # whether any spike is gone


class _ThinnedWindows:
    """Windows of one recording, judged without some of their spikes."""

    def __init__(
        self,
        predictor: Predictor,
        trains: SpikeTrains,
        matched: MatchedWindows,
        lead: Windows,
        prediction: RecordingPrediction,
        code: int,
    ) -> None:
        self.trains = trains
        self.prediction = prediction
        self.code = code
        self._predictor = predictor
        self._matched = matched
        self._width = lead.width_bins
        bins = SegmentBins.of(trains, lead.bin_ms)
        sample = trains.spikes.sample
        segment = np.searchsorted(bins.first_sample, sample, side="right") - 1
        spike_bin = np.floor((sample - bins.first_sample[segment]) / bins.per_bin)
        starts = window_starts(trains, lead)
        of_lead = matched.rows[matched.lead]
        # Views' windows match within half a stride: so far may one stick out of its leading one.
        strides = [e.windows.stride_s for e in predictor.extractors if e.windows is not None]
        self._reach = math.ceil(max(strides) * 1000 / lead.bin_ms) + 1
        # Bins of all segments in a row, with room between them for a window that sticks out.
        apart = int(bins.n_bins.max(initial=0)) + 2 * self._reach + 2
        self._spike_bin = segment * apart + spike_bin.astype(np.int64)
        self._first_bin = starts.segment[of_lead] * apart + starts.first_bin[of_lead]

    def gap(self, row: int, offset: int, stretch: int) -> _Variant:
        """Remove the spikes of some bins of a window."""
        near = self._near(row)
        at = self._spike_bin[near] - self._first_bin[row]
        kept = (at < offset) | (at >= offset + stretch)
        return _Variant(row, near[kept], not kept.all())

    def without(self, row: int, electrodes: NDArray[np.bool_]) -> _Variant:
        """Remove the spikes of some electrodes in and around a window."""
        near = self._near(row)
        kept = ~electrodes[self.trains.spikes.channel[near]]
        return _Variant(row, near[kept], not kept.all())

    def counts(self, row: int) -> NDArray[np.int64]:
        """Count each electrode's spikes in a window, (electrodes,)."""
        first = self._first_bin[row]
        low, high = np.searchsorted(self._spike_bin, [first, first + self._width])
        n_electrodes = len(self.trains.channel_labels)
        return np.bincount(self.trains.spikes.channel[low:high], minlength=n_electrodes)

    def _near(self, row: int) -> NDArray[np.int64]:
        """List the spikes that any view's window may hold."""
        first = self._first_bin[row] - self._reach
        last = self._first_bin[row] + self._width + self._reach
        low, high = np.searchsorted(self._spike_bin, [first, last])
        return np.arange(low, high)

    def judge(
        self, variants: Sequence[_Variant], name: str, stage: StageReporter
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give the class's probability and score of each variant, (n,) both."""
        rows = [variant.row for variant in variants]
        probability = self.prediction.probabilities[rows, self.code]
        score = self.prediction.scores[rows, self.code]
        changed = [k for k, variant in enumerate(variants) if variant.removes]
        if changed:
            features = self._features([variants[k] for k in changed], name, stage)
            model = self._predictor.model
            scores = model.class_scores(features)
            probability[changed] = model.probabilities(features, scores)[:, self.code]
            score[changed] = scores[:, self.code]
        return probability, score

    def _features(
        self, variants: Sequence[_Variant], name: str, stage: StageReporter
    ) -> NDArray[np.float32]:
        """Compute the features of some variants, of all views side by side, (n, d)."""
        extractors = self._predictor.extractors
        total = len(variants) * len(extractors)
        found: dict[int, NDArray[np.float32]] = {}
        done = [0] * len(extractors)  # each thread counts its own views, without a lock

        def of_views(numbers: Sequence[int]) -> None:
            for number in numbers:
                parts = []
                thinned = self._thinned(variants, self._matched.rows[number])
                of_view = extractors[number].extract_variants(self.trains, thinned, len(variants))
                for part in of_view:
                    parts.append(part)
                    done[number] += len(part)
                    stage(name, sum(done), total)
                found[number] = np.concatenate(parts)

        # Views of one kind share a network, and come one after the other. Another kind is computed
        # beside them, on what a network leaves idle.
        kinds: dict[str, list[int]] = {}
        for number, extractor in enumerate(extractors):
            kinds.setdefault(extractor.stage, []).append(number)
        stage(name, 0, total)
        first, *others = kinds.values()
        with ThreadPoolExecutor(max(1, len(others))) as pool:
            beside = [pool.submit(of_views, numbers) for numbers in others]
            of_views(first)
            for one in beside:
                one.result()
        return np.concatenate([found[number] for number in range(len(extractors))], axis=1)

    def _thinned(
        self, variants: Sequence[_Variant], rows: NDArray[np.int64]
    ) -> Iterator[tuple[SpikeTrains, list[int]]]:
        """Give the spikes that are left of each variant, and its window of a view."""
        s = self.trains.spikes
        for row, kept, _ in variants:
            left = Spikes(s.sample[kept], s.channel[kept], s.peak_to_peak_uv[kept])
            yield replace(self.trains, spikes=left), [int(rows[row])]

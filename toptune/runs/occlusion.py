"""Why a model gives a verdict: which windows contributed to it, and which seconds of a window.

The spikes of a short stretch are taken away, for stretches all over the recording, and every window
that holds the stretch is judged again: how much less probable does the verdict's class get?

This is occlusion (Zeiler & Fergus 2014, Visualizing and understanding convolutional networks, ECCV)
over time: spikes are removed in a sliding gap instead of pixels in a grey square, and the rest is
drawn and described by the very code that made the model's features. On a histogram whose count axis
is each window's own maximum, the other bursts grow when the highest one is taken away: that is what
the model would see, and so is another order of electrodes in a sorted raster or in a matrix of
correlations. The count axis `recording` stays where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.features.extractor import FeatureExtractor, StageReporter, unwatched
from toptune.params import Windows
from toptune.recordings.trains import Spikes, SpikeTrains
from toptune.recordings.windows import SegmentBins, window_starts
from toptune.runs.predictor import FoundRecording, MatchedWindows, Predictor
from toptune.runs.verdicts import RecordingPrediction

# Gaps in a window's width, and by how much of itself each moves on.
_STRETCHES = 12
_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """How the gap without spikes slides."""

    stretch_s: float | None = None  # its length; a twelfth of the model's widest window where None
    step_s: float | None = None  # how far it moves on; half its length where None

    def __post_init__(self) -> None:
        for name in ("stretch_s", "step_s"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"Occlusion.{name} must be above 0, got {value!r}")


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

    `occlusion` says how the gap slides; `of_class` is what to explain, the verdict where None.

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
    stretch, offsets = _stretches(occlusion or Occlusion(), lead.width_bins, lead.bin_ms / 1000)
    prediction = predictor.predict(recording, stage)
    code = prediction.code if of_class is None else classes.index(of_class)
    tiles = _tiles(matched.start_s, lead.width_s)
    best = int(prediction.probabilities[:, code].argmax())
    rows = np.unique([*tiles, best]).astype(np.int64)
    gaps = _Gaps(predictor.extractors, recording.trains, matched, lead, rows, stretch, offsets)
    features = gaps.features(stage)
    shape = (len(rows), len(offsets))
    return Explanation(
        prediction=prediction,
        code=code,
        rows=rows,
        strongest=int(np.flatnonzero(rows == best)[0]),
        offset_s=offsets * lead.bin_ms / 1000,
        stretch_s=stretch * lead.bin_ms / 1000,
        probability=predictor.model.probabilities(features)[:, code].reshape(shape),
        score=predictor.model.class_scores(features)[:, code].reshape(shape),
    )


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


class _Gaps:
    """Windows of one recording without the spikes in a gap, for every gap."""

    def __init__(
        self,
        extractors: Sequence[FeatureExtractor],
        trains: SpikeTrains,
        matched: MatchedWindows,
        lead: Windows,
        rows: NDArray[np.int64],
        stretch: int,
        offsets: NDArray[np.int64],
    ) -> None:
        self.extractors = extractors
        self.trains = trains
        self.matched = matched
        self.rows = rows
        self.stretch = stretch
        self.offsets = offsets
        starts = window_starts(trains, lead)
        of_lead = matched.rows[matched.lead][rows]
        self.segment, self.first_bin = starts.segment[of_lead], starts.first_bin[of_lead]
        # Views' windows match within half a stride: so far may one stick out of its leading one.
        reach = max(e.windows.stride_s for e in extractors if e.windows is not None)
        self.apart = _apart(matched.start_s[rows], lead.width_s + reach)
        firsts = np.array([s.first_sample for s in trains.segments])
        self.spike_segment = np.searchsorted(firsts, trains.spikes.sample, side="right") - 1
        since = trains.spikes.sample - firsts[self.spike_segment]
        self.spike_bin = np.floor(since / SegmentBins.of(trains, lead.bin_ms).per_bin).astype(
            np.int64
        )

    def features(self, stage: StageReporter) -> NDArray[np.float32]:
        """Compute the features of every window with every gap, (windows x gaps, d)."""
        columns = [
            self._of_view(extractor, self.matched.rows[number][self.rows], stage)
            for number, extractor in enumerate(self.extractors)
        ]
        return np.concatenate(columns, axis=1)

    def _of_view(
        self, extractor: FeatureExtractor, rows: NDArray[np.int64], stage: StageReporter
    ) -> NDArray[np.float32]:
        total = len(self.rows) * len(self.offsets)
        found = np.empty((total, extractor.n_columns), np.float32)
        places = np.concatenate([
            group * len(self.offsets) + column
            for group in self.apart
            for column in range(len(self.offsets))
        ])  # fmt: skip
        done = 0
        for part in extractor.extract_variants(self.trains, self._variants(rows), total):
            found[places[done : done + len(part)]] = part
            done += len(part)
            stage("occlusion", done, total)
        return found

    def _variants(self, rows: NDArray[np.int64]) -> Iterator[tuple[SpikeTrains, list[int]]]:
        """Put a gap into each of several windows that are far from each other."""
        for group in self.apart:
            for offset in self.offsets.tolist():
                yield self._without(group, offset), rows[group].tolist()

    def _without(self, group: NDArray[np.int64], offset: int) -> SpikeTrains:
        """Put the gap with an offset into each window of a group."""
        keep = np.ones(len(self.spike_bin), dtype=bool)
        for k in group:
            first = self.first_bin[k] + offset
            keep &= ~(
                (self.spike_segment == self.segment[k])
                & (self.spike_bin >= first)
                & (self.spike_bin < first + self.stretch)
            )
        s = self.trains.spikes
        kept = Spikes(s.sample[keep], s.channel[keep], s.peak_to_peak_uv[keep])
        return replace(self.trains, spikes=kept)


def _apart(start_s: NDArray[np.float64], distance_s: float) -> list[NDArray[np.int64]]:
    """Split windows into groups; in each, windows start `distance_s` or more after each other."""
    groups: list[list[int]] = []
    for k, start in enumerate(start_s.tolist()):
        fitting = (g for g in groups if start - start_s[g[-1]] >= distance_s - 1e-6)
        group = next(fitting, None)
        if group is None:
            groups.append([k])
        else:
            group.append(k)
    return [np.array(group, dtype=np.int64) for group in groups]

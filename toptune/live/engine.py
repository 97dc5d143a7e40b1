"""Verdicts while a recording goes on: from blocks of voltage to a verdict for every window.

Filter, thresholds and spikes are carried from block to block, so that every sample is processed
once. Of a new window the picture is drawn and described, by the code that does so for whole
recordings: given the thresholds and means of the whole recording, windows, pictures, features and
verdicts are those of `predict`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.evaluation.scores import majority
from toptune.features.extractor import FeatureExtractor
from toptune.live.blocks import Block, Note, Source, SourceInfo
from toptune.live.detection import Calibration, CertainSpikes, LiveDetector, in_one
from toptune.live.replay import Speed
from toptune.live.sources import open_source
from toptune.live.windows import Cut, LiveWindow, LiveWindows
from toptune.machine.device import torch_device
from toptune.machine.threads import one_torch_thread, thread_pool
from toptune.params import Compute, OpeningOptions, Windows
from toptune.recordings.trains import RecordingFacts, Segment, SpikeTrains, sort_spikes
from toptune.runs.folder import model_folder
from toptune.runs.model import Model, read_model
from toptune.runs.novelty import Novelty, judge_nearness
from toptune.runs.predictor import (
    JudgedWindows,
    Paths,
    Predictor,
    let_vote,
    list_paths,
    settings_of,
)
from toptune.runs.verdicts import Predictions, RecordingPrediction

# Blocks shorter than this are gathered first: each costs a millisecond, however short it is.
_STEP_S = 0.02


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveVerdict:
    """What a model says of the window that has just ended, and of the recording so far.

    Parameters
    ----------
    start_s, stop_s
        The window, in seconds since the source's first sample.
    classes
        The model's classes, in the order of what follows.
    scores, probabilities : (k,) float64
        Of the window.
    code
        The window's class, of the largest score.
    nearness
        How near the window is to those of training (`toptune.runs.novelty`).
    unlike
        Whether the window is further away than the model's limit.
    unlike_training
        Whether the recording so far is unlike those of training, by its windows or its rate.
    warnings
        What is out of the ordinary in the recording so far, one line each.
    counts : (bins,) int64
        The spikes of all electrodes in each bin of the window.
    bin_s
        Length of a bin.
    n_spikes
        Spikes since the start.
    n_dropped
        Samples (of each channel) that were lost since the start.
    latency_s
        Seconds from when the window's last sample was at hand to this verdict.
    votes : (k,) int64
        Windows so far, by class.
    mean_probabilities : (k,) float64
        Over all windows so far.
    """

    start_s: float
    stop_s: float
    classes: tuple[str, ...]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    code: int
    nearness: float
    unlike: bool
    unlike_training: bool
    warnings: tuple[str, ...]
    counts: NDArray[np.int64]
    bin_s: float
    n_spikes: int
    n_dropped: int
    latency_s: float
    votes: NDArray[np.int64]
    mean_probabilities: NDArray[np.float64]

    @property
    def prediction(self) -> str:
        """The window's class."""
        return self.classes[self.code]

    @property
    def probability(self) -> float:
        """Its probability."""
        return float(self.probabilities[self.code])

    @property
    def recording_code(self) -> int:
        """The recording's class so far: most votes, of equals the more probable, then the first."""
        return majority(self.votes, self.mean_probabilities)

    @property
    def recording_prediction(self) -> str:
        """The recording's class so far, by name."""
        return self.classes[self.recording_code]


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationProgress:
    """How far the calibration span is; the last one has what was learnt.

    Parameters
    ----------
    done_s, span_s
        Seconds of voltage that have come, and that are wanted.
    calibration
        Thresholds and means, once they are known.
    """

    done_s: float
    span_s: float
    calibration: Calibration | None = None


LiveEvent = LiveVerdict | Note | CalibrationProgress


class LiveJudge:
    """Judges the windows of a source as soon as their spikes are known.

    Parameters
    ----------
    model
        That judges.
    info
        Of the source.
    stride_s
        Seconds from one verdict to the next; the model's own if None.
    weights, compute
        As for `LiveSession`.

    Attributes
    ----------
    windows : LiveWindows
        Which windows are complete.
    n_dropped : int
        Samples that were lost.

    Raises
    ------
    InputError
        Weights other than in training, or a model that needs whole recordings.
    """

    def __init__(
        self,
        model: Model,
        info: SourceInfo,
        stride_s: float | None = None,
        weights: Paths = (),
        compute: Compute | None = None,
    ) -> None:
        self.model = model
        self.info = info
        windows = _windows_of(model)
        if stride_s is not None:
            windows = [replace(one, stride_s=stride_s) for one in windows]
        compute = _one_by_one(compute or Compute())
        self._predictor = Predictor(model, list_paths(weights), compute, stride_s)
        self.windows = LiveWindows(windows, info.channel_labels, info.sampling_rate_hz)
        self._judged: JudgedWindows | None = None
        self._starts_s: list[float] = []
        self._arrived: deque[_Arrival] = deque()
        self.n_dropped = 0
        self._warm_up()

    def arrived(self, stretch: int, stop: int, received_s: float) -> None:
        """Note when the samples of a stretch before `stop` were at hand."""
        self._arrived.append(_Arrival(stretch, stop, received_s))

    def take(self, found: CertainSpikes) -> Iterator[LiveVerdict]:
        """Take spikes, and judge the windows that are complete now."""
        self.windows.add(found)
        yield from self._verdicts()
        self.windows.forget()
        self._forget_arrivals(*self.windows.next_end(found.stretch))

    def finish(self) -> Iterator[LiveVerdict]:
        """Judge the windows that would have waited for others."""
        self.windows.finish()
        yield from self._verdicts()

    def facts(self) -> RecordingFacts:
        """Say of the recording so far what `predict` says of a whole one."""
        return RecordingFacts(
            name=self.info.name,
            sampling_rate_hz=self.info.sampling_rate_hz,
            n_electrodes=len(self.info.channel_labels),
            n_spikes=self.windows.n_spikes,
            duration_s=self.windows.n_samples / self.info.sampling_rate_hz,
        )

    def recording(self, notes: Sequence[str]) -> RecordingPrediction | None:
        """Let the windows so far vote; None where there is none."""
        if self._judged is None:
            return None
        starts = np.array(self._starts_s)
        return let_vote(self.model, self.facts(), starts, self._judged, notes)

    def _verdicts(self) -> Iterator[LiveVerdict]:
        """Judge the windows that are complete."""
        due = list(self.windows.take())
        if due:
            judged = self._predictor.judge(self._features(due))
            for row, windows in enumerate(due):
                yield self._verdict(windows[self.windows.lead], judged.at(slice(row, row + 1)))

    def _features(self, due: Sequence[tuple[LiveWindow, ...]]) -> NDArray[np.float32]:
        """Describe windows, (n, d), views side by side."""
        extractors = self._predictor.extractors
        columns = []
        for view, extractor in enumerate(extractors):
            cuts = self.windows.cut(view, [windows[view] for windows in due])
            columns.append(_rows_of(extractor, cuts, len(due)))
        return np.concatenate(columns, axis=1)

    def _verdict(self, window: LiveWindow, judged: JudgedWindows) -> LiveVerdict:
        """Let a window vote."""
        so_far = judged if self._judged is None else self._judged.followed_by(judged)
        self._judged = so_far
        self._starts_s.append(window.start_s)
        novelty: Novelty = judge_nearness(so_far.nearness, self.facts(), self.model.novelty)
        k = len(self.model.classes)
        leading = self.windows.leading
        return LiveVerdict(
            start_s=window.start_s,
            stop_s=window.start_s + leading.width_s,
            classes=self.model.classes,
            scores=judged.scores[0],
            probabilities=judged.probabilities[0],
            code=int(judged.codes[0]),
            nearness=float(judged.nearness[0]),
            unlike=bool(novelty.unlike[-1]),
            unlike_training=novelty.unlike_training,
            warnings=novelty.warnings,
            counts=self.windows.histogram(window),
            bin_s=leading.bin_ms / 1000,
            n_spikes=self.windows.n_spikes,
            n_dropped=self.n_dropped,
            latency_s=self._latency_s(window),
            votes=np.bincount(so_far.codes, minlength=k),
            mean_probabilities=so_far.probabilities.mean(axis=0),
        )

    def _latency_s(self, window: LiveWindow) -> float:
        """Seconds since the block with the window's last sample was at hand."""
        self._forget_arrivals(window.stretch, self.windows.last_sample(window))
        return time.monotonic() - self._arrived[0].received_s

    def _forget_arrivals(self, stretch: int, sample: int) -> None:
        """Drop what arrived before the block that completes the samples of a stretch up to one."""
        while len(self._arrived) > 1 and self._arrived[0][:2] < (stretch, sample):
            self._arrived.popleft()

    def _warm_up(self) -> None:
        """Compile whatever the first verdict needs, on made-up spikes."""
        labels, rate = self.info.channel_labels, self.info.sampling_rate_hz
        rows = [
            _rows_of(extractor, [_made_up(extractor.windows, labels, rate)], 1)
            for extractor in self._predictor.extractors
            if extractor.windows is not None
        ]
        self._predictor.judge(np.concatenate(rows, axis=1))


class LiveSession:
    """A model that watches a source: a context manager, which closes the source.

    Networks are compiled when it is made, so that the first verdict does not wait for that.

    Parameters
    ----------
    model
        A run's folder, or the ``model`` folder in it.
    source
        Where the voltage comes from.
    stride_s
        Seconds from one verdict to the next; the model's own if None.
    calibration_s
        Seconds of voltage on which thresholds are learnt, where they are not given.
    calibration
        Thresholds and means of each channel.
    weights
        A file or several of backbones' weights, where they have moved since the training.
    opening
        Of `OpeningOptions`, where it differs from that of training.
    compute
        Where and with how much of the machine.

    Raises
    ------
    InputError
        A damaged model; weights other than in training; a model that judges whole recordings, or
        draws on a count axis that is known only at a recording's end; a cut-off that the sampling
        rate does not allow; a calibration of other channels.
    """

    def __init__(
        self,
        model: Path | str,
        source: Source,
        *,
        stride_s: float | None = None,
        calibration_s: float = 30.0,
        calibration: Calibration | None = None,
        weights: Paths = (),
        opening: OpeningOptions | None = None,
        compute: Compute | None = None,
    ) -> None:
        compute = compute or Compute()
        with ExitStack() as opened:
            opened.callback(source.close)
            self.model_path = model_folder(model)
            self.model = read_model(self.model_path)
            self.source = source
            self.info = info = source.info
            self._detector = LiveDetector(
                info.channel_labels,
                info.sampling_rate_hz,
                settings_of(self.model, opening),
                calibration=calibration,
                calibration_s=calibration_s,
                pool=opened.enter_context(thread_pool(compute.n_jobs)),
            )
            self._judge = LiveJudge(self.model, info, stride_s, weights, compute)
            self._open = opened.pop_all()
        self._steps = _Steps(max(1, round(_STEP_S * info.sampling_rate_hz)))
        self._stretch = -1
        self._first = 0  # the place of its first sample
        self._place = 0  # the source's next sample, if nothing is lost
        self._is_calibrated = calibration is not None  # and the caller was told
        self._told_s = -1

    @property
    def calibration(self) -> Calibration | None:
        """Thresholds and means, once they are known."""
        return self._detector.calibration

    @property
    def windows(self) -> Windows:
        """The windows that verdicts are about."""
        return self._judge.windows.leading

    @property
    def duration_s(self) -> float:
        """Seconds of voltage that were searched, without gaps."""
        return self._judge.facts().duration_s

    @property
    def n_dropped(self) -> int:
        """Samples that were lost."""
        return self._judge.n_dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the source; what was found is kept."""
        self._open.close()

    def events(self) -> Iterator[LiveEvent]:
        """Give verdicts, notes and the progress of the calibration as they come.

        They end when the source does. Where the caller ends earlier, `result` is of what came
        until then.

        Raises
        ------
        InputError
            What the source gives cannot be read.
        """
        for item in self.source.read():
            if isinstance(item, Note):
                yield item
            else:
                yield from self._take(item)
        yield from self._push(self._steps.rest())
        yield from self._search(self._detector.end())
        yield from self._judge.finish()

    def run(
        self,
        on_verdict: Callable[[LiveVerdict], object],
        on_note: Callable[[Note], object] | None = None,
    ) -> Predictions:
        """Call a function with each verdict until the source ends; see `result`."""
        for event in self.events():
            if isinstance(event, LiveVerdict):
                on_verdict(event)
            elif isinstance(event, Note) and on_note is not None:
                on_note(event)
        return self.result()

    def result(self) -> Predictions:
        """Give what `predict` would say of the recording so far."""
        notes = [*(self.calibration.notes if self.calibration else ()), *self._lost()]
        recording = self._judge.recording(notes)
        none = f"no window of {self.windows.width_s:g} s without a gap in {self.duration_s:.1f} s"
        return Predictions(
            model=self.model_path,
            classes=self.model.classes,
            calibrated=self.model.inverse_temperature is not None,
            cross_validated=self.model.scores,
            recordings=() if recording is None else (recording,),
            failed=((self.info.name, none),) if recording is None else (),
        )

    def _lost(self) -> list[str]:
        if not self.n_dropped:
            return []
        seconds = self.n_dropped / self.info.sampling_rate_hz
        return [f"{self.n_dropped} samples ({seconds:.3g} s) were lost in gaps"]

    # --- samples

    def _take(self, block: Block) -> Iterator[LiveEvent]:
        """Take a block of the source."""
        n_channels, n = block.samples.shape
        if n_channels != len(self.info.channel_labels):
            raise InputError(
                f"{self.info.name}: a block of {n_channels} channels came, the source has"
                f" {len(self.info.channel_labels)}"
            )
        if block.first_sample < self._place:
            raise InputError(
                f"{self.info.name}: sample {block.first_sample} came again after {self._place - 1}"
            )
        rate = self.info.sampling_rate_hz
        # A sum is finite only where all of it is.
        if not np.isfinite(block.samples.sum(dtype=np.float64)):
            text = f"{n} samples are left out: some of them are no voltage"
            yield Note(at_s=block.first_sample / rate, kind="gap", text=text, n_samples=n)
            return
        if self._stretch < 0 or block.first_sample > self._place or block.begins_s is not None:
            yield from self._start_stretch(block)
        self._place = block.stop_sample
        within = block.stop_sample - self._first
        self._judge.arrived(self._stretch, within, block.received_s)
        yield from self._push(self._steps.add(block.samples))

    def _start_stretch(self, block: Block) -> Iterator[LiveEvent]:
        """Begin anew with a block, behind a gap or at the beginning."""
        yield from self._push(self._steps.rest())
        self._judge.n_dropped += block.first_sample - self._place
        yield from self._search(self._detector.start_stretch())
        self._stretch += 1
        self._first = block.first_sample
        start_s = block.begins_s
        if start_s is None:
            start_s = block.first_sample / self.info.sampling_rate_hz
        self._judge.windows.start_stretch(self._stretch, start_s)

    def _push(self, samples: NDArray[np.float32] | None) -> Iterator[LiveEvent]:
        """Search the next samples of the stretch."""
        if samples is None:
            return
        yield from self._search(self._detector.push(samples))
        if not self._is_calibrated:
            yield from self._progress()

    def _search(self, found: Iterator[CertainSpikes]) -> Iterator[LiveEvent]:
        for one in found:
            # Before the first verdict that rests on it.
            if not self._is_calibrated:
                yield from self._progress()
            yield from self._judge.take(one)

    def _progress(self) -> Iterator[CalibrationProgress]:
        """Say how far the calibration is, once a second, and when it is known."""
        detector, rate = self._detector, self.info.sampling_rate_hz
        known = detector.calibration
        done_s = detector.n_learnt_on / rate
        if known is None and int(done_s) == self._told_s:
            return
        self._told_s, self._is_calibrated = int(done_s), known is not None
        span_s = detector.n_to_learn / rate
        if known is not None:
            done_s = known.span_s
        yield CalibrationProgress(done_s=done_s, span_s=span_s, calibration=known)


@overload
def stream(
    model: Path | str,
    source: Source | Any,
    *,
    stride_s: float | None = ...,
    calibration_s: float = ...,
    calibration: Calibration | None = ...,
    weights: Paths = ...,
    opening: OpeningOptions | None = ...,
    compute: Compute | None = ...,
    speed: Speed | None = ...,
    on_verdict: None = ...,
    on_note: Callable[[Note], object] | None = ...,
) -> Iterator[LiveVerdict]: ...


@overload
def stream(
    model: Path | str,
    source: Source | Any,
    *,
    stride_s: float | None = ...,
    calibration_s: float = ...,
    calibration: Calibration | None = ...,
    weights: Paths = ...,
    opening: OpeningOptions | None = ...,
    compute: Compute | None = ...,
    speed: Speed | None = ...,
    on_verdict: Callable[[LiveVerdict], object],
    on_note: Callable[[Note], object] | None = ...,
) -> Predictions: ...


def stream(
    model: Path | str,
    source: Source | Any,
    *,
    stride_s: float | None = None,
    calibration_s: float = 30.0,
    calibration: Calibration | None = None,
    weights: Paths = (),
    opening: OpeningOptions | None = None,
    compute: Compute | None = None,
    speed: Speed | None = None,
    on_verdict: Callable[[LiveVerdict], object] | None = None,
    on_note: Callable[[Note], object] | None = None,
) -> Iterator[LiveVerdict] | Predictions:
    """Give a verdict for every window of a recording while it goes on.

    ``for verdict in stream(run, source): ...`` has each as soon as its window is full;
    ``stream(run, source, on_verdict=show)`` calls a function with each, and returns the verdict on
    the whole when the source ends.

    Parameters
    ----------
    model
        A run's folder, or the ``model`` folder in it.
    source
        A `toptune.live.Source`, or what `toptune.live.open_source` takes: the path of a recording,
        which is replayed, of a file that grows, or a stream.
    stride_s
        Seconds from one verdict to the next; the model's own if None.
    calibration_s
        Seconds of voltage on which each channel's threshold is learnt, where none is given.
    calibration
        Thresholds and means; `toptune.live.Calibration.of_recording` learns them on a recording.
    weights
        A file or several of backbones' weights, where they have moved since the training.
    opening
        How the recording is opened, where it differs from those of training.
    compute
        Where and with how much of the machine.
    speed
        How fast a recording is replayed: seconds a second, 1 if None, or ``max``.
    on_verdict
        Called with each verdict.
    on_note
        Called with what happened to the source, such as a gap.

    Returns
    -------
    iterator of LiveVerdict, or Predictions
        The verdicts or, with `on_verdict`, what `predict` would say of all that came.

    Raises
    ------
    InputError
        A damaged model, or one that cannot judge live (see `LiveSession`); a source that cannot be
        opened or read.
    """
    session = LiveSession(
        model,
        open_source(source, speed=speed, opening=opening),
        stride_s=stride_s,
        calibration_s=calibration_s,
        calibration=calibration,
        weights=weights,
        opening=opening,
        compute=compute,
    )
    if on_verdict is None:
        return _verdicts_of(session, on_note)
    with session:
        return session.run(on_verdict, on_note)


def _verdicts_of(
    session: LiveSession, on_note: Callable[[Note], object] | None
) -> Iterator[LiveVerdict]:
    with session:
        for event in session.events():
            if isinstance(event, LiveVerdict):
                yield event
            elif isinstance(event, Note) and on_note is not None:
                on_note(event)


class _Arrival(NamedTuple):
    """When samples were at hand."""

    stretch: int
    stop: int  # the sample of the stretch before which all were
    received_s: float


class _Steps:
    """Gathers blocks until there are samples enough to be worth a step."""

    def __init__(self, n_samples: int) -> None:
        self._least = n_samples
        self._waiting: list[NDArray[np.float32]] = []
        self._n_waiting = 0

    def add(self, samples: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Take the next samples; give all that wait, if they are enough."""
        self._waiting.append(samples)
        self._n_waiting += samples.shape[1]
        return self.rest() if self._n_waiting >= self._least else None

    def rest(self) -> NDArray[np.float32] | None:
        """Give all that wait; None if nothing does."""
        waiting, self._waiting, self._n_waiting = self._waiting, [], 0
        return in_one(waiting) if waiting else None


def _windows_of(model: Model) -> list[Windows]:
    """Give the windows of each of a model's views; refuse what needs a whole recording."""
    found = []
    for view in model.views:
        if view.params.windows is None:
            raise InputError(
                f"the model judges whole recordings ({view.name}): verdicts while recording need"
                " one that judges windows, such as `head='falkon'`"
            )
        picture = getattr(view.params, "picture", None)
        if picture is not None and picture.count_axis == "recording":
            raise InputError(
                "the model's pictures have `count_axis='recording'`, which is known only at a"
                " recording's end: fit one on pictures with `count_axis='window'` or a number"
            )
        found.append(view.params.windows)
    return found


def _one_by_one(compute: Compute) -> Compute:
    """Describe single pictures on the CPU: they come one by one, and features are the same."""
    if compute.batch_size is None and torch_device(compute.device) == "cpu":
        return replace(compute, batch_size=1)
    return compute


def _rows_of(extractor: FeatureExtractor, cuts: Sequence[Cut], n_rows: int) -> NDArray[np.float32]:
    """Describe windows of cuts, (n, d)."""
    with one_torch_thread():
        return np.concatenate(list(extractor.extract_variants(cuts[0].trains, cuts, n_rows)))


def _made_up(windows: Windows, channel_labels: tuple[str, ...], rate_hz: float) -> Cut:
    """Make up a window with some spikes on every channel."""
    n = math.ceil((windows.width_s + windows.bin_ms / 1000) * rate_hz)
    n_channels = len(channel_labels)
    sample = np.linspace(0, n - 1, 20 * n_channels).astype(np.int64)
    channel = (np.arange(len(sample)) % n_channels).astype(np.int32)
    trains = SpikeTrains(
        spikes=sort_spikes(sample, channel, np.ones(len(sample), np.float32)),
        channel_labels=channel_labels,
        sampling_rate_hz=rate_hz,
        segments=(Segment(0, n, 0.0),),
        threshold_uv=np.full(n_channels, np.nan, np.float32),
    )
    return Cut(trains, [0])

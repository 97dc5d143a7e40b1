"""A trained model with its backbones, ready to judge any number of recordings by their spikes.

The backbones have the very weights, by sha256, that described the training recordings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, InputErrors
from toptune.evaluation.scores import majority
from toptune.features.extractor import (
    FeatureExtractor,
    FeatureParams,
    FeatureRows,
    StageReporter,
    start_features,
    unwatched,
)
from toptune.features.picture_features import BackboneIdentity, engine_for
from toptune.features.recordings import (
    Preflight,
    SpikeFinder,
    check_recordings,
    drawers_of,
    one_line,
)
from toptune.features.table import leading_kind, match_windows
from toptune.machine.fingerprint import file_sha256
from toptune.machine.installation import require_networks
from toptune.machine.remote import as_path
from toptune.params import Backbone, Compute, OpeningOptions, SpikeSettings
from toptune.recordings.conversion import object_name
from toptune.recordings.objects import NamedRecording, is_recording_object
from toptune.recordings.trains import RecordingFacts, Segment, SpikeTrains, WeightsSource
from toptune.recordings.wells import well_name
from toptune.runs.model import Model, ModelView
from toptune.runs.novelty import judge_nearness
from toptune.runs.verdicts import SEEN, RecordingPrediction
from toptune.spikes.finding import Header

if TYPE_CHECKING:
    from toptune.backbones.engine import FeatureEngine
    from toptune.backbones.loading import LoadedBackbone
    from toptune.pictures.drawers import Drawers

Paths = Path | str | Sequence[Path | str]
#: Paths, objects that `open_recording` takes, or a mapping from names to either.
Recordings: TypeAlias = Any


def list_paths(paths: Paths) -> list[Path]:
    """Give a list of one path, too: the letters of a single name are no paths."""
    return [as_path(one) for one in ([paths] if isinstance(paths, Path | str) else paths)]


# --- recordings


def list_recordings(recordings: Recordings) -> list[Path | NamedRecording]:
    """Name recordings that are paths or objects: one, several, or several by name.

    Objects get different names, by their kind and what they are called.
    """
    if isinstance(recordings, Mapping):
        return [NamedRecording(_path_of(one), str(name)) for name, one in recordings.items()]
    several = isinstance(recordings, Iterable) and not isinstance(recordings, PathLike | str)
    # Signals of neo are arrays.
    if not several or isinstance(recordings, np.ndarray) or is_recording_object(recordings):
        recordings = [recordings]
    named: list[Path | NamedRecording] = []
    taken: Counter[str] = Counter()
    for one in recordings:
        if isinstance(one, PathLike | str):
            named.append(as_path(one))
            continue
        name = object_name(one)
        taken[name] += 1
        again = f" ({taken[name]})" if taken[name] > 1 else ""
        named.append(NamedRecording(one, f"{name}{again}"))
    return named


def _identity(recording: Path | NamedRecording) -> Path | int:
    """Tell by what a recording is the same as another."""
    source = recording.source if isinstance(recording, NamedRecording) else recording
    return as_path(source).resolve() if isinstance(source, PathLike | str) else id(source)


def _path_of(source: Any) -> Any:
    return as_path(source) if isinstance(source, PathLike | str) else source


def settings_of(model: Model, opening: OpeningOptions | None) -> SpikeSettings:
    """Take the training's settings, but for what is only about how files are opened."""
    given = (opening or OpeningOptions()).opening
    usual = OpeningOptions().opening
    return replace(model.spikes, **{k: v for k, v in given.items() if v != usual[k]})


def check_named(
    paths: Sequence[Path | NamedRecording],
    model: Model,
    settings: SpikeSettings,
    *,
    keep_going: bool = False,
) -> Preflight:
    """Open all recordings that are to be judged, before any work.

    Raises
    ------
    InputError
        There is none, or one is named twice; or some are refused and the others not to be judged.
    """
    if not paths:
        raise InputError("there is no recording to predict: name at least one")
    if len({_identity(path) for path in paths}) < len(paths):
        raise InputError("a recording is named twice: name each once")

    def require(name: str, header: Header) -> None:
        require_length(name, header.segments, header.sampling_rate_hz, model)

    opened = check_recordings({str(path): (path, settings) for path in paths}, require)
    if opened.refused and not keep_going:
        raise InputErrors([one_line(error) for error in opened.refused.values()])
    return opened


@dataclass(frozen=True, eq=False)
class FoundRecording:
    """A recording whose spikes were found."""

    name: str  # as it was named, for the result and for messages
    drawers: Drawers  # its spikes, found with the model's settings
    notes: tuple[str, ...] = ()  # warnings that come before the model's own
    sha256: str | None = None  # of the recording's bytes; None where it is no file

    @property
    def trains(self) -> SpikeTrains:
        """Its spikes."""
        return self.drawers.trains

    @classmethod
    def of(cls, name: str, trains: SpikeTrains) -> FoundRecording:
        """Name spikes that are in memory."""
        from toptune.pictures.drawers import Drawers

        return cls(name, Drawers(trains))


def find_recording(
    path: Path | NamedRecording, finder: SpikeFinder, model: Model, stage: StageReporter
) -> FoundRecording:
    """Open a recording and find its spikes; a note says if the model was trained on it."""
    found = finder.find(path, stage)
    source = path.source if isinstance(path, NamedRecording) else path
    sha256 = file_sha256(as_path(source)) if isinstance(source, PathLike | str) else None
    seen = (SEEN,) if (sha256, well_name(finder.settings.well)) in model.training_inputs else ()
    return FoundRecording(str(path), drawers_of(found), (*seen, *found.notes), sha256)


# --- windows and verdicts


class MatchedWindows(NamedTuple):
    """Which windows of a recording make up the head's rows."""

    rows: tuple[NDArray[np.int64], ...]  # for each view, its window in each row, (n,)
    lead: int  # the view with the widest windows
    start_s: NDArray[np.float64]  # (n,): of the leading view's windows


class JudgedWindows(NamedTuple):
    """What a model says of windows, one by one."""

    scores: NDArray[np.float64]  # (n, k)
    probabilities: NDArray[np.float64]  # (n, k)
    codes: NDArray[np.int64]  # (n,): the class of the largest score
    nearness: NDArray[np.float64]  # (n,): to the windows of training

    def at(self, rows: slice) -> JudgedWindows:
        """Take some of the windows."""
        return JudgedWindows._make(column[rows] for column in self)

    def followed_by(self, others: JudgedWindows) -> JudgedWindows:
        """Put other windows behind these."""
        pairs = zip(self, others, strict=True)
        return JudgedWindows._make(np.concatenate(pair) for pair in pairs)


class Predictor:
    """A model and its backbones, ready for any number of recordings.

    `weights` are files of backbones' weights that have moved since the training. `extractors` are
    those of the model's views, with windows every `stride_s` seconds where that is given. Weights
    that cannot be found, or are others than in training, are an InputError.
    """

    def __init__(
        self,
        model: Model,
        weights: Sequence[Path] = (),
        compute: Compute | None = None,
        stride_s: float | None = None,
    ) -> None:
        self.model = model
        engines = _Engines(model.views, weights, compute or Compute())
        self.extractors = engines.extractors(stride_s)

    def features(self, recording: FoundRecording, stage: StageReporter = unwatched) -> FeatureRows:
        """Compute a recording's features as those of training were, views side by side."""
        matched = self.match(recording.name, recording.trains)
        pending = start_features(recording.drawers, self.extractors, stage)
        parts = [one.result().features for one in pending]
        columns = [part[rows] for part, rows in zip(parts, matched.rows, strict=True)]
        return FeatureRows(np.concatenate(columns, axis=1), matched.start_s)

    def match(self, name: str, trains: SpikeTrains) -> MatchedWindows:
        """Place the windows that the head gets rows of; an InputError where none fits."""
        from toptune.recordings.windows import window_starts

        require_length(name, trains.segments, trains.sampling_rate_hz, self.model)
        windows = [e.windows for e in self.extractors if e.windows is not None]
        if not windows:  # one row of burst parameters, of the whole recording
            start_s = np.array([trains.segments[0].start_s])
            return MatchedWindows((np.zeros(1, dtype=np.int64),), 0, start_s)
        starts = [window_starts(trains, each).start_s for each in windows]
        widths, strides = [w.width_s for w in windows], [w.stride_s for w in windows]
        rows = match_windows(starts, widths, strides)
        lead = leading_kind(widths)
        if not len(rows[lead]):
            raise InputError(f"{name}: the model's views have no window in common in it")
        return MatchedWindows(rows, lead, starts[lead][rows[lead]])

    def judge(self, features: NDArray[np.float32]) -> JudgedWindows:
        """Judge windows, (n, d), each by itself."""
        model = self.model
        scores = model.class_scores(features)
        return JudgedWindows(
            scores=scores,
            probabilities=model.probabilities(features, scores),
            codes=scores.argmax(axis=1),
            nearness=model.novelty.nearness_of(features),
        )

    def predict(
        self, recording: FoundRecording, stage: StageReporter = unwatched
    ) -> RecordingPrediction:
        """Judge a recording by its spikes: let its windows vote."""
        features, start_s = self.features(recording, stage)
        facts = RecordingFacts.of(recording.name, recording.trains)
        judged = self.judge(features)
        return let_vote(self.model, facts, start_s, judged, recording.notes, recording.sha256)


def let_vote(
    model: Model,
    facts: RecordingFacts,
    start_s: NDArray[np.float64],
    judged: JudgedWindows,
    notes: Sequence[str] = (),
    sha256: str | None = None,
) -> RecordingPrediction:
    """Let the windows of a recording, which start at `start_s` (n,), give its verdict."""
    votes = np.bincount(judged.codes, minlength=len(model.classes))
    mean = judged.probabilities.mean(axis=0)
    novelty = judge_nearness(judged.nearness, facts, model.novelty)
    return RecordingPrediction(
        facts=facts,
        classes=model.classes,
        start_s=start_s,
        scores=judged.scores,
        probabilities=judged.probabilities,
        codes=judged.codes,
        votes=votes,
        mean_probabilities=mean,
        code=majority(votes, mean),
        novelty=novelty,
        warnings=(*notes, *novelty.warnings),
        sha256=sha256,
    )


def require_length(
    name: str, segments: Sequence[Segment], sampling_rate_hz: float, model: Model
) -> None:
    """Refuse a recording without a stretch as long as the widest window of a model."""
    longest_s = max((s.n_samples for s in segments), default=0) / sampling_rate_hz
    windows = [view.params.windows for view in model.views]
    width_s = max((w.width_s for w in windows if w is not None), default=0)
    if not longest_s:
        raise InputError(f"{name} holds no samples")
    # Half a sample's tolerance: the number of samples is whole, the quotient rounded.
    if longest_s < width_s - 0.5 / sampling_rate_hz:
        raise InputError(
            f"{name} lasts {longest_s:.1f} s without a gap, less than the model's windows of"
            f" {width_s:g} s"
        )


# --- backbones


class _Engines:
    """The backbones of a model's views, each loaded once."""

    def __init__(
        self, views: Sequence[ModelView], weights: Sequence[Path], compute: Compute
    ) -> None:
        from toptune.machine.device import torch_device

        self._views = views
        self._given = _by_sha256(views, weights)
        self._compute = compute
        self._device = torch_device(compute.device)
        self._made: dict[BackboneIdentity, FeatureEngine] = {}
        if any(view.params.backbone is not None for view in views):
            require_networks("a model of pictures")
            from toptune.backbones.engine import resolve_precision

            resolve_precision(compute.precision, self._device)

    def extractors(self, stride_s: float | None) -> tuple[FeatureExtractor, ...]:
        """Make the extractor of each view, with its own stride if none is given."""
        return tuple(
            _with_stride(view.params, stride_s).extractor(
                partial(self._engine, source=view.weights)
            )
            for view in self._views
        )

    def _engine(self, identity: BackboneIdentity, source: WeightsSource | None) -> FeatureEngine:
        if identity not in self._made:
            loaded = _load(_find_weights(identity, source, self._given), identity)
            self._made[identity] = engine_for(loaded, self._compute, self._device)
        return self._made[identity]


def _with_stride(params: FeatureParams, stride_s: float | None) -> FeatureParams:
    """Let windows follow each other at another stride; whole recordings stay whole."""
    windows = params.windows
    if stride_s is None or windows is None:
        return params
    return params.with_windows(replace(windows, stride_s=stride_s))


def _by_sha256(views: Sequence[ModelView], weights: Sequence[Path]) -> dict[str, Path]:
    """Tell the given files by content, and refuse those of no view."""
    backbones = [view.params.backbone for view in views]
    needed = {backbone.sha256: backbone for backbone in backbones if backbone is not None}
    given: dict[str, Path] = {}
    problems = []
    for path in weights:
        if not path.is_file():
            problems.append(f"weights file {path} does not exist")
            continue
        sha256 = file_sha256(path)
        given[sha256] = path
        if sha256 not in needed:
            wanted = " or ".join(map(_describe, needed.values())) or "no weights"
            problems.append(f"{path} (sha256 {sha256[:16]}) is not what the model needs: {wanted}")
    if problems:
        raise InputErrors(problems)
    return given


def _describe(identity: BackboneIdentity) -> str:
    return f"{identity.name} with {identity.weights} weights (sha256 {identity.sha256[:16]})"


def _find_weights(
    identity: BackboneIdentity, source: WeightsSource | None, given: dict[str, Path]
) -> Backbone:
    """Say where a view's weights are to be taken from."""
    if identity.sha256 in given:
        return Backbone(name=identity.name, weights=str(given[identity.sha256]))
    if identity.weights == "imagenet":
        return Backbone(name=identity.name, weights="imagenet")
    if identity.weights == "random":
        if source is None or source.seed is None:
            raise InputError(
                f"the model does not know the seed of {_describe(identity)}: extract into a new"
                " store and fit again"
            )
        return Backbone(name=identity.name, weights="random", seed=source.seed)
    if source is None or source.path is None or not Path(source.path).is_file():
        place = "an unknown place" if source is None or source.path is None else source.path
        raise InputError(
            f"the model needs {_describe(identity)}, not found at {place}: name the file by"
            " `weights`"
        )
    return Backbone(name=identity.name, weights=source.path)


def _load(params: Backbone, wanted: BackboneIdentity) -> LoadedBackbone:
    from toptune.backbones.loading import load_backbone

    loaded = load_backbone(params)
    here = BackboneIdentity.of(loaded, params)
    if here.sha256 != wanted.sha256:
        raise InputError(
            f"the model needs {_describe(wanted)}, but {params.weights} is now sha256"
            f" {here.sha256[:16]}: name the right file by `weights`"
        )
    for name in ("mean", "std", "input_size"):
        if getattr(here, name) != getattr(wanted, name):
            raise InputError(
                f"{wanted.name} is here used with {name} {getattr(here, name)}, in training with"
                f" {getattr(wanted, name)}: use the torchvision or timm of the training"
            )
    return loaded

"""A trained model with its backbones, ready to judge any number of recordings by their spikes.

A model and, where weights have moved, their files enter. For the spikes of a recording a verdict
leaves, with every window's scores and probabilities. The backbones have the very weights, by
sha256, that described the training recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, InputErrors
from toptune.evaluation.scores import majority
from toptune.features.describing import (
    BackboneIdentity,
    Described,
    Describer,
    LazyEngine,
    ViewParams,
    describe_views,
)
from toptune.features.parameter_views import ParameterDescriber, ParameterParams
from toptune.features.table import leading_kind, match_windows
from toptune.machine.fingerprint import file_sha256
from toptune.machine.progress import Silent
from toptune.params import Backbone
from toptune.recordings.facts import RecordingFacts, WeightsSource
from toptune.recordings.trains import Segment, SpikeTrains
from toptune.runs.model import Model, ModelView
from toptune.runs.novelty import Novelty, judge
from toptune.runs.verdicts import RecordingPrediction

if TYPE_CHECKING:
    from toptune.backbones.engine import Precision
    from toptune.backbones.loading import LoadedBackbone

_unwatched = Silent().stage


class Matched(NamedTuple):
    """Which windows of a recording make up the head's rows.

    Attributes
    ----------
    rows : tuple of (n,) int64
        For each view, its window in each row.
    lead : int
        The view with the widest windows.
    start_s : (n,) float64
        Of the leading view's windows.
    """

    rows: tuple[NDArray[np.int64], ...]
    lead: int
    start_s: NDArray[np.float64]


class Predictor:
    """A model and its backbones, ready for any number of recordings.

    Parameters
    ----------
    model
        As read.
    weights, device, precision, n_jobs, batch_size
        As for `predict`.

    Attributes
    ----------
    model
        As given.
    describers
        Of the model's views.
    """

    def __init__(
        self,
        model: Model,
        weights: Sequence[Path] = (),
        *,
        device: str = "auto",
        precision: Precision = "auto",
        n_jobs: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        from toptune.machine.device import torch_device

        self.model = model
        self.describers = describers(
            model.views, weights, torch_device(device), batch_size, n_jobs, precision
        )

    def features(
        self, name: str, trains: SpikeTrains, stage: Callable[[str, int, int], None]
    ) -> Described:
        """Describe a recording's windows as the training windows were, views side by side.

        Raises
        ------
        InputError
            No window fits into the recording.
        """
        matched = self.match(name, trains)
        parts = [part.features for part in _describe(trains, self.describers, stage)]
        columns = [part[rows] for part, rows in zip(parts, matched.rows, strict=True)]
        return Described(np.concatenate(columns, axis=1), matched.start_s)

    def match(self, name: str, trains: SpikeTrains) -> Matched:
        """Place the windows that the head gets rows of; spikes do not matter.

        Raises
        ------
        InputError
            No window fits into the recording.
        """
        from toptune.recordings.windows import window_starts

        require_length(name, trains.segments, trains.sampling_rate_hz, self.model)
        windows = [d.windows for d in self.describers if d.windows is not None]
        if not windows:  # one row of burst parameters, of the whole recording
            start_s = np.array([trains.segments[0].start_s])
            return Matched((np.zeros(1, dtype=np.int64),), 0, start_s)
        starts = [window_starts(trains, each).start_s for each in windows]
        widths, strides = [w.width_s for w in windows], [w.stride_s for w in windows]
        rows = match_windows(starts, widths, strides)
        lead = leading_kind(widths)
        if not len(rows[lead]):
            raise InputError(f"{name}: the model's views have no window in common in it")
        return Matched(rows, lead, starts[lead][rows[lead]])

    def predict(
        self,
        name: str,
        trains: SpikeTrains,
        notes: Sequence[str] = (),
        stage: Callable[[str, int, int], None] = _unwatched,
    ) -> RecordingPrediction:
        """Judge a recording by its spikes.

        Parameters
        ----------
        name
            Of the recording, for the result and for messages.
        trains
            Its spikes, found with the model's settings.
        notes
            Warnings that come before the model's own.
        stage
            Watches.
        """
        features, start_s = self.features(name, trains, stage)
        facts = RecordingFacts.of(name, trains)
        return verdict_of(self.model, facts, features, start_s, notes)


def verdict_of(
    model: Model,
    facts: RecordingFacts,
    features: NDArray[np.float32],
    start_s: NDArray[np.float64],
    notes: Sequence[str] = (),
) -> RecordingPrediction:
    """Let a recording's windows vote.

    Parameters
    ----------
    model : Model
    facts : RecordingFacts
        Of the recording.
    features : (n, d) float32
        Of its windows, at least one.
    start_s : (n,) float64
    notes : sequence of str
        Warnings that come before the model's own.
    """
    scores = model.class_scores(features)
    codes = scores.argmax(axis=1)
    probabilities = model.probabilities(features)
    votes = np.bincount(codes, minlength=len(model.classes))
    mean = probabilities.mean(axis=0)
    novelty: Novelty = judge(features, facts, model.novelty)
    return RecordingPrediction(
        facts=facts,
        classes=model.classes,
        start_s=start_s,
        scores=scores,
        probabilities=probabilities,
        codes=codes,
        votes=votes,
        mean_probabilities=mean,
        code=majority(votes, mean),
        novelty=novelty,
        warnings=(*notes, *novelty.warnings),
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


def _describe(
    trains: SpikeTrains,
    describers: Sequence[Describer | ParameterDescriber],
    stage: Callable[[str, int, int], None],
) -> list[Described]:
    """Describe all views that are pictures in one pass, and measure the others."""
    pictures = [describer for describer in describers if isinstance(describer, Describer)]
    drawn = iter(describe_views(trains, pictures, stage))
    return [
        next(drawn) if isinstance(describer, Describer) else describer.describe(trains, stage)
        for describer in describers
    ]


def describers(
    views: Sequence[ModelView],
    weights: Sequence[Path],
    device: str,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    precision: Precision = "auto",
) -> tuple[Describer | ParameterDescriber, ...]:
    """Make the describer of each view; views of one backbone share it, parameters need none.

    Parameters
    ----------
    views
        Of a model.
    weights
        Files to be taken in place of those whose paths the model knows, each where its sha256
        belongs.
    device, batch_size, n_jobs, precision
        As for `FeatureEngine`.

    Raises
    ------
    InputError
        A file that is no view's, weights that cannot be found, or others than in training.
    """
    given = _by_sha256(views, weights)
    import torch

    from toptune.backbones.engine import resolve_precision

    resolve_precision(precision, torch.device(device))
    engines: dict[BackboneIdentity, LazyEngine] = {}
    made: list[Describer | ParameterDescriber] = []
    for view in views:
        params = view.params
        if isinstance(params, ParameterParams):
            made.append(ParameterDescriber(params))
            continue
        identity = params.backbone
        if identity not in engines:
            source = _params(params, view.weights, given)
            loaded = _load(source, identity)
            engines[identity] = LazyEngine(loaded, device, batch_size, n_jobs, precision)
        made.append(Describer(params.windows, params.picture, engines[identity]))
    return tuple(made)


def _by_sha256(views: Sequence[ModelView], weights: Sequence[Path]) -> dict[str, Path]:
    """Tell the given files by content, and refuse those of no view."""
    backbones = [view.params.backbone for view in views if isinstance(view.params, ViewParams)]
    needed = {backbone.sha256: backbone for backbone in backbones}
    given: dict[str, Path] = {}
    problems = []
    for path in weights:
        if not path.is_file():
            problems.append(f"weights file {path} does not exist")
            continue
        sha256 = file_sha256(path)
        given[sha256] = path
        if sha256 not in needed:
            wanted = " or ".join(_told(identity) for identity in needed.values()) or "no weights"
            problems.append(f"{path} (sha256 {sha256[:16]}) is not what the model needs: {wanted}")
    if problems:
        raise InputErrors(problems)
    return given


def _told(identity: BackboneIdentity) -> str:
    return f"{identity.name} with {identity.weights} weights (sha256 {identity.sha256[:16]})"


def _params(params: ViewParams, source: WeightsSource | None, given: dict[str, Path]) -> Backbone:
    """Where to take a view's weights from."""
    identity = params.backbone
    if identity.sha256 in given:
        return Backbone(name=identity.name, weights=str(given[identity.sha256]))
    if identity.weights == "imagenet":
        return Backbone(name=identity.name, weights="imagenet")
    if identity.weights == "random":
        if source is None or source.seed is None:
            raise InputError(
                f"the model does not know the seed of {_told(identity)}: extract into a new store"
                " and fit again"
            )
        return Backbone(name=identity.name, weights="random", seed=source.seed)
    if source is None or source.path is None or not Path(source.path).is_file():
        place = "an unknown place" if source is None or source.path is None else source.path
        raise InputError(
            f"the model needs {_told(identity)}, not found at {place}: give the file by --weights"
        )
    return Backbone(name=identity.name, weights=source.path)


def _load(params: Backbone, wanted: BackboneIdentity) -> LoadedBackbone:
    from toptune.backbones.loading import load_backbone

    loaded = load_backbone(params)
    here = BackboneIdentity.of(loaded, params)
    if here.sha256 != wanted.sha256:
        raise InputError(
            f"the model needs {_told(wanted)}, but {params.weights} is now sha256"
            f" {here.sha256[:16]}: give the right file by --weights"
        )
    for name in ("mean", "std", "input_size"):
        if getattr(here, name) != getattr(wanted, name):
            raise InputError(
                f"{wanted.name} is here used with {name} {getattr(here, name)}, in training with"
                f" {getattr(wanted, name)}: use the torchvision or timm of the training"
            )
    return loaded

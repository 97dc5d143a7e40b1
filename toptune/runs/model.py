"""A trained classifier with all that is needed to use it on another recording.

It is a folder of two files, without pickle: model.safetensors (what was learnt, and reference rows
for novelty) and model.json (everything else). Reading checks the tensors against the sha256 in
model.json, and every name and value in model.json.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from toptune.errors import InputError, ToptuneError
from toptune.features.extractor import FeatureParams, read_feature_params
from toptune.features.table import FeatureTable
from toptune.heads.calibration import calibrated
from toptune.heads.catalogue import head_of
from toptune.heads.rows import in_equal_blocks
from toptune.params import SpikeSettings
from toptune.recordings.trains import TrainingFacts, WeightsSource
from toptune.recordings.wells import well_name
from toptune.runs.folder import MODEL_FILE, model_folder, plain, write_json
from toptune.runs.novelty import NoveltyLimits, training_limits

FORMAT = 2
_KIND = "toptune model"
# model.json of a thousand recordings takes less than a megabyte.
_MOST_BYTES = 16 * 2**20
_HEAD, _REFERENCE = "head.", "novelty.reference"
# Scores that every report of a verdict shows.
_SCORES = ("n_devices", "device_accuracy", "device_accuracy_ci95", "chance")


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """One of the feature sets that a model's rows hold side by side."""

    name: str  # one line for people
    n_features: int  # columns
    params: FeatureParams  # windows, picture and backbone, or what burst parameters were measured
    # Where the backbone's weights came from; None: nobody wrote it down
    weights: WeightsSource | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """A fitted classifier and what it was made of.

    Raises
    ------
    InputError, KeyError, TypeError
        The parts do not fit together.
    """

    head: str  # its name
    estimator: Any  # fitted; its classes are strings
    # Of the table it was trained on, as `FeatureStore.table` and `join_tables` give it: settings of
    # the spikes, the views, the inputs
    provenance: dict[str, Any]
    weights: tuple[WeightsSource | None, ...]  # of each view's backbone
    # Probabilities are ``softmax(inverse_temperature x scores)``; None where they were not
    # calibrated, and are the classifier's own
    inverse_temperature: float | None
    scores: dict[str, Any]  # cross-validated, as in metrics.json
    novelty: NoveltyLimits  # what the training recordings have in common
    # Of the toptune that trained it
    toptune_version: str = field(default_factory=lambda: version("toptune"))

    def __post_init__(self) -> None:
        _ = self.spikes, self.training_inputs
        of_views = sum(view.n_features for view in self.views)
        of_head, of_rows = self.estimator.n_features_in_, self.novelty.reference.shape[1]
        if not of_views == of_head == of_rows:
            raise InputError(
                f"the classifier has {of_head} features, its views {of_views}, reference rows"
                f" {of_rows}"
            )
        a = self.inverse_temperature
        if a is not None and not (math.isfinite(a) and a > 0):
            raise InputError(f"inverse_temperature must be above 0, got {a!r}")
        missing = [name for name in _SCORES if name not in self.scores]
        if missing:
            raise InputError(f"scores have no {missing[0]!r}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the scores' columns."""
        return tuple(str(name) for name in self.estimator.classes_)

    @cached_property
    def spikes(self) -> SpikeSettings:
        """How the spikes of the training recordings were found."""
        return SpikeSettings.from_json(self.provenance["settings"])

    @cached_property
    def views(self) -> tuple[ModelView, ...]:
        """The feature sets side by side in the classifier's rows, from left to right."""
        listed = zip(self.provenance["views"], self.weights, strict=True)
        return tuple(
            ModelView(
                name=view["name"],
                n_features=view["n_columns"],
                params=read_feature_params(view["params"]),
                weights=source,
            )
            for view, source in listed
        )

    @cached_property
    def training_inputs(self) -> frozenset[tuple[str, str | None]]:
        """sha256 of the files and folders it was trained on."""
        common = self.spikes.well
        return frozenset(
            (read["sha256"], well_name(read.get("opening", {}).get("well", common)))
            for read in self.provenance["inputs"].values()
        )

    @cached_property
    def _scorer(self) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        made: Callable[[NDArray[np.float32]], NDArray[np.float64]] = (
            self.estimator.scorer()
            if hasattr(self.estimator, "scorer")
            else self.estimator.class_scores
        )
        return made

    def class_scores(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """One score a class of each row, (n, k); they do not depend on the other rows."""
        return in_equal_blocks(self._scorer, features)

    def probabilities(
        self, features: NDArray[np.float32], scores: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Probabilities (n, k), calibrated where the model is; rows sum to one.

        `scores` are those of `class_scores`, where they are known already.
        """
        scores = self.class_scores(features) if scores is None else scores
        if self.inverse_temperature is not None:
            return calibrated(scores, self.inverse_temperature)
        if hasattr(self.estimator, "probabilities_of"):
            shares: NDArray[np.float64] = self.estimator.probabilities_of(scores)
            return shares
        return in_equal_blocks(self.estimator.predict_proba, features)


def trained_model(
    head: str,
    estimator: Any,
    table: FeatureTable,
    facts: TrainingFacts,
    *,
    left_out: NDArray[Any],
    scores: Mapping[str, Any],
    inverse_temperature: float | None = None,
) -> Model:
    """Put together what `write_model` writes, and find the limits of novelty.

    `estimator` is fitted on all of the table's features. `left_out`, (n_windows,) str, is what was
    left out together in cross-validation: the device, as a rule. `scores` are as in metrics.json,
    `inverse_temperature` is from `heads.calibration.fit_inverse_temperature`.

    Raises
    ------
    ToptuneError
        The table does not say what its features are, so nothing could be predicted with them.
    """
    if not table.views or "settings" not in table.provenance:
        raise ToptuneError("the table does not say what made its features")
    nearness = head_of(head).nearness(estimator, table.view_sizes)
    return Model(
        head=head,
        estimator=estimator,
        provenance=table.provenance,
        weights=facts.weights,
        inverse_temperature=inverse_temperature,
        scores=dict(scores),
        novelty=training_limits(table.features, left_out, facts.recordings, nearness),
    )


def write_model(folder: Path, model: Model) -> None:
    """Write model.safetensors and model.json into a folder that is made here."""
    folder.mkdir()
    learnt = model.estimator.to_tensors()
    tensors = {f"{_HEAD}{name}": np.ascontiguousarray(value) for name, value in learnt.items()}
    tensors[_REFERENCE] = np.ascontiguousarray(model.novelty.reference)
    content = save(tensors)
    (folder / "model.safetensors").write_bytes(content)
    description = {
        "kind": _KIND,
        "format": FORMAT,
        "toptune_version": model.toptune_version,
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
        "head": {
            "name": model.head,
            "params": plain(model.estimator.get_params()),
            "classes": list(model.classes),
        },
        "inverse_temperature": model.inverse_temperature,
        "scores": model.scores,
        "novelty": model.novelty.to_json(),
        "weights": [None if source is None else asdict(source) for source in model.weights],
        "provenance": model.provenance,
    }
    write_json(folder / MODEL_FILE, description)


def read_model(folder: Path | str) -> Model:
    """Read what `write_model` wrote, from its folder or that of the run it is in.

    Raises
    ------
    InputError
        No model, one of another format, or files that are damaged or do not belong together.
    """
    folder = model_folder(folder)
    place = folder / MODEL_FILE
    description = _read_description(folder)
    try:
        tensors = _read_tensors(folder, description["tensors_sha256"])
        return _parse(description, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, InputError) and str(folder) in str(error):
            raise
        cause = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        text = " ".join(cause.split())[:300]
        raise InputError(f"{place} is damaged: {text}: copy the run again, or fit again") from None


def load_model(folder: Path | str) -> Any:
    """Read the fitted classifier of a run; it predicts as when it was written."""
    return read_model(folder).estimator


def _read_description(folder: Path) -> dict[str, Any]:
    place = folder / MODEL_FILE
    try:
        if place.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{place} is longer than {_MOST_BYTES} bytes")
        description = json.loads(place.read_text("utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{folder} holds no model: {error}: name a run, or its model folder"
        ) from None
    if not isinstance(description, dict) or description.get("kind") != _KIND:
        raise InputError(f"{place} does not describe a model of toptune")
    found = description.get("format")
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        way_out = "use a newer toptune" if newer else "fit again"
        raise InputError(
            f"{folder} has model format {found}, this version reads {FORMAT}: {way_out}"
        )
    return description


def _no_number(text: str) -> float:
    raise ValueError(f"{text} in model.json")


def _read_tensors(folder: Path, sha256: str) -> dict[str, NDArray[Any]]:
    place = folder / "model.safetensors"
    try:
        content = place.read_bytes()
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"{place} is damaged: its sha256 is not model.json's: copy the run again, or fit again"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise InputError(f"{place} cannot be read: {error}") from None


def _parse(description: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Model:
    head = description["head"]
    params = {k: tuple(v) if isinstance(v, list) else v for k, v in head["params"].items()}
    classes = np.array(head["classes"], dtype=str)
    if len(set(head["classes"])) < 2 or len(set(head["classes"])) != len(classes):
        raise InputError(f"a model needs two classes or more, all different, got {head['classes']}")
    learnt = {k.removeprefix(_HEAD): v for k, v in tensors.items() if k.startswith(_HEAD)}
    sources = description["weights"]
    return Model(
        head=head["name"],
        estimator=head_of(head["name"]).read(learnt, params, classes),
        provenance=description["provenance"],
        weights=tuple(None if source is None else WeightsSource(**source) for source in sources),
        inverse_temperature=description["inverse_temperature"],
        scores=description["scores"],
        novelty=NoveltyLimits.from_json(description["novelty"], tensors[_REFERENCE]),
        toptune_version=description["toptune_version"],
    )

"""The backbones that a model was trained with, had again for other recordings.

What enters: a model's views and, where files have moved, files of weights. What leaves: describers
whose networks have the very weights, by sha256, that described the training recordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toptune.errors import InputError, InputErrors
from toptune.features.describing import BackboneIdentity, Describer, LazyEngine, ViewParams
from toptune.features.parameter_views import ParameterDescriber, ParameterParams
from toptune.machine.fingerprint import file_sha256
from toptune.params import Backbone
from toptune.recordings.facts import WeightsSource
from toptune.runs.model import ModelView

if TYPE_CHECKING:
    from toptune.backbones.engine import Precision
    from toptune.backbones.loading import LoadedBackbone


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

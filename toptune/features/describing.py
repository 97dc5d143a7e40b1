"""From spikes to features of one kind or of several: one way, for extraction and for prediction.

`SpikeTrains` enter with views, each of window and picture parameters and a backbone. Features
(windows, d) float32 leave for each, with the windows' starts in seconds since the recording's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import Backbone, Picture, Windows
from toptune.recordings.trains import SpikeTrains

if TYPE_CHECKING:
    import torch

    from toptune.backbones.engine import Computed, FeatureEngine, Precision, Underway
    from toptune.backbones.loading import LoadedBackbone
    from toptune.pictures.drawer_cuda import ResidentSpikes


@dataclass(frozen=True, kw_only=True)
class BackboneIdentity:
    """Which network described the pictures: equal identity, equal features.

    Parameters
    ----------
    name
        As asked for.
    weights
        ``imagenet``, ``random`` or a file's name.
    sha256
        Of the weights.
    mean, std
        Normalisation of the three colour channels.
    input_size
        Side of the pictures in pixels.
    """

    name: str
    weights: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int

    @classmethod
    def of(cls, loaded: LoadedBackbone, params: Backbone) -> BackboneIdentity:
        """Tell a loaded network; a file goes by its name and sha256, wherever it lies."""
        return cls(
            name=loaded.name,
            weights=Path(params.weights).name,
            sha256=loaded.weights_sha256,
            mean=tuple(loaded.mean),
            std=tuple(loaded.std),
            input_size=loaded.input_size,
        )


@dataclass(frozen=True, kw_only=True)
class ViewParams:
    """All that decides the features of one kind, given a recording's spikes.

    Parameters
    ----------
    windows, picture
        What is drawn.
    backbone
        What describes it.
    """

    windows: Windows
    picture: Picture
    backbone: BackboneIdentity

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a feature set's `params` in the store."""
        b = self.backbone
        return {
            "windows": self.windows.to_json(),
            "picture": self.picture.to_json(),
            "backbone": {
                "name": b.name,
                "weights": b.weights,
                "sha256": b.sha256,
                "mean": list(b.mean),
                "std": list(b.std),
                "input_size": b.input_size,
            },
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ViewParams:
        """Build from what `to_json` gave; a missing or unknown name is an error."""
        b = dict(values["backbone"])
        b |= {name: tuple(b[name]) for name in ("mean", "std")}
        parts = {
            "windows": Windows.from_json(values["windows"]),
            "picture": Picture.from_json(values["picture"]),
            "backbone": BackboneIdentity(**b),
        }
        made = cls(**{**values, **parts})
        if made.to_json() != values:
            raise InputError(f"ViewParams are not complete: {values}")
        return made


class LazyEngine:
    """A backbone that is compiled when first needed; windows and pictures may share it.

    Parameters
    ----------
    loaded
        The backbone.
    device, batch_size, n_jobs, precision
        As for `FeatureEngine`.
    """

    def __init__(
        self,
        loaded: LoadedBackbone,
        device: str,
        batch_size: int | None = None,
        n_jobs: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.loaded = loaded
        self.device = device
        self._batch_size = batch_size
        self._n_jobs = n_jobs
        self._precision: Precision = precision
        self._engine: FeatureEngine | None = None

    @property
    def computed(self) -> Computed:
        """What a store says of the features: where and how precisely they are computed."""
        from toptune.backbones.engine import computed_by

        return computed_by(self.device, self._precision)

    def get(self) -> FeatureEngine:
        """Give the engine; compiled by the first call."""
        if self._engine is None:
            from toptune.backbones.engine import FeatureEngine

            self._engine = FeatureEngine(
                self.loaded, self.device, self._batch_size, self._n_jobs, self._precision
            )
        return self._engine


class Described(NamedTuple):
    """Features of one kind of a recording's windows.

    Attributes
    ----------
    features : (windows, d) float32
    start_s : (windows,) float64
    """

    features: NDArray[np.float32]
    start_s: NDArray[np.float64]


class Describer:
    """Draws and describes the windows of any recording's spikes.

    Parameters
    ----------
    windows, picture
        What is drawn.
    engine
        What describes it.
    """

    def __init__(self, windows: Windows, picture: Picture, engine: LazyEngine) -> None:
        self.windows = windows
        self.picture = picture
        self.engine = engine

    def describe(self, trains: SpikeTrains, stage: Callable[[str, int, int], None]) -> Described:
        """Describe all windows; (0, d) where the recording is shorter than one.

        Parameters
        ----------
        trains
            The recording's spikes.
        stage
            Told ("features", windows done, windows in all) now and then.
        """
        return describe_views(trains, [self], stage)[0]

    def draw(self, trains: SpikeTrains, rows: Sequence[int], picture: Picture) -> torch.Tensor:
        """Draw some windows of a recording as the network sees them, (rows, S, S) float32.

        Parameters
        ----------
        trains
            The recording's spikes.
        rows
            Which windows.
        picture
            How, where it is not quite `picture`: on another count axis.
        """
        import torch

        from toptune.pictures.drawer import Drawer

        engine = self.engine
        drawer = Drawer(trains, self.windows, picture, engine.loaded.input_size, engine.device)
        return torch.cat([drawer.draw(row, row + 1) for row in rows])

    def describe_pictures(self, pictures: torch.Tensor) -> NDArray[np.float32]:
        """Describe pictures that `draw` gave, (n, d) float32."""
        return self.engine.get().features(pictures)


class Begun:
    """A recording whose features are being computed.

    Parameters
    ----------
    describers
        The views.
    start_s
        Of each view's windows, (windows,) float64.
    underway
        Of each view; None where it has no window.
    """

    def __init__(
        self,
        describers: Sequence[Describer],
        start_s: Sequence[NDArray[np.float64]],
        underway: Sequence[Underway | None],
    ) -> None:
        self._describers = describers
        self._underway = underway
        self.start_s = start_s

    @cached_property
    def _described(self) -> list[Described]:
        return [
            Described(
                np.empty((0, describer.engine.loaded.n_features), np.float32)
                if underway is None
                else underway.result(),
                start_s,
            )
            for describer, start_s, underway in zip(
                self._describers, self.start_s, self._underway, strict=True
            )
        ]

    def result(self) -> list[Described]:
        """Wait for the features, once; (0, d) of views that have no window."""
        return self._described


def begin_views(
    trains: SpikeTrains,
    describers: Sequence[Describer],
    stage: Callable[[str, int, int], None],
    resident: ResidentSpikes | None = None,
) -> Begun:
    """Begin to describe a recording in several ways, in one pass over its spikes.

    The spikes are put into bins once for each device and length of bin. On CUDA all work is only
    queued, one view behind the other: each view's features come down while the next is computed,
    and another recording may be begun before the result is asked for. On the CPU all is done when
    this returns.

    Parameters
    ----------
    trains
        The recording's spikes.
    describers
        Windows, picture and engine of each view; views may share engines.
    stage
        Told ("features", windows done, windows in all) now and then, over all views; on CUDA
        windows count as done when their work is queued.
    resident
        The same spikes on the GPU, where they were found there: then they are not uploaded.

    Returns
    -------
    Begun
        Its `result` is in the order of `describers`.
    """
    from toptune.pictures.drawer import Drawers

    drawings = Drawers(trains, resident)
    drawers = [
        drawings.drawer(d.windows, d.picture, d.engine.loaded.input_size, d.engine.device)
        for d in describers
    ]
    total, done = sum(map(len, drawers)), 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        stage("features", done, total)

    underway = [
        describer.engine.get().start(drawer, count) if len(drawer) else None
        for describer, drawer in zip(describers, drawers, strict=True)
    ]
    return Begun(describers, [drawer.start_s for drawer in drawers], underway)


def describe_views(
    trains: SpikeTrains,
    describers: Sequence[Describer],
    stage: Callable[[str, int, int], None],
) -> list[Described]:
    """Describe a recording in several ways, and wait: see `begin_views`."""
    return begin_views(trains, describers, stage).result()

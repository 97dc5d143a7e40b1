"""From spikes to the features of one kind: one way, for extraction and for prediction.

`SpikeTrains` enter with window and picture parameters and a backbone; features (windows, d)
float32 leave, with each window's start in seconds since the recording's start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import Backbone, Picture, Windows
from toptune.spiketrains import SpikeTrains

if TYPE_CHECKING:
    import torch

    from toptune.backbones import LoadedBackbone
    from toptune.features import FeatureEngine


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
    device, batch_size, n_jobs
        As for `FeatureEngine`.
    """

    def __init__(
        self,
        loaded: LoadedBackbone,
        device: str,
        batch_size: int | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.loaded = loaded
        self.device = device
        self._batch_size = batch_size
        self._n_jobs = n_jobs
        self._engine: FeatureEngine | None = None

    def get(self) -> FeatureEngine:
        """Give the engine; compiled by the first call."""
        if self._engine is None:
            from toptune.features import FeatureEngine

            self._engine = FeatureEngine(self.loaded, self.device, self._batch_size, self._n_jobs)
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
        self._engine = engine

    def describe(self, trains: SpikeTrains, stage: Callable[[str, int, int], None]) -> Described:
        """Describe all windows; (0, d) where the recording is shorter than one.

        Parameters
        ----------
        trains
            The recording's spikes.
        stage
            Told ("features", windows done, windows in all) now and then.
        """
        from toptune.features import describe
        from toptune.windows import Drawer

        loaded = self._engine.loaded
        drawer = Drawer(trains, self.windows, self.picture, loaded.input_size, self._engine.device)
        if not len(drawer):
            return Described(np.empty((0, loaded.n_features), np.float32), drawer.start_s)
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            stage("features", done, len(drawer))

        return Described(describe(drawer, self._engine.get(), progress=count), drawer.start_s)

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

        from toptune.windows import Drawer

        engine = self._engine
        drawer = Drawer(trains, self.windows, picture, engine.loaded.input_size, engine.device)
        return torch.cat([drawer.draw(row, row + 1) for row in rows])

    def describe_pictures(self, pictures: torch.Tensor) -> NDArray[np.float32]:
        """Describe pictures that `draw` gave, (n, d) float32."""
        return self._engine.get().features(pictures)
